//! What this process uses.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CPU time so far, of all threads.
pub(super) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
