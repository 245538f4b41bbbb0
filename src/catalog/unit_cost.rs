//! Unit costs: what the settings say, and what was measured per slot and table.

use crate::pg::guc;
use crate::pg::report::PgResult;
use crate::pg::spi::{self, Arg};
use foreshard_core::heat::UnitCosts;
use foreshard_core::profile::CostWeights;
use foreshard_core::unit_cost::Sampled;
use pgrx::pg_sys::Oid;

/// Cost units per operation, as set.
pub fn configured() -> UnitCosts {
    UnitCosts {
        scan: guc::SCAN_COST.get(),
        row_read: guc::ROW_COST.get(),
        write: guc::WRITE_COST.get(),
        block_read: guc::BLOCK_READ_COST.get(),
        block_hit: guc::BLOCK_HIT_COST.get(),
        wal_kb: guc::WAL_KB_COST.get(),
    }
}

/// Cost units per unit of a resource, as set. Blocks found in shared buffers cost CPU time, which is
/// measured; blocks made dirty cost WAL, which is counted.
pub fn weights() -> CostWeights {
    CostWeights {
        cpu_ms: 1.0,
        block_hit: 0.0,
        block_read: guc::BLOCK_READ_COST.get(),
        block_dirtied: 0.0,
        wal_kb: guc::WAL_KB_COST.get(),
        temp_block: guc::TEMP_BLOCK_COST.get(),
        memory_mb: guc::MEMORY_MB_COST.get(),
    }
}

/// What was measured of a slot in one of its tables.
pub struct Measured {
    /// The partitioned table.
    pub table: u32,
    /// The slot.
    pub slot_id: i64,
    /// When the sums were true, seconds since the epoch; they decay from then on.
    pub at_s: f64,
    /// The sums; what the unit costs predict is not among them, because settings change.
    pub sums: Sampled,
}

/// The sums as they are stored.
pub const SUMS: [&str; 15] = [
    "statements",
    "scans",
    "rows_read",
    "blocks_hit",
    "blocks_read",
    "read_cpu_ms",
    "rows_written",
    "write_cpu_ms",
    "wal_bytes",
    "trigger_calls",
    "trigger_cost_units",
    "result_bytes",
    "elapsed_ms",
    "blocks_dirtied",
    "temp_blocks",
];
/// The same in memory, in the same order.
const OF: [fn(&Sampled) -> f64; SUMS.len()] = [
    |s| s.statements,
    |s| s.scans,
    |s| s.rows_read,
    |s| s.blocks_hit,
    |s| s.blocks_read,
    |s| s.read_cpu_ms,
    |s| s.rows_written,
    |s| s.write_cpu_ms,
    |s| s.wal_bytes,
    |s| s.trigger_calls,
    |s| s.trigger_cost_units,
    |s| s.result_bytes,
    |s| s.elapsed_ms,
    |s| s.blocks_dirtied,
    |s| s.temp_blocks,
];

/// Where they are stored: of partitions of managed tables, and of shards of Citus; each with the table that says where there are any.
const STORES: [(&str, &str); 2] = [("slot_cost", "slot_partition"), ("citus_slot_cost", "citus_shard")];

/// Everything that is stored.
pub fn measured() -> PgResult<Vec<Measured>> {
    let sums = SUMS.join(", ");
    let all = STORES.map(|(store, _)| {
        format!(
            "SELECT table_oid::oid, slot_id, extract(epoch FROM measured_at)::float8, {sums} FROM foreshard.{store}"
        )
    });
    spi::rows(&all.join(" UNION ALL "), &[], |row| {
        Ok(Measured {
            table: row.need::<Oid>(1)?.to_u32(),
            slot_id: row.need(2)?,
            at_s: row.need(3)?,
            sums: Sampled {
                statements: row.need(4)?,
                scans: row.need(5)?,
                rows_read: row.need(6)?,
                blocks_hit: row.need(7)?,
                blocks_read: row.need(8)?,
                read_cpu_ms: row.need(9)?,
                rows_written: row.need(10)?,
                write_cpu_ms: row.need(11)?,
                wal_bytes: row.need(12)?,
                trigger_calls: row.need(13)?,
                trigger_cost_units: row.need(14)?,
                result_bytes: row.need(15)?,
                elapsed_ms: row.need(16)?,
                blocks_dirtied: row.need(17)?,
                temp_blocks: row.need(18)?,
                ..Sampled::default()
            },
        })
    })
}

