//! Who votes: pure decisions over a picture of the cluster.

use std::collections::BTreeSet;

use crate::view::NodeId;

/// What the leader sees when it looks at the membership.
#[derive(Clone, Debug, Default)]
pub(crate) struct Picture {
    pub(crate) leader: NodeId,
    pub(crate) voters: BTreeSet<NodeId>,
    /// Who is to vote, by a change that was begun and not finished. Until it is,
    /// nothing is agreed without majorities of the old voters and of the new.
    pub(crate) begun: Option<BTreeSet<NodeId>>,
    pub(crate) learners: BTreeSet<NodeId>,
    /// Nodes that are up in the view.
    pub(crate) up: BTreeSet<NodeId>,
    /// Learners whose log has caught up with the leader's.
    pub(crate) caught_up: BTreeSet<NodeId>,
    /// Other nodes that have not answered the leader for too long.
    pub(crate) silent: BTreeSet<NodeId>,
    /// Nodes that have answered this leader just now, and itself.
    pub(crate) heard: BTreeSet<NodeId>,
    /// The most voters there may be.
    pub(crate) cap: usize,
}

/// One change of the view or of the membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Take a node that is silent out of the view, with all it receives.
    Evict(NodeId),
    /// Take in a node that is up as a learner.
    Add(NodeId),
    /// Let exactly these vote. The others stay as learners.
    SetVoters(BTreeSet<NodeId>),
    /// Forget a learner that is gone.
    Remove(NodeId),
}

/// The next change, if any is due.
///
/// Who is silent is up no more. Everybody who is up is a member; the voters are
/// the largest odd number of them up to the cap, for an even one tolerates no
/// more failures and needs one more vote. Whoever votes keeps its vote while it
/// is up; a voter that is gone keeps it until one that takes its place has
/// caught up. One that is silent may be back with its log, and that log may be
/// needed: it loses its vote only if a majority of the voters stay. A change that was
/// cut off, with the leader say that made it, is finished before anything else.
pub(crate) fn next_change(picture: &Picture) -> Option<Change> {
    let Picture {
        voters, learners, ..
    } = picture;
    let is_member = |node: &NodeId| voters.contains(node) || learners.contains(node);
    if !is_member(&picture.leader) {
        // It has been taken out, and leads no more: the next one takes it in again.
        return None;
    }
    if let Some(voters) = &picture.begun {
        return Some(Change::SetVoters(voters.clone()));
    }
    let mut silent = picture.up.intersection(&picture.silent);
    if let Some(node) = silent.next() {
        return Some(Change::Evict(*node));
    }
    if let Some(node) = picture.up.iter().find(|node| !is_member(node)) {
        return Some(Change::Add(*node));
    }
    let due = due_voters(picture);
    if !due.is_empty() && due != *voters && (due.len() >= voters.len() || may_shrink(picture, &due))
    {
        return Some(Change::SetVoters(due));
    }
    let gone = learners.iter().find(|node| !picture.up.contains(node));
    gone.map(|node| Change::Remove(*node))
}

fn due_voters(picture: &Picture) -> BTreeSet<NodeId> {
    let members = picture.voters.union(&picture.learners);
    let up = members.filter(|node| picture.up.contains(node)).count();
    let mut candidates: Vec<NodeId> = picture
        .voters
        .iter()
        .chain(picture.learners.intersection(&picture.caught_up))
        .filter(|node| picture.up.contains(node))
        .copied()
        .collect();
    // The leader first: nobody has to be elected in its place.
    candidates.sort_by_key(|node| {
        (
            *node != picture.leader,
            !picture.voters.contains(node),
            *node,
        )
    });
    let due = largest_odd(up.min(picture.cap));
    match candidates.get(..due) {
        Some(voters) => voters.iter().copied().collect(),
        // Somebody who will vote has not caught up yet.
        None => BTreeSet::new(),
    }
}

/// Whether the voters may become fewer. Those that leave in order are heard
/// until they have no vote.
fn may_shrink(picture: &Picture, due: &BTreeSet<NodeId>) -> bool {
    let mut lost = picture.voters.difference(due);
    let stay = picture.voters.intersection(due).count();
    2 * stay > picture.voters.len() || lost.all(|node| picture.heard.contains(node))
}

/// Who votes in a cluster that is being formed: its founder, and others up to
/// the largest odd number.
pub(crate) fn first_voters(
    founder: NodeId,
    members: impl ExactSizeIterator<Item = NodeId>,
    cap: usize,
) -> BTreeSet<NodeId> {
    let count = largest_odd(members.len().min(cap));
    let others = members.filter(|node| *node != founder);
    [founder].into_iter().chain(others).take(count).collect()
}

