//! Splits of slots: asking for one, what speaks against it, and what becomes of everything that is known
//! of the slot.

use super::citus::splitting;
use super::{colocation, heat, moves, outcome, preflight, prepared, request};
use crate::pg::report::{
    self, PgResult, PgSqlErrorCode, bad_argument, error, internal, unknown, wrong_state,
};
use crate::pg::spi;
use pgrx::pg_sys;
use serde_json::json;

/// Most slots a group may have.
pub(super) const MAX_SLOTS: i64 = 4096;
/// Greatest modulus: every block of keys of `next_key()` has one for nearly every remainder.
pub(super) const MAX_MODULUS: i32 = super::birth::BLOCK as i32;

/// One of the slots that a slot becomes.
pub struct Part {
    /// Number, from 0; part 0 keeps the slot's id.
    pub part: i32,
    /// Modulus of its hash.
    pub modulus: i32,
    /// Remainder.
    pub remainder: i32,
    /// Where it shall be.
    pub shard_id: i32,
    /// Tablespace of that shard.
    pub tablespace: String,
    /// Its slot; None: not made yet.
    pub slot_id: Option<i64>,
    /// Rows of all tables at the last verification.
    pub rows: Option<i64>,
    /// Of a placement: its keys; None: all others.
    pub keys: Option<Vec<String>>,
    /// Of a placement: a key by itself.
    pub isolated: bool,
}

impl Part {
    /// Its partition bound by hash.
    pub fn hash_bound(&self) -> String {
        format!("FOR VALUES WITH (MODULUS {}, REMAINDER {})", self.modulus, self.remainder)
    }
}

/// The parts of a split, by number.
pub fn parts(move_id: i64) -> PgResult<Vec<Part>> {
    spi::rows(
        "SELECT p.part, p.modulus, p.remainder, p.shard_id, h.tablespace_name::text, p.slot_id, p.rows, p.keys, p.isolated \
         FROM foreshard.move_part p JOIN foreshard.shard h USING (shard_id) WHERE p.move_id = $1 ORDER BY p.part",
        &[move_id.into()],
        |row| {
            Ok(Part {
                part: row.need(1)?,
                modulus: row.need(2)?,
                remainder: row.need(3)?,
                shard_id: row.need(4)?,
                tablespace: row.need(5)?,
                slot_id: row.get(6)?,
                rows: row.get(7)?,
                keys: row.get(8)?,
                isolated: row.need(9)?,
            })
        },
    )
}

/// The slot's part of everything: its share of the rows, or an even one of nothing.
pub fn shares(parts: &[Part]) -> Vec<f64> {
    let total: i64 = parts.iter().filter_map(|part| part.rows).sum();
    let even = 1.0 / parts.len().max(1) as f64;
    let share = |part: &Part| if total > 0 { part.rows.unwrap_or(0) as f64 / total as f64 } else { even };
    parts.iter().map(share).collect()
}

pub(super) struct Slot {
    pub(super) group_id: i32,
    pub(super) modulus: i32,
    pub(super) remainder: i32,
    pub(super) shard_id: i32,
    pub(super) moving: bool,
    slots: i64,
}

pub(super) fn slot(slot_id: i64) -> PgResult<Slot> {
    let found = spi::rows(
        "SELECT s.group_id, s.modulus, s.remainder, s.shard_id, \
                EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = s.slot_id AND NOT m.finished), \
                (SELECT count(*) FROM foreshard.slot o WHERE o.group_id = s.group_id) \
         FROM foreshard.slot s WHERE s.slot_id = $1",
        &[slot_id.into()],
        |row| {
            Ok(Slot {
                group_id: row.need(1)?,
                modulus: row.need(2)?,
                remainder: row.need(3)?,
                shard_id: row.need(4)?,
                moving: row.need(5)?,
                slots: row.need(6)?,
            })
        },
    )?;
    found.into_iter().next().ok_or_else(|| {
        unknown(format!("slot {slot_id} does not exist")).set_hint("See the view foreshard.slots.")
    })
}

