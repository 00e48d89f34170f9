//! Room for what peers have a node hold: the large messages that are being put
//! together, and the broadcasts that it sees to.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::view::NodeId;

/// How many bytes may be held at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) per_peer: usize,
    pub(crate) per_node: usize,
}

/// What permits stand for: a permit a byte would be more than there can be.
const UNIT_BYTES: usize = 1 << 10;

/// The room of a node, shared by its links.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    node: Arc<Semaphore>,
    units_per_peer: usize,
    /// As long as anybody has a hold on them: what is taken may outlive the link
    /// that took it, and the next one has no more for that.
    peers: Arc<Mutex<HashMap<NodeId, Weak<Semaphore>>>>,
}

/// The room of one peer.
pub(crate) struct PeerRoom {
    node: Arc<Semaphore>,
    peer: Arc<Semaphore>,
}

/// Room that is taken, until this is dropped.
pub(crate) struct Taken {
    peer: OwnedSemaphorePermit,
    node: OwnedSemaphorePermit,
}

impl Taken {
    /// Parts with some of the room, if it is so much, for what is held longer.
    pub(crate) fn part(&mut self, bytes: usize) -> Option<Self> {
        let units = units(bytes) as usize;
        Some(Self {
            peer: self.peer.split(units)?,
            node: self.node.split(units)?,
        })
    }
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Room {
    /// There is room for the largest message in any case.
    pub(crate) fn new(bounds: Bounds, max_message: usize) -> Self {
        let at_least = |bytes: usize| units(bytes.max(max_message)) as usize;
        Self {
            node: Arc::new(Semaphore::new(at_least(bounds.per_node))),
            units_per_peer: at_least(bounds.per_peer),
            peers: Arc::default(),
        }
    }

    pub(crate) fn of_peer(&self, peer: NodeId) -> PeerRoom {
        let mut peers = self.peers.lock().expect("no panic while peers are counted");
        let known = peers.get(&peer).and_then(Weak::upgrade);
        let room = known.unwrap_or_else(|| Arc::new(Semaphore::new(self.units_per_peer)));
        peers.retain(|_, room| room.strong_count() > 0);
        peers.insert(peer, Arc::downgrade(&room));
        PeerRoom {
            node: self.node.clone(),
            peer: room,
        }
    }
}

impl PeerRoom {
    /// Takes room for so many bytes, if it is there now.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Taken> {
        let units = units(bytes);
        Some(Taken {
            peer: self.peer.clone().try_acquire_many_owned(units).ok()?,
            node: self.node.clone().try_acquire_many_owned(units).ok()?,
        })
    }

    /// Takes room for so many bytes when it is there. Who waits gets it in turn,
    /// so that a very large message is not passed over for ever.
    pub(crate) fn take(&self, bytes: usize) -> impl Future<Output = Option<Taken>> + use<> {
        let (peer, node, units) = (self.peer.clone(), self.node.clone(), units(bytes));
        async move {
            // Nobody closes them; if it were so, there would be no room.
            Some(Taken {
                peer: peer.acquire_many_owned(units).await.ok()?,
                node: node.acquire_many_owned(units).await.ok()?,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_peer_gets_no_more_than_its_part() {
        let room = Room::new(
            Bounds {
                per_peer: 2 * MIB,
                per_node: 3 * MIB,
            },
            MIB,
        );
        let (one, other) = (room.of_peer(NodeId(1)), room.of_peer(NodeId(2)));
        let taken = one.try_take(2 * MIB).unwrap();
        assert!(one.try_take(1).is_none(), "its part is used up");
        assert!(other.try_take(2 * MIB).is_none(), "the node's is");
        assert!(other.try_take(MIB).is_some());
        let waits = other.take(2 * MIB);
        drop(taken);
        assert!(waits.now_or_never().flatten().is_some());

        let mut taken = one.try_take(2 * MIB).unwrap();
        let part = taken.part(MIB).unwrap();
        assert!(taken.part(2 * MIB).is_none());
        drop((taken, one));
        let again = room.of_peer(NodeId(1));
        assert!(again.try_take(2 * MIB).is_none(), "the part is still held");
        drop(part);
        assert!(again.try_take(2 * MIB).is_some());
    }

    #[test]
    fn there_is_room_for_the_largest_message() {
        let bounds = Bounds {
            per_peer: 1,
            per_node: 1,
        };
        let room = Room::new(bounds, MIB);
        assert!(room.of_peer(NodeId(1)).try_take(MIB).is_some());
    }
}
