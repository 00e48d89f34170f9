//! One run: a cluster, what is done to it, and what has to come of it.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::{self, AssertUnwindSafe},
    rc::Rc,
    time::{Duration, SystemTime},
};

use mad_turmoil::time::SimClocksGuard;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tracing_subscriber::layer::SubscriberExt;
use turmoil::Sim;

use crate::{
    faults::{self, Fault, Last},
    ledger::{CHANGING, Ledger, SHARED},
    net::{EVERYBODY, Late},
    node::{Command, Host, World, address, name, namespace},
    watch::Watch,
};

const TICK: Duration = Duration::from_millis(10);
/// What a segment takes on a network that is well.
const LATENCY: Duration = Duration::from_millis(10);
/// The cluster is whole again so long after everything else is.
const CONVERGED_WITHIN: Duration = Duration::from_secs(30);
/// How long there are faults before they end.
const CHAOS: Duration = Duration::from_secs(80);
/// How long a process may go on trying to say its last.
const REPLACED_AFTER: Duration = Duration::from_millis(300);
/// How long there are none then.
const CALM: Duration = Duration::from_secs(10);
/// When what was before has no effect any more: a connection that is dead has been
/// found so.
const STILL_AFTER: Duration = Duration::from_secs(7);
/// So recently a node has heard from its leader then: a heartbeat's interval, and
/// what two segments and the steps of the simulation take.
const HEARD_WITHIN: Duration = Duration::from_millis(300);
const VOTERS: usize = 5;

/// What came of a run.
pub(crate) struct Report {
    pub(crate) violations: Vec<String>,
    pub(crate) events: Vec<String>,
    summary: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.summary)
    }
}

/// Runs a seed for a length of simulated time.
pub(crate) fn run(seed: u64, length: Duration) -> Report {
    let watch = Watch::default();
    let subscriber = tracing_subscriber::registry().with(watch.clone());
    let _traced = tracing::subscriber::set_default(subscriber);
    // Wherever it happens: tasks and actors keep their panics to themselves.
    let panicked = watch.clone();
    panic::set_hook(Box::new(move |panic| panicked.violated(panic)));
    // A node on the current thread asks for an actix system. Nothing runs on it,
    // and it tells the time by the real clock.
    let _system = actix_rt::System::new();
    let _clocks = SimClocksGuard::init();

    let mut run = Run::new(seed, watch.clone());
    let slowest = panic::catch_unwind(AssertUnwindSafe(|| run.all(length))).unwrap_or_default();
    let (events, count, digest) = watch.events();
    let World { hosts, ledger, .. } = &*run.world;
    let violations = watch.violations();
    Report {
        summary: format!(
            "seed={seed} nodes={hosts} faults={} {} entries={} slowest_to_converge={:.1}s \
             violated={} events={count} trace={digest:016x}",
            run.faults,
            ledger.borrow(),
            watch.applied(),
            slowest.as_secs_f64(),
            violations.len(),
        ),
        violations,
        events,
    }
}

struct Run {
    sim: Sim<'static>,
    world: Rc<World>,
    hosts: Vec<Rc<Host>>,
    rng: StdRng,
    faults: usize,
    /// What ends when, in order.
    ends: BTreeMap<(Duration, usize), Fault>,
}

