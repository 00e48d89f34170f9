//! What is measured in one sitting.

use crate::options::{Mode, Options, Subject};

/// One table: a mode, and those that are compared in it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) mode: Mode,
    pub(crate) size: usize,
    pub(crate) receivers: usize,
    pub(crate) subjects: Vec<Subject>,
}

const MANY_RECEIVERS: usize = 50;

impl Options {
    pub(crate) fn cases(&self) -> Vec<Case> {
        if self.mode != Mode::All {
            let baselines = match self.baseline {
                true => self.mode.baselines(),
                false => &[],
            };
            return vec![self.case(self.mode, self.size, self.receivers, baselines)];
        }
        use Subject::{Batched, Stream, Unary};
        let case = |mode, size, receivers, baselines: &[Subject]| {
            self.case(mode, size, Some(receivers), baselines)
        };
        let mut cases = vec![
            case(Mode::Flood, 16, 1, &[Unary, Batched]),
            case(Mode::Flood, 1 << 10, 1, &[Unary, Batched]),
            case(Mode::Flood, 64 << 10, 1, &[Stream, Batched]),
            case(Mode::Flood, 1 << 10, 3, &[Batched]),
            case(Mode::Deliver, 1 << 10, 1, &[Unary]),
            case(Mode::Ask, 1 << 10, 1, &[Unary]),
            case(Mode::Ping, 1 << 10, 1, &[Unary]),
            case(Mode::Mixed, 1 << 10, 1, &[]),
            case(Mode::Slow, 1 << 10, 1, &[]),
        ];
        for mode in [Mode::Register, Mode::Idle, Mode::Spread, Mode::Start] {
            cases.push(self.case(mode, 1 << 10, self.receivers, &[]));
        }
        cases
    }

    fn case(
        &self,
        mode: Mode,
        size: usize,
        receivers: Option<usize>,
        baselines: &[Subject],
    ) -> Case {
        let receivers = match mode {
            Mode::Register | Mode::Start => 2,
            Mode::Idle => 0,
            Mode::Spread => receivers.unwrap_or(MANY_RECEIVERS),
            _ => receivers.unwrap_or(1),
        };
        Case {
            mode,
            size,
            receivers,
            subjects: [&self.layouts, baselines].concat(),
        }
    }
}
