//! What has to happen at an instant.

use tokio::{
    runtime::Handle,
    task::AbortHandle,
    time::{Instant, sleep_until},
};

/// Rings once, on the node's thread, and takes no memory there until it is set.
/// Dropped, it does not ring.
pub(crate) struct Alarm {
    runtime: Handle,
    set: Option<(Instant, AbortHandle)>,
}

impl Alarm {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, set: None }
    }

    /// Has it ring at this instant, unless it is set to an earlier one.
    pub(crate) fn set<F: FnOnce(Instant) + Send + 'static>(
        &mut self,
        at: Instant,
        ring: impl FnOnce() -> F,
    ) {
        if self.set.as_ref().is_some_and(|(set, _)| *set <= at) {
            return;
        }
        self.clear();
        let ring = ring();
        let task = self.runtime.spawn(async move {
            sleep_until(at).await;
            ring(Instant::now());
        });
        self.set = Some((at, task.abort_handle()));
    }

    /// Has it not ring. Called while it rings, it can be set anew.
    pub(crate) fn clear(&mut self) {
        if let Some((_, task)) = self.set.take() {
            task.abort();
        }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_earliest_instant_that_it_was_set_to() {
        let (sender, mut rung) = mpsc::unbounded_channel();
        let mut alarm = Alarm::new(Handle::current());
        let begin = Instant::now();
        for seconds in [3, 2, 4] {
            let sender = sender.clone();
            let ring = move |now: Instant| sender.send(now - begin).unwrap();
            alarm.set(begin + Duration::from_secs(seconds), || ring);
        }
        drop(sender);
        let rung = [rung.recv().await, rung.recv().await];
        let millis = rung.map(|after| after.map(|after| after.as_millis() / 10));
        assert_eq!(millis, [Some(200), None]);
    }

    #[tokio::test(start_paused = true)]
    async fn it_can_be_cleared_and_set_anew_and_is_silent_once_dropped() {
        let (sender, mut rung) = mpsc::unbounded_channel();
        let mut alarm = Alarm::new(Handle::current());
        let set = |alarm: &mut Alarm, seconds| {
            let sender = sender.clone();
            let ring = move |_| sender.send(seconds).unwrap();
            alarm.set(Instant::now() + Duration::from_secs(seconds), || ring);
        };
        set(&mut alarm, 1);
        alarm.clear();
        set(&mut alarm, 2);
        assert_eq!(rung.recv().await, Some(2));
        alarm.clear();
        set(&mut alarm, 3);
        drop(alarm);
        drop(sender);
        assert_eq!(rung.recv().await, None);
    }
}
