//! dchan
mod proto;
mod raft;
mod view;
