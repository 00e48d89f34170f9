//! Registrations on three nodes that keep their state in directories.

use std::time::{Duration, Instant};

use crate::{
    case::Case,
    crew::Crew,
    figures::Figures,
    latency::Latencies,
    options::{Options, Subject},
    tasks::Task,
};

const NODES: usize = 3;
/// More than there are registrations at once.
const APART: usize = 1_000_000;

pub(super) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let mut crew = Crew::start(subject, case.size, &[1; NODES], |orders| {
        orders.data = Some(orders.ledger.with_extension("data"));
    });
    let figures = |part: &str, latencies: Vec<Duration>, elapsed: Duration| {
        let count = latencies.len() as u64;
        let figures = Figures {
            messages: count,
            per_second: Some(count as f64 / elapsed.as_secs_f64()),
            ..Figures::new(case, subject, part)
        };
        let latencies: Latencies = latencies.into_iter().collect();
        figures.with_latency(Some(latencies.percentiles()))
    };

    // On each node in turn: one leads, and the others have to ask it.
    let begin = Instant::now();
    let one_by_one = (0..NODES).flat_map(|node| {
        let for_a_while = Task::RegisterFor {
            first: (1 + node) * APART,
            lasts: options.lasts / NODES as u32,
        };
        crew.ask::<Vec<Duration>>(node, &for_a_while)
    });
    let one_by_one = figures("one-by-one", one_by_one.collect(), begin.elapsed());

    let begin = Instant::now();
    let at_once = crew.ask_all::<Vec<Duration>>(|node| {
        let before = |node: usize| node * options.count / NODES;
        Task::RegisterAll(before(node)..before(node + 1))
    });
    let at_once = figures("at-once", at_once.concat(), begin.elapsed());
    crew.end();
    vec![one_by_one, at_once]
}
