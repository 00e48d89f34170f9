//! Who passes a broadcast on to whom.

use crate::view::NodeId;

/// How many copies of a broadcast a node passes on, at the most, as long as
/// nothing breaks. With four, 32 nodes are reached in three steps and 340 in
/// four.
pub(super) const FAN_OUT: usize = 4;

/// A receiver that a broadcast is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addressee {
    pub(super) node: NodeId,
    pub(super) boot: u64,
    /// The number of the broadcast of the same origin that it has to have
    /// before; nought for none.
    pub(super) previous: u64,
}

/// Splits addressees into parts of about the same size. The first of a part
/// gets a copy and sees to the others. Always the same for the same list: so a
/// sender's broadcasts take the same way, on which none overtakes another one.
pub(super) fn split(addressees: Vec<Addressee>) -> Vec<Vec<Addressee>> {
    let parts = addressees.len().min(FAN_OUT);
    let mut left = addressees.into_iter();
    (0..parts)
        .map(|part| {
            let size = left.len().div_ceil(parts - part);
            left.by_ref().take(size).collect()
        })
        .collect()
}

/// Has the list begin behind a node, so that not all senders burden the same
/// nodes with passing on. The list is in the order of the nodes.
pub(super) fn rotate(addressees: &mut [Addressee], after: NodeId) {
    let first = addressees.partition_point(|addressee| addressee.node <= after);
    addressees.rotate_left(first);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addressees(count: u64) -> Vec<Addressee> {
        (1..=count)
            .map(|node| Addressee {
                node: NodeId(node),
                boot: 1,
                previous: 0,
            })
            .collect()
    }

    /// Sends to the list as the nodes do. Returns who got a copy, and after how
    /// many steps the last one did.
    fn spread(list: Vec<Addressee>) -> (Vec<NodeId>, usize) {
        let (mut reached, mut steps) = (Vec::new(), 0);
        let parts = split(list);
        assert!(parts.len() <= FAN_OUT);
        for mut part in parts {
            reached.push(part.remove(0).node);
            let (more, further) = spread(part);
            reached.extend(more);
            steps = steps.max(1 + further);
        }
        (reached, steps)
    }

    #[test]
    fn everybody_gets_one_copy() {
        for count in [0, 1, 3, 4, 5, 31, 100] {
            let (mut reached, _) = spread(addressees(count));
            reached.sort();
            assert_eq!(reached, (1..=count).map(NodeId).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_steps_grow_with_the_logarithm_of_the_receivers() {
        for (count, steps) in [(1, 1), (4, 1), (5, 2), (20, 2), (21, 3), (84, 3), (340, 4)] {
            assert_eq!(spread(addressees(count)).1, steps, "{count} receivers");
        }
    }

    #[test]
    fn each_sender_begins_with_the_node_behind_it() {
        let mut list = addressees(4);
        rotate(&mut list, NodeId(2));
        let nodes: Vec<u64> = list.iter().map(|addressee| addressee.node.get()).collect();
        assert_eq!(nodes, [3, 4, 1, 2]);
        rotate(&mut list[..0], NodeId(2));
    }
}
