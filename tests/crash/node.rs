//! One process of the test: a node that sends and receives until it is told to
//! stop, or killed.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dchan::{Cluster, DeliveryError, Namespace, StartError, prelude::*};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use crate::{
    journal::{Id, Journal, now},
    process::told,
};

/// How many processes there are.
pub(crate) const NODES: u64 = 5;
/// The namespace that all receive. Below it is one for each node, which that
/// one alone receives.
pub(crate) const SHARED: u64 = NODES;
const TICK: Duration = Duration::from_millis(10);

/// What a process is told to be.
pub(crate) struct Orders {
    pub(crate) index: u64,
    /// Counts the starts of this process.
    pub(crate) start: u64,
    pub(crate) address: String,
    pub(crate) peers: Vec<String>,
    /// Where its data directory and its journals are.
    pub(crate) dir: PathBuf,
    /// Messages a second.
    pub(crate) rate: u64,
    /// For how many seconds a message is offered.
    pub(crate) timeout: u64,
}

impl Orders {
    pub(crate) fn encode(&self) -> String {
        let Self {
            index,
            start,
            address,
            peers,
            dir,
            rate,
            timeout,
        } = self;
        let (peers, dir) = (peers.join(","), dir.display());
        format!("{index}|{start}|{address}|{peers}|{rate}|{timeout}|{dir}")
    }

    fn decode(text: &str) -> Self {
        let words: Vec<&str> = text.splitn(7, '|').collect();
        Self {
            index: words[0].parse().unwrap(),
            start: words[1].parse().unwrap(),
            address: words[2].to_owned(),
            peers: words[3].split(',').map(str::to_owned).collect(),
            rate: words[4].parse().unwrap(),
            timeout: words[5].parse().unwrap(),
            dir: words[6].into(),
        }
    }

    fn file(&self, kind: &str) -> PathBuf {
        self.dir
            .join(format!("{kind}-{}-{}", self.index, self.start))
    }
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
struct Item {
    id: u64,
    /// Messages are of different sizes.
    #[serde(with = "serde_bytes")]
    padding: Vec<u8>,
}

/// Writes down what it gets, and only then answers.
struct Receiver {
    journal: Arc<Journal>,
    shared: Option<Namespace<Item>>,
}

impl Actor for Receiver {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(shared) = &self.shared {
            shared.register::<Self>(ctx).detach();
        }
    }
}

impl Handler<Item> for Receiver {
    type Result = u64;

    fn handle(&mut self, item: Item, _: &mut Context<Self>) -> u64 {
        self.journal.write(item.id.to_string());
        item.id
    }
}

pub(crate) fn live(orders: &str) {
    actix::System::new().block_on(run(Orders::decode(orders)));
}

async fn run(orders: Orders) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
    let cluster = start(&orders).await;
    println!("node {}", cluster.status().node);

    let received = Arc::new(Journal::create(&orders.file("received")));
    let namespaces: Vec<Namespace<Item>> = (0..=SHARED)
        .map(|number| cluster.namespace(&format!("items-{number}")))
        .collect();
    let receiver = |shared| Receiver {
        journal: received.clone(),
        shared,
    };
    receiver(Some(namespaces[SHARED as usize].clone())).start();
    let own = &namespaces[orders.index as usize];
    let _own = own.subscribe(receiver(None).start().recipient());

    let stopped = Arc::new(AtomicBool::new(false));
    let sending = actix::spawn(send(orders, namespaces, stopped.clone()));
    let mut told = told();
    let mut leader = None;
    let mut asked = false;
    loop {
        tokio::select! {
            word = told.recv() => match word.as_deref() {
                Some("stop") => {
                    stopped.store(true, Ordering::Relaxed);
                }
                Some("whole") => asked = true,
                _ => break,
            },
            () = tokio::time::sleep(Duration::from_millis(100)) => {
                let leads = cluster.status().leader;
                if leads != leader {
                    leader = leads;
                    println!("leader {}", leader.map_or_else(String::new, |leader| leader.to_string()));
                }
                if asked && is_whole(&cluster) {
                    asked = false;
                    println!("whole");
                }
                if sending.is_finished() && stopped.swap(false, Ordering::Relaxed) {
                    println!("settled");
                }
            }
        }
    }

    // In order: what is under way gets its outcome first.
    stopped.store(true, Ordering::Relaxed);
    let status = cluster.clone();
    let left = cluster.shutdown().await.err();
    sending.await.unwrap();
    let traffic = status.status().traffic;
    let outcomes = traffic.handled + traffic.accepted + traffic.unknown;
    let balanced = traffic.sent == outcomes + traffic.dead_letters.total();
    // What waits for a receiver that is down may be given up, and nothing else.
    let well = balanced
        && left
            .as_ref()
            .is_none_or(|error| error.unanswered == 0 && error.handling == 0);
    println!("ended {well} {left:?} {traffic:?}");
}

