//! Release: a managed table becomes an ordinary one without a row being read. One table, its only partition or the copy
//! of all of them, takes its name and everything that hangs on it. It is adoption (`adopt`) backwards, and the end of
//! undistributing a table online (docs/decisions/0008).

use super::child::{self, parent_of};
use super::definition::{Definition, Remake, capture};
use super::rebuild::{drop_aside, run_by, step_aside};
use super::shadow::RelationRow;
use super::{birth, colocation, name_of, place, preflight, request, split, whole};
use crate::pg::report::{PgResult, internal, unknown, wrong_state};
use crate::pg::{names, security, spi, storage};
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;
use serde_json::json;

/// What takes a managed table's place.
struct Heir {
    table: pg_sys::Oid,
    /// (Index of the managed table, its own).
    indexes: Vec<(pg_sys::Oid, pg_sys::Oid)>,
    /// Constraints to rename: (from, to).
    constraints: Vec<(String, String)>,
    /// It is a copy that a worker has made: it has no foreign keys yet, and nobody calls whose rights would be asked.
    is_copy: bool,
}

fn run(sql: &str) -> PgResult<()> {
    spi::run(sql, &[]).map(drop)
}

/// Everything that speaks against making a managed table an ordinary one online.
pub fn reasons(table: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = preflight::against_undistribute(table)?;
    let _owner = security::as_extension_owner()?;
    found.extend(spi::rows(
        "SELECT 'subscription: the table is the target of a subscription' FROM pg_catalog.pg_subscription_rel WHERE srrelid = $1 \
         UNION ALL SELECT 'not_validated: constraint ' || pg_catalog.quote_ident(conname) FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND NOT convalidated \
         UNION ALL SELECT 'unknown_partition: ' || i.inhrelid::regclass || ' is the partition of no slot' FROM pg_catalog.pg_inherits i \
             WHERE i.inhparent = $1 AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.table_oid = $1 AND p.partition = i.inhrelid) \
         UNION ALL SELECT format('no_partition: slot %s has no partition', s.slot_id) FROM foreshard.managed_table m JOIN foreshard.slot s USING (group_id) \
             WHERE m.table_oid = $1 AND s.home_slot_id IS NULL AND NOT EXISTS (SELECT FROM foreshard.slot_partition p \
                 JOIN pg_catalog.pg_inherits i ON i.inhrelid = p.partition AND i.inhparent = $1 WHERE p.slot_id = s.slot_id AND p.table_oid = $1) \
         UNION ALL SELECT 'column_order: ' || i.inhrelid::regclass || ' has its columns in another order than the table' FROM pg_catalog.pg_inherits i \
             WHERE i.inhparent = $1 \
               AND (SELECT pg_catalog.array_agg(attname ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped) \
                <> (SELECT pg_catalog.array_agg(attname ORDER BY attnum) FROM pg_catalog.pg_attribute WHERE attrelid = i.inhrelid AND attnum > 0 AND NOT attisdropped)",
        &[table.into()],
        |row| row.need::<String>(1),
    )?);
    let slots = spi::rows(
        "SELECT s.slot_id FROM foreshard.managed_table m JOIN foreshard.slot s USING (group_id) WHERE m.table_oid = $1 ORDER BY 1",
        &[table.into()],
        |row| row.need::<i64>(1),
    )?;
    for slot in slots {
        found.extend(place::against_split_of(slot)?);
    }
    let leaves = children(table)?;
    for leaf in &leaves {
        found.extend(preflight::against_move(*leaf)?);
        found.extend(split::against_split(*leaf)?);
    }
    if let Some((first, others)) = leaves.split_first() {
        for other in others {
            found.extend(whole::differences(*first, *other)?);
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// What is known to speak against it under its lock, without a look at every partition.
pub fn is_hindered(relation: &RelationRow) -> PgResult<bool> {
    Ok(!preflight::against_undistribute(parent_of(relation.source)?)?.is_empty())
}

fn children(table: pg_sys::Oid) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = $1 ORDER BY 1",
        &[table.into()],
        |row| row.need(1),
    )
}

/// The partition of a table that has but one.
pub fn only_partition(table: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    match children(table)?.as_slice() {
        [leaf] => Ok(*leaf),
        _ => {
            Err(wrong_state(format!("the partitions of {} were changed by another session", name_of(table)?))
                .set_hint("Try again."))
        }
    }
}

/// Files that all slots of a table go up in an ordinary one, on the shard that has the database's own tablespace, else on
/// the one that has most of the slots. No slot of the group is being moved, and none can be until the transaction ends.
pub fn file(table: pg_sys::Oid, group_id: i32, user: &str) -> PgResult<i64> {
    let asked = json!({"undistribute": name_of(table)?});
    let request_id = request::file(user, group_id, &asked)?;
    let shard = spi::one::<i32>(
        "SELECT h.shard_id FROM foreshard.shard h LEFT JOIN foreshard.slot s ON s.shard_id = h.shard_id AND s.group_id = $1 \
         WHERE h.node_name = 'local' GROUP BY h.shard_id \
         ORDER BY h.tablespace_name = (SELECT t.spcname FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace t ON t.oid = d.dattablespace \
                                       WHERE d.datname = pg_catalog.current_database()) DESC, \
                  h.draining, count(s.slot_id) DESC, h.shard_id LIMIT 1",
        &[group_id.into()],
    )?
    .ok_or_else(|| unknown("there is no shard on this server"))?;
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard) \
         SELECT $2, 'undistribute', slot_id, shard_id, $3 FROM foreshard.slot WHERE group_id = $1 ORDER BY slot_id LIMIT 1 RETURNING move_id",
        &[group_id.into(), request_id.into(), shard.into()],
    )?
    .ok_or_else(|| internal("no move id"))?;
    spi::run(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, partner_of, from_shard, to_shard) \
         SELECT m.request_id, m.kind, s.slot_id, m.move_id, s.shard_id, m.to_shard FROM foreshard.move m JOIN foreshard.slot s ON s.group_id = $2 \
         WHERE m.move_id = $1 AND s.slot_id <> m.slot_id ORDER BY s.slot_id",
        &[move_id.into(), group_id.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id) VALUES ($1, 0, 1, 0, $2)",
        &[move_id.into(), shard.into()],
    )?;
    Ok(move_id)
}

