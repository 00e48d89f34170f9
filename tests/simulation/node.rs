//! What runs on each host: a node, its receivers, and a sender.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use dchan::{Cluster, DeliveryError, Namespace, Registration, Runtime, Status, prelude::*};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::mpsc,
    time::{Instant, advance, sleep_until},
};

use crate::{
    control::Boot,
    disk::Disk,
    ledger::{CHANGING, Id, Ledger, Life, Outcome, SHARED},
    net::{Late, Net, PORT},
    watch::Watch,
};

/// How often a node says how it stands.
const SAMPLE: Duration = Duration::from_millis(250);
/// How long a message is offered.
const SEND_TIMEOUT: Duration = Duration::from_secs(15);

/// What a host is told to do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Command {
    /// Its clock leaps.
    Leap(Duration),
    /// A receiver of its comes, or goes.
    Change,
    /// It leaves the cluster in order.
    Leave,
}

/// What all hosts share.
pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) hosts: usize,
    pub(crate) peers: Vec<String>,
    pub(crate) founders: usize,
    pub(crate) watch: Watch,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) late: Late,
    pub(crate) now: Cell<Duration>,
    /// When there was last a fault.
    pub(crate) harmed: Cell<Duration>,
    /// Nothing new is sent, and no receiver comes or goes.
    pub(crate) paused: Cell<bool>,
}

impl World {
    fn check(&self, result: Result<(), String>) {
        if let Err(violation) = result {
            self.watch.violated(violation);
        }
    }
}

/// One host, as seen from outside.
pub(crate) struct Host {
    pub(crate) index: usize,
    pub(crate) disk: Disk,
    pub(crate) starts: Cell<u64>,
    commands: RefCell<Option<mpsc::UnboundedSender<Command>>>,
    /// How its node stands, since it belongs to a cluster.
    pub(crate) status: RefCell<Option<Status>>,
    /// Whether it wants to receive the changing namespace, and does.
    pub(crate) receives_changing: Cell<bool>,
}

pub(crate) fn name(index: usize) -> String {
    format!("node-{index}")
}

pub(crate) fn address(index: usize) -> String {
    format!("{}:{PORT}", name(index))
}

pub(crate) fn namespace(number: u64) -> String {
    format!("items-{number}")
}

impl Host {
    pub(crate) fn new(index: usize) -> Self {
        Self {
            index,
            disk: Disk::default(),
            starts: Cell::default(),
            commands: RefCell::default(),
            status: RefCell::default(),
            receives_changing: Cell::default(),
        }
    }

    pub(crate) fn tell(&self, command: Command) {
        if let Some(commands) = &*self.commands.borrow() {
            let _ = commands.send(command);
        }
    }

    pub(crate) fn life(&self) -> Life {
        (self.index as u64, self.starts.get())
    }

    /// The process has ended.
    pub(crate) fn ended(&self) {
        self.commands.replace(None);
        self.status.replace(None);
        self.receives_changing.set(false);
    }

    /// Runs a process until it leaves.
    pub(crate) async fn run(self: Rc<Self>, world: Rc<World>) {
        self.starts.set(self.starts.get() + 1);
        let (sender, mut commands) = mpsc::unbounded_channel();
        self.commands.replace(Some(sender));
        let all = (0..world.hosts).map(name);
        let started = Cluster::builder(format!("0.0.0.0:{PORT}"))
            .advertise(address(self.index))
            .peers(world.peers.clone())
            .founders(world.founders)
            .transport(Net::new(&name(self.index), all, world.late.clone()))
            .disk(self.disk.open())
            .runtime(Runtime::CurrentArbiter)
            .send_timeout(SEND_TIMEOUT)
            .join_timeout(Duration::from_secs(3600))
            .start()
            .await;
        let cluster = match started {
            Ok(cluster) => cluster,
            Err(error) => return world.watch.violated(format!("no start: {error}")),
        };
        let status = cluster.status();
        let boot = (status.node.to_string(), status.boot);
        let mut life = Alive::new(self.clone(), world.clone(), cluster.clone(), boot.clone());
        let mut next_sample = Instant::now();
        let mut next_act = Instant::now();
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Leap(duration)) => {
                        world.watch.leaps(&name(self.index));
                        advance(duration).await;
                    }
                    Some(Command::Change) => life.change(),
                    Some(Command::Leave) | None => break,
                },
                () = sleep_until(next_sample) => {
                    next_sample = Instant::now() + SAMPLE;
                    self.status.replace(Some(cluster.status()));
                }
                () = sleep_until(next_act) => {
                    next_act = Instant::now() + life.pause();
                    if !world.paused.get() {
                        life.act();
                    }
                }
            }
        }
        world.watch.leaves(boot);
        drop(life);
        self.status.replace(None);
        if let Err(error) = cluster.shutdown().await {
            world.watch.note(format!("{} left: {error}", self.index));
        }
        self.ended();
    }
}

