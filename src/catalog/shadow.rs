//! Shadow copies: their catalog rows, and the checks that source and shadow still fit together.

use super::preflight::identity_index;
use super::relation::without_grants;
use super::{name_of, profile};
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::spi::{self, Arg};
use crate::pg::{lock, security, storage};
use pgrx::pg_sys;
use std::time::Duration;

/// How often, and how far apart, a toast table is tried to be given its own name.
const TOAST_NAME_ATTEMPTS: u32 = 20;
const TOAST_NAME_PAUSE: Duration = Duration::from_millis(5);

/// One partition of a move with its shadow.
pub struct RelationRow {
    /// Leaf partition that moves.
    pub source: pg_sys::Oid,
    /// Its shadow heap.
    pub shadow: pg_sys::Oid,
    /// Log of changed keys.
    pub log: pg_sys::Oid,
    /// Capture trigger.
    pub trigger: pg_sys::Oid,
    /// State of the source's definition at capture.
    pub fingerprint: String,
    /// Blocks to copy.
    pub blocks_total: i64,
    /// Blocks copied.
    pub blocks_done: i64,
    /// Blocks of the shadow after the last chunk, whichever source that was of.
    pub shadow_blocks: i64,
    /// Attribute numbers of the identity key.
    pub key: Vec<i16>,
    /// Of a split: an empty heap of the shape of its copies.
    pub twin: Option<pg_sys::Oid>,
}

/// Leaf partitions of a slot, ascending.
pub fn partitions_of_slot(slot_id: i64) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT p.partition::oid FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition WHERE p.slot_id = $1 ORDER BY 1",
        &[slot_id.into()],
        |row| row.need(1),
    )
}

/// Leaf partitions of a move: of its slot, and of the slots that go up in it; ascending.
pub fn partitions_of_move(move_id: i64, slot_id: i64) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT p.partition::oid FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition \
         WHERE p.slot_id = $1 OR p.slot_id IN (SELECT slot_id FROM foreshard.move WHERE partner_of = $2 AND kind <> 'join' UNION ALL SELECT other_slot FROM foreshard.move WHERE move_id = $2) ORDER BY 1",
        &[slot_id.into(), move_id.into()],
        |row| row.need(1),
    )
}

/// Partitions of all moves under way, ascending.
pub fn sources_under_way() -> PgResult<Vec<pg_sys::Oid>> {
    let _owner = security::as_extension_owner()?;
    spi::rows(
        "SELECT DISTINCT r.source FROM foreshard.move_relation r JOIN pg_catalog.pg_class c ON c.oid = r.source ORDER BY 1",
        &[],
        |row| row.need(1),
    )
}

/// Relations of a move, ascending by source.
pub fn relations(move_id: i64) -> PgResult<Vec<RelationRow>> {
    spi::rows(
        "SELECT r.source, r.shadow, r.capture_log, r.capture_trigger, r.fingerprint, r.blocks_total, r.blocks_done, \
                coalesce((SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] FROM pg_catalog.pg_index i WHERE i.indexrelid = r.identity_index), '{}'), r.twin, \
                (SELECT max(o.shadow_blocks) FROM foreshard.move_relation o WHERE o.move_id = r.move_id AND o.shadow = r.shadow) \
         FROM foreshard.move_relation r WHERE r.move_id = $1 ORDER BY r.source",
        &[move_id.into()],
        |row| {
            Ok(RelationRow {
                source: row.need(1)?,
                shadow: row.need(2)?,
                log: row.need(3)?,
                trigger: row.need(4)?,
                fingerprint: row.need(5)?,
                blocks_total: row.need(6)?,
                blocks_done: row.need(7)?,
                key: row.need(8)?,
                twin: row.get(9)?,
                shadow_blocks: row.need(10)?,
            })
        },
    )
}

