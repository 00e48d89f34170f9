//! A network that carries little.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use dchan::transport::{BoxFuture, Connection, Listener, Tcp, Transport};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Interval,
};

/// TCP that carries so many bytes every ten milliseconds, each way, over what this
/// node connects to.
#[derive(Clone, Debug)]
pub(crate) struct Narrow(Arc<AtomicUsize>);

impl Narrow {
    pub(crate) const WIDTH: usize = 20 << 10;

    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicUsize::new(Self::WIDTH)))
    }

    pub(crate) fn set(&self, width: usize) {
        self.0.store(width, Ordering::Relaxed);
    }
}

impl Transport for Narrow {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Tcp.listen(addr)
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            let tcp = Tcp.connect(addr).await?;
            let (down, up) = (Budget::of(self), Budget::of(self));
            Ok(Box::new(NarrowConnection { tcp, down, up }) as _)
        })
    }
}

/// How many bytes may go one way now.
struct Budget {
    width: Arc<AtomicUsize>,
    left: usize,
    refill: Interval,
}

impl Budget {
    fn of(narrow: &Narrow) -> Self {
        Self {
            width: narrow.0.clone(),
            left: 0,
            refill: tokio::time::interval(Duration::from_millis(10)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<usize> {
        while self.left == 0 {
            let due = ready!(self.refill.poll_tick(cx));
            // Nothing is saved up while there is little to carry.
            if due.elapsed() > Duration::from_millis(50) {
                self.refill.reset();
            }
            self.left = self.width.load(Ordering::Relaxed);
        }
        Poll::Ready(self.left)
    }
}

struct NarrowConnection {
    tcp: Box<dyn Connection>,
    down: Budget,
    up: Budget,
}

impl AsyncRead for NarrowConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let most = ready!(self.down.poll(cx));
        let mut bytes = vec![0; most.min(buf.remaining())];
        let mut part = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut part))?;
        self.down.left -= part.filled().len();
        buf.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for NarrowConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = ready!(self.up.poll(cx)).min(buf.len());
        let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &buf[..most]))?;
        self.up.left -= written;
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