/// A node that belongs to a cluster.
struct Alive {
    host: Rc<Host>,
    world: Rc<World>,
    boot: Boot,
    rng: StdRng,
    namespaces: Vec<(u64, Namespace<Item>)>,
    number: u64,
    changing: Addr<Receiver>,
    registration: Option<Registration>,
}

impl Alive {
    fn new(host: Rc<Host>, world: Rc<World>, cluster: Cluster, boot: Boot) -> Self {
        let (index, start) = host.life();
        let numbers = (0..world.hosts as u64).chain([CHANGING, SHARED]);
        let namespaces: Vec<_> = numbers
            .map(|number| (number, cluster.namespace(&namespace(number))))
            .collect();
        let receiver = |number: u64| Receiver {
            life: host.life(),
            world: world.clone(),
            namespace: namespaces
                .iter()
                .find(|(known, _)| *known == number)
                .map(|(_, namespace)| namespace.clone()),
        };
        receiver(index).start();
        if index.is_multiple_of(2) {
            receiver(SHARED).start();
        }
        let changing = Receiver {
            namespace: None,
            ..receiver(CHANGING)
        };
        let mut alive = Self {
            rng: StdRng::seed_from_u64(world.seed ^ index << 48 ^ start << 32),
            changing: changing.start(),
            namespaces,
            number: 0,
            registration: None,
            host,
            world,
            boot,
        };
        // As the process before may have been about to do the opposite.
        if alive.rng.random_bool(0.5) {
            alive.change();
        }
        alive
    }

    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(20..400))
    }

    fn act(&mut self) {
        match self.rng.random_range(0..10) {
            0 => self.change(),
            _ => self.send(),
        }
    }

    /// Begins or ceases to receive.
    fn change(&mut self) {
        match self.registration.take() {
            Some(registration) => {
                self.host.receives_changing.set(false);
                self.world.watch.ceases(self.boot.clone());
                actix_rt::spawn(async move {
                    // Without a quorum it is not agreed, and given up all the same.
                    let _ = registration.close().await;
                });
            }
            None => {
                self.host.receives_changing.set(true);
                let recipient = self.changing.clone().recipient();
                let (_, namespace) = &self.namespaces[self.world.hosts];
                self.registration = Some(namespace.subscribe(recipient));
            }
        }
    }

    fn send(&mut self) {
        let to = self.rng.random_range(0..self.namespaces.len());
        let (number, namespace) = &self.namespaces[to];
        self.number += 1;
        let (sender, start) = self.host.life();
        let id = Id {
            sender,
            start,
            namespace: *number,
            number: self.number,
        };
        let world = self.world.clone();
        world.ledger.borrow_mut().sent(id);
        let item = Item { id: id.pack() };
        let sent = world.now.get();
        let settle = move |outcome| {
            let mut ledger = world.ledger.borrow_mut();
            let settled = ledger.settled(id, outcome, sent, world.harmed.get());
            drop(ledger);
            world.check(settled);
        };
        match self.rng.random_range(0..3) {
            0 => namespace.do_send(item),
            1 => {
                let delivery = namespace.deliver(item);
                actix_rt::spawn(async move {
                    settle(match delivery.await {
                        Ok(_) => Outcome::Accepted,
                        Err(error) => failed(&error),
                    });
                });
            }
            _ => {
                let request = namespace.send(item);
                actix_rt::spawn(async move {
                    settle(match request.await {
                        Ok(reply) => {
                            assert_eq!(reply, id.pack());
                            Outcome::Handled
                        }
                        Err(error) => failed(&error),
                    });
                });
            }
        }
    }
}

fn failed(error: &DeliveryError) -> Outcome {
    match error.maybe_delivered() {
        true => Outcome::Unknown,
        false => Outcome::NotDelivered,
    }
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
struct Item {
    id: u64,
}

/// Writes down what it gets, and only then answers.
struct Receiver {
    life: Life,
    world: Rc<World>,
    /// What it receives from its start on.
    namespace: Option<Namespace<Item>>,
}

impl Actor for Receiver {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        if let Some(namespace) = self.namespace.take() {
            namespace.register::<Self>(ctx).detach();
        }
    }
}

impl Handler<Item> for Receiver {
    type Result = u64;

    fn handle(&mut self, item: Item, _: &mut Context<Self>) -> u64 {
        let id = Id::unpack(item.id);
        let received = self.world.ledger.borrow_mut().received(id, self.life);
        self.world.check(received);
        item.id
    }
}
