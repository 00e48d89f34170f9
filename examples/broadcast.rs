//! Everybody hears it: eight nodes in one process, of which one tells all.
//!
//! ```text
//! cargo run --release --example broadcast
//! ```
//!
//! Each broadcast reaches every node once, and nodes pass it on to each other, so
//! that the one that tells it sends four copies at the most.

use std::time::Instant;

use dchan::{Cluster, prelude::*};
use futures_util::{StreamExt, future::try_join_all};
use serde::{Deserialize, Serialize};

#[derive(Clone, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Price {
    item: String,
    cents: u32,
}

#[actix::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let first = Cluster::builder("127.0.0.1:0").start().await?;
    let peer = [first.address()];
    let others = (1..8).map(|_| Cluster::builder("127.0.0.1:0").peers(peer).start());
    let mut nodes = try_join_all(others).await?;
    nodes.insert(0, first);

    for node in &nodes {
        let mut prices = node.namespace::<Price>("prices").receiver(16);
        prices.ready().await?;
        let name = node.node();
        actix::spawn(async move {
            while let Some(Price { item, cents }) = prices.next().await {
                println!("{name}: {item} now costs {cents} cents");
            }
        });
    }

    let prices = nodes[0].namespace::<Price>("prices");
    for cents in [120, 99] {
        let begin = Instant::now();
        let item = "tea".to_owned();
        let reached = prices.broadcast(Price { item, cents }).await?;
        println!(
            "{} of {} nodes have it after {:?}",
            reached.confirmed,
            reached.receivers,
            begin.elapsed()
        );
    }
    let counts = nodes[0].status().broadcasts;
    println!("the sender has sent {} copies", counts.copies);

    for node in nodes {
        node.shutdown().await?;
    }
    Ok(())
}
