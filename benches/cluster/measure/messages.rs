//! Messages from one sender: `flood`, `deliver`, `ask`, `ping`, `mixed` and
//! `slow`.

use std::time::Duration;

use super::audited;
use crate::{
    case::Case,
    crew::Crew,
    figures::Figures,
    options::{Mode, Options, Subject},
    tasks::{ITEMS, Kind, Load, To},
};

const IN_FLIGHT: usize = 1024;
/// How many unary calls are made at a time.
const CALLS: usize = 256;

/// The requests' own namespace, on the same link.
const REQUESTS: &str = "requests";

/// How long a slow receiver takes for a message.
const PAUSE: Duration = Duration::from_millis(1);
/// What fits into the outbox of a sender to slow receivers: a second of work.
const SLOW_OUTBOX: usize = 1024;

pub(super) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let steps = steps(options, case.mode, subject);
    let first = &steps[0][0].1;
    let nodes = vec![1; 1 + case.receivers];
    let mut crew = Crew::start(subject, case.size, &nodes, |orders| {
        orders.kind = first.kind;
        if case.mode == Mode::Slow {
            orders.pause = PAUSE;
            orders.outbox = Some(SLOW_OUTBOX);
        }
    });
    if subject == Subject::Dchan || subject == Subject::DchanArbiter {
        crew.receive(ITEMS);
        if case.mode == Mode::Mixed {
            crew.receive(REQUESTS);
        }
    }
    crew.load(vec![Load {
        lasts: options.warm_up(),
        ..first.clone()
    }]);
    let mut parts = Vec::new();
    for step in steps {
        let (names, loads): (Vec<_>, Vec<_>) = step.into_iter().unzip();
        let loaded = crew.load(loads);
        let figures = names.iter().enumerate().map(|(load, name)| {
            let figures = Figures::new(case, subject, name);
            loaded.figures(load, figures)
        });
        let figures = figures.collect();
        parts.push((loaded, figures));
    }
    audited(crew, parts)
}

/// What is done one after the other: each the loads that are there at once, and
/// what they are called.
fn steps(options: &Options, mode: Mode, subject: Subject) -> Vec<Vec<(&'static str, Load)>> {
    let load = |kind, to: &str, in_flight: usize, lasts| Load {
        kind,
        to: To::Namespace(to.to_owned()),
        in_flight: options.in_flight.unwrap_or(in_flight),
        lasts,
    };
    let lasts = options.lasts;
    let many = match subject {
        Subject::Unary => CALLS,
        _ => IN_FLIGHT,
    };
    let flood = load(Kind::Flood, ITEMS, many, lasts);
    let ping = load(Kind::Ask, REQUESTS, 1, lasts);
    match mode {
        Mode::Deliver => vec![vec![("", load(Kind::Deliver, ITEMS, many, lasts))]],
        Mode::Ask => vec![vec![("", load(Kind::Ask, ITEMS, many, lasts))]],
        Mode::Ping => vec![vec![("", load(Kind::Ask, ITEMS, 1, lasts))]],
        Mode::Mixed => vec![
            vec![("ping-alone", ping.clone())],
            vec![("flood-alone", flood.clone())],
            vec![("ping-beside", ping), ("flood-beside", flood)],
        ],
        Mode::Slow => {
            let half = Load {
                lasts: lasts / 2,
                ..flood
            };
            vec![
                vec![("first-half", half.clone())],
                vec![("second-half", half)],
            ]
        }
        _ => vec![vec![("", flood)]],
    }
}
