//! What a message costs, depending on how many nodes receive and how many
//! namespaces there are. The processes are the same in both cases, and each
//! message is awaited until a recipient has it.

use serde::de::IgnoredAny;

use super::audited;
use crate::{
    case::Case,
    crew::{Crew, Loaded},
    figures::Figures,
    options::{Options, Subject},
    tasks::{ITEMS, Kind, Load, Task, To, numbered},
};

/// Many for one receiver, so that each of many still gets a batch at a time.
const IN_FLIGHT: usize = 16 << 10;
/// The nodes that receive share so few processes.
const PROCESSES: usize = 5;

/// Received by one node of many.
const NARROW: &str = "narrow";

pub(super) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let mut figures = receivers(options, case, subject);
    let case = Case {
        receivers: 1,
        ..case.clone()
    };
    figures.extend(namespaces(options, &case, subject));
    figures
}

fn receivers(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let processes = PROCESSES.min(case.receivers);
    let share = |process: usize| {
        let before = |process: usize| process * case.receivers / processes;
        before(process + 1) - before(process)
    };
    let nodes: Vec<usize> = [1].into_iter().chain((0..processes).map(share)).collect();
    let mut crew = Crew::start(subject, case.size, &nodes, |_| ());
    let narrow = Task::Receive {
        namespace: NARROW.to_owned(),
        nodes: 1,
    };
    crew.ask::<()>(1, &narrow);
    crew.until_received(NARROW, 1);
    crew.receive(ITEMS);

    let one = loaded(options, &mut crew, To::Namespace(NARROW.to_owned()));
    let many = loaded(options, &mut crew, To::Namespace(ITEMS.to_owned()));
    let one_receives = Case {
        receivers: 1,
        ..case.clone()
    };
    let parts = [
        (one, one_receives, "one-receiver"),
        (many, case.clone(), "receivers"),
    ];
    let parts = parts.map(|(loaded, case, part)| {
        let figures = loaded.figures(0, Figures::new(&case, subject, part));
        (loaded, vec![figures])
    });
    audited(crew, parts.into())
}

fn namespaces(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let mut crew = Crew::start(subject, case.size, &[1, 1], |_| ());
    crew.receive(ITEMS);
    let one = || To::Namespace(ITEMS.to_owned());
    let alone = loaded(options, &mut crew, one());
    let count = options.count;
    crew.ask::<IgnoredAny>(1, &Task::RegisterAll(0..count));
    crew.until_received(&numbered(count - 1), 1);
    crew.ask::<()>(0, &Task::Open(0..count));
    let among = loaded(options, &mut crew, one());
    let all = loaded(options, &mut crew, To::Numbered(count));
    let parts = [
        (alone, "one-namespace"),
        (among, "one-of-namespaces"),
        (all, "namespaces"),
    ];
    let parts = parts.map(|(loaded, part)| {
        let figures = loaded.figures(0, Figures::new(case, subject, part));
        (loaded, vec![figures])
    });
    audited(crew, parts.into())
}

fn loaded(options: &Options, crew: &mut Crew, to: To) -> Loaded {
    let load = Load {
        kind: Kind::Deliver,
        to,
        in_flight: options.in_flight.unwrap_or(IN_FLIGHT),
        lasts: options.lasts,
    };
    crew.load(vec![Load {
        lasts: options.warm_up(),
        ..load.clone()
    }]);
    crew.load(vec![load])
}
