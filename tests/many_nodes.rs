//! Many nodes in one process: five that vote, and learners.

mod common;

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use common::*;
use dchan::{Cluster, NodeId};
use futures_util::future::join_all;

const NODES: usize = 50;

/// CPU time and memory of this process, where the system tells.
fn usage() -> Option<(Duration, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let words: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = words[11].parse::<u64>().ok()? + words[12].parse::<u64>().ok()?;
    let pages: u64 = words[21].parse().ok()?;
    Some((Duration::from_millis(10 * ticks), pages * 4))
}

fn all_see(nodes: &[Cluster], count: usize) -> bool {
    let mut all = nodes.iter().map(Cluster::status);
    all.all(|status| status.nodes.len() == count && status.voters.len() == 5 && status.has_quorum)
}

#[actix::test]
async fn learners_that_die_cost_no_election_and_voters_are_replaced() {
    let before = usage();
    let begin = Instant::now();
    let mut nodes = vec![builder().start().await.unwrap()];
    let peer = [nodes[0].status().address];
    let starts = (1..NODES).map(|_| builder().peers(peer.clone()).start());
    let started = join_all(starts).await;
    nodes.extend(started.into_iter().map(Result::unwrap));
    until("everybody sees everybody", || all_see(&nodes, NODES)).await;
    println!("{NODES} nodes started in {:?}", begin.elapsed());
    if let (Some((_, kib)), Some((cpu, more))) = (before, usage()) {
        let idle = Duration::from_secs(2);
        actix_rt::time::sleep(idle).await;
        let cpu = usage().map_or(cpu, |(after, _)| after) - cpu;
        let share = cpu.as_secs_f64() / idle.as_secs_f64() / NODES as f64;
        println!(
            "a node takes {} KiB, and {:.2} % of a core when idle",
            (more - kib) / NODES as u64,
            100.0 * share
        );
    }

    // Dropped, a node is gone without a word.
    let term = nodes[0].status().term;
    let voters: BTreeSet<NodeId> = nodes[0].status().voters;
    let learners = nodes.extract_if(.., |node| !voters.contains(&node.status().node));
    let dead: Vec<Cluster> = learners.take(20).collect();
    drop(dead);
    until("the learners are evicted", || all_see(&nodes, NODES - 20)).await;
    let status = nodes[0].status();
    assert_eq!(status.term, term, "a needless election");
    assert_eq!(status.voters, voters);

    let leader = status.leader.unwrap();
    let dies =
        |node: &Cluster| voters.contains(&node.status().node) && node.status().node != leader;
    let dead: Vec<Cluster> = nodes.extract_if(.., |node| dies(node)).take(2).collect();
    let dead: BTreeSet<NodeId> = dead.into_iter().map(|node| node.status().node).collect();
    until("five others vote", || {
        all_see(&nodes, NODES - 22) && nodes[0].status().voters.is_disjoint(&dead)
    })
    .await;
    assert_eq!(nodes[0].status().term, term, "a needless election");
    join_all(nodes.into_iter().map(Cluster::shutdown)).await;
}
