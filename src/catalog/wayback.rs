//! The way back of a split: the partition's old storage goes on living in a table of ours, kept equal by a mirror from
//! both parts, as a merge that only waits to be asked for.

use super::mold::Mold;
use super::moves::MoveRow;
use super::preflight::identity_index;
use super::shadow::{self, RelationRow};
use super::split::Part;
use super::{child, record_event, remains};
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::{security, spi, storage};
use pgrx::pg_sys;
use serde_json::json;

/// Number of the part that takes the old storage.
const OLD: i32 = -1;

/// Makes, for one partition of a split, the table that will take its storage, and a log for each of its copies.
pub fn create(move_id: i64, source: pg_sys::Oid, parts: &[Part]) -> PgResult<()> {
    let first = parts.first().ok_or_else(|| internal("a split without parts"))?;
    let (_, key) = identity_index(source)?.ok_or_else(|| internal("the identity index is gone"))?;
    let tag = format!("{move_id}_{}", source.to_u32());
    let owner = security::relation_owner(source)?;
    let old = Mold::of(source)?.make(&format!("split_{tag}_old"), source, owner, &first.tablespace)?;
    // Rows that have values in columns that are dropped, or lack those of columns that came later, go over as they are.
    spi::run(
        "UPDATE pg_catalog.pg_attribute c SET attlen = s.attlen, attbyval = s.attbyval, attalign = s.attalign, attstorage = s.attstorage, \
             atthasmissing = s.atthasmissing, attmissingval = s.attmissingval \
         FROM pg_catalog.pg_attribute s WHERE s.attrelid = $1 AND c.attrelid = $2 AND s.attnum = c.attnum AND s.attnum > 0 \
           AND (s.attisdropped OR s.atthasmissing)",
        &[source.into(), old.into()],
    )?;
    storage::forget_cached(old);
    child::note_copy(move_id, source, OLD, old)?;
    let space = shadow::tablespace_oid(&first.tablespace)?;
    shadow::create_indexes(move_id, source, old, space, &format!("split_{move_id}_old"))?;
    for part in parts {
        let log = shadow::create_log(source, &key, &format!("capture_{tag}_{}", part.part))?;
        spi::run(
            "UPDATE foreshard.move_child SET log = $4 WHERE move_id = $1 AND source = $2 AND part = $3",
            &[move_id.into(), source.into(), part.part.into(), log.into()],
        )?;
    }
    Ok(())
}

/// The table that takes a partition's storage; None: there will be no way back.
pub fn table(move_id: i64, source: pg_sys::Oid) -> PgResult<Option<pg_sys::Oid>> {
    spi::one::<pg_sys::Oid>(
        "SELECT child FROM foreshard.move_child WHERE move_id = $1 AND source = $2 AND part = $3",
        &[move_id.into(), source.into(), OLD.into()],
    )
}

/// (Index of the source, that of the table that takes its storage).
fn index_pairs(move_id: i64, old: pg_sys::Oid) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT source_index, shadow_index FROM foreshard.move_index WHERE move_id = $1 AND heap = $2 ORDER BY 1",
        &[move_id.into(), old.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// What the planner knows of the partitions of a split becomes known of the tables that take their storage, too: nobody
/// will have looked at those when they come back.
pub(super) fn copy_statistics(move_id: i64) -> PgResult<()> {
    let pairs = spi::rows(
        "SELECT source, child FROM foreshard.move_child WHERE move_id = $1 AND part = $2 \
         UNION ALL SELECT i.source_index, i.shadow_index FROM foreshard.move_child c \
             JOIN foreshard.move_index i ON (i.move_id, i.heap) = (c.move_id, c.child) WHERE c.move_id = $1 AND c.part = $2",
        &[move_id.into(), OLD.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?, row.need::<pg_sys::Oid>(2)?)),
    )?;
    pairs.into_iter().for_each(|(from, to)| storage::copy_statistics(from, to));
    Ok(())
}

/// Everything whose storage or links change hands, ascending.
pub fn touched(move_id: i64, source: pg_sys::Oid) -> PgResult<Vec<pg_sys::Oid>> {
    let Some(old) = table(move_id, source)? else { return Ok(Vec::new()) };
    spi::rows(
        "SELECT o FROM (SELECT source_index AS o FROM foreshard.move_index WHERE move_id = $1 AND heap = $3 \
             UNION SELECT shadow_index FROM foreshard.move_index WHERE move_id = $1 AND heap = $3 UNION SELECT $3 \
             UNION SELECT reltoastrelid FROM pg_catalog.pg_class WHERE oid IN ($2, $3) AND reltoastrelid <> 0) q ORDER BY 1",
        &[move_id.into(), source.into(), old.into()],
        |row| row.need(1),
    )
}

/// The storage of a partition that is about to be dropped changes hands; everything is locked.
pub fn keep_storage(move_id: i64, source: pg_sys::Oid) -> PgResult<()> {
    let Some(old) = table(move_id, source)? else { return Ok(()) };
    if !remains::are_stored_alike(source, old)? {
        return Err(wrong_state("the table that is to keep the old storage was altered"));
    }
    for (index, copy) in index_pairs(move_id, old)? {
        storage::swap_storage(index, copy)?;
    }
    storage::swap_storage(source, old)
}

