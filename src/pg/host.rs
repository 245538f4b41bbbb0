//! Names of hosts. libpq looks them up without a time limit and without looking at interrupts, and to cut the sockets of a name server
//! ends nothing: the resolver asks them again, without a pause, until its own time is over. So whoever is about to connect has the
//! name looked up beforehand, by a thread that does nothing else; who does not wait for it any longer leaves it to itself. It ends
//! when the resolver has had enough, and until then nobody in this process connects to that host.
//!
//! What was found is not kept: libpq looks it up again, and gets its answer from a name server that has just answered.

use super::local::LocalBox;
use super::wire;
use std::collections::HashMap;
use std::net::ToSocketAddrs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Longest wait between two looks at interrupts.
const SLICE: Duration = Duration::from_millis(50);
/// What a thread that looks up a name has for its stack, whatever modules the resolver loads.
const STACK_BYTES: usize = 1 << 20;

/// A name that is being looked up.
struct Asked {
    begun: Instant,
    ended: Receiver<()>,
}

static ASKED: LocalBox<HashMap<String, Asked>> = LocalBox::new();

/// Begins to look up a name, unless that is under way. Where there is no thread to be had libpq does it by itself.
pub fn ask(name: &str) {
    if !has_ended(name, Duration::ZERO) {
        return;
    }
    let Some(ended) = begin(name.to_owned()) else { return };
    let asked = Asked { begun: Instant::now(), ended };
    ASKED.with(HashMap::new, |all| all.insert(name.to_owned(), asked));
}

/// Whether no look-up of a name is under way; one that is is waited for so long.
pub fn has_ended(name: &str, wait: Duration) -> bool {
    let look = |all: &mut HashMap<String, Asked>| {
        let asked = all.get(name);
        let waits = |asked: &Asked| asked.ended.recv_timeout(wait) == Err(RecvTimeoutError::Timeout);
        if asked.is_some_and(waits) {
            return false;
        }
        all.remove(name);
        true
    };
    ASKED.with(HashMap::new, look).unwrap_or(true)
}

/// Waits for a name that is being looked up until so long after that began, or until this process has to give up what it does on a
/// node anyway; whether it has been.
pub fn wait(name: &str, limit: Duration) -> bool {
    loop {
        if has_ended(name, SLICE) {
            return true;
        }
        pgrx::check_for_interrupts!();
        let begun = ASKED.with(HashMap::new, |all| all.get(name).map(|asked| asked.begun)).flatten();
        if wire::is_cutting() || begun.is_none_or(|begun| begun.elapsed() >= limit) {
            return false;
        }
    }
}

/// Looks up a name in a thread of its own; None: there is none to be had. It gets no signals, whose handlers are PostgreSQL's, and
/// touches nothing of the server.
fn begin(name: String) -> Option<Receiver<()>> {
    let (tell, ended) = channel();
    let look_up = move || {
        // What comes of it libpq finds out as well.
        let _ = (name.as_str(), 0_u16).to_socket_addrs();
        let _ = tell.send(());
    };
    let spawned = without_signals(|| std::thread::Builder::new().stack_size(STACK_BYTES).spawn(look_up));
    spawned.ok().map(|_| ended)
}

/// Runs `work` while no signal comes: threads that it starts never get one.
fn without_signals<R>(work: impl FnOnce() -> R) -> R {
    // SAFETY: sets of signals are plain data, valid when they are zero; what was blocked before is what is blocked afterwards.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        let result = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut());
        result
    }
}
