//! The messages that are under way to one receiver.

use std::{
    collections::{BTreeMap, VecDeque},
    mem::take,
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    feedback::LaneEnd,
    gathering::{GATHERED_BYTES, Gathering},
    parcel::{Encoded, Parcel, Record},
};
use crate::{
    delivery::Waiter,
    link::{INLINE_BYTES, Link, Load, OVERHEAD, Sending},
    message::{Body, RemoteMessage},
    proto::run::{Part, Run, size},
    status::Traffic,
    view::NodeId,
};

pub(super) struct Lane<M: RemoteMessage> {
    pub(super) node: NodeId,
    pub(super) route: Route,
    /// Where the receiver's answers come in.
    pub(super) end: Arc<LaneEnd<M>>,
    /// Whether the node is a receiver in the view.
    pub(super) agreed: bool,
    /// How many may be under way. Nought while the link is down.
    pub(super) window: u32,
    under_way: UnderWay<M>,
    /// The number of the first message that the link has not taken, or not
    /// wholly.
    unsent: u64,
    /// Of that message, if it is a large one of which some has been taken.
    transfer: Option<Sending>,
    /// The number of a large message that was given up, until its receiver is
    /// told.
    given_up: Option<u64>,
    /// Whether the link will ask for more by itself.
    called: bool,
    /// The time that messages share, and how many more of them.
    now: Option<(Instant, usize)>,
    /// Accepted, and not yet answered.
    pub(super) asking: BTreeMap<u64, Record<M>>,
}

pub(super) enum Route {
    /// To the recipients of this node.
    Local,
    Remote {
        link: Arc<Link>,
        channel: u32,
    },
}

/// What was on a lane when it was cut.
pub(super) struct Cut<M: RemoteMessage> {
    pub(super) unsent: Vec<Parcel<M>>,
    pub(super) lost: Vec<Record<M>>,
}

/// A message that has been handed over.
pub(super) struct Entry<M: RemoteMessage> {
    pub(super) record: Record<M>,
    /// Encoded, for another node, unless it is among those that are gathered.
    body: Option<Bytes>,
    /// Where it is among these, or would be.
    position: u64,
}

impl<M: RemoteMessage> Lane<M> {
    /// A lane whose first message has the number `next`.
    pub(super) fn new(node: NodeId, route: Route, end: Arc<LaneEnd<M>>, next: u64) -> Self {
        Self {
            node,
            route,
            end,
            agreed: false,
            window: 0,
            under_way: UnderWay::new(next),
            unsent: next,
            transfer: None,
            given_up: None,
            called: false,
            now: None,
            asking: BTreeMap::new(),
        }
    }

    pub(super) fn is_ready(&self, window_bytes: usize) -> bool {
        self.agreed
            && self.under_way.count < self.window as usize
            && self.under_way.bytes < window_bytes
    }

    pub(super) fn is_local(&self) -> bool {
        matches!(self.route, Route::Local)
    }

    /// Whether it leads over this link.
    pub(super) fn is_over(&self, over: &Arc<Link>) -> bool {
        matches!(&self.route, Route::Remote { link, .. } if Arc::ptr_eq(link, over))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.under_way.count == 0 && self.asking.is_empty() && self.given_up.is_none()
    }

    /// How many messages have been handed over and have no outcome.
    pub(super) fn pending(&self) -> usize {
        let under_way = self.under_way.iter().filter(|entry| !entry.record.failed);
        under_way.count() + self.asking.len()
    }

    /// The number of the next message on this lane.
    pub(super) fn next(&self) -> u64 {
        self.under_way.end()
    }

    /// Takes a message as the next one, with its encoded form, unless a recipient of
    /// this node has it already.
    pub(super) fn send_off(&mut self, record: Record<M>, encoded: Option<Bytes>) {
        match encoded {
            Some(small) if small.len() <= GATHERED_BYTES => self.under_way.gather(record, &small),
            encoded => self.under_way.push(record, encoded),
        }
        match &self.route {
            Route::Local => self.unsent = self.next(),
            Route::Remote { .. } => self.call(),
        }
    }

    /// Takes one as the next that has just been encoded. Inlined, as what adds it
    /// is, so that what is known of the message is put together where it stays: to
    /// copy it there takes longer than all else here.
    #[inline(always)]
    pub(super) fn send_fresh(&mut self, record: Record<M>, encoded: &mut Encoded) {
        match encoded {
            Encoded::Small(fresh) => self.under_way.gather(record, fresh),
            Encoded::Large(bytes) => self.under_way.push(record, Some(take(bytes))),
        }
        self.call();
    }

