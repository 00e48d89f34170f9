//! The messages that are under way to one receiver.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::{feedback::LaneEnd, parcel::Parcel};
use crate::{delivery::Waiter, link::Link, message::RemoteMessage, status::Traffic, view::NodeId};

pub(super) struct Lane<M: RemoteMessage> {
    pub(super) node: NodeId,
    pub(super) route: Route,
    /// Where the receiver's answers come in.
    pub(super) end: Arc<LaneEnd<M>>,
    /// Whether the node is a receiver in the view.
    pub(super) agreed: bool,
    /// How many may be under way. Nought while the link is down.
    pub(super) window: u32,
    /// The number of the next message on this lane.
    pub(super) next: u64,
    under_way: BTreeMap<u64, Parcel<M>>,
    under_way_bytes: usize,
    /// Accepted, and not yet answered.
    pub(super) asking: BTreeMap<u64, Parcel<M>>,
}

pub(super) enum Route {
    /// To the recipients of this node.
    Local,
    Remote {
        link: Arc<Link>,
        channel: u32,
    },
}

/// What was on a lane when it was cut.
pub(super) struct Cut<M: RemoteMessage> {
    pub(super) unsent: Vec<Parcel<M>>,
    pub(super) lost: Vec<Parcel<M>>,
}

impl<M: RemoteMessage> Lane<M> {
    /// A lane whose first message has the number `next`.
    pub(super) fn new(node: NodeId, route: Route, end: Arc<LaneEnd<M>>, next: u64) -> Self {
        Self {
            node,
            route,
            end,
            agreed: false,
            window: 0,
            next,
            under_way: BTreeMap::new(),
            under_way_bytes: 0,
            asking: BTreeMap::new(),
        }
    }

    pub(super) fn is_ready(&self, window_bytes: usize) -> bool {
        self.agreed
            && self.under_way.len() < self.window as usize
            && self.under_way_bytes < window_bytes
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.route, Route::Local)
    }

    /// Whether it leads over this link.
    pub(super) fn is_over(&self, over: &Arc<Link>) -> bool {
        matches!(&self.route, Route::Remote { link, .. } if Arc::ptr_eq(link, over))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.asking.is_empty()
    }

    /// How many messages have been handed over and have no outcome.
    pub(super) fn pending(&self) -> usize {
        let under_way = self.under_way.values().filter(|parcel| !parcel.failed);
        under_way.count() + self.asking.len()
    }

    pub(super) fn under_way_mut(&mut self) -> impl Iterator<Item = &mut Parcel<M>> {
        self.under_way.values_mut()
    }

    /// Counts a message that has been handed over as the next one.
    pub(super) fn send_off(&mut self, parcel: Parcel<M>) {
        self.under_way_bytes += parcel.size;
        self.under_way.insert(self.next, parcel);
        self.next += 1;
    }

    /// These are under way no more.
    pub(super) fn settle(&mut self, sequences: Range<u64>) -> Vec<(u64, Parcel<M>)> {
        let settled: Vec<_> = self.under_way.extract_if(sequences, |_, _| true).collect();
        let bytes = settled.iter().map(|(_, parcel)| parcel.size);
        self.under_way_bytes -= bytes.sum::<usize>();
        settled
    }

    /// A recipient has the message.
    pub(super) fn accepted(&mut self, sequence: u64, mut parcel: Parcel<M>, traffic: &mut Traffic) {
        match parcel.waiter {
            _ if parcel.failed => {}
            Waiter::None => traffic.accepted += 1,
            Waiter::Accepted(waiter) => {
                traffic.accepted += 1;
                let _ = waiter.send(Ok(self.node));
            }
            Waiter::Handled(_) => {
                parcel.body = None;
                self.asking.insert(sequence, parcel);
            }
        }
    }

    /// Ends the lane's traffic. Messages with a number from `unsent` on have not
    /// left this node; of the others nothing more will be heard.
    pub(super) fn cut(&mut self, unsent: u64) -> Cut<M> {
        self.window = 0;
        self.under_way_bytes = 0;
        let unsent = self.under_way.split_off(&unsent).into_values().collect();
        let mut lost = std::mem::take(&mut self.under_way);
        lost.append(&mut self.asking);
        let lost = lost.into_values().collect();
        Cut { unsent, lost }
    }
}
