//! Who sees to which addressees of an errand: peers that copies are passed to, and
//! what is done about addressees that none of them reaches.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;

use super::{
    MOST_PASSED,
    errand::{Answer, Copy, Source},
    relay::{Relay, State},
    tree::{self, Addressee},
};
use crate::view::{NodeId, Receivers};

/// How often addressees that are out of reach are tried another way.
const DETOUR_INTERVAL: Duration = Duration::from_secs(1);

impl Relay {
    /// Passes copies on for addressees of an errand, each for a part of them.
    pub(super) fn plan(&self, state: &mut State, id: u64, mut left: Vec<Addressee>) {
        let Some(errand) = state.errands.get(&id) else {
            return;
        };
        let (letter, own) = (errand.letter.clone(), errand.is_own());
        let mut out_of_reach = Vec::new();
        while !left.is_empty() {
            let (near, far): (Vec<_>, Vec<_>) = left.into_iter().partition(|addressee| {
                (own || !state.closed) && state.reaches(addressee, letter.origin)
            });
            out_of_reach.extend(far);
            left = Vec::new();
            for part in tree::split(near) {
                let Some(first) = part.first().copied() else {
                    continue;
                };
                if let Err(mut part) = self.pass_on(state, id, first.node, part) {
                    out_of_reach.push(part.swap_remove(0));
                    left.append(&mut part);
                }
            }
        }
        if out_of_reach.is_empty() {
            return;
        }
        match state.errands.get_mut(&id).map(|errand| &mut errand.answer) {
            Some(Answer::Sender { .. }) => {
                let left = self.go_round(state, id, out_of_reach);
                self.put_off(state, id, left);
            }
            Some(Answer::Parent {
                out_of_reach: all, ..
            }) => all.extend(out_of_reach.iter().map(|addressee| addressee.node)),
            None => {}
        }
    }

    /// Passes copies to those through whom addressees were reached before.
    /// Returns the addressees for whom there is nobody.
    fn go_round(&self, state: &mut State, id: u64, far: Vec<Addressee>) -> Vec<Addressee> {
        let mut left = Vec::new();
        for addressee in far {
            let way = state.ways_round.get(&addressee.node).copied();
            match way.map(|way| self.pass_on(state, id, way, vec![addressee])) {
                Some(Ok(())) => {}
                Some(Err(_)) | None => {
                    state.ways_round.remove(&addressee.node);
                    left.push(addressee);
                }
            }
        }
        left
    }

    /// Passes a copy to a node that is to see to a part of the addressees. Gives
    /// them back if it cannot be reached.
    fn pass_on(
        &self,
        state: &mut State,
        id: u64,
        to: NodeId,
        part: Vec<Addressee>,
    ) -> Result<(), Vec<Addressee>> {
        let (Some(errand), Some(route)) = (state.errands.get_mut(&id), state.routes.get(&to))
        else {
            return Err(part);
        };
        let letter = errand.letter.clone();
        let passed = state.passed.get(&(to, letter.origin)).copied();
        if passed.unwrap_or_default() >= MOST_PASSED {
            return Err(part);
        }
        let number = state.next;
        let copy = letter.copy(route.channel, number, &part);
        let link = route.link.clone();
        if !link.pass_on(copy, letter.deadline.clone(), letter.patience) {
            return Err(part);
        }
        errand.copies += 1;
        match errand.is_own() {
            true => state.counts.copies += 1,
            false => state.counts.relayed += 1,
        }
        state.next += 1;
        *state.passed.entry((to, letter.origin)).or_default() += 1;
        let copy = Copy {
            errand: id,
            letter,
            link,
            part,
        };
        state.copies.insert(number, copy);
        Ok(())
    }

    /// Has addressees wait that nothing more can be done for now: at the node
    /// that broadcasts. Another one leaves them to that.
    pub(super) fn put_off(&self, state: &mut State, id: u64, addressees: Vec<Addressee>) {
        if addressees.is_empty() {
            return;
        }
        let receivers = state.receivers.clone();
        let Some(errand) = state.errands.get_mut(&id) else {
            return;
        };
        match &mut errand.answer {
            Answer::Sender { waiting, .. } => {
                let there = |addressee: &Addressee| is_among(receivers.as_deref(), addressee);
                waiting.extend(addressees.into_iter().filter(there));
                if !waiting.is_empty() && state.detour.is_none() {
                    let at = Instant::now() + DETOUR_INTERVAL;
                    state.detour = Some(at);
                    self.note(state, at);
                }
            }
            Answer::Parent { late, .. } => {
                late.extend(addressees.iter().map(|addressee| addressee.node));
            }
        }
    }

    /// Sees again to those that wait and that this holds for. Those that receive
    /// no more are waited for no longer.
    pub(super) fn try_again(&self, state: &mut State, which: impl Fn(&Addressee) -> bool) {
        let receivers = state.receivers.clone();
        for id in state.own.errands() {
            let Some(errand) = state.errands.get_mut(&id) else {
                continue;
            };
            let Answer::Sender { waiting, .. } = &mut errand.answer else {
                continue;
            };
            waiting.retain(|addressee| is_among(receivers.as_deref(), addressee));
            let again: Vec<_> = waiting.extract_if(.., |waiting| which(waiting)).collect();
            self.plan(state, id, again);
            self.settle(state, id);
        }
    }

    /// Sees again to all that wait. Where a receiver cannot be reached, one
    /// broadcast is sent through any other one, which hands it back at once if
    /// it does not reach it either; if it does, the rest goes the same way.
    pub(super) fn detour(&self, state: &mut State) {
        self.try_again(state, |_| true);
        let up: Vec<NodeId> = state
            .routes
            .iter()
            .filter(|(_, route)| route.link.is_up())
            .map(|(node, _)| *node)
            .collect();
        let mut tried = HashSet::new();
        for id in state.own.errands() {
            let Some(errand) = state.errands.get_mut(&id) else {
                continue;
            };
            let Answer::Sender { waiting, .. } = &mut errand.answer else {
                continue;
            };
            let first = |addressee: &mut Addressee| tried.insert(addressee.node);
            let part: Vec<_> = waiting.extract_if(.., first).collect();
            if part.is_empty() {
                continue;
            }
            let via = up.get(rand::random_range(0..up.len().max(1)));
            let passed = match via {
                Some(via) => self.pass_on(state, id, *via, part),
                None => Err(part),
            };
            if let Err(part) = passed {
                self.put_off(state, id, part);
            }
        }
    }
}

impl State {
    /// Whether a copy can be passed straight to a receiver.
    fn reaches(&self, addressee: &Addressee, origin: Source) -> bool {
        let Some(route) = self.routes.get(&addressee.node) else {
            return false;
        };
        let passed = self.passed.get(&(addressee.node, origin)).copied();
        route.boot == addressee.boot
            && passed.unwrap_or_default() < MOST_PASSED
            && route.link.is_up()
    }
}

fn is_among(receivers: Option<&Receivers>, addressee: &Addressee) -> bool {
    let boot = receivers.and_then(|receivers| receivers.nodes.get(&addressee.node));
    boot == Some(&addressee.boot)
}