/// Everything about a partition that must not change while it moves, as one text: storage identity,
/// columns, indexes, the log's columns and the capture trigger (its row version, so that disabling and enabling shows).
pub fn fingerprint(source: pg_sys::Oid, trigger: pg_sys::Oid, log: pg_sys::Oid) -> PgResult<Option<String>> {
    spi::one::<String>(
        "SELECT pg_catalog.hashtextextended(pg_catalog.string_agg(x, E'\\n' ORDER BY x), 0)::text FROM ( \
           SELECT format('c %s %s %s %s %s', relfilenode, relam, relpersistence, relkind, relowner) AS x FROM pg_catalog.pg_class WHERE oid = $1 \
           UNION ALL SELECT format('a %s %s %s %s %s %s %s %s %s %s', attnum, attname, atttypid, atttypmod, attlen, attbyval, attalign, attisdropped, attnotnull, attgenerated) \
             FROM pg_catalog.pg_attribute WHERE attrelid = $1 AND attnum > 0 \
           UNION ALL SELECT format('i %s %s %s', indexrelid, pg_catalog.pg_get_indexdef(indexrelid), indisvalid) FROM pg_catalog.pg_index WHERE indrelid = $1 \
           UNION ALL SELECT format('l %s %s %s', attnum, atttypid, attisdropped) FROM pg_catalog.pg_attribute WHERE attrelid = $3 AND attnum > 0 \
           UNION ALL SELECT format('t %s %s %s', oid, tgenabled, xmin) FROM pg_catalog.pg_trigger WHERE oid = $2) q",
        &[source.into(), trigger.into(), log.into()],
    )
}

/// Creates shadow heap, shadow indexes (empty), capture log and capture trigger of one partition, all
/// members of the extension. The caller's transaction holds SHARE ROW EXCLUSIVE on the source.
pub fn create(move_id: i64, source: pg_sys::Oid, tablespace: &str) -> PgResult<()> {
    let (identity, key) = identity_index(source)?.ok_or_else(|| {
        wrong_state("the partition has lost its identity index").set_hint("Add a primary key to the table.")
    })?;
    let space = tablespace_oid(tablespace)?;
    let shadow = storage::create_heap_like(source, space)?;
    let tag = format!("{move_id}_{}", source.to_u32());
    adopt_shadow(shadow, source, &format!("shadow_{tag}"))?;
    let log = create_log(source, &key, &format!("capture_{tag}"))?;
    let trigger = install_trigger(source, log, &key)?;
    let print = fingerprint(source, trigger, log)?.ok_or_else(|| internal("no fingerprint"))?;
    spi::run(
        "INSERT INTO foreshard.move_relation (move_id, source, shadow, capture_log, capture_trigger, identity_index, fingerprint, blocks_total, rows_total) \
         SELECT $1, $2, $3, $4, $5, $6, $7, pg_catalog.pg_relation_size($2::regclass) / pg_catalog.current_setting('block_size')::int8, \
                CASE WHEN reltuples >= 0 THEN reltuples::int8 END FROM pg_catalog.pg_class WHERE oid = $2",
        &[
            move_id.into(),
            source.into(),
            shadow.into(),
            log.into(),
            trigger.into(),
            identity.into(),
            print.as_str().into(),
        ],
    )?;
    create_indexes(move_id, source, shadow, space, &format!("shadow_{move_id}"))
}

/// Begins to log the changed keys of a source, which is locked SHARE ROW EXCLUSIVE; the trigger.
pub(super) fn install_trigger(source: pg_sys::Oid, log: pg_sys::Oid, key: &[i16]) -> PgResult<pg_sys::Oid> {
    let function = profile::capture_function()?;
    Ok(storage::install_capture(source, function, &capture_arguments(log, None, key)))
}

/// The capture trigger's arguments: `pg::capture` explains them. `mirror`: shadow, identity index and that of
/// the shadow (0: the shadow is partitioned).
fn capture_arguments(log: pg_sys::Oid, mirror: Option<[pg_sys::Oid; 3]>, key: &[i16]) -> Vec<u32> {
    let mut arguments = vec![log.to_u32()];
    arguments.extend(mirror.map_or([0; 3], |oids| oids.map(|oid| oid.to_u32())));
    arguments.extend(key.iter().map(|attnum| *attnum as u32));
    arguments
}

