//! One process of the tests: a node that does what it is told, line by line.
//!
//! | it is told | it does | it says |
//! |---|---|---|
//! | `receive NAMESPACE MICROS` | receives, and takes so long for a message | `receiving` |
//! | `stall`, `wake` | takes nothing more, and goes on | `stalled`, `awake` |
//! | `flood NAMESPACE MILLIS` | sends as fast as it is taken | `sent COUNT` |
//! | `overload NAMESPACE MILLIS RATE` | sends at a rate a second, whatever is taken | `refused COUNT` |
//! | `deliver NAMESPACE MILLIS` | sends as fast as it is taken, and awaits each | see [`Outcomes`] |
//! | `idle` | waits until nothing is under way any more | `idle` |
//! | `receivers NAMESPACE` | | `receivers COUNT`: of how many nodes it knows that receive |
//! | `leader` | | `leader NODE` |
//! | `report` | | see [`Report`] |
//! | `end` | leaves the cluster | `ended` |

use std::{
    fmt,
    future::pending,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::sleep,
    time::{Duration, Instant},
};

use dchan::{Cluster, Namespace, Traffic, prelude::*};
use futures_util::{SinkExt, StreamExt, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::process::told;

/// How much is in flight where each message is awaited.
const IN_FLIGHT: usize = 1024;
const BODY: usize = 1024;

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Item(#[serde(with = "serde_bytes")] Vec<u8>);

impl Item {
    fn new() -> Self {
        Self(vec![7; BODY])
    }
}

/// What a process is told to be.
pub(crate) struct Orders {
    pub(crate) address: String,
    pub(crate) peers: Vec<String>,
}

impl fmt::Display for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.address, self.peers.join(" "))
    }
}

/// What a process has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) accepted: u64,
    pub(crate) unknown: u64,
    pub(crate) full: u64,
    pub(crate) other_dead_letters: u64,
    pub(crate) unsettled: u64,
}

/// What became of messages of which each was awaited.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) accepted: u64,
    pub(crate) not_delivered: u64,
    pub(crate) unknown: u64,
    /// When the last one was sent that is unknown now, in microseconds.
    pub(crate) last_unknown: u64,
    /// The longest time between two that were accepted, in microseconds.
    pub(crate) longest_pause: u64,
}

/// A line of numbers, in the order of the fields.
macro_rules! numbers {
    ($type:ident { $($field:ident),+ }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, " {}", self.$field)?;)+
                Ok(())
            }
        }

        impl FromStr for $type {
            type Err = std::num::ParseIntError;

            fn from_str(line: &str) -> Result<Self, Self::Err> {
                let mut words = line.split_whitespace();
                Ok(Self { $($field: words.next().unwrap_or_default().parse()?,)+ })
            }
        }
    };
}

numbers!(Report {
    received,
    sent,
    accepted,
    unknown,
    full,
    other_dead_letters,
    unsettled
});
numbers!(Outcomes {
    accepted,
    not_delivered,
    unknown,
    last_unknown,
    longest_pause
});

impl Report {
    fn new(received: u64, traffic: &Traffic) -> Self {
        let dead_letters = traffic.dead_letters;
        Self {
            received,
            sent: traffic.sent,
            accepted: traffic.accepted + traffic.handled,
            unknown: traffic.unknown,
            full: dead_letters.full,
            other_dead_letters: dead_letters.total() - dead_letters.full,
            unsettled: traffic.waiting + traffic.under_way,
        }
    }
}

/// The clock that all processes share.
pub(crate) fn now() -> u64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    since.as_micros() as u64
}

pub(crate) fn live(orders: &str) {
    actix::System::new().block_on(async {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .try_init();
        let mut words = orders.split(' ').map(str::to_owned);
        let cluster = Cluster::builder(words.next().unwrap())
            .peers(words)
            .join_timeout(Duration::from_secs(60))
            .outbox(4096, 64 << 20)
            .start()
            .await
            .unwrap();
        println!("node {}", cluster.status().node);
        obey(cluster).await;
    });
}

