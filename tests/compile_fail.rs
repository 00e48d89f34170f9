//! What a user sees for a message that cannot travel.

use std::process::Command;

/// Other compilers may say the same in other words.
const COMPILER: &str = "rustc 1.95.";

#[test]
fn a_message_that_cannot_travel_does_not_compile_and_says_why() {
    let version = Command::new("rustc").arg("--version").output().unwrap();
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.starts_with(COMPILER) {
        println!("skipped: the messages were recorded with {COMPILER}*, and this is {version}");
        return;
    }
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
