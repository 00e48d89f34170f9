//! The tables that a person reads.

use crate::{
    case::Case,
    figures::Figures,
    targets::{Limit, Target},
};

/// The figures of one case: all runs of each thing that is measured.
pub(crate) fn print(case: &Case, measured: &[Vec<Figures>]) {
    let medians: Vec<Figures> = measured.iter().map(|runs| Figures::median(runs)).collect();
    println!(
        "\n{}, {} bytes, {} receiver(s), median of {} run(s)",
        case.mode.name(),
        case.size,
        case.receivers,
        measured[0].len()
    );
    let baselines: Vec<&Figures> = medians
        .iter()
        .filter(|figures| !figures.subject.starts_with("dchan"))
        .collect();
    let columns = [
        "count", "a second", "min..max", "p50 us", "p99 us", "p99.9 us", "CPU us", "MiB out",
        "MiB in", "lost", "twice",
    ];
    let head = columns.map(str::to_owned).into_iter();
    let head = head.chain(
        baselines
            .iter()
            .map(|baseline| format!("/ {}", baseline.subject)),
    );
    line("", &head.collect::<Vec<_>>());
    for (runs, median) in measured.iter().zip(&medians) {
        let mut columns = vec![
            median.messages.to_string(),
            median.per_second.map_or_else(none, short),
            range(runs),
            decimal(median.p50_us),
            decimal(median.p99_us),
            decimal(median.p999_us),
            decimal(median.cpu_us_per_message),
            decimal(median.rss_sender_mib),
            decimal(median.rss_receiver_mib),
            median.lost.to_string(),
            median.duplicated.to_string(),
        ];
        columns.extend(baselines.iter().map(|baseline| {
            let ratio = median.per_second.zip(baseline.per_second);
            ratio.map_or_else(none, |(ours, theirs)| format!("{:.2}", ours / theirs))
        }));
        let part = median.mode.split_once('/').map_or("", |(_, part)| part);
        line(&format!("{} {part}", median.subject), &columns);
    }
}

/// What was promised, and what was measured of it.
pub(crate) fn print_targets(targets: &[Target], layouts: &[&'static str]) {
    if targets.is_empty() {
        return;
    }
    println!(
        "\n{:<64}{:>10}{:>15}{:>15}",
        "",
        "target",
        layouts[0],
        layouts.get(1).unwrap_or(&"")
    );
    for target in targets {
        let limit = match target.limit {
            Limit::AtLeast(least) => format!(">= {least}"),
            Limit::AtMost(most) => format!("<= {most}"),
        };
        let values = target.values.iter().map(|value| {
            let value = value.map_or_else(none, |value| format!("{value:.2}"));
            format!("{value:>15}")
        });
        let held = match target.is_held() {
            true => "",
            false => "  missed",
        };
        println!(
            "{:<64}{limit:>10}{}{held}",
            target.what,
            values.collect::<String>()
        );
    }
}

fn line(name: &str, columns: &[String]) {
    let columns: String = columns
        .iter()
        .map(|column| format!("{column:>10}"))
        .collect();
    println!("{name:<32}{columns}");
}

/// The least and the most of all runs.
fn range(runs: &[Figures]) -> String {
    let rates: Option<Vec<f64>> = runs.iter().map(|run| run.per_second).collect();
    let range = rates.filter(|rates| rates.len() > 1).map(|rates| {
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        format!("{}..{}", short(least), short(most))
    });
    // It is wider than the other columns.
    format!("{:>16}", range.unwrap_or_else(none))
}

fn none() -> String {
    "-".to_owned()
}

fn decimal(value: Option<f64>) -> String {
    value.map_or_else(none, |value| match value {
        100.0.. => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    })
}

fn short(number: f64) -> String {
    let (number, unit) = match number {
        1e6.. => (number / 1e6, "M"),
        1e3.. => (number / 1e3, "k"),
        _ => (number, ""),
    };
    match number {
        100.0.. => format!("{number:.0}{unit}"),
        _ => format!("{number:.1}{unit}"),
    }
}
