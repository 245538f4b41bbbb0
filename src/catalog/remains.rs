//! What is left of partitions that others replace: tables of ours that take their storage when they are dropped, so that long files are
//! cut off in steps afterwards, not by everybody's commit. Made shortly before, for partitions with long files only.

use super::shadow::{self, RelationRow};
use super::{child, wayback};
use crate::pg::report::PgResult;
use crate::pg::{spi, storage};
use pgrx::pg_sys;

/// Number of the part that takes what is left.
const REMAINS: i32 = -2;

/// Makes the tables that are missing, for sources that have a file of more than `bytes`.
pub fn make(move_id: i64, relations: &[RelationRow], bytes: i64) -> PgResult<()> {
    for relation in relations {
        let source = relation.source;
        if of(move_id, Some(source))?.is_empty()
            && wayback::table(move_id, source)?.is_none()
            && has_long_file(source, bytes)?
        {
            make_one(move_id, source)?;
        }
    }
    Ok(())
}

/// Whether a table, its toast table or one of their indexes is longer than `bytes`.
fn has_long_file(table: pg_sys::Oid, bytes: i64) -> PgResult<bool> {
    let long = spi::one::<bool>(
        "WITH own AS (SELECT v.o FROM pg_catalog.pg_class c CROSS JOIN LATERAL (VALUES (c.oid), (c.reltoastrelid)) v (o) WHERE c.oid = $1) \
         SELECT EXISTS (SELECT FROM (TABLE own UNION SELECT i.indexrelid FROM own JOIN pg_catalog.pg_index i ON i.indrelid = own.o) a \
                        WHERE a.o <> 0 AND pg_catalog.pg_relation_size(a.o) > $2)",
        &[table.into(), bytes.into()],
    )?;
    Ok(long.unwrap_or(false))
}

fn make_one(move_id: i64, source: pg_sys::Oid) -> PgResult<()> {
    let remains = storage::create_heap_like(source, pg_sys::InvalidOid)?;
    shadow::adopt_shadow(remains, source, &format!("remains_{move_id}_{}", source.to_u32()))?;
    for index in storage::indexes(source) {
        storage::create_index_like(remains, index, pg_sys::InvalidOid, &index_name(move_id, index));
    }
    child::note_copy(move_id, source, REMAINS, remains)
}

fn index_name(move_id: i64, index: pg_sys::Oid) -> String {
    format!("remains_{move_id}_{}", index.to_u32())
}

/// (Source, its table) of a move, or of one of its sources.
fn of(move_id: i64, source: Option<pg_sys::Oid>) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT source, child FROM foreshard.move_child WHERE move_id = $1 AND part = $2 AND ($3::oid IS NULL OR source = $3) ORDER BY 1",
        &[move_id.into(), REMAINS.into(), source.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Whether two tables store their columns alike. Tables of ours belong to the source's owner, who may alter them meanwhile: storage
/// must not change hands then.
pub fn are_stored_alike(a: pg_sys::Oid, b: pg_sys::Oid) -> PgResult<bool> {
    let alike = spi::one::<bool>(
        "WITH columns AS (SELECT attrelid, format('%s %s %s %s %s %s %s', attnum, attisdropped, atttypid, atttypmod, attlen, attbyval, attalign) AS x \
             FROM pg_catalog.pg_attribute WHERE attrelid IN ($1, $2) AND attnum > 0) \
         SELECT (SELECT pg_catalog.array_agg(x ORDER BY x) FROM columns WHERE attrelid = $1) IS NOT DISTINCT FROM \
                (SELECT pg_catalog.array_agg(x ORDER BY x) FROM columns WHERE attrelid = $2) \
            AND (SELECT count(DISTINCT relam) FROM pg_catalog.pg_class WHERE oid IN ($1, $2)) = 1",
        &[a.into(), b.into()],
    )?;
    Ok(alike.unwrap_or(false))
}

/// (Source, an index of it, that of its table). An index that came later has none, nor has one that somebody made anew or read into: it
/// goes as it is.
fn index_pairs(move_id: i64) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT m.source, i.indexrelid, c.oid FROM foreshard.move_child m JOIN pg_catalog.pg_index i ON i.indrelid = m.source \
         JOIN pg_catalog.pg_index r ON r.indrelid = m.child JOIN pg_catalog.pg_class c ON c.oid = r.indexrelid \
             AND c.relname = 'remains_' || m.move_id || '_' || i.indexrelid AND NOT r.indisready AND NOT r.indisvalid \
             AND c.relam = (SELECT relam FROM pg_catalog.pg_class WHERE oid = i.indexrelid) \
         WHERE m.move_id = $1 AND m.part = $2 ORDER BY 2",
        &[move_id.into(), REMAINS.into()],
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?)),
    )
}

/// Everything whose storage or links change hands, ascending.
pub fn touched(move_id: i64) -> PgResult<Vec<pg_sys::Oid>> {
    let mut all: Vec<pg_sys::Oid> = index_pairs(move_id)?.into_iter().flat_map(|(_, a, b)| [a, b]).collect();
    all.extend(spi::rows(
        "SELECT o FROM foreshard.move_child m JOIN pg_catalog.pg_class c ON c.oid IN (m.source, m.child) \
             CROSS JOIN LATERAL (VALUES (m.child), (c.reltoastrelid)) v (o) \
         WHERE m.move_id = $1 AND m.part = $2 AND o <> 0",
        &[move_id.into(), REMAINS.into()],
        |row| row.need::<pg_sys::Oid>(1),
    )?);
    all.sort_by_key(|oid| oid.to_u32());
    all.dedup();
    Ok(all)
}

/// The storage of sources that are about to be dropped changes hands; everything is locked.
pub fn keep_storage(move_id: i64) -> PgResult<()> {
    let mut alike = Vec::new();
    for (source, remains) in of(move_id, None)? {
        if are_stored_alike(source, remains)? {
            alike.push((source, remains));
        }
    }
    for (source, index, of_remains) in index_pairs(move_id)? {
        if alike.iter().any(|(own, _)| *own == source) {
            storage::swap_storage(index, of_remains)?;
        }
    }
    alike.into_iter().try_for_each(|(source, remains)| storage::swap_storage(source, remains))
}

/// Runs for nothing what the exchange will run: it is planned then.
pub fn rehearse() -> PgResult<()> {
    touched(0)?;
    are_stored_alike(pg_sys::InvalidOid, pg_sys::InvalidOid)?;
    of(0, None).map(drop)
}