/// The shard named, or the present one.
pub(super) fn target(name: Option<&str>, present: i32) -> PgResult<i32> {
    let Some(name) = name else { return Ok(present) };
    let found = spi::rows(
        "SELECT shard_id, draining, node_name::text FROM foreshard.shard WHERE shard_name = $1::name",
        &[name.into()],
        |row| Ok((row.need::<i32>(1)?, row.need::<bool>(2)?, row.need::<String>(3)?)),
    )?;
    match found.into_iter().next() {
        Some((.., node)) if node != colocation::LOCAL => Err(colocation::only_here(name, &node)),
        None => {
            Err(unknown(format!("shard \"{name}\" does not exist"))
                .set_hint("See the view foreshard.shards."))
        }
        Some((shard_id, true, _)) if shard_id != present => {
            Err(bad_argument(format!("shard \"{name}\" is being drained")))
        }
        Some((shard_id, ..)) => Ok(shard_id),
    }
}

/// Files the split of a slot into as many parts as there are targets (None: where the slot is). With `prepare` it
/// stops before the cutover; without it, a split that was prepared goes on.
///
/// # Errors
/// 42704 unknown slot or shard, 22023 a shard that is drained, 53400 too many slots, 55006 already moving,
/// 0A000 with every reason why the slot cannot be split.
pub fn file(slot_id: i64, targets: &[Option<&str>], user: &str, prepare: bool) -> PgResult<i64> {
    if splitting::range_of(slot_id)?.is_some() {
        return splitting::file_halves(slot_id, targets, user, prepare);
    }
    let present = slot(slot_id)?;
    if present.moving
        && !prepare
        && let Some(ready) = prepared::of_slot(slot_id)?
    {
        return prepared::go_on(&ready, slot_id, targets, user);
    }
    let shards =
        targets.iter().map(|name| target(*name, present.shard_id)).collect::<PgResult<Vec<i32>>>()?;
    if present.moving {
        return Err(moves::already_moving(slot_id));
    }
    let count = shards.len() as i32;
    let modulus = present.modulus.checked_mul(count).filter(|modulus| *modulus <= MAX_MODULUS);
    let (Some(modulus), true) = (modulus, present.slots + i64::from(count) - 1 <= MAX_SLOTS) else {
        return Err(error(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("slot {slot_id} cannot be split any further"),
        )
        .set_detail(format!(
            "A group has at most {MAX_SLOTS} slots, with moduli of at most {MAX_MODULUS}; this one has {} slots, \
             the slot the modulus {}.",
            present.slots, present.modulus
        )));
    };
    if prepare {
        prepared::require_room()?;
    }
    refuse(slot_id, &reasons(slot_id)?)?;
    let mut asked = json!({"split": slot_id, "shards": targets});
    if prepare {
        asked["prepare"] = true.into();
    }
    let request_id = request::file(user, present.group_id, &asked)?;
    let first = shards.first().copied().unwrap_or(present.shard_id);
    // Another session may have filed a move of this slot meanwhile.
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard, prepare) VALUES ($1, 'split', $2, $3, $4, $5) \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[request_id.into(), slot_id.into(), present.shard_id.into(), first.into(), prepare.into()],
    )?
    .ok_or_else(|| moves::already_moving(slot_id))?;
    // The slot may have been split by somebody else between the look at it and its lock.
    if slot(slot_id)?.modulus != present.modulus {
        return Err(moves::already_moving(slot_id));
    }
    for (part, shard_id) in (0..).zip(shards) {
        let remainder = present.remainder + part * present.modulus;
        spi::run(
            "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id) VALUES ($1, $2, $3, $4, $5)",
            &[move_id.into(), part.into(), modulus.into(), remainder.into(), shard_id.into()],
        )?;
    }
    Ok(move_id)
}

/// Checks that the group of a slot of Citus has room for as many parts of it.
///
/// # Errors
/// 53400 it has too many slots.
pub(super) fn require_room(slot_id: i64, present: &Slot, parts: usize) -> PgResult<()> {
    if present.slots + parts as i64 - 1 <= MAX_SLOTS {
        return Ok(());
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("slot {slot_id} cannot be split any further"),
    )
    .set_detail(format!("A group has at most {MAX_SLOTS} slots; this one has {}.", present.slots)))
}

