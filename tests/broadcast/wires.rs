//! A network that the tests can break.

use std::{
    collections::HashSet,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use dchan::transport::{BoxFuture, Connection, Listener, Tcp, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// TCP whose connections can be cut, and whose ways can be closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wires {
    connections: Arc<Mutex<Vec<CancellationToken>>>,
    closed: Arc<Mutex<HashSet<String>>>,
}

impl Wires {
    /// Cuts one connection in so many.
    pub(crate) fn cut(&self, one_in: usize) {
        let mut connections = self.connections.lock().unwrap();
        connections.retain(|connection| !connection.is_cancelled());
        connections
            .iter()
            .step_by(one_in)
            .for_each(CancellationToken::cancel);
    }

    /// Lets this node no longer connect to an address, or again.
    pub(crate) fn close(&self, address: &str, closed: bool) {
        let mut all = self.closed.lock().unwrap();
        match closed {
            true => all.insert(address.to_owned()),
            false => all.remove(address),
        };
    }
}

impl Transport for Wires {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Tcp.listen(addr)
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            if self.closed.lock().unwrap().contains(addr) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let connection = Tcp.connect(addr).await?;
            let cut = CancellationToken::new();
            self.connections.lock().unwrap().push(cut.clone());
            let cut = Box::pin(cut.cancelled_owned());
            Ok(Box::new(Wire { connection, cut }) as _)
        })
    }
}

struct Wire {
    connection: Box<dyn Connection>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Box<dyn Connection>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match self.cut.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            Poll::Pending => poll(Pin::new(&mut self.connection), cx),
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll(cx, |connection, cx| connection.poll_read(cx, buf))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll(cx, |connection, cx| connection.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |connection, cx| connection.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(cx, |connection, cx| connection.poll_shutdown(cx))
    }
}
