//! What other nodes ask of this one: control goes to the Raft actor, links to
//! the inbox.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use actix::{Addr, MailboxError};
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info, warn};

use crate::{
    broadcast::Relays,
    inbox::Inbox,
    link::{Channels, Incoming, Inlets, OPEN_TIMEOUT, Replies, Room},
    proto::{
        FoundReply, FoundRequest, HelloReply, HelloRequest, LinkRequest, Open, RaftReply,
        RaftRequest, SubmitReply, SubmitRequest, opened::Answer, peer_server,
    },
    raft::{Found, Hello, RaftActor, Rpc, RpcError, Submit},
    view::{Identity, NodeId},
};

pub(crate) struct Server {
    pub(crate) me: Identity,
    pub(crate) raft: Addr<RaftActor>,
    pub(crate) inbox: Arc<Inbox>,
    /// The largest message or reply, in bytes, that a link carries.
    pub(crate) max_message: usize,
    /// For large messages that are being put together.
    pub(crate) room: Room,
    /// For broadcasts.
    pub(crate) broadcast_room: Room,
    pub(crate) relays: Arc<Relays>,
    /// Counts the links that are being read.
    pub(crate) tasks: TaskTracker,
    /// Counts those whose peers have replies to read.
    pub(crate) replying: TaskTracker,
    /// The latest link from each node; it ends an earlier one.
    pub(crate) links: Mutex<HashMap<NodeId, Arc<Incoming>>>,
    /// Ends them.
    pub(crate) stop: CancellationToken,
}

impl Server {
    /// The address to send to. A clone each time, for actix keeps a place in
    /// the mailbox for each sender, and never wakes one that finds it full.
    fn raft(&self) -> Addr<RaftActor> {
        self.raft.clone()
    }
}

fn stopped(_: MailboxError) -> Status {
    Status::unavailable("the node is shutting down")
}

#[tonic::async_trait]
impl peer_server::Peer for Server {
    async fn hello(&self, _: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let reply = self.raft().send(Hello).await.map_err(stopped)?;
        Ok(Response::new(reply))
    }

    async fn found(&self, request: Request<FoundRequest>) -> Result<Response<FoundReply>, Status> {
        let found = Found(request.into_inner());
        let reply = self.raft().send(found).await.map_err(stopped)?;
        Ok(Response::new(reply))
    }

    async fn submit(
        &self,
        request: Request<SubmitRequest>,
    ) -> Result<Response<SubmitReply>, Status> {
        let submit = Submit(request.into_inner());
        let reply = self.raft().send(submit).await.map_err(stopped)?;
        Ok(Response::new(reply))
    }

    async fn raft(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let request = request.into_inner();
        if *request.cluster != *self.me.cluster {
            return Err(Status::failed_precondition("another cluster"));
        }
        if request.target != self.me.node.get() {
            return Err(Status::failed_precondition("another node"));
        }
        let rpc = Rpc {
            kind: request.kind(),
            body: request.body,
            without_quorum: request.without_quorum,
        };
        match self.raft().send(rpc).await.map_err(stopped)? {
            Ok(body) => Ok(Response::new(RaftReply { body })),
            Err(RpcError::UnknownKind) => Err(Status::unimplemented("no such Raft RPC")),
            Err(error) => {
                warn!(node = %self.me.node, %error, "a Raft RPC cannot be answered");
                Err(Status::invalid_argument(error.to_string()))
            }
        }
    }

    type LinkStream = Replies;

    async fn link(
        &self,
        request: Request<Streaming<LinkRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut frames = request.into_inner();
        let first = timeout(OPEN_TIMEOUT, frames.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("nothing opens the link"))??;
        let open = first
            .and_then(|frame| frame.open)
            .ok_or_else(|| Status::invalid_argument("the first frame has to open the link"))?;
        let answer = self.answer(&open);
        let incoming = Incoming::new(
            NodeId::from(open.node),
            self.max_message,
            self.replying.clone(),
        );
        incoming.answer(answer);
        if answer == Answer::Welcome {
            info!(node = %self.me.node, peer = %incoming.peer, "incoming link opened");
            self.replace(&incoming);
            self.follow(incoming.clone(), frames);
        } else {
            debug!(node = %self.me.node, peer = %incoming.peer, ?answer, "refused a link");
            incoming.end();
        }
        Ok(Response::new(incoming.into_replies()))
    }
}

impl Server {
    fn answer(&self, open: &Open) -> Answer {
        if *open.cluster != *self.me.cluster {
            Answer::WrongCluster
        } else if open.target != self.me.node.get() {
            Answer::WrongNode
        } else if open.target_boot != self.me.boot {
            Answer::WrongBoot
        } else if self.stop.is_cancelled() {
            Answer::Closing
        } else {
            Answer::Welcome
        }
    }

    /// Ends an earlier link of the same node: it has given that one up.
    fn replace(&self, incoming: &Arc<Incoming>) {
        let mut links = self
            .links
            .lock()
            .expect("no panic while links are replaced");
        links.retain(|_, link| !link.is_over());
        if let Some(earlier) = links.insert(incoming.peer, incoming.clone()) {
            earlier.end();
        }
    }

    /// Reads a link until it ends.
    fn follow(&self, incoming: Arc<Incoming>, mut frames: Streaming<LinkRequest>) {
        let (inbox, relays) = (self.inbox.clone(), self.relays.clone());
        let (me, stop) = (self.me.node, self.stop.clone());
        let max_message = self.max_message;
        let peer = incoming.peer;
        let (room, broadcast_room) = (self.room.of_peer(peer), self.broadcast_room.of_peer(peer));
        self.tasks.spawn(async move {
            let find = |name: &str| {
                Some(Inlets {
                    messages: inbox.inlet(name)?,
                    broadcasts: relays.inlet(name)?,
                })
            };
            let mut channels =
                Channels::new(incoming.clone(), find, max_message, room, broadcast_room);
            loop {
                let frame = tokio::select! {
                    frame = frames.message() => frame,
                    () = channels.admissions() => break,
                    () = stop.cancelled() => break,
                    () = incoming.over() => break,
                };
                match frame {
                    Ok(Some(frame)) => {
                        if let Err(error) = channels.frame(frame) {
                            warn!(node = %me, %peer, %error, "a peer broke the link protocol");
                            incoming.forget();
                            break;
                        }
                    }
                    Ok(None) => break,
                    Err(status) => {
                        debug!(node = %me, %peer, %status, "an incoming link was cut");
                        break;
                    }
                }
            }
            incoming.end();
            info!(node = %me, %peer, "incoming link ended");
        });
    }
}
