//! The committed generated code is what the protocol files say.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::{env, fs, path::Path};

/// Protocol files, each with its directory, the code that is generated from them,
/// and the codec that this uses: the crate's own, and what the benches compare it
/// with.
const GENERATED: [(&str, &str, &str, &str); 2] = [
    (
        "proto",
        "dchan/v1/peer.proto",
        "src/proto/dchan.v1.rs",
        "super::super::codec::Whole",
    ),
    (
        "benches/cluster/worker/bare",
        "bare.proto",
        "benches/cluster/worker/bare/dchan.bench.rs",
        "tonic_prost::ProstCodec",
    ),
];

/// Regenerates the code and compares. Run with `DCHAN_REGENERATE=1` to write
/// the new code instead.
#[test]
fn the_generated_code_matches_the_protocol_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (directory, protocol, committed, codec) in GENERATED {
        let out = tempfile::tempdir().unwrap();
        let descriptors = protox::compile([protocol], [root.join(directory)]).unwrap();
        tonic_prost_build::configure()
            .bytes(".")
            .codec_path(codec)
            .extern_path(".dchan.v1.Run", "super::run::Run")
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
            "{protocol} has changed: run `DCHAN_REGENERATE=1 cargo test --test proto` and commit \
             the result"
        );
    }
}
