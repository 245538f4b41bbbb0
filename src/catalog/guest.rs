//! Partitions of chosen keys: the copies of a placement, and how they take the place of a slot's partitions.
//!
//! As for a split the copies are partitions of a staging table of ours while they are filled (`child`). All
//! partitions of a slot that change are sources of one staging table: keys go from any of them to any other. When
//! the slot gets its first chosen keys, the staging table itself becomes the table between.

use super::attach::attach;
use super::child::{self, CARRIED};
use super::mold::{self, Mold, copy_defaults, run_all, statements};
use super::name_of;
use super::shadow::{self, RelationRow};
use super::split::{Part, against_indexes, against_split, parts};
use super::whole;
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::{names, security, sequence, spi, storage};
use pgrx::spi::quote_literal;
use pgrx::{IntoDatum, pg_sys};

/// The partitions of one table that a placement makes anew.
pub struct Family {
    /// The managed table.
    pub table: pg_sys::Oid,
    /// The slot's own partition, first of the sources.
    pub lead: pg_sys::Oid,
    /// All partitions that are made anew.
    pub sources: Vec<pg_sys::Oid>,
    /// The table between, when there is one.
    pub branch: Option<pg_sys::Oid>,
    /// Partitions of the table between that stay as they are.
    pub kept: i64,
}

impl Family {
    /// The table between that goes when this many parts are made.
    fn leaving(&self, parts: usize) -> Option<pg_sys::Oid> {
        self.branch.filter(|_| self.is_single(parts))
    }

    /// Whether the slot is one partition when this many parts are made.
    pub fn is_single(&self, parts: usize) -> bool {
        parts == 1 && self.kept == 0
    }
}

/// The partitions that a placement makes anew, by table.
pub fn families(move_id: i64) -> PgResult<Vec<Family>> {
    spi::rows(
        "SELECT h.table_oid::oid, h.partition::oid, h.branch::oid, q.sources, \
                (SELECT count(*) FROM pg_catalog.pg_inherits i WHERE i.inhparent = h.branch AND i.inhrelid <> ALL (q.sources)) \
         FROM foreshard.move m JOIN foreshard.slot_partition h USING (slot_id) JOIN pg_catalog.pg_class c ON c.oid = h.partition \
         CROSS JOIN LATERAL (SELECT ARRAY(SELECT p.partition::oid FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition \
                      WHERE p.table_oid = h.table_oid AND (p.slot_id = m.slot_id OR p.slot_id = ANY (m.guests)) ORDER BY p.slot_id <> m.slot_id, 1) AS sources) q \
         WHERE m.move_id = $1 ORDER BY 1",
        &[move_id.into()],
        |row| {
            Ok(Family {
                table: row.need(1)?,
                lead: row.need(2)?,
                branch: row.get(3)?,
                sources: row.need(4)?,
                kept: row.need(5)?,
            })
        },
    )
}

/// Reasons why partitions of one slot cannot be copied into one another.
pub fn against_family(family: &Family) -> PgResult<Vec<String>> {
    spi::rows(
        "WITH leaf AS (SELECT c.oid, \
             (SELECT pg_catalog.string_agg(CASE WHEN attisdropped THEN attnum::text ELSE format('%s %s %s %s %s', attnum, attname, atttypid, atttypmod, attgenerated) END, ',' ORDER BY attnum) \
                FROM pg_catalog.pg_attribute WHERE attrelid = c.oid AND attnum > 0) AS columns, \
             (SELECT pg_catalog.array_agg(x.what ORDER BY x.what) FROM (SELECT coalesce(n.inhparent::text, format('%s %s %s %s %s %s %s %s %s', x.relam, x.reloptions, i.indkey, i.indclass, i.indcollation, i.indoption, \
                     i.indisunique, pg_catalog.pg_get_expr(i.indexprs, c.oid), pg_catalog.pg_get_expr(i.indpred, c.oid))) AS what \
                FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid LEFT JOIN pg_catalog.pg_inherits n ON n.inhrelid = i.indexrelid \
                WHERE i.indrelid = c.oid) x) AS indexes \
             FROM pg_catalog.pg_class c WHERE c.oid = ANY ($1)) \
         SELECT 'different_columns: ' || a.oid::regclass || ' and ' || b.oid::regclass FROM leaf a JOIN leaf b ON a.oid = $2 AND a.columns <> b.columns \
         UNION ALL SELECT 'different_indexes: ' || a.oid::regclass || ' and ' || b.oid::regclass FROM leaf a JOIN leaf b ON a.oid = $2 AND a.indexes IS DISTINCT FROM b.indexes",
        &[family.sources.clone().into(), family.lead.into()],
        |row| row.need(1),
    )
}

