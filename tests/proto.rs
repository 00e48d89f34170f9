//! The committed generated code is what `proto/` says.

use std::{env, fs, path::Path};

/// Regenerates `src/proto/` from `proto/` and compares. Run with
/// `DCHAN_REGENERATE=1` to write the new code instead.
#[test]
fn the_generated_code_matches_the_protocol_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().unwrap();
    let descriptors = protox::compile(["dchan/v1/peer.proto"], [root.join("proto")]).unwrap();
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();

    let generated = fs::read_to_string(out.path().join("dchan.v1.rs")).unwrap();
    let committed = root.join("src/proto/dchan.v1.rs");
    if env::var_os("DCHAN_REGENERATE").is_some() {
        fs::write(&committed, &generated).unwrap();
    }
    assert!(
        generated == fs::read_to_string(&committed).unwrap_or_default(),
        "proto/ has changed: run `DCHAN_REGENERATE=1 cargo test --test proto` and commit the result"
    );
}