    /// The time, or what it was for one of the last messages: to look at the clock
    /// takes longer than the lock. So those that the link takes together share it, up
    /// to so many. Where it takes nothing for long, their deadline may be early by as
    /// much.
    pub(super) fn now(&mut self) -> Instant {
        const SHARED_BY: usize = 16;
        if let Some((now, left @ 1..)) = &mut self.now {
            *left -= 1;
            return *now;
        }
        let now = Instant::now();
        self.now = Some((now, SHARED_BY - 1));
        now
    }

    /// Sees to it that the link asks for what there is.
    fn call(&mut self) {
        if let Route::Remote { link, channel } = &self.route
            && !std::mem::replace(&mut self.called, true)
        {
            link.call(*channel);
        }
    }

    /// What the link is to write next: messages of up to `room` bytes, or one;
    /// or of a large one, up to `chunk` bytes.
    pub(super) fn take(&mut self, room: usize, chunk: usize) -> Option<Load> {
        self.now = None;
        if let Some(sequence) = self.given_up.take() {
            return Some(Load::GivenUp { sequence });
        }
        // Some were given up in the meantime.
        while self.unsent < self.next() && self.under_way.get(self.unsent).is_none() {
            self.unsent += 1;
        }
        let load = match self.under_way.get(self.unsent) {
            Some(entry) if entry.record.size > INLINE_BYTES => self.take_chunk(chunk),
            Some(_) => Some(self.take_runs(room)),
            None => None,
        };
        self.called = load.is_some();
        load
    }

    fn take_runs(&mut self, room: usize) -> Load {
        let mut drafts: Vec<Draft> = Vec::new();
        let (mut bytes, mut full) = (0, false);
        for (sequence, entry) in self.under_way.since(self.unsent) {
            if entry.record.size > INLINE_BYTES {
                break;
            }
            let empty = drafts.is_empty();
            let last = drafts.last_mut();
            let last = last.filter(|draft| draft.goes_on_with(sequence, entry));
            bytes += size(entry.record.size) + if last.is_none() { OVERHEAD } else { 0 };
            full = bytes > room && !empty;
            if full {
                break;
            }
            match last {
                Some(draft) => draft.add(entry),
                None => drafts.push(Draft::of(sequence, entry)),
            }
            self.unsent = sequence + 1;
        }
        let gathering = &mut self.under_way.gathering;
        let runs = drafts.into_iter().map(|draft| draft.finish(gathering));
        let runs = runs.collect();
        Load::Messages {
            runs,
            unsent: self.unsent,
            full,
        }
    }

    fn take_chunk(&mut self, room: usize) -> Option<Load> {
        let waits = self.transfer.as_ref().is_some_and(Sending::waits);
        if room == 0 && !waits {
            return Some(Load::Later);
        }
        let Entry { record, body, .. } = self.under_way.get(self.unsent)?;
        let body = body.as_ref()?;
        let ask = record.waiter.asks();
        let transfer = self
            .transfer
            .get_or_insert_with(|| Sending::new(body.clone()));
        let (offset, data) = transfer.next(room)?;
        let (sequence, size, sent) = (self.unsent, transfer.size(), transfer.sent());
        if transfer.is_done() {
            self.transfer = None;
            self.unsent += 1;
        }
        if let Some(ticket) = &record.ticket {
            ticket.transferred(sent, size);
        }
        Some(Load::Chunk {
            sequence,
            ask,
            size,
            offset,
            data,
        })
    }

    /// The receiver lets a large message go on.
    pub(super) fn proceed(&mut self, sequence: u64) {
        if sequence == self.unsent
            && let Some(transfer) = &mut self.transfer
        {
            transfer.proceed();
            self.call();
        }
    }

    /// What is to be offered again of a message that was handed over, if anything
    /// is.
    pub(super) fn take_back(&self, entry: Entry<M>) -> Option<Parcel<M>> {
        self.under_way.take_back(entry)
    }

    /// These are under way no more, as far as they have been sent at all.
    pub(super) fn settle(
        &mut self,
        sequences: Range<u64>,
        mut each: impl FnMut(&mut Self, u64, Entry<M>),
    ) {
        let sent = self.unsent + u64::from(self.transfer.is_some());
        let sequences = sequences.start..sequences.end.min(sent);
        if sequences.contains(&self.unsent) {
            self.transfer = None;
        }
        for (sequence, entry) in self.under_way.remove_overtaken(sequences.clone()) {
            each(self, sequence, entry);
        }
        for sequence in self.under_way.first.max(sequences.start)..sequences.end {
            if let Some(entry) = self.under_way.remove(sequence) {
                each(self, sequence, entry);
            }
        }
        self.under_way.shorten(self.unsent);
    }

