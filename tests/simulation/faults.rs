//! What happens to the hosts and the network, as a seed has it.

use std::{fmt, time::Duration};

use rand::{RngExt, rngs::StdRng, seq::SliceRandom};

#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The process is killed: its peers see their connections end.
    Kill(usize),
    /// The machine is gone: its peers see nothing at all.
    PowerCut(usize),
    /// The process is killed and its disk replaced.
    Wipe(usize),
    /// The node leaves in order, and starts again.
    Restart(usize),
    /// Nothing passes between these and the others.
    Split(Vec<usize>),
    /// Nothing passes between these two.
    Cut(usize, usize),
    /// Nothing passes from the first to the second.
    OneWay(usize, usize),
    /// What these two say to each other arrives when it is over.
    Hold(usize, usize),
    /// Everything takes up to so long between these two.
    Slow(usize, usize, Duration),
    /// What the first has to say to the second, that it leaves or that a
    /// receiver comes or goes, arrives when its next process runs.
    Late(usize, usize, Last),
    /// The process is killed, and the next one started at once.
    Replace(usize),
    /// The clock of one leaps forward.
    Leap(usize, Duration),
}

/// What a process has said last.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Last {
    Leave,
    Change,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

fn millis(rng: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.random_range(from..to))
}

/// The time until the next fault.
pub(crate) fn pause(rng: &mut StdRng) -> Duration {
    millis(rng, 200, 8_000)
}

/// A fault, and how long it lasts. `wiped` says whether a disk has been replaced
/// already: two at once may be more than the cluster can stand.
pub(crate) fn draw(rng: &mut StdRng, hosts: usize, wiped: bool) -> (Fault, Duration) {
    let mut all: Vec<usize> = (0..hosts).collect();
    all.shuffle(rng);
    let (one, other) = (all[0], all[1]);
    let away = match rng.random_bool(0.5) {
        true => millis(rng, 50, 3_000),
        false => millis(rng, 3_000, 30_000),
    };
    let broken = millis(rng, 100, 20_000);
    match rng.random_range(0..22) {
        0..4 => (Fault::Kill(one), away),
        4..6 => (Fault::PowerCut(one), away),
        6 if !wiped => (Fault::Wipe(one), away),
        6..9 => (Fault::Restart(one), away),
        9..12 => {
            let side = rng.random_range(1..=hosts / 2);
            (Fault::Split(all[..side].to_vec()), broken)
        }
        12..14 => (Fault::Cut(one, other), broken),
        14..16 => (Fault::OneWay(one, other), broken),
        16 => (Fault::Hold(one, other), broken),
        17..19 => {
            let latency = millis(rng, 50, 1_000);
            (Fault::Slow(one, other, latency), broken)
        }
        19..21 => {
            let last = match rng.random_bool(0.5) {
                true => Last::Leave,
                false => Last::Change,
            };
            (Fault::Late(one, other, last), millis(rng, 1_000, 6_000))
        }
        _ => {
            let leap = millis(rng, 100, 20_000);
            (Fault::Leap(one, leap), Duration::ZERO)
        }
    }
}
