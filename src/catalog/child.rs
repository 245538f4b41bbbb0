//! The copies of a split: a table per part, made like the partition it comes from, which in the end take
//! that partition's place.
//!
//! While they are filled they are partitions of a staging table of ours, so that statements which write the
//! copy need not know where a row belongs. Their columns have the attribute numbers of the source (dropped
//! columns included), so that keys, index definitions and rows can be read by number on both sides.

use super::attach::{attach, tail_of};
use super::mold::{Mold, adopt, columns, run_all, statements};
use super::name_of;
use super::preflight::identity_index;
use super::shadow::{self, RelationRow};
use super::split::{Part, against_split};
use super::wayback;
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::spi;
use crate::pg::{names, security, sequence, storage};
use pgrx::pg_sys;

/// The copies of one partition, by part.
pub fn children(move_id: i64, source: pg_sys::Oid) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT child FROM foreshard.move_child WHERE move_id = $1 AND source = $2 AND part >= 0 ORDER BY part",
        &[move_id.into(), source.into()],
        |row| row.need(1),
    )
}

/// The partitioned table of a leaf.
pub fn parent_of(partition: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>(
        "SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = $1",
        &[partition.into()],
    )?
    .ok_or_else(|| wrong_state("the partition belongs to no table any more"))
}

/// The number that the partition key's column has in a source, and so in its copies.
pub fn key_attribute(row: &RelationRow) -> PgResult<i16> {
    spi::one::<i16>(
        "SELECT a.attnum FROM pg_catalog.pg_partitioned_table p JOIN pg_catalog.pg_attribute k ON k.attrelid = p.partrelid AND k.attnum = p.partattrs[0] \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = $2 AND a.attname = k.attname AND NOT a.attisdropped WHERE p.partrelid = $1",
        &[row.shadow.into(), row.source.into()],
    )?
    .ok_or_else(|| internal("the partition has lost its key"))
}

/// The tables of some leaves and what their foreign keys lead to, partitions included, both ascending.
pub fn around(partitions: &[pg_sys::Oid]) -> PgResult<(Vec<pg_sys::Oid>, Vec<pg_sys::Oid>)> {
    let parents = spi::rows(
        "SELECT DISTINCT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = ANY ($1) ORDER BY 1",
        &[partitions.to_vec().into()],
        |row| row.need(1),
    )?;
    let referenced = spi::rows(
        "SELECT DISTINCT t.relid::oid FROM pg_catalog.pg_constraint k \
         CROSS JOIN LATERAL (SELECT relid FROM pg_catalog.pg_partition_tree(k.confrelid) UNION SELECT k.confrelid) t \
         WHERE k.contype = 'f' AND k.conrelid = ANY ($1) AND t.relid::oid <> ALL ($1) ORDER BY 1",
        &[partitions.to_vec().into()],
        |row| row.need(1),
    )?;
    Ok((parents, referenced))
}

/// Everything about a partition that its copies take over when they are made, as one text; what speaks
/// against a split is part of it. What is not in it is carried over at the end.
pub fn portrait(source: pg_sys::Oid) -> PgResult<String> {
    let shape = spi::one::<String>(
        "SELECT pg_catalog.string_agg(x, E'\\n' ORDER BY x) FROM ( \
           SELECT format('p %s %s', inhparent, (SELECT relpartbound FROM pg_catalog.pg_class WHERE oid = inhrelid)) AS x FROM pg_catalog.pg_inherits WHERE inhrelid = $1 \
           UNION ALL SELECT format('r %s %s', c.reloptions, t.reloptions) FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid WHERE c.oid = $1 \
           UNION ALL SELECT format('a %s %s %s %s %s', attnum, attstorage, attcompression, attstattarget, \
             (SELECT pg_catalog.string_agg(o, ',') FROM pg_catalog.unnest(attoptions) o WHERE o NOT LIKE 'pg\\_attver=%')) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 \
           UNION ALL SELECT format('d %s %s', adnum, pg_catalog.pg_get_expr(adbin, adrelid)) FROM pg_catalog.pg_attrdef WHERE adrelid = $1 \
           UNION ALL SELECT format('k %s %s %s', conname, contype, pg_catalog.pg_get_constraintdef(oid)) FROM pg_catalog.pg_constraint WHERE conrelid = $1 \
           UNION ALL SELECT format('i %s %s', indexrelid, (SELECT inhparent FROM pg_catalog.pg_inherits WHERE inhrelid = indexrelid)) FROM pg_catalog.pg_index WHERE indrelid = $1) q",
        &[source.into()],
    )?;
    let mut portrait = shape.unwrap_or_default();
    for reason in against_split(source)? {
        portrait.push('\n');
        portrait.push_str(&reason);
    }
    Ok(portrait)
}