/// Reasons why the partitions of a slot, with the table between them, are not what they seem to be: somebody has changed
/// them by hand, or something hangs on the table between, which goes when this many parts are made.
pub fn against_branch(family: &Family, parts: usize) -> PgResult<Vec<String>> {
    let mut found = spi::rows(
        "SELECT 'unknown_partition: ' || i.inhrelid::regclass || ' is none of the lists that foreshard knows' FROM pg_catalog.pg_inherits i \
             WHERE i.inhparent = $1 AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = i.inhrelid) \
         UNION ALL SELECT 'detached: ' || s::regclass || ' is no partition of the slot any more' FROM pg_catalog.unnest($3) s \
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = s AND i.inhparent = coalesce($1, $2) AND NOT i.inhdetachpending)",
        &[family.branch.into(), family.table.into(), family.sources.clone().into()],
        |row| row.need(1),
    )?;
    if let Some(branch) = family.leaving(parts) {
        found.extend(against_split(branch)?);
        found.extend(against_indexes(branch)?);
    }
    for source in family.sources.iter().filter(|source| **source != family.lead) {
        found.extend(whole::unlike(family.lead, *source)?);
    }
    Ok(found)
}

/// Reasons why chosen keys cannot get lists of their own: another list that stays has one of them.
pub fn against_keys(family: &Family, parts: &[Part]) -> PgResult<Vec<String>> {
    let Some(branch) = family.branch else { return Ok(Vec::new()) };
    let owner = security::relation_owner(family.table)?;
    // What makes a value of a text may be the owner's code.
    let guard = security::as_restricted_owner(owner);
    let mut lists = Router::of_any(branch, Lifetime::Statement)?;
    let mut taken = None;
    for key in parts.iter().filter_map(|part| part.keys.as_ref()).flatten() {
        let text = key.as_str().into_datum().ok_or_else(|| internal("a text without a value"))?;
        let value = lists.value((text, pg_sys::TEXTOID));
        let list = lists.listed(value)?.map(|(number, _)| lists.partition(number));
        if let Some(list) = list.filter(|list| !family.sources.contains(list)) {
            taken = Some((key, list));
            break;
        }
    }
    drop(guard);
    let told = taken.map(|(key, list)| Ok(format!("listed_already: key {key} is in {}", name_of(list)?)));
    told.into_iter().collect()
}

/// Whether the partitions of the slot that `lead` is the first of are still what its copies were made for.
pub fn fit(move_id: i64, lead: pg_sys::Oid) -> PgResult<bool> {
    let parts = parts(move_id)?.len();
    match families(move_id)?.iter().find(|family| family.lead == lead) {
        Some(family) => Ok(against_branch(family, parts)?.is_empty()),
        None => Ok(false),
    }
}

/// The key column of a managed table, quoted.
fn key_column(table: pg_sys::Oid) -> PgResult<String> {
    spi::one::<String>(
        "SELECT pg_catalog.quote_ident(a.attname) FROM pg_catalog.pg_partitioned_table p \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0] WHERE p.partrelid = $1",
        &[table.into()],
    )?
    .ok_or_else(|| wrong_state("the table is not partitioned any more"))
}

/// A part's bound beside the other parts of its slot.
fn list_bound(part: &Part) -> String {
    match &part.keys {
        None => "DEFAULT".to_string(),
        Some(keys) => {
            let keys: Vec<String> = keys.iter().map(quote_literal).collect();
            format!("FOR VALUES IN ({})", keys.join(", "))
        }
    }
}

