//! Processors kept awake. One that sleeps in between is slower for a while: on a virtual machine the same
//! loop was seen to take 520 µs of CPU time on busy processors and 960 µs after a nap of 20 ms, which hides
//! whatever a test wants to know about microseconds. A server at work does not nap either.

use crate::ffi::sys::run_when_idle;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Keeps every processor busy with nothing, at a priority below everybody else's, until dropped.
pub struct Awake {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    /// One thread per processor. Where such a priority is not to be had, no processor is kept awake.
    pub fn keep() -> Awake {
        let stop = Arc::new(AtomicBool::new(false));
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |stop: Arc<AtomicBool>| {
            let modest = run_when_idle();
            while modest && !stop.load(Ordering::Relaxed) {
                (0..100_000).for_each(|_| std::hint::spin_loop());
            }
        };
        let threads = (0..processors)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || spin(stop))
            })
            .collect();
        Awake { stop, threads }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A thread that does nothing cannot panic.
            let _ = thread.join();
        }
    }
}
