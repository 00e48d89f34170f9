//! Who is next.

/// The first of `count` receivers, from the one whose turn it is on, that is
/// ready. Start the next search behind it: then all that stay ready get the
/// same number of messages, give or take one.
pub(crate) fn next(turn: usize, count: usize, ready: impl Fn(usize) -> bool) -> Option<usize> {
    let turn = if turn < count {
        turn
    } else {
        turn.checked_rem(count)?
    };
    (turn..count)
        .chain(0..turn)
        .find(|receiver| ready(*receiver))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(messages: usize, ready: [bool; 3]) -> [usize; 3] {
        let mut counts = [0; 3];
        let mut turn = 1;
        for _ in 0..messages {
            let Some(receiver) = next(turn, 3, |receiver| ready[receiver]) else {
                break;
            };
            counts[receiver] += 1;
            turn = receiver + 1;
        }
        counts
    }

    #[test]
    fn receivers_that_are_ready_get_the_same_number() {
        assert_eq!(counts(3_000, [true; 3]), [1_000; 3]);
        assert_eq!(counts(3_001, [true; 3]), [1_000, 1_001, 1_000]);
    }

    #[test]
    fn a_receiver_that_is_not_ready_costs_the_others_nothing() {
        assert_eq!(counts(1_000, [true, false, true]), [500, 0, 500]);
    }

    #[test]
    fn without_a_ready_receiver_nobody_is_next() {
        assert_eq!(counts(10, [false; 3]), [0; 3]);
        assert_eq!(next(0, 0, |_| true), None);
    }
}
