//! One real node. Try three of them, each in a terminal of its own:
//!
//! ```text
//! cargo run --example node -- --addr 127.0.0.1:7001 --receive lines
//! cargo run --example node -- --addr 127.0.0.1:7002 --peers 127.0.0.1:7001 --receive lines
//! cargo run --example node -- --addr 127.0.0.1:7003 --peers 127.0.0.1:7001
//! ```
//!
//! A line that is typed in one of them is printed by one of those that receive,
//! in turn; while nobody receives, it waits. Stop a node with Ctrl-C: it goes on
//! when there is nothing more to read. Give it `--data-dir DIR` and it comes back
//! as the same node, even after a `kill -9`. Typing `/status` shows its picture of
//! the cluster, and `/receive NAMESPACE` has it receive one more. `RUST_LOG=dchan=info` shows what
//! the nodes tell each other.

use std::{env, pin::pin, process::ExitCode, time::Duration};

use dchan::{
    Builder, Cluster, DeliveryError, Namespace, NodeId, RegisterError, Status, prelude::*,
};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::{signal, sync::mpsc, time::timeout};

const USAGE: &str = "usage: node --addr HOST:PORT [--advertise HOST:PORT] [--peers HOST:PORT,...] [--data-dir DIR] \
                     [--receive NAMESPACE] [--send NAMESPACE (default: lines)]";

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Line {
    from: NodeId,
    text: String,
}

struct Arguments {
    builder: Builder,
    receive: Option<String>,
    send: String,
}

/// `None` where the usage has to be shown.
fn arguments() -> Option<Arguments> {
    let mut words = env::args().skip(1);
    let (mut addr, mut advertise, mut peers, mut data_dir) = (None, None, None, None);
    let (mut receive, mut send) = (None, "lines".to_owned());
    while let Some(word) = words.next() {
        let value = words.next()?;
        match word.as_str() {
            "--addr" => addr = Some(value),
            "--advertise" => advertise = Some(value),
            "--peers" => peers = Some(value),
            "--data-dir" => data_dir = Some(value),
            "--receive" => receive = Some(value),
            "--send" => send = value,
            _ => return None,
        }
    }
    let mut builder = Cluster::builder(addr?);
    if let Some(address) = advertise {
        builder = builder.advertise(address);
    }
    if let Some(peers) = peers {
        builder = builder.peers(peers.split(','));
    }
    if let Some(data_dir) = data_dir {
        builder = builder.data_dir(data_dir);
    }
    Some(Arguments {
        builder: builder.join_timeout(Duration::from_secs(120)),
        receive,
        send,
    })
}

#[actix::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    if env::args().any(|word| word == "--help" || word == "-h") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = arguments() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let cluster = arguments.builder.start().await?;
    let status = cluster.status();
    println!(
        "node {} (boot {}) is up at {}",
        status.node, status.boot, status.address
    );

    if let Some(name) = &arguments.receive {
        receive(&cluster.namespace(name)).await;
    }

    let lines = cluster.namespace::<Line>(&arguments.send);
    let mut typed = typed_lines();
    let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            Some(text) = typed.recv() => {
                if text == "/status" {
                    show(&cluster.status());
                } else if let Some(name) = text.strip_prefix("/receive ") {
                    let namespace = cluster.namespace(name);
                    actix::spawn(async move { receive(&namespace).await });
                } else {
                    let from = status.node;
                    report(lines.deliver(Line { from, text }));
                }
            }
            _ = signal::ctrl_c() => break,
            _ = terminate.recv() => break,
        }
    }
    cluster.shutdown().await?;
    println!("left the cluster");
    Ok(())
}

/// Receives lines and prints them, as soon as the cluster agrees.
async fn receive(lines: &Namespace<Line>) {
    let mut received = lines.receiver(16);
    while let Err(error) = received.ready().await {
        println!("not receiving {}: {error}", lines.name());
        // Without a quorum it waits for one.
        if !matches!(error, RegisterError::NoQuorum { .. }) {
            return;
        }
    }
    println!("receiving {}", lines.name());
    actix::spawn(async move {
        while let Some(Line { from, text }) = received.next().await {
            println!("{from}: {text}");
        }
    });
}

fn show(status: &Status) {
    let quorum = match status.has_quorum {
        true => "with a quorum",
        false => "without a quorum",
    };
    let leader = status
        .leader
        .map_or("nobody".to_owned(), |leader| leader.to_string());
    let (term, count) = (status.term, status.nodes.len());
    println!("term {term}, led by {leader}, {quorum}, {count} nodes");
    for (node, address) in &status.nodes {
        let role = match status.voters.contains(node) {
            true => "votes",
            false => "follows",
        };
        let received = status.receivers.iter();
        let received: Vec<&str> = received
            .filter(|(_, nodes)| nodes.contains(node))
            .map(|(name, _)| name.as_str())
            .collect();
        println!(
            "  {node} at {address} {role}, receives [{}]",
            received.join(", ")
        );
    }
}

/// What is typed. A thread of its own reads it, for a read from a terminal
/// cannot be called off. When nobody types any more the node goes on.
fn typed_lines() -> mpsc::UnboundedReceiver<String> {
    let (sender, lines) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Says what became of a line, when that is known.
fn report(delivery: dchan::Delivery) {
    actix::spawn(async move {
        let mut delivery = pin!(delivery);
        let outcome = match timeout(Duration::from_secs(1), &mut delivery).await {
            Ok(outcome) => outcome,
            Err(_) => {
                println!("-> waiting for a receiver");
                delivery.await
            }
        };
        match outcome {
            Ok(node) => println!("-> {node}"),
            Err(DeliveryError::Closed) => {}
            Err(error) => println!("-> not delivered: {error}"),
        }
    });
}
