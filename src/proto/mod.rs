//! The wire protocol, generated from `proto/` by `tests/proto.rs`.

mod codec;

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod v1 {
    include!("dchan.v1.rs");
}

pub(crate) use v1::*;