/// The parts have taken the partition's place, and are still locked: from now on what is written to them is mirrored
/// into the old storage. The merge that could bring it back belongs to both slots once the split has ended.
pub fn begin(row: &MoveRow, relations: &[RelationRow], parts: &[Part]) -> PgResult<()> {
    let [first, second] = parts else { return Ok(()) };
    let (Some(kept), Some(new)) = (first.slot_id, second.slot_id) else { return Ok(()) };
    let Some(relation) = relations.first() else { return Ok(()) };
    if table(row.move_id, relation.source)?.is_none() {
        return Ok(());
    }
    let merge = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, other_slot, from_shard, to_shard, phase, finished, prepare, way_back_of, \
             started_at, prepared_at, checked_at, caught_up_at) \
         SELECT request_id, 'merge', $2, $3, to_shard, from_shard, 'prepared', true, true, move_id, \
             pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(), pg_catalog.clock_timestamp(), 'infinity' \
         FROM foreshard.move WHERE move_id = $1 RETURNING move_id",
        &[row.move_id.into(), kept.into(), new.into()],
    )?
    .ok_or_else(|| internal("no move id"))?;
    spi::run(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, partner_of, from_shard, to_shard, phase, prepare) \
         SELECT request_id, 'merge', $2, move_id, $3, to_shard, 'prepared', true FROM foreshard.move WHERE move_id = $1",
        &[merge.into(), new.into(), second.shard_id.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id, slot_id) VALUES ($1, 0, $2, $3, $4, $5)",
        &[
            merge.into(),
            (first.modulus / 2).into(),
            first.remainder.into(),
            row.from_shard.into(),
            kept.into(),
        ],
    )?;
    for relation in relations {
        hand_over(row.move_id, merge, relation)?;
    }
    record_event("way_back", Some(merge), Some(kept), json!({"of": row.move_id}))
}

/// The copies of one partition become the sources of the merge, its old storage the merge's copy.
fn hand_over(split: i64, merge: i64, relation: &RelationRow) -> PgResult<()> {
    let old = table(split, relation.source)?.ok_or_else(|| internal("the old storage is gone"))?;
    // The identity index of the partition has gone with it; those of its copies have the same columns.
    let copies = spi::rows(
        "SELECT c.child, c.log, i.shadow_index, (x.indkey::int2[])[0:x.indnkeyatts - 1] \
         FROM foreshard.move_child c JOIN foreshard.move_relation r USING (move_id, source) \
         JOIN foreshard.move_index i ON i.move_id = c.move_id AND i.source_index = r.identity_index AND i.heap = c.child \
         JOIN pg_catalog.pg_index x ON x.indexrelid = i.shadow_index \
         WHERE c.move_id = $1 AND c.source = $2 AND c.part >= 0 ORDER BY c.part",
        &[split.into(), relation.source.into()],
        |row| {
            let copy: pg_sys::Oid = row.need(1)?;
            let log: pg_sys::Oid = row.need(2)?;
            let identity: pg_sys::Oid = row.need(3)?;
            Ok((copy, log, identity, row.need::<Vec<i16>>(4)?))
        },
    )?;
    for (copy, log, identity, key) in copies {
        // The capture trigger takes a log only from whom it was made for.
        spi::run(
            "UPDATE pg_catalog.pg_class SET relrewrite = $2 WHERE oid = $1",
            &[log.into(), copy.into()],
        )?;
        let trigger = shadow::install_trigger(copy, log, &key)?;
        spi::run(
            "INSERT INTO foreshard.move_relation (move_id, source, shadow, capture_log, capture_trigger, identity_index, fingerprint, portrait, twin, blocks_total) \
             VALUES ($1, $2, $3, $4, $5, $6, '', $7, $8, 0)",
            &[
                merge.into(),
                copy.into(),
                old.into(),
                log.into(),
                trigger.into(),
                identity.into(),
                child::portrait(copy)?.as_str().into(),
                relation.twin.unwrap_or(pg_sys::InvalidOid).into(),
            ],
        )?;
        spi::run(
            "WITH i AS (INSERT INTO foreshard.move_index (move_id, source, source_index, shadow_index, heap, built) \
                 SELECT $2, $3, c.shadow_index, k.shadow_index, k.heap, true FROM foreshard.move_index c \
                 JOIN foreshard.move_index k ON (k.move_id, k.source, k.source_index) = (c.move_id, c.source, c.source_index) \
                 WHERE c.move_id = $1 AND c.heap = $3 AND k.heap = $4) \
             INSERT INTO foreshard.move_child (move_id, source, part, child) VALUES ($2, $3, 0, $4)",
            &[split.into(), merge.into(), copy.into(), old.into()],
        )?;
        let mirrored = RelationRow {
            source: copy,
            shadow: old,
            log,
            trigger,
            fingerprint: String::new(),
            blocks_total: 0,
            blocks_done: 0,
            shadow_blocks: 0,
            key,
            twin: relation.twin,
        };
        shadow::set_mirroring(merge, &mirrored, true)?;
    }
    spi::run(
        "WITH c AS (DELETE FROM foreshard.move_child WHERE move_id = $1 AND source = $2 AND part < 0), \
              l AS (UPDATE foreshard.move_child SET log = NULL WHERE move_id = $1 AND source = $2 AND part >= 0) \
         UPDATE foreshard.move_relation SET twin = NULL WHERE move_id = $1 AND source = $2",
        &[split.into(), relation.source.into()],
    )?;
    Ok(())
}

/// Lets the slots of a split become one again; the merge that does so, None when there is no way back (any more).
pub fn request(split: i64) -> PgResult<Option<i64>> {
    spi::one_mut::<i64>(
        "UPDATE foreshard.move SET prepare = false WHERE way_back_of = $1 AND prepare AND NOT cancel_requested \
           AND phase NOT IN ('revert', 'revert_failed', 'cancelled', 'failed', 'done') RETURNING move_id",
        &[split.into()],
    )
}
