//! What is left over: on nodes what no move and no table needs, and here what a move leaves behind.

use super::{RemoteRow, behind, forget, lease, make, orphans, set_dressed};
use crate::catalog::link::Link;
use crate::catalog::node::{self, NodeRow};
use crate::catalog::shadow::{self, RelationRow};
use crate::pg::report::PgResult;
use crate::pg::{spi, storage};
use pgrx::pg_sys;

/// Who made a remote table, or the one who added the node when that role is gone.
pub(super) fn maker(row: &RemoteRow, node: &NodeRow) -> PgResult<Option<pg_sys::Oid>> {
    Ok(node::role(&row.owner_name)?.or(node.checked_as))
}

/// Drops one remote table that nobody needs from its node, and forgets it: as the role that made it, or as the one who
/// added the node. Without a role to do it as, it stays.
pub fn drop_orphan(node: &NodeRow, row: &RemoteRow, as_maker: bool) -> PgResult<()> {
    let role = if as_maker { maker(row, node)? } else { node.checked_as };
    let Some(role) = role else { return Ok(()) };
    lease::require(node)?;
    make::remove(&Link::open(&row.server, role)?, row)?;
    forget(row.remote_id)?;
    crate::catalog::record_event(
        "dropped_remote",
        None,
        None,
        serde_json::json!({"node": row.node, "table": row.table_there()}),
    )
}

/// What nobody needs any more on a node.
pub fn left_on(node: &NodeRow) -> PgResult<Vec<RemoteRow>> {
    orphans(&node.name)
}

/// Drops here the copies of a move that are not the slot's, with everything through which they were filled; what is on
/// nodes has no table here any more then.
pub fn drop_copies(move_id: i64) -> PgResult<()> {
    let rows = shadow::relations(move_id)?;
    for row in &rows {
        for side in [row.source, row.shadow] {
            if let Some(remote) = behind(side)? {
                let aids = ["inbox", "state", "changes", "rest"].map(|what| remote.aid_here(what));
                make::drop_here(&aids)?;
                if side == row.shadow {
                    make::drop_here(&[format!("foreshard.remote_table_{}", remote.remote_id)])?;
                }
            }
        }
        for relation in [row.shadow, row.log].into_iter().chain(row.twin) {
            if is_own_heap(relation)? {
                storage::drop_own_table(relation);
            }
        }
    }
    // Last, because what is renamed stays locked.
    for row in &rows {
        if behind(row.source)?.is_none() {
            shadow::restore_toast_name(row.source)?;
        }
    }
    shadow::forget(move_id)
}

fn is_own_heap(relation: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1 AND relrewrite <> 0 AND relkind = 'r')",
        &[relation.into()],
    )?
    .unwrap_or(false))
}

/// The remote tables of a move, each with its node: those that stay (their aids go), and those that go.
pub fn of_move(move_id: i64) -> PgResult<Vec<(NodeRow, RemoteRow)>> {
    let all = spi::rows(
        "SELECT remote_id, node_name::text FROM foreshard.remote_table WHERE move_id = $1 ORDER BY 1",
        &[move_id.into()],
        |row| Ok((row.need::<i64>(1)?, row.need::<String>(2)?)),
    )?;
    let mut found = Vec::new();
    for (remote_id, name) in all {
        if let Some(row) = super::by_id(remote_id)? {
            found.push((node::node(&name)?, row));
        }
    }
    Ok(found)
}

/// What is on nodes behind the relations of a move: (node, remote table), the source's first.
pub fn behind_move(relations: &[RelationRow]) -> PgResult<Vec<(NodeRow, RemoteRow)>> {
    let mut found = Vec::new();
    for row in relations {
        for side in [row.source, row.shadow] {
            if let Some(remote) = behind(side)? {
                found.push((node::node(&remote.node)?, remote));
            }
        }
    }
    Ok(found)
}

/// Gives the indexes of a partition that came home the names that they would have had, as far as those are free.
pub fn name_indexes(partition: pg_sys::Oid) -> PgResult<()> {
    let renames = spi::rows(
        "SELECT format('ALTER INDEX %I.%I RENAME TO %I', n.nspname, i.relname, x.name) FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace JOIN pg_catalog.pg_index k ON k.indrelid = c.oid \
         JOIN pg_catalog.pg_class i ON i.oid = k.indexrelid \
         CROSS JOIN LATERAL (SELECT pg_catalog.regexp_replace(i.relname, '^shadow_[0-9]+_[0-9]+_', c.relname || '_') AS name) x \
         WHERE c.oid = $1 AND c.relkind = 'r' AND i.relname ~ '^shadow_[0-9]+_[0-9]+_' AND octet_length(x.name) < 64 \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_class o WHERE o.relnamespace = n.oid AND o.relname = x.name)",
        &[partition.into()],
        |row| row.need::<String>(1),
    )?;
    renames.iter().try_for_each(|rename| spi::run(rename, &[]).map(drop))
}

/// Whether a foreign table is over a remote table.
fn is_used(row: &RemoteRow) -> PgResult<bool> {
    shadow::exists(row.partition)
}

/// After a move: what is still used loses what helped to fill it and what logged its changes, the rest goes.
pub fn clear(node: &NodeRow, row: &RemoteRow, lock_ms: i32) -> PgResult<()> {
    if !is_used(row)? {
        return drop_orphan(node, row, true);
    }
    let Some(role) = maker(row, node)? else { return Ok(()) };
    lease::require(node)?;
    make::undress(&Link::open(&row.server, role)?, row, lock_ms)?;
    set_dressed(&[row.partition], false)
}

/// Drops a remote table that was registered for a move and never got its foreign table, or has lost it.
pub fn drop_unused(node: &NodeRow, row: &RemoteRow) -> PgResult<()> {
    if is_used(row)? { Ok(()) } else { drop_orphan(node, row, true) }
}
