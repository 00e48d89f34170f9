//! Two nodes and no actors: a sink on one, a stream on the other, on a plain
//! tokio runtime.
//!
//! ```text
//! cargo run --example streams
//! ```

use dchan::{Cluster, prelude::*};
use futures_util::{SinkExt, StreamExt, stream};
use serde::{Deserialize, Serialize};

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Reading {
    sensor: u32,
    celsius: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let collector = Cluster::builder("127.0.0.1:0").start().await?;
    let station = Cluster::builder("127.0.0.1:0")
        .peers([collector.address()])
        .start()
        .await?;

    let readings = collector.namespace::<Reading>("readings").receiver(16);
    readings.ready().await?;

    let sent = tokio::spawn(async move {
        let mut sink = station.namespace::<Reading>("readings").sink();
        let made = (0..1_000).map(|n| Reading {
            sensor: n % 4,
            celsius: 20.0 + f64::from(n) / 100.0,
        });
        // Waits whenever the collector is behind.
        sink.send_all(&mut stream::iter(made.map(Ok))).await?;
        Ok::<_, dchan::SendError<Reading>>(station)
    });

    let mut sums = [(0_u32, 0.0); 4];
    let mut readings = readings.take(1_000);
    while let Some(Reading { sensor, celsius }) = readings.next().await {
        let (count, sum) = &mut sums[sensor as usize];
        *count += 1;
        *sum += celsius;
    }
    for (sensor, (count, sum)) in sums.iter().enumerate() {
        println!(
            "sensor {sensor}: {count} readings, {:.2} degrees",
            sum / f64::from(*count)
        );
    }

    drop(readings);
    sent.await??.shutdown().await?;
    collector.shutdown().await?;
    Ok(())
}
