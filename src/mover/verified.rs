//! Verification: every row of the copies is in their indexes, and both copies have the same rows. What differs is looked
//! for again in the buckets that differ, so that it can be named.

use super::mirror;
use super::phases::{is_unchanged, sources};
use crate::catalog::copy::{self, CopyPlan};
use crate::catalog::moves::{self, MoveRow};
use crate::catalog::name_of;
use crate::catalog::shadow::{self, RelationRow};
use crate::catalog::verified::{self, Copy};
use crate::engine::{Engine, MAX_SKIPPED_KEYS, Side};
use crate::pg::bgworker::{self, WorkResult, transaction};
use crate::pg::index_check::{self, Missing};
use crate::pg::report::PgResult;
use crate::pg::{digest, progress, security, spi};
use foreshard_core::digest::TableDigest;
use foreshard_core::phase::Event;
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

/// Rows that a report names.
const MAX_NAMED_ROWS: usize = 5;
/// Rows of both copies that are held against each other at once: about 64 bytes each.
const MAX_HELD_ROWS: u64 = 500_000;

/// What a comparison came to.
pub enum Compared {
    /// Both copies are equal, and that is noted.
    Equal,
    /// They differ; the move ends.
    Different,
    /// They could not be compared.
    Leave(Event),
}

/// Looks whether the copies' indexes have every row, then compares both copies under one snapshot: count and hash of every
/// row, by key bucket. A key that the snapshot sees in the log is left out on both sides; every other row must be equal.
pub fn compare(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Compared> {
    progress::begin(row.move_id, transaction(|| blocks(row.move_id))?);
    let compared = compare_all(engine, row);
    progress::end();
    compared
}

/// How many blocks a verification reads: of sources and copies each once, of copies once more for the indexes that are looked at
/// together.
fn blocks(move_id: i64) -> PgResult<i64> {
    let passes = |copy: &Copy| copy.indexes.len().div_ceil(index_check::at_once(copy.blocks)) as i64;
    let copies = verified::copies(move_id)?;
    let of_copies: i64 = copies.iter().map(|copy| copy.blocks * (1 + passes(copy))).sum();
    Ok(of_copies + verified::source_blocks(move_id)?)
}

fn compare_all(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Compared> {
    let begun = Instant::now();
    let Some(indexes) = check_indexes(engine, row)? else { return Ok(Compared::Different) };
    let index_ms = begun.elapsed().as_millis() as u64;
    let sources = sources(row)?;
    bgworker::transaction_repeatable_read(&sources, || {
        let mut rows: Vec<u64> = Vec::new();
        let mut skipped = 0;
        let relations = shadow::relations(row.move_id)?;
        let mirrors = mirror::is_mirroring(&relations)?;
        for relation in relations {
            if !is_unchanged(&relation)? {
                return Ok(Compared::Leave(Event::SourceChanged));
            }
            spi::set_local("track_counts", "off")?;
            let plan: CopyPlan = copy::plan(&relation)?;
            let Some(skip) = digest::logged_keys(relation.log, relation.key.len(), MAX_SKIPPED_KEYS)? else {
                return Ok(Compared::Leave(Event::BacklogTooLarge));
            };
            // Somebody could not mirror what it changed.
            if mirrors && !skip.is_empty() {
                return Ok(Compared::Leave(Event::BacklogTooLarge));
            }
            let pair = Pair { engine, row, relation: &relation, stored: &plan.stored, skip: &skip };
            let parts = pair.digests()?;
            let differing = Differing::of(&parts);
            if !differing.buckets.is_empty() {
                pair.tell(&parts, &differing)?;
                return Ok(Compared::Different);
            }
            rows.resize(rows.len().max(parts.len()), 0);
            rows.iter_mut().zip(&parts).for_each(|(rows, [source, _])| *rows += source.rows());
            skipped += skip.len();
        }
        engine.verified(row, &rows)?;
        let rows: u64 = rows.iter().sum();
        moves::set_verified(row.move_id)?;
        let ms = begun.elapsed().as_millis() as u64;
        let detail = json!({"rows": rows, "skipped_keys": skipped, "ms": ms, "indexes": indexes, "index_ms": index_ms});
        crate::catalog::record_event("verified", Some(row.move_id), Some(row.slot_id), detail)?;
        Ok(Compared::Equal)
    })
}

/// How many indexes of the copies have every row; None: one has not, and the move ends. It holds no lock of the users'
/// tables, those of the copies for as many indexes as are looked at together, and then a snapshot.
fn check_indexes(engine: &dyn Engine, row: &MoveRow) -> WorkResult<Option<usize>> {
    let mut indexes = 0;
    for copy in transaction(|| verified::copies(row.move_id))? {
        for some in copy.indexes.chunks(index_check::at_once(copy.blocks)) {
            match transaction(|| check_some(engine, row, &copy, some))? {
                Some(checked) => indexes += checked,
                None => return Ok(None),
            }
        }
    }
    Ok(Some(indexes))
}

/// The same for some indexes of one copy.
fn check_some(
    engine: &dyn Engine,
    row: &MoveRow,
    copy: &Copy,
    some: &[pg_sys::Oid],
) -> PgResult<Option<usize>> {
    spi::set_local("track_counts", "off")?;
    let checked = index_check::missing_entries(copy.heap, some, &copy.key, MAX_NAMED_ROWS, progress::add)?;
    progress::tell();
    let Some(first) = checked.missing.first() else { return Ok(Some(checked.indexes)) };
    let index = verified::index_name(row.move_id, first.index)?;
    let what = format!("verification found rows of the copy that its index {index} does not have");
    let rows = checked.missing.iter().map(|missing| not_indexed(row.move_id, missing));
    end(engine, row, &what, rows.collect::<PgResult<_>>()?)?;
    Ok(None)
}

fn not_indexed(move_id: i64, missing: &Missing) -> PgResult<Value> {
    let (block, line) = missing.place;
    let index = verified::index_name(move_id, missing.index)?;
    let shadow = name_of(missing.index)?;
    Ok(json!({"key": missing.key, "row": "not indexed", "index": index, "copy": shadow,
              "ctid": format!("({block},{line})")}))
}

/// The move ends here, and says why.
fn end(engine: &dyn Engine, row: &MoveRow, what: &str, rows: Vec<Value>) -> PgResult<()> {
    moves::note(row.move_id, None, Some(what), None)?;
    let detail = json!({"detail": what, "rows": rows});
    crate::catalog::record_event("mismatch", Some(row.move_id), Some(row.slot_id), detail)?;
    moves::advance(row, Event::Mismatch, engine.capabilities())?;
    Ok(())
}

/// Where two copies differ: (part, bucket), and how many rows of both are there.
struct Differing {
    buckets: Vec<(usize, usize)>,
    rows: Vec<u64>,
}

impl Differing {
    fn of(parts: &[[TableDigest; 2]]) -> Self {
        let mut found = Differing { buckets: Vec::new(), rows: Vec::new() };
        for (part, [source, copy]) in parts.iter().enumerate() {
            for bucket in source.differing_buckets(copy) {
                found.buckets.push((part, bucket));
                found.rows.push(source.rows_in(bucket).max(copy.rows_in(bucket)));
            }
        }
        found
    }

    /// As many of the buckets as can be held against each other at once, at least one, and into how many slices that
    /// one must be cut.
    fn held(&self) -> (HashSet<(usize, usize)>, u128) {
        let mut sum: u64 = 0;
        let mut held = HashSet::new();
        for (bucket, rows) in self.buckets.iter().zip(&self.rows) {
            sum = sum.saturating_add(*rows);
            if sum > MAX_HELD_ROWS && !held.is_empty() {
                break;
            }
            held.insert(*bucket);
        }
        let first = self.rows.first().copied().unwrap_or(0);
        (held, u128::from(first / MAX_HELD_ROWS + 1))
    }
}

/// Rows with one key in one part: how many more the source has, and the sum of their hashes.
#[derive(Default, PartialEq)]
struct Balance {
    hash: u128,
    source: u32,
    copy: u32,
}

impl Balance {
    fn verdict(&self) -> Option<&'static str> {
        match (self.source, self.copy, self.hash) {
            (source, copy, 0) if source == copy => None,
            (_, 0, _) => Some("missing"),
            (0, _, _) => Some("extra"),
            _ => Some("different"),
        }
    }
}

/// A source and its copies.
struct Pair<'a> {
    engine: &'a dyn Engine,
    row: &'a MoveRow,
    relation: &'a RelationRow,
    stored: &'a [i16],
    skip: &'a HashSet<Vec<u8>>,
}

