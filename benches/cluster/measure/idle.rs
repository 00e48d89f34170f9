//! What is taken by what nobody uses. `messages` is how many namespaces there
//! are, and `cpu_us_per_message` the CPU time in a second. Nothing happens that
//! could be waited for: it is measured over time.

use std::thread::sleep;

use serde::de::IgnoredAny;

use crate::{
    case::Case,
    crew::Crew,
    figures::Figures,
    options::{Options, Subject},
    tasks::Task,
};

/// So many are registered together. What that takes meanwhile is not theirs, and
/// not all of it goes back to the system.
const AT_ONCE: usize = 100;

pub(super) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    let start = |nodes| {
        let crew = Crew::start(subject, case.size, nodes, |_| ());
        sleep(options.warm_up());
        crew
    };
    let count = options.count;
    let idle = |crew: &mut Crew, part: &str, namespaces: usize| {
        sleep(options.warm_up());
        let before = crew.cpu();
        sleep(options.lasts);
        let cpu = crew.cpu() - before;
        let memory = crew.memory();
        Figures {
            messages: namespaces as u64,
            rss_sender_mib: Some(memory[0]),
            rss_receiver_mib: memory[1..].iter().copied().reduce(f64::max),
            cpu_us_per_message: Some(cpu.as_secs_f64() * 1e6 / options.lasts.as_secs_f64()),
            ..Figures::new(case, subject, part)
        }
    };

    let mut one = start(&[1]);
    let none = idle(&mut one, "none", 0);
    one.ask::<()>(0, &Task::Open(0..count));
    let opened = idle(&mut one, "opened", count);
    one.end();

    let mut one = start(&[1]);
    for first in (0..count).step_by(AT_ONCE) {
        let numbers = first..count.min(first + AT_ONCE);
        one.ask_all::<IgnoredAny>(|_| Task::RegisterAll(numbers.clone()));
    }
    let received = idle(&mut one, "received", count);
    one.end();

    let mut three = start(&[1; 3]);
    let cluster = idle(&mut three, "cluster", 0);
    three.end();
    vec![none, opened, received, cluster]
}
