//! The broadcasts of one namespace that a node sees to: its own, and those that
//! it hands over and passes on for others.
//!
//! Links, recipients and senders call in from their threads. All of it is state
//! under one lock. Copies are passed to the links under it; recipients are
//! called without it, and in turn, by whoever finds that there is something to
//! hand over.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::Waker,
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use super::{
    LARGEST, MOST_ARRIVED,
    errand::{Answer, Copy, Errand, Letter, Source, size_of},
    hearing::{Audience, HandOver, Hearing, Outcome},
    inflow::Inflow,
    origin::Outflow,
    tree::Addressee,
};
use crate::{
    alarm::Alarm,
    delivery::{Reached, Timekeeper},
    error::DeliveryError,
    link::{Lane, Link, PeerRoom},
    proto,
    status::BroadcastCounts,
    view::{NodeId, Receivers, View},
};

/// What a relay has to know of its node.
pub(crate) struct Place {
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    pub(crate) namespace: Arc<str>,
    pub(crate) label: Arc<str>,
    pub(crate) audience: Arc<dyn Audience>,
    pub(crate) agreed: watch::Receiver<Arc<View>>,
    /// How many broadcasts of this node may be under way, and in bytes.
    pub(crate) window: usize,
    pub(crate) window_bytes: usize,
    /// How long a broadcast may take where its sender does not say.
    pub(crate) send_timeout: Duration,
    /// The largest encoded message.
    pub(crate) max_message: usize,
}

pub(crate) struct Relay {
    pub(super) place: Place,
    pub(super) this: Weak<Self>,
    state: Mutex<State>,
}

pub(super) struct State {
    /// Who receives the namespace by the view.
    pub(super) receivers: Option<Arc<Receivers>>,
    /// How the other ones are reached.
    pub(super) routes: BTreeMap<NodeId, Route>,
    pub(super) errands: BTreeMap<u64, Errand>,
    pub(super) copies: BTreeMap<u64, Copy>,
    /// The next number of an errand or a copy.
    pub(super) next: u64,
    /// Through whom a receiver was reached that this node's own link does not
    /// lead to.
    pub(super) ways_round: BTreeMap<NodeId, NodeId>,
    /// How many copies a peer has of an origin and has not answered.
    pub(super) passed: BTreeMap<(NodeId, Source), usize>,
    /// How many errands there are for a link and an origin.
    arrived: BTreeMap<(usize, Source), usize>,
    pub(super) inflows: BTreeMap<Source, Inflow>,
    pub(super) own: Outflow,
    tasks: VecDeque<Task>,
    /// Somebody is at work on the tasks.
    working: bool,
    /// Set to when `expire` has something to do, or before that.
    pub(super) alarm: Alarm,
    /// When addressees that are out of reach are tried another way.
    pub(super) detour: Option<Instant>,
    pub(super) wakers: Vec<Waker>,
    pub(super) counts: BroadcastCounts,
    /// The node shuts down: it broadcasts nothing more and passes nothing on for
    /// others.
    pub(super) closed: bool,
    /// It takes nothing in any more.
    pub(super) ended: bool,
}

/// The link to a receiver, and the namespace's channel on it.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) boot: u64,
    pub(crate) link: Arc<Link>,
    pub(crate) channel: u32,
}

/// What a hearing is about.
#[derive(Clone, Copy)]
pub(super) enum Heard {
    /// A broadcast of this node, by its errand.
    Own(u64),
    Of(Source, u64),
}

/// What has to be done without the lock.
pub(super) enum Task {
    HandOver(Arc<Letter>, Arc<Hearing>),
    HandOverOwn(HandOver, Option<usize>, Arc<Hearing>),
    /// The last hold on one of these may be this one, and letting go of it calls
    /// the relay.
    Retract(Vec<Arc<Hearing>>),
    /// It may hold a user's messages.
    Drop(HandOver),
    /// Tells the sender, and who listens to traces.
    Tell(
        oneshot::Sender<Result<Reached, DeliveryError>>,
        Result<Reached, DeliveryError>,
    ),
}

