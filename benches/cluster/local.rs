//! The same actors in one process, on one arbiter: on two, each message wakes
//! a thread.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use actix::{Actor, Addr};

use crate::{
    in_flight,
    item::{Item, SharedLedger, Stock, open},
    options::Mode,
    orders::{Orders, Sent},
    recipient::Recipient,
};

/// How many messages may wait in the mailboxes, which have no bound of their
/// own for `do_send`.
const WAITING: u64 = 1024;

pub(crate) struct Local {
    recipients: Vec<Addr<Recipient>>,
    turn: Cell<usize>,
    ledger: SharedLedger,
    mode: Mode,
    in_flight: usize,
    stock: Stock,
}

impl Local {
    pub(crate) fn start(orders: &Orders, ledger: &SharedLedger) -> Self {
        let recipients = orders.addresses[1..].iter().map(|_| {
            Recipient {
                items: None,
                ledger: ledger.clone(),
                pause: Duration::ZERO,
            }
            .start()
        });
        Self {
            recipients: recipients.collect(),
            turn: Cell::new(0),
            ledger: ledger.clone(),
            mode: orders.mode,
            in_flight: orders.in_flight,
            stock: Stock::new(orders.size),
        }
    }

    fn next(&self) -> &Addr<Recipient> {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        &self.recipients[turn % self.recipients.len()]
    }

    pub(crate) async fn send(&self, until: Instant) -> Sent {
        if self.mode == Mode::Flood {
            return self.flood(until).await;
        }
        let send = |item: Item| {
            let (id, request) = (item.id, self.next().send(item));
            async move { request.await == Ok(id) }
        };
        in_flight::keep(self.in_flight, until, &self.stock, send).await
    }

    async fn flood(&self, until: Instant) -> Sent {
        while Instant::now() < until {
            for _ in 0..WAITING {
                self.next().do_send(self.stock.item());
            }
            while open(&self.ledger).received < self.stock.taken() {
                tokio::task::yield_now().await;
            }
        }
        Sent {
            sent: self.stock.taken(),
            ..Sent::default()
        }
    }
}
