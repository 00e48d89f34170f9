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
    item::{Item, SharedLedger, open},
    options::Mode,
};

struct Receiver {
    ledger: SharedLedger,
    mode: Mode,
}

/// Serves until the process ends.
pub(crate) async fn serve(address: &str, ledger: SharedLedger, mode: Mode) {
    let incoming = TcpIncoming::bind(address.parse().unwrap()).unwrap();
    let service = BareServer::new(Receiver { ledger, mode }).max_decoding_message_size(usize::MAX);
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
        let handled = handle(&self.ledger, self.mode, request.into_inner());
        Ok(Response::new(handled.unwrap_or_default()))
    }

    type LinkStream = BoxStream<Frame>;

    async fn link(
        &self,
        request: Request<Streaming<Frame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let answers = answers(request.into_inner(), self.ledger.clone(), self.mode);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Handles frames as the answers to them are asked for: there is no queue
/// between reading and answering.
fn answers(
    frames: Streaming<Frame>,
    ledger: SharedLedger,
    mode: Mode,
) -> impl Stream<Item = Result<Frame, Status>> {
    stream::try_unfold((frames, ledger), move |(mut frames, ledger)| async move {
        while let Some(frame) = frames.message().await? {
            if let Some(answer) = handle(&ledger, mode, frame) {
                return Ok(Some((answer, (frames, ledger))));
            }
        }
        Ok(None)
    })
}

/// Decodes and notes all messages, and answers as the mode wants it: not at
/// all, with how many there were, or with a reply to each.
fn handle(ledger: &SharedLedger, mode: Mode, frame: Frame) -> Option<Frame> {
    let mut ledger = open(ledger);
    let items = messages::<Item>(frame.messages);
    let mut answer = Batch::default();
    match mode {
        Mode::Ask | Mode::Ping => {
            for item in items {
                ledger.note(&item);
                answer.push(&item.id);
            }
        }
        Mode::Flood | Mode::Deliver => {
            let count = items.map(|item| ledger.note(&item)).count();
            if mode == Mode::Flood {
                return None;
            }
            answer.push(&count);
        }
    }
    Some(answer.frame())
}
