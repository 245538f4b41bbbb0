//! Splits of slots of Citus: asking for one, what speaks against it, and the single statement that makes it. Citus divides all
//! colocated shards at given hashes, each part to a node of its own, and never brings them together again.

use super::{counters, layout, moving};
use crate::catalog::{moves, node, request, split};
use crate::pg::report::{self, PgResult, bad_argument, internal, unknown, unsupported, wrong_state};
use crate::pg::spi;
use foreshard_core::hash_range::{HashRange, shares};
use serde_json::{Value, json};

/// One of the slots that a slot shall become.
pub struct Piece {
    /// Its hashes.
    pub range: HashRange,
    /// Where it shall be.
    pub shard_id: i32,
}

/// The hashes of a slot; None: it is no slot of Citus.
pub fn range_of(slot_id: i64) -> PgResult<Option<HashRange>> {
    let found = spi::rows(
        "SELECT hash_from, hash_to FROM foreshard.slot WHERE slot_id = $1 AND hash_from IS NOT NULL",
        &[slot_id.into()],
        |row| Ok(HashRange { from: row.need(1)?, to: row.need(2)? }),
    )?;
    Ok(found.into_iter().next())
}

/// Everything that speaks against dividing a slot.
pub fn reasons(slot_id: i64) -> PgResult<Vec<String>> {
    let mut found = spi::rows(
        "SELECT 'single_shard: ' || m.table_oid::text || ' has no distribution column' FROM foreshard.citus_table m \
         WHERE m.key_column IS NULL AND m.table_oid IN (SELECT t.table_oid FROM foreshard.citus_shard t WHERE t.slot_id = $1) ORDER BY 1",
        &[slot_id.into()],
        |row| row.need::<String>(1),
    )?;
    if range_of(slot_id)?.is_none_or(|range| range.from == range.to) {
        found.push("one_hash: it holds a single hash".to_string());
    }
    Ok(found)
}

/// Files the split of a slot into two halves of its hashes.
///
/// # Errors
/// Those of `file`; 0A000 it cannot be built ahead.
pub fn file_halves(slot_id: i64, targets: &[Option<&str>], user: &str, prepare: bool) -> PgResult<i64> {
    if prepare {
        return Err(unsupported(format!("a split of slot {slot_id} cannot be prepared"))
            .set_detail("It is a slot of Citus, which copies and switches over in one statement.")
            .set_hint(format!("SELECT foreshard.split_slot({slot_id});")));
    }
    let range = range_of(slot_id)?.ok_or_else(|| internal(format!("slot {slot_id} is not of Citus")))?;
    let halves = range.halves().unwrap_or([range; 2]);
    let pieces = targets
        .iter()
        .zip(halves)
        .map(|(target, range)| Ok(Piece { range, shard_id: shard_named(slot_id, *target)? }))
        .collect::<PgResult<Vec<Piece>>>()?;
    file(slot_id, &pieces, None, user, json!({"split": slot_id, "shards": targets}))
}

/// Files that one hash of a slot, which is that of a key, gets a slot by itself, on the shard named or where it is; None: it
/// has one there already.
///
/// # Errors
/// Those of `file`.
pub fn file_alone(
    slot_id: i64,
    (hash, share): (i32, Option<f64>),
    shard: Option<&str>,
    user: &str,
) -> PgResult<Option<i64>> {
    let range = range_of(slot_id)?.ok_or_else(|| internal(format!("slot {slot_id} is not of Citus")))?;
    let (present, wanted) = (shard_named(slot_id, None)?, shard_named(slot_id, shard)?);
    let ranges = range.around(hash);
    if ranges.is_empty() {
        return Err(internal(format!("hash {hash} is not one of slot {slot_id}")));
    }
    if let [_] = ranges.as_slice() {
        let Some(shard) = shard.filter(|_| wanted != present) else { return Ok(None) };
        let map = serde_json::Map::from_iter([(slot_id.to_string(), Value::from(shard))]);
        return Ok(moves::file_map(&map, None, user)?.1.first().copied());
    }
    let place = |range: HashRange| {
        let is_alone = range.from == hash && range.to == hash;
        Piece { range, shard_id: if is_alone { wanted } else { present } }
    };
    let pieces: Vec<Piece> = ranges.into_iter().map(place).collect();
    let asked = json!({"isolate": 1, "split": slot_id, "shard": shard});
    file(slot_id, &pieces, share.map(|share| (hash, share)), user, asked).map(Some)
}

/// The shard named, or that of the slot.
fn shard_named(slot_id: i64, name: Option<&str>) -> PgResult<i32> {
    let found = spi::rows(
        "SELECT s.shard_id, h.shard_id, coalesce(h.draining, false) FROM foreshard.slot s LEFT JOIN foreshard.shard h ON h.shard_name = $2::name \
         WHERE s.slot_id = $1",
        &[slot_id.into(), name.into()],
        |row| Ok((row.need::<i32>(1)?, row.get::<i32>(2)?, row.need::<bool>(3)?)),
    )?;
    let Some((present, named, draining)) = found.into_iter().next() else {
        return Err(unknown(format!("slot {slot_id} does not exist")));
    };
    match (name, named) {
        (None, _) => Ok(present),
        (Some(name), None) => {
            Err(unknown(format!("shard \"{name}\" does not exist"))
                .set_hint("See the view foreshard.shards."))
        }
        (Some(name), Some(shard)) if draining && shard != present => {
            Err(bad_argument(format!("shard \"{name}\" is being drained")))
        }
        (Some(_), Some(shard)) => Ok(shard),
    }
}

