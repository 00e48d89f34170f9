//! What a user sees for a message that cannot travel.

#[test]
fn a_message_that_cannot_travel_does_not_compile_and_says_why() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
