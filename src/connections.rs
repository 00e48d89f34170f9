//! Connections to peers: one a peer, shared by everything that is said to it.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    io,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tonic::{
    codegen::{Service, http::Uri},
    service::Routes,
    transport::{Channel, Endpoint, Server, server::Connected},
};
use tracing::{debug, warn};

use crate::{
    proto::peer_client::PeerClient,
    transport::{BoxFuture, Connection, Listener, Transport},
};

/// HTTP/2 DATA frames of up to this size carry the batches: each frame is one
/// write, and the 16 KiB default costs a third of the throughput.
const FRAME_BYTES: u32 = 256 << 10;
/// HTTP/2 flow control windows, of a stream and of a connection. What bounds
/// memory are the grants; these only must not throttle.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// A connection whose peer answers no ping for interval and timeout together
/// is dropped, busy or idle.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait after a connection could not be accepted, for lack of file
/// descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The largest gRPC message, in bytes. Those of a link stay far below; what one
/// Raft entry holds, say many registrations at once, may not.
pub(crate) const MAX_FRAME: usize = 64 << 20;

/// An address that is not `host:port`.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{address:?} is not an address: it has to be \"host:port\"")]
pub(crate) struct InvalidAddress {
    pub(crate) address: String,
}

/// The connections of one node, made when they are first used and again
/// whenever they break.
#[derive(Clone)]
pub(crate) struct Connections {
    transport: Arc<dyn Transport>,
    channels: Arc<Mutex<HashMap<Arc<str>, Channel>>>,
}

impl Connections {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Self {
        Self {
            transport,
            channels: Arc::default(),
        }
    }

    /// A client of the peer at the address. Does not connect yet.
    pub(crate) fn peer(&self, address: &Arc<str>) -> Result<PeerClient<Channel>, InvalidAddress> {
        let mut channels = self
            .channels
            .lock()
            .expect("no panic while connections are looked up");
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.channel(address)?;
                channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(MAX_FRAME)
            .max_encoding_message_size(usize::MAX))
    }

    fn channel(&self, address: &str) -> Result<Channel, InvalidAddress> {
        let connector = Connector(self.transport.clone());
        Ok(endpoint(address)?.connect_with_connector_lazy(connector))
    }

    /// The addresses that a name stands for now: none, if it stands for nobody
    /// or that cannot be found out in time.
    pub(crate) async fn look_up(&self, name: &str) -> Vec<Arc<str>> {
        match timeout(LOOK_UP_TIMEOUT, self.transport.look_up(name)).await {
            Ok(Ok(addresses)) => addresses
                .into_iter()
                .map(|address| address.to_string().as_str().into())
                .collect(),
            Ok(Err(error)) => {
                debug!(name, %error, "a peer's name cannot be looked up");
                Vec::new()
            }
            Err(_) => Vec::new(),
        }
    }

    /// Forgets the connections to addresses that nobody has any more.
    pub(crate) fn keep(&self, wanted: impl Fn(&str) -> bool) {
        self.channels
            .lock()
            .expect("no panic while connections are looked up")
            .retain(|address, _| wanted(address));
    }
}

/// Says whether a string can name a peer.
pub(crate) fn check_address(address: &str) -> Result<(), InvalidAddress> {
    endpoint(address).map(|_| ())
}

fn endpoint(address: &str) -> Result<Endpoint, InvalidAddress> {
    let invalid = || InvalidAddress {
        address: address.to_owned(),
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| invalid())?;
    let authority = endpoint.uri().authority().ok_or_else(invalid)?;
    if authority.as_str() != address || authority.port_u16().is_none() {
        return Err(invalid());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Connects a channel through the transport.
#[derive(Clone)]
struct Connector(Arc<dyn Transport>);

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let transport = self.0.clone();
        Box::pin(async move {
            // `endpoint` has seen to it that there is one.
            let address = uri.authority().map_or("", |authority| authority.as_str());
            transport.connect(address).await.map(TokioIo::new)
        })
    }
}

/// Serves whoever connects, until `stop` resolves and all streams have ended.
pub(crate) async fn serve(
    listener: Box<dyn Listener>,
    routes: Routes,
    stop: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming(listener), stop)
        .await
}

fn incoming(
    listener: Box<dyn Listener>,
) -> impl Stream<Item = Result<Box<dyn Connection>, Infallible>> {
    futures_util::stream::unfold(listener, |mut listener| async move {
        loop {
            match listener.accept().await {
                Ok(connection) => break Some((Ok(connection), listener)),
                Err(error) => {
                    warn!(%error, "a connection cannot be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

impl Connected for Box<dyn Connection> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["127.0.0.1:80", "[::1]:80", "node-1.example:7001"] {
            assert!(check_address(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "host",
            "host:",
            ":80x",
            "http://host:80",
            "host:80/path",
            "a b:1",
        ] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
