//! Processes by number: signals, children, processors, and whether one is really gone.

use crate::error::{Error, Result};
pub use crate::ffi::sys::{pin, processors, signal};
use std::fs;
use std::time::{Duration, Instant};

/// The state letter and parent of a process.
fn status(pid: i32) -> Option<(char, i32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything, so start after the last one.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// True while a process runs; a zombie does not.
pub fn alive(pid: i32) -> bool {
    status(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The direct children of a process.
pub fn children(parent: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid| status(pid).is_some_and(|(_, of)| of == parent))
        .collect()
}

/// Asks a condition every 10 ms until it holds, or fails with `what` at the timeout.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + timeout;
    loop {
        let begun = Instant::now();
        if condition()? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new(format!("Waited {:.1} s in vain: {what}.", timeout.as_secs_f64()), ""));
        }
        rest(begun, Duration::from_millis(10));
    }
}

/// Waits before one looks again, after a look that began at `begun`: whoever asks dear questions must not keep a processor busy that
/// what he waits for needs.
pub fn rest(begun: Instant, least: Duration) {
    std::thread::sleep(least.max(begun.elapsed() * 3).min(Duration::from_millis(500)));
}

/// Memory that a process has for itself, kB: neither shared memory nor files.
pub fn own_memory_kb(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find(|line| line.starts_with("RssAnon:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
