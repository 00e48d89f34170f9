//! The simulated network, as a transport.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use dchan::transport::{BoxFuture, Connection, Listener, Transport};
use turmoil::net::{TcpListener, TcpStream};

/// The port that every host listens on.
pub(crate) const PORT: u16 = 7000;

/// A name that stands for all the hosts.
pub(crate) const EVERYBODY: &str = "everybody:7000";

#[derive(Debug)]
pub(crate) struct Net {
    hosts: Vec<IpAddr>,
}

impl Net {
    pub(crate) fn new(hosts: impl IntoIterator<Item = String>) -> Self {
        let hosts = hosts.into_iter().map(turmoil::lookup).collect();
        Self { hosts }
    }
}

impl Transport for Net {
    fn listen<'a>(&'a self, addr: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Listener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(addr).await?;
            Ok(Box::new(Incoming(listener)) as _)
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

struct Incoming(TcpListener);

impl Listener for Incoming {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&mut self) -> BoxFuture<'_, io::Result<Box<dyn Connection>>> {
        Box::pin(async move { Ok(Box::new(self.0.accept().await?.0) as _) })
    }
}
