//! What receivers answer, and what becomes of their messages then.

use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::{
    lane::{Cut, Lane},
    outbox::{Outbox, State},
    parcel::Parcel,
};
use crate::{
    delivery::Reply,
    error::DeliveryError,
    inbox::Origin,
    link::{Feedback, Load, Verdict},
    message::{Body, RemoteMessage},
    view::NodeId,
};

/// The end of a lane at which its receiver's answers come in, from the link or
/// from the recipients of this node.
///
/// An answer that comes too late finds nothing: its lane is gone, or its message
/// is there no more, for a lane uses no number twice.
pub(super) struct LaneEnd<M: RemoteMessage> {
    outbox: Weak<Outbox<M>>,
}

impl<M: RemoteMessage> LaneEnd<M> {
    pub(super) fn new(outbox: Weak<Outbox<M>>) -> Arc<Self> {
        Arc::new(Self { outbox })
    }

    /// Has the outbox take in what happened on the lane, whose index it is told,
    /// and hand over what has become possible by it.
    fn report(&self, what: impl FnOnce(&Outbox<M>, &mut State<M>, usize)) {
        let Some(outbox) = self.outbox.upgrade() else {
            return;
        };
        let mut state = outbox.state();
        let mut lanes = state.lanes.iter();
        if let Some(index) = lanes.position(|lane| self.is_of(lane)) {
            what(&outbox, &mut state, index);
            outbox.pump(&mut state);
        }
    }

    fn is_of(&self, lane: &Lane<M>) -> bool {
        std::ptr::eq(&*lane.end, self)
    }

    fn open(&self, window: u32) {
        self.report(|_, state, lane| state.lanes[lane].window = window);
    }

    fn settle(&self, first: u64, count: u64, verdict: Verdict) {
        self.report(|outbox, state, lane| {
            let sequences = first..first.saturating_add(count);
            let State { lanes, account, .. } = state;
            match verdict {
                Verdict::Accepted => {
                    lanes[lane].settle(sequences, |lane, sequence, entry| {
                        lane.accepted(sequence, entry, &mut account.traffic);
                    });
                }
                Verdict::Returned => {
                    let mut returned = Vec::new();
                    lanes[lane].settle(sequences, |lane, _, entry| {
                        returned.extend(lane.take_back(entry));
                    });
                    for parcel in returned {
                        outbox.offer_again(state, parcel);
                    }
                }
                Verdict::Rejected(reason) => {
                    lanes[lane].settle(sequences, |_, _, mut entry| {
                        let reason = reason.clone();
                        let error = DeliveryError::Rejected { reason };
                        account.fail(&mut entry.record, None, error);
                    });
                }
            }
        });
    }

    fn answered(&self, sequence: u64, reply: impl FnOnce(NodeId) -> Result<Reply<M>, String>) {
        self.report(|_, state, lane| {
            let lane = &mut state.lanes[lane];
            let node = lane.node;
            let Some(mut record) = lane.asking.remove(&sequence) else {
                return state.account.unwanted(reply(node));
            };
            match reply(node) {
                Ok(reply) => state.account.handled(record.waiter, reply),
                Err(reason) => {
                    let error = DeliveryError::Lost { node, reason };
                    state.account.fail(&mut record, None, error);
                }
            }
        });
    }
}

/// A link answers for its peer.
impl<M: RemoteMessage> Feedback for LaneEnd<M> {
    fn take(&self, room: usize, chunk: usize) -> Option<Load> {
        let outbox = self.outbox.upgrade()?;
        let mut state = outbox.state();
        let mut lanes = state.lanes.iter_mut();
        lanes.find(|lane| self.is_of(lane))?.take(room, chunk)
    }

    fn proceed(&self, sequence: u64) {
        self.report(|_, state, lane| state.lanes[lane].proceed(sequence));
    }

    fn granted(&self, window: u32) {
        self.open(window);
    }

    fn settled(&self, first: u64, count: u64, verdict: Verdict) {
        self.settle(first, count, verdict);
    }

    fn replied(&self, sequence: u64, reply: Result<Bytes, String>) {
        self.answered(sequence, |node| {
            reply.map(|bytes| Reply::Encoded(node, bytes))
        });
    }

    fn broken(&self) {
        self.report(|outbox, state, lane| {
            let lane = &mut state.lanes[lane];
            let (node, Cut { unsent, lost }) = (lane.node, lane.cut());
            for mut record in lost {
                let reason = "the link broke".to_owned();
                let error = DeliveryError::Lost { node, reason };
                state.account.fail(&mut record, None, error);
            }
            for parcel in unsent {
                outbox.offer_again(state, parcel);
            }
            state.tidy();
        });
    }
}

/// The recipients of this node answer for themselves.
impl<M: RemoteMessage> Origin<M> for LaneEnd<M> {
    fn grant(&self, window: u32) {
        self.open(window);
    }

    fn accepted(&self, sequence: u64) {
        self.settle(sequence, 1, Verdict::Accepted);
    }

    fn returned(&self, sequence: u64, body: Option<Body<M>>) {
        self.report(|outbox, state, lane| {
            let mut returned = None;
            state.lanes[lane].settle(sequence..sequence + 1, |_, _, entry| {
                returned = Some(entry.record);
            });
            match (returned, body) {
                (Some(record), Some(body)) => outbox.offer_again(state, Parcel { body, record }),
                (_, body) => state.account.forget(body),
            }
        });
    }

    fn rejected(&self, sequence: u64, reason: String) {
        self.settle(sequence, 1, Verdict::Rejected(reason));
    }

    fn replied(&self, sequence: u64, reply: Result<M::Result, String>) {
        self.answered(sequence, |_| reply.map(Reply::Value));
    }

    fn is_gone(&self) -> bool {
        self.outbox.strong_count() == 0
    }
}
