//! The modes: which processes there are, and what they are told to do.

mod idle;
mod messages;
mod register;
mod spread;
mod start;

use crate::{
    case::Case,
    crew::{Crew, Loaded},
    figures::Figures,
    options::{Mode, Options, Subject},
};

/// Measures one subject once.
pub(crate) fn measure(options: &Options, case: &Case, subject: Subject) -> Vec<Figures> {
    match case.mode {
        Mode::Register => register::measure(options, case, subject),
        Mode::Idle => idle::measure(options, case, subject),
        Mode::Spread => spread::measure(options, case, subject),
        Mode::Start => start::measure(options, case, subject),
        _ => messages::measure(options, case, subject),
    }
}

/// Ends the processes, and the figures say what of their messages was lost.
fn audited(crew: Crew, parts: Vec<(Loaded, Vec<Figures>)>) -> Vec<Figures> {
    let audit = crew.end();
    let audited = parts.into_iter().flat_map(|(loaded, figures)| {
        let (lost, duplicated) = (audit.lost(&loaded.ids), audit.duplicated(&loaded.ids));
        figures.into_iter().map(move |figures| Figures {
            lost,
            duplicated,
            ..figures
        })
    });
    audited.collect()
}
