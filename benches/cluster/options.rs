//! What the bench is told on its command line.

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) const USAGE: &str = "\
cargo bench --bench cluster -- MODE [OPTION]...

One sender and some receivers, each a process of its own, over loopback.

Modes:
  flood      do_send, as fast as the outbox takes it, until all has arrived
  deliver    deliver, with --in-flight messages awaited at a time
  ask        send, with --in-flight replies awaited at a time
  ping       send, one reply awaited after the other
  mixed      a ping beside a flood on the same link, and each alone
  slow       a flood to receivers that take 1 ms a message: memory
  register   registrations on three nodes that keep their state: one after the
             other, and --count at once
  idle       memory and CPU of a node with --count namespaces that nobody uses,
             of one with none, and of three nodes
  spread     what a message costs with one receiver and with many, and with one
             namespace and with --count
  start      three nodes, from their start to the first message delivered
  all        whatever is promised, each at the sizes that it is promised for

Options:
  --size B         bytes of a message's body (default: 1024)
  --receivers R    how many nodes receive (default: 1, in spread 50)
  --seconds S      how long each load lasts (default: 3)
  --runs N         measure all subjects in turn, N times; tell the medians
                   (default: 1, for all 5)
  --in-flight N    (default: 1024, 256 for unary, 1 for ping, 16384 for spread)
  --count N        registrations or namespaces (default: 10000)
  --runtime own|arbiter
                   only one of the crate's two thread layouts
  --baseline       measure bare tonic and bare actix as well, in flood, deliver,
                   ask and ping
  --json           print one JSON object a subject instead of a table
  --test           measure nothing; see whether everything works
  --help           print this
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    Flood,
    Deliver,
    Ask,
    Ping,
    Mixed,
    Slow,
    Register,
    Idle,
    Spread,
    Start,
    All,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Subject {
    /// The crate, with the node on a thread of its own.
    Dchan,
    /// The crate, with the node on the arbiter that uses it.
    DchanArbiter,
    /// A gRPC call a message.
    Unary,
    /// A gRPC stream, and one message a gRPC message.
    Stream,
    /// A gRPC stream, and 64 KiB of messages a gRPC message.
    Batched,
    /// Actors in one process.
    Actix,
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    /// None for the mode's own.
    pub(crate) receivers: Option<usize>,
    pub(crate) lasts: Duration,
    pub(crate) runs: usize,
    pub(crate) in_flight: Option<usize>,
    pub(crate) count: usize,
    /// The crate's thread layouts.
    pub(crate) layouts: Vec<Subject>,
    pub(crate) baseline: bool,
    pub(crate) json: bool,
}

/// What the command line asks for.
pub(crate) enum Wish {
    Measure(Options),
    /// A short run of everything.
    Test(Options),
    Help,
}

/// Processes are waited for longer than this.
const LONGEST: f64 = 100.0;
const RUNS_OF_ALL: usize = 5;
const WARM_UP: Duration = Duration::from_millis(300);

impl Options {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Wish, String> {
        let mut arguments = arguments.peekable();
        let mut options = Self::default();
        let (mut mode, mut runs) = (None, None);
        // As `cargo test --benches` starts it, maybe with a name to filter by.
        let mut test = match arguments.peek() {
            Some(first) => !first.starts_with('-') && named(first).is_none(),
            None => true,
        };
        let cargo_bench = |argument: &String| argument == "--bench";
        let arguments: Vec<String> = arguments.collect();
        test &= !arguments.iter().any(cargo_bench);
        if test {
            return Ok(Wish::Test(options.tiny()));
        }
        let mut arguments = arguments
            .into_iter()
            .filter(|argument| argument != "--bench");
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} takes a value"))
            };
            match argument.as_str() {
                "--help" | "-h" => return Ok(Wish::Help),
                "--test" => test = true,
                "--json" => options.json = true,
                "--baseline" => options.baseline = true,
                "--size" => options.size = number(&argument, &value()?, 0)?,
                "--receivers" => options.receivers = Some(number(&argument, &value()?, 1)?),
                "--runs" => runs = Some(number(&argument, &value()?, 1)?),
                "--in-flight" => options.in_flight = Some(number(&argument, &value()?, 1)?),
                "--count" => options.count = number(&argument, &value()?, 1)?,
                "--seconds" => options.lasts = seconds(&value()?)?,
                "--runtime" => {
                    options.layouts = match value()?.as_str() {
                        "own" => vec![Subject::Dchan],
                        "arbiter" => vec![Subject::DchanArbiter],
                        other => return Err(format!("{other:?} is no runtime: own or arbiter")),
                    }
                }
                name if !name.starts_with('-') && mode.is_none() => {
                    mode = Some(named(name).ok_or_else(|| format!("{name:?} is no mode"))?);
                }
                other => return Err(format!("{other:?} is not known")),
            }
        }
        if test {
            return Ok(Wish::Test(options.tiny()));
        }
        match mode {
            Some(mode) => options.mode = mode,
            // `cargo bench` runs all benches, and this one says how to go on.
            None => return Ok(Wish::Help),
        }
        options.runs = runs.unwrap_or(match options.mode {
            Mode::All => RUNS_OF_ALL,
            _ => 1,
        });
        Ok(Wish::Measure(options))
    }

    /// Connections are made and buffers grow before anything is measured.
    pub(crate) fn warm_up(&self) -> Duration {
        WARM_UP.min(self.lasts)
    }

    fn tiny(self) -> Self {
        Self {
            mode: Mode::All,
            lasts: Duration::from_millis(50),
            receivers: Some(3),
            count: 20,
            layouts: vec![Subject::Dchan],
            ..self
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Flood,
            size: 1024,
            receivers: None,
            lasts: Duration::from_secs(3),
            runs: 1,
            in_flight: None,
            count: 10_000,
            layouts: vec![Subject::Dchan, Subject::DchanArbiter],
            baseline: false,
            json: false,
        }
    }
}

fn named(mode: &str) -> Option<Mode> {
    serde_json::from_value(mode.into()).ok()
}

fn number(option: &str, value: &str, least: usize) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("{option} has to be a number, and at least {least}"))
}

fn seconds(value: &str) -> Result<Duration, String> {
    let seconds = value
        .parse()
        .ok()
        .filter(|seconds| (0.0..=LONGEST).contains(seconds));
    let seconds = seconds.ok_or_else(|| format!("--seconds has to be a number up to {LONGEST}"))?;
    Ok(Duration::from_secs_f64(seconds))
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Deliver => "deliver",
            Self::Ask => "ask",
            Self::Ping => "ping",
            Self::Mixed => "mixed",
            Self::Slow => "slow",
            Self::Register => "register",
            Self::Idle => "idle",
            Self::Spread => "spread",
            Self::Start => "start",
            Self::All => "all",
        }
    }

    /// What the crate can be compared with.
    pub(crate) fn baselines(self) -> &'static [Subject] {
        use Subject::{Actix, Batched, Stream, Unary};
        match self {
            Self::Flood | Self::Ask | Self::Ping => &[Unary, Stream, Batched, Actix],
            // A local actor has a message once it is sent.
            Self::Deliver => &[Unary, Stream, Batched],
            _ => &[],
        }
    }
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dchan => "dchan",
            Self::DchanArbiter => "dchan-arbiter",
            Self::Unary => "unary",
            Self::Stream => "stream",
            Self::Batched => "batched",
            Self::Actix => "actix",
        }
    }

    /// Whether it is tonic with nothing around it.
    pub(crate) fn is_bare(self) -> bool {
        matches!(self, Self::Unary | Self::Stream | Self::Batched)
    }
}
