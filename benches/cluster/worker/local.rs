//! The same actors in one process, on one arbiter: on two, each message wakes
//! a thread.

use std::{cell::Cell, time::Instant};

use actix::Addr;
use tokio::task::yield_now;

use super::{in_flight, recipient::Recipient};
use crate::{
    item::{Item, Stock},
    ledger::{SharedLedger, open},
    tasks::{Kind, Load, Orders, Sent},
};

/// How many messages may wait in the mailboxes, which have no bound of their
/// own for `do_send`.
const WAITING: u64 = 1024;

pub(super) struct Local {
    recipients: Vec<Addr<Recipient>>,
    turn: Cell<usize>,
    ledger: SharedLedger,
}

impl Local {
    pub(super) fn start(orders: &Orders, ledger: &SharedLedger) -> Self {
        let recipients = orders.addresses[1..].iter();
        let recipients = recipients.map(|_| Recipient::alone(ledger.clone()));
        Self {
            recipients: recipients.collect(),
            turn: Cell::new(0),
            ledger: ledger.clone(),
        }
    }

    fn next(&self) -> &Addr<Recipient> {
        let turn = self.turn.get();
        self.turn.set(turn + 1);
        &self.recipients[turn % self.recipients.len()]
    }

    pub(super) async fn send(&self, load: Load, stock: &Stock) -> Sent {
        let until = Instant::now() + load.lasts;
        if load.kind == Kind::Flood {
            return self.flood(until, stock).await;
        }
        let send = |item: Item| {
            let (id, request) = (item.id, self.next().send(item));
            async move { request.await == Ok(id) }
        };
        in_flight::keep(load.in_flight, until, stock, send).await
    }

    async fn flood(&self, until: Instant, stock: &Stock) -> Sent {
        let mut messages = 0;
        while Instant::now() < until {
            for _ in 0..WAITING {
                self.next().do_send(stock.item());
            }
            messages += WAITING;
            while open(&self.ledger).received < stock.taken() {
                yield_now().await;
            }
        }
        Sent {
            messages,
            ..Sent::default()
        }
    }
}
