//! dchan
mod proto;
mod raft;
mod transport;
mod view;
