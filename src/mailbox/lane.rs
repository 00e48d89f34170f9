//! The messages that are under way to one receiver.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;

use super::{feedback::LaneEnd, parcel::Parcel};
use crate::{
    delivery::Waiter,
    link::{INLINE_BYTES, Link, Load, Sending},
    message::{Body, RemoteMessage},
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
    /// Accepted, and not yet answered.
    pub(super) asking: BTreeMap<u64, Parcel<M>>,
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
    pub(super) lost: Vec<Parcel<M>>,
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
        let under_way = self.under_way.iter().filter(|parcel| !parcel.failed);
        under_way.count() + self.asking.len()
    }

    /// The number of the next message on this lane.
    pub(super) fn next(&self) -> u64 {
        self.under_way.end()
    }

    /// Counts a message that has been handed over as the next one.
    pub(super) fn send_off(&mut self, parcel: Parcel<M>) {
        self.under_way.push(parcel);
        match &self.route {
            Route::Local => self.unsent = self.next(),
            Route::Remote { .. } => self.call(),
        }
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
        if let Some(sequence) = self.given_up.take() {
            return Some(Load::GivenUp { sequence });
        }
        let load = match self.next_unsent() {
            Some((_, body)) if body.len() > INLINE_BYTES => self.take_chunk(chunk),
            Some(_) => Some(self.take_messages(room)),
            None => None,
        };
        self.called = load.is_some();
        load
    }

    /// The first message that has not been taken: whether its sender asks, and
    /// its body.
    fn next_unsent(&mut self) -> Option<(bool, Bytes)> {
        while self.unsent < self.next() {
            if let Some(parcel) = self.under_way.get(self.unsent)
                && let Some(Body::Encoded(body)) = &parcel.body
            {
                return Some((parcel.waiter.asks(), body.clone()));
            }
            // It was given up in the meantime.
            self.unsent += 1;
        }
        None
    }

    fn take_messages(&mut self, room: usize) -> Load {
        let (mut first, mut ask, mut bytes) = (self.unsent, false, 0);
        let mut messages = Vec::new();
        while let Some((asks, body)) = self.next_unsent() {
            bytes += body.len();
            let empty = messages.is_empty();
            if empty {
                (first, ask) = (self.unsent, asks);
            } else if bytes > room || asks != ask || self.unsent != first + messages.len() as u64 {
                break;
            }
            messages.push(body);
            self.unsent += 1;
        }
        Load::Messages {
            first,
            ask,
            messages,
        }
    }

    fn take_chunk(&mut self, room: usize) -> Option<Load> {
        let waits = self.transfer.as_ref().is_some_and(Sending::waits);
        if room == 0 && !waits {
            return Some(Load::Later);
        }
        let (ask, body) = self.next_unsent()?;
        let transfer = self.transfer.get_or_insert_with(|| Sending::new(body));
        let (offset, data) = transfer.next(room)?;
        let (sequence, size, sent) = (self.unsent, transfer.size(), transfer.sent());
        if transfer.is_done() {
            self.transfer = None;
            self.unsent += 1;
        }
        if let Some(ticket) = self.under_way.get(sequence).and_then(|p| p.ticket.as_ref()) {
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

    /// These are under way no more, as far as they have been sent at all.
    pub(super) fn settle(
        &mut self,
        sequences: Range<u64>,
        mut each: impl FnMut(&mut Self, u64, Parcel<M>),
    ) {
        let sent = self.unsent + u64::from(self.transfer.is_some());
        let sequences = sequences.start..sequences.end.min(sent);
        if sequences.contains(&self.unsent) {
            self.transfer = None;
        }
        for (sequence, parcel) in self.under_way.remove_overtaken(sequences.clone()) {
            each(self, sequence, parcel);
        }
        for sequence in self.under_way.first.max(sequences.start)..sequences.end {
            if let Some(parcel) = self.under_way.remove(sequence) {
                each(self, sequence, parcel);
            }
        }
        self.under_way.shorten(self.unsent);
    }

    /// Takes back, or only looks at, those whose time is up: `late` says which.
    /// Those that have not left this node are under way no more.
    pub(super) fn expire(&mut self, mut late: impl FnMut(&Parcel<M>) -> bool) -> Vec<Parcel<M>> {
        let mut unsent = Vec::new();
        for sequence in self.unsent..self.next() {
            if self.under_way.get(sequence).is_some_and(&mut late) {
                unsent.extend(self.under_way.remove(sequence));
                if sequence == self.unsent && self.transfer.take().is_some() {
                    self.given_up = Some(sequence);
                    self.call();
                }
            }
        }
        unsent
    }

    /// Those that have left this node.
    pub(super) fn sent_mut(&mut self) -> impl Iterator<Item = &mut Parcel<M>> {
        self.under_way.up_to_mut(self.unsent)
    }

    /// A recipient has the message.
    pub(super) fn accepted(&mut self, sequence: u64, mut parcel: Parcel<M>, traffic: &mut Traffic) {
        match parcel.waiter {
            _ if parcel.failed => {}
            Waiter::None => traffic.accepted += 1,
            Waiter::Accepted(waiter) => {
                traffic.accepted += 1;
                let _ = waiter.send(Ok(self.node));
            }
            Waiter::Handled(_) => {
                parcel.body = None;
                self.asking.insert(sequence, parcel);
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
        let first_unsent = self.unsent;
        self.unsent = self.next();
        let (mut lost, unsent) = self.under_way.split(first_unsent);
        lost.extend(std::mem::take(&mut self.asking).into_values());
        Cut { unsent, lost }
    }
}

/// Messages by their numbers. Almost always they are settled in the order of
/// these, so they stand in a row.
struct UnderWay<M: RemoteMessage> {
    /// The number of the first one in the row.
    first: u64,
    /// `None` where one is settled.
    row: VecDeque<Option<Parcel<M>>>,
    /// Those that so many others have overtaken that the row goes on without
    /// them.
    overtaken: BTreeMap<u64, Parcel<M>>,
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
            count: 0,
            bytes: 0,
        }
    }

    fn end(&self) -> u64 {
        self.first + self.row.len() as u64
    }

    fn push(&mut self, parcel: Parcel<M>) {
        self.count += 1;
        self.bytes += parcel.size;
        self.row.push_back(Some(parcel));
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.first)?).ok()
    }

    /// One in the row.
    fn get(&self, sequence: u64) -> Option<&Parcel<M>> {
        self.row.get(self.index(sequence)?)?.as_ref()
    }

    /// Takes one out of the row.
    fn remove(&mut self, sequence: u64) -> Option<Parcel<M>> {
        let index = self.index(sequence)?;
        let parcel = self.row.get_mut(index)?.take()?;
        self.count -= 1;
        self.bytes -= parcel.size;
        Some(parcel)
    }

    /// Lets the row begin later, where it is long for what is in it: with the
    /// first one that is not settled, or with a number below `end`.
    fn shorten(&mut self, end: u64) {
        while let Some(first) = self.row.front() {
            let long = self.row.len() > 2 * self.count + GAPS && self.first < end;
            if first.is_some() && !long {
                break;
            }
            if let Some(Some(parcel)) = self.row.pop_front() {
                self.overtaken.insert(self.first, parcel);
            }
            self.first += 1;
        }
    }

    fn remove_overtaken(&mut self, sequences: Range<u64>) -> Vec<(u64, Parcel<M>)> {
        if self.overtaken.is_empty() || sequences.is_empty() {
            return Vec::new();
        }
        let removed: Vec<_> = self.overtaken.extract_if(sequences, |_, _| true).collect();
        self.count -= removed.len();
        self.bytes -= removed.iter().map(|(_, parcel)| parcel.size).sum::<usize>();
        removed
    }

    fn iter(&self) -> impl Iterator<Item = &Parcel<M>> {
        self.overtaken.values().chain(self.row.iter().flatten())
    }

    /// Those with a number below this one.
    fn up_to_mut(&mut self, end: u64) -> impl Iterator<Item = &mut Parcel<M>> {
        let count = self.index(end).unwrap_or(0);
        let row = self.row.iter_mut().take(count).flatten();
        self.overtaken.values_mut().chain(row)
    }

    /// Takes all out: those with a number below this one, and the others.
    fn split(&mut self, sequence: u64) -> (Vec<Parcel<M>>, Vec<Parcel<M>>) {
        let index = self.index(sequence).unwrap_or(0).min(self.row.len());
        let end = self.end();
        let after = self.row.split_off(index).into_iter().flatten().collect();
        let before = std::mem::take(&mut self.row).into_iter().flatten();
        let overtaken = std::mem::take(&mut self.overtaken).into_values();
        let before = overtaken.chain(before).collect();
        *self = Self::new(end);
        (before, after)
    }
}
