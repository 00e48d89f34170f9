//! Three nodes that start at once, until a message from one of them is
//! delivered to another one.

use std::time::{Duration, Instant};

use crate::{
    case::Case,
    crew::Crew,
    figures::Figures,
    latency::Latencies,
    options::{Options, Subject},
};

pub(super) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let begin = Instant::now();
    let mut latencies = Vec::new();
    while begin.elapsed() < options.lasts || latencies.is_empty() {
        latencies.push(start(case, subject));
    }
    let figures = Figures {
        messages: latencies.len() as u64,
        ..Figures::new(case, subject, "")
    };
    let latencies: Latencies = latencies.into_iter().collect();
    vec![figures.with_latency(Some(latencies.percentiles()))]
}

/// The processes' own start is part of it.
fn start(case: &Case, subject: Subject) -> Duration {
    let begin = Instant::now();
    let crew = Crew::start(subject, case.size, &[1; 3], |orders| orders.at_once = true);
    let elapsed = begin.elapsed();
    crew.end();
    elapsed
}
