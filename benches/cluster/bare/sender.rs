//! The sending end: makes and encodes messages where they are written.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures_util::{Stream, future::try_join_all};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{
    CONNECTION_WINDOW, FRAME_BYTES, Frame, STREAM_WINDOW,
    frame::{Batch, messages},
    generated::bare_client::BareClient,
    window::{Unanswered, Window},
};
use crate::{
    in_flight,
    item::{Item, Stock},
    options::{Mode, Subject},
    orders::{Orders, Sent},
};

/// What a gRPC message holds at most, unless a single message is larger.
const BATCH_BYTES: usize = 64 << 10;
/// What a message takes beside its body.
const MESSAGE_OVERHEAD: usize = 32;

pub(crate) struct Sender {
    receivers: Vec<BareClient<Channel>>,
    subject: Subject,
    mode: Mode,
    in_flight: usize,
    size: usize,
    stock: Arc<Stock>,
}

impl Sender {
    /// Connects when it is first used.
    pub(crate) fn new(orders: &Orders) -> Self {
        let receivers = orders.addresses[1..].iter().map(|address| client(address));
        Self {
            receivers: receivers.collect(),
            subject: orders.subject,
            mode: orders.mode,
            in_flight: orders.in_flight,
            size: orders.size,
            stock: Arc::new(Stock::new(orders.size)),
        }
    }

    pub(crate) async fn send(&self, until: Instant) -> Sent {
        let sent = match self.subject {
            Subject::Unary => Ok(self.call(until).await),
            _ => self.link(until).await,
        };
        sent.unwrap_or_else(|status| panic!("a stream broke: {status}"))
    }

    /// A call a message, of which so many are under way.
    async fn call(&self, until: Instant) -> Sent {
        let mut turn = self.receivers.iter().cycle();
        let call = |item: Item| {
            let mut receiver = turn.next().expect("there is one").clone();
            let asks = self.mode != Mode::Deliver && self.mode != Mode::Flood;
            async move {
                let mut batch = Batch::with_capacity(self.size + MESSAGE_OVERHEAD);
                batch.push(&item);
                let Ok(reply) = receiver.call(batch.frame()).await else {
                    return false;
                };
                let reply = messages::<u64>(reply.into_inner().messages).next();
                !asks || reply == Some(item.id)
            }
        };
        let sent = in_flight::keep(self.in_flight, until, &self.stock, call).await;
        match self.mode {
            // Nobody asks, though it is known.
            Mode::Flood => Sent {
                latency: None,
                ..sent
            },
            _ => sent,
        }
    }

    /// A stream to each receiver.
    async fn link(&self, until: Instant) -> Result<Sent, Status> {
        let window = (self.mode != Mode::Flood).then(|| Window::new(self.in_flight));
        let streams = self.receivers.iter().map(|receiver| {
            let unanswered = Unanswered::default();
            let frames = Frames {
                stock: self.stock.clone(),
                window: window.clone(),
                unanswered: unanswered.clone(),
                batch_bytes: match self.subject {
                    Subject::Batched => BATCH_BYTES,
                    _ => 1,
                },
                message_bytes: self.size + MESSAGE_OVERHEAD,
                until,
            };
            self.follow(receiver.clone(), frames, window.clone(), unanswered)
        });
        try_join_all(streams).await?;
        Ok(Sent {
            sent: self.stock.taken(),
            failed: 0,
            latency: window.map(|window| window.percentiles()),
        })
    }

    /// Reads the answers until all have come.
    async fn follow(
        &self,
        mut receiver: BareClient<Channel>,
        frames: Frames,
        window: Option<Window>,
        unanswered: Unanswered,
    ) -> Result<(), Status> {
        let mut answers = receiver.link(frames).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            let window = window.as_ref().expect("a flood is not answered");
            let answered = match self.mode {
                Mode::Deliver => messages::<usize>(answer.messages).sum(),
                _ => messages::<u64>(answer.messages).count(),
            };
            window.answered(&unanswered, answered);
        }
        Ok(())
    }
}

fn client(address: &str) -> BareClient<Channel> {
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .tcp_nodelay(true)
        .max_frame_size(FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .connect_lazy();
    BareClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// Makes what the stream writes, when it asks for more: there is no queue
/// between sending and writing.
struct Frames {
    stock: Arc<Stock>,
    /// None if nothing is answered.
    window: Option<Window>,
    unanswered: Unanswered,
    batch_bytes: usize,
    message_bytes: usize,
    until: Instant,
}

impl Stream for Frames {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        if Instant::now() >= self.until {
            return Poll::Ready(None);
        }
        let room = match &self.window {
            Some(window) => window.room(cx),
            None => usize::MAX,
        };
        if room == 0 {
            return Poll::Pending;
        }
        let mut batch = Batch::with_capacity(self.batch_bytes.max(self.message_bytes));
        let mut count = 0;
        while count < room && (count == 0 || batch.len() + self.message_bytes <= self.batch_bytes) {
            batch.push(&self.stock.item());
            count += 1;
        }
        if let Some(window) = &self.window {
            window.sent(&self.unanswered, count);
        }
        Poll::Ready(Some(batch.frame()))
    }
}
