//! Unit costs: what the settings say, and what was measured per slot and table.

use crate::pg::guc;
use foreshard_core::heat::UnitCosts;
use foreshard_core::profile::CostWeights;

/// Cost units per operation, as set.
pub fn configured() -> UnitCosts {
    UnitCosts {
        scan: guc::SCAN_COST.get(),
        row_read: guc::ROW_COST.get(),
        write: guc::WRITE_COST.get(),
        block_read: guc::BLOCK_READ_COST.get(),
        block_hit: guc::BLOCK_HIT_COST.get(),
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
