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

Options:
  --size B         bytes of a message's body (default: 1024)
  --receivers R    how many processes receive (default: 1)
  --seconds S      how long to send (default: 3)
  --runs N         measure all subjects in turn, N times; tell the medians (default: 1)
  --in-flight N    (default: 1024; 1 for ping)
  --runtime own|arbiter
                   only one of the crate's two thread layouts
  --baseline       measure bare tonic and bare actix as well
  --json           print one JSON object a subject instead of a table
  --help           print this
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    Flood,
    Deliver,
    Ask,
    Ping,
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
    pub(crate) receivers: usize,
    pub(crate) lasts: Duration,
    pub(crate) runs: usize,
    pub(crate) in_flight: Option<usize>,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) json: bool,
}

/// How many unary calls are made at a time.
const CALLS: usize = 256;
const IN_FLIGHT: usize = 1024;
/// What a process waits for its children is longer than this.
const LONGEST: f64 = 100.0;

impl Options {
    /// `None` if help is asked for.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Option<Self>, String> {
        // What cargo passes to every bench.
        let mut arguments = arguments.filter(|argument| argument != "--bench");
        let mut mode = None;
        let mut subjects = vec![Subject::Dchan, Subject::DchanArbiter];
        let mut baseline = false;
        let mut options = Self {
            mode: Mode::Flood,
            size: 1024,
            receivers: 1,
            lasts: Duration::from_secs(3),
            runs: 1,
            in_flight: None,
            subjects: Vec::new(),
            json: false,
        };
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let value = arguments.next();
                value.ok_or_else(|| format!("{argument} takes a value"))
            };
            match argument.as_str() {
                "--help" | "-h" => return Ok(None),
                "--json" => options.json = true,
                "--baseline" => baseline = true,
                "--size" => options.size = number(&argument, &value()?, 0)?,
                "--receivers" => options.receivers = number(&argument, &value()?, 1)?,
                "--runs" => options.runs = number(&argument, &value()?, 1)?,
                "--in-flight" => options.in_flight = Some(number(&argument, &value()?, 1)?),
                "--seconds" => {
                    let seconds: f64 = value()?.parse().unwrap_or(0.0);
                    if !(seconds > 0.0 && seconds <= LONGEST) {
                        return Err(format!("--seconds has to be a number up to {LONGEST}"));
                    }
                    options.lasts = Duration::from_secs_f64(seconds);
                }
                "--runtime" => {
                    subjects = match value()?.as_str() {
                        "own" => vec![Subject::Dchan],
                        "arbiter" => vec![Subject::DchanArbiter],
                        other => return Err(format!("{other:?} is no runtime: own or arbiter")),
                    }
                }
                name if !name.starts_with('-') && mode.is_none() => {
                    let known = serde_json::from_value(name.into());
                    mode = Some(known.map_err(|_| format!("{name:?} is no mode"))?);
                }
                other => return Err(format!("{other:?} is not known")),
            }
        }
        options.mode = mode.ok_or("which mode?")?;
        if baseline {
            subjects.extend(options.mode.baselines());
        }
        options.subjects = subjects;
        Ok(Some(options))
    }

    /// How many messages a subject has in flight where it awaits them.
    pub(crate) fn in_flight(&self, subject: Subject) -> usize {
        self.in_flight.unwrap_or(match (self.mode, subject) {
            (Mode::Ping, _) => 1,
            (_, Subject::Unary) => CALLS,
            _ => IN_FLIGHT,
        })
    }
}

fn number(option: &str, value: &str, least: usize) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number >= least);
    number.ok_or_else(|| format!("{option} has to be a number, and at least {least}"))
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Deliver => "deliver",
            Self::Ask => "ask",
            Self::Ping => "ping",
        }
    }

    /// What the crate is compared with.
    fn baselines(self) -> impl Iterator<Item = Subject> {
        use Subject::{Actix, Batched, Stream, Unary};
        let all = [Unary, Stream, Batched, Actix];
        // A local actor accepts a message by being sent it.
        let sensible = move |subject: &Subject| (self, *subject) != (Self::Deliver, Actix);
        all.into_iter().filter(sensible)
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
}