/// Makes the capture trigger a mirror, or a mirror a capture trigger again. The caller holds SHARE ROW
/// EXCLUSIVE on the source; every writer after that sees it.
pub fn set_mirroring(move_id: i64, row: &RelationRow, mirroring: bool) -> PgResult<()> {
    let indexes = spi::rows(
        "SELECT r.identity_index, coalesce((SELECT i.shadow_index FROM foreshard.move_index i \
             WHERE (i.move_id, i.source_index, i.heap) = (r.move_id, r.identity_index, r.shadow)), 0) \
         FROM foreshard.move_relation r WHERE r.move_id = $1 AND r.source = $2",
        &[move_id.into(), row.source.into()],
        |r| Ok((r.need::<pg_sys::Oid>(1)?, r.need::<pg_sys::Oid>(2)?)),
    )?;
    let Some((identity, shadow_identity)) = indexes.into_iter().next() else {
        return Err(internal("the move has lost its identity index"));
    };
    let mirror = mirroring.then_some([row.shadow, identity, shadow_identity]);
    let arguments = capture_arguments(row.log, mirror, &row.key);
    let text: String = arguments.iter().map(|argument| format!("{argument}\\000")).collect();
    spi::run(
        "UPDATE pg_catalog.pg_trigger SET tgargs = pg_catalog.decode($2, 'escape') WHERE oid = $1",
        &[row.trigger.into(), text.as_str().into()],
    )?;
    storage::forget_cached(row.source);
    set_fingerprint(move_id, row)
}

/// Whether a capture trigger mirrors.
pub fn is_mirroring(trigger: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT pg_catalog.split_part(pg_catalog.encode(tgargs, 'escape'), '\\000', 2) <> '0' FROM pg_catalog.pg_trigger WHERE oid = $1",
        &[trigger.into()],
    )?
    .unwrap_or(false))
}

/// Takes the definition of a source as it is now for the one to compare with.
pub fn set_fingerprint(move_id: i64, row: &RelationRow) -> PgResult<()> {
    let print = fingerprint(row.source, row.trigger, row.log)?.ok_or_else(|| internal("no fingerprint"))?;
    spi::run(
        "UPDATE foreshard.move_relation SET fingerprint = $3 WHERE move_id = $1 AND source = $2",
        &[move_id.into(), row.source.into(), print.as_str().into()],
    )?;
    Ok(())
}

/// Copies of all indexes of a source on one of its copies, empty.
pub(super) fn create_indexes(
    move_id: i64,
    source: pg_sys::Oid,
    shadow: pg_sys::Oid,
    space: pg_sys::Oid,
    prefix: &str,
) -> PgResult<()> {
    let indexes = spi::rows(
        "SELECT indexrelid FROM pg_catalog.pg_index WHERE indrelid = $1 ORDER BY 1",
        &[source.into()],
        |row| row.need::<pg_sys::Oid>(1),
    )?;
    for index in indexes {
        let name = format!("{prefix}_{}", index.to_u32());
        let copy = storage::create_index_like(shadow, index, space, &name);
        spi::run(
            "INSERT INTO foreshard.move_index (move_id, source, source_index, shadow_index, heap) VALUES ($1, $2, $3, $4, $5)",
            &[move_id.into(), source.into(), index.into(), copy.into(), shadow.into()],
        )?;
    }
    Ok(())
}

/// The tablespace of a shard.
pub(super) fn tablespace_oid(name: &str) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>(
        "SELECT oid FROM pg_catalog.pg_tablespace WHERE spcname = $1::name",
        &[name.into()],
    )?
    .ok_or_else(|| wrong_state(format!("tablespace \"{name}\" of the target shard does not exist")))
}

/// Moves a new shadow out of the user's schema into ours. relrewrite stays set: logical decoding then
/// ignores the shadow. Generated columns become plain ones: the copy stores what the source stores.
pub(super) fn adopt_shadow(shadow: pg_sys::Oid, source: pg_sys::Oid, name: &str) -> PgResult<()> {
    let old = name_of(shadow)?;
    spi::run(&format!("ALTER TABLE {old} SET SCHEMA foreshard"), &[])?;
    let moved = name_of(shadow)?;
    spi::run(&format!("ALTER TABLE {moved} RENAME TO {name}"), &[])?;
    spi::run(
        "UPDATE pg_catalog.pg_attribute SET attgenerated = '', attnotnull = attnotnull AND attgenerated <> 'v' WHERE attrelid = $1 AND attgenerated <> ''",
        &[shadow.into()],
    )?;
    own(shadow, source, name)
}

/// Makes a table of ours a member of the extension, publishable without a key and ignored by decoding.
pub(super) fn own(relation: pg_sys::Oid, source: pg_sys::Oid, name: &str) -> PgResult<()> {
    spi::run(&format!("ALTER TABLE foreshard.{name} REPLICA IDENTITY FULL"), &[])?;
    spi::run(&format!("ALTER EXTENSION foreshard ADD TABLE foreshard.{name}"), &[])?;
    spi::run(
        "UPDATE pg_catalog.pg_class SET relrewrite = $2 WHERE oid = $1",
        &[relation.into(), source.into()],
    )?;
    Ok(())
}

