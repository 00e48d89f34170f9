//! Addresses for nodes that have to be known before these start.

use std::net::{Ipv4Addr, TcpListener};

/// An address with a port that was free a moment ago. Where all of 127.0.0.0/8
/// is this machine, it is one that nobody else uses, so that no connection takes
/// the port meanwhile.
pub fn free_address() -> String {
    let host = match cfg!(target_os = "linux") {
        true => Ipv4Addr::from_bits(0x7f00_0000 + rand::random_range(0x100..0xff_ff00)),
        false => Ipv4Addr::LOCALHOST,
    };
    let listener = TcpListener::bind((host, 0)).unwrap();
    listener.local_addr().unwrap().to_string()
}
