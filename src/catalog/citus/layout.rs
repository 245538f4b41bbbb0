//! What Citus' own catalogs say of nodes, colocation groups and shards, taken over as it is.

use super::divided;
use crate::catalog::record_event;
use crate::pg::report::PgResult;
use crate::pg::spi;
use serde_json::json;

/// Shards of tables that Citus distributes over nodes, one copy each: by hash, or as a whole. With the range of hashes.
const SHARDS: &str = "SELECT s.shardid, s.logicalrelid, t.colocationid, p.groupid, \
        coalesce(CASE WHEN t.partmethod = 'h' THEN s.shardminvalue::int END, -2147483648) AS hash_from, \
        coalesce(CASE WHEN t.partmethod = 'h' THEN s.shardmaxvalue::int END, 2147483647) AS hash_to \
    FROM pg_catalog.pg_dist_partition t JOIN pg_catalog.pg_dist_shard s USING (logicalrelid) \
    JOIN pg_catalog.pg_dist_placement p USING (shardid) JOIN pg_catalog.pg_dist_colocation c USING (colocationid) \
    JOIN pg_catalog.pg_class k ON k.oid = t.logicalrelid \
    WHERE t.partmethod IN ('h', 'n') AND t.repmodel <> 't' AND c.replicationfactor = 1 AND c.shardcount BETWEEN 1 AND 4096 \
      AND p.shardstate = 1";

/// Makes nodes, groups, tables, slots and their places here what they are in Citus. A slot that Citus moved has rested
/// since then, whoever asked for it. Cheap when nothing has changed.
pub fn follow() -> PgResult<()> {
    // One at a time: sessions and workers do this.
    spi::run("SELECT FROM foreshard.citus_cluster FOR UPDATE", &[])?;
    nodes()?;
    groups()?;
    divided::follow(&ranges())?;
    slots()?;
    places()?;
    forget_gone()
}

fn nodes() -> PgResult<()> {
    for statement in [
        format!(
            "INSERT INTO foreshard.node (node_name, engine, checked_as, citus_node, takes_shards) \
             SELECT format('%s_%s', c.cluster_name, n.nodeid)::name, 'citus', c.added_by, n.nodeid, n.shouldhaveshards \
             FROM foreshard.citus_cluster c CROSS JOIN pg_catalog.pg_dist_node n \
             WHERE n.noderole = 'primary' AND n.isactive AND (n.shouldhaveshards OR n.groupid IN (SELECT q.groupid FROM ({SHARDS}) q)) \
               AND NOT EXISTS (SELECT FROM foreshard.node o WHERE o.citus_node = n.nodeid) ON CONFLICT DO NOTHING"
        ),
        "INSERT INTO foreshard.shard (shard_name, node_name, tablespace_name, capacity) \
         SELECT n.node_name, n.node_name, 'pg_default', c.capacity FROM foreshard.node n CROSS JOIN foreshard.citus_cluster c \
         WHERE n.engine = 'citus' AND NOT EXISTS (SELECT FROM foreshard.shard h WHERE h.node_name = n.node_name) \
         ON CONFLICT DO NOTHING"
            .to_string(),
        "UPDATE foreshard.node o SET takes_shards = n.shouldhaveshards AND n.isactive FROM pg_catalog.pg_dist_node n \
         WHERE n.nodeid = o.citus_node AND o.takes_shards IS DISTINCT FROM (n.shouldhaveshards AND n.isactive)"
            .to_string(),
    ] {
        spi::run(&statement, &[])?;
    }
    Ok(())
}