/// 0A000 with every reason.
pub fn refuse(slot_id: i64, reasons: &[String]) -> PgResult<()> {
    let hint = if is_referenced(reasons) {
        "Rows that are referenced cannot change their partition: drop the foreign key, split the slot, and add the key again (NOT VALID first, then VALIDATE; of a partitioned table only since PostgreSQL 18)."
    } else {
        "Cure every reason named and split the slot again, or move the whole slot with foreshard.move_slot()."
    };
    report::refuse(format!("slot {slot_id} cannot be split"), reasons, hint)
}

/// Whether one of the reasons is a foreign key to the table.
pub(super) fn is_referenced(reasons: &[String]) -> bool {
    reasons.iter().any(|reason| reason.starts_with("inbound_foreign_key"))
}

/// Everything that speaks against splitting a slot, of all its tables.
pub fn reasons(slot_id: i64) -> PgResult<Vec<String>> {
    if splitting::range_of(slot_id)?.is_some() {
        return splitting::reasons(slot_id);
    }
    let mut found = Vec::new();
    let partitions = super::shadow::partitions_of_slot(slot_id)?;
    if partitions.is_empty() {
        found.push("no_partition: the slot has no partition any more".to_string());
    }
    for partition in partitions {
        found.extend(preflight::against_move(partition)?);
        found.extend(against_split(partition)?);
        found.extend(against_indexes(partition)?);
    }
    found.extend(super::place::against_split_of(slot_id)?);
    Ok(found)
}

/// Indexes of its table that a partition does not have (CREATE INDEX ON ONLY): what takes its place does not have them either, and
/// PostgreSQL would build them while everybody is locked out. Apart from [`against_split`], because such an index comes and goes
/// without the partition being altered.
pub fn against_indexes(partition: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "SELECT 'index_without_partition: ' || p.indexrelid::regclass || ' of the table has no partition on ' || l.inhrelid::regclass \
         FROM pg_catalog.pg_inherits l JOIN pg_catalog.pg_index p ON p.indrelid = l.inhparent WHERE l.inhrelid = $1 \
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_inherits h JOIN pg_catalog.pg_index c ON c.indexrelid = h.inhrelid \
                           WHERE h.inhparent = p.indexrelid AND c.indrelid = l.inhrelid) ORDER BY 1",
        &[partition.into()],
        |row| row.need::<String>(1),
    )
}

