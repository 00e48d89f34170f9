//! The committed generated code is what the protocol files say.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path};

#[test]
fn the_generated_code_matches_the_protocol_files() {
    matches("proto", "dchan/v1/peer.proto", "src/proto/dchan.v1.rs");
}

#[test]
fn the_generated_code_of_the_benches_matches_their_protocol_file() {
    let directory = "benches/cluster/worker/bare";
    matches(
        directory,
        "bare.proto",
        "benches/cluster/worker/bare/dchan.bench.rs",
    );
}

/// Regenerates the code and compares. Run with `DCHAN_REGENERATE=1` to write
/// the new code instead.
fn matches(directory: &str, protocol: &str, committed: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile([protocol], [root.join(directory)]).unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();

    let committed = root.join(committed);
    let name = committed.file_name().unwrap();
    let generated = fs::read_to_string(out.path().join(name)).unwrap();
    if env::var_os("DCHAN_REGENERATE").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    assert!(
        generated == fs::read_to_string(&committed).unwrap_or_default(),
        "{protocol} has changed: run `DCHAN_REGENERATE=1 cargo test --test proto` and commit the \
         result"
    );
}
