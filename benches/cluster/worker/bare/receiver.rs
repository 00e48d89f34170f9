//! The receiving end: decodes and notes each message where it reads it.

use std::time::Duration;

use futures_util::{Stream, stream};
use tonic::{
    Request, Response, Status, Streaming,
    codegen::BoxStream,
    transport::{Server, server::TcpIncoming},
};

use super::{
    CONNECTION_WINDOW, FRAME_BYTES, Frame, STREAM_WINDOW,
    frame::{Batch, messages},
    generated::bare_server::{Bare, BareServer},
};
use crate::{
    item::Item,
    ledger::{SharedLedger, open},
    tasks::{Kind, Orders},
};

struct Receiver {
    ledger: SharedLedger,
    kind: Kind,
}

/// Serves until the process ends.
pub(crate) fn serve(orders: &Orders, ledger: SharedLedger) {
    let address = &orders.addresses[orders.mine.start];
    let incoming = TcpIncoming::bind(address.parse().unwrap()).unwrap();
    let kind = orders.kind;
    let service = BareServer::new(Receiver { ledger, kind }).max_decoding_message_size(usize::MAX);
    let server = Server::builder()
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .add_service(service)
        .serve_with_incoming(incoming.with_nodelay(Some(true)));
    tokio::spawn(server);
}

#[tonic::async_trait]
impl Bare for Receiver {
    async fn call(&self, request: Request<Frame>) -> Result<Response<Frame>, Status> {
        let handled = handle(&self.ledger, self.kind, request.into_inner());
        Ok(Response::new(handled.unwrap_or_default()))
    }

    type LinkStream = BoxStream<Frame>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let answers = answers(request.into_inner(), self.ledger.clone(), self.kind);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Handles frames as the answers to them are asked for: there is no queue
/// between reading and answering.
fn answers(
    frames: Streaming<Frame>,
    ledger: SharedLedger,
    kind: Kind,
) -> impl Stream<Item = Result<Frame, Status>> {
    stream::try_unfold((frames, ledger), move |(mut frames, ledger)| async move {
        while let Some(frame) = frames.message().await? {
            if let Some(answer) = handle(&ledger, kind, frame) {
                return Ok(Some((answer, (frames, ledger))));
            }
        }
        Ok(None)
    })
}

/// Decodes and notes all messages, and answers as it is awaited: not at all, with how many there were, or with a reply to each.
fn handle(ledger: &SharedLedger, kind: Kind, frame: Frame) -> Option<Frame> {
    let mut ledger = open(ledger);
    let items = messages::<Item>(frame.messages);
    let mut answer = Batch::default();
    match kind {
        Kind::Ask => {
            for item in items {
                ledger.note(&item);
                answer.push(&item.id);
            }
        }
        Kind::Flood | Kind::Deliver => {
            let count = items.map(|item| ledger.note(&item)).count();
            if kind == Kind::Flood {
                return None;
            }
            answer.push(&count);
        }
    }
    Some(answer.frame())
}
