//! The phases of moves to, from and between nodes. The carrier alone writes the copy; users never wait for a node
//! because of it but while the last changes are replayed, bounded as every lock.
//!
//! Where a commit on a node could come without the one here (or be heard of too late), nothing depends on it: a chunk
//! is counted there in the transaction that copies it, a replay is by state, entries of a log on a node go only after
//! what they led to is committed, and the exchange of the copies itself touches no node.

mod cutover;
mod verify;
mod waits;

use super::phases::{rest_ms, rest_of_replay_ms};
use super::{Outcome, health, mirror, short_lock};
use crate::catalog::copy as progress;
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::remote::lease::{self, Held};
use crate::catalog::remote::{self, copy, hold, make, reap, retained, rights, swap};
use crate::catalog::{link, name_of, shadow};
use crate::engine::{Engine, Foreign};
use crate::pg::bgworker::{Failure, WorkResult, transaction, transaction_repeatable_read};
use crate::pg::load::Filled;
use crate::pg::report::{PgResult, busy, internal, refuse, unsupported};
use crate::pg::wire::{self, Bound};
use crate::pg::{bgworker, guc, lock, spi};
use foreshard_core::phase::{Event, Phase};
use pgrx::pg_sys;
use std::time::Instant;

/// Log entries that may be pending when catch-up hands over.
const CAUGHT_UP_KEYS: i64 = 1_000;
/// Pause before looking again whether a node that was just added has been looked at, ms.
const NOT_YET_MS: i64 = 100;
/// Round trips for which writers may wait beyond `foreshard.max_lock_time`.
const ROUND_TRIPS: f64 = 20.0;
/// A node that stops answering while writers wait for it is given up after so long beyond that, ms.
const STALL_MS: u128 = 1_000;
/// How long a node may take to say whose it is, or who holds a table there, ms: nobody waits for us meanwhile, but whoever
/// cancels the move.
const LOOK_MS: u128 = 5_000;
/// How long clearing one table away on a node may take, ms; what is not done by then is done there, or by a health check.
const CLEAR_MS: u128 = 10_000;
/// Attempts at a node that does not answer, after which another move may go first.
const AWAY_ATTEMPTS: u32 = 8;

/// Does one piece of the row's phase; after an error no connection is trusted.
pub fn perform(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    link::keep_owners();
    let failure = match step(row, attempt) {
        Ok(outcome) => return Ok(outcome),
        Err(failure) => failure,
    };
    link::distrust();
    lock::release_kept();
    if matches!(row.phase, Phase::Cutover | Phase::Watch) {
        // The node may have lost what was replayed there and is logged no more: nothing else would find that.
        transaction(|| hold::forget_verified(row.move_id))?;
    }
    if is_away(&failure) { away(row, attempt, failure) } else { Err(failure) }
}

/// A node does not answer, and nothing is locked: the move waits for it, after a while without keeping its place from
/// others. A way back that was asked for and did not come about while the old copy is kept is given up.
fn away(row: &MoveRow, attempt: u32, failure: Failure) -> WorkResult<Outcome> {
    if row.phase == Phase::Watch && cutover::is_over(row) {
        if transaction(|| retained::holder_is_down(row.move_id))? {
            return Ok(Outcome::Rest);
        }
        let lost = format!("there is no way back: a node did not answer ({})", failure.line);
        transaction(|| moves::note(row.move_id, None, Some(&lost), None))?;
        return Ok(Outcome::Leave(Event::FatalError));
    }
    if attempt < AWAY_ATTEMPTS {
        return Err(failure);
    }
    let who = "a node that does not answer";
    transaction(|| moves::note(row.move_id, Some(who), Some(&failure.line), None))?;
    Ok(Outcome::Rest)
}