/// Reasons that stand against replacing a leaf partition by others: what is not carried over, and what
/// depends on it.
pub fn against_split(partition: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(
        "WITH leaf AS (SELECT c.oid, c.relowner, c.relname, i.inhparent FROM pg_catalog.pg_class c JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.oid WHERE c.oid = $1) \
         SELECT 'inbound_foreign_key: ' || pg_catalog.quote_ident(k.conname) || ' of ' || k.conrelid::regclass FROM leaf l \
             JOIN pg_catalog.pg_constraint k ON k.contype = 'f' AND k.conparentid = 0 AND k.confrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(l.oid)) \
         UNION ALL SELECT 'other_owner: partition and table belong to different roles' FROM leaf l JOIN pg_catalog.pg_class p ON p.oid = l.inhparent WHERE p.relowner <> l.relowner \
         UNION ALL SELECT 'detach_pending: finish it with ALTER TABLE … DETACH PARTITION … FINALIZE' FROM pg_catalog.pg_inherits \
             WHERE inhrelid = $1 AND inhdetachpending \
         UNION ALL SELECT 'not_validated: constraint ' || pg_catalog.quote_ident(k.conname) FROM pg_catalog.pg_constraint k \
             WHERE k.conrelid = $1 AND NOT k.convalidated \
         UNION ALL SELECT 'temporal_key: ' || pg_catalog.quote_ident(k.conname) FROM pg_catalog.pg_constraint k \
             WHERE k.conrelid = $1 AND (pg_catalog.to_jsonb(k) ->> 'conperiod')::bool \
         UNION ALL SELECT 'own_foreign_key: ' || pg_catalog.quote_ident(k.conname) || ' belongs to the partition alone' FROM pg_catalog.pg_constraint k \
             WHERE k.conrelid = $1 AND k.contype = 'f' AND k.conparentid = 0 \
         UNION ALL SELECT 'own_trigger: ' || pg_catalog.quote_ident(t.tgname) || ' belongs to the partition alone' FROM pg_catalog.pg_trigger t \
             WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgparentid = 0 \
         UNION ALL SELECT 'own_sequence: ' || q.oid::regclass || ' belongs to a column of the partition' FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_class q ON q.oid = d.objid AND q.relkind = 'S' \
             WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'a' \
         UNION ALL SELECT 'rule: ' || pg_catalog.quote_ident(rulename) FROM pg_catalog.pg_rewrite WHERE ev_class = $1 \
         UNION ALL SELECT 'own_policy: ' || pg_catalog.quote_ident(polname) FROM pg_catalog.pg_policy WHERE polrelid = $1 \
         UNION ALL SELECT 'own_statistics: ' || pg_catalog.quote_ident(stxname) FROM pg_catalog.pg_statistic_ext WHERE stxrelid = $1 \
         UNION ALL SELECT 'security_label: ' || provider FROM pg_catalog.pg_seclabel WHERE classoid = 'pg_class'::regclass AND objoid = $1 \
         UNION ALL SELECT 'extension_member: the partition belongs to an extension' FROM pg_catalog.pg_depend \
             WHERE classid = 'pg_class'::regclass AND objid = $1 AND deptype = 'e' \
         UNION ALL SELECT 'subscription: the partition is the target of a subscription' FROM pg_catalog.pg_subscription_rel WHERE srrelid = $1 \
         UNION ALL SELECT 'own_publication: ' || pg_catalog.quote_ident(p.pubname) || ' publishes the partition by name' \
             FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1 \
         UNION ALL SELECT 'publication: ' || pg_catalog.quote_ident(p.pubname) || ' publishes partitions under their own names (publish_via_partition_root is off)' \
             FROM leaf l CROSS JOIN pg_catalog.pg_publication p WHERE NOT p.pubviaroot AND (p.puballtables \
               OR EXISTS (SELECT FROM pg_catalog.pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(l.oid) WHERE relid <> l.oid)) \
               OR EXISTS (SELECT FROM pg_catalog.pg_publication_namespace n JOIN pg_catalog.pg_class c ON c.relnamespace = n.pnnspid \
                          WHERE n.pnpubid = p.oid AND c.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(l.oid)))) \
         UNION ALL SELECT 'dependent: ' || pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_catalog.pg_depend d \
             WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.deptype = 'n' \
               AND d.classid NOT IN ('pg_constraint'::regclass, 'pg_attrdef'::regclass, 'pg_trigger'::regclass) AND d.objid <> $1 \
         UNION ALL SELECT 'row_type_used: ' || pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_type t ON t.oid = d.refobjid \
             WHERE d.refclassid = 'pg_type'::regclass AND d.deptype = 'n' AND (t.typrelid = $1 \
               OR t.typelem IN (SELECT oid FROM pg_catalog.pg_type WHERE typrelid = $1)) \
         UNION ALL SELECT 'own_unique_index: ' || x.indexrelid::regclass || ' is unique within the partition alone, and the key is not in it' FROM leaf l \
             JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = l.inhparent \
             JOIN pg_catalog.pg_attribute k ON k.attrelid = l.inhparent AND k.attnum = r.partattrs[0] \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.attname = k.attname AND NOT a.attisdropped \
             JOIN pg_catalog.pg_index x ON x.indrelid = l.oid AND x.indisunique AND NOT a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1]) \
         UNION ALL SELECT 'identity_without_key: no primary key or unique index over NOT NULL columns has the key in it' FROM leaf l \
             JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = l.inhparent \
             JOIN pg_catalog.pg_attribute k ON k.attrelid = l.inhparent AND k.attnum = r.partattrs[0] \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.attname = k.attname AND NOT a.attisdropped \
             CROSS JOIN LATERAL (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS keys FROM pg_catalog.pg_index i \
                 WHERE i.indexrelid = (SELECT foreshard_identity.indexrelid FROM (SELECT i.indexrelid FROM pg_catalog.pg_index i \
                     WHERE i.indrelid = $1 AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL \
                       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute c WHERE c.attrelid = $1 \
                                       AND c.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) AND NOT c.attnotnull) \
                     ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) foreshard_identity)) x \
             WHERE NOT a.attnum = ANY (x.keys)",
        &[partition.into()],
        |row| row.need::<String>(1),
    )
}

