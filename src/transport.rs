//! Connections to peers: one a peer, shared by everything that is said to it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use std::sync::Mutex;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};

use tracing::debug;

use crate::proto::peer_client::PeerClient;

/// HTTP/2 DATA frames of up to this size carry the batches: each frame is one
/// write, and the 16 KiB default costs a third of the throughput.
pub(crate) const FRAME_BYTES: u32 = 256 << 10;
/// HTTP/2 flow control windows, of a stream and of a connection. What bounds
/// memory are the grants; these only must not throttle.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;
/// A connection whose peer answers no ping for interval and timeout together
/// is dropped, busy or idle.
pub(crate) const PING_INTERVAL: Duration = Duration::from_secs(2);
pub(crate) const PING_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// What a gRPC message may hold beside the largest message: a frame is a batch
/// of small messages or one large one, and more than one of neither.
const FRAME_OVERHEAD: usize = 256 << 10;

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
    channels: Arc<Mutex<HashMap<Arc<str>, Channel>>>,
    max_message: usize,
}

impl Connections {
    /// `max_message` is the largest payload, in bytes, that one message has.
    pub(crate) fn new(max_message: usize) -> Self {
        Self {
            channels: Arc::default(),
            max_message,
        }
    }

    /// The largest gRPC message to read.
    pub(crate) fn max_frame(&self) -> usize {
        self.max_message.saturating_add(FRAME_OVERHEAD)
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
                let channel = endpoint(address)?.connect_lazy();
                channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        Ok(PeerClient::new(channel)
            .max_decoding_message_size(self.max_frame())
            .max_encoding_message_size(usize::MAX))
    }

    /// The addresses that a name stands for now: none, if it stands for nobody
    /// or that cannot be found out in time.
    pub(crate) async fn look_up(&self, name: &str) -> Vec<Arc<str>> {
        match timeout(LOOK_UP_TIMEOUT, tokio::net::lookup_host(name)).await {
            Ok(Ok(addresses)) => addresses
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
        .tcp_nodelay(true)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
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
