//! The sockets of a worker, all of which lead to nodes, and those that a user's session opens to nodes for us: libpq waits on
//! them, in some versions without looking at interrupts. Cutting them ends every such wait at once, with the error of a lost
//! connection.

use super::bgworker;
use super::compat;
use super::local::Local;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Descriptors are given lowest first, so that connections have low ones.
const MOST_SOCKETS: libc::c_int = 1024;
/// A peer that is silent for so long is asked whether it is there, s; so often again, s; and so often at most.
const KEEPALIVE: [(libc::c_int, libc::c_int); 3] =
    [(libc::TCP_KEEPIDLE, 10), (libc::TCP_KEEPINTVL, 5), (libc::TCP_KEEPCNT, 3)];
/// What was sent and is not acknowledged for so long ends the connection, ms.
const USER_TIMEOUT_MS: libc::c_int = 20_000;

/// Sockets of a user's session that are not ours to cut, a bit for each descriptor; a worker has none.
static SPARED: [AtomicU64; MOST_SOCKETS as usize / 64] =
    [const { AtomicU64::new(0) }; MOST_SOCKETS as usize / 64];

/// Our time-out, once it is registered.
static TIMEOUT: Local<Option<u32>> = Local::new(None);
/// It is set.
static BOUND: Local<bool> = Local::new(false);
/// It went off.
static CUT: AtomicBool = AtomicBool::new(false);

/// Once cut, again so often, ms: who loses a connection may make another one.
const AGAIN_MS: i32 = 100;

/// Shuts every stream of this process down but those that are spared. (Datagrams go to name servers, whom that would make the
/// resolver ask again and again without a pause: see [`super::host`].) Async-signal-safe. In workers, which have no client, and
/// within [`Bound::in_session`].
pub fn cut() {
    // SAFETY: shutdown() may be called in signal handlers and on any number: what is no socket stays as it is. The
    // place of errno is the thread's own.
    unsafe {
        let errno = libc::__errno_location();
        let before = *errno;
        for descriptor in 3..MOST_SOCKETS {
            // What listens may be shared with other processes.
            if !is_spared(descriptor)
                && option(descriptor, libc::SOL_SOCKET, libc::SO_TYPE) == Some(libc::SOCK_STREAM)
                && option(descriptor, libc::SOL_SOCKET, libc::SO_ACCEPTCONN) == Some(0)
            {
                libc::shutdown(descriptor, libc::SHUT_RDWR);
            }
        }
        *errno = before;
    }
}

fn is_spared(descriptor: libc::c_int) -> bool {
    let at = descriptor as usize;
    SPARED.get(at / 64).is_none_or(|word| (word.load(Ordering::Relaxed) >> (at % 64)) & 1 == 1)
}

/// Spares what is open now: the session's client, and whatever else its user has connected to.
fn spare_open() {
    for (number, word) in SPARED.iter().enumerate() {
        let is_socket = |bit: &usize| {
            option((number * 64 + bit) as libc::c_int, libc::SOL_SOCKET, libc::SO_TYPE).is_some()
        };
        let open = (0..64).filter(is_socket).fold(0_u64, |open, bit| open | (1 << bit));
        word.store(open, Ordering::Relaxed);
    }
}

/// # Safety
/// A handler of a time-out: runs inside a signal handler.
unsafe extern "C-unwind" fn expire() {
    CUT.store(true, Ordering::Relaxed);
    cut();
}

/// Whether the last bound of this process went off.
pub fn has_cut() -> bool {
    CUT.load(Ordering::Relaxed)
}

/// Whether a bound that has not ended went off: whatever is connected to is cut at once.
pub fn is_cutting() -> bool {
    BOUND.get() && has_cut()
}

/// Until it goes, nodes have to answer within its time.
pub struct Bound(Option<u32>);

impl Bound {
    /// Cuts every connection of this worker when `limit_ms` have passed, and whatever it connects to after that. In other
    /// sessions it does nothing.
    pub fn set(limit_ms: u128) -> Bound {
        if bgworker::is_ours() { Bound::begin(limit_ms) } else { Bound(None) }
    }

    /// The same in a user's session, of connections that are made from now on. Not within another one.
    pub fn in_session(limit_ms: u128) -> Bound {
        if !bgworker::is_ours() {
            spare_open();
        }
        Bound::begin(limit_ms)
    }

    fn begin(limit_ms: u128) -> Bound {
        let id = TIMEOUT.get().unwrap_or_else(|| {
            let id = compat::register_timeout(expire);
            TIMEOUT.set(Some(id));
            id
        });
        CUT.store(false, Ordering::Relaxed);
        BOUND.set(true);
        compat::enable_timeouts(id, limit_ms.clamp(1, 86_400_000) as i64, AGAIN_MS);
        Bound(Some(id))
    }

    /// Whether it went off.
    pub fn is_over(&self) -> bool {
        self.0.is_some() && has_cut()
    }

    /// Ends it; whether it went off, so that nothing that a connection held there is held any more.
    pub fn end(self) -> bool {
        self.stop();
        self.is_over()
    }

    fn stop(&self) {
        if let Some(id) = self.0 {
            compat::disable_timeout(id);
            BOUND.set(false);
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes this worker notice when the other end of a connection is gone, whatever the foreign server's options leave
/// out: those that it sets stay.
pub fn watch() {
    if !bgworker::is_ours() {
        return;
    }
    for descriptor in 3..MOST_SOCKETS {
        if option(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN)
            .is_some_and(|domain| matches!(domain, libc::AF_INET | libc::AF_INET6))
            && option(descriptor, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) == Some(0)
        {
            set_option(descriptor, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, USER_TIMEOUT_MS);
            set_option(descriptor, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
            for (name, value) in KEEPALIVE {
                if option(descriptor, libc::IPPROTO_TCP, name).is_some_and(|now| now > value) {
                    set_option(descriptor, libc::IPPROTO_TCP, name, value);
                }
            }
        }
    }
}

fn option(descriptor: libc::c_int, level: libc::c_int, name: libc::c_int) -> Option<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: value and size are valid for what these options write; anything but a socket is refused.
    let done = unsafe {
        libc::getsockopt(descriptor, level, name, std::ptr::from_mut(&mut value).cast(), &raw mut size)
    };
    (done == 0).then_some(value)
}

fn set_option(descriptor: libc::c_int, level: libc::c_int, name: libc::c_int, value: libc::c_int) {
    // SAFETY: as above, for reading; a socket that refuses stays as it is.
    unsafe {
        libc::setsockopt(
            descriptor,
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
}
