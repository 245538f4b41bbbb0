//! System calls the standard library has no safe form of.

use std::os::fd::RawFd;
use std::time::Duration;

/// Sends a signal. A process that is gone already is no error.
pub fn signal(pid: i32, signal: i32) {
    if pid > 1 {
        // SAFETY: kill has no memory effects.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Lets this thread's sleeps end on time instead of up to 50 µs late.
pub fn sleep_precisely() {
    // SAFETY: sets a number of this thread; no memory effects.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
}

/// From now on this thread runs only when a processor has nothing else to do.
pub fn run_when_idle() -> bool {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: one valid struct; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &param) == 0 }
}

/// The processors this process may run on.
pub fn processors() -> Vec<usize> {
    // SAFETY: a bit set, for which zero means empty.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: fills a set of the size it is told; 0 is the calling thread.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Vec::new();
    }
    // SAFETY: reads a bit below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect()
}

/// Keeps a process, and those it will start, on these processors. One that is gone already is no error.
pub fn pin(pid: i32, processors: &[usize]) {
    // SAFETY: a bit set, for which zero means empty.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in processors.iter().filter(|&&cpu| cpu < libc::CPU_SETSIZE as usize) {
        // SAFETY: sets a bit below the set's size.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    if pid > 0 {
        // SAFETY: reads a set of the size it is told; no memory effects.
        unsafe { libc::sched_setaffinity(pid, size_of::<libc::cpu_set_t>(), &set) };
    }
}

/// Waits until a descriptor has something to read or the time is over.
pub fn wait_readable(fd: RawFd, timeout: Duration) {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let wait_ms = i32::try_from(timeout.as_millis().max(1)).unwrap_or(i32::MAX);
    // SAFETY: one valid pollfd.
    unsafe { libc::poll(&mut poll, 1, wait_ms) };
}
