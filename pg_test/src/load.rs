//! Open-loop load: statements are due at fixed times, whether or not the server keeps up,
//! and latency counts from the time a statement was due. A stall is thus seen by every
//! statement that had to wait for it (no coordinated omission). How long the server itself
//! kept a client waiting, and how late clients sent, is recorded beside it.

use crate::client::Client;
use crate::error::{Error, Result, SqlError};
use crate::ffi::sys::sleep_precisely;
use crate::latency::Latencies;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How many error texts are kept of a run.
const ERRORS_KEPT: usize = 10;

/// What one client does.
pub trait Session: Send + 'static {
    /// Called after every (re)connection: prepare statements here.
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError>;
    /// One unit of work.
    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError>;
}

/// What happened in one window of time.
#[derive(Clone)]
pub struct Window {
    /// The name given by `mark`.
    pub label: String,
    /// Latencies from the due time of each completed step.
    pub latencies: Latencies,
    /// The longest time from sending a step to its answer, failed steps included.
    pub longest_wait: Duration,
    /// When that answer came, from the window's begin.
    pub longest_wait_at: Duration,
    /// The longest time by which a client sent a step later than it was due.
    pub longest_behind: Duration,
    /// Steps that failed.
    pub errors: u64,
    /// The longest time without any completion by any client.
    pub longest_gap: Duration,
    /// The window's length.
    pub elapsed: Duration,
    begun: Instant,
    last_completion: Instant,
}

impl Window {
    fn new(label: &str) -> Window {
        Window {
            label: label.to_string(),
            latencies: Latencies::default(),
            longest_wait: Duration::ZERO,
            longest_wait_at: Duration::ZERO,
            longest_behind: Duration::ZERO,
            errors: 0,
            longest_gap: Duration::ZERO,
            elapsed: Duration::ZERO,
            begun: Instant::now(),
            last_completion: Instant::now(),
        }
    }

    /// Completed steps per second.
    pub fn rate_per_s(&self) -> f64 {
        self.latencies.count() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

#[derive(Default)]
struct Record {
    windows: Vec<Window>,
    error_texts: Vec<String>,
}

struct Shared {
    stop: AtomicBool,
    record: Mutex<Record>,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        // A client that panicked while it held the lock left at worst one count short.
        self.record.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn completed(&self, due: Instant, sent: Instant, outcome: std::result::Result<(), &SqlError>) {
        let now = Instant::now();
        let mut record = self.record();
        if let Err(error) = outcome
            && record.error_texts.len() < ERRORS_KEPT
        {
            record.error_texts.push(error.to_string());
        }
        let Some(window) = record.windows.last_mut() else {
            return;
        };
        let wait = now.saturating_duration_since(sent);
        if wait > window.longest_wait {
            window.longest_wait = wait;
            window.longest_wait_at = now.saturating_duration_since(window.begun);
        }
        window.longest_behind = window.longest_behind.max(sent.saturating_duration_since(due));
        if outcome.is_err() {
            window.errors += 1;
            return;
        }
        window.latencies.record(now.saturating_duration_since(due));
        let gap = now.saturating_duration_since(window.last_completion);
        window.longest_gap = window.longest_gap.max(gap);
        window.last_completion = now;
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts one thread and connection per session. `rate_per_s` is of all together;
    /// infinite makes a closed loop, where each step begins when the last one ended.
    pub fn start<S: Session>(conninfo: &str, rate_per_s: f64, label: &str, sessions: Vec<S>) -> Result<Load> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            record: Mutex::new(Record { windows: vec![Window::new(label)], error_texts: Vec::new() }),
        });
        let count = sessions.len().max(1);
        let interval = Duration::from_secs_f64(if rate_per_s.is_finite() {
            count as f64 / rate_per_s.max(1e-3)
        } else {
            0.0
        });
        let begin = Instant::now() + Duration::from_millis(50);
        let mut threads = Vec::new();
        for (index, session) in sessions.into_iter().enumerate() {
            let mut runner = Runner { conninfo: conninfo.to_string(), session, shared: Arc::clone(&shared) };
            // Spread over the interval, so that clients do not march in step.
            let first = begin + interval.mul_f64(index as f64 / count as f64);
            let client = runner.connect()?;
            threads.push(std::thread::spawn(move || runner.run(client, first, interval)));
        }
        Ok(Load { shared, threads })
    }

    /// Ends the current window and begins the next.
    pub fn mark(&self, label: &str) {
        let mut record = self.shared.record();
        close_last(&mut record);
        record.windows.push(Window::new(label));
    }

    /// A copy of the windows so far; the last one is still open.
    pub fn windows(&self) -> Vec<Window> {
        let mut windows = self.shared.record().windows.clone();
        if let Some(window) = windows.last_mut() {
            window.elapsed = window.begun.elapsed();
        }
        windows
    }

    /// The first few error texts.
    pub fn error_texts(&self) -> Vec<String> {
        self.shared.record().error_texts.clone()
    }

    /// Stops the clients and returns the windows.
    pub fn finish(mut self) -> Result<Vec<Window>> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| Error::new("A client thread panicked.", ""))?;
        }
        let mut record = self.shared.record();
        close_last(&mut record);
        Ok(std::mem::take(&mut record.windows))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn close_last(record: &mut Record) {
    if let Some(window) = record.windows.last_mut() {
        window.elapsed = window.begun.elapsed();
        // A stall that lasts to the end of the window counts as well.
        window.longest_gap = window.longest_gap.max(window.last_completion.elapsed());
    }
}

struct Runner<S: Session> {
    conninfo: String,
    session: S,
    shared: Arc<Shared>,
}

impl<S: Session> Runner<S> {
    fn connect(&mut self) -> std::result::Result<Client, SqlError> {
        let mut client = Client::connect(&self.conninfo)?;
        self.session.connected(&mut client)?;
        Ok(client)
    }

    fn run(&mut self, mut client: Client, first: Instant, interval: Duration) {
        sleep_precisely();
        let mut due = first;
        while !self.shared.stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            if due > now {
                // In short naps, so that a slow rate does not delay the end.
                std::thread::sleep((due - now).min(Duration::from_millis(20)));
                if due > Instant::now() {
                    continue;
                }
            }
            if interval.is_zero() {
                due = Instant::now();
            }
            let sent = Instant::now();
            let outcome = self.session.step(&mut client);
            self.shared.completed(due, sent, outcome.as_ref().map(|_| ()));
            if outcome.is_err_and(|error| error.is_connection_loss()) {
                match self.reconnect() {
                    Some(fresh) => client = fresh,
                    None => return,
                }
            }
            due += interval;
        }
    }

    /// Tries until it works or the load is to end.
    fn reconnect(&mut self) -> Option<Client> {
        while !self.shared.stop.load(Ordering::Relaxed) {
            if let Ok(client) = self.connect() {
                return Some(client);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }
}