/// The log stays ours: its owner could turn it into a view (PostgreSQL 15), and we read it as superuser.
pub(super) fn create_log(source: pg_sys::Oid, key: &[i16], name: &str) -> PgResult<pg_sys::Oid> {
    let columns = spi::one::<String>(
        "SELECT pg_catalog.string_agg(format('%I AS k%s', a.attname, k.n), ', ' ORDER BY k.n) \
         FROM pg_catalog.unnest($2::int2[]) WITH ORDINALITY k (attnum, n) JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = k.attnum",
        &[source.into(), key.to_vec().into()],
    )?
    .unwrap_or_default();
    let table = name_of(source)?;
    spi::run(
        &format!(
            "CREATE TABLE foreshard.{name} USING heap AS SELECT {columns} FROM ONLY {table} WITH NO DATA"
        ),
        &[],
    )?;
    let log = spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[format!("foreshard.{name}").into()])?
        .ok_or_else(|| internal("no capture log"))?;
    without_grants(log)?;
    // The log stays ours, because the capture trigger trusts its shape; the owner's code only reads it
    // and forgets entries.
    let owner = security::relation_owner(source)?;
    let owner_name =
        spi::one::<String>("SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid($1))", &[owner.into()])?
            .unwrap_or_default();
    spi::run(&format!("GRANT SELECT, DELETE ON foreshard.{name} TO {owner_name}"), &[])?;
    // Not before: a dump has what is granted on a member of an extension since it became one.
    own(log, source, name)?;
    Ok(log)
}

/// The next index of a move that is not built: (heap, index).
pub fn next_unbuilt(move_id: i64) -> PgResult<Option<(pg_sys::Oid, pg_sys::Oid)>> {
    let found = spi::rows(
        "SELECT heap, shadow_index FROM foreshard.move_index \
         WHERE move_id = $1 AND NOT built ORDER BY source_index, heap LIMIT 1",
        &[move_id.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )?;
    Ok(found.into_iter().next())
}

/// Marks an index as built, in so many seconds.
pub fn set_built(move_id: i64, shadow_index: pg_sys::Oid, seconds: f64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move_index SET built = true, built_s = $3 WHERE move_id = $1 AND shadow_index = $2",
        &[move_id.into(), shadow_index.into(), seconds.into()],
    )?;
    Ok(())
}

/// (source index, shadow index) pairs of one relation.
pub fn index_pairs(move_id: i64, source: pg_sys::Oid) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT source_index, shadow_index FROM foreshard.move_index WHERE move_id = $1 AND source = $2 ORDER BY 1",
        &[move_id.into(), source.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// The copies that the rows of one relation are divided over: the partitions of its shadow, or the shadow.
pub fn copies(row: &RelationRow) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT coalesce(i.inhrelid, c.oid) FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid \
         WHERE c.oid = $1 AND (c.relkind = 'r' OR i.inhrelid IS NOT NULL) ORDER BY 1",
        &[row.shadow.into()],
        |row| row.need(1),
    )
}

/// (Index of a relation, that of one of its copies) pairs, by the index of the table too; those in another order are none.
pub fn index_pairs_of(
    move_id: i64,
    source: pg_sys::Oid,
    copy: pg_sys::Oid,
) -> PgResult<Vec<(pg_sys::Oid, pg_sys::Oid)>> {
    spi::rows(
        "SELECT DISTINCT o.indexrelid, m.shadow_index FROM foreshard.move_index m JOIN pg_catalog.pg_index n ON n.indexrelid = m.shadow_index \
         JOIN pg_catalog.pg_index o ON o.indrelid = $2 AND o.indoption::text = n.indoption::text AND o.indclass = n.indclass \
             AND o.indcollation = n.indcollation \
         WHERE m.move_id = $1 AND m.heap = $3 AND (o.indexrelid = m.source_index OR EXISTS (SELECT FROM pg_catalog.pg_inherits a \
             JOIN pg_catalog.pg_inherits b ON b.inhparent = a.inhparent WHERE a.inhrelid = m.source_index AND b.inhrelid = o.indexrelid)) ORDER BY 1",
        &[move_id.into(), source.into(), copy.into()],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Every index and toast relation whose storage or links the swap of a relation touches, ascending.
pub fn swapped_with(move_id: i64, row: &RelationRow) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "SELECT o FROM (SELECT source_index AS o FROM foreshard.move_index WHERE move_id = $1 AND source = $2 \
             UNION SELECT shadow_index FROM foreshard.move_index WHERE move_id = $1 AND source = $2 \
             UNION SELECT reltoastrelid FROM pg_catalog.pg_class WHERE oid IN ($2, $3) AND reltoastrelid <> 0) q ORDER BY 1",
        &[move_id.into(), row.source.into(), row.shadow.into()],
        |r| r.need(1),
    )
}

