//! The simulated network, as a transport.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use dchan::transport::{BoxFuture, Connection, Listener, Transport};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};
use turmoil::net::{TcpListener, TcpStream};

/// The port that every host listens on.
pub(crate) const PORT: u16 = 7000;

/// A name that stands for all the hosts.
pub(crate) const EVERYBODY: &str = "everybody:7000";

/// How long after the last of what came late its connection ends.
const LINGER: Duration = Duration::from_millis(200);

/// What comes late, by who sends it and who listens: what was said before some
/// time, and when it arrives. Shared by all hosts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Late(Arc<Mutex<BTreeMap<Way, (Duration, Duration)>>>);

/// From one host to another.
type Way = (IpAddr, IpAddr);

impl Late {
    /// Keeps back, for so long, all that one has to say to the other over the
    /// connections that it has, even if it dies.
    pub(crate) fn keep(&self, from: IpAddr, to: IpAddr, now: Duration, lasts: Duration) {
        let mut late = self.0.lock().unwrap();
        late.insert((from, to), (now, now + lasts));
    }

    fn until(&self, from: IpAddr, to: IpAddr, since: Duration) -> Option<Duration> {
        let late = self.0.lock().unwrap();
        let (began, until) = late.get(&(from, to))?;
        (since <= *began).then_some(*until)
    }
}

#[derive(Debug)]
pub(crate) struct Net {
    hosts: Vec<IpAddr>,
    own: IpAddr,
    late: Late,
}

impl Net {
    pub(crate) fn new(own: &str, hosts: impl IntoIterator<Item = String>, late: Late) -> Self {
        Self {
            hosts: hosts.into_iter().map(turmoil::lookup).collect(),
            own: turmoil::lookup(own),
            late,
        }
    }
}

impl Transport for Net {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            let (own, late) = (self.own, self.late.clone());
            Ok(Box::new(Incoming {
                listener,
                own,
                late,
            }) as _)
        })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move { Ok(Box::new(TcpStream::connect(addr).await?) as _) })
    }

    fn look_up<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if name == EVERYBODY {
                let all = self.hosts.iter().map(|host| (*host, PORT).into());
                return Ok(all.collect());
            }
            if let Ok(address) = name.parse() {
                return Ok(vec![address]);
            }
            let host = name.split(':').next().unwrap_or_default();
            Ok(vec![(turmoil::lookup(host), PORT).into()])
        })
    }
}

struct Incoming {
    listener: TcpListener,
    own: IpAddr,
    late: Late,
}

impl Listener for Incoming {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            Ok(Box::new(Accepted {
                stream,
                from: from.ip(),
                own: self.own,
                late: self.late.clone(),
                since: now(),
                waits: None,
            }) as _)
        })
    }
}

/// By the clock of the simulation, whatever that of the host may be.
fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// A connection to this host, on which what is said may come late.
struct Accepted {
    stream: TcpStream,
    from: IpAddr,
    own: IpAddr,
    late: Late,
    since: Duration,
    waits: Option<Pin<Box<Sleep>>>,
}

impl Accepted {
    fn poll_wait(&mut self, until: Duration, cx: &mut Context<'_>) -> Poll<()> {
        while now() < until {
            let rest = until - now();
            let waits = self.waits.get_or_insert_with(|| Box::pin(sleep(rest)));
            ready!(waits.as_mut().poll(cx));
            self.waits = None;
        }
        Poll::Ready(())
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let late = self.late.until(self.from, self.own, self.since);
        let Some(until) = late else {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        };
        ready!(self.poll_wait(until, cx));
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if read.is_err() || buffer.filled().len() == before {
            // What came is heeded before the connection ends.
            ready!(self.poll_wait(until + LINGER, cx));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
