//! A peer that the test makes up, which says what a real one would not.

// Each test program uses some of it, and none shows it to others. A test that cannot
// go on panics.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

/// The wire, as the crate has it.
#[path = "../../src/proto/codec.rs"]
mod codec;
#[path = "../../src/proto/run.rs"]
pub mod run;
pub mod proto {
    #![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
    include!("../../src/proto/dchan.v1.rs");
}

use dchan::Cluster;
use futures_util::StreamExt;
use proto::{LinkReply, LinkRequest, Open, opened::Answer, peer_client::PeerClient};
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Endpoint};

pub type Client = PeerClient<tonic::transport::Channel>;

pub async fn client(node: &Cluster) -> Client {
    let endpoint = Endpoint::from_shared(format!("http://{}", node.status().address));
    let endpoint = endpoint.expect("a node has an address");
    PeerClient::connect(endpoint).await.expect("a node listens")
}

/// What opens a link from a node that the test makes up.
pub fn open(node: &Cluster) -> Open {
    Open {
        cluster: node.status().cluster_id,
        node: 1,
        boot: 1,
        target: node.status().node.get(),
        target_boot: node.status().boot,
    }
}

/// Opens a link. Returns the answer, the frames to send and those that come.
pub async fn link(
    node: &Cluster,
    open: Open,
) -> (
    Answer,
    mpsc::UnboundedSender<LinkRequest>,
    Streaming<LinkReply>,
) {
    let (frames, receiver) = mpsc::unbounded_channel();
    let first = LinkRequest {
        open: Some(open),
        ..LinkRequest::default()
    };
    frames.send(first).expect("the stream is open");
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        Some((receiver.recv().await?, receiver))
    });
    let replies = client(node).await.link(stream).await;
    let mut replies = replies.expect("a link is answered").into_inner();
    let first = replies.next().await.expect("an answer").expect("a frame");
    let answer = first.opened.expect("the first frame answers").answer();
    (answer, frames, replies)
}
