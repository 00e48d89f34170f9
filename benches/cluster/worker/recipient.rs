//! The actor that receives.

use std::{thread::sleep, time::Duration};

use actix::{Actor, Addr, Context, Handler};
use dchan::{Namespace, Registration};
use tokio::sync::oneshot;

use crate::{
    item::Item,
    ledger::{SharedLedger, open},
};

pub(super) struct Recipient {
    ledger: SharedLedger,
    /// How long each message keeps the thread busy.
    pause: Duration,
    /// What it registers for when it starts, and who waits for that.
    items: Option<(Namespace<Item>, oneshot::Sender<Registration>)>,
}

impl Recipient {
    /// Starts one that only its address leads to.
    pub(super) fn alone(ledger: SharedLedger) -> Addr<Self> {
        Self {
            ledger,
            pause: Duration::ZERO,
            items: None,
        }
        .start()
    }

    /// Starts one that receives a namespace, and waits until that is agreed.
    pub(super) async fn of(items: Namespace<Item>, ledger: SharedLedger, pause: Duration) {
        let (sender, registered) = oneshot::channel();
        Self {
            ledger,
            pause,
            items: Some((items, sender)),
        }
        .start();
        let registration = registered.await.expect("it registers when it starts");
        registration.ready().await.unwrap();
        registration.detach();
    }
}

impl Actor for Recipient {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some((items, registered)) = self.items.take() {
            // Where nobody waits any more, the registration ends.
            let _ = registered.send(items.register::<Self>(ctx));
        }
    }
}

impl Handler<Item> for Recipient {
    type Result = u64;

    fn handle(&mut self, item: Item, _: &mut Self::Context) -> u64 {
        open(&self.ledger).note(&item);
        if !self.pause.is_zero() {
            // As a handler that works would, it keeps the thread.
            sleep(self.pause);
        }
        item.id
    }
}