/// Stores how many rows each part had at a verification.
pub fn set_rows(move_id: i64, rows: &[u64]) -> PgResult<()> {
    let rows: Vec<i64> = rows.iter().map(|rows| *rows as i64).collect();
    spi::run(
        "UPDATE foreshard.move_part p SET rows = q.rows FROM pg_catalog.unnest($2) WITH ORDINALITY q (rows, n) \
         WHERE p.move_id = $1 AND p.part = q.n - 1",
        &[move_id.into(), rows.into()],
    )?;
    Ok(())
}

/// The placement changes: the slot becomes its first part, the others get slots of their own, with the part
/// of the load that they take along. Returns the parts with their slots.
pub fn place(move_id: i64, slot_id: i64) -> PgResult<Vec<Part>> {
    spi::run(
        "UPDATE foreshard.slot s SET modulus = p.modulus, remainder = p.remainder, shard_id = p.shard_id, \
                last_moved_at = pg_catalog.clock_timestamp() \
         FROM foreshard.move_part p WHERE s.slot_id = $2 AND p.move_id = $1 AND p.part = 0",
        &[move_id.into(), slot_id.into()],
    )?;
    spi::run(
        "WITH made AS (INSERT INTO foreshard.slot (group_id, modulus, remainder, shard_id, born_shard, last_moved_at) \
             SELECT s.group_id, p.modulus, p.remainder, p.shard_id, p.shard_id, pg_catalog.clock_timestamp() \
             FROM foreshard.move_part p CROSS JOIN foreshard.slot s \
             WHERE s.slot_id = $2 AND p.move_id = $1 AND p.part > 0 ORDER BY p.part RETURNING slot_id, modulus, remainder) \
         UPDATE foreshard.move_part p SET slot_id = coalesce((SELECT m.slot_id FROM made m WHERE (m.modulus, m.remainder) = (p.modulus, p.remainder)), $2) \
         WHERE p.move_id = $1",
        &[move_id.into(), slot_id.into()],
    )?;
    spi::run(
        "UPDATE foreshard.slot_partition s SET partition = c.child::regclass FROM foreshard.move_child c \
         WHERE s.slot_id = $2 AND c.move_id = $1 AND c.part = 0 AND c.source = s.partition",
        &[move_id.into(), slot_id.into()],
    )?;
    spi::run(
        "INSERT INTO foreshard.slot_partition (slot_id, table_oid, partition) \
         SELECT p.slot_id, i.inhparent::regclass, c.child::regclass FROM foreshard.move_child c JOIN foreshard.move_part p USING (move_id, part) \
         JOIN pg_catalog.pg_inherits i ON i.inhrelid = c.child WHERE c.move_id = $1 AND c.part > 0",
        &[move_id.into()],
    )?;
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp() WHERE move_id = $1",
        &[move_id.into()],
    )?;
    let parts = parts(move_id)?;
    let made = slots_with_shares(&parts)?;
    heat::divide(slot_id, &made)?;
    super::unit_cost::divide(slot_id, &made)?;
    Ok(parts)
}

/// (Slot, its share) of every part.
fn slots_with_shares(parts: &[Part]) -> PgResult<Vec<(i64, f64)>> {
    let slot = |part: &Part| part.slot_id.ok_or_else(|| internal("a part of the split has no slot"));
    parts.iter().zip(shares(parts)).map(|(part, share)| Ok((slot(part)?, share))).collect()
}

/// Divides the past and the forecast of the slot between its parts: no part looks cold, none as hot as the
/// whole. Not idempotent: it belongs into the transaction that ends the split.
pub fn divide_past(move_id: i64, slot_id: i64) -> PgResult<()> {
    let made = slots_with_shares(&parts(move_id)?)?;
    let swapped_at_s = spi::one::<f64>(
        "SELECT extract(epoch FROM swapped_at)::float8 FROM foreshard.move WHERE move_id = $1",
        &[move_id.into()],
    )?;
    let Some(swapped_at_s) = swapped_at_s else {
        return Err(wrong_state("the slot has not been split"));
    };
    heat::divide_history(slot_id, &made, swapped_at_s)?;
    let parts: Vec<i64> = made.iter().map(|(slot, _)| *slot).collect();
    outcome::slots_changed(slot_id, &parts, &[])
}
