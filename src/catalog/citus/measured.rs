//! What the foreshard of a node has measured of its shards: part of the one question to nodes that have one, and left out of it
//! for all others. See [`crate::catalog::measured`].

use crate::catalog::measured::{self, Measured, Said, Shard};
use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys::Oid;

/// Whether the node has the function, as a member of the extension: another one, whoever made it, is not called.
const HAS_FUNCTION: &str = "EXISTS (SELECT FROM pg_catalog.pg_depend d CROSS JOIN pg_catalog.pg_extension y \
     WHERE y.extname OPERATOR(pg_catalog.=) 'foreshard'::pg_catalog.name AND d.refobjid OPERATOR(pg_catalog.=) y.oid \
       AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass::pg_catalog.oid \
       AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass::pg_catalog.oid \
       AND d.objid OPERATOR(pg_catalog.=) pg_catalog.to_regprocedure('foreshard.observe_shards(pg_catalog.int8[], pg_catalog.oid[], pg_catalog.float8)')::pg_catalog.oid \
       AND d.deptype OPERATOR(pg_catalog.=) 'e'::pg_catalog.\"char\")";

/// The part of the question that says whether the node has a foreshard: [version, has the function].
pub(super) fn probe() -> String {
    format!(
        ", 'x', (SELECT pg_catalog.json_build_array(x.extversion, {HAS_FUNCTION}) FROM pg_catalog.pg_extension x \
             WHERE x.extname OPERATOR(pg_catalog.=) 'foreshard'::pg_catalog.name)"
    )
}

/// The part of the question, a template of `format()` whose first two arguments are shards and their names, that asks for what was
/// measured. The function is only reached when it is the extension's: its arguments are not known before.
pub(super) fn asks() -> String {
    let keep_s = measured::keep_s(guc::BUCKET.get());
    format!(
        ", 'm', (SELECT CASE WHEN {HAS_FUNCTION} \
                 THEN foreshard.observe_shards(pg_catalog.array_agg(n.s), pg_catalog.array_agg(n.c::pg_catalog.oid), {keep_s}::pg_catalog.float8) END \
             FROM (SELECT u.s, pg_catalog.to_regclass(u.n) AS c FROM ROWS FROM (pg_catalog.unnest(%1$L::pg_catalog.int8[]), \
                 pg_catalog.unnest(%2$L::pg_catalog.text[])) AS u (s, n) OFFSET 0) n WHERE n.c IS NOT NULL)"
    )
}

/// What the node of a number is called here.
fn name_of(citus_node: i32) -> PgResult<Option<String>> {
    let name = "SELECT node_name::text FROM foreshard.node WHERE citus_node = $1";
    spi::one::<String>(name, &[citus_node.into()])
}

/// Notes what a node has said of its foreshard; see [`measured::note`].
pub(super) fn note(citus_node: i32, said: &Said, failed: Option<&str>) -> PgResult<()> {
    match name_of(citus_node)? {
        Some(node) => measured::note(&node, said, failed),
        None => Ok(()),
    }
}

/// A node has not answered.
pub(super) fn forget(citus_node: i32) -> PgResult<()> {
    match name_of(citus_node)? {
        Some(node) => measured::forget(&node),
        None => Ok(()),
    }
}

/// Every shard of the adopted cluster.
pub fn shards() -> PgResult<Vec<Shard>> {
    spi::rows(
        "SELECT t.table_oid::oid, t.slot_id, t.citus_shard, o.citus_node, t.counted_since, t.measured_in, t.measured \
         FROM foreshard.citus_shard t JOIN foreshard.node o USING (node_name)",
        &[],
        |row| {
            let count = (row.need::<i64>(3)?, row.need::<i32>(4)?);
            let measured = Measured::of(count, row.get(5)?, row.get(6)?, row.get(7)?);
            Ok(Shard { table: row.need::<Oid>(1)?.to_u32(), slot_id: row.need(2)?, measured })
        },
    )
}
