//! Sends a file to another process, with a bar that shows how it gets on, and
//! checks that it has arrived whole.
//!
//! ```text
//! cargo run --release --example large
//! cargo run --release --example large -- --size 1024
//! cargo run --release --example large -- --file PATH
//! ```
//!
//! Without a file it makes one up, of `--size` MiB (256, unless it is told
//! another one). While it travels, small requests go over the same link: the
//! table at the end says how long they took before and meanwhile, and how much
//! memory the two processes have needed at the most.

use std::{
    env, fs,
    hash::{DefaultHasher, Hasher},
    io::{self, BufRead, BufReader, Write},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use dchan::{Builder, Cluster, Namespace, Transferred, prelude::*};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Enough for any file that MessagePack can hold.
const LIMIT: usize = 4_000_000_000;
/// What the receiving process is told, in its environment.
const SENDER: &str = "DCHAN_LARGE_SENDER";

/// A file as a message. Its handler returns the hash of what it got, and how much
/// memory its process has needed.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Received")]
struct File(#[serde(with = "serde_bytes")] Vec<u8>);

#[derive(Serialize, Deserialize)]
struct Received {
    hash: u64,
    memory: Memory,
}

/// A small request.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Ping(#[serde(with = "serde_bytes")] Vec<u8>);

struct Archive;

impl Actor for Archive {
    type Context = Context<Self>;
}

impl Handler<File> for Archive {
    type Result = MessageResult<File>;

    fn handle(&mut self, File(bytes): File, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Received {
            hash: hash(&bytes),
            memory: Memory::now(),
        })
    }
}

struct Echo;

impl Actor for Echo {
    type Context = Context<Self>;
}

impl Handler<Ping> for Echo {
    type Result = ();

    fn handle(&mut self, _: Ping, _: &mut Context<Self>) {}
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn node() -> Builder {
    Cluster::builder("127.0.0.1:0")
        .cluster_id("large")
        .max_message(LIMIT)
        .send_timeout(Duration::from_secs(600))
}

fn main() -> ExitCode {
    let done = match env::var(SENDER) {
        Ok(sender) => System::new().block_on(receive(sender)),
        Err(_) => match arguments() {
            Some(source) => System::new().block_on(send(source)),
            None => Err("usage: large [--size MIB | --file PATH]".into()),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What to send.
enum Source {
    MadeUp { mib: usize },
    File(String),
}

fn arguments() -> Option<Source> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => Some(Source::MadeUp { mib: 256 }),
        ["--size", mib] => Some(Source::MadeUp {
            mib: mib.parse().ok()?,
        }),
        ["--file", path] => Some(Source::File(path.to_owned())),
        _ => None,
    }
}

impl Source {
    fn read(self) -> io::Result<Vec<u8>> {
        match self {
            Source::File(path) => fs::read(path),
            Source::MadeUp { mib } => {
                let mut word = 1u64;
                let words = (0..mib << 17).flat_map(|_| {
                    word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    word.to_le_bytes()
                });
                let mut bytes = Vec::with_capacity(mib << 20);
                bytes.extend(words);
                Ok(bytes)
            }
        }
    }
}

/// The receiving process: it runs until its standard input ends.
async fn receive(sender: String) -> Outcome<()> {
    let cluster = node().peers([sender]).start().await?;
    // An arbiter each: a file takes its handler a while, which is not to hold up
    // the small requests.
    let files = Archive::start_in_arbiter(&Arbiter::new().handle(), |_| Archive);
    let pings = Echo::start_in_arbiter(&Arbiter::new().handle(), |_| Echo);
    let files = cluster
        .namespace::<File>("files")
        .subscribe(files.recipient());
    let pings = cluster
        .namespace::<Ping>("pings")
        .subscribe(pings.recipient());
    files.ready().await?;
    pings.ready().await?;
    println!("{}", Memory::now().resident);
    let stdin = thread::spawn(|| io::stdin().lines().count());
    while !stdin.is_finished() {
        actix_rt::time::sleep(Duration::from_millis(50)).await;
    }
    files.close().await?;
    pings.close().await?;
    Ok(cluster.shutdown().await?)
}

async fn send(source: Source) -> Outcome<()> {
    let cluster = node().start().await?;
    let mut receiver = Command::new(env::current_exe()?)
        .env(SENDER, cluster.address())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let outcome = send_to(&cluster, &mut receiver, source).await;
    // It leaves when nobody can tell it anything any more.
    drop(receiver.stdin.take());
    receiver.wait()?;
    cluster.shutdown().await?;
    outcome
}

async fn send_to(cluster: &Cluster, receiver: &mut Child, source: Source) -> Outcome<()> {
    let mut said = String::new();
    let stdout = receiver.stdout.take().ok_or("the receiver says nothing")?;
    BufReader::new(stdout).read_line(&mut said)?;
    let their_memory: u64 = said.trim().parse()?;
    let our_memory = Memory::now().resident;

    let pings = Arbiter::new();
    let idle = pinging(cluster, &pings, Duration::from_secs(2));
    let mut idle = idle.stop().await?;

    let bytes = source.read()?;
    let (size, sent_hash) = (bytes.len(), hash(&bytes));
    println!("sending {} MiB", size >> 20);
    let begin = Instant::now();
    let request = cluster.namespace::<File>("files").send(File(bytes));
    let encoded = begin.elapsed();
    let meanwhile = pinging(cluster, &pings, Duration::MAX);
    let mut progress = request.progress();
    let mut drawn = 0;
    while let Some(Transferred { bytes, size, .. }) = progress.next().await {
        if size > 0 && (bytes * 50 / size > drawn || bytes == size) {
            drawn = bytes * 50 / size;
            print!("\r[{:<50}] {:>4} MiB", "#".repeat(drawn), bytes >> 20);
            io::stdout().flush()?;
        }
        if bytes == size && size > 0 {
            break;
        }
    }
    let travelled = begin.elapsed() - encoded;
    let mut meanwhile = meanwhile.stop().await?;
    let received = request.await?;
    println!("\nhandled after {:.2?}", begin.elapsed());
    println!(
        "encoded in {encoded:.2?}, travelled in {travelled:.2?}: {:.0} MiB/s\n",
        (size >> 20) as f64 / travelled.as_secs_f64()
    );

    println!("small requests      count       p50       p99");
    for (when, times) in [("before", &mut idle), ("meanwhile", &mut meanwhile)] {
        times.sort();
        let at = |share: f64| times.get((times.len() as f64 * share) as usize);
        let show = |time: Option<&Duration>| time.map_or("-".to_owned(), |t| format!("{t:.1?}"));
        println!(
            "{when:<15} {:>9} {:>9} {:>9}",
            times.len(),
            show(at(0.5)),
            show(at(0.99))
        );
    }
    println!("\nmemory at the most, in times of the file");
    for (who, before, peak) in [
        ("sender", our_memory, Memory::now().peak),
        ("receiver", their_memory, received.memory.peak),
    ] {
        let times = peak.saturating_sub(before) as f64 / size as f64;
        println!("{who:<15} {times:>9.2}");
    }
    match received.hash == sent_hash {
        true => println!("\nit has arrived whole"),
        false => return Err("what has arrived is not what was sent".into()),
    }
    Ok(())
}

/// Small requests, one after the other.
struct Pinging {
    stop: tokio::sync::oneshot::Sender<()>,
    times: tokio::sync::oneshot::Receiver<Vec<Duration>>,
    lasts: Duration,
}

fn pinging(cluster: &Cluster, arbiter: &Arbiter, lasts: Duration) -> Pinging {
    let pings = cluster.namespace::<Ping>("pings");
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let (done, times) = tokio::sync::oneshot::channel();
    arbiter.spawn(async move {
        let mut times = Vec::new();
        while stopped.try_recv().is_err() {
            times.extend(ping(&pings).await);
        }
        let _ = done.send(times);
    });
    Pinging { stop, times, lasts }
}

async fn ping(pings: &Namespace<Ping>) -> Option<Duration> {
    let begin = Instant::now();
    pings.send(Ping(vec![7; 1024])).await.ok()?;
    Some(begin.elapsed())
}

impl Pinging {
    /// Ends it, after the time that it was to last if that is bounded.
    async fn stop(self) -> Outcome<Vec<Duration>> {
        if self.lasts < Duration::MAX {
            actix_rt::time::sleep(self.lasts).await;
        }
        let _ = self.stop.send(());
        Ok(self.times.await?)
    }
}

/// What this process has in memory and has had at the most, in bytes; nought
/// where the system does not tell.
#[derive(Serialize, Deserialize)]
struct Memory {
    resident: u64,
    peak: u64,
}

impl Memory {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kib = |what: &str| {
            let line = status.lines().find(|line| line.starts_with(what))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        Self {
            resident: kib("VmRSS:").unwrap_or(0) << 10,
            peak: kib("VmHWM:").unwrap_or(0) << 10,
        }
    }
}