fn groups() -> PgResult<()> {
    for statement in [
        format!(
            "INSERT INTO foreshard.colocation_group (key_type, slot_count, citus_colocation) \
             SELECT c.distributioncolumntype::regtype, c.shardcount, c.colocationid FROM pg_catalog.pg_dist_colocation c \
             WHERE c.colocationid IN (SELECT q.colocationid FROM ({SHARDS}) q) \
               AND NOT EXISTS (SELECT FROM foreshard.colocation_group g WHERE g.citus_colocation = c.colocationid)"
        ),
        "DELETE FROM foreshard.citus_table t WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_dist_partition p \
             JOIN foreshard.colocation_group g ON g.citus_colocation = p.colocationid JOIN pg_catalog.pg_class k ON k.oid = p.logicalrelid \
             WHERE p.logicalrelid::oid = t.table_oid::oid AND g.group_id = t.group_id)"
            .to_string(),
        format!(
            "INSERT INTO foreshard.citus_table (table_oid, group_id, key_column) \
             SELECT t.logicalrelid, g.group_id, CASE WHEN t.partmethod = 'h' THEN pg_catalog.column_to_column_name(t.logicalrelid, t.partkey) END::name \
             FROM pg_catalog.pg_dist_partition t JOIN foreshard.colocation_group g ON g.citus_colocation = t.colocationid \
             WHERE t.logicalrelid IN (SELECT q.logicalrelid FROM ({SHARDS}) q) \
               AND NOT EXISTS (SELECT FROM foreshard.citus_table o WHERE o.table_oid::oid = t.logicalrelid::oid)"
        ),
    ] {
        spi::run(&statement, &[])?;
    }
    Ok(())
}

/// What Citus has of the groups: group, first and last hash, and the shard here that has them.
fn ranges() -> String {
    format!(
        "SELECT DISTINCT ON (g.group_id, q.hash_from, q.hash_to) g.group_id, q.hash_from, q.hash_to, h.shard_id \
         FROM ({SHARDS}) q JOIN foreshard.colocation_group g ON g.citus_colocation = q.colocationid \
         JOIN pg_catalog.pg_dist_node n ON n.groupid = q.groupid AND n.noderole = 'primary' \
         JOIN foreshard.node o ON o.citus_node = n.nodeid JOIN foreshard.shard h ON h.node_name = o.node_name \
         ORDER BY g.group_id, q.hash_from, q.hash_to, q.shardid"
    )
}

/// Slots of the groups, by the range of hashes; which of how many each is, follows. Where Citus has divided a shard since
/// [`divided::follow`] looked, the parts wait for its next look: as slots of their own they would have no past.
fn slots() -> PgResult<()> {
    let ranges = ranges();
    for statement in [
        format!(
            "INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, born_shard, hash_from, hash_to) \
             SELECT r.group_id, count(*) OVER w, row_number() OVER (w ORDER BY r.hash_from) - 1, r.shard_id, r.shard_id, r.hash_from, r.hash_to \
             FROM ({ranges}) r WHERE NOT EXISTS (SELECT FROM foreshard.slot o WHERE o.group_id = r.group_id AND o.hash_from <= r.hash_from \
                 AND o.hash_to >= r.hash_to AND (o.hash_from, o.hash_to) <> (r.hash_from, r.hash_to)) \
             WINDOW w AS (PARTITION BY r.group_id) ON CONFLICT (group_id, hash_from, hash_to) DO NOTHING"
        ),
        format!(
            "UPDATE foreshard.slot s SET modulus = q.modulus, remainder = q.remainder \
             FROM (SELECT r.group_id, r.hash_from, r.hash_to, (count(*) OVER w)::int AS modulus, (row_number() OVER (w ORDER BY r.hash_from) - 1)::int AS remainder \
                   FROM ({ranges}) r WINDOW w AS (PARTITION BY r.group_id)) q \
             WHERE (s.group_id, s.hash_from, s.hash_to) = (q.group_id, q.hash_from, q.hash_to) AND (s.modulus, s.remainder) <> (q.modulus, q.remainder)"
        ),
    ] {
        spi::run(&statement, &[])?;
    }
    Ok(())
}