/// Stores these sums; those of slots and tables that are gone are passed over.
pub fn store(measured: &[Measured]) -> PgResult<()> {
    if measured.is_empty() {
        return Ok(());
    }
    let mut args: Vec<Arg> = vec![
        measured.iter().map(|m| Oid::from(m.table)).collect::<Vec<_>>().into(),
        measured.iter().map(|m| m.slot_id).collect::<Vec<_>>().into(),
        measured.iter().map(|m| m.at_s).collect::<Vec<_>>().into(),
    ];
    args.extend(OF.map(|of| measured.iter().map(|m| of(&m.sums)).collect::<Vec<_>>().into()));
    for (store, places) in STORES {
        spi::run(&insertion(store, places), &args)?;
    }
    Ok(())
}

/// The statement that stores what belongs there.
fn insertion(store: &str, places: &str) -> String {
    let all = |each: fn(usize) -> String, count: usize| (1..=count).map(each).collect::<Vec<_>>().join(", ");
    let names = all(|n| format!("c{n}"), SUMS.len());
    format!(
        "INSERT INTO foreshard.{store} (table_oid, slot_id, measured_at, {}) \
         SELECT q.t::regclass, q.s, pg_catalog.to_timestamp(q.at), {names} FROM ROWS FROM ({}) AS q (t, s, at, {names}) \
         WHERE EXISTS (SELECT FROM foreshard.{places} p WHERE p.slot_id = q.s AND p.table_oid = q.t) \
         ON CONFLICT (slot_id, table_oid) DO UPDATE SET measured_at = excluded.measured_at, {}",
        SUMS.join(", "),
        all(|n| format!("pg_catalog.unnest(${n})"), SUMS.len() + 3),
        SUMS.map(|sum| format!("{sum} = excluded.{sum}")).join(", ")
    )
}

/// A slot has become others, given with their shares of its load: what was measured is theirs as well.
pub fn divide(slot_id: i64, parts: &[(i64, f64)]) -> PgResult<()> {
    STORES.iter().try_for_each(|(store, _)| divide_in(store, slot_id, parts))
}

fn divide_in(store: &str, slot_id: i64, parts: &[(i64, f64)]) -> PgResult<()> {
    let others: Vec<(i64, f64)> = parts.iter().copied().filter(|(slot, _)| *slot != slot_id).collect();
    let kept: f64 = parts.iter().filter(|(slot, _)| *slot == slot_id).map(|(_, share)| share).sum();
    let products = |share: &str| SUMS.map(|sum| format!("o.{sum} * {share}")).join(", ");
    spi::run(
        &format!(
            "INSERT INTO foreshard.{store} (slot_id, table_oid, measured_at, {}) SELECT n.slot_id, o.table_oid, o.measured_at, {} \
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($3)) AS n (slot_id, share) \
             JOIN foreshard.{store} o ON o.slot_id = $1 ON CONFLICT DO NOTHING",
            SUMS.join(", "),
            products("n.share")
        ),
        &[
            slot_id.into(),
            others.iter().map(|(slot, _)| *slot).collect::<Vec<_>>().into(),
            others.iter().map(|(_, share)| *share).collect::<Vec<_>>().into(),
        ],
    )?;
    spi::run(
        &format!(
            "UPDATE foreshard.{store} o SET ({}) = ROW ({}) WHERE o.slot_id = $1",
            SUMS.join(", "),
            products("$2")
        ),
        &[slot_id.into(), kept.into()],
    )?;
    Ok(())
}
