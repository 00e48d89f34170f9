//! What this process uses.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// CPU time so far, of all threads.
pub(crate) fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The most memory that it has had.
pub(crate) fn peak_memory_kib() -> u64 {
    status("VmHWM")
}

fn status(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse().unwrap()
}
