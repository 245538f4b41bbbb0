//! What a verification looks at beside the rows.

use crate::pg::report::PgResult;
use crate::pg::spi;
use pgrx::pg_sys;

/// A copy with its indexes.
pub struct Copy {
    /// The heap.
    pub heap: pg_sys::Oid,
    /// Attribute numbers of the identity key.
    pub key: Vec<i16>,
    /// Those of its indexes that are built.
    pub indexes: Vec<pg_sys::Oid>,
    /// How long the heap is.
    pub blocks: i64,
}

/// The copies of a move, ascending.
pub fn copies(move_id: i64) -> PgResult<Vec<Copy>> {
    spi::rows(
        "SELECT i.heap, (SELECT (k.indkey::int2[])[0:k.indnkeyatts - 1] FROM foreshard.move_relation r \
                           JOIN pg_catalog.pg_index k ON k.indexrelid = r.identity_index \
                          WHERE r.move_id = $1 AND r.source = pg_catalog.min(i.source)), \
                pg_catalog.array_agg(DISTINCT i.shadow_index ORDER BY i.shadow_index), \
                coalesce(pg_catalog.pg_relation_size(i.heap) / pg_catalog.current_setting('block_size')::int8, 0) \
         FROM foreshard.move_index i WHERE i.move_id = $1 AND i.built GROUP BY i.heap ORDER BY i.heap",
        &[move_id.into()],
        |row| {
            Ok(Copy {
                heap: row.need(1)?,
                key: row.get(2)?.unwrap_or_default(),
                indexes: row.need::<Vec<pg_sys::Oid>>(3)?,
                blocks: row.need(4)?,
            })
        },
    )
}

/// Blocks of the sources of a move.
pub fn source_blocks(move_id: i64) -> PgResult<i64> {
    let blocks = spi::one::<i64>(
        "SELECT pg_catalog.sum(pg_catalog.pg_relation_size(source) / pg_catalog.current_setting('block_size')::int8)::int8 \
         FROM foreshard.move_relation WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(blocks.unwrap_or(0))
}

/// The name of the index that one of a copy stands for.
pub fn index_name(move_id: i64, shadow_index: pg_sys::Oid) -> PgResult<String> {
    let name = spi::one::<String>(
        "SELECT pg_catalog.min(source_index)::pg_catalog.regclass::text FROM foreshard.move_index WHERE move_id = $1 AND shadow_index = $2",
        &[move_id.into(), shadow_index.into()],
    )?;
    Ok(name.unwrap_or_default())
}