impl Run {
    fn new(seed: u64, watch: Watch) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let count = rng.random_range(5..=9);
        // Half of the clusters know each other by one name.
        let (peers, founders) = match rng.random_bool(0.5) {
            true => (vec![EVERYBODY.to_owned()], count / 2 + 1),
            false => ((0..count).map(address).collect(), 1),
        };
        let mut sim = turmoil::Builder::new()
            .epoch(SystemTime::UNIX_EPOCH)
            .simulation_duration(Duration::MAX)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(LATENCY)
            .tcp_capacity(4096)
            .rng_seed(seed)
            .build();
        let world = Rc::new(World {
            seed,
            hosts: count,
            peers,
            founders,
            watch,
            ledger: RefCell::new(Ledger::default()),
            late: Late::default(),
            now: Cell::default(),
            harmed: Cell::default(),
            paused: Cell::default(),
        });
        let hosts: Vec<_> = (0..count).map(|index| Rc::new(Host::new(index))).collect();
        // All names have to be known before the first one is asked for.
        for index in 0..count {
            sim.lookup(name(index));
        }
        for host in &hosts {
            let (host, world) = (host.clone(), world.clone());
            sim.host(name(host.index), move || {
                let (host, world) = (host.clone(), world.clone());
                async move {
                    host.run(world).await;
                    Ok(())
                }
            });
        }
        Self {
            sim,
            world,
            hosts,
            rng,
            faults: 0,
            ends: BTreeMap::new(),
        }
    }

    fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    fn step(&mut self) {
        let now = self.now();
        self.world.now.set(now);
        self.world.watch.set_now(now);
        if let Err(error) = self.sim.step() {
            self.world.watch.violated(format!("a host failed: {error}"));
        }
        if let Some(id) = self.world.ledger.borrow_mut().broken_promise() {
            let violation = format!("{id:?} was accepted and not received");
            self.world.watch.violated(violation);
        }
    }

    fn failed(&self) -> bool {
        !self.world.watch.violations().is_empty()
    }

    /// Chaos and calm in turn. Returns the longest time to converge.
    fn all(&mut self, length: Duration) -> Duration {
        let mut slowest = self.converge();
        self.world.paused.set(false);
        while self.now() < length && !self.failed() {
            self.chaos();
            self.heal();
            slowest = slowest.max(self.converge());
            self.settle();
            self.calm();
        }
        slowest
    }

    /// Nothing goes wrong, and in the end all nodes hear from their leader.
    fn calm(&mut self) {
        let begin = self.now();
        while self.now() < begin + CALM && !self.failed() {
            self.step();
            if self.now() < begin + STILL_AFTER {
                continue;
            }
            for host in &self.hosts {
                let status = host.status.borrow();
                let age = status.as_ref().and_then(|status| status.view_age);
                if age.is_none_or(|age| age > HEARD_WITHIN) {
                    let name = name(host.index);
                    let violation = format!("{name} heard its leader {age:?} ago");
                    self.world.watch.violated(violation);
                }
            }
        }
    }

    fn chaos(&mut self) {
        let end = self.now() + CHAOS;
        let mut next = self.now();
        let mut wiped = false;
        while self.now() < end && !self.failed() {
            if self.now() >= next {
                next = self.now() + faults::pause(&mut self.rng);
                let (mut fault, lasts) = faults::draw(&mut self.rng, self.hosts.len(), wiped);
                if let Fault::Late(host, to, _) = &mut fault
                    && let Some(leader) = self.leader()
                    && leader != *host
                {
                    *to = leader;
                }
                // The disk of one of two voters is a majority gone for good, and so
                // is that of the only one.
                if let Fault::Wipe(host) = fault
                    && self.has_few_voters()
                {
                    fault = Fault::Kill(host);
                }
                wiped |= matches!(fault, Fault::Wipe(_));
                self.begin(fault, lasts);
            }
            while let Some(first) = self.ends.first_entry()
                && first.key().0 <= self.sim.elapsed()
            {
                let fault = first.remove();
                self.end(&fault);
            }
            self.step();
        }
    }

    fn begin(&mut self, fault: Fault, lasts: Duration) {
        self.faults += 1;
        let end = self.now() + lasts;
        self.world.harmed.set(end.max(self.world.harmed.get()));
        self.world.watch.note(format!("{fault} for {lasts:?}"));
        match &fault {
            Fault::Kill(host) => self.kill(*host),
            Fault::PowerCut(host) => {
                for other in self.others(&[*host]) {
                    self.sim.partition(name(*host), name(other));
                }
                self.kill(*host);
            }
            Fault::Wipe(host) => {
                self.kill(*host);
                self.hosts[*host].disk.wipe();
            }
            Fault::Restart(host) => self.hosts[*host].tell(Command::Leave),
            Fault::Split(side) => {
                for (one, other) in self.across(side) {
                    self.sim.partition(name(one), name(other));
                }
            }
            Fault::Cut(one, other) => self.sim.partition(name(*one), name(*other)),
            Fault::OneWay(from, to) => self.sim.partition_oneway(name(*from), name(*to)),
            Fault::Hold(one, other) => self.sim.hold(name(*one), name(*other)),
            Fault::Slow(one, other, latency) => {
                self.sim
                    .set_link_max_message_latency(name(*one), name(*other), *latency);
            }
            Fault::Late(host, to, last) => {
                let (from, to) = (self.sim.lookup(name(*host)), self.sim.lookup(name(*to)));
                self.world.late.keep(from, to, self.now(), lasts);
                self.hosts[*host].tell(match last {
                    Last::Leave => Command::Leave,
                    Last::Change => Command::Change,
                });
                let replaced = (self.now() + REPLACED_AFTER, self.faults);
                self.ends.insert(replaced, Fault::Replace(*host));
            }
            // It has no beginning.
            Fault::Replace(_) => {}
            Fault::Leap(host, leap) => self.hosts[*host].tell(Command::Leap(*leap)),
        }
        self.ends.insert((end, self.faults), fault);
    }

    fn end(&mut self, fault: &Fault) {
        self.world.watch.note(format!("end of {fault}"));
        match fault {
            Fault::Kill(host) | Fault::Wipe(host) | Fault::Restart(host) => self.start(*host),
            Fault::PowerCut(host) => {
                for other in self.others(&[*host]) {
                    self.sim.repair(name(*host), name(other));
                }
                self.start(*host);
            }
            Fault::Split(side) => {
                for (one, other) in self.across(side) {
                    self.sim.repair(name(one), name(other));
                }
            }
            Fault::Cut(one, other) => self.sim.repair(name(*one), name(*other)),
            Fault::OneWay(from, to) => self.sim.repair_oneway(name(*from), name(*to)),
            Fault::Hold(one, other) => self.sim.release(name(*one), name(*other)),
            Fault::Replace(host) => {
                if self.sim.is_host_running(name(*host)) {
                    self.kill(*host);
                }
                self.sim.bounce(name(*host));
            }
            Fault::Slow(one, other, _) => {
                self.sim
                    .set_link_max_message_latency(name(*one), name(*other), LATENCY);
            }
            Fault::Late(..) | Fault::Leap(..) => {}
        }
    }

    /// The host whose node leads, if one says so.
    fn leader(&self) -> Option<usize> {
        let leads = |host: &Rc<Host>| {
            let status = host.status.borrow();
            status
                .as_ref()
                .is_some_and(|status| status.leader == Some(status.node))
        };
        self.hosts.iter().position(leads)
    }

    /// Whether there are fewer than three voters, by any node's account.
    fn has_few_voters(&self) -> bool {
        let few = |host: &Rc<Host>| {
            let status = host.status.borrow();
            status
                .as_ref()
                .is_some_and(|status| status.voters.len() < 3)
        };
        self.hosts.iter().any(few)
    }

    fn others(&self, side: &[usize]) -> Vec<usize> {
        let all = 0..self.hosts.len();
        all.filter(|index| !side.contains(index)).collect()
    }

    fn across(&self, side: &[usize]) -> Vec<(usize, usize)> {
        let others = self.others(side);
        let pairs = side
            .iter()
            .flat_map(|one| others.iter().map(|other| (*one, *other)));
        pairs.collect()
    }

    fn kill(&mut self, index: usize) {
        let host = &self.hosts[index];
        host.disk.crash(&mut self.rng);
        self.sim.crash(name(index));
        self.hosts[index].ended();
    }

    /// Starts a host that is down. One that is still about to leave is killed.
    fn start(&mut self, index: usize) {
        if self.sim.is_host_running(name(index)) {
            if self.hosts[index].status.borrow().is_some() {
                return;
            }
            self.kill(index);
        }
        self.sim.bounce(name(index));
    }

    /// Ends all that is wrong.
    fn heal(&mut self) {
        for (_, fault) in std::mem::take(&mut self.ends) {
            self.end(&fault);
        }
        for index in 0..self.hosts.len() {
            for other in 0..index {
                self.sim.release(name(index), name(other));
                self.sim
                    .set_link_max_message_latency(name(index), name(other), LATENCY);
            }
            if !self.sim.is_host_running(name(index)) {
                self.start(index);
            }
        }
        // What was so before proves nothing.
        for host in &self.hosts {
            host.status.replace(None);
        }
        self.world.harmed.set(self.now());
        self.world.watch.note("healed");
    }

    /// Waits until the cluster is whole. Returns how long that took.
    fn converge(&mut self) -> Duration {
        let begin = self.now();
        self.world.paused.set(true);
        while let Err(missing) = self.is_whole() {
            if self.failed() {
                break;
            }
            if self.now() > begin + CONVERGED_WITHIN {
                let violation = format!("not converged within {CONVERGED_WITHIN:?}: {missing}");
                self.world.watch.violated(violation);
                break;
            }
            self.step();
        }
        let took = self.now() - begin;
        self.world.watch.note(format!("converged after {took:?}"));
        took
    }

    /// Whether all nodes agree on what is true.
    fn is_whole(&self) -> Result<(), String> {
        let statuses: Vec<_> = self
            .hosts
            .iter()
            .map(|host| {
                let status = host.status.borrow().clone();
                status.ok_or_else(|| format!("{} has no status", host.index))
            })
            .collect::<Result<_, _>>()?;
        let nodes: BTreeSet<_> = statuses.iter().map(|status| status.node).collect();
        let receive = |host: &dyn Fn(&Host) -> bool| -> BTreeSet<_> {
            let pairs = self.hosts.iter().zip(&statuses);
            let receivers = pairs.filter(|(receiver, _)| host(receiver));
            receivers.map(|(_, status)| status.node).collect()
        };
        let mut receivers: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
        for index in 0..self.hosts.len() {
            let own = receive(&|host| host.index == index);
            receivers.insert(namespace(index as u64), own);
        }
        let shared = receive(&|host| host.index.is_multiple_of(2));
        receivers.insert(namespace(SHARED), shared);
        let changing = receive(&|host| host.receives_changing.get());
        if !changing.is_empty() {
            receivers.insert(namespace(CHANGING), changing);
        }
        let leader = statuses[0].leader;
        for (host, status) in self.hosts.iter().zip(&statuses) {
            let known: BTreeSet<_> = status.nodes.keys().copied().collect();
            let voters = status.voters.is_subset(&nodes) && status.voters.len() == VOTERS;
            let problem = if status.leader.is_none() || status.leader != leader {
                format!("leader {:?}, not {leader:?}", status.leader)
            } else if !status.has_quorum {
                "no quorum".to_owned()
            } else if known != nodes {
                format!("nodes {known:?}, not {nodes:?}")
            } else if status.receivers != receivers {
                format!("receivers {:?}, not {receivers:?}", status.receivers)
            } else if !voters {
                format!("voters {:?} of {nodes:?}", status.voters)
            } else {
                continue;
            };
            return Err(format!("{}: {problem}", name(host.index)));
        }
        Ok(())
    }

    /// Waits until all that was sent is settled, and counts what is missing.
    fn settle(&mut self) {
        let end = self.now() + CONVERGED_WITHIN;
        let world = self.world.clone();
        let unsettled = |host: &Rc<Host>| {
            let status = host.status.borrow();
            let (sent, _) = world.ledger.borrow().counts(host.life());
            status.as_ref().is_none_or(|status| {
                let traffic = &status.traffic;
                traffic.sent < sent || traffic.waiting + traffic.under_way > 0
            })
        };
        // Nobody may receive the changing namespace: then a message's time has
        // to pass.
        while self.hosts.iter().any(unsettled) && !self.failed() {
            if self.now() > end {
                self.world.watch.violated("messages are not settled");
            }
            self.step();
        }
        for host in &self.hosts {
            let status = host.status.borrow();
            let Some(status) = &*status else { continue };
            let traffic = &status.traffic;
            let failed = traffic.dead_letters.total() + traffic.unknown;
            let (sent, received) = self.world.ledger.borrow().counts(host.life());
            let missing = sent - received;
            if missing > failed {
                self.world.watch.violated(format!(
                    "{missing} messages of {} were not received, and {traffic:?}",
                    name(host.index)
                ));
            }
        }
        self.world.paused.set(false);
    }
}