/// Whether all receive what they are to receive, as far as this node knows.
fn is_whole(cluster: &Cluster) -> bool {
    let receivers = cluster.status().receivers;
    (0..=SHARED).all(|number| {
        let nodes = receivers.get(&format!("items-{number}"));
        let due = if number == SHARED { NODES } else { 1 };
        nodes.is_some_and(|nodes| nodes.len() as u64 == due)
    })
}

/// While the process does not run, a connection of another one may have its
/// port for a moment.
async fn start(orders: &Orders) -> Cluster {
    loop {
        let cluster = Cluster::builder(&orders.address)
            .peers(orders.peers.clone())
            .data_dir(orders.dir.join(format!("data-{}", orders.index)))
            .send_timeout(Duration::from_secs(orders.timeout))
            .join_timeout(Duration::from_secs(120))
            .start();
        match cluster.await {
            Err(StartError::Bind { .. }) => tokio::time::sleep(TICK).await,
            started => return started.unwrap(),
        }
    }
}

/// Sends at the rate, until it is stopped and all outcomes are written down.
async fn send(orders: Orders, namespaces: Vec<Namespace<Item>>, stopped: Arc<AtomicBool>) {
    let journal = Arc::new(Journal::create(&orders.file("sent")));
    let outcomes = TaskTracker::new();
    let mut numbers = [0; SHARED as usize + 1];
    let mut tick = tokio::time::interval(TICK);
    let mut due = 0.0;
    loop {
        tick.tick().await;
        if stopped.load(Ordering::Relaxed) {
            break;
        }
        due += orders.rate as f64 * TICK.as_secs_f64();
        while due >= 1.0 {
            due -= 1.0;
            let mut random = rand::rng();
            let namespace = match random.random_bool(0.5) {
                true => SHARED,
                false => random.random_range(0..NODES),
            };
            let number = &mut numbers[namespace as usize];
            *number += 1;
            let id = Id {
                sender: orders.index,
                start: orders.start,
                namespace,
                number: *number,
            };
            let id = id.pack();
            let padding = vec![0; 1 << random.random_range(0..11)];
            let item = Item { id, padding };
            let namespace = &namespaces[namespace as usize];
            let journal = journal.clone();
            let sent = now();
            match random.random_range(0..3) {
                0 => {
                    journal.write(format!("{id} do_send"));
                    namespace.do_send(item);
                }
                1 => {
                    journal.write(format!("{id} deliver"));
                    let delivery = namespace.deliver(item);
                    outcomes.spawn_local(async move {
                        match delivery.await {
                            Ok(node) => {
                                journal.write(format!("{id} accepted {node} {sent} {}", now()))
                            }
                            Err(error) => journal.write(failed(id, sent, &error)),
                        }
                    });
                }
                _ => {
                    journal.write(format!("{id} send"));
                    let request = namespace.send(item);
                    outcomes.spawn_local(async move {
                        match request.await {
                            Ok(reply) => {
                                assert_eq!(reply, id, "the reply to another message");
                                journal.write(format!("{id} handled - {sent} {}", now()));
                            }
                            Err(error) => journal.write(failed(id, sent, &error)),
                        }
                    });
                }
            }
        }
    }
    outcomes.close();
    outcomes.wait().await;
}

fn failed(id: u64, sent: u64, error: &DeliveryError) -> String {
    let node = match error {
        DeliveryError::Lost { node, .. } => node.to_string(),
        _ => "-".to_owned(),
    };
    let outcome = match error.maybe_delivered() {
        true => "unknown",
        false => "not_delivered",
    };
    format!("{id} {outcome} {node} {sent} {} {error}", now())
}