/// Makes staging table, copies, their twin and the log of one partition, all empty and members of the
/// extension. Changes are not captured yet.
pub fn create(move_id: i64, source: pg_sys::Oid, parts: &[Part]) -> PgResult<()> {
    let parent = parent_of(source)?;
    let owner = security::relation_owner(source)?;
    let tag = format!("{move_id}_{}", source.to_u32());
    let staging_name = format!("split_{tag}");
    let by = spi::one::<String>("SELECT pg_catalog.pg_get_partkeydef($1)", &[parent.into()])?
        .ok_or_else(|| internal("the table is not partitioned"))?;
    let plain = columns(source, false)?;
    spi::run(&format!("CREATE TABLE foreshard.{staging_name} ({plain}) PARTITION BY {by}"), &[])?;
    let staging = adopt(&staging_name, source, owner)?;
    let mold = Mold::of(source)?;
    let mut made = Vec::with_capacity(parts.len());
    for part in parts {
        let name = format!("split_{tag}_{}", part.part);
        let full_name = format!("foreshard.{name}");
        let child = mold.make(&name, source, owner, &part.tablespace)?;
        // What an expression of the owner's computes while it is looked at, it computes as the owner.
        let guard = security::as_restricted_owner(owner);
        spi::run(
            &format!(
                "ALTER TABLE foreshard.{staging_name} ATTACH PARTITION {full_name} {}",
                part.hash_bound()
            ),
            &[],
        )?;
        drop(guard);
        made.push(child);
    }
    let first = made.first().copied().ok_or_else(|| internal("a split without parts"))?;
    let twin = storage::create_heap_like(first, pg_sys::InvalidOid)?;
    shadow::adopt_shadow(twin, source, &format!("split_{tag}_twin"))?;
    add_source(move_id, source, staging, Some(twin))?;
    for (part, child) in parts.iter().zip(made) {
        add_copy(move_id, source, part, child, "split")?;
    }
    Ok(())
}

/// Notes a partition that shall be copied into `shadow`, and makes its log.
pub(super) fn add_source(
    move_id: i64,
    source: pg_sys::Oid,
    shadow: pg_sys::Oid,
    twin: Option<pg_sys::Oid>,
) -> PgResult<()> {
    let (identity, key) = identity_index(source)?.ok_or_else(|| {
        wrong_state("the partition has lost its identity index").set_hint("Add a primary key to the table.")
    })?;
    let log = shadow::create_log(source, &key, &format!("capture_{move_id}_{}", source.to_u32()))?;
    spi::run(
        "INSERT INTO foreshard.move_relation (move_id, source, shadow, capture_log, capture_trigger, identity_index, fingerprint, portrait, twin, blocks_total) \
         VALUES ($1, $2, $3, $4, 0, $5, '', $6, $7, 0)",
        &[
            move_id.into(),
            source.into(),
            shadow.into(),
            log.into(),
            identity.into(),
            portrait(source)?.as_str().into(),
            twin.into(),
        ],
    )?;
    Ok(())
}

/// Notes the copy of a part, and makes its indexes, empty, whose names begin with `label`.
pub(super) fn add_copy(
    move_id: i64,
    source: pg_sys::Oid,
    part: &Part,
    copy: pg_sys::Oid,
    label: &str,
) -> PgResult<()> {
    note_copy(move_id, source, part.part, copy)?;
    let space = shadow::tablespace_oid(&part.tablespace)?;
    shadow::create_indexes(move_id, source, copy, space, &format!("{label}_{move_id}_{}", part.part))
}

/// Notes that a copy is one of a source's.
pub(super) fn note_copy(move_id: i64, source: pg_sys::Oid, part: i32, copy: pg_sys::Oid) -> PgResult<()> {
    spi::run(
        "INSERT INTO foreshard.move_child (move_id, source, part, child) VALUES ($1, $2, $3, $4)",
        &[move_id.into(), source.into(), part.into(), copy.into()],
    )?;
    Ok(())
}

