//! The table that a person reads.

use crate::figures::Figures;

/// The figures of each subject, of all runs.
pub(crate) fn print(subjects: &[Vec<Figures>]) {
    let medians: Vec<Figures> = subjects.iter().map(|runs| Figures::median(runs)).collect();
    let first = &medians[0];
    let runs = subjects[0].len();
    println!(
        "{}: {} bytes, {} receiver(s), median of {runs} run(s)",
        first.mode, first.size, first.receivers
    );
    let mut head = format!(
        "{:<14}{:>12}{:>19}{:>10}{:>10}{:>10}{:>9}{:>9}{:>9}{:>6}{:>6}",
        "",
        "messages/s",
        "min..max",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "CPU us",
        "MiB out",
        "MiB in",
        "lost",
        "twice"
    );
    let baselines: Vec<&Figures> = medians
        .iter()
        .filter(|figures| !figures.subject.starts_with("dchan"))
        .collect();
    for baseline in &baselines {
        head += &format!("{:>11}", format!("/ {}", baseline.subject));
    }
    println!("{head}");
    for (runs, median) in subjects.iter().zip(&medians) {
        let rates = || runs.iter().map(|run| run.per_second);
        let (least, most) = (
            rates().fold(f64::INFINITY, f64::min),
            rates().fold(0.0, f64::max),
        );
        let micros =
            |value: Option<f64>| value.map_or("-".to_owned(), |micros| format!("{micros:.1}"));
        let mut line = format!(
            "{:<14}{:>12}{:>19}{:>10}{:>10}{:>10}{:>9.2}{:>9.1}{:>9.1}{:>6}{:>6}",
            median.subject,
            rate(median.per_second),
            format!("{}..{}", rate(least), rate(most)),
            micros(median.p50_us),
            micros(median.p99_us),
            micros(median.p999_us),
            median.cpu_us_per_message,
            median.rss_sender_mib,
            median.rss_receiver_mib,
            median.lost,
            median.duplicated,
        );
        for baseline in &baselines {
            line += &format!("{:>11.2}", median.per_second / baseline.per_second);
        }
        println!("{line}");
    }
}

fn rate(per_second: f64) -> String {
    match per_second {
        1e6.. => format!("{:.2}M", per_second / 1e6),
        1e4.. => format!("{:.1}k", per_second / 1e3),
        _ => format!("{per_second:.0}"),
    }
}
