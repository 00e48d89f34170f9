//! Messages of which each is awaited.

use std::{future::Future, time::Instant};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::task::unconstrained;

use crate::{
    item::{Item, Stock},
    latency::Latencies,
    tasks::Sent,
};

/// Keeps so many in flight until the time is over, and then awaits the rest.
/// The future says whether all went well.
///
/// It goes on for as long as anything is ready: were it made to yield after so
/// many messages, as tokio does, what is ready would wait behind what is not.
pub(super) async fn keep<F: Future<Output = bool>>(
    in_flight: usize,
    until: Instant,
    stock: &Stock,
    mut send: impl FnMut(Item) -> F,
) -> Sent {
    let mut latencies = Latencies::new();
    let (mut messages, mut failed) = (0, 0);
    let mut count = |begin: Instant, well: bool| {
        latencies.record(begin.elapsed());
        messages += 1;
        failed += u64::from(!well);
    };
    // Whoever sends one at a time has nothing to choose from, which takes another
    // round of the arbiter.
    if in_flight == 1 {
        loop {
            let begin = Instant::now();
            if begin >= until {
                break;
            }
            count(begin, unconstrained(send(stock.item())).await);
        }
    }
    let mut pending = FuturesUnordered::new();
    loop {
        while pending.len() < in_flight {
            let begin = Instant::now();
            if begin >= until {
                break;
            }
            let sending = send(stock.item());
            pending.push(async move { (begin, sending.await) });
        }
        match unconstrained(pending.next()).await {
            Some((begin, well)) => count(begin, well),
            None => break,
        }
    }
    Sent {
        messages,
        failed,
        latency: Some(latencies.percentiles()),
    }
}