/// Makes staging table, copies, their twin and the logs of one table's partitions, all empty and members of
/// the extension. Changes are not captured yet.
pub fn create(move_id: i64, family: &Family, parts: &[Part]) -> PgResult<()> {
    let lead = family.lead;
    let owner = security::relation_owner(lead)?;
    let tag = format!("{move_id}_{}", lead.to_u32());
    let by = format!("LIST ({})", key_column(family.table)?);
    let mold = Mold::of(lead)?;
    let staging_name = format!("place_{tag}");
    let staging = mold.make_partitioned(&staging_name, lead, owner, &by)?;
    let mut made = Vec::with_capacity(parts.len());
    for part in parts {
        let name = format!("place_{tag}_{}", part.part);
        let copy = mold.make(&name, lead, owner, &part.tablespace)?;
        let _guard = security::as_restricted_owner(owner);
        let bound = list_bound(part);
        let attach =
            format!("ALTER TABLE foreshard.{staging_name} ATTACH PARTITION foreshard.{name} {bound}");
        spi::run(&attach, &[])?;
        made.push(copy);
    }
    let first = made.first().copied().ok_or_else(|| internal("a placement without parts"))?;
    let twin = storage::create_heap_like(first, pg_sys::InvalidOid)?;
    shadow::adopt_shadow(twin, lead, &format!("place_{tag}_twin"))?;
    for source in &family.sources {
        child::add_source(move_id, *source, staging, (*source == lead).then_some(twin))?;
    }
    for (part, copy) in parts.iter().zip(made) {
        child::add_copy(move_id, lead, part, copy, "place")?;
    }
    Ok(())
}

/// What is the same of every copy when it becomes a partition of the table.
struct Carried {
    statements: Vec<mold::Statement>,
    /// Triggers by name and whether they are enabled.
    triggers: Vec<(String, String)>,
    schema: pg_sys::Oid,
    /// Name of the slot's own partition.
    leaf: String,
    index_names: Vec<(pg_sys::Oid, pg_sys::Oid, String)>,
}

impl Carried {
    /// `leaving`: the table between, which the slot's partition was called by.
    fn read(move_id: i64, lead: pg_sys::Oid, leaving: Option<pg_sys::Oid>) -> PgResult<Carried> {
        let triggers = spi::rows(
            "SELECT tgname::text, tgenabled::text FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal",
            &[lead.into()],
            |row| Ok((row.need(1)?, row.need(2)?)),
        )?;
        let (schema, leaf) = (names::schema(lead), names::plain(lead)?);
        let statements = statements(CARRIED, leaving.unwrap_or(lead))?;
        Ok(Carried { statements, triggers, schema, leaf, index_names: child::index_names(move_id, lead)? })
    }

    /// Makes a table of ours one of the user's.
    fn hand_over(&self, table: pg_sys::Oid) -> PgResult<()> {
        // It is no longer ours.
        spi::run(&format!("ALTER EXTENSION foreshard DROP TABLE {}", name_of(table)?), &[])?;
        run_all(&self.statements, &name_of(table)?)?;
        names::set_schema(table, self.schema);
        Ok(())
    }

    /// Triggers of the new partition are enabled as those of the old one were.
    fn enable_triggers(&self, table: pg_sys::Oid) -> PgResult<()> {
        let (names, states): (Vec<String>, Vec<String>) = self.triggers.iter().cloned().unzip();
        spi::run(
            "UPDATE pg_catalog.pg_trigger t SET tgenabled = q.state::\"char\" \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS q (name, state) \
             WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgname = q.name AND t.tgenabled <> q.state::\"char\"",
            &[table.into(), names.into(), states.into()],
        )?;
        storage::forget_cached(table);
        Ok(())
    }
}