/// The shards of every slot, and the nodes they are on.
fn places() -> PgResult<()> {
    spi::run(
        "DELETE FROM foreshard.citus_shard t WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_dist_shard s WHERE s.shardid = t.citus_shard)",
        &[],
    )?;
    // What was counted on another node says nothing about what is counted there.
    spi::run(
        &format!(
            "INSERT INTO foreshard.citus_shard AS t (citus_shard, slot_id, table_oid, node_name) \
             SELECT q.shardid, s.slot_id, q.logicalrelid, o.node_name FROM ({SHARDS}) q \
             JOIN foreshard.colocation_group g ON g.citus_colocation = q.colocationid \
             JOIN foreshard.slot s ON (s.group_id, s.hash_from, s.hash_to) = (g.group_id, q.hash_from, q.hash_to) \
             JOIN foreshard.citus_table m ON m.table_oid::oid = q.logicalrelid::oid \
             JOIN pg_catalog.pg_dist_node n ON n.groupid = q.groupid AND n.noderole = 'primary' \
             JOIN foreshard.node o ON o.citus_node = n.nodeid \
             ON CONFLICT (citus_shard) DO UPDATE SET slot_id = excluded.slot_id, node_name = excluded.node_name, collected_at = NULL, \
                 counted_at = NULL, counted_since = NULL, bytes = t.bytes, scans = NULL, rows_read = NULL, inserted = NULL, updated = NULL, deleted = NULL, blocks_read = NULL, blocks_hit = NULL, \
                 measured_in = NULL, measured = NULL \
             WHERE (t.slot_id, t.node_name) IS DISTINCT FROM (excluded.slot_id, excluded.node_name)"
        ),
        &[],
    )?;
    let moved = spi::rows_mut(
        "UPDATE foreshard.slot s SET shard_id = q.shard_id, last_moved_at = pg_catalog.clock_timestamp() \
         FROM (SELECT t.slot_id, min(h.shard_id) AS shard_id FROM foreshard.citus_shard t JOIN foreshard.shard h USING (node_name) GROUP BY 1) q, \
              foreshard.slot w JOIN foreshard.shard f ON f.shard_id = w.shard_id \
         WHERE q.slot_id = s.slot_id AND q.shard_id <> s.shard_id AND w.slot_id = s.slot_id \
         RETURNING s.slot_id, f.shard_name::text, (SELECT h.shard_name::text FROM foreshard.shard h WHERE h.shard_id = s.shard_id)",
        &[],
        |row| Ok((row.need::<i64>(1)?, row.need::<String>(2)?, row.need::<String>(3)?)),
    )?;
    for (slot_id, from, to) in moved {
        // So high that the next reading is below: no rate is made of the counters of two nodes.
        spi::run(
            "UPDATE foreshard.slot_heat SET scans = 9223372036854775807 WHERE slot_id = $1",
            &[slot_id.into()],
        )?;
        record_event("citus_moved", None, Some(slot_id), json!({"from": from, "to": to}))?;
    }
    Ok(())
}

fn forget_gone() -> PgResult<()> {
    let ranges = ranges();
    // What was divided meanwhile is not gone.
    spi::run(
        &format!(
            "DELETE FROM foreshard.slot s WHERE s.hash_from IS NOT NULL AND NOT EXISTS (SELECT FROM foreshard.citus_shard t WHERE t.slot_id = s.slot_id) \
               AND NOT EXISTS (SELECT FROM ({ranges}) r WHERE r.group_id = s.group_id AND r.hash_from >= s.hash_from AND r.hash_to <= s.hash_to)"
        ),
        &[],
    )?;
    for statement in [
        "DELETE FROM foreshard.colocation_group g WHERE g.citus_colocation IS NOT NULL \
           AND NOT EXISTS (SELECT FROM foreshard.citus_table t WHERE t.group_id = g.group_id)",
        "DELETE FROM foreshard.citus_tenant t WHERE NOT EXISTS (SELECT FROM foreshard.node n WHERE n.node_name = t.node_name)",
    ] {
        spi::run(statement, &[])?;
    }
    let gone: Vec<String> = spi::rows(
        "SELECT h.shard_name::text FROM foreshard.shard h JOIN foreshard.node o USING (node_name) WHERE o.engine = 'citus' \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_dist_node n WHERE n.nodeid = o.citus_node AND n.noderole = 'primary') \
           AND NOT EXISTS (SELECT FROM foreshard.slot s WHERE s.shard_id = h.shard_id) \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE h.shard_id IN (m.from_shard, m.to_shard) AND NOT m.finished)",
        &[],
        |row| row.need(1),
    )?;
    for shard in gone {
        crate::catalog::drain::remove(&shard)?;
        record_event("citus_node_gone", None, None, json!({"node": shard}))?;
    }
    spi::run(
        "DELETE FROM foreshard.node o WHERE o.engine = 'citus' AND NOT EXISTS (SELECT FROM foreshard.shard h WHERE h.node_name = o.node_name) \
           AND NOT EXISTS (SELECT FROM foreshard.citus_shard t WHERE t.node_name = o.node_name)",
        &[],
    )?;
    Ok(())
}