fn step(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    wire::watch();
    // What is cleared away here does not ask the nodes; what is there does (`reap`). Nor is a node needed to keep a copy.
    let asks = match row.phase {
        Phase::Retire | Phase::Revert | Phase::RevertFailed => false,
        Phase::Watch => cutover::asks_nodes(row)?,
        _ => true,
    };
    if asks && !is_held(row)? {
        return Ok(Outcome::Again(NOT_YET_MS));
    }
    match row.phase {
        Phase::Preflight => preflight(row, attempt),
        Phase::Capture => capture(row, attempt),
        Phase::Copy => copy_chunk(row),
        Phase::Index => index(row),
        Phase::CatchUp => catch_up(row),
        Phase::Verify => verify::verify(row),
        Phase::Cutover => cutover::attempt(row, attempt),
        Phase::Watch => cutover::watch(row, attempt),
        Phase::Retire | Phase::Revert | Phase::RevertFailed => clean(row, attempt, Some(Event::Completed)),
        Phase::Mirror | Phase::Prepared | Phase::Canary => {
            transaction(|| Err(internal(format!("a move to a node has no phase {}", row.phase))))
        }
        Phase::Done | Phase::Cancelled | Phase::Failed => Ok(Outcome::Again(0)),
    }
}

/// Whether the nodes of a move are this server's and no clone's of it; false: nobody has looked yet.
fn is_held(row: &MoveRow) -> WorkResult<bool> {
    let _bound = Bound::set(LOOK_MS);
    for shard in [row.from_shard, row.to_shard] {
        let held = transaction(|| match remote::node_of_shard(shard)? {
            Some((node, _)) => match lease::held(&node)? {
                Held::Lost => Err(lease::lost(&node.name)),
                held => Ok(held),
            },
            None => Ok(Held::Ours),
        })?;
        if held == Held::NotYet {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How long writers may wait, by the round trips of the nodes in question.
fn patience_ms(row: &MoveRow) -> PgResult<u128> {
    let mut patience_ms = f64::from(guc::MAX_LOCK_TIME.get());
    for shard in [row.from_shard, row.to_shard] {
        if let Some((node, _)) = remote::node_of_shard(shard)? {
            patience_ms += ROUND_TRIPS * node.round_trip_ms;
        }
    }
    Ok(patience_ms as u128)
}

/// Connects to both sides: connections are made before anybody waits.
fn connect(row: &MoveRow) -> PgResult<()> {
    for relation in shadow::relations(row.move_id)? {
        let pair = copy::pair(&relation)?;
        let owner = pair.shape.owner;
        let _both = (pair.source.link(owner)?.is_some(), pair.copy.link(owner)?.is_some());
    }
    wire::watch();
    Ok(())
}

/// Whether an error only says that a node does not answer: the move waits for it.
pub fn is_away(failure: &Failure) -> bool {
    use pgrx::prelude::PgSqlErrorCode as C;
    matches!(
        failure.code,
        C::ERRCODE_CONNECTION_FAILURE
            | C::ERRCODE_CONNECTION_EXCEPTION
            | C::ERRCODE_CONNECTION_DOES_NOT_EXIST
            | C::ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION
            | C::ERRCODE_SQLSERVER_REJECTED_ESTABLISHMENT_OF_SQLCONNECTION
            | C::ERRCODE_ADMIN_SHUTDOWN
            | C::ERRCODE_CRASH_SHUTDOWN
            | C::ERRCODE_CANNOT_CONNECT_NOW
            | C::ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION
    )
}

/// Whether an error says that a value of a unique index is there already.
fn is_duplicate(failure: &Failure) -> bool {
    use pgrx::prelude::PgSqlErrorCode as C;
    matches!(failure.code, C::ERRCODE_UNIQUE_VIOLATION)
}

fn advance(row: &MoveRow, event: Event) -> PgResult<Outcome> {
    moves::advance(row, event, Foreign.capabilities())?;
    Ok(Outcome::Advanced)
}

/// Checks, registers what will be made on a node, then makes every copy: in this order, each committed.
fn preflight(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    let relations = transaction(|| shadow::relations(row.move_id))?;
    let unmade = transaction(|| remote::unmade(row.move_id))?;
    let to = transaction(|| remote::node_of_shard(row.to_shard))?;
    let partitions = transaction(|| Foreign.partitions(row))?;
    if relations.iter().any(|relation| relation.log != pg_sys::InvalidOid || !relation.fingerprint.is_empty())
        || relations.iter().any(|relation| !partitions.contains(&relation.source))
    {
        return clean(row, attempt, None);
    }
    if relations.len() == partitions.len() && !partitions.is_empty() {
        return transaction(|| advance(row, Event::Completed));
    }
    let Some(next) = partitions.iter().find(|p| relations.iter().all(|r| r.source != **p)) else {
        return transaction(|| Err(unsupported("the slot has no partition any more")));
    };
    if relations.is_empty() && unmade.is_empty() {
        transaction(|| {
            let reasons = Foreign.preflight(row, &partitions)?;
            let hint = "Cure every reason named and move the slot again.";
            refuse(format!("slot {} cannot be moved", row.slot_id), &reasons, hint)?;
            Foreign.prepare(row, &partitions)
        })?;
        if to.is_some() {
            return Ok(Outcome::Again(0));
        }
    }
    transaction(|| make_copy(row, *next))?;
    Ok(Outcome::Again(0))
}

/// Makes the copy of one partition, empty.
fn make_copy(row: &MoveRow, source: pg_sys::Oid) -> PgResult<()> {
    let shape = remote::shape(source)?;
    let copy = match remote::node_of_shard(row.to_shard)? {
        Some((_, tablespace)) => {
            let unmade = remote::unmade(row.move_id)?;
            let mine = unmade.into_iter().find(|remote| remote.table == shape.parent);
            let mine = mine.ok_or_else(|| internal("the table on the node is not registered"))?;
            make::table(&mine.link(shape.owner)?, &mine, &shape, &tablespace)?;
            make::shadow_here(&mine, &shape)?
        }
        None => make::heap_here(row.move_id, source, &shape, &row.tablespace)?,
    };
    let twin = swap::twin(row.move_id, source, copy)?;
    swap::begin(row.move_id, source, copy, twin)
}

/// Begins to log changes: of partitions that are here while no writer is under way.
fn capture(row: &MoveRow, attempt: u32) -> WorkResult<Outcome> {
    let partitions = transaction(|| Foreign.partitions(row))?;
    let patience_ms = transaction(|| {
        connect(row)?;
        patience_ms(row)
    })?;
    if let Some(outcome) = waits::outlast(row, attempt)? {
        return Ok(outcome);
    }
    let bound = Bound::set(patience_ms + STALL_MS);
    let done = transaction(|| {
        let _ = lock::current_xid();
        if !short_lock::try_lock(&partitions, lock::SHARE_ROW_EXCLUSIVE, attempt)? {
            return Ok(mirror::Attempt::Blocked);
        }
        if Foreign.partitions(row)? != partitions {
            return Err(busy("the partitions of the slot changed"));
        }
        if !Foreign.install(row, &partitions)? {
            return Ok(mirror::Attempt::Leave(Event::SourceChanged));
        }
        advance(row, Event::Completed)?;
        Ok(mirror::Attempt::Done)
    });
    drop(bound);
    match done {
        Ok(mirror::Attempt::Done) => Ok(Outcome::Advanced),
        Ok(mirror::Attempt::Leave(event)) => Ok(Outcome::Leave(event)),
        Ok(mirror::Attempt::Blocked) => {
            short_lock::report_blocked(row.move_id, &partitions, attempt)?;
            Ok(Outcome::Again(short_lock::backoff_ms(attempt)))
        }
        Err(failure) if waits::is_blocked(&failure) => {
            // What had begun on the node goes with the connection.
            link::distrust();
            waits::report(row, &partitions, attempt)
        }
        Err(failure) => Err(failure),
    }
}

/// The pairs of a move, each with its twin. None: a source is not what it was when its changes began to be logged.
fn pairs(row: &MoveRow) -> PgResult<Option<Vec<copy::Pair>>> {
    let mut pairs = Vec::new();
    for relation in shadow::relations(row.move_id)? {
        if !shadow::exists(relation.source)? {
            return Err(internal(format!(
                "partition {} was dropped while it moved",
                relation.source.to_u32()
            )));
        }
        lock::lock_all(&[relation.source], lock::ACCESS_SHARE);
        if !Foreign.fits(row, &relation)? {
            return Ok(None);
        }
        pairs.push(copy::pair(&relation)?);
    }
    Ok(Some(pairs))
}

fn copy_chunk(row: &MoveRow) -> WorkResult<Outcome> {
    let begun = Instant::now();
    if let Some(pause_ms) = health::held_back(row)? {
        return Ok(Outcome::Again(pause_ms));
    }
    let block_kib = pg_sys::BLCKSZ as i64 / 1024;
    let chunk_blocks = (i64::from(guc::COPY_CHUNK.get()) / block_kib).max(1);
    let (mut copied, mut copied_rows) = (0, 0);
    let outcome = transaction(|| {
        let relations = shadow::relations(row.move_id)?;
        let Some(relation) = relations.iter().find(|r| r.blocks_done < r.blocks_total) else {
            return advance(row, Event::Completed);
        };
        let Some(pairs) = pairs(row)? else { return Ok(Outcome::Leave(Event::SourceChanged)) };
        let pair = pairs.iter().find(|pair| pair.source.relation == relation.source);
        let pair = pair.ok_or_else(|| internal("the move has lost a relation"))?;
        spi::set_local("track_counts", "off")?;
        let last = (relation.blocks_done + chunk_blocks).min(relation.blocks_total);
        match pair.chunk(relation.blocks_done, last)? {
            Ok(_) if pair.was_rewritten()? => return Ok(Outcome::Leave(Event::SourceChanged)),
            Ok(rows) => {
                progress::set_progress(row.move_id, relation.source, last, &Filled { rows, blocks: 0 })?;
                (copied, copied_rows) = (last - relation.blocks_done, rows as i64);
            }
            // An earlier transaction was committed there, though not here: the node counts.
            Err(there) => {
                progress::set_progress(row.move_id, relation.source, there, &Filled { rows: 0, blocks: 0 })?
            }
        }
        moves::waits_no_more(row.move_id)?;
        Ok(Outcome::Again(0))
    })?;
    if copied > 0 {
        return Ok(Outcome::Again(rest_ms(copied * block_kib, copied_rows, begun)));
    }
    Ok(outcome)
}

fn index(row: &MoveRow) -> WorkResult<Outcome> {
    let fits = transaction(|| {
        let fits = pairs(row)?.is_some();
        if fits {
            // Committed before anything is given there.
            rights::note_of_move(row.move_id)?;
        }
        Ok(fits)
    })?;
    if !fits {
        return Ok(Outcome::Leave(Event::SourceChanged));
    }
    transaction(|| {
        if Foreign.build_next_index(row)? {
            return Ok(Outcome::Again(0));
        }
        advance(row, Event::Completed)
    })
}

/// What one round of replays came to.
enum Round {
    /// So many keys; whether there was nothing else in the logs.
    Keys(i64, bool),
    Changed,
}

/// Makes the copies equal for what is logged now, as [`replay_once`], which takes a part of a long log on a node: values of
/// unique indexes may have changed places between a row of that part and one of the next, and then it takes all of it.
fn replay(row: &MoveRow, copied: bool) -> WorkResult<Round> {
    let failure = match replay_once(row, copied) {
        Err(failure) if is_duplicate(&failure) => failure,
        round => return round,
    };
    if !transaction(|| take_whole_logs(row, true))? {
        return Err(failure);
    }
    let round = replay_once(row, copied);
    transaction(|| take_whole_logs(row, false))?;
    round
}

/// Says whether a replay takes logs on nodes whole from now on; false: there are none.
fn take_whole_logs(row: &MoveRow, whole: bool) -> PgResult<bool> {
    let mut any = false;
    for relation in shadow::relations(row.move_id)? {
        let pair = copy::pair(&relation)?;
        if let Some((link, remote)) = pair.source.link(pair.shape.owner)? {
            make::take_log(&link, remote, &pair.shape, whole)?;
            any = true;
        }
    }
    Ok(any)
}

/// Makes the copies equal for what is logged now: by one snapshot and in one transaction each; then forgets what was
/// logged on a node. With `copied`, rows of the copy have come since the last replay, so older snapshots have to be
/// waited for even when nothing was logged.
fn replay_once(row: &MoveRow, copied: bool) -> WorkResult<Round> {
    let sources: Vec<pg_sys::Oid> =
        transaction(|| Ok(shadow::relations(row.move_id)?.iter().map(|r| r.source).collect()))?;
    let replayed = transaction_repeatable_read(&sources, || {
        let Some(pairs) = pairs(row)? else { return Ok(None) };
        spi::set_local("track_counts", "off")?;
        // What is forgotten on the node afterwards must be on disk here.
        spi::set_local("synchronous_commit", "on")?;
        let (mut keys, mut complete, mut forget) = (0, true, Vec::new());
        for pair in &pairs {
            let replayed = pair.replay()?;
            if replayed.emptied {
                return Ok(None);
            }
            keys += replayed.keys;
            complete &= replayed.complete;
            forget.push(replayed.forget);
        }
        if keys > 0 || copied {
            moves::set_last_replay(row.move_id, complete)?;
        }
        Ok(Some((keys, complete, forget)))
    })?;
    let Some((keys, complete, forget)) = replayed else { return Ok(Round::Changed) };
    if forget.iter().any(Option::is_some) {
        transaction(|| {
            for (relation, ids) in shadow::relations(row.move_id)?.iter().zip(&forget) {
                if let Some(ids) = ids {
                    copy::pair(relation)?.forget(ids)?;
                }
            }
            Ok(())
        })?;
    }
    Ok(Round::Keys(keys, complete))
}

fn catch_up(row: &MoveRow) -> WorkResult<Outcome> {
    if let Some(pause_ms) = health::held_back(row)? {
        return Ok(Outcome::Again(pause_ms));
    }
    let begun = Instant::now();
    match replay(row, true)? {
        Round::Changed => Ok(Outcome::Leave(Event::SourceChanged)),
        // Of a log on a node a part was taken, of few keys that change often.
        Round::Keys(keys, complete) if keys > CAUGHT_UP_KEYS || !complete => {
            Ok(Outcome::Again(rest_of_replay_ms(row, keys, begun)?))
        }
        Round::Keys(..) => transaction(|| advance(row, Event::Completed)),
    }
}

/// Ends capture, drops the copies here, and what is on nodes as far as they answer: what does not is dropped when the
/// node is back.
fn clean(row: &MoveRow, attempt: u32, then: Option<Event>) -> WorkResult<Outcome> {
    let relations = transaction(|| shadow::relations(row.move_id))?;
    let captured: Vec<_> = transaction(|| {
        let mut captured = Vec::new();
        for relation in shadow::relations(row.move_id)? {
            if shadow::trigger_exists(relation.trigger)? {
                captured.push(relation);
            }
        }
        Ok(captured)
    })?;
    if !captured.is_empty() {
        let locked: Vec<pg_sys::Oid> = captured.iter().map(|relation| relation.source).collect();
        let done = transaction(|| {
            // What follows, on nodes as well, waits for the disk.
            spi::set_local("synchronous_commit", "off")?;
            if !short_lock::try_lock(&locked, lock::ACCESS_EXCLUSIVE, attempt)? {
                return Ok(false);
            }
            captured.iter().try_for_each(|relation| Foreign.remove_capture(relation))?;
            Ok(true)
        })?;
        if !done {
            short_lock::report_blocked(row.move_id, &locked, attempt)?;
            return Ok(Outcome::Again(short_lock::backoff_ms(attempt)));
        }
    }
    let dressed = transaction(|| reap::behind_move(&relations))?;
    let analysed = transaction(|| {
        let mut names = Vec::new();
        for relation in &relations {
            if row.phase == Phase::Retire && remote::behind(relation.source)?.is_some() {
                names.push(name_of(relation.source)?);
            }
        }
        Foreign.drop_shadows(row)?;
        for relation in &relations {
            reap::name_indexes(relation.source)?;
        }
        Ok(names)
    })?;
    for (node, remote) in dressed {
        let _bound = Bound::set(CLEAR_MS);
        tell(row, transaction(|| reap::clear(&node, &remote, guc::MAX_LOCK_TIME.get())));
    }
    for (node, remote) in transaction(|| reap::of_move(row.move_id))? {
        let _bound = Bound::set(CLEAR_MS);
        tell(row, transaction(|| reap::drop_unused(&node, &remote)));
    }
    for name in analysed {
        tell(row, bgworker::command(&format!("ANALYZE {name}")));
    }
    match then {
        Some(event) => transaction(|| advance(row, event)),
        None => Ok(Outcome::Again(0)),
    }
}

/// What could not be cleared away on a node is left to the health checks.
fn tell(row: &MoveRow, done: WorkResult<()>) {
    if let Err(failure) = done {
        link::distrust();
        pgrx::log!("foreshard: move {}: left on its node for now: {}", row.move_id, failure.line);
    }
}
