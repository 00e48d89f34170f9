//! What the node asks of an outbox, whatever its type of message.

use std::{collections::BTreeMap, future::poll_fn, pin::Pin, sync::Arc, task::Poll};

use futures_util::future::join;

use super::{
    feedback::LaneEnd,
    lane::{Cut, Lane, Route},
    outbox::{Outbox, State},
};
use crate::{
    broadcast,
    error::DeliveryError,
    link::Target,
    message::RemoteMessage,
    status::{BroadcastCounts, Traffic},
    view::{NodeId, View},
};

pub(crate) trait AnyOutbox: Send + Sync {
    /// Follows the view: who receives the namespace now.
    fn follow(&self, view: &View);
    /// Takes no new messages.
    fn close(&self);
    /// Resolves when all that was taken in is settled, or waits for nobody.
    fn drained(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Gives up what is left: messages and broadcasts that wait, and that are
    /// under way.
    fn abandon(&self) -> (usize, usize);
    /// What has become of the messages.
    fn traffic(&self) -> Traffic;
    /// The same of the broadcasts.
    fn broadcasts(&self) -> BroadcastCounts;
}

impl<M: RemoteMessage> AnyOutbox for Outbox<M> {
    fn follow(&self, view: &View) {
        let place = &self.place;
        let receivers = view.receivers.get(&place.namespace);
        let mut state = self.state();
        for lane in &mut state.lanes {
            lane.agreed = false;
        }
        let other = receivers.filter(|receivers| receivers.label != place.label);
        state.other_label = other.map(|receivers| receivers.label.clone());
        let nodes = receivers
            .filter(|_| other.is_none())
            .into_iter()
            .flat_map(|receivers| receivers.nodes.keys().copied());
        let mut routes = BTreeMap::new();
        for node in nodes {
            if let Some(lane) = self.lane_to(&mut state, node, view) {
                lane.agreed = true;
                let member = view.nodes.get(&node);
                if let (Route::Remote { link, channel }, Some(member)) = (&lane.route, member) {
                    let route = broadcast::Route {
                        boot: member.boot,
                        link: link.clone(),
                        channel: *channel,
                    };
                    routes.insert(node, route);
                }
            }
        }
        state.tidy();
        if let Some(theirs) = state.other_label.clone() {
            while let Some(parcel) = state.pop_waiting() {
                let error = self.other_type(&theirs);
                state.fail(parcel, error);
            }
        }
        self.pump(&mut state);
        drop(state);
        place.relay.follow(routes);
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.pump(&mut state);
        drop(state);
        self.place.relay.close();
    }

    fn drained(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let messages = poll_fn(|cx| {
            let mut state = self.state();
            let hopeless = !state.lanes.iter().any(|lane| lane.agreed);
            let settled = state.lanes.iter().all(|lane| lane.pending() == 0);
            if settled && (hopeless || state.waiting.is_empty()) {
                return Poll::Ready(());
            }
            state.wait(cx);
            Poll::Pending
        });
        Box::pin(async {
            join(messages, self.place.relay.drained()).await;
        })
    }

    fn abandon(&self) -> (usize, usize) {
        let mut state = self.state();
        state.closed = true;
        state.alarm.clear();
        let mut waiting = 0;
        while let Some(parcel) = state.pop_waiting() {
            waiting += 1;
            state.fail(parcel, DeliveryError::Closed);
        }
        let mut under_way = 0;
        for mut lane in std::mem::take(&mut state.lanes) {
            let Cut { unsent, lost } = lane.cut();
            for parcel in unsent {
                waiting += 1;
                state.fail(parcel, DeliveryError::Closed);
            }
            for mut record in lost {
                under_way += usize::from(!record.failed);
                let reason = "this node shut down before it heard more".to_owned();
                let error = DeliveryError::Lost {
                    node: lane.node,
                    reason,
                };
                state.account.fail(&mut record, None, error);
            }
        }
        self.pump(&mut state);
        drop(state);
        let broadcasts = self.place.relay.abandon();
        (waiting + broadcasts.0, under_way + broadcasts.1)
    }

    fn traffic(&self) -> Traffic {
        let state = self.state();
        let pending: usize = state.lanes.iter().map(Lane::pending).sum();
        Traffic {
            waiting: state.waiting.len() as u64,
            under_way: pending as u64,
            ..state.account.traffic
        }
    }

    fn broadcasts(&self) -> BroadcastCounts {
        self.place.relay.counts()
    }
}

impl<M: RemoteMessage> Outbox<M> {
    /// The lane to a node, over the link that leads there now.
    fn lane_to<'a>(
        &self,
        state: &'a mut State<M>,
        node: NodeId,
        view: &View,
    ) -> Option<&'a mut Lane<M>> {
        if node == self.place.node {
            return state.lanes.iter_mut().find(|lane| lane.is_local());
        }
        let member = view.nodes.get(&node)?;
        let target = Target {
            address: member.address.clone(),
            boot: member.boot,
        };
        let link = self.place.links.to(node, target);
        let known = state.lanes.iter().position(|lane| lane.is_over(&link));
        let index = known.unwrap_or_else(|| {
            let end = LaneEnd::new(self.this.clone());
            let (namespace, label) = (&self.place.namespace, &self.place.label);
            let (channel, next) = link.attach(namespace, label, Arc::downgrade(&end) as _);
            let route = Route::Remote { link, channel };
            state.lanes.push(Lane::new(node, route, end, next));
            state.lanes.len() - 1
        });
        state.lanes.get_mut(index)
    }
}
