//! How an actor or a task of the crate's user sends.

use std::{
    future::poll_fn,
    pin::Pin,
    time::{Duration, Instant},
};

use dchan::{Namespace, SendError};
use futures_util::Sink;
use tokio::task::yield_now;

use super::in_flight;
use crate::{
    item::{Item, Stock},
    tasks::{Kind, Load, Sent},
};

/// How many messages a flood sends between two looks at the clock.
const BETWEEN_LOOKS: usize = 16;
/// After this time in one go, a flood lets the rest of its arbiter run, as one
/// that is sent by handlers does.
const TURN: Duration = Duration::from_micros(100);

/// Sends to the namespaces in turn.
pub(super) async fn send(namespaces: &[Namespace<Item>], load: &Load, stock: &Stock) -> Sent {
    let until = Instant::now() + load.lasts;
    let mut turn = namespaces.iter().cycle();
    let mut next = || turn.next().expect("there is one");
    match load.kind {
        Kind::Flood => flood(next(), until, stock).await,
        Kind::Deliver => {
            let deliver = |item| {
                let delivery = next().deliver(item);
                async { delivery.await.is_ok() }
            };
            in_flight::keep(load.in_flight, until, stock, deliver).await
        }
        Kind::Ask => {
            let ask = |item: Item| {
                let (id, request) = (item.id, next().send(item));
                async move { request.await == Ok(id) }
            };
            in_flight::keep(load.in_flight, until, stock, ask).await
        }
    }
}

/// Sends as fast as the outbox takes it: by `try_send`, which is `do_send` but
/// that a message which finds the outbox full comes back; it then waits until
/// the sink is ready.
async fn flood(items: &Namespace<Item>, until: Instant, stock: &Stock) -> Sent {
    let mut sink = items.sink();
    let mut messages = 0;
    let mut turn = Instant::now();
    while turn < until {
        for _ in 0..BETWEEN_LOOKS {
            let mut item = stock.item();
            while let Err(error) = items.try_send(item) {
                let SendError::Full(back) = error else {
                    panic!("the node has ended");
                };
                item = back;
                let _ = poll_fn(|cx| Pin::new(&mut sink).poll_ready(cx)).await;
                turn = Instant::now();
            }
            messages += 1;
        }
        if turn.elapsed() > TURN {
            yield_now().await;
            turn = Instant::now();
        }
    }
    Sent {
        messages,
        ..Sent::default()
    }
}
