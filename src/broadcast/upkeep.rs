//! What the node asks of a relay.

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    task::Poll,
};

use tokio::time::Instant;

use super::{
    errand::{Answer, Source},
    relay::{Relay, Route, State, Task},
};
use crate::{error::DeliveryError, status::BroadcastCounts, view::NodeId};

impl Relay {
    /// Follows the view: who receives the namespace now, and over which links.
    pub(crate) fn follow(&self, routes: BTreeMap<NodeId, Route>) {
        let mut state = self.state();
        self.look(&mut state);
        state.routes = routes;
        if let Some(error) = self.other_type(&state) {
            while let Some(unsent) = state.own.waiting.pop_front() {
                state.add(Task::Drop(unsent.hand_over));
                state.fail(unsent.waiter, error.clone());
            }
        }
        let routes = state.routes.clone();
        self.try_again(&mut state, |addressee| {
            let route = routes.get(&addressee.node);
            route.is_some_and(|route| route.link.is_up())
        });
        self.done(state);
    }

    /// Broadcasts nothing new, and sees only to this node's recipients from now
    /// on: other nodes take over what it has passed on for them.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.closed, true) {
            return;
        }
        let parts = state.parts();
        let errands: Vec<u64> = state.errands.keys().copied().collect();
        for id in errands {
            let Some(errand) = state.errands.get_mut(&id) else {
                continue;
            };
            if let Answer::Parent { out_of_reach, .. } = &mut errand.answer {
                out_of_reach.extend(parts.get(&id).into_iter().flatten());
                errand.copies = 0;
                self.settle(&mut state, id);
            }
        }
        // Should they be answered, nobody asks.
        let State {
            copies, errands, ..
        } = &mut *state;
        for copy in copies.values_mut() {
            if errands
                .get(&copy.errand)
                .is_none_or(|errand| !errand.is_own())
            {
                copy.errand = 0;
            }
        }
        self.done(state);
    }

    /// Resolves when all broadcasts of this node are settled, and its recipients
    /// have those of others.
    pub(crate) async fn drained(&self) {
        poll_fn(|cx| {
            let mut state = self.state();
            state.tidy();
            let own = &state.own;
            if own.waiting.is_empty() && own.under_way.is_empty() && state.errands.is_empty() {
                return Poll::Ready(());
            }
            if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }

    /// Gives up what is left: broadcasts of this node that wait, and that are
    /// under way.
    pub(crate) fn abandon(&self) -> (usize, usize) {
        let mut state = self.state();
        state.closed = true;
        state.ended = true;
        state.alarm.clear();
        let waiting = std::mem::take(&mut state.own.waiting);
        let under_way = state.own.errands();
        let given_up = (waiting.len(), under_way.len());
        for unsent in waiting {
            state.add(Task::Drop(unsent.hand_over));
            state.fail(unsent.waiter, DeliveryError::Closed);
        }
        for id in under_way {
            self.conclude(&mut state, id);
        }
        self.hand_back_all(&mut state, |_| true);
        self.done(state);
        given_up
    }

    /// What has become of the broadcasts of this node, and what it has passed on.
    pub(crate) fn counts(&self) -> BroadcastCounts {
        let state = self.state();
        BroadcastCounts {
            waiting: state.own.waiting.len() as u64,
            under_way: state.own.under_way.len() as u64,
            ..state.counts
        }
    }

    /// Gives up what is past its time, and tries other ways to those that are
    /// out of reach.
    pub(super) fn expire(&self, now: Instant) {
        let mut guard = self.state();
        let state = &mut *guard;
        self.expire_waiting(state, now);
        let due: Vec<u64> = state
            .own
            .errands()
            .into_iter()
            .filter(|id| state.errands.get(id).is_some_and(|own| own.due() <= now))
            .collect();
        for id in due {
            self.conclude(state, id);
        }
        self.hand_back_all(state, |due| due <= now);

        let origins: Vec<Source> = state.inflows.keys().copied().collect();
        let mut retract = Vec::new();
        for origin in origins {
            let Some(inflow) = state.inflows.get_mut(&origin) else {
                continue;
            };
            let (told, some) = inflow.expire(now);
            retract.extend(some);
            if inflow.is_over(now) {
                state.inflows.remove(&origin);
            }
            for id in told {
                if let Some(errand) = state.errands.get_mut(&id) {
                    errand.here = false;
                }
                self.settle(state, id);
            }
            self.hand_over(state, origin);
        }
        if !retract.is_empty() {
            state.add(Task::Retract(retract));
        }
        if state.detour.is_some_and(|detour| detour <= now) {
            state.detour = None;
            self.detour(state);
        }

        let waiting = state.own.waiting.iter();
        let waiting = waiting.map(|unsent| unsent.deadline.at());
        let errands = state.errands.values().map(|errand| errand.due());
        let inflows = state.inflows.values().map(|inflow| inflow.earliest(now));
        let all = waiting.chain(errands).chain(inflows).chain(state.detour);
        let earliest = all.min();
        state.alarm.clear();
        if let Some(earliest) = earliest {
            self.note(state, earliest);
        }
        self.done(guard);
    }

    /// Answers the errands for peers whose time is up.
    fn hand_back_all(&self, state: &mut State, due: impl Fn(Instant) -> bool) {
        let errands = state.errands.iter();
        let errands: Vec<u64> = errands
            .filter(|(_, errand)| !errand.is_own() && due(errand.due()))
            .map(|(id, _)| *id)
            .collect();
        if errands.is_empty() {
            return;
        }
        let mut parts = state.parts();
        for id in errands {
            let others = parts.remove(&id).unwrap_or_default();
            self.hand_back(state, id, others);
        }
    }
}

impl State {
    /// Whom peers still see to, by errand.
    fn parts(&self) -> HashMap<u64, Vec<NodeId>> {
        let mut parts: HashMap<u64, Vec<NodeId>> = HashMap::new();
        for copy in self.copies.values() {
            let nodes = copy.part.iter().map(|addressee| addressee.node);
            parts.entry(copy.errand).or_default().extend(nodes);
        }
        parts
    }
}
