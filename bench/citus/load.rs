//! Clients: in a closed loop, and at the times that are written down for a day.

use crate::world::World;
use foreshard_test::{Client, Latencies, Result, SqlError};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Percentage of the questions that is about hot tenants, of a day at its peak.
pub const HOT_PERCENT: u32 = 90;
/// Tenants that every client asks about before it counts.
const FIRST: u32 = 20;
/// What is asked about a tenant.
const QUESTION: &str = "SELECT sum(length(md5(md5(md5(v || n))))) FROM item WHERE tenant = $1";
/// Its name.
const NAME: &str = "q";

/// Tenants that are asked about.
pub struct Mix<'a> {
    /// Those that are hot.
    pub hot: &'a [String],
    /// All: from 1 to this.
    pub tenants: u32,
}

impl Mix<'_> {
    /// Any of all.
    pub fn any(&self, random: &mut SmallRng) -> String {
        random.random_range(1..=self.tenants).to_string()
    }

    fn draw(&self, random: &mut SmallRng) -> String {
        if random.random_range(1..=100) > HOT_PERCENT {
            self.any(random)
        } else {
            self.hot[random.random_range(0..self.hot.len())].clone()
        }
    }
}

/// What clients got in a closed loop.
pub struct Asked {
    /// Questions per second.
    pub per_second: f64,
    /// Of all of them.
    pub latencies: Latencies,
}

/// Connects clients; they have plans and connections to all workers then.
pub fn connect(world: &World, clients: usize) -> Result<Vec<Client>> {
    let mut all = Vec::new();
    for _ in 0..clients {
        let mut client = world.connect()?;
        client.prepare(NAME, QUESTION)?;
        for tenant in 1..=FIRST {
            client.exec_prepared(NAME, &[Some(tenant.to_string().as_str())])?;
        }
        all.push(client);
    }
    Ok(all)
}

/// Asks for some seconds, each client its next question when the last one is answered.
pub fn ask_all(clients: &mut [Client], mix: &Mix, seconds: u32) -> Result<Asked> {
    let (begun, time) = (Instant::now(), Duration::from_secs(seconds.into()));
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .zip(0..)
            .map(|(client, number)| scope.spawn(move || ask(client, mix, number, begun + time)))
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    let elapsed_s = begun.elapsed().as_secs_f64();
    let mut latencies = Latencies::default();
    for outcome in outcomes {
        latencies.add(&outcome.map_err(|_| "A client panicked.")??);
    }
    Ok(Asked { per_second: latencies.count() as f64 / elapsed_s, latencies })
}

fn ask(
    client: &mut Client,
    mix: &Mix,
    number: u64,
    until: Instant,
) -> std::result::Result<Latencies, SqlError> {
    let mut random = SmallRng::seed_from_u64(number + 7);
    let mut latencies = Latencies::default();
    while Instant::now() < until {
        let tenant = mix.draw(&mut random);
        let one = Instant::now();
        client.exec_prepared(NAME, &[Some(tenant.as_str())])?;
        latencies.record(one.elapsed());
    }
    Ok(latencies)
}

/// A question that is due at a time of a day.
pub struct Question {
    /// Since the day began.
    pub at: Duration,
    /// About this tenant.
    pub tenant: String,
}

/// What became of a question.
pub struct Answer {
    /// When it was due, since the day began.
    pub at: Duration,
    /// From then until it was answered; None: it was not.
    pub latency: Option<Duration>,
}

/// What became of all of them.
#[derive(Default)]
pub struct Answers {
    /// One for every question, in no order.
    pub all: Vec<Answer>,
    /// What servers said that did not answer.
    pub errors: Vec<String>,
}

/// Asks what is due in a day that `begins` then, whether or not the servers keep up: who comes late finds a queue, and waits
/// since his question was due. What was not asked `until` then is not answered. Does something else `meanwhile`.
pub fn follow<T>(
    clients: &mut [Client],
    questions: &[Question],
    (begins, until): (Instant, Instant),
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<(Answers, T)> {
    let next = &AtomicUsize::new(0);
    let (outcomes, done) = thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .map(|client| scope.spawn(move || answer(client, questions, next, (begins, until))))
            .collect();
        let done = meanwhile();
        let outcomes: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        (outcomes, done)
    });
    let mut answers = Answers::default();
    for outcome in outcomes {
        let own = outcome.map_err(|_| "A client panicked.")??;
        answers.all.extend(own.all);
        answers.errors.extend(own.errors);
    }
    Ok((answers, done?))
}

fn answer(
    client: &mut Client,
    questions: &[Question],
    next: &AtomicUsize,
    (begins, until): (Instant, Instant),
) -> std::result::Result<Answers, SqlError> {
    let mut answers = Answers::default();
    while let Some(question) = questions.get(next.fetch_add(1, Ordering::Relaxed)) {
        let due = begins + question.at;
        sleep_until(due);
        let mut latency = None;
        if Instant::now() < until {
            match client.exec_prepared(NAME, &[Some(question.tenant.as_str())]) {
                Ok(_) => latency = Some(due.elapsed()),
                Err(error) if error.is_connection_loss() => return Err(error),
                Err(error) => answers.errors.push(error.to_string()),
            }
        }
        answers.all.push(Answer { at: question.at, latency });
    }
    Ok(answers)
}

/// Sleeps until then.
pub fn sleep_until(at: Instant) {
    thread::sleep(at.saturating_duration_since(Instant::now()));
}
