//! What has to happen at an instant.

use std::sync::Weak;

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

    /// Has it ring at this instant, unless it is set to an earlier one. Who has gone
    /// by then hears nothing.
    pub(crate) fn set<T: Send + Sync + 'static>(
        &mut self,
        at: Instant,
        whose: &Weak<T>,
        ring: fn(&T, Instant),
    ) {
        if self.set.as_ref().is_some_and(|(set, _)| *set <= at) {
            return;
        }
        self.clear();
        let whose = whose.clone();
        let task = self.runtime.spawn(async move {
            sleep_until(at).await;
            if let Some(whose) = whose.upgrade() {
                ring(&whose, Instant::now());
            }
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
    use std::{sync::Arc, time::Duration};

    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

    use super::*;

    struct Bell {
        made: Instant,
        rung: UnboundedSender<Duration>,
    }

    impl Bell {
        fn new() -> (Arc<Self>, UnboundedReceiver<Duration>) {
            let (rung, heard) = unbounded_channel();
            let made = Instant::now();
            (Arc::new(Self { made, rung }), heard)
        }

        /// Sets the alarm to so many seconds after the bell was made.
        fn after(self: &Arc<Self>, alarm: &mut Alarm, seconds: u64) {
            let at = self.made + Duration::from_secs(seconds);
            alarm.set(at, &Arc::downgrade(self), |bell, now| {
                bell.rung.send(now - bell.made).unwrap();
            });
        }
    }

    async fn seconds(heard: &mut UnboundedReceiver<Duration>) -> Option<u64> {
        Some(heard.recv().await?.as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_once_at_the_earliest_instant_that_it_was_set_to() {
        let mut alarm = Alarm::new(Handle::current());
        let (bell, mut heard) = Bell::new();
        for seconds in [3, 2, 4] {
            bell.after(&mut alarm, seconds);
        }
        assert_eq!(seconds(&mut heard).await, Some(2));
        let (other, mut others) = Bell::new();
        alarm.clear();
        other.after(&mut alarm, 9);
        assert_eq!(seconds(&mut others).await, Some(9));
        assert!(heard.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn cleared_or_dropped_it_is_silent() {
        let mut alarm = Alarm::new(Handle::current());
        let (bell, mut heard) = Bell::new();
        bell.after(&mut alarm, 1);
        alarm.clear();
        bell.after(&mut alarm, 2);
        assert_eq!(seconds(&mut heard).await, Some(2));
        alarm.clear();
        bell.after(&mut alarm, 3);
        drop(alarm);
        sleep_until(bell.made + Duration::from_secs(4)).await;
        assert!(heard.is_empty());
    }
}
