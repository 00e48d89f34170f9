//! What a stream has in flight.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Waker},
    time::Instant,
};

use crate::{latency::Latencies, tasks::Percentiles};

/// The messages that have not been answered, in order. Shared between the
/// writing and the reading end of a stream, and between streams where there is
/// more than one receiver.
#[derive(Clone)]
pub(super) struct Window {
    shared: Arc<Mutex<Shared>>,
}

struct Shared {
    in_flight: usize,
    most: usize,
    writers: Vec<Waker>,
    latencies: Latencies,
}

/// What one stream has in flight: when each was sent.
#[derive(Clone, Default)]
pub(super) struct Unanswered(Arc<Mutex<VecDeque<Instant>>>);

impl Unanswered {
    fn sent(&self) -> MutexGuard<'_, VecDeque<Instant>> {
        self.0.lock().expect("no panic while messages are counted")
    }
}

impl Window {
    pub(super) fn new(most: usize) -> Self {
        let shared = Shared {
            in_flight: 0,
            most,
            writers: Vec::new(),
            latencies: Latencies::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared
            .lock()
            .expect("no panic while messages are counted")
    }

    /// How many more may be sent. If none, the task is woken when some may.
    pub(super) fn room(&self, cx: &Context<'_>) -> usize {
        let mut shared = self.shared();
        let room = shared.most - shared.in_flight;
        if room == 0 {
            shared.writers.push(cx.waker().clone());
        }
        room
    }

    pub(super) fn sent(&self, unanswered: &Unanswered, messages: usize) {
        self.shared().in_flight += messages;
        let now = Instant::now();
        unanswered.sent().extend((0..messages).map(|_| now));
    }

    pub(super) fn answered(&self, unanswered: &Unanswered, messages: usize) {
        let mut shared = self.shared();
        let now = Instant::now();
        shared.in_flight -= messages;
        for sent in unanswered.sent().drain(..messages) {
            shared.latencies.record(now - sent);
        }
        for writer in shared.writers.drain(..) {
            writer.wake();
        }
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        self.shared().latencies.percentiles()
    }
}
