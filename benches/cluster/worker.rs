//! One process of the bench, which does what it is told, line by line.
//!
//! | it is told | it does | it says |
//! |---|---|---|
//! | (starts) | whatever it takes before messages flow | `ready` |
//! | `send MILLIS` | sends, and awaits what it awaits | `sent` and [`Sent`] |
//! | `report` | | `report` and [`Report`] |
//! | `end` | writes its ledger | `ended` |

use std::time::{Duration, Instant};

use crate::{
    bare,
    item::{SharedLedger, open},
    local::Local,
    node::Node,
    options::Subject,
    orders::{Orders, Part, Report, Sent},
    process::told,
    usage,
};

/// What a process is.
enum Role {
    Node(Node),
    Bare(bare::Sender),
    Local(Local),
    /// It receives, and nothing has to be done for it.
    Served,
}

pub(crate) fn live(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).unwrap();
    match orders.subject {
        Subject::Unary | Subject::Stream | Subject::Batched => {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(obey(orders));
        }
        _ => actix::System::new().block_on(obey(orders)),
    }
}

impl Role {
    async fn take(orders: &Orders, ledger: &SharedLedger) -> Self {
        let receivers = orders.addresses.len() - 1;
        match (orders.subject, orders.part) {
            (Subject::Dchan | Subject::DchanArbiter, part) => {
                let node = Node::start(orders).await;
                if part == Part::Receiver {
                    node.receive(ledger.clone(), Duration::ZERO);
                }
                node.until_received(receivers).await;
                Self::Node(node)
            }
            (Subject::Actix, _) => Self::Local(Local::start(orders, ledger)),
            (_, Part::Receiver) => {
                bare::serve(&orders.address, ledger.clone(), orders.mode).await;
                Self::Served
            }
            _ => Self::Bare(bare::Sender::new(orders)),
        }
    }

    async fn send(&self, until: Instant) -> Sent {
        match self {
            Self::Node(node) => node.send(until).await,
            Self::Bare(sender) => sender.send(until).await,
            Self::Local(local) => local.send(until).await,
            Self::Served => Sent::default(),
        }
    }

    async fn end(self) {
        if let Self::Node(node) = self {
            node.end().await;
        }
    }
}

async fn obey(orders: Orders) {
    let ledger = SharedLedger::default();
    let role = Role::take(&orders, &ledger).await;
    say("ready", &());
    let mut told = told();
    while let Some(line) = told.recv().await {
        let (what, how) = line.split_once(' ').unwrap_or((&line, ""));
        match what {
            "send" => {
                let lasts = Duration::from_millis(how.parse().unwrap());
                say("sent", &role.send(Instant::now() + lasts).await);
            }
            "report" => say("report", &report(&ledger)),
            "end" => break,
            other => panic!("{other:?} is nothing that it can do"),
        }
    }
    open(&ledger).write(&orders.ledger).unwrap();
    role.end().await;
    say("ended", &());
}

fn say(what: &str, how: &impl serde::Serialize) {
    println!("{what} {}", serde_json::to_string(how).unwrap());
}

fn report(ledger: &SharedLedger) -> Report {
    let ledger = open(ledger);
    Report {
        received: ledger.received,
        duplicated: ledger.duplicated,
        cpu: usage::cpu(),
        memory_kib: usage::peak_memory_kib(),
    }
}