/// Begins to capture the changes of a source; the caller holds SHARE ROW EXCLUSIVE on it. False: it is no
/// longer what its copies were made like.
pub fn capture(move_id: i64, row: &RelationRow) -> PgResult<bool> {
    if !is_as_portrayed(move_id, row.source)? {
        return Ok(false);
    }
    let trigger = shadow::install_trigger(row.source, row.log, &row.key)?;
    let print =
        shadow::fingerprint(row.source, trigger, row.log)?.ok_or_else(|| internal("no fingerprint"))?;
    spi::run(
        "UPDATE foreshard.move_relation SET capture_trigger = $3, fingerprint = $4, \
             blocks_total = pg_catalog.pg_relation_size($2::regclass) / pg_catalog.current_setting('block_size')::int8, \
             rows_total = (SELECT CASE WHEN reltuples >= 0 THEN reltuples::int8 END FROM pg_catalog.pg_class WHERE oid = $2) \
         WHERE move_id = $1 AND source = $2",
        &[move_id.into(), row.source.into(), trigger.into(), print.as_str().into()],
    )?;
    Ok(true)
}

fn is_as_portrayed(move_id: i64, source: pg_sys::Oid) -> PgResult<bool> {
    let then = spi::one::<String>(
        "SELECT portrait FROM foreshard.move_relation WHERE move_id = $1 AND source = $2",
        &[move_id.into(), source.into()],
    )?;
    Ok(then == Some(portrait(source)?))
}

/// Once all indexes are built: gives them constraints and statistics targets of the source's, and makes the identity index the one
/// by which the mirror looks rows up.
pub fn dress(move_id: i64) -> PgResult<()> {
    let found = spi::rows(
        "SELECT m.heap, format('ADD CONSTRAINT %I %s USING INDEX %I%s%s', c.relname, CASE k.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, \
                c.relname, CASE WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END, CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END) \
         FROM foreshard.move_index m JOIN pg_catalog.pg_constraint k ON k.conindid = m.source_index AND k.conrelid = m.source AND k.contype IN ('p', 'u') \
         JOIN pg_catalog.pg_class c ON c.oid = m.shadow_index \
         WHERE m.move_id = $1 AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint d WHERE d.conindid = m.shadow_index AND d.conrelid = m.heap) \
         UNION \
         SELECT m.heap, format('REPLICA IDENTITY USING INDEX %I', c.relname) \
         FROM foreshard.move_relation r JOIN foreshard.move_index m ON (m.move_id, m.source_index) = (r.move_id, r.identity_index) \
         JOIN pg_catalog.pg_class c ON c.oid = m.shadow_index WHERE r.move_id = $1",
        &[move_id.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?, row.need::<String>(2)?)),
    )?;
    spi::run(
        "UPDATE pg_catalog.pg_attribute c SET attstattarget = s.attstattarget FROM foreshard.move_index m \
         JOIN pg_catalog.pg_attribute s ON s.attrelid = m.source_index \
         WHERE m.move_id = $1 AND c.attrelid = m.shadow_index AND c.attnum = s.attnum AND c.attstattarget IS DISTINCT FROM s.attstattarget",
        &[move_id.into()],
    )?;
    for (heap, change) in found {
        let _guard = security::as_restricted_owner(security::relation_owner(heap)?);
        spi::run(&format!("ALTER TABLE {} {change}", name_of(heap)?), &[])?;
    }
    wayback::copy_statistics(move_id)
}