impl Pair<'_> {
    fn each_row(&self, visit: &mut crate::engine::Visit) -> PgResult<usize> {
        self.engine.each_row(self.row, self.relation, self.stored, self.skip, visit)
    }

    /// By part, what the source and what the copy has.
    fn digests(&self) -> PgResult<Vec<[TableDigest; 2]>> {
        let mut parts: Vec<[TableDigest; 2]> = Vec::new();
        let count = self.each_row(&mut |side, part, row| {
            if parts.len() <= part {
                parts.resize_with(part + 1, Default::default);
            }
            let [source, copy] = &mut parts[part];
            let digest = if side == Side::Source { source } else { copy };
            digest.add_row(row.key_hash, row.row_hash);
        })?;
        parts.resize_with(parts.len().max(count), Default::default);
        Ok(parts)
    }

    /// The move ends here, and says where the copies differ.
    fn tell(&self, parts: &[[TableDigest; 2]], differing: &Differing) -> PgResult<()> {
        let rows = |side: usize| parts.iter().map(|part| part[side].rows()).sum::<u64>();
        let what = format!(
            "verification found {} differing key buckets ({} rows in the source, {} in the copy)",
            differing.buckets.len(),
            rows(0),
            rows(1)
        );
        let named = self.differing_rows(differing)?;
        end(self.engine, self.row, &what, named)
    }

    /// Keys of rows that differ, with what is the matter; at most a few. Only rows of buckets that differ are remembered,
    /// by their hashes; the few that are told are read once more.
    fn differing_rows(&self, differing: &Differing) -> PgResult<Vec<Value>> {
        let (held, slices) = differing.held();
        for slice in 0..slices {
            let mut balances: HashMap<(usize, u128), Balance> = HashMap::new();
            self.each_row(&mut |side, part, row| {
                let bucket = (part, TableDigest::bucket_of(row.key_hash));
                // The lowest bits say the bucket.
                if (row.key_hash >> 64) % slices != slice || !held.contains(&bucket) {
                    return;
                }
                let balance = balances.entry((part, row.key_hash)).or_default();
                match side {
                    Side::Source => {
                        balance.source += 1;
                        balance.hash = balance.hash.wrapping_add(row.row_hash);
                    }
                    Side::Copy => {
                        balance.copy += 1;
                        balance.hash = balance.hash.wrapping_sub(row.row_hash);
                    }
                }
            })?;
            let found = balances.iter().filter_map(|(key, balance)| Some((*key, balance.verdict()?)));
            let found: BTreeMap<(usize, u128), &'static str> = found.take(MAX_NAMED_ROWS).collect();
            if !found.is_empty() {
                return self.name(found);
            }
        }
        Ok(Vec::new())
    }

    fn name(&self, mut found: BTreeMap<(usize, u128), &'static str>) -> PgResult<Vec<Value>> {
        let owner = security::relation_owner(self.relation.source)?;
        let mut named = Vec::new();
        self.each_row(&mut |_, part, row| {
            if let Some(verdict) = found.remove(&(part, row.key_hash)) {
                // A type's output may be the owner's own code.
                let _guard = security::as_restricted_owner(owner);
                named.push(json!({"key": row.texts(&self.relation.key), "row": verdict}));
            }
        })?;
        Ok(named)
    }
}