    /// Takes back, or only looks at, those whose time is up: `late` says which.
    /// Those that have not left this node are under way no more.
    pub(super) fn expire(&mut self, mut late: impl FnMut(&Record<M>) -> bool) -> Vec<Record<M>> {
        let mut unsent = Vec::new();
        for sequence in self.unsent..self.next() {
            let entry = self.under_way.get(sequence);
            if entry.is_some_and(|entry| late(&entry.record)) {
                let entry = self.under_way.remove(sequence);
                unsent.extend(entry.map(|entry| entry.record));
                if sequence == self.unsent && self.transfer.take().is_some() {
                    self.given_up = Some(sequence);
                    self.call();
                }
            }
        }
        self.under_way.shorten(self.unsent);
        unsent
    }

    /// Those that have left this node.
    pub(super) fn sent_mut(&mut self) -> impl Iterator<Item = &mut Record<M>> {
        let sent = self.under_way.up_to_mut(self.unsent);
        sent.map(|entry| &mut entry.record)
    }

    /// A recipient has the message.
    pub(super) fn accepted(&mut self, sequence: u64, entry: Entry<M>, traffic: &mut Traffic) {
        match entry.record.waiter {
            _ if entry.record.failed => {}
            Waiter::None => traffic.accepted += 1,
            Waiter::Accepted(waiter) => {
                traffic.accepted += 1;
                let _ = waiter.send(Ok(self.node));
            }
            Waiter::Handled(_) => {
                self.asking.insert(sequence, entry.record);
            }
        }
    }

    /// Ends the lane's traffic. Of what has left this node nothing more will be
    /// heard.
    pub(super) fn cut(&mut self) -> Cut<M> {
        self.window = 0;
        self.transfer = None;
        self.given_up = None;
        self.called = false;
        self.now = None;
        let first_unsent = self.unsent;
        self.unsent = self.next();
        let (lost, unsent) = self.under_way.split(first_unsent);
        let mut lost: Vec<_> = lost.into_iter().map(|entry| entry.record).collect();
        lost.extend(take(&mut self.asking).into_values());
        Cut { unsent, lost }
    }
}

/// A run that is being made.
struct Draft {
    first: u64,
    len: u64,
    ask: bool,
    parts: Vec<DraftPart>,
}

enum DraftPart {
    Message(Bytes),
    /// Between these positions.
    Gathered(Range<u64>),
}

impl Draft {
    fn of<M: RemoteMessage>(sequence: u64, entry: &Entry<M>) -> Self {
        let mut draft = Self {
            first: sequence,
            len: 0,
            ask: entry.record.waiter.asks(),
            parts: Vec::new(),
        };
        draft.add(entry);
        draft
    }

    fn goes_on_with<M: RemoteMessage>(&self, sequence: u64, entry: &Entry<M>) -> bool {
        sequence == self.first + self.len && entry.record.waiter.asks() == self.ask
    }

    fn add<M: RemoteMessage>(&mut self, entry: &Entry<M>) {
        self.len += 1;
        let end = entry.position + size(entry.record.size) as u64;
        match (&entry.body, self.parts.last_mut()) {
            (Some(body), _) => self.parts.push(DraftPart::Message(body.clone())),
            (None, Some(DraftPart::Gathered(positions))) => positions.end = end,
            (None, _) => self.parts.push(DraftPart::Gathered(entry.position..end)),
        }
    }

    fn finish(self, gathering: &mut Gathering) -> Run {
        let parts = self.parts.into_iter().map(|part| match part {
            DraftPart::Message(message) => Part::Message(message),
            DraftPart::Gathered(positions) => Part::Batch(gathering.take(positions)),
        });
        Run {
            first: self.first,
            ask: self.ask,
            parts: parts.collect(),
            ..Run::default()
        }
    }
}

/// Messages by their numbers. Almost always they are settled in the order of
/// these, so they stand in a row.
struct UnderWay<M: RemoteMessage> {
    /// The number of the first one in the row.
    first: u64,
    /// `None` where one is settled.
    row: VecDeque<Option<Entry<M>>>,
    /// Those that so many others have overtaken that the row goes on without
    /// them.
    overtaken: BTreeMap<u64, Entry<M>>,
    /// The bodies of those in the row that are small and go to another node.
    gathering: Gathering,
    /// How many there are, in all.
    count: usize,
    bytes: usize,
}

/// The row may be this much longer than what is in it.
const GAPS: usize = 1024;