impl Relay {
    pub(crate) fn new(place: Place, alarm: Alarm) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            place,
            this: this.clone(),
            state: Mutex::new(State {
                receivers: None,
                routes: BTreeMap::new(),
                errands: BTreeMap::new(),
                copies: BTreeMap::new(),
                next: 1,
                ways_round: BTreeMap::new(),
                passed: BTreeMap::new(),
                arrived: BTreeMap::new(),
                inflows: BTreeMap::new(),
                own: Outflow::new(),
                tasks: VecDeque::new(),
                working: false,
                alarm,
                detour: None,
                wakers: Vec::new(),
                counts: BroadcastCounts::default(),
                closed: false,
                ended: false,
            }),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no panic while broadcasts are passed on")
    }

    pub(super) fn me(&self) -> Source {
        Source {
            node: self.place.node,
            boot: self.place.boot,
        }
    }

    pub(super) fn is_me(&self, addressee: &Addressee) -> bool {
        addressee.node == self.place.node && addressee.boot == self.place.boot
    }

    // What the links and the recipients call.

    /// Takes in a copy from a peer, or hands it back where that has no room for it.
    /// The error says what is wrong with it, so that the link has to end.
    pub(crate) fn arrived(
        &self,
        lane: &Arc<Lane>,
        broadcast: proto::Broadcast,
        room: &PeerRoom,
    ) -> Result<(), &'static str> {
        if broadcast.message.len() > LARGEST {
            return Err("a broadcast that is too large");
        }
        let now = Instant::now();
        let (copy, size) = (broadcast.copy, size_of(&broadcast));
        let (mut letter, addressees) =
            Letter::read(broadcast, now).ok_or("broadcasts that make no sense")?;
        let origin = letter.origin;
        let mut state = self.state();
        let arrived = state.arrived.entry((place_of(lane), origin)).or_default();
        if *arrived >= MOST_ARRIVED {
            return Err("more broadcasts than may be under way");
        }
        *arrived += 1;
        let in_time = letter.deadline.at() > now;
        let foreign = lane.label != self.place.label || origin == self.me();
        let welcome = !state.ended && !foreign && in_time;
        let Some(mut taken) = welcome.then(|| room.try_take(size)).flatten() else {
            let mut errand = Errand::of_copy(Arc::new(letter), lane.clone(), copy, now);
            if let Answer::Parent { late, .. } = &mut errand.answer {
                late.extend(addressees.iter().map(|addressee| addressee.node));
            }
            let id = state.begin(errand);
            self.settle(&mut state, id);
            self.done(state);
            return Ok(());
        };
        let (here, others): (Vec<_>, Vec<_>) = addressees
            .into_iter()
            .partition(|addressee| self.is_me(addressee));
        if !here.is_empty() {
            let inflow = state.inflows.entry(origin);
            let inflow = inflow.or_insert_with(|| Inflow::new(now));
            inflow.keep(&mut taken);
        }
        letter.room = Some(taken);
        let letter = Arc::new(letter);
        let errand = Errand::of_copy(letter.clone(), lane.clone(), copy, now);
        self.note(&mut state, errand.due());
        let id = state.begin(errand);
        if let Some(addressee) = here.first()
            && let Some(inflow) = state.inflows.get_mut(&origin)
        {
            let known = inflow.take_in(&letter, addressee.previous, id);
            self.note(&mut state, letter.patience.min(letter.deadline.at()));
            if let Some(errand) = state.errands.get_mut(&id) {
                errand.here = true;
                if let Some(outcome) = known {
                    errand.heard(outcome);
                }
            }
            self.hand_over(&mut state, origin);
        }
        self.plan(&mut state, id, others);
        self.settle(&mut state, id);
        self.done(state);
        Ok(())
    }

    /// Takes in what a peer answers for a copy. The error says what is wrong
    /// with it.
    pub(crate) fn confirmed(
        &self,
        link: &Link,
        answer: proto::Confirmation,
    ) -> Result<(), &'static str> {
        let mut state = self.state();
        let known = state.copies.get_mut(&answer.copy);
        let Some(copy) = known.filter(|copy| std::ptr::eq(&*copy.link, link)) else {
            // It was given up when an earlier stream broke.
            return Ok(());
        };
        let id = copy.errand;
        let mut part = copy.part.clone();
        let mut returned = Vec::with_capacity(answer.returned.len());
        for node in &answer.returned {
            let mut nodes = part.iter().map(|addressee| addressee.node.get());
            let position = nodes.position(|other| other == *node);
            let position = position.ok_or("an answer for somebody else")?;
            returned.push(part.swap_remove(position));
        }
        if answer.confirmed.saturating_add(answer.missed) > part.len() as u64 {
            return Err("an answer for more than there are");
        }
        copy.part = part;
        let seen_to = answer.confirmed + answer.missed == copy.part.len() as u64;
        let reached: Vec<Addressee> = match answer.done && seen_to {
            true => copy.part.clone(),
            false => Vec::new(),
        };
        if answer.done {
            state.forget(answer.copy);
            if let Some(errand) = state.errands.get_mut(&id) {
                errand.copies -= 1;
                errand.tally.confirmed += answer.confirmed;
                errand.tally.missed += answer.missed;
            }
        }
        let peer = link.peer();
        let gone_round = |far: &NodeId, way: &mut NodeId| {
            *way != peer || !returned.iter().any(|addressee| addressee.node == *far)
        };
        state.ways_round.retain(|far, way| gone_round(far, way));
        // Who hands itself back has a reason: it is not asked again at once.
        let (late, returned) = returned
            .into_iter()
            .partition(|addressee| answer.late || addressee.node == peer);
        self.put_off(&mut state, id, late);
        self.plan(&mut state, id, returned);
        self.settle(&mut state, id);
        for Addressee { node, .. } in reached {
            let route = state.routes.get(&node);
            let far = node != peer && route.is_some_and(|route| !route.link.is_up());
            if far && state.ways_round.insert(node, peer) != Some(peer) {
                self.try_again(&mut state, |addressee| addressee.node == node);
            }
        }
        self.done(state);
        Ok(())
    }

    /// A peer has opened a link anew.
    pub(crate) fn attached(&self) {
        self.state().tidy();
    }

    /// The link is up.
    pub(crate) fn up(&self, link: &Link) {
        let mut state = self.state();
        state.ways_round.remove(&link.peer());
        self.try_again(&mut state, |addressee| addressee.node == link.peer());
        self.done(state);
    }

    /// The link broke: what the peer saw to and has not answered is seen to
    /// from here.
    pub(crate) fn broken(&self, link: &Link) {
        let mut state = self.state();
        // In the order in which they were passed on.
        let copies = state.copies.iter();
        let lost = copies.filter(|(_, copy)| std::ptr::eq(&*copy.link, link));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        for number in lost {
            let Some(copy) = state.forget(number) else {
                continue;
            };
            let id = copy.errand;
            if let Some(errand) = state.errands.get_mut(&id) {
                errand.copies -= 1;
                self.plan(&mut state, id, copy.part);
                self.settle(&mut state, id);
            }
        }
        self.done(state);
    }

    /// The recipients of this node are done with a broadcast.
    pub(super) fn heard(&self, what: Heard, outcome: Outcome) {
        let mut state = self.state();
        let errands = match what {
            Heard::Own(id) => vec![id],
            Heard::Of(origin, number) => {
                let inflow = state.inflows.get_mut(&origin);
                inflow.map_or_else(Vec::new, |inflow| inflow.heard(number, outcome))
            }
        };
        for id in errands {
            if let Some(errand) = state.errands.get_mut(&id) {
                errand.heard(outcome);
            }
            self.settle(&mut state, id);
        }
        self.done(state);
    }

    // What happens under the lock.

    /// Looks who receives by the latest view. `follow` hears of it a moment
    /// later, and whoever was told that it is agreed can rely on it.
    pub(super) fn look(&self, state: &mut State) {
        let view = self.place.agreed.borrow().clone();
        state.receivers = view.receivers.get(&self.place.namespace).cloned();
    }

    /// Hands over what of an origin may be handed over now.
    pub(super) fn hand_over(&self, state: &mut State, origin: Source) {
        let Some(inflow) = state.inflows.get_mut(&origin) else {
            return;
        };
        let hearing = |number| Hearing::new(self.this.clone(), Heard::Of(origin, number));
        while let Some((letter, hearing)) = inflow.next(hearing) {
            state.tasks.push_back(Task::HandOver(letter, hearing));
        }
    }

    /// Answers an errand as far as there is something to answer, and ends it if
    /// all of its addressees are accounted for.
    pub(super) fn settle(&self, state: &mut State, id: u64) {
        let Some(errand) = state.errands.get_mut(&id) else {
            return;
        };
        let done = errand.is_done();
        match &mut errand.answer {
            Answer::Sender { .. } if done => self.conclude(state, id),
            Answer::Sender { .. } => {}
            Answer::Parent {
                lane,
                copy,
                out_of_reach,
                late,
                ..
            } => {
                let unfinished = proto::Confirmation {
                    copy: *copy,
                    ..proto::Confirmation::default()
                };
                let final_word = proto::Confirmation {
                    confirmed: errand.tally.confirmed,
                    missed: errand.tally.missed,
                    done: true,
                    ..unfinished.clone()
                };
                let returned = take_numbers(out_of_reach);
                let (mut first, mut last) = (None, None);
                if done && late.is_empty() {
                    last = Some(proto::Confirmation {
                        returned,
                        ..final_word
                    });
                } else {
                    if !returned.is_empty() {
                        first = Some(proto::Confirmation {
                            returned,
                            ..unfinished
                        });
                    }
                    if done {
                        last = Some(proto::Confirmation {
                            returned: take_numbers(late),
                            late: true,
                            ..final_word
                        });
                    }
                }
                for answer in first.into_iter().chain(last) {
                    lane.confirm(answer);
                }
            }
        }
        if done {
            state.end(id);
        }
    }

    /// Answers an errand for a peer with what is known by now, and ends it. The
    /// addressees that have not answered are handed back.
    pub(super) fn hand_back(&self, state: &mut State, id: u64, others: Vec<NodeId>) {
        let me = self.place.node;
        let Some(errand) = state.errands.get_mut(&id) else {
            return;
        };
        if let Answer::Parent { late, .. } = &mut errand.answer {
            late.extend(others);
            late.extend(errand.here.then_some(me));
        }
        errand.here = false;
        errand.copies = 0;
        self.settle(state, id);
    }

    /// Sees to it that `expire` is called by then.
    pub(super) fn note(&self, state: &mut State, instant: Instant) {
        state.alarm.set(instant, &self.this, Self::expire);
    }

    /// Ends a call: starts what has become possible, and does what has to be
    /// done without the lock.
    pub(super) fn done<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        self.pump(&mut state);
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
        // Whoever is at it does the rest as well, so that all is done in turn.
        while !state.working
            && let Some(task) = state.tasks.pop_front()
        {
            state.working = true;
            drop(state);
            let at_work = AtWork(self);
            self.work(task);
            drop(at_work);
            state = self.state();
        }
    }

    fn work(&self, task: Task) {
        let audience = &self.place.audience;
        match task {
            Task::HandOver(letter, hearing) => {
                let limit = self.limit(letter.lossy, letter.message.len());
                audience.hand_over(&letter.message, limit, hearing);
            }
            Task::HandOverOwn(hand_over, limit, hearing) => hand_over(limit, hearing),
            Task::Retract(over) => {
                audience.retract();
                drop(over);
            }
            Task::Drop(copies) => drop(copies),
            Task::Tell(waiter, outcome) => self.tell(waiter, outcome),
        }
    }

    /// How many messages a recipient may have before it when it gets a lossy
    /// broadcast of this size. Half a window of them, in messages and in bytes, so
    /// that recipients with more room do not stop the sender.
    pub(super) fn limit(&self, lossy: bool, size: usize) -> Option<usize> {
        let messages = self.place.window.div_ceil(2);
        let of_this_size = self.place.window_bytes / 2 / size.max(1);
        lossy.then(|| messages.min(of_this_size.max(1)))
    }
}

