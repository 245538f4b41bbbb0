//! What `foreshard.stat_triggers` says of a trigger, as sums, so that two readings can be subtracted.

use super::{PATIENCE, Server};
use foreshard_test::{Error, Result, wait_until};
use std::time::Duration;

/// Longer than two buckets of the test servers (1 s): a keeper has been by.
const QUIET: Duration = Duration::from_millis(2_300);

/// The means of `stat_triggers`, in the order of `Profile`.
const MEANS: [&str; 10] = [
    "cpu_us",
    "cpu_us_inclusive",
    "elapsed_us",
    "elapsed_us_inclusive",
    "memory_retained_bytes",
    "blocks_hit",
    "blocks_read",
    "blocks_dirtied",
    "wal_bytes",
    "temp_blocks",
];

/// Sums over all calls of a trigger for an event; times in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Profile {
    /// Calls.
    pub calls: f64,
    /// Calls that were measured.
    pub sampled: f64,
    /// Calls that raised an error.
    pub failed: f64,
    /// Calls that the measured ones stand for.
    pub weight: f64,
    /// Calls that those whose memory was measured stand for.
    pub memory_weight: f64,
    /// CPU without nested triggers.
    pub cpu_us: f64,
    /// CPU with them.
    pub cpu_us_inclusive: f64,
    /// Elapsed time without nested triggers.
    pub elapsed_us: f64,
    /// Elapsed time with them.
    pub elapsed_us_inclusive: f64,
    /// Memory that stayed.
    pub memory_bytes: f64,
    /// Blocks found in shared buffers.
    pub blocks_hit: f64,
    /// Blocks read.
    pub blocks_read: f64,
    /// Blocks made dirty.
    pub blocks_dirtied: f64,
    /// WAL.
    pub wal_bytes: f64,
    /// Blocks of temporary files.
    pub temp_blocks: f64,
}

impl Profile {
    fn numbers(&mut self) -> [&mut f64; 15] {
        [
            &mut self.calls,
            &mut self.sampled,
            &mut self.failed,
            &mut self.weight,
            &mut self.memory_weight,
            &mut self.cpu_us,
            &mut self.cpu_us_inclusive,
            &mut self.elapsed_us,
            &mut self.elapsed_us_inclusive,
            &mut self.memory_bytes,
            &mut self.blocks_hit,
            &mut self.blocks_read,
            &mut self.blocks_dirtied,
            &mut self.wal_bytes,
            &mut self.temp_blocks,
        ]
    }

    /// What came since.
    pub fn since(mut self, mut before: Profile) -> Profile {
        self.numbers().into_iter().zip(before.numbers()).for_each(|(now, then)| *now -= *then);
        self
    }

    /// Per call; of everything but memory, which fewer calls measure.
    pub fn mean(&self, of: fn(&Profile) -> f64) -> f64 {
        of(self) / self.weight
    }

    /// Memory that stayed, per call.
    pub fn mean_memory_bytes(&self) -> f64 {
        self.memory_bytes / self.memory_weight
    }
}

/// What is known of a trigger of a table for an event; zeros when it is not known.
pub fn read(server: &mut Server, table: &str, trigger: &str, event: &str) -> Result<Profile> {
    // Each mean the view shows, times the calls it stands for, is a sum.
    let sums: String = MEANS
        .iter()
        .map(|mean| {
            let weight = if *mean == "memory_retained_bytes" { "memory_weight" } else { "sampled_weight" };
            format!(", coalesce(sum(v.{mean} * p.{weight}), 0)")
        })
        .collect();
    let text = server.query(&format!(
        "SELECT coalesce(sum(v.calls), 0), coalesce(sum(v.sampled_calls), 0), coalesce(sum(v.failed_calls), 0), \
             coalesce(sum(p.sampled_weight), 0), coalesce(sum(p.memory_weight), 0){sums} \
         FROM foreshard.stat_triggers v JOIN foreshard.trigger_profile p \
             ON (p.table_oid, p.trigger_name, p.event, p.function_oid) = (v.\"table\", v.trigger, v.event, v.function) \
         WHERE v.\"table\" = '{table}'::regclass AND v.trigger = '{trigger}' AND v.event = '{event}'"
    ))?;
    let mut profile = Profile::default();
    let mut fields = text.split('|');
    for number in profile.numbers() {
        let field = fields.next().unwrap_or_default();
        *number = field.parse().map_err(|_| Error::new(format!("stat_triggers says {text}."), ""))?;
    }
    Ok(profile)
}

/// A trigger as the view names it: table, trigger, event.
pub type Name<'a> = (&'a str, &'a str, &'a str);

/// Waits until a trigger is known to have been called so often since `before`, and a keeper has been by
/// once more, so that nothing of the last call is missing; what came since.
pub fn wait_calls(server: &mut Server, name: Name, before: Profile, calls: u64) -> Result<Profile> {
    let (table, trigger, event) = name;
    let mut last = Profile::default();
    let seen = wait_until("stat_triggers shows the calls", PATIENCE, || {
        last = read(server, table, trigger, event)?.since(before);
        Ok(last.calls >= calls as f64)
    });
    seen.map_err(|error| Error::new(format!("{error} {name:?}: {last:?}, wanted {calls} calls."), ""))?;
    let since = settled(server, &[name])?[0].since(before);
    assert_eq!(since.calls, calls as f64, "calls of {name:?}: {since:?}");
    Ok(since)
}

/// Waits until the numbers of triggers no longer change.
pub fn settled(server: &mut Server, names: &[Name]) -> Result<Vec<Profile>> {
    let mut all = || -> Result<Vec<Profile>> {
        names.iter().map(|(table, trigger, event)| read(server, table, trigger, event)).collect()
    };
    let mut last = all()?;
    wait_until("stat_triggers settles", PATIENCE, || {
        std::thread::sleep(QUIET);
        let now = all()?;
        Ok(std::mem::replace(&mut last, now.clone()) == now)
    })?;
    Ok(last)
}

/// Fires triggers until every one of these is known and has been measured: after `distribute` and CREATE
/// TRIGGER it takes a moment before a table is watched, and the first calls compile the function. From
/// then on every call counts. What is known of each at the end.
pub fn warm_up(
    server: &mut Server,
    names: &[Name],
    mut fire: impl FnMut() -> Result<()>,
) -> Result<Vec<Profile>> {
    let mut missing = Vec::new();
    let outcome = wait_until("triggers are watched", PATIENCE, || {
        fire()?;
        missing.clear();
        for (table, trigger, event) in names {
            let known = read(server, table, trigger, event)?;
            if known.sampled + known.failed == 0.0 {
                missing.push(format!("{trigger} of {table} on {event}"));
            }
        }
        Ok(missing.is_empty())
    });
    outcome.map_err(|error| Error::new(format!("{error} Not seen: {}.", missing.join(", ")), ""))?;
    settled(server, names)
}
