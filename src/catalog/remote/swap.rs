//! Source and copy change places: DETACH, ATTACH and names, in one transaction that knows nothing of any node.

use super::copy::{Pair, Side};
use super::{make, statistics};
use crate::catalog::attach::attach;
use crate::catalog::mold::{run_all, statements};
use crate::catalog::{child, name_of, shadow};
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi, storage};
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// An empty heap like the one of both that is here, which ATTACH is shown instead of the rows; None: both are on nodes.
pub fn twin(move_id: i64, source: pg_sys::Oid, copy: pg_sys::Oid) -> PgResult<Option<pg_sys::Oid>> {
    for heap in [source, copy] {
        if super::behind(heap)?.is_none() {
            let twin = storage::create_heap_like(heap, pg_sys::InvalidOid)?;
            shadow::adopt_shadow(twin, source, &format!("shadow_{move_id}_{}_twin", source.to_u32()))?;
            return Ok(Some(twin));
        }
    }
    Ok(None)
}

/// Exchanges a pair; parent, source, copy and twin are locked ACCESS EXCLUSIVE, and verification has shown that every
/// row of the copy belongs to the slot. With `keep`, changes of the new partition are logged from now on.
pub fn exchange(move_id: i64, pair: &Pair, twin: Option<pg_sys::Oid>, keep: bool) -> PgResult<()> {
    let parent = name_of(pair.shape.parent)?;
    let (schema, leaf) = schema_and_name(pair.source.relation)?;
    let carried = statements(child::CARRIED, pair.source.relation)?;
    if shadow::trigger_exists(pair.trigger)? {
        storage::drop_trigger(pair.trigger);
    }
    spi::run(&format!("ALTER TABLE {parent} DETACH PARTITION {}", pair.source.name), &[])?;
    put_away(move_id, pair)?;
    let kind = kind_of(&pair.copy);
    spi::run(&format!("ALTER EXTENSION foreshard DROP {kind} {}", pair.copy.name), &[])?;
    run_all(&carried, &pair.copy.name)?;
    spi::run(&format!("ALTER TABLE {} SET SCHEMA {schema}", pair.copy.name), &[])?;
    spi::run(&format!("ALTER TABLE {} RENAME TO {leaf}", name_of(pair.copy.relation)?), &[])?;
    spi::run(
        "UPDATE pg_catalog.pg_class SET relrewrite = 0 WHERE oid = $1 OR oid = (SELECT reltoastrelid FROM pg_catalog.pg_class WHERE oid = $1)",
        &[pair.copy.relation.into()],
    )?;
    match (&pair.copy.remote, twin) {
        (Some(_), _) => {
            let statement = format!(
                "ALTER TABLE {parent} ATTACH PARTITION {} {}",
                name_of(pair.copy.relation)?,
                pair.shape.bound
            );
            let _guard = security::as_restricted_owner(pair.shape.owner);
            spi::run(&statement, &[])?;
        }
        (None, Some(twin)) => {
            spi::run(
                "UPDATE pg_catalog.pg_class c SET relreplident = 'd' WHERE c.oid = $1",
                &[pair.copy.relation.into()],
            )?;
            storage::forget_cached(pair.copy.relation);
            attach(pair.shape.parent, pair.shape.owner, pair.copy.relation, twin, &pair.shape.bound)?;
        }
        (None, None) => return Err(internal("the move has lost its twin")),
    }
    storage::forget_cached(pair.copy.relation);
    let changed = spi::run(
        "UPDATE foreshard.slot_partition SET partition = $2::regclass WHERE partition = $1::regclass",
        &[pair.source.relation.into(), pair.copy.relation.into()],
    )?;
    if changed != 1 {
        return Err(internal("the partition of the slot is not registered"));
    }
    if pair.copy.remote.is_some() {
        statistics::begin_anew(pair.copy.relation)?;
    }
    turn_round(move_id, pair, keep)
}

/// The move's relation the other way round: what was the source is the copy now.
fn turn_round(move_id: i64, pair: &Pair, keep: bool) -> PgResult<()> {
    let none = pg_sys::InvalidOid;
    let (log, trigger) = match &pair.copy.remote {
        None if keep => make::capture_here(move_id, pair.copy.relation, &pair.shape.key)?,
        _ => (none, none),
    };
    spi::run(
        "UPDATE foreshard.move_relation SET source = $3, shadow = $2, capture_log = coalesce($4, 0), capture_trigger = coalesce($5, 0), life_there = NULL WHERE move_id = $1 AND source = $2",
        &[move_id.into(), pair.source.relation.into(), pair.copy.relation.into(), log.into(), trigger.into()],
    )?;
    if pair.log != none {
        storage::drop_own_table(pair.log);
    }
    let row = shadow::relations(move_id)?.into_iter().find(|row| row.source == pair.copy.relation);
    let row = row.ok_or_else(|| internal("the move has lost a relation"))?;
    set_fingerprint(move_id, &super::copy::pair(&row)?)
}

