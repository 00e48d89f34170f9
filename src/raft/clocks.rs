//! Who has been silent for how long, as the leader sees it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::view::NodeId;

/// After so long a silence the leader has a node taken out of the view.
pub(super) const EVICT_AFTER: Duration = Duration::from_secs(10);

/// Who has answered within this time is there: several heartbeats'.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

/// When each node last answered this one. Shared by the connections, which note
/// it, and the actor, which looks.
#[derive(Clone)]
pub(super) struct Clocks {
    state: Arc<Mutex<State>>,
}

struct State {
    /// From when on they run: a new leader gives everybody the whole time.
    since: Instant,
    answered: HashMap<NodeId, Instant>,
}

impl Clocks {
    pub(super) fn new() -> Self {
        let state = State {
            since: Instant::now(),
            answered: HashMap::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while clocks are read")
    }

    /// Starts all of them again.
    pub(super) fn restart(&self) {
        let mut state = self.state();
        state.since = Instant::now();
        state.answered.clear();
    }

    /// The node has answered, or has just come up.
    pub(super) fn answered(&self, node: NodeId) {
        self.state().answered.insert(node, Instant::now());
    }

    /// Which of these nodes have been silent for too long.
    pub(super) fn silent(&self, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let state = self.state();
        nodes
            .filter(|node| {
                let answered = state.answered.get(node).unwrap_or(&state.since);
                answered.elapsed() >= EVICT_AFTER
            })
            .collect()
    }

    /// Which of them have answered just now.
    pub(super) fn heard(&self, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<NodeId> {
        let state = self.state();
        nodes
            .filter(|node| {
                let answered = state.answered.get(node);
                answered.is_some_and(|answered| answered.elapsed() < HEARD_WITHIN)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_node_is_silent_ten_seconds_after_its_last_answer() {
        let clocks = Clocks::new();
        let silent = || clocks.silent([NodeId(1), NodeId(2)].into_iter());
        let heard = || clocks.heard([NodeId(1), NodeId(2)].into_iter());
        tokio::time::advance(EVICT_AFTER / 2).await;
        clocks.answered(NodeId(1));
        assert_eq!(heard(), BTreeSet::from([NodeId(1)]));
        tokio::time::advance(EVICT_AFTER / 2).await;
        assert_eq!(silent(), BTreeSet::from([NodeId(2)]));
        assert_eq!(heard(), BTreeSet::new());
        clocks.answered(NodeId(1));
        clocks.restart();
        assert_eq!(silent(), BTreeSet::new());
        assert_eq!(heard(), BTreeSet::new());
    }
}