/// The relations whose definitions decide whether the copies of a move still fit, beside `held`.
pub fn defining(move_id: i64, held: &[pg_sys::Oid]) -> PgResult<Vec<pg_sys::Oid>> {
    let mut all = spi::rows(
        "SELECT o FROM (SELECT unnest(ARRAY[source, shadow, capture_log]) AS o FROM foreshard.move_relation WHERE move_id = $1 \
             UNION SELECT unnest(ARRAY[source_index, shadow_index, heap]) FROM foreshard.move_index WHERE move_id = $1) q",
        &[move_id.into()],
        |row| row.need(1),
    )?;
    all.extend(held);
    Ok(all)
}

/// Whether a source and its copy have the same physical columns and pairwise the same indexes, all built: the
/// last check before they change places. `stored`: dropped columns must be the same as well, because rows
/// with values in them go over.
pub fn fits(move_id: i64, source: pg_sys::Oid, copy: pg_sys::Oid, stored: bool) -> PgResult<bool> {
    let args: [Arg; 4] = [move_id.into(), source.into(), copy.into(), stored.into()];
    Ok(spi::one::<bool>(
        "WITH columns AS (SELECT attrelid, format('%s %s %s', attnum, attisdropped, CASE WHEN $4 OR NOT attisdropped \
             THEN format('%s %s %s %s %s', atttypid, atttypmod, attlen, attbyval, attalign) END) AS x \
             FROM pg_catalog.pg_attribute WHERE attrelid IN ($2, $3) AND attnum > 0), \
         pairs AS (SELECT * FROM foreshard.move_index WHERE move_id = $1 AND source = $2 AND heap = $3) \
         SELECT (SELECT pg_catalog.array_agg(x ORDER BY x) FROM columns WHERE attrelid = $2) = (SELECT pg_catalog.array_agg(x ORDER BY x) FROM columns WHERE attrelid = $3) \
         AND (SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = $2) = (SELECT count(*) FROM pairs WHERE built) \
         AND (SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = $2) = (SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = $3) \
         AND NOT EXISTS (SELECT FROM pairs m LEFT JOIN pg_catalog.pg_index a ON a.indexrelid = m.source_index AND a.indrelid = $2 \
             LEFT JOIN pg_catalog.pg_index b ON b.indexrelid = m.shadow_index AND b.indrelid = $3 WHERE \
                   (a.indnatts, a.indnkeyatts, a.indisunique, a.indkey::text, a.indclass::text, a.indcollation::text, a.indoption::text, \
                    coalesce(pg_catalog.pg_get_expr(a.indexprs, $2), ''), coalesce(pg_catalog.pg_get_expr(a.indpred, $2), ''), true) IS DISTINCT FROM \
                   (b.indnatts, b.indnkeyatts, b.indisunique, b.indkey::text, b.indclass::text, b.indcollation::text, b.indoption::text, \
                    coalesce(pg_catalog.pg_get_expr(b.indexprs, $3), ''), coalesce(pg_catalog.pg_get_expr(b.indpred, $3), ''), b.indisvalid))",
        &args,
    )?
    .unwrap_or(false))
}

/// Whether a relation still exists.
pub fn exists(relation: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1)",
        &[relation.into()],
    )?
    .unwrap_or(false))
}

/// Whether a relation exists and is (still) a shadow or log, not a user's table.
fn is_ours(relation: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_class WHERE oid = $1 AND relrewrite <> 0)",
        &[relation.into()],
    )?
    .unwrap_or(false))
}

/// Whether a trigger still exists.
pub fn trigger_exists(trigger: pg_sys::Oid) -> PgResult<bool> {
    Ok(spi::one::<bool>(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE oid = $1)",
        &[trigger.into()],
    )?
    .unwrap_or(false))
}

