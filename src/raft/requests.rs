//! What peers ask of the Raft actor.

use actix::prelude::*;
use bytes::Bytes;
use openraft::{
    error::{Infallible, RaftError},
    raft::AppendEntriesResponse,
};
use serde::Serialize;
use tokio::time::Instant;
use tracing::trace;

use super::{
    RaftActor,
    election::{PreVote, grants},
};
use crate::{
    proto::{FoundReply, FoundRequest, HelloReply, SubmitReply, SubmitRequest, raft_request},
    view::NodeId,
};

/// A peer looks for its cluster.
#[derive(Message)]
#[rtype(result = "HelloReply")]
pub(crate) struct Hello;

impl Handler<Hello> for RaftActor {
    type Result = MessageResult<Hello>;

    fn handle(&mut self, _: Hello, _: &mut Self::Context) -> Self::Result {
        let formation = self.agreed.borrow().formation;
        MessageResult(self.formation.hello(formation))
    }
}

/// A peer asks for leave to form the cluster.
#[derive(Message)]
#[rtype(result = "FoundReply")]
pub(crate) struct Found(pub(crate) FoundRequest);

impl Handler<Found> for RaftActor {
    type Result = MessageResult<Found>;

    fn handle(&mut self, Found(request): Found, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.formation.found(&request))
    }
}

/// A peer's proposal.
#[derive(Message)]
#[rtype(result = "SubmitReply")]
pub(crate) struct Submit(pub(crate) SubmitRequest);

impl Handler<Submit> for RaftActor {
    type Result = ResponseFuture<SubmitReply>;

    fn handle(&mut self, Submit(request): Submit, _: &mut Self::Context) -> Self::Result {
        let submitter = self.submitter();
        Box::pin(async move { submitter.pass_on(request).await })
    }
}

/// One Raft RPC, in MessagePack both ways.
#[derive(Message)]
#[rtype(result = "Result<Bytes, RpcError>")]
pub(crate) struct Rpc {
    pub(crate) kind: raft_request::Kind,
    pub(crate) body: Bytes,
    /// The sender leads without a quorum: to hear from it says nothing.
    pub(crate) without_quorum: bool,
}

/// Why a Raft RPC could not be answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RpcError {
    #[error("this version knows no such Raft RPC")]
    UnknownKind,
    #[error("the Raft RPC cannot be read: {0}")]
    Decode(#[from] rmp_serde::decode::Error),
    #[error("the answer cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl Handler<Rpc> for RaftActor {
    type Result = ResponseFuture<Result<Bytes, RpcError>>;

    fn handle(&mut self, rpc: Rpc, _: &mut Self::Context) -> Self::Result {
        let Rpc {
            kind,
            body,
            without_quorum,
        } = rpc;
        let raft = self.raft.clone();
        let heard = self.heard(&self.metrics.borrow());
        let store = self.store.clone();
        let heard_leader = self.heard_leader.clone();
        Box::pin(async move {
            match kind {
                raft_request::Kind::Append => {
                    let result = raft.append_entries(rmp_serde::from_slice(&body)?).await;
                    let follows =
                        !matches!(result, Err(_) | Ok(AppendEntriesResponse::HigherVote(_)));
                    if follows && !without_quorum {
                        heard_leader.send_replace(Some(Instant::now()));
                        trace!("heard a leader");
                    }
                    encoded(&result)
                }
                raft_request::Kind::Vote => {
                    encoded(&raft.vote(rmp_serde::from_slice(&body)?).await)
                }
                raft_request::Kind::Snapshot => {
                    encoded(&raft.install_snapshot(rmp_serde::from_slice(&body)?).await)
                }
                raft_request::Kind::PreVote => {
                    let request: PreVote = rmp_serde::from_slice(&body)?;
                    let last_log = store.last_log_id();
                    let granted = last_log.is_ok_and(|last| grants(heard, last, request.last_log));
                    encoded(&Ok::<_, RaftError<NodeId, Infallible>>(granted))
                }
                raft_request::Kind::Unspecified => Err(RpcError::UnknownKind),
            }
        })
    }
}

fn encoded(result: &impl Serialize) -> Result<Bytes, RpcError> {
    Ok(rmp_serde::to_vec_named(result)?.into())
}
