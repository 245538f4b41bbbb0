//! The copy of a merge: one table, made like the first of the partitions that it takes the place of. It needs no
//! staging table, since every row of theirs goes into it.

use super::child::{self, parent_of};
use super::mold::Mold;
use super::shadow;
use super::split::Part;
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi, storage};
use pgrx::pg_sys;

/// Leaves of one table each, in the order of the first of them.
pub fn by_table(partitions: &[pg_sys::Oid]) -> PgResult<Vec<Vec<pg_sys::Oid>>> {
    let mut tables: Vec<(pg_sys::Oid, Vec<pg_sys::Oid>)> = Vec::new();
    for partition in partitions {
        let parent = parent_of(*partition)?;
        match tables.iter_mut().find(|(table, _)| *table == parent) {
            Some((_, leaves)) => leaves.push(*partition),
            None => tables.push((parent, vec![*partition])),
        }
    }
    Ok(tables.into_iter().map(|(_, leaves)| leaves).collect())
}

/// Makes the copy of some partitions of one table, its twin and a log per partition, all empty and members of the
/// extension. Changes are not captured yet.
pub fn create(move_id: i64, sources: &[pg_sys::Oid], part: &Part) -> PgResult<()> {
    let first = *sources.first().ok_or_else(|| internal("a merge without partitions"))?;
    let owner = security::relation_owner(first)?;
    let tag = format!("{move_id}_{}", first.to_u32());
    let copy = Mold::of(first)?.make(&format!("split_{tag}_0"), first, owner, &part.tablespace)?;
    let twin = storage::create_heap_like(copy, pg_sys::InvalidOid)?;
    shadow::adopt_shadow(twin, first, &format!("split_{tag}_twin"))?;
    for source in sources {
        child::add_source(move_id, *source, copy, Some(twin))?;
        if *source != first {
            child::note_copy(move_id, *source, part.part, copy)?;
        }
    }
    child::add_copy(move_id, first, part, copy, "split")?;
    // Every index is a partition of the table's, so the table's tells which of the others' is the same.
    spi::run(
        "INSERT INTO foreshard.move_index (move_id, source, source_index, shadow_index, heap) \
         SELECT m.move_id, o.indrelid, o.indexrelid, m.shadow_index, m.heap FROM foreshard.move_index m \
         JOIN pg_catalog.pg_inherits a ON a.inhrelid = m.source_index JOIN pg_catalog.pg_inherits b ON b.inhparent = a.inhparent \
         JOIN pg_catalog.pg_index o ON o.indexrelid = b.inhrelid \
         WHERE m.move_id = $1 AND m.source = $2 AND o.indrelid = ANY ($3) AND o.indrelid <> $2",
        &[move_id.into(), first.into(), sources.to_vec().into()],
    )?;
    Ok(())
}

/// The first of the partitions that have a copy in common: it is made like that one.
pub fn first_source(move_id: i64, copy: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>(
        "SELECT min(source) FROM foreshard.move_relation WHERE move_id = $1 AND shadow = $2",
        &[move_id.into(), copy.into()],
    )?
    .ok_or_else(|| internal("a copy of nothing"))
}

/// Reasons against making one partition of two: the copy can only be like both if they are alike.
pub fn differences(a: pg_sys::Oid, b: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = spi::rows(
        "WITH side AS (SELECT 'columns' AS what, attrelid AS rel, format('%s %s %s %s %s %s %s %s %s %s %s %s', attnum, CASE WHEN attisdropped THEN '' ELSE attname END, \
                 atttypid, atttypmod, attcollation, attnotnull, attgenerated, attisdropped, attstorage, attcompression, attstattarget, \
                 (SELECT pg_catalog.string_agg(o, ',') FROM pg_catalog.unnest(attoptions) o WHERE o NOT LIKE 'pg\\_attver=%')) AS x \
               FROM pg_catalog.pg_attribute WHERE attrelid IN ($1, $2) AND attnum > 0 AND NOT attisdropped \
             UNION ALL SELECT 'columns', attrelid, format('%s dropped', attnum) FROM pg_catalog.pg_attribute WHERE attrelid IN ($1, $2) AND attnum > 0 AND attisdropped \
             UNION ALL SELECT 'column privileges', attrelid, format('%s %s %s %s', attname, a.grantee, a.privilege_type, a.is_grantable) \
                 FROM pg_catalog.pg_attribute, pg_catalog.aclexplode(attacl) a WHERE attrelid IN ($1, $2) \
             UNION ALL SELECT 'storage settings', c.oid, format('%s %s %s', c.reloptions, t.reloptions, c.relam) FROM pg_catalog.pg_class c \
                 LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid WHERE c.oid IN ($1, $2) \
             UNION ALL SELECT 'privileges', oid, format('%s %s %s', a.grantee, a.privilege_type, a.is_grantable) \
                 FROM pg_catalog.pg_class, pg_catalog.aclexplode(coalesce(relacl, pg_catalog.acldefault('r', relowner))) a WHERE oid IN ($1, $2) \
             UNION ALL SELECT 'row level security', oid, relrowsecurity::text FROM pg_catalog.pg_class WHERE oid IN ($1, $2) \
             UNION ALL SELECT 'comments', objoid, format('%s %s', objsubid, description) FROM pg_catalog.pg_description \
                 WHERE classoid = 'pg_class'::regclass AND objoid IN ($1, $2) \
             UNION ALL SELECT 'replica identity', oid, relreplident::text FROM pg_catalog.pg_class WHERE oid IN ($1, $2) \
             UNION ALL SELECT 'owner', oid, relowner::text FROM pg_catalog.pg_class WHERE oid IN ($1, $2) \
             UNION ALL SELECT 'defaults', adrelid, format('%s %s', adnum, pg_catalog.pg_get_expr(adbin, adrelid)) FROM pg_catalog.pg_attrdef WHERE adrelid IN ($1, $2) \
             UNION ALL SELECT 'constraints', conrelid, format('%s %s', conname, pg_catalog.pg_get_constraintdef(oid)) FROM pg_catalog.pg_constraint \
                 WHERE conrelid IN ($1, $2) AND contype = 'c' \
             UNION ALL SELECT 'triggers', tgrelid, format('%s %s', tgparentid, tgenabled) FROM pg_catalog.pg_trigger WHERE tgrelid IN ($1, $2) AND tgparentid <> 0 AND NOT tgisinternal \
             UNION ALL SELECT 'indexes', i.indrelid, coalesce(h.inhparent::text, 'own ' || i.indexrelid) FROM pg_catalog.pg_index i \
                 LEFT JOIN pg_catalog.pg_inherits h ON h.inhrelid = i.indexrelid WHERE i.indrelid IN ($1, $2)) \
         SELECT DISTINCT 'different: ' || what || ' of ' || $1::regclass || ' and ' || $2::regclass FROM ( \
             (SELECT what, x FROM side WHERE rel = $1 EXCEPT ALL SELECT what, x FROM side WHERE rel = $2) UNION ALL \
             (SELECT what, x FROM side WHERE rel = $2 EXCEPT ALL SELECT what, x FROM side WHERE rel = $1)) q ORDER BY 1",
        &[a.into(), b.into()],
        |row| row.need::<String>(1),
    )?;
    found.dedup();
    Ok(found)
}

/// The same without indexes: whether those of two partitions fit together is a question of each and its copy
/// ([`shadow::fits`]).
pub fn unlike(a: pg_sys::Oid, b: pg_sys::Oid) -> PgResult<Vec<String>> {
    let mut found = differences(a, b)?;
    found.retain(|reason| !reason.starts_with("different: indexes"));
    Ok(found)
}