/// The copies of one table's partitions take their place; those are dropped. Everything is locked, the mirror
/// has made every copy equal, and verification has proven that each holds exactly the rows of its keys: so ATTACH
/// is shown the empty twin, and no list is compared with the rows of a DEFAULT partition. Returns the table
/// between, None: the slot is one partition again.
pub fn exchange(move_id: i64, family: &Family, parts: &[Part]) -> PgResult<Option<pg_sys::Oid>> {
    let lead = family.lead;
    let owner = security::relation_owner(lead)?;
    let single = family.is_single(parts.len());
    let leaving = family.leaving(parts.len());
    let carried = Carried::read(move_id, lead, leaving)?;
    let children = child::children(move_id, lead)?;
    let rows = shadow::relations(move_id)?;
    let Some(RelationRow { shadow: staging, twin: Some(twin), .. }) =
        rows.into_iter().find(|row| row.source == lead)
    else {
        return Err(internal("the placement has lost its twin"));
    };
    for copy in &children {
        let detach = format!("ALTER TABLE {} DETACH PARTITION {}", name_of(staging)?, name_of(*copy)?);
        spi::run(&detach, &[])?;
        carried.hand_over(*copy)?;
    }
    let mut taking = children.clone();
    if !single && family.branch.is_none() {
        // Not before: what is copied through it takes no default for columns that are not stored.
        copy_defaults(lead, staging)?;
        carried.hand_over(staging)?;
        taking.push(staging);
    }
    child::take_over(move_id, lead, &taking)?;
    if let (Some(branch), [only]) = (leaving, children.as_slice()) {
        take_comments(branch, *only)?;
    }
    // In its transaction nothing else may be lost with a partition: whatever depends on one stops us.
    for source in &family.sources {
        spi::run(&format!("DROP TABLE {}", name_of(*source)?), &[])?;
    }
    let first = parts.first().ok_or_else(|| internal("a placement without parts"))?;
    let (branch, single_name) = match (single, family.branch) {
        (true, branch) => (None, remove_branch(branch, &carried.leaf)?),
        (false, Some(branch)) => (Some(branch), String::new()),
        (false, None) => {
            become_branch(move_id, family, staging, first, &carried)?;
            (Some(staging), String::new())
        }
    };
    let mut placed = child::paired(parts, children)?;
    // The DEFAULT partition last: a list that joins it would be compared with its rows.
    placed.sort_by_key(|(part, _)| part.keys.is_none());
    for (part, copy) in placed {
        let (parent, bound) = match branch {
            Some(branch) => (branch, list_bound(part)),
            None => (family.table, part.hash_bound()),
        };
        let name = match (&part.keys, branch) {
            (_, None) => single_name.clone(),
            (None, Some(branch)) => sequence::free_name(branch, None, "default", branch)?,
            (Some(_), Some(branch)) => {
                let label = if part.isolated { "key" } else { "keys" };
                sequence::free_name(branch, None, label, branch)?
            }
        };
        names::rename(copy, &name, false);
        child::name_indexes(copy, &carried.leaf, &carried.index_names)?;
        attach(parent, owner, copy, twin, &bound)?;
        carried.enable_triggers(copy)?;
    }
    Ok(branch)
}

/// The comments on a table and its columns become those of another.
fn take_comments(from: pg_sys::Oid, to: pg_sys::Oid) -> PgResult<()> {
    spi::run(
        "DELETE FROM pg_catalog.pg_description WHERE classoid = 'pg_class'::regclass AND objoid = $1",
        &[to.into()],
    )?;
    spi::run(
        "INSERT INTO pg_catalog.pg_description (objoid, classoid, objsubid, description) \
         SELECT $2, classoid, objsubid, description FROM pg_catalog.pg_description WHERE classoid = 'pg_class'::regclass AND objoid = $1",
        &[from.into(), to.into()],
    )?;
    Ok(())
}

/// Drops the table between, when there is one; the name for the only partition of the slot.
fn remove_branch(branch: Option<pg_sys::Oid>, leaf: &str) -> PgResult<String> {
    let Some(branch) = branch else { return Ok(leaf.to_string()) };
    // It would take its partitions along.
    let occupied = "SELECT EXISTS (SELECT FROM pg_catalog.pg_inherits WHERE inhparent = $1)";
    if spi::one::<bool>(occupied, &[branch.into()])? != Some(false) {
        return Err(wrong_state(format!("{} has partitions that foreshard does not know", name_of(branch)?))
            .set_hint("Detach them and try again."));
    }
    let name = names::plain(branch)?;
    spi::run(&format!("DROP TABLE {}", name_of(branch)?), &[])?;
    Ok(name)
}

/// The staging table, empty of partitions and handed over, becomes the table between under the name that the slot's partition
/// had.
fn become_branch(
    move_id: i64,
    family: &Family,
    staging: pg_sys::Oid,
    part: &Part,
    carried: &Carried,
) -> PgResult<()> {
    let owner = security::relation_owner(staging)?;
    names::rename(staging, &carried.leaf, false);
    let attach = format!(
        "ALTER TABLE {} ATTACH PARTITION {} {}",
        name_of(family.table)?,
        name_of(staging)?,
        part.hash_bound()
    );
    let guard = security::as_restricted_owner(owner);
    spi::run(&attach, &[])?;
    drop(guard);
    // It is no copy of ours any more.
    spi::run(
        "UPDATE foreshard.move_relation SET shadow = 0 WHERE move_id = $1 AND shadow = $2",
        &[move_id.into(), staging.into()],
    )?;
    Ok(())
}
