//! What has to be handed over before what.

use std::collections::BTreeMap;

/// Puts what comes from one origin in its order. It may come early, late and
/// more than once, with numbers left out that were not meant for this node.
///
/// **Invariant: the numbers that are handed over only grow.** So a number up to
/// the last one is never handed over again.
pub(super) struct Order<T> {
    /// The last number that was handed over.
    last: u64,
    /// Nothing with a lower number is waited for.
    settled: u64,
    early: BTreeMap<u64, Early<T>>,
}

struct Early<T> {
    /// What has to be handed over before.
    previous: u64,
    item: T,
}

impl<T> Order<T> {
    pub(super) fn new() -> Self {
        Self {
            last: 0,
            settled: 0,
            early: BTreeMap::new(),
        }
    }

    /// Whether it is too late for the number, or it has been handed over.
    pub(super) fn is_past(&self, number: u64) -> bool {
        number <= self.last
    }

    /// Waits for nothing more with a lower number than this.
    pub(super) fn settle(&mut self, below: u64) {
        self.settled = self.settled.max(below);
    }

    /// Takes in an item with a number that is not past, to be handed over after
    /// the one with the number `previous`.
    pub(super) fn take_in(&mut self, number: u64, previous: u64, item: T) {
        self.early.insert(number, Early { previous, item });
    }

    /// What is to be handed over now, if anything is.
    pub(super) fn next(&mut self) -> Option<T> {
        let first = self.early.first_entry()?;
        let Early { previous, .. } = *first.get();
        if previous > self.last && previous >= self.settled {
            return None;
        }
        let (number, early) = first.remove_entry();
        self.last = number;
        Some(early.item)
    }

    /// Has the number wait for no other one.
    pub(super) fn wait_no_longer(&mut self, number: u64) {
        if let Some(early) = self.early.get_mut(&number) {
            early.previous = 0;
        }
    }

    /// Takes an item out that has not been handed over.
    pub(super) fn give_up(&mut self, number: u64) {
        self.early.remove(&number);
    }

    /// What came early, by its number.
    pub(super) fn early(&self) -> impl Iterator<Item = (u64, &T)> {
        let early = self.early.iter();
        early.map(|(number, early)| (*number, &early.item))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(order: &mut Order<u64>) -> Vec<u64> {
        std::iter::from_fn(|| order.next()).collect()
    }

    #[test]
    fn what_comes_early_is_held_back_until_the_one_before_it_is_there() {
        let mut order = Order::new();
        order.take_in(3, 2, 3);
        order.take_in(2, 1, 2);
        assert!(ready(&mut order).is_empty());
        order.take_in(1, 0, 1);
        assert_eq!(ready(&mut order), [1, 2, 3]);
    }

    #[test]
    fn who_joins_late_waits_for_nothing_that_it_will_not_get() {
        let mut order = Order::new();
        order.take_in(8, 7, 8);
        order.take_in(7, 0, 7);
        assert_eq!(ready(&mut order), [7, 8]);
        assert!(order.is_past(5), "what comes later is not handed over");
    }

    #[test]
    fn what_the_origin_has_settled_is_not_waited_for() {
        let mut order = Order::new();
        order.take_in(5, 4, 5);
        order.settle(4);
        assert!(ready(&mut order).is_empty());
        order.settle(5);
        assert_eq!(ready(&mut order), [5]);
    }

    #[test]
    fn when_the_patience_is_over_the_rest_goes_on() {
        let mut order = Order::new();
        order.take_in(5, 4, 5);
        order.take_in(6, 5, 6);
        order.wait_no_longer(5);
        assert_eq!(ready(&mut order), [5, 6]);
        assert!(order.is_past(4));
    }
}