/// The managed table of a slot's only table.
pub fn table_of(slot_id: i64) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>(
        "SELECT table_oid::oid FROM foreshard.slot_partition WHERE slot_id = $1",
        &[slot_id.into()],
    )?
    .ok_or_else(|| wrong_state("the slot has no partition any more"))
}

/// Makes the only partition of a managed table the table. The caller holds ACCESS EXCLUSIVE on both and on everything
/// around, and has looked for reasons against it.
pub fn release(table: pg_sys::Oid, leaf: pg_sys::Oid) -> PgResult<()> {
    let indexes = spi::rows(
        "SELECT h.inhparent, i.indexrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_inherits h ON h.inhrelid = i.indexrelid \
         WHERE i.indrelid = $1 ORDER BY 2",
        &[leaf.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    // Which of them belong together is not known once it is no partition any more.
    let constraints = spi::rows(
        "SELECT h.conname::text, p.conname::text FROM pg_catalog.pg_constraint p JOIN pg_catalog.pg_constraint h \
             ON h.conrelid = $2 AND h.contype = p.contype AND h.conname <> p.conname \
         WHERE p.conrelid = $1 AND (p.contype = 'f' AND h.conparentid = p.oid OR p.contype = 'n' \
               AND (SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum = p.conkey[1]) \
                 = (SELECT attname FROM pg_catalog.pg_attribute WHERE attrelid = $2 AND attnum = h.conkey[1]))",
        &[table.into(), leaf.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    forget_keys_to_come(table)?;
    // Before the partition is a table like all others, whose default may name this one.
    let definition = capture(table)?;
    run(&format!("ALTER TABLE {} DETACH PARTITION {}", name_of(table)?, name_of(leaf)?))?;
    let heir = Heir { table: leaf, indexes, constraints, is_copy: false };
    succeed(table, definition, &heir)
}

/// Makes the copy of all partitions of a managed table the table; they go. Everything is locked, the mirror has made the
/// copy equal.
pub fn replace(move_id: i64, relations: &[RelationRow]) -> PgResult<()> {
    let first = relations.first().ok_or_else(|| internal("nothing was copied"))?;
    let (table, copy) = (parent_of(first.source)?, first.shadow);
    let sources: Vec<pg_sys::Oid> = relations.iter().map(|relation| relation.source).collect();
    // With a partition that was not copied, its rows would go.
    if children(table)? != sources {
        return Err(wrong_state(format!(
            "the partitions of {} were changed by another session",
            name_of(table)?
        )));
    }
    forget_keys_to_come(table)?;
    let definition = capture(table)?;
    child::take_over(move_id, first.source, &[copy])?;
    run(&format!("ALTER EXTENSION foreshard DROP TABLE {}", name_of(copy)?))?;
    names::set_schema(copy, names::schema(table));
    let indexes = copied_indexes(move_id, first)?;
    let heir = Heir { table: copy, indexes, constraints: Vec::new(), is_copy: true };
    succeed(table, definition, &heir)
}

/// Reads what [`replace`] will read under its locks, and runs for nothing what it will run: all is planned then.
pub fn rehearse(move_id: i64, relations: &[RelationRow]) -> PgResult<()> {
    let Some(first) = relations.first() else { return Ok(()) };
    let table = parent_of(first.source)?;
    capture(table)?;
    defaults(table, first.shadow)?;
    copied_indexes(move_id, first)?;
    birth::newborn(table)?;
    children(table)?;
    let none = pg_sys::InvalidOid;
    hand_over_sequences(none, none)?;
    strip(none, "")?;
    take_comments(none, &Heir { table: none, indexes: Vec::new(), constraints: Vec::new(), is_copy: true })?;
    preflight::own_sequences(table).map(drop)
}

/// (Index of the table, that of the copy), of the copy of some partitions, given by the first of them.
fn copied_indexes(move_id: i64, first: &RelationRow) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT h.inhparent, m.shadow_index FROM foreshard.move_index m JOIN pg_catalog.pg_inherits h ON h.inhrelid = m.source_index \
         WHERE m.move_id = $1 AND m.source = $2 AND m.heap = $3 ORDER BY 2",
        &[move_id.into(), first.source.into(), first.shadow.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Nobody draws keys for it any more.
fn forget_keys_to_come(table: pg_sys::Oid) -> PgResult<()> {
    let as_owner = security::as_extension_owner()?;
    let key_sequence = birth::newborn(table)?.and_then(|newborn| newborn.key_sequence);
    drop(as_owner);
    key_sequence.map_or(Ok(()), |sequence| birth::drop_key_sequence(table, sequence))
}

/// The heir takes the place of `table`, which goes with all that it still has.
fn succeed(table: pg_sys::Oid, mut definition: Definition, heir: &Heir) -> PgResult<()> {
    let defaults = defaults(table, heir.table)?;
    hand_over_sequences(table, heir.table)?;
    storage::forget_cached(heir.table);
    storage::forget_cached(table);
    definition.sequences.clear();
    let aside = step_aside(table, &definition)?;
    names::rename(heir.table, &definition.bare_name, false);
    for (of, own) in &heir.indexes {
        let name = names::plain(*of)?;
        if names::plain(*own)? != name {
            names::rename(*own, &name, true);
        }
    }
    let name = &definition.name;
    for (from, to) in &heir.constraints {
        run(&format!(
            "ALTER TABLE {name} RENAME CONSTRAINT {} TO {}",
            quote_identifier(from),
            quote_identifier(to)
        ))?;
    }
    let owner = security::relation_owner(heir.table)?;
    for change in &defaults {
        run_by(Some(owner), &format!("ALTER TABLE {name} {change}"))?;
    }
    strip(heir.table, name)?;
    if heir.is_copy {
        add_keys(heir.table, &definition.keys)?;
    }
    take_comments(table, heir)?;
    for remake in &definition.after {
        run_by(remake.author.filter(|_| heir.is_copy), &remake.sql)?;
    }
    // What somebody made of the table that is not carried over stops us here.
    drop_aside(&aside, table)?;
    storage::forget_cached(heir.table);
    Ok(())
}

/// Changes that give the heir the table's defaults, where they are others or would still mean the table that goes.
fn defaults(table: pg_sys::Oid, heir: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT format('ALTER COLUMN %I ', p.attname) || coalesce('SET DEFAULT ' || pg_catalog.pg_get_expr(pd.adbin, pd.adrelid), 'DROP DEFAULT') \
         FROM pg_catalog.pg_attribute p JOIN pg_catalog.pg_attribute h ON h.attrelid = $2 AND h.attname = p.attname AND NOT h.attisdropped \
         LEFT JOIN pg_catalog.pg_attrdef pd ON (pd.adrelid, pd.adnum) = (p.attrelid, p.attnum) \
         LEFT JOIN pg_catalog.pg_attrdef hd ON (hd.adrelid, hd.adnum) = (h.attrelid, h.attnum) \
         WHERE p.attrelid = $1 AND p.attnum > 0 AND NOT p.attisdropped AND p.attgenerated = '' AND p.attidentity = '' \
           AND (pg_catalog.pg_get_expr(pd.adbin, pd.adrelid) IS DISTINCT FROM pg_catalog.pg_get_expr(hd.adbin, hd.adrelid) \
             OR EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = hd.oid \
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = 0)) ORDER BY p.attnum",
        &[table.into(), heir.into()],
        |row| row.need(1),
    )
}

/// Sequences of columns, of identities too, are the heir's from now on: the same ones, with all that was granted on them.
fn hand_over_sequences(table: pg_sys::Oid, heir: pg_sys::Oid) -> PgResult<()> {
    let _guard = security::as_extension_owner()?;
    let args = [table.into(), heir.into()];
    spi::run(
        "UPDATE pg_catalog.pg_attribute h SET attidentity = p.attidentity FROM pg_catalog.pg_attribute p \
         WHERE p.attrelid = $1 AND h.attrelid = $2 AND h.attname = p.attname AND p.attnum > 0 AND NOT p.attisdropped AND NOT h.attisdropped \
           AND p.attidentity <> ''",
        &args,
    )?;
    spi::run(
        "UPDATE pg_catalog.pg_depend d SET refobjid = $2, refobjsubid = h.attnum FROM pg_catalog.pg_attribute p \
         JOIN pg_catalog.pg_attribute h ON h.attrelid = $2 AND h.attname = p.attname AND NOT h.attisdropped \
         WHERE p.attrelid = $1 AND NOT p.attisdropped AND d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
           AND d.refobjid = $1 AND d.refobjsubid = p.attnum AND d.deptype IN ('a', 'i') \
           AND EXISTS (SELECT FROM pg_catalog.pg_class s WHERE s.oid = d.objid AND s.relkind = 'S')",
        &args,
    )?;
    Ok(())
}

/// Takes away what the heir has of its own and the table's statements would only add to: privileges, row level security.
fn strip(heir: pg_sys::Oid, name: &str) -> PgResult<()> {
    let _guard = security::as_extension_owner()?;
    let statements = spi::rows(
        "SELECT DISTINCT format('REVOKE ALL ON TABLE %s FROM %s CASCADE', $2, \
                CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END) \
         FROM pg_catalog.pg_class c CROSS JOIN LATERAL (SELECT grantee FROM pg_catalog.aclexplode(c.relacl) \
             UNION SELECT x.grantee FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) x WHERE t.attrelid = c.oid) a \
         WHERE c.oid = $1 AND a.grantee <> c.relowner \
         UNION ALL SELECT format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', $2) FROM pg_catalog.pg_class WHERE oid = $1 AND relrowsecurity",
        &[heir.into(), name.into()],
        |row| row.need::<String>(1),
    )?;
    statements.iter().try_for_each(|statement| run(statement))?;
    // What is left is the owner's, who has everything when nothing is said.
    let none = "UPDATE pg_catalog.pg_class SET relacl = NULL WHERE oid = $1 AND relacl IS NOT NULL";
    spi::run(none, &[heir.into()])?;
    let none = "UPDATE pg_catalog.pg_attribute SET attacl = NULL WHERE attrelid = $1 AND attacl IS NOT NULL";
    spi::run(none, &[heir.into()])?;
    Ok(())
}

/// Adds the foreign keys of the table, which held for every row of the heir: nothing is looked up.
fn add_keys(heir: pg_sys::Oid, keys: &[Remake]) -> PgResult<()> {
    for key in keys {
        run_by(key.author, &format!("{} NOT VALID", key.sql))?;
    }
    spi::run(
        "UPDATE pg_catalog.pg_constraint SET convalidated = true WHERE conrelid = $1 AND contype = 'f' AND NOT convalidated",
        &[heir.into()],
    )?;
    Ok(())
}

/// The heir, its columns, indexes and constraints have the comments of the table's, and no others.
fn take_comments(table: pg_sys::Oid, heir: &Heir) -> PgResult<()> {
    let _guard = security::as_extension_owner()?;
    let (of, own): (Vec<pg_sys::Oid>, Vec<pg_sys::Oid>) = heir.indexes.iter().copied().unzip();
    spi::run(
        "DELETE FROM pg_catalog.pg_description d USING (SELECT 'pg_class'::regclass::oid AS class, $1::oid AS object \
             UNION ALL SELECT 'pg_class'::regclass, pg_catalog.unnest($2::oid[]) \
             UNION ALL SELECT 'pg_constraint'::regclass, oid FROM pg_catalog.pg_constraint WHERE conrelid = $1) o \
         WHERE d.classoid = o.class AND d.objoid = o.object",
        &[heir.table.into(), own.clone().into()],
    )?;
    spi::run(
        "INSERT INTO pg_catalog.pg_description (objoid, classoid, objsubid, description) \
         SELECT $2, d.classoid, coalesce(h.attnum, 0), d.description FROM pg_catalog.pg_description d \
             LEFT JOIN pg_catalog.pg_attribute p ON p.attrelid = $1 AND p.attnum = d.objsubid AND d.objsubid > 0 \
             LEFT JOIN pg_catalog.pg_attribute h ON h.attrelid = $2 AND h.attname = p.attname AND NOT h.attisdropped \
             WHERE d.classoid = 'pg_class'::regclass AND d.objoid = $1 AND (d.objsubid = 0) = (h.attnum IS NULL) \
         UNION ALL SELECT i.own, d.classoid, 0, d.description FROM ROWS FROM (pg_catalog.unnest($3::oid[]), pg_catalog.unnest($4::oid[])) AS i (of, own) \
             JOIN pg_catalog.pg_description d ON d.classoid = 'pg_class'::regclass AND d.objoid = i.of \
         UNION ALL SELECT h.oid, d.classoid, 0, d.description FROM pg_catalog.pg_constraint p \
             JOIN pg_catalog.pg_constraint h ON h.conrelid = $2 AND h.contype = p.contype AND h.conname = p.conname \
             JOIN pg_catalog.pg_description d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = p.oid WHERE p.conrelid = $1",
        &[table.into(), heir.table.into(), of.into(), own.into()],
    )?;
    Ok(())
}

/// Notes that the copy is the table now.
pub fn note(move_id: i64, slot_id: i64, relations: &[RelationRow]) -> PgResult<()> {
    let sql = "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1";
    spi::run(sql, &[move_id.into()])?;
    let copy = relations.first().ok_or_else(|| internal("nothing was copied"))?.shadow;
    let rows: Option<i64> = split::parts(move_id)?.first().and_then(|part| part.rows);
    let detail = json!({"table": name_of(copy)?, "rows": rows, "online": true});
    super::record_event("undistribute", Some(move_id), Some(slot_id), detail)
}

/// Forgets the table, and with its slots the undistribution itself: the history keeps what became of it.
pub fn forget(slot_id: i64) -> PgResult<()> {
    colocation::delete_managed(table_of(slot_id)?)
}
