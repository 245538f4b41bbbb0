//! The exchange. Writers of the table wait from the moment at which the rest of the log is replayed until the copies
//! have changed places; readers for the last part of it. The rest is committed, on the node as well, before the
//! exchange, which is a transaction of this server alone.

use super::verify::{Compared, compare};
use super::{Round, STALL_MS, connect, pairs, patience_ms, replay, replay_once, waits};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::{self, copy, hold, retained};
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::{link, record_event, waiting};
use crate::engine::{Engine, Foreign};
use crate::mover::{Outcome, short_lock};
use crate::pg::bgworker::{self, WorkResult, transaction};
use crate::pg::report::PgResult;
use crate::pg::wire::Bound;
use crate::pg::{barrier, compat, guc, invalidation, lock, spi};
use foreshard_core::phase::{Capabilities, Event};
use pgrx::pg_sys;
use serde_json::json;
use std::time::Instant;

/// A verification older than this is made again, s.
const FRESH_S: f64 = 60.0;
/// Longest wait for older snapshots before the log is looked at again, ms.
const SNAPSHOT_WAIT_MS: u128 = 500;
/// Parts of a log on a node that are brought into an old copy at a time.
const MOST_ROUNDS: usize = 100;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    There,
    Back,
}

/// One attempt at the cutover.
pub fn attempt(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if let Some(outcome) = ready(row)? {
        return Ok(outcome);
    }
    switch(row, attempt, Direction::There)
}

/// After the swap: until the window has passed, a rollback is a swap back.
pub fn watch(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    if row.rollback_requested || row.cancel_requested {
        return match ready(row)? {
            // What is logged is replayed part by part.
            Some(Outcome::Leave(Event::BacklogTooLarge)) => Ok(Outcome::Again(0)),
            Some(Outcome::Leave(event)) => {
                let lost = "there is no way back: the table was altered, or the copies differ";
                transaction(|| moves::note(row.move_id, None, Some(lost), None))?;
                Ok(Outcome::Leave(if event == Event::SourceChanged { event } else { Event::FatalError }))
            }
            Some(outcome) => Ok(outcome),
            None => switch(row, attempt, Direction::Back),
        };
    }
    if is_over(row) {
        // What is kept here may be all that is left of the slot.
        let is_lost = transaction(|| retained::holder_is_down(row.move_id))?;
        return Ok(if is_lost { Outcome::Rest } else { Outcome::Leave(Event::Completed) });
    }
    if transaction(|| retained::is_due(row.move_id))? { refresh(row) } else { Ok(Outcome::Rest) }
}

/// Whether the time for which an old copy is kept has passed.
pub fn is_over(row: &MoveRow) -> bool {
    let window_s = f64::from(guc::ROLLBACK_WINDOW.get());
    row.swapped_age_s.is_none_or(|age| age >= window_s)
}

/// Whether watching a move has to ask its nodes now: on the way back, and when the old copy is to have what came since.
pub fn asks_nodes(row: &MoveRow) -> WorkResult<bool> {
    if row.rollback_requested || row.cancel_requested {
        return Ok(true);
    }
    Ok(!is_over(row) && transaction(|| retained::is_due(row.move_id))?)
}

/// Brings into the old copy what was logged since the swap: as the way back would begin, with the slot as it is now untouched.
fn refresh(row: &MoveRow) -> WorkResult<Outcome> {
    // Committed first: what fails is not tried again at once.
    transaction(|| retained::begin(row.move_id))?;
    for _ in 0..MOST_ROUNDS {
        match replay(row, false)? {
            Round::Changed => {
                let lost = "there is no way back: the table was altered, or emptied";
                transaction(|| moves::note(row.move_id, None, Some(lost), None))?;
                return Ok(Outcome::Leave(Event::SourceChanged));
            }
            Round::Keys(_, true) => {
                transaction(|| retained::end(row.move_id))?;
                break;
            }
            Round::Keys(..) => {}
        }
    }
    Ok(Outcome::Rest)
}

