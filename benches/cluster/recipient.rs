//! The actor that receives.

use std::{thread::sleep, time::Duration};

use actix::{Actor, Context, Handler};
use dchan::Namespace;

use crate::item::{Item, SharedLedger, open};

pub(crate) struct Recipient {
    /// None where the sender knows its address.
    pub(crate) items: Option<Namespace<Item>>,
    pub(crate) ledger: SharedLedger,
    /// How long each message keeps the thread busy.
    pub(crate) pause: Duration,
}

impl Actor for Recipient {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        if let Some(items) = &self.items {
            items.register::<Self>(ctx).detach();
        }
    }
}

impl Handler<Item> for Recipient {
    type Result = u64;

    fn handle(&mut self, item: Item, _: &mut Self::Context) -> u64 {
        open(&self.ledger).note(&item);
        if !self.pause.is_zero() {
            sleep(self.pause);
        }
        item.id
    }
}
