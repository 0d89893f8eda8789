//! A place among the pods that are being started.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::AbortHandle;

/// A start that takes longer waits for something else than the processor, so that its place does more good to another
/// pod: a handful of sandboxes that hang in their network plugin would else hold up the whole node.
const LONGEST: Duration = Duration::from_secs(10);

/// Holds a place until it is dropped, and at most ten seconds.
#[derive(Debug)]
pub struct StartSlot(AbortHandle);

impl StartSlot {
    /// Holds this permit.
    pub fn hold(permit: OwnedSemaphorePermit) -> Self {
        let held = async move {
            tokio::time::sleep(LONGEST).await;
            drop(permit);
        };
        Self(tokio::spawn(held).abort_handle())
    }
}

impl Drop for StartSlot {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_hangs_gives_its_place_to_another_after_ten_seconds() {
        let places = Arc::new(Semaphore::new(1));
        let slot = StartSlot::hold(places.clone().acquire_owned().await.unwrap());
        tokio::time::sleep(LONGEST - Duration::from_secs(1)).await;
        assert_eq!(places.available_permits(), 0);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(places.available_permits(), 1);
        drop(slot);
        let slot = StartSlot::hold(places.clone().acquire_owned().await.unwrap());
        drop(slot);
        tokio::task::yield_now().await;
        assert_eq!(places.available_permits(), 1, "a start that is done gives it back at once");
    }
}
