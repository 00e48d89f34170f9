//! What a measurement yields.

use serde::Serialize;

use crate::{case::Case, options::Subject, tasks::Percentiles};

/// One line of what the bench prints. What a mode does not measure is `None`.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Figures {
    pub(crate) subject: &'static str,
    /// With what is measured in it, where that is several things, such as
    /// `mixed/ping-alone`.
    pub(crate) mode: String,
    /// Bytes of a message's body.
    pub(crate) size: usize,
    pub(crate) receivers: usize,
    pub(crate) messages: u64,
    /// Until the last one has arrived.
    pub(crate) per_second: Option<f64>,
    /// Of what the sender waits for.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// The most that there was while it was measured.
    pub(crate) rss_sender_mib: Option<f64>,
    /// The most that any process of receivers had.
    pub(crate) rss_receiver_mib: Option<f64>,
    /// Of all processes.
    pub(crate) cpu_us_per_message: Option<f64>,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
}

impl Figures {
    /// None yet, of a part of the mode or all of it.
    pub(crate) fn new(case: &Case, subject: Subject, part: &str) -> Self {
        let mode = case.mode.name();
        Self {
            subject: subject.name(),
            mode: match part {
                "" => mode.to_owned(),
                part => format!("{mode}/{part}"),
            },
            size: case.size,
            receivers: case.receivers,
            ..Self::default()
        }
    }

    pub(crate) fn with_latency(self, latency: Option<Percentiles>) -> Self {
        Self {
            p50_us: latency.map(|latency| latency.p50),
            p99_us: latency.map(|latency| latency.p99),
            p999_us: latency.map(|latency| latency.p999),
            ..self
        }
    }

    /// Whether both are of the same thing.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let key = |figures: &Self| {
            let Self {
                subject,
                size,
                receivers,
                ..
            } = *figures;
            (subject, size, receivers)
        };
        key(self) == key(other) && self.mode == other.mode
    }

    /// Each figure's median of several runs; and the sum of what was lost, or
    /// came twice.
    pub(crate) fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> Option<f64>| {
            let values: Option<Vec<f64>> = runs.iter().map(figure).collect();
            values.map(median)
        };
        Self {
            messages: of(|figures| Some(figures.messages as f64)).unwrap_or(0.0) as u64,
            per_second: of(|figures| figures.per_second),
            p50_us: of(|figures| figures.p50_us),
            p99_us: of(|figures| figures.p99_us),
            p999_us: of(|figures| figures.p999_us),
            rss_sender_mib: of(|figures| figures.rss_sender_mib),
            rss_receiver_mib: of(|figures| figures.rss_receiver_mib),
            cpu_us_per_message: of(|figures| figures.cpu_us_per_message),
            lost: runs.iter().map(|figures| figures.lost).sum(),
            duplicated: runs.iter().map(|figures| figures.duplicated).sum(),
            ..runs[0].clone()
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
