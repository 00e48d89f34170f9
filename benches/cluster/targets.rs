//! What is promised, and how much of it is kept.

use crate::figures::Figures;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

/// One promise, with what was measured of it in each thread layout.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) what: String,
    pub(crate) limit: Limit,
    pub(crate) values: Vec<Option<f64>>,
}

impl Target {
    /// Whether one of the thread layouts keeps it.
    pub(crate) fn is_held(&self) -> bool {
        self.values.iter().flatten().any(|value| match self.limit {
            Limit::AtLeast(least) => *value >= least,
            Limit::AtMost(most) => *value <= most,
        })
    }
}

/// All promises of which something is among the figures.
pub(crate) fn targets(figures: &[Figures], layouts: &[&'static str]) -> Vec<Target> {
    let mut targets = Vec::new();
    for promise in promises() {
        let (what, limit, measured) = promise;
        let value = |layout: &&'static str| measured(&Found { figures, layout });
        let values: Vec<Option<f64>> = layouts.iter().map(value).collect();
        if values.iter().any(Option::is_some) {
            targets.push(Target {
                what: what.to_owned(),
                limit,
                values,
            });
        }
    }
    targets
}

/// The figures, and whose promise it is.
struct Found<'a> {
    figures: &'a [Figures],
    layout: &'static str,
}

type Measured = fn(&Found<'_>) -> Option<f64>;

/// The body and the receivers where nothing else is said.
const USUAL: (usize, usize) = (1024, 1);

#[rustfmt::skip]
fn promises() -> [(&'static str, Limit, Measured); 24] {
    use Limit::{AtLeast, AtMost};
    [
        ("flood, 16 B: rate, of unary", AtLeast(30.0), |f| f.rate("flood", (16, 1), "unary")),
        ("flood, 16 B: rate, of batched", AtLeast(0.7), |f| f.rate("flood", (16, 1), "batched")),
        ("flood, 1 KiB: rate, of batched", AtLeast(0.8), |f| f.rate("flood", USUAL, "batched")),
        ("flood, 64 KiB: rate, of the better of stream and batched", AtLeast(0.9), |f| {
            let of = |baseline| f.rate("flood", (64 << 10, 1), baseline);
            Some(of("stream")?.min(of("batched")?))
        }),
        ("flood, 1 KiB, 3 receivers: rate, of batched", AtLeast(0.8), |f| {
            f.rate("flood", (1024, 3), "batched")
        }),
        ("deliver, 1 KiB: rate, of unary", AtLeast(12.0), |f| f.rate("deliver", USUAL, "unary")),
        ("ask, 1 KiB: rate, of unary", AtLeast(12.0), |f| f.rate("ask", USUAL, "unary")),
        ("ping: p50, of unary", AtMost(0.7), |f| {
            Some(f.ours("ping", USUAL)?.p50_us? / f.of("unary", "ping", USUAL)?.p50_us?)
        }),
        ("ping: p99, of unary", AtMost(1.0), |f| {
            Some(f.ours("ping", USUAL)?.p99_us? / f.of("unary", "ping", USUAL)?.p99_us?)
        }),
        ("mixed: p99 of a ping beside a flood, of one alone", AtMost(10.0), |f| {
            let p99 = |part| f.ours(part, USUAL)?.p99_us;
            Some(p99("mixed/ping-beside")? / p99("mixed/ping-alone")?)
        }),
        ("mixed: rate of a flood beside a ping, of one alone", AtLeast(0.8), |f| {
            let rate = |part| f.ours(part, USUAL)?.per_second;
            Some(rate("mixed/flood-beside")? / rate("mixed/flood-alone")?)
        }),
        ("slow: the sender's memory in the second half, of the first", AtMost(1.1), |f| {
            let memory = |part| f.ours(part, USUAL)?.rss_sender_mib;
            Some(memory("slow/second-half")? / memory("slow/first-half")?)
        }),
        ("slow: a receiver's memory in the second half, of the first", AtMost(1.1), |f| {
            let memory = |part| f.ours(part, USUAL)?.rss_receiver_mib;
            Some(memory("slow/second-half")? / memory("slow/first-half")?)
        }),
        ("slow: messages lost or duplicated", AtMost(0.0), |f| {
            let lost = |part| f.ours(part, USUAL).map(|f| (f.lost + f.duplicated) as f64);
            Some(lost("slow/first-half")? + lost("slow/second-half")?)
        }),
        ("register: p50 of one after the other, ms", AtMost(10.0), |f| {
            Some(f.any("register/one-by-one")?.p50_us? / 1e3)
        }),
        ("register: all at once, s", AtMost(3.0), |f| {
            let at_once = f.any("register/at-once")?;
            Some(at_once.messages as f64 / at_once.per_second?)
        }),
        ("idle: a node without a namespace, MiB", AtMost(20.0), |f| {
            f.any("idle/none")?.rss_sender_mib
        }),
        ("idle: a namespace that is open, KiB", AtMost(4.0), |f| f.a_namespace("idle/opened")),
        ("idle: a namespace that an actor receives, KiB", AtMost(4.0), |f| {
            f.a_namespace("idle/received")
        }),
        ("idle: three nodes, % of a core", AtMost(1.0), |f| {
            Some(f.any("idle/cluster")?.cpu_us_per_message? / 1e4)
        }),
        ("spread: CPU a message with all receivers, of one", AtMost(1.2), |f| {
            f.cpu("spread/receivers", "spread/one-receiver")
        }),
        ("spread: CPU a message with idle namespaces beside, of none", AtMost(1.2), |f| {
            f.cpu("spread/one-of-namespaces", "spread/one-namespace")
        }),
        ("spread: CPU a message to all namespaces in turn, of one", AtMost(1.2), |f| {
            f.cpu("spread/namespaces", "spread/one-namespace")
        }),
        ("start: three nodes to the first message, s", AtMost(1.0), |f| {
            Some(f.any("start")?.p50_us? / 1e6)
        }),
    ]
}

impl<'a> Found<'a> {
    fn of(
        &self,
        subject: &str,
        mode: &str,
        (size, receivers): (usize, usize),
    ) -> Option<&'a Figures> {
        self.figures.iter().find(|figures| {
            figures.subject == subject
                && figures.mode == mode
                && (figures.size, figures.receivers) == (size, receivers)
        })
    }

    fn ours(&self, mode: &str, sizes: (usize, usize)) -> Option<&'a Figures> {
        self.of(self.layout, mode, sizes)
    }

    /// Of whatever size.
    fn any(&self, mode: &str) -> Option<&'a Figures> {
        let ours = |figures: &&Figures| figures.subject == self.layout && figures.mode == mode;
        self.figures.iter().find(ours)
    }

    /// Our rate, as a share of a baseline's.
    fn rate(&self, mode: &str, sizes: (usize, usize), baseline: &str) -> Option<f64> {
        let theirs = self.of(baseline, mode, sizes)?.per_second?;
        Some(self.ours(mode, sizes)?.per_second? / theirs)
    }

    fn cpu(&self, with: &str, without: &str) -> Option<f64> {
        let cpu = |mode| self.any(mode)?.cpu_us_per_message;
        Some(cpu(with)? / cpu(without)?)
    }

    /// In KiB.
    fn a_namespace(&self, mode: &str) -> Option<f64> {
        let with = self.any(mode)?;
        let mib = with.rss_sender_mib? - self.any("idle/none")?.rss_sender_mib?;
        Some(1024.0 * mib / with.messages as f64)
    }
}