fn largest_odd(most: usize) -> usize {
    if most.is_multiple_of(2) {
        most.saturating_sub(1)
    } else {
        most
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn picture(
        voters: impl IntoIterator<Item = u64>,
        learners: impl IntoIterator<Item = u64>,
    ) -> Picture {
        let (voters, learners) = (nodes(voters), nodes(learners));
        Picture {
            leader: *voters.first().unwrap(),
            up: voters.union(&learners).copied().collect(),
            heard: voters.union(&learners).copied().collect(),
            caught_up: learners.clone(),
            voters,
            begun: None,
            learners,
            silent: BTreeSet::new(),
            cap: 5,
        }
    }

    #[test]
    fn a_node_that_comes_up_is_taken_in_as_a_learner() {
        let mut picture = picture([1], []);
        picture.up.insert(NodeId(2));
        assert_eq!(next_change(&picture), Some(Change::Add(NodeId(2))));
    }

    #[test]
    fn a_leader_that_has_been_taken_out_takes_nobody_in() {
        let mut picture = picture([1, 2, 3], []);
        picture.leader = NodeId(4);
        picture.up.insert(NodeId(4));
        assert_eq!(next_change(&picture), None);
    }

    #[test]
    fn the_voters_are_the_largest_odd_number_up_to_the_cap() {
        assert_eq!(next_change(&picture([1], [2])), None);
        assert_eq!(
            next_change(&picture([1], [2, 3])),
            Some(Change::SetVoters(nodes([1, 2, 3])))
        );
        assert_eq!(next_change(&picture([1, 2, 3], [4])), None);
        assert_eq!(
            next_change(&picture([1, 2, 3], 4..20)),
            Some(Change::SetVoters(nodes([1, 2, 3, 4, 5])))
        );
        assert_eq!(next_change(&picture([1, 2, 3, 4, 5], 6..20)), None);
    }

    #[test]
    fn a_learner_that_lags_is_not_promoted() {
        let mut picture = picture([1], [2, 3]);
        picture.caught_up.remove(&NodeId(3));
        assert_eq!(next_change(&picture), None);
    }

    #[test]
    fn a_voter_that_is_gone_is_replaced_and_then_forgotten() {
        let mut replaced = picture([1, 2, 3], [4]);
        replaced.up.remove(&NodeId(2));
        assert_eq!(
            next_change(&replaced),
            Some(Change::SetVoters(nodes([1, 3, 4])))
        );

        let mut forgotten = picture([1, 3, 4], [2]);
        forgotten.up.remove(&NodeId(2));
        assert_eq!(next_change(&forgotten), Some(Change::Remove(NodeId(2))));
    }

    fn silent(mut picture: Picture, silent: &[u64]) -> Picture {
        picture.silent = nodes(silent.iter().copied());
        picture.heard = &picture.heard - &picture.silent;
        picture
    }

    /// The same after everybody who is silent was evicted.
    fn evicted(mut picture: Picture) -> Picture {
        while let Some(Change::Evict(node)) = next_change(&picture) {
            picture.up.remove(&node);
        }
        picture
    }

    #[test]
    fn a_node_that_is_silent_is_evicted() {
        let picture = silent(picture([1, 2, 3], [4]), &[4]);
        assert_eq!(next_change(&picture), Some(Change::Evict(NodeId(4))));
        assert_eq!(
            next_change(&evicted(picture)),
            Some(Change::Remove(NodeId(4)))
        );
    }

    #[test]
    fn dead_voters_are_replaced_by_learners_that_have_caught_up() {
        let picture = evicted(silent(picture(1..=5, 6..20), &[4, 5]));
        assert_eq!(
            next_change(&picture),
            Some(Change::SetVoters(nodes([1, 2, 3, 6, 7])))
        );
    }

    #[test]
    fn dead_voters_without_a_substitute_go_if_a_majority_stays() {
        let picture = evicted(silent(picture(1..=5, []), &[5]));
        assert_eq!(
            next_change(&picture),
            Some(Change::SetVoters(nodes([1, 2, 3])))
        );
    }

    #[test]
    fn a_dead_voter_is_not_dropped_if_that_drops_a_majority() {
        let picture = evicted(silent(picture([1, 2, 3], []), &[3]));
        assert_eq!(next_change(&picture), None);
    }

    #[test]
    fn a_new_leader_drops_no_voter_that_it_has_not_heard_and_that_others_may_need() {
        let mut picture = picture([1, 2, 3], []);
        picture.up.remove(&NodeId(3));
        picture.heard.remove(&NodeId(3));
        assert_eq!(next_change(&picture), None);
        picture.heard.insert(NodeId(3));
        assert_eq!(next_change(&picture), Some(Change::SetVoters(nodes([1]))));
    }

    #[test]
    fn a_change_of_the_voters_that_was_begun_is_finished_first() {
        let mut picture = silent(picture([1, 2, 3], [4]), &[2]);
        picture.begun = Some(nodes([1, 2, 3]));
        let finished = Some(Change::SetVoters(nodes([1, 2, 3])));
        assert_eq!(next_change(&picture), finished);
    }

    #[test]
    fn a_leader_that_leaves_hands_its_vote_over() {
        for (others, voters) in [(vec![], vec![2]), (vec![2, 3], vec![2])] {
            let mut picture = picture([1].into_iter().chain(others), [2]);
            picture.learners = &picture.learners - &picture.voters;
            picture.up.remove(&NodeId(1));
            let handed_over = Some(Change::SetVoters(nodes(voters)));
            assert_eq!(next_change(&picture), handed_over);
        }
    }

    #[test]
    fn a_cluster_starts_with_as_many_voters_as_it_will_have() {
        let voters = |count: u64| first_voters(NodeId(2), nodes(1..=count).into_iter(), 5);
        assert_eq!(voters(2), nodes([2]));
        assert_eq!(voters(3), nodes([1, 2, 3]));
        assert_eq!(voters(9), nodes([1, 2, 3, 4, 5]));
    }

    #[test]
    fn when_nobody_is_up_nothing_changes() {
        let mut picture = picture([1, 2, 3], []);
        picture.up.clear();
        assert_eq!(next_change(&picture), None);
    }
}
