//! What a message costs, beside what it costs with bare tonic and bare actix.
//! `cargo bench --bench cluster -- --help` says how to ask.

// A bench that cannot go on panics. Memory is read from where Linux tells it.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod bare;
mod crew;
mod figures;
mod in_flight;
mod item;
mod latency;
mod local;
mod node;
mod options;
mod orders;
#[path = "../../tests/common/process.rs"]
mod process;
mod recipient;
mod table;
mod usage;
mod worker;

use std::{env, process::ExitCode};

use self::{
    figures::Figures,
    options::{Options, USAGE},
};

/// What a process of the bench is told, in its environment.
const WORKER: &str = "DCHAN_BENCH_WORKER";

fn main() -> ExitCode {
    if let Ok(orders) = env::var(WORKER) {
        worker::live(&orders);
        return ExitCode::SUCCESS;
    }
    match Options::parse(env::args().skip(1)) {
        Ok(Some(options)) => measure(&options),
        Ok(None) => print!("{USAGE}"),
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Measures all subjects in turn, so often that a machine whose speed drifts is
/// unjust to none.
fn measure(options: &Options) {
    let mut figures: Vec<Vec<Figures>> = options.subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.runs {
        for (subject, figures) in options.subjects.iter().zip(&mut figures) {
            figures.push(crew::measure(options, *subject));
        }
    }
    if options.json {
        for runs in &figures {
            println!("{}", serde_json::to_string(&Figures::median(runs)).unwrap());
        }
    } else {
        table::print(&figures);
    }
}