/// Whether a source and its copies still fit together: the last check before they change places.
pub fn fits(move_id: i64, row: &RelationRow) -> PgResult<bool> {
    if !is_as_portrayed(move_id, row.source)? {
        return Ok(false);
    }
    for child in children(move_id, row.source)? {
        if !shadow::fits(move_id, row.source, child, false)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Statements that give a copy what may have changed at the source without being part of its [`portrait`].
pub(super) const CARRIED: &str = "WITH acl AS (SELECT a.privilege_type AS privilege, NULL::name AS col, a.grantee, a.is_grantable \
         FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a WHERE c.oid = $1 \
     UNION ALL SELECT a.privilege_type, t.attname, a.grantee, a.is_grantable \
         FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a WHERE t.attrelid = $1 AND NOT t.attisdropped) \
     SELECT before, behind FROM ( \
     SELECT 0 AS o, 'REVOKE ALL ON' AS before, format('FROM %I', pg_catalog.pg_get_userbyid(c.relowner)) AS behind FROM pg_catalog.pg_class c WHERE c.oid = $1 AND c.relacl IS NOT NULL \
     UNION ALL SELECT 1, format('GRANT %s%s ON', privilege, coalesce(' (' || pg_catalog.quote_ident(col) || ')', '')), \
             format('TO %s%s', CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(grantee)) END, \
                    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) FROM acl \
     UNION ALL SELECT 2, 'ALTER TABLE', 'ENABLE ROW LEVEL SECURITY' FROM pg_catalog.pg_class WHERE oid = $1 AND relrowsecurity) q ORDER BY o, before";

/// Enabling of a source's clones of its table's triggers, where it differs from the table's: (trigger of the
/// table, enabled).
type Enabled = Vec<(pg_sys::Oid, String)>;

fn enabled(source: pg_sys::Oid) -> PgResult<Enabled> {
    spi::rows(
        "SELECT t.tgparentid, t.tgenabled::text FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_trigger p ON p.oid = t.tgparentid \
         WHERE t.tgrelid = $1 AND t.tgenabled <> p.tgenabled",
        &[source.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Parts with their copies. A copy without a part would leave its rows outside of the table, and one that is missing would give
/// others the wrong rows.
pub(super) fn paired<P>(parts: &[P], copies: Vec<pg_sys::Oid>) -> PgResult<Vec<(&P, pg_sys::Oid)>> {
    if copies.len() != parts.len() {
        return Err(internal("the copies of a partition and their places do not match"));
    }
    Ok(parts.iter().zip(copies).collect())
}

/// Runs the statements of an exchange for nothing: they are planned then.
pub fn rehearse() -> PgResult<()> {
    let none = pg_sys::InvalidOid;
    enabled(none)?;
    statements(CARRIED, none)?;
    index_names(0, none)?;
    take_over(0, none, &[])
}

/// The copies of one partition (or of several of one table) become partitions of its table, in its place; it is
/// dropped. Everything is
/// locked, the mirror has made every copy equal, and verification has proven that each holds exactly the rows
/// of its part: so what ATTACH would scan for, partition constraint and foreign keys, is shown to it on the
/// empty twin.
pub fn exchange(move_id: i64, rows: &[&RelationRow], parts: &[Part]) -> PgResult<()> {
    let Some(row) = rows.first() else { return Ok(()) };
    let source = row.source;
    let (parent, owner) = (parent_of(source)?, security::relation_owner(source)?);
    let enabled = enabled(source)?;
    let carried = statements(CARRIED, source)?;
    let schema = names::schema(source);
    let children = children(move_id, source)?;
    let staging = name_of(row.shadow)?;
    for child in children.iter().copied() {
        let name = name_of(child)?;
        if child != row.shadow {
            spi::run(&format!("ALTER TABLE {staging} DETACH PARTITION {name}"), &[])?;
        }
        // It is no longer ours.
        spi::run(&format!("ALTER EXTENSION foreshard DROP TABLE {name}"), &[])?;
        run_all(&carried, &name)?;
        names::set_schema(child, schema);
    }
    take_over(move_id, source, &children)?;
    // In its transaction nothing else may be lost with it: whatever depends on it stops us.
    let leaf = names::plain(source)?;
    let index_names = index_names(move_id, source)?;
    for row in rows {
        spi::run(&format!("DROP TABLE {}", name_of(row.source)?), &[])?;
    }
    let twin = spi::one::<pg_sys::Oid>(
        "SELECT twin FROM foreshard.move_relation WHERE move_id = $1 AND source = $2",
        &[move_id.into(), source.into()],
    )?
    .ok_or_else(|| internal("the split has lost its twin"))?;
    for (part, child) in paired(parts, children)? {
        let label = format!("s{}_{}", part.modulus, part.remainder);
        let name = sequence::free_name(parent, None, &label, child)?;
        names::rename(child, &name, false);
        name_indexes(child, &leaf, &index_names)?;
        attach(parent, owner, child, twin, &part.hash_bound())?;
        for (of, state) in &enabled {
            spi::run(
                "UPDATE pg_catalog.pg_trigger SET tgenabled = $3::\"char\" WHERE tgrelid = $1 AND tgparentid = $2",
                &[child.into(), (*of).into(), state.as_str().into()],
            )?;
        }
        storage::forget_cached(child);
    }
    Ok(())
}

/// What the copies of a partition get straight in the catalog, all at once (users wait): generated columns,
/// comments, replica identity, the index of CLUSTER; and logical decoding sees them from now on.
pub(super) fn take_over(move_id: i64, source: pg_sys::Oid, copies: &[pg_sys::Oid]) -> PgResult<()> {
    let args = [source.into(), move_id.into(), copies.to_vec().into()];
    for statement in TAKEN_OVER {
        spi::run(statement, &args)?;
    }
    Ok(())
}

/// Statements about the source $1 of move $2 and its copies $3; `own`: their indexes.
const TAKEN_OVER: [&str; 4] = [
    "WITH child AS (SELECT child FROM pg_catalog.unnest($3) child) \
     UPDATE pg_catalog.pg_attribute c SET attgenerated = s.attgenerated, attnotnull = s.attnotnull \
     FROM child, pg_catalog.pg_attribute s WHERE s.attrelid = $1 AND c.attrelid = child.child AND s.attnum = c.attnum AND s.attnum > 0 AND s.attgenerated <> ''",
    "WITH child AS (SELECT child FROM pg_catalog.unnest($3) child), \
          own AS (SELECT DISTINCT ON (m.shadow_index) m.shadow_index, m.source_index FROM foreshard.move_index m JOIN child c ON c.child = m.heap \
              WHERE m.move_id = $2 ORDER BY m.shadow_index, m.source <> $1) \
     INSERT INTO pg_catalog.pg_description (objoid, classoid, objsubid, description) \
     SELECT child.child, d.classoid, d.objsubid, d.description FROM child, pg_catalog.pg_description d WHERE d.classoid = 'pg_class'::regclass AND d.objoid = $1 \
     UNION ALL SELECT own.shadow_index, d.classoid, d.objsubid, d.description FROM own \
         JOIN pg_catalog.pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = own.source_index \
     UNION ALL SELECT b.oid, d.classoid, d.objsubid, d.description FROM child CROSS JOIN pg_catalog.pg_constraint a \
         JOIN pg_catalog.pg_constraint b ON b.conrelid = child.child AND b.contype = 'c' AND b.conname = a.conname \
         JOIN pg_catalog.pg_description d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = a.oid WHERE a.conrelid = $1 AND a.contype = 'c'",
    "WITH own AS (SELECT m.shadow_index, s.indisclustered, s.indisreplident AND t.relreplident = 'i' AS is_identity \
                  FROM foreshard.move_index m JOIN pg_catalog.pg_index s ON s.indexrelid = m.source_index JOIN pg_catalog.pg_class t ON t.oid = s.indrelid \
                  WHERE m.move_id = $2 AND m.heap = ANY ($3)) \
     UPDATE pg_catalog.pg_index i SET indisclustered = own.indisclustered, indisreplident = own.is_identity \
     FROM own WHERE i.indexrelid = own.shadow_index AND (i.indisclustered, i.indisreplident) IS DISTINCT FROM (own.indisclustered, own.is_identity)",
    "WITH child AS (SELECT child FROM pg_catalog.unnest($3) child), \
          both_heaps AS (SELECT child AS oid, true AS main FROM child \
              UNION ALL SELECT c.reltoastrelid, false FROM child JOIN pg_catalog.pg_class c ON c.oid = child.child WHERE c.reltoastrelid <> 0) \
     UPDATE pg_catalog.pg_class c SET relrewrite = 0, relreplident = CASE WHEN b.main THEN s.relreplident ELSE c.relreplident END \
     FROM both_heaps b, pg_catalog.pg_class s WHERE c.oid = b.oid AND s.oid = $1",
];

/// (Copy, its index, name of the source's).
pub(super) fn index_names(
    move_id: i64,
    source: pg_sys::Oid,
) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid, String)>> {
    spi::rows(
        "SELECT m.heap, m.shadow_index, c.relname::text FROM foreshard.move_index m JOIN pg_catalog.pg_class c ON c.oid = m.source_index \
         WHERE m.move_id = $1 AND m.source = $2 ORDER BY m.source_index",
        &[move_id.into(), source.into()],
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?)),
    )
}

/// Indexes are called after their table, as those of the source are after the source.
pub(super) fn name_indexes(
    child: pg_sys::Oid,
    leaf: &str,
    names: &[(pg_sys::Oid, pg_sys::Oid, String)],
) -> PgResult<()> {
    for (_, index, old) in names.iter().filter(|(heap, _, _)| *heap == child) {
        let (columns, label) = tail_of(old, leaf);
        let name = sequence::free_name(child, columns, label, child)?;
        names::rename(*index, &name, true);
    }
    Ok(())
}