impl<M: RemoteMessage> UnderWay<M> {
    fn new(first: u64) -> Self {
        Self {
            first,
            row: VecDeque::new(),
            overtaken: BTreeMap::new(),
            gathering: Gathering::default(),
            count: 0,
            bytes: 0,
        }
    }

    fn end(&self) -> u64 {
        self.first + self.row.len() as u64
    }

    #[inline(always)]
    fn gather(&mut self, record: Record<M>, small: &[u8]) {
        let position = self.gathering.end();
        self.gathering.push(small);
        self.add(record, None, position);
    }

    fn push(&mut self, record: Record<M>, body: Option<Bytes>) {
        self.add(record, body, self.gathering.end());
    }

    #[inline(always)]
    fn add(&mut self, record: Record<M>, body: Option<Bytes>, position: u64) {
        self.count += 1;
        self.bytes += record.size;
        self.row.push_back(Some(Entry {
            record,
            body,
            position,
        }));
    }

    /// Gives a message its body back, which it had among others.
    fn restore(&self, entry: &mut Entry<M>) {
        if entry.body.is_none() {
            entry.body = self.gathering.get(entry.position);
        }
    }

    /// What is to be offered again of a message, if anything is.
    fn take_back(&self, mut entry: Entry<M>) -> Option<Parcel<M>> {
        self.restore(&mut entry);
        let Entry { record, body, .. } = entry;
        let body = Body::Encoded(body?);
        Some(Parcel { body, record })
    }

    /// Those in the row from this number on.
    fn since(&self, sequence: u64) -> impl Iterator<Item = (u64, &Entry<M>)> {
        let skip = self.index(sequence).unwrap_or(0);
        let row = (self.first..).zip(&self.row).skip(skip);
        row.filter_map(|(sequence, entry)| Some((sequence, entry.as_ref()?)))
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.first)?).ok()
    }

    /// One in the row.
    fn get(&self, sequence: u64) -> Option<&Entry<M>> {
        self.row.get(self.index(sequence)?)?.as_ref()
    }

    /// Takes one out of the row.
    fn remove(&mut self, sequence: u64) -> Option<Entry<M>> {
        let index = self.index(sequence)?;
        let entry = self.row.get_mut(index)?.take()?;
        self.count -= 1;
        self.bytes -= entry.record.size;
        Some(entry)
    }

    /// Lets the row begin later, where it is long for what is in it: with the
    /// first one that is not settled, or with a number below `end`.
    fn shorten(&mut self, end: u64) {
        while let Some(first) = self.row.front() {
            let long = self.row.len() > 2 * self.count + GAPS && self.first < end;
            if first.is_some() && !long {
                break;
            }
            if let Some(Some(mut entry)) = self.row.pop_front() {
                self.restore(&mut entry);
                self.overtaken.insert(self.first, entry);
            }
            self.first += 1;
        }
        match self.row.front().and_then(Option::as_ref) {
            Some(first) => self.gathering.forget(first.position),
            None => self.gathering.clear(),
        }
    }

    fn remove_overtaken(&mut self, sequences: Range<u64>) -> Vec<(u64, Entry<M>)> {
        if self.overtaken.is_empty() || sequences.is_empty() {
            return Vec::new();
        }
        let removed: Vec<_> = self.overtaken.extract_if(sequences, |_, _| true).collect();
        self.count -= removed.len();
        self.bytes -= removed
            .iter()
            .map(|(_, entry)| entry.record.size)
            .sum::<usize>();
        removed
    }

    fn iter(&self) -> impl Iterator<Item = &Entry<M>> {
        self.overtaken.values().chain(self.row.iter().flatten())
    }

    /// Those with a number below this one.
    fn up_to_mut(&mut self, end: u64) -> impl Iterator<Item = &mut Entry<M>> {
        let count = self.index(end).unwrap_or(0);
        let row = self.row.iter_mut().take(count).flatten();
        self.overtaken.values_mut().chain(row)
    }

    /// Takes all out: those with a number below this one, and the others.
    fn split(&mut self, sequence: u64) -> (Vec<Entry<M>>, Vec<Parcel<M>>) {
        let index = self.index(sequence).unwrap_or(0).min(self.row.len());
        let end = self.end();
        let after = self.row.split_off(index).into_iter().flatten();
        let after = after.filter_map(|entry| self.take_back(entry)).collect();
        let before = take(&mut self.row).into_iter().flatten();
        let overtaken = take(&mut self.overtaken).into_values();
        let before = overtaken.chain(before).collect();
        *self = Self::new(end);
        (before, after)
    }
}
