//! Memory that the allocator holds and nobody uses, given back to the kernel.
//!
//! glibc keeps what was freed for the next caller, and gives back only the end of a heap. After a burst (a list of
//! 10,000 Services, a hundred pods at once) the rest stays resident for ever, though a quiet agent never needs it again:
//! this gives it back, page by page, wherever it lies. Other allocators do that themselves; for them this does nothing.

#![allow(unsafe_code)]

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// How often the allocator is asked. Bursts are rarer, and what one holds for a minute does no harm.
const PERIOD: Duration = Duration::from_secs(60);
/// What must have been freed to be worth the work: what the next pod needs should not have to come from the kernel.
const WORTH: usize = 2 << 20;
/// glibc's own first value of both limits, in bytes.
#[cfg(all(target_env = "gnu", not(feature = "mimalloc")))]
const LARGE: libc::c_int = 128 << 10;

/// Large pieces come from the kernel and go back to it one by one, and heaps end where they are used. Without a word glibc
/// moves both limits up to twice the largest piece that was ever freed, so that each heap of a thread may keep megabytes at
/// its end, where [`give_back`] does not look. And one heap for all threads: what one frees another one uses, which is a
/// tenth less memory with 4,000 Services; small pieces come from each thread's own cache, so that nobody waits for it.
/// To be called before threads are started.
pub fn set_limits() {
    #[cfg(all(target_env = "gnu", not(feature = "mimalloc")))]
    // SAFETY: the function has no precondition (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, LARGE);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Asks the allocator now and then, until shutdown.
pub async fn run(shutdown: CancellationToken) {
    let mut timer = tokio::time::interval(PERIOD);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // Pages that were given back still count as free.
    let mut given = 0;
    while shutdown.run_until_cancelled(timer.tick()).await.is_some() {
        given = free().min(given);
        if free() > given + WORTH {
            // Some milliseconds for a large heap, with its locks held: no work for a thread of the runtime.
            let _ = tokio::task::spawn_blocking(give_back).await;
            given = free();
        }
    }
}

/// Gives back every free page now. It takes about a millisecond for each 20 MiB of heap.
pub fn give_back() {
    #[cfg(all(target_env = "gnu", not(feature = "mimalloc")))]
    // SAFETY: the function has no precondition and may be called from any thread (malloc_trim(3), MT-Safe).
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Bytes that the allocator holds and nobody uses, as a lower bound: the count wraps at 4 GiB.
fn free() -> usize {
    #[cfg(all(target_env = "gnu", not(feature = "mimalloc")))]
    // SAFETY: the function has no precondition and only counts (mallinfo(3)). Its successor is not in every glibc that
    // we start on.
    return unsafe { libc::mallinfo() }.fordblks.cast_unsigned() as usize;
    #[cfg(not(all(target_env = "gnu", not(feature = "mimalloc"))))]
    0
}

#[cfg(all(test, target_env = "gnu", not(feature = "mimalloc")))]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_resident_no_more() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").expect("this process has memory");
            statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages")
        };
        // Every other one is kept, so that no heap ends with free memory.
        let mut pieces: Vec<Option<Box<[u8]>>> = (0..8192).map(|_| Some(vec![1; 8192].into())).collect();
        pieces.iter_mut().step_by(2).for_each(|piece| *piece = None);
        let before = resident();
        assert!(free() > 16 << 20, "{} bytes are free", free());
        give_back();
        let given = before.saturating_sub(resident()) * rustix::param::page_size();
        assert!(given > 8 << 20, "{given} bytes were given back");
    }
}
