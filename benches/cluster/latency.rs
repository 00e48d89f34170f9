//! How long something takes, time after time.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::tasks::Percentiles;

const LONGEST: Duration = Duration::from_secs(120);

pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, LONGEST.as_nanos() as u64, 3);
        Self(histogram.expect("the bounds are in order"))
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.0.saturating_record(latency.as_nanos() as u64);
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        let micros = |quantile| self.0.value_at_quantile(quantile) as f64 / 1000.0;
        Percentiles {
            p50: micros(0.5),
            p99: micros(0.99),
            p999: micros(0.999),
        }
    }
}

impl FromIterator<Duration> for Latencies {
    fn from_iter<I: IntoIterator<Item = Duration>>(latencies: I) -> Self {
        let mut all = Self::new();
        for latency in latencies {
            all.record(latency);
        }
        all
    }
}
