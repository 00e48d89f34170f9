//! Bare tonic, with nothing around it: the baselines. Each process has one
//! thread, and does everything in the task that reads or writes, which is as
//! fast as it gets. HTTP/2 is set up as the crate does it.

mod generated {
    #![allow(missing_docs, unreachable_pub, clippy::all)]
    include!("dchan.bench.rs");
}

mod frame;
mod receiver;
mod sender;
mod window;

use self::generated::Frame;
pub(super) use self::{receiver::serve, sender::Sender};

// As in `src/connections.rs`.
const FRAME_BYTES: u32 = 256 << 10;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