impl State {
    pub(super) fn add(&mut self, task: Task) {
        self.tasks.push_back(task);
    }

    /// Takes an errand in and gives it its number.
    pub(super) fn begin(&mut self, errand: Errand) -> u64 {
        let id = self.next;
        self.next += 1;
        self.errands.insert(id, errand);
        id
    }

    /// Forgets an errand. What peers have of it, they have.
    pub(super) fn end(&mut self, id: u64) {
        let Some(errand) = self.errands.remove(&id) else {
            return;
        };
        if let Answer::Parent { lane, .. } = &errand.answer {
            let key = (place_of(lane), errand.letter.origin);
            less(&mut self.arrived, key);
        }
    }

    /// Forgets a copy, since it was answered or its link broke.
    fn forget(&mut self, number: u64) -> Option<Copy> {
        let copy = self.copies.remove(&number)?;
        less(&mut self.passed, (copy.link.peer(), copy.letter.origin));
        Some(copy)
    }

    /// Gives up the errands of links that have ended: their peers have given
    /// the copies to others.
    pub(super) fn tidy(&mut self) {
        let over: Vec<u64> = self
            .errands
            .iter()
            .filter(
                |(_, errand)| matches!(&errand.answer, Answer::Parent { lane, .. } if lane.is_closed()),
            )
            .map(|(id, _)| *id)
            .collect();
        for id in over {
            self.end(id);
        }
    }
}

/// Somebody is at work until this is dropped, be it by a panic of a user's code.
struct AtWork<'a>(&'a Relay);

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.state().working = false;
    }
}

impl Timekeeper for Relay {
    fn moved(&self, deadline: Instant) {
        let mut state = self.state();
        self.note(&mut state, deadline);
    }
}

/// Tells one lane from another while it lives.
fn place_of(lane: &Arc<Lane>) -> usize {
    Arc::as_ptr(lane).addr()
}

fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

fn take_numbers(nodes: &mut Vec<NodeId>) -> Vec<u64> {
    nodes.drain(..).map(NodeId::get).collect()
}
