//! Raft's RPCs to other nodes, over the connections that everything shares.

use std::{
    future::Future,
    iter,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use openraft::{
    AnyError, BasicNode, RaftNetwork, RaftNetworkFactory,
    error::{
        Infallible, InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError,
        Unreachable,
    },
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, VoteRequest, VoteResponse,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{HEARTBEAT, clocks::Clocks, election::PreVote, types::TypeConfig};
use crate::{
    connections::Connections,
    proto::{RaftRequest, raft_request::Kind},
    view::{NodeId, View},
};

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) cluster: Arc<str>,
    pub(crate) connections: Connections,
    /// Says where a node is now; the membership, where it was when it joined.
    pub(crate) agreed: watch::Receiver<Arc<View>>,
    pub(super) clocks: Clocks,
    /// Whether this node leads and has no quorum, which its followers should
    /// know.
    pub(super) without_quorum: Arc<AtomicBool>,
}

impl Network {
    pub(super) fn connection(&self, target: NodeId, node: &BasicNode) -> Connection {
        Connection {
            network: self.clone(),
            target,
            joined_at: node.addr.as_str().into(),
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: NodeId, node: &BasicNode) -> Connection {
        self.connection(target, node)
    }
}

pub(crate) struct Connection {
    network: Network,
    pub(super) target: NodeId,
    joined_at: Arc<str>,
}

type Failure<E> = RPCError<NodeId, BasicNode, RaftError<NodeId, E>>;

impl Connection {
    fn address(&self) -> Arc<str> {
        let view = self.network.agreed.borrow();
        let member = view.nodes.get(&self.target);
        member
            .map_or(&self.joined_at, |member| &member.address)
            .clone()
    }

    async fn call<Request, Response, E>(
        &self,
        kind: Kind,
        request: &Request,
        option: RPCOption,
    ) -> Result<Response, Failure<E>>
    where
        Request: Serialize,
        Response: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let mut peer = self
            .network
            .connections
            .peer(&self.address())
            .map_err(|error| Unreachable::new(&error))?;
        let body = rmp_serde::to_vec_named(request).map_err(|error| NetworkError::new(&error))?;
        let request = RaftRequest {
            cluster: self.network.cluster.to_string(),
            target: self.target.get(),
            kind: kind.into(),
            body: body.into(),
            without_quorum: self.network.without_quorum.load(Ordering::Relaxed),
        };
        let reply = within(option.hard_ttl(), peer.raft(request)).await?;
        let result: Result<Response, RaftError<NodeId, E>> =
            rmp_serde::from_slice(&reply.into_inner().body)
                .map_err(|error| NetworkError::new(&error))?;
        // Where Raft has stopped, the node is as good as gone.
        if !matches!(result, Err(RaftError::Fatal(_))) {
            self.network.clocks.answered(self.target);
        }
        result.map_err(|error| RemoteError::new(self.target, error).into())
    }

    /// Whether the node would vote for this one. Silence means no.
    pub(super) async fn pre_vote(&self, request: &PreVote, option: RPCOption) -> bool {
        let granted: Result<bool, Failure<Infallible>> =
            self.call(Kind::PreVote, request, option).await;
        granted.unwrap_or(false)
    }
}

/// What is not answered in time may be because the peer is down: openraft backs
/// off from `Unreachable`, and not from the other errors.
async fn within<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, tonic::Status>>,
) -> Result<T, Unreachable> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(status)) => Err(Unreachable::new(&status)),
        Err(elapsed) => Err(Unreachable::from(AnyError::new(&elapsed))),
    }
}

impl RaftNetwork<TypeConfig> for Connection {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        self.call(Kind::Append, &request, option).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<
        InstallSnapshotResponse<NodeId>,
        RPCError<NodeId, BasicNode, RaftError<NodeId, InstallSnapshotError>>,
    > {
        self.call(Kind::Snapshot, &request, option).await
    }

    /// Who does not answer is asked as often as the others, so that it is found back
    /// before it is evicted.
    fn backoff(&self) -> Backoff {
        Backoff::new(iter::repeat(HEARTBEAT))
    }

    async fn vote(
        &mut self,
        request: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RPCError<NodeId, BasicNode, RaftError<NodeId>>> {
        self.call(Kind::Vote, &request, option).await
    }
}