/// Catches up and verifies if need be; None: both copies are as good as equal, and that was verified.
fn ready(row: &MoveRow) -> WorkResult<Option<Outcome>> {
    match replay(row, false)? {
        Round::Changed => return Ok(Some(Outcome::Leave(Event::SourceChanged))),
        Round::Keys(keys, complete) if keys > i64::from(guc::CUTOVER_MAX_KEYS.get()) || !complete => {
            return Ok(Some(Outcome::Again(0)));
        }
        Round::Keys(..) => {}
    }
    // What was verified before the swap says nothing of what came since.
    let stale = match row.swapped_age_s {
        Some(swapped) => row.verified_age_s.is_none_or(|age| age >= swapped || age > FRESH_S),
        None => row.verified_age_s.is_none_or(|age| age > FRESH_S),
    };
    if stale {
        return Ok(Some(match compare(row)? {
            Compared::Equal => Outcome::Again(0),
            Compared::Different => Outcome::Leave(Event::Mismatch),
            Compared::Leave(event) => Outcome::Leave(event),
        }));
    }
    if copies_are_here(row)? && older_snapshots(row, &[], SNAPSHOT_WAIT_MS)?.is_none() {
        return Ok(Some(Outcome::Again(20)));
    }
    Ok(None)
}

/// Whether the copies are on this server. Rows that come home carry ids of the carrier's transactions, which older
/// snapshots do not see; a node takes a snapshot of its own when it is first asked, which is never an older one.
fn copies_are_here(row: &MoveRow) -> WorkResult<bool> {
    transaction(|| {
        for relation in shadow::relations(row.move_id)? {
            if remote::behind(relation.shadow)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// The virtual transactions whose snapshots may not see what transaction `xid` did, as pg_locks calls them.
fn older_than(xid: i64) -> Vec<String> {
    lock::older_snapshots(xid as u32, false).iter().map(compat::vxid_text).collect()
}

/// Waits until no snapshot is left that may not see the last replay; names the holders (None) when that takes too long. A snapshot that
/// sees it sees the carrier's earlier ones, which were committed before it began; one that is taken from now on sees it.
///
/// Whoever waits at this moment to write to one of `locked` has the snapshot of his statement's analysis, and would keep it as long as we
/// the lock. He is not waited for, but told of: what he does with an old snapshot afterwards meets the barrier.
fn older_snapshots(
    row: &MoveRow,
    locked: &[pg_sys::Oid],
    patience_ms: u128,
) -> WorkResult<Option<Vec<String>>> {
    let begun = Instant::now();
    let Some(xid) = transaction(|| moves::last_replay(row.move_id))? else { return Ok(Some(Vec::new())) };
    let mut older = older_than(xid);
    loop {
        let queued = if older.is_empty() || locked.is_empty() {
            Vec::new()
        } else {
            transaction(|| waiting::writers(locked))?
        };
        if older.iter().all(|holder| queued.contains(holder)) {
            return Ok(Some(older));
        }
        if begun.elapsed().as_millis() > patience_ms {
            transaction(|| {
                let who = waiting::oldest_snapshots()?;
                moves::note(row.move_id, who.as_deref(), None, None)
            })?;
            return Ok(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        let still = older_than(xid);
        older.retain(|holder| still.contains(holder));
    }
}

/// Keeps the copies, which are here, from snapshots that do not see the last replay; false: there is no room for that.
fn raise_barriers(row: &MoveRow) -> WorkResult<bool> {
    transaction(|| {
        let Some(xid) = moves::last_replay(row.move_id)? else { return Ok(true) };
        let relations = shadow::relations(row.move_id)?;
        Ok(relations.iter().all(|relation| barrier::raise(relation.shadow, xid as u32)))
    })
}

/// Whether everybody who was not waited for still waits, or is gone: now that nobody else can begin anything, whatever they begin
/// meets the barriers.
fn still_queue(row: &MoveRow, held: &[pg_sys::Oid], queued: &[String]) -> PgResult<bool> {
    let Some(xid) = moves::last_replay(row.move_id)?.filter(|_| !queued.is_empty()) else { return Ok(true) };
    let writers = waiting::writers(held)?;
    let older = older_than(xid);
    Ok(queued.iter().all(|holder| writers.contains(holder) || !older.contains(holder)))
}

/// Why the copies have not changed places.
enum Stop {
    Blocked,
    /// The node is not the one any more whose copy was verified.
    Unverified,
    Leave(Event),
}

fn switch(row: &MoveRow, attempt: u32, direction: Direction) -> WorkResult<Outcome> {
    let relations = transaction(|| shadow::relations(row.move_id))?;
    let held = transaction(|| Foreign.held_first(row, &relations))?;
    let patience_ms = transaction(|| {
        connect(row)?;
        for relation in &relations {
            let pair = copy::pair(relation)?;
            let _ = pair.source.holder(pair.shape.owner)?;
        }
        patience_ms(row)
    })?;
    if let Some(outcome) = waits::outlast(row, attempt)? {
        return Ok(outcome);
    }
    let stopped = locked(row, attempt, direction, &held, patience_ms);
    lock::release_kept();
    let let_go = transaction(|| release_there(row));
    if let_go.is_err() {
        // Closing the connection lets go as well.
        link::distrust();
    }
    match stopped {
        Ok(None) => {
            let_go?;
            Ok(Outcome::Advanced)
        }
        Ok(Some(Stop::Leave(event))) => Ok(Outcome::Leave(event)),
        Ok(Some(Stop::Unverified)) => {
            transaction(|| hold::forget_verified(row.move_id))?;
            Ok(Outcome::Again(0))
        }
        Ok(Some(Stop::Blocked)) => {
            short_lock::report_blocked(row.move_id, &held, attempt)?;
            Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
        }
        // What was verified is as it was: only a lock was not to be had.
        Err(failure) if waits::is_blocked(&failure) => waits::report(row, &held, attempt),
        Err(failure) => Err(failure),
    }
}

/// Everything while writers wait; None: done.
fn locked(
    row: &MoveRow,
    attempt: u32,
    direction: Direction,
    held: &[pg_sys::Oid],
    patience_ms: u128,
) -> WorkResult<Option<Stop>> {
    let got = transaction(|| {
        let got = short_lock::try_lock(held, lock::SHARE_ROW_EXCLUSIVE, attempt)?;
        Ok(got && lock::keep(held, lock::SHARE_ROW_EXCLUSIVE))
    })?;
    if !got {
        return Ok(Some(Stop::Blocked));
    }
    let begun = Instant::now();
    // From here to the exchange, which touches no node, writers wait for nodes: one that stops answering loses its
    // connections, and the writers go first.
    let bound = Bound::set(patience_ms + STALL_MS);
    // Nobody writes any more: neither through this server nor, of a source on a node, there.
    if !transaction(|| hold_there(row, patience_ms))? {
        return Ok(Some(Stop::Unverified));
    }
    loop {
        // Not again when it fails: what fails has let go of the lock.
        match replay_once(row, false)? {
            Round::Changed => return Ok(Some(Stop::Leave(Event::SourceChanged))),
            // Nobody adds to a log any more, so what was seen whole is all of it.
            Round::Keys(_, true) => break,
            Round::Keys(..) if begun.elapsed().as_millis() > patience_ms => return Ok(Some(Stop::Blocked)),
            Round::Keys(..) => {}
        }
    }
    transaction(|| pairs(row)?.unwrap_or_default().iter().try_for_each(copy::Pair::flush_there))?;
    let mut queued = Vec::new();
    if copies_are_here(row)? {
        // First of all: whoever is not waited for has to meet them.
        let locked = if raise_barriers(row)? { held } else { &[] };
        let left = patience_ms.saturating_sub(begun.elapsed().as_millis());
        let Some(writers) = older_snapshots(row, locked, left)? else { return Ok(Some(Stop::Blocked)) };
        queued = writers;
    }
    transaction(|| pairs(row)?.unwrap_or_default().iter().try_for_each(copy::Pair::is_still_held))?;
    if bound.end() {
        return Ok(Some(Stop::Blocked));
    }
    transaction(|| exchange(row, attempt, direction, held, &queued, begun))
}

/// False: a copy has to be verified again.
fn hold_there(row: &MoveRow, patience_ms: u128) -> PgResult<bool> {
    let pairs = pairs(row)?.unwrap_or_default();
    // What has to be verified again locks nothing there.
    for pair in &pairs {
        if !pair.is_as_verified()? {
            return Ok(false);
        }
    }
    pairs.iter().try_for_each(|pair| pair.hold_there(patience_ms.clamp(1, 60_000) as i32))?;
    Ok(true)
}

/// Ends what [`hold_there`] began, on whichever side the tables are now.
fn release_there(row: &MoveRow) -> PgResult<()> {
    shadow::relations(row.move_id)?.iter().try_for_each(|relation| copy::pair(relation)?.release_there())
}

/// Whether every source is what it was, and still fits its copy.
fn fit(row: &MoveRow, relations: &[RelationRow]) -> PgResult<bool> {
    for relation in relations {
        if !Foreign.fits(row, relation)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Everything under ACCESS EXCLUSIVE.
fn exchange(
    row: &MoveRow,
    attempt: u32,
    direction: Direction,
    held: &[pg_sys::Oid],
    queued: &[String],
    begun: Instant,
) -> PgResult<Option<Stop>> {
    let _ = lock::current_xid();
    spi::set_local("synchronous_commit", "on")?;
    // Without the lock first: what was read once is read faster under it, and need not be read again unless somebody
    // changed something.
    let relations = shadow::relations(row.move_id)?;
    invalidation::watch(shadow::defining(row.move_id, held)?);
    let generation = invalidation::generation();
    if !fit(row, &relations)? {
        return Ok(Some(Stop::Leave(Event::SourceChanged)));
    }
    let able = Foreign.capabilities();
    // Read once for what follows: whether there is to be a way back, and whether one was prepared.
    let keeps = able.watch && retained::can_return(&relations)?;
    // Before 17 a lock that somebody waits for is not had without queueing, though we go first there.
    let pressing = if queued.is_empty() { attempt } else { short_lock::QUEUEING };
    if !short_lock::try_lock(held, lock::ACCESS_EXCLUSIVE, pressing)? {
        return Ok(Some(Stop::Blocked));
    }
    let exclusive = Instant::now();
    if !Foreign.hold_rest(row, &relations)? || !still_queue(row, held, queued)? {
        return Ok(Some(Stop::Blocked));
    }
    if invalidation::generation() != generation && !fit(row, &relations)? {
        return Ok(Some(Stop::Leave(Event::SourceChanged)));
    }
    let (what, shard, keep, event) = match direction {
        Direction::There => ("cutover", row.to_shard, keeps, Event::Completed),
        Direction::Back => ("rollback", row.from_shard, false, Event::RollbackRequested),
    };
    Foreign.swap(row, &relations, keep)?;
    Foreign.place(row, shard)?;
    let detail = json!({
        "held_us": exclusive.elapsed().as_micros() as u64,
        "writers_held_us": begun.elapsed().as_micros() as u64,
        "attempts": attempt + 1,
    });
    record_event(what, Some(row.move_id), Some(row.slot_id), detail)?;
    moves::advance(row, event, Capabilities { watch: keeps, ..able })?;
    bgworker::show_activity(None);
    Ok(None)
}
