//! What a message costs, beside what it costs with bare tonic and bare actix.
//! `cargo bench --bench cluster -- --help` says how to ask, and `README.md` how
//! to read the answer.

// A bench that cannot go on panics. Memory is read from where Linux tells it.
#![allow(clippy::unwrap_used)]

mod case;
mod crew;
mod figures;
mod item;
mod latency;
mod ledger;
mod measure;
mod options;
#[path = "../../tests/common/process.rs"]
mod process;
mod table;
mod targets;
mod tasks;
mod worker;

use std::{env, process::ExitCode};

use self::{
    case::Case,
    figures::Figures,
    options::{Options, USAGE, Wish},
};

/// What a process of the bench is told, in its environment.
const WORKER: &str = "DCHAN_BENCH_WORKER";

fn main() -> ExitCode {
    if let Ok(orders) = env::var(WORKER) {
        worker::live(&orders);
        return ExitCode::SUCCESS;
    }
    match Options::parse(env::args().skip(1)) {
        Ok(Wish::Measure(options)) => tell(&options, &measure(&options)),
        Ok(Wish::Test(options)) => check(&measure(&options)),
        Ok(Wish::Help) => print!("{USAGE}"),
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A case, and all runs of each thing that is measured in it.
type Measured = (Case, Vec<Vec<Figures>>);

/// Measures everything in turn, so often that a machine whose speed drifts is
/// unjust to none.
fn measure(options: &Options) -> Vec<Measured> {
    let cases = options.cases().into_iter();
    let mut measured: Vec<Measured> = cases.map(|case| (case, Vec::new())).collect();
    for run in 1..=options.runs {
        for (case, things) in &mut measured {
            for subject in &case.subjects {
                eprintln!(
                    "run {run} of {}: {}, {} bytes, {} receiver(s), {}",
                    options.runs,
                    case.mode.name(),
                    case.size,
                    case.receivers,
                    subject.name()
                );
                for figures in measure::measure(options, case, *subject) {
                    match things.iter_mut().find(|runs| runs[0].is_like(&figures)) {
                        Some(runs) => runs.push(figures),
                        None => things.push(vec![figures]),
                    }
                }
            }
        }
    }
    measured
}

fn tell(options: &Options, measured: &[Measured]) {
    let things = measured.iter().flat_map(|(_, things)| things);
    let medians: Vec<Figures> = things.map(|runs| Figures::median(runs)).collect();
    if options.json {
        for figures in medians {
            println!("{}", serde_json::to_string(&figures).unwrap());
        }
        return;
    }
    for (case, things) in measured {
        table::print(case, things);
    }
    let layouts: Vec<_> = options.layouts.iter().map(|layout| layout.name()).collect();
    table::print_targets(&targets::targets(&medians, &layouts), &layouts);
}

/// A short run shows only that everything works.
fn check(measured: &[Measured]) {
    for figures in measured.iter().flat_map(|(_, things)| things).flatten() {
        let what = (figures.subject, &figures.mode, figures.size);
        assert_eq!(figures.lost, 0, "{what:?} has lost messages");
        assert_eq!(figures.duplicated, 0, "{what:?} has duplicated messages");
    }
}