/// Tables of a move's own, their toast tables and all their indexes that are longer than `bytes`: see [`storage::shorten`].
pub fn longer_than(move_id: i64, bytes: i64) -> PgResult<Vec<pg_sys::Oid>> {
    spi::rows(
        "WITH own AS ( \
             SELECT f.oid FROM (SELECT pg_catalog.unnest(ARRAY[r.shadow, r.capture_log, r.twin]) AS oid FROM foreshard.move_relation r \
                                 WHERE r.move_id = $1 \
                                UNION SELECT c.oid FROM foreshard.move_child m JOIN pg_catalog.pg_class c ON c.oid IN (m.child, m.log) \
                                 WHERE m.move_id = $1 AND c.relrewrite = m.source) o \
               JOIN pg_catalog.pg_class c ON c.oid = o.oid AND c.relkind = 'r' AND c.relrewrite <> 0 \
              CROSS JOIN LATERAL (VALUES (c.oid), (c.reltoastrelid)) f (oid)) \
         SELECT a.oid FROM (TABLE own UNION SELECT i.indexrelid FROM own JOIN pg_catalog.pg_index i ON i.indrelid = own.oid) a \
          WHERE a.oid <> 0 AND pg_catalog.pg_relation_size(a.oid) > $2 ORDER BY a.oid",
        &[move_id.into(), bytes.into()],
        |row| row.need(1),
    )
}
/// Drops shadows and logs of a move and forgets its relations; what is gone already is fine.
pub fn drop_all(move_id: i64) -> PgResult<()> {
    let rows = relations(move_id)?;
    for row in &rows {
        // Copies of a split that have not become the table's; its owner may have detached one.
        let copies = spi::rows(
            "SELECT c.oid FROM foreshard.move_child m JOIN pg_catalog.pg_class c ON c.oid IN (m.child, m.log) \
             WHERE m.move_id = $1 AND m.source = $2 AND c.relrewrite = m.source",
            &[move_id.into(), row.source.into()],
            |row| row.need::<pg_sys::Oid>(1),
        )?;
        copies.into_iter().for_each(storage::drop_own_table);
        for relation in [row.shadow, row.log].into_iter().chain(row.twin) {
            if is_ours(relation)? {
                storage::drop_own_table(relation);
            }
        }
    }
    // Last, because what is renamed stays locked. A shadow that is still there is old storage that has come back.
    rows.iter().flat_map(|row| [row.source, row.shadow]).try_for_each(restore_toast_name)?;
    forget(move_id)
}

/// Forgets the relations of a move; how much of them was copied stays with the move.
pub(super) fn forget(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET (rows_copied, bytes_copied) = \
             (SELECT sum(rows_done), sum(blocks_done) * pg_catalog.current_setting('block_size')::int8 \
                FROM foreshard.move_relation WHERE move_id = $1) WHERE move_id = $1",
        &[move_id.into()],
    )?;
    spi::run("DELETE FROM foreshard.move_relation WHERE move_id = $1", &[move_id.into()])?;
    Ok(())
}

/// Toast tables of slots that were in use when a move ended: pg_upgrade insists on their own names.
pub fn restore_toast_names() -> PgResult<()> {
    let waiting = spi::rows(
        "SELECT p.partition::oid FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition \
         JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid \
         WHERE t.relname <> 'pg_toast_' || c.oid \
           AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = p.slot_id AND NOT m.finished) \
         ORDER BY 1 LIMIT 10",
        &[],
        |row| row.need::<pg_sys::Oid>(1),
    )?;
    waiting.into_iter().try_for_each(restore_toast_name)
}

/// After a swap the toast table carries the shadow's number in its name; give it back its own.
pub(super) fn restore_toast_name(source: pg_sys::Oid) -> PgResult<()> {
    let toast = spi::rows(
        "SELECT t.oid, i.indexrelid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid \
         JOIN pg_catalog.pg_index i ON i.indrelid = t.oid WHERE c.oid = $1 AND t.relname <> 'pg_toast_' || $1::text AND i.indisvalid",
        &[source.into()],
        |row| Ok((row.need::<pg_sys::Oid>(1)?, row.need::<pg_sys::Oid>(2)?)),
    )?;
    for (table, index) in toast {
        // The name is cosmetic, the table in use: not worth queueing for.
        for _ in 0..TOAST_NAME_ATTEMPTS {
            if lock::try_lock_all(&[table, index], lock::ACCESS_EXCLUSIVE) {
                storage::rename_toast(source, table, index);
                break;
            }
            std::thread::sleep(TOAST_NAME_PAUSE);
        }
    }
    Ok(())
}
