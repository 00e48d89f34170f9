//! One process of the bench, which does one [`Task`] after the other.

mod bare;
mod in_flight;
mod local;
mod nodes;
mod recipient;
mod sending;
mod usage;

use std::sync::Arc;

use futures_util::future::join_all;
use serde::Serialize;

use self::{local::Local, nodes::Nodes};
use crate::{
    item::Stock,
    ledger::{SharedLedger, open},
    options::Subject,
    process::told,
    tasks::{ANSWER, Load, Orders, Part, Report, Sent, Task},
};

/// What a process is.
enum Role {
    Nodes(Nodes),
    Bare(bare::Sender),
    Local(Local),
    /// It receives, and nothing has to be done for it.
    Served,
}

pub(crate) fn live(orders: &str) {
    let orders: Orders = serde_json::from_str(orders).unwrap();
    if orders.subject.is_bare() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(obey(orders));
    } else {
        actix::System::new().block_on(obey(orders));
    }
}

impl Role {
    async fn take(orders: &Orders, ledger: &SharedLedger) -> Self {
        match (orders.subject, orders.part) {
            (Subject::Dchan | Subject::DchanArbiter, _) => {
                Self::Nodes(Nodes::start(orders, ledger.clone()).await)
            }
            (Subject::Actix, _) => Self::Local(Local::start(orders, ledger)),
            (_, Part::Sender) => Self::Bare(bare::Sender::new(orders)),
            _ => {
                bare::serve(orders, ledger.clone());
                Self::Served
            }
        }
    }

    fn nodes(&self) -> &Nodes {
        match self {
            Self::Nodes(nodes) => nodes,
            _ => panic!("only nodes do this"),
        }
    }

    async fn send(&self, load: Load, stock: &Arc<Stock>) -> Sent {
        match self {
            Self::Nodes(nodes) => nodes.send(load, stock).await,
            Self::Bare(sender) => sender.send(load, stock).await,
            Self::Local(local) => local.send(load, stock).await,
            Self::Served => panic!("it receives"),
        }
    }
}

async fn obey(orders: Orders) {
    let ledger = SharedLedger::default();
    let stock = Arc::new(Stock::new(orders.size));
    let role = Role::take(&orders, &ledger).await;
    answer(&());
    let mut told = told();
    while let Some(line) = told.recv().await {
        match serde_json::from_str(&line).unwrap() {
            Task::Receive { namespace, nodes } => {
                answer(&role.nodes().receive(&namespace, nodes).await);
            }
            Task::Until {
                namespace,
                receivers,
            } => answer(&role.nodes().until(&namespace, receivers).await),
            Task::Open(numbers) => answer(&role.nodes().open(numbers)),
            Task::RegisterAll(numbers) => answer(&role.nodes().register_all(numbers).await),
            Task::RegisterFor { first, lasts } => {
                answer(&role.nodes().register_for(first, lasts).await);
            }
            Task::Send(loads) => {
                let loads = loads.into_iter().map(|load| role.send(load, &stock));
                answer(&join_all(loads).await);
            }
            Task::Report => answer(&Report {
                received: open(&ledger).received,
                sent: stock.taken(),
                cpu: usage::cpu(),
            }),
            Task::End => break,
        }
    }
    open(&ledger).write(&orders.ledger).unwrap();
    if let Role::Nodes(nodes) = role {
        nodes.end().await;
    }
    answer(&());
}

fn answer(answer: &impl Serialize) {
    println!("{ANSWER} {}", serde_json::to_string(answer).unwrap());
}
