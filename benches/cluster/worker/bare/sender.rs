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
    super::in_flight,
    CONNECTION_WINDOW, FRAME_BYTES, Frame, STREAM_WINDOW,
    frame::{Batch, messages},
    generated::bare_client::BareClient,
    window::{Unanswered, Window},
};
use crate::{
    item::{Item, Stock},
    options::Subject,
    tasks::{Kind, Load, Orders, Sent},
};

/// What a gRPC message holds at most, unless a single message is larger.
const BATCH_BYTES: usize = 64 << 10;
/// What a message takes beside its body.
const MESSAGE_OVERHEAD: usize = 32;

pub(crate) struct Sender {
    receivers: Vec<BareClient<Channel>>,
    subject: Subject,
    /// Bytes of a message.
    size: usize,
}

impl Sender {
    /// Connects when it is first used.
    pub(crate) fn new(orders: &Orders) -> Self {
        let receivers = orders.addresses[1..].iter().map(|address| client(address));
        Self {
            receivers: receivers.collect(),
            subject: orders.subject,
            size: orders.size + MESSAGE_OVERHEAD,
        }
    }

    pub(crate) async fn send(&self, load: Load, stock: &Arc<Stock>) -> Sent {
        match self.subject {
            Subject::Unary => self.call(&load, stock).await,
            _ => {
                let sent = self.link(&load, stock).await;
                sent.unwrap_or_else(|status| panic!("a stream broke: {status}"))
            }
        }
    }

    /// A call a message, of which so many are under way.
    async fn call(&self, load: &Load, stock: &Stock) -> Sent {
        let mut turn = self.receivers.iter().cycle();
        let call = |item: Item| {
            let mut receiver = turn.next().expect("there is one").clone();
            async move {
                let mut batch = Batch::with_capacity(self.size);
                batch.push(&item);
                let Ok(reply) = receiver.call(batch.frame()).await else {
                    return false;
                };
                let reply = messages::<u64>(reply.into_inner().messages).next();
                load.kind != Kind::Ask || reply == Some(item.id)
            }
        };
        let until = Instant::now() + load.lasts;
        let sent = in_flight::keep(load.in_flight, until, stock, call).await;
        // In a flood nobody asks, though it is known.
        let latency = sent.latency.filter(|_| load.kind != Kind::Flood);
        Sent { latency, ..sent }
    }

    /// A stream to each receiver.
    async fn link(&self, load: &Load, stock: &Arc<Stock>) -> Result<Sent, Status> {
        let before = stock.taken();
        let until = Instant::now() + load.lasts;
        let window = (load.kind != Kind::Flood).then(|| Window::new(load.in_flight));
        let streams = self.receivers.iter().map(|receiver| {
            let unanswered = Unanswered::default();
            let frames = Frames {
                stock: stock.clone(),
                window: window.clone(),
                unanswered: unanswered.clone(),
                batch_bytes: match self.subject {
                    Subject::Batched => BATCH_BYTES,
                    _ => 1,
                },
                message_bytes: self.size,
                until,
            };
            let answered = window.clone().map(|window| (window, unanswered));
            follow(receiver.clone(), load.kind, frames, answered)
        });
        try_join_all(streams).await?;
        Ok(Sent {
            messages: stock.taken() - before,
            failed: 0,
            latency: window.map(|window| window.percentiles()),
        })
    }
}

/// Reads the answers until all have come.
async fn follow(
    mut receiver: BareClient<Channel>,
    kind: Kind,
    frames: Frames,
    answered: Option<(Window, Unanswered)>,
) -> Result<(), Status> {
    let mut answers = receiver.link(frames).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let (window, unanswered) = answered.as_ref().expect("a flood is not answered");
        let count = match kind {
            Kind::Deliver => messages::<usize>(answer.messages).sum(),
            _ => messages::<u64>(answer.messages).count(),
        };
        window.answered(unanswered, count);
    }
    Ok(())
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
