//! What a measurement yields.

use serde::Serialize;

/// One line of what the bench prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figures {
    pub(crate) subject: &'static str,
    pub(crate) mode: &'static str,
    /// Bytes of a message's body.
    pub(crate) size: usize,
    pub(crate) receivers: usize,
    pub(crate) messages: u64,
    /// Until the last one has arrived.
    pub(crate) per_second: f64,
    /// Of what the sender waits for, where it does.
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
    /// The most that there was.
    pub(crate) rss_sender_mib: f64,
    /// The most that any receiver had.
    pub(crate) rss_receiver_mib: f64,
    /// Of all processes.
    pub(crate) cpu_us_per_message: f64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
}

impl Figures {
    /// Each figure's median of several runs; the sum of what was lost or came
    /// twice.
    pub(crate) fn median(runs: &[Self]) -> Self {
        let of = |figure: fn(&Self) -> f64| median(runs.iter().map(figure).collect());
        let of_some = |figure: fn(&Self) -> Option<f64>| {
            let some: Option<Vec<f64>> = runs.iter().map(figure).collect();
            some.map(median)
        };
        let first = &runs[0];
        Self {
            messages: of(|figures| figures.messages as f64) as u64,
            per_second: of(|figures| figures.per_second),
            p50_us: of_some(|figures| figures.p50_us),
            p99_us: of_some(|figures| figures.p99_us),
            p999_us: of_some(|figures| figures.p999_us),
            rss_sender_mib: of(|figures| figures.rss_sender_mib),
            rss_receiver_mib: of(|figures| figures.rss_receiver_mib),
            cpu_us_per_message: of(|figures| figures.cpu_us_per_message),
            lost: runs.iter().map(|figures| figures.lost).sum(),
            duplicated: runs.iter().map(|figures| figures.duplicated).sum(),
            ..*first
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