async fn obey(cluster: Cluster) {
    let received = Arc::new(AtomicU64::new(0));
    let stalled = watch::Sender::new(false);
    let mut told = told();
    while let Some(line) = told.recv().await {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        let duration = || Duration::from_millis(number(2));
        let items = || cluster.namespace::<Item>(words[1]);
        match words[0] {
            "receive" => {
                let pause = Duration::from_micros(number(2));
                let receiver = items().receiver(64);
                receiver.ready().await.unwrap();
                actix::spawn(receive(
                    receiver,
                    pause,
                    received.clone(),
                    stalled.subscribe(),
                ));
                println!("receiving");
            }
            "stall" => {
                stalled.send_replace(true);
                println!("stalled");
            }
            "wake" => {
                stalled.send_replace(false);
                println!("awake");
            }
            "flood" => println!("sent {}", flood(&items(), duration()).await),
            "overload" => {
                let refused = overload(&items(), duration(), number(3)).await;
                println!("refused {refused}");
            }
            "deliver" => println!("outcomes{}", deliver(&items(), duration()).await),
            "idle" => {
                loop {
                    let traffic = cluster.status().traffic;
                    if traffic.waiting + traffic.under_way == 0 {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                println!("idle");
            }
            "report" => {
                let traffic = cluster.status().traffic;
                println!(
                    "report{}",
                    Report::new(received.load(Ordering::Relaxed), &traffic)
                );
            }
            "receivers" => {
                let receivers = cluster.status().receivers;
                println!(
                    "receivers {}",
                    receivers.get(words[1]).map_or(0, |nodes| nodes.len())
                );
            }
            "leader" => {
                let leader = cluster.status().leader;
                println!(
                    "leader {}",
                    leader.map_or_else(String::new, |leader| leader.to_string())
                );
            }
            "end" => break,
            other => panic!("{other:?} is nothing that it can do"),
        }
    }
    cluster.shutdown().await.unwrap();
    println!("ended");
}

async fn receive(
    mut items: dchan::Receiver<Item>,
    pause: Duration,
    received: Arc<AtomicU64>,
    mut stalled: watch::Receiver<bool>,
) {
    loop {
        if stalled.wait_for(|stalled| !stalled).await.is_err() {
            // Nobody will wake it any more.
            return pending().await;
        }
        tokio::select! {
            item = items.next() => match item {
                Some(_) => {
                    received.fetch_add(1, Ordering::Relaxed);
                    // As work does that keeps the thread busy.
                    if !pause.is_zero() {
                        sleep(pause);
                    }
                }
                None => return,
            },
            _ = stalled.wait_for(|stalled| *stalled) => {}
        }
    }
}

/// Fills the outbox as fast as it empties.
async fn flood(items: &Namespace<Item>, duration: Duration) -> u64 {
    let end = Instant::now() + duration;
    let mut sink = items.sink();
    let mut sent = 0;
    while Instant::now() < end {
        if tokio::time::timeout_at(end.into(), sink.feed(Item::new()))
            .await
            .is_err()
        {
            break;
        }
        sent += 1;
    }
    sent
}

/// Sends at a rate, half of it by `try_send`, and counts what that refuses.
async fn overload(items: &Namespace<Item>, duration: Duration, rate: u64) -> u64 {
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut refused = 0;
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < duration {
        tick.tick().await;
        let due = begin.elapsed().as_secs_f64() * rate as f64;
        while (sent as f64) < due {
            sent += 2;
            items.do_send(Item::new());
            refused += u64::from(items.try_send(Item::new()).is_err());
        }
    }
    refused
}

/// Keeps so many messages in flight.
async fn deliver(items: &Namespace<Item>, duration: Duration) -> Outcomes {
    let end = Instant::now() + duration;
    let mut outcomes = Outcomes::default();
    let mut in_flight = FuturesUnordered::new();
    let mut last = now();
    loop {
        while Instant::now() < end && in_flight.len() < IN_FLIGHT {
            let (sent, delivery) = (now(), items.deliver(Item::new()));
            in_flight.push(async move { (sent, delivery.await) });
        }
        match in_flight.next().await {
            Some((_, Ok(_))) => {
                outcomes.accepted += 1;
                let heard = now();
                outcomes.longest_pause = outcomes.longest_pause.max(heard - last);
                last = heard;
            }
            Some((sent, Err(error))) if error.maybe_delivered() => {
                outcomes.unknown += 1;
                outcomes.last_unknown = outcomes.last_unknown.max(sent);
            }
            Some((_, Err(_))) => outcomes.not_delivered += 1,
            None => return outcomes,
        }
    }
}