/// Takes the source as it is now for what it has to stay.
pub fn set_fingerprint(move_id: i64, pair: &Pair) -> PgResult<()> {
    let print = pair.fingerprint()?.ok_or_else(|| internal("no fingerprint"))?;
    spi::run(
        "UPDATE foreshard.move_relation SET fingerprint = $3, capture_log = coalesce($4, 0), capture_trigger = coalesce($5, 0) WHERE move_id = $1 AND source = $2",
        &[
            move_id.into(),
            pair.source.relation.into(),
            print.as_str().into(),
            pair.log.into(),
            pair.trigger.into(),
        ],
    )?;
    Ok(())
}

fn kind_of(side: &Side) -> &'static str {
    if side.remote.is_some() { "FOREIGN TABLE" } else { "TABLE" }
}

/// The former partition becomes one of our tables, which is dropped with the move.
fn put_away(move_id: i64, pair: &Pair) -> PgResult<()> {
    let source = &pair.source;
    let name = match &source.remote {
        Some(remote) => format!("remote_table_{}", remote.remote_id),
        None => format!("shadow_{move_id}_{}_old", source.relation.to_u32()),
    };
    spi::run(&format!("ALTER TABLE {} SET SCHEMA foreshard", source.name), &[])?;
    let moved = name_of(source.relation)?;
    spi::run(&format!("ALTER TABLE {moved} RENAME TO {name}"), &[])?;
    spi::run(&format!("ALTER EXTENSION foreshard ADD {} foreshard.{name}", kind_of(source)), &[])?;
    spi::run(
        "UPDATE pg_catalog.pg_class SET relrewrite = $2 WHERE oid = $1",
        &[source.relation.into(), pair.shape.parent.into()],
    )?;
    storage::forget_cached(source.relation);
    Ok(())
}

/// What a slot had on a node that is lost, after the [exchange]: the foreign table over it becomes the user's, beside the
/// partition, so that nobody drops what is behind it. Its name; None: nothing of it is on a node.
pub fn set_aside(partition: pg_sys::Oid, former: pg_sys::Oid) -> PgResult<Option<String>> {
    let Some(remote) = super::behind(former)? else { return Ok(None) };
    let (schema, _) = schema_and_name(partition)?;
    let name = spi::one::<String>(
        "SELECT pg_catalog.quote_ident(CASE WHEN octet_length(relname::text) <= 40 THEN relname::text ELSE pg_catalog.left(relname::text, 10) END \
             || '_lost_' || $2) FROM pg_catalog.pg_class WHERE oid = $1",
        &[partition.into(), remote.remote_id.into()],
    )?;
    let name = name.ok_or_else(|| internal("the partition is gone"))?;
    let was = name_of(former)?;
    spi::run(&format!("ALTER EXTENSION foreshard DROP FOREIGN TABLE {was}"), &[])?;
    spi::run(&format!("ALTER TABLE {was} RENAME TO {name}"), &[])?;
    spi::run(&format!("ALTER TABLE {} SET SCHEMA {schema}", name_of(former)?), &[])?;
    spi::run("UPDATE pg_catalog.pg_class SET relrewrite = 0 WHERE oid = $1", &[former.into()])?;
    storage::forget_cached(former);
    name_of(former).map(Some)
}

fn schema_and_name(relation: pg_sys::Oid) -> PgResult<(String, String)> {
    let found = spi::rows(
        "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[relation.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?)),
    )?;
    let (schema, name) = found.into_iter().next().ok_or_else(|| internal("the partition is gone"))?;
    Ok((quote_identifier(schema), quote_identifier(name)))
}

/// Registers source and copy of a move, before anything is captured.
pub fn begin(
    move_id: i64,
    source: pg_sys::Oid,
    copy: pg_sys::Oid,
    twin: Option<pg_sys::Oid>,
) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.move_relation (move_id, source, shadow, capture_log, capture_trigger, identity_index, fingerprint, twin, blocks_total) \
         VALUES ($1, $2, $3, 0, 0, 0, '', $4, 0)",
        &[move_id.into(), source.into(), copy.into(), twin.into()],
    )?;
    Ok(())
}

/// Says how much there is to copy.
pub fn set_blocks(move_id: i64, source: pg_sys::Oid, blocks: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move_relation SET blocks_total = $3 WHERE move_id = $1 AND source = $2",
        &[move_id.into(), source.into(), blocks.into()],
    )?;
    Ok(())
}