/// Files a split; the first piece keeps the slot's id. `alone`: a hash that is a piece by itself, and its share of the load.
///
/// # Errors
/// 0A000 with every reason why the slot cannot be split, or a shard is not of Citus; 22023 a node takes no shards; 08006 one does
/// not answer; 53400 too many slots; 55006 already moving, or somebody else moves shards.
fn file(
    slot_id: i64,
    pieces: &[Piece],
    alone: Option<(i32, f64)>,
    user: &str,
    asked: Value,
) -> PgResult<i64> {
    let present = split::slot(slot_id)?;
    if present.moving {
        return Err(moves::already_moving(slot_id));
    }
    report::refuse(
        format!("slot {slot_id} cannot be split"),
        &reasons(slot_id)?,
        "Move the whole slot with foreshard.move_slot().",
    )?;
    split::require_room(slot_id, &present, pieces.len())?;
    moving::require_alone()?;
    for piece in pieces {
        if piece.shard_id != present.shard_id {
            moving::check(slot_id, piece.shard_id)?;
        }
        node::require_up(piece.shard_id)?;
    }
    let request_id = request::file(user, present.group_id, &asked)?;
    let first = pieces.first().map_or(present.shard_id, |piece| piece.shard_id);
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard) VALUES ($1, 'split', $2, $3, $4) \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[request_id.into(), slot_id.into(), present.shard_id.into(), first.into()],
    )?
    .ok_or_else(|| moves::already_moving(slot_id))?;
    let ranges: Vec<HashRange> = pieces.iter().map(|piece| piece.range).collect();
    let (count, known) = (pieces.len() as i32, shares(&ranges, alone));
    for ((part, piece), share) in (0..count).zip(pieces).zip(known) {
        spi::run(
            "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id, hash_from, hash_to, share) VALUES ($1, $2, $3, $2, $4, $5, $6, $7)",
            &[
                move_id.into(),
                part.into(),
                count.into(),
                piece.shard_id.into(),
                piece.range.from.into(),
                piece.range.to.into(),
                share.into(),
            ],
        )?;
    }
    Ok(move_id)
}

/// What a split shall make of its slot.
pub fn pieces(move_id: i64) -> PgResult<Vec<Piece>> {
    spi::rows(
        "SELECT hash_from, hash_to, shard_id FROM foreshard.move_part WHERE move_id = $1 AND hash_from IS NOT NULL ORDER BY part",
        &[move_id.into()],
        |row| {
            let range = HashRange { from: row.need(1)?, to: row.need(2)? };
            Ok(Piece { range, shard_id: row.need(3)? })
        },
    )
}

/// Whether Citus has made the split, also when nobody has said so yet.
pub fn is_done(move_id: i64) -> PgResult<bool> {
    layout::follow()?;
    let sql = "SELECT bool_and(slot_id IS NOT NULL) FROM foreshard.move_part WHERE move_id = $1";
    Ok(spi::one::<bool>(sql, &[move_id.into()])?.unwrap_or(false))
}

/// Checks that a split is still one of its slot.
///
/// # Errors
/// 55000 somebody else has divided the slot since; 0A000 something speaks against it now.
pub fn check(move_id: i64, slot_id: i64) -> PgResult<()> {
    let ranges: Vec<HashRange> = pieces(move_id)?.iter().map(|piece| piece.range).collect();
    if range_of(slot_id)?.is_none_or(|whole| !whole.is_made_of(&ranges)) {
        return Err(wrong_state(format!("slot {slot_id} is no longer what it was"))
            .set_detail("Somebody else has divided it since."));
    }
    report::refuse(format!("slot {slot_id} cannot be split"), &reasons(slot_id)?, "Move the whole slot.")
}

/// Has Citus divide all shards of a slot, in this transaction, which must have no id yet (see [`moving::carry`]); writers wait only
/// for its end.
///
/// # Errors
/// Those of `citus_split_shard_by_split_points`.
pub fn carry(move_id: i64, slot_id: i64) -> PgResult<()> {
    let shard = counters::first_shard(slot_id)?;
    let pieces = pieces(move_id)?;
    let (last, before) = pieces.split_last().ok_or_else(|| internal("a split without parts"))?;
    let points: Vec<String> = before.iter().map(|piece| piece.range.to.to_string()).collect();
    let mut nodes = Vec::with_capacity(pieces.len());
    for piece in before.iter().chain([last]) {
        let node = spi::one::<i32>(
            "SELECT o.citus_node FROM foreshard.shard h JOIN foreshard.node o USING (node_name) WHERE h.shard_id = $1",
            &[piece.shard_id.into()],
        )?;
        nodes.push(node.ok_or_else(|| internal("a node of a split is gone"))?);
    }
    spi::rows(
        "SELECT pg_catalog.citus_split_shard_by_split_points($1, $2, $3) IS NULL",
        &[shard.into(), points.into(), nodes.into()],
        |_| Ok(()),
    )
    .map(drop)
}

/// Notes that the slot has become several, which [`layout::follow`] has seen.
pub fn set_swapped(move_id: i64) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.move SET swapped_at = pg_catalog.clock_timestamp(), gave_way = 0, not_before = NULL WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(())
}
