//! How nodes reach each other, for those who want it otherwise than by TCP:
//! encrypted, over Unix sockets, through a proxy, or in a simulation.

use std::{fmt, future::Future, io, net::SocketAddr, pin::Pin};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, lookup_host},
};

/// What the methods of a [`Transport`] return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to reach other nodes. [`Tcp`] is the default; another one is set by
/// [`Builder::transport`](crate::Builder::transport).
///
/// The futures run on the thread of the node, so they must not block. Those of
/// `connect` and `look_up` are given up after two seconds.
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Listens on an address, as [`Cluster::builder`](crate::Cluster::builder)
    /// was given it.
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>>;

    /// Connects to a node, at the `host:port` that it advertises, that peers are
    /// configured with, or that such a name has been looked up to be.
    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>>;

    /// The addresses that a peer's `host:port` stands for now. By default those
    /// that the system knows.
    fn look_up<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(lookup_host(name).await?.collect()) })
    }
}

/// Where connections come in.
pub trait Listener: Send + 'static {
    /// The address that it listens on. The node advertises it, unless it was
    /// told another one.
    ///
    /// # Errors
    ///
    /// If it has none that peers could use; then the builder has to be told one.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next connection. May be dropped and called again without losing one.
    /// After an error it is called again soon.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>>;
}

/// A stream of bytes to another node and back.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Connection for T {}

/// Plain TCP, without Nagle's algorithm.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tcp;

impl Transport for Tcp {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move { Ok(Box::new(TcpListener::bind(addr).await?) as _) })
    }

    fn connect<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move { without_delay(TcpStream::connect(addr).await?) })
    }
}

impl Listener for TcpListener {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async move { without_delay(TcpListener::accept(self).await?.0) })
    }
}

/// Without this on both sides a request waits 40 ms for the other side's delayed
/// acknowledgement.
fn without_delay(stream: TcpStream) -> io::Result<Box<dyn Connection>> {
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}
