//! A link between two servers that can be stopped or cut: TCP on this machine's loopback, forwarded to a server's socket.

use crate::cluster::Cluster;
use crate::error::Result;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// What a link does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Passes everything on.
    Up = 0,
    /// Passes nothing on, closes nothing, and lets nobody know.
    Stalled = 1,
    /// Closes every connection, and new ones at once; what was under way is lost.
    Cut = 2,
    /// The proxy is going.
    Over = 3,
}

/// How long a pump sleeps before it looks at the link again.
const LOOK: Duration = Duration::from_millis(5);

/// A proxy before a server; its threads end soon after it is dropped.
pub struct Proxy {
    port: u16,
    link: Arc<AtomicU8>,
}

impl Proxy {
    /// Listens on a free port of the loopback for connections to a cluster.
    pub fn start(cluster: &Cluster) -> Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let link = Arc::new(AtomicU8::new(Link::Up as u8));
        let socket = cluster.socket_dir().join(format!(".s.PGSQL.{}", cluster.port()));
        let state = Arc::clone(&link);
        std::thread::spawn(move || accept(&listener, &socket, &state));
        Ok(Proxy { port, link })
    }

    /// Where to connect, as options of a foreign server.
    pub fn options(&self) -> String {
        format!("host '127.0.0.1', port '{}'", self.port)
    }

    /// Changes the link.
    pub fn set(&self, link: Link) {
        self.link.store(link as u8, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Link::Over);
    }
}

fn is(state: &AtomicU8, link: Link) -> bool {
    state.load(Ordering::SeqCst) == link as u8
}

fn ends(state: &AtomicU8) -> bool {
    is(state, Link::Cut) || is(state, Link::Over)
}

fn accept(listener: &TcpListener, socket: &PathBuf, state: &Arc<AtomicU8>) {
    while !is(state, Link::Over) {
        let Ok((near, _)) = listener.accept() else {
            std::thread::sleep(LOOK);
            continue;
        };
        if is(state, Link::Cut) {
            let _ = near.shutdown(Shutdown::Both);
            continue;
        }
        // A server that is down: the connection is closed.
        if let Ok(far) = UnixStream::connect(socket) {
            let _ = forward(&near, &far, state);
        }
    }
}

fn forward(near: &TcpStream, far: &UnixStream, state: &Arc<AtomicU8>) -> std::io::Result<()> {
    near.set_nonblocking(false)?;
    near.set_nodelay(true)?;
    near.set_read_timeout(Some(LOOK))?;
    far.set_read_timeout(Some(LOOK))?;
    let (mut a, mut b) = (near.try_clone()?, far.try_clone()?);
    let (mut c, mut d) = (far.try_clone()?, near.try_clone()?);
    let (one, other) = (Arc::clone(state), Arc::clone(state));
    std::thread::spawn(move || {
        pump(&mut a, &mut b, &one);
        let _ = (a.shutdown(Shutdown::Both), b.shutdown(Shutdown::Both));
    });
    std::thread::spawn(move || {
        pump(&mut c, &mut d, &other);
        let _ = (c.shutdown(Shutdown::Both), d.shutdown(Shutdown::Both));
    });
    Ok(())
}

/// Passes on what comes until an end closes or the link is cut.
fn pump(from: &mut impl Read, to: &mut impl Write, state: &AtomicU8) {
    let mut buffer = [0_u8; 16 * 1024];
    while !ends(state) {
        if is(state, Link::Stalled) {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(size) => {
                // What was read when the link stopped waits with the rest.
                while is(state, Link::Stalled) {
                    std::thread::sleep(LOOK);
                }
                if ends(state) || to.write_all(&buffer[..size]).is_err() {
                    return;
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return,
        }
    }
}
