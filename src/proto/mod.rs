//! The wire protocol. But for [`run`] it is generated from `proto/` by
//! `tests/proto.rs`.

mod codec;
pub(crate) mod run;

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod v1 {
    include!("dchan.v1.rs");
}

pub(crate) use run::Run;
pub(crate) use v1::*;
