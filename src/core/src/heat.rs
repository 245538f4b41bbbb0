//! From cumulative counters to rates, cost and decayed heat.
//!
//! Counters come exactly and for free from `pg_stat_*`; samples of executed statements only supply
//! the unit costs. Unknown stays unknown: a reset counter yields `None`, never 0.

/// Cumulative counters of one slot, as `pg_stat_*` reports them.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Counters {
    /// Sequential and index scans started.
    pub scans: u64,
    /// Rows read by those scans.
    pub rows_read: u64,
    /// Rows inserted.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// Blocks (heap and indexes) read from outside shared buffers.
    pub blocks_read: u64,
    /// Blocks (heap and indexes) found in shared buffers.
    pub blocks_hit: u64,
}

/// Counter rates of one slot over one bucket, all per second.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub struct Rates {
    /// Scans per second.
    pub scans_per_s: f64,
    /// Rows read per second.
    pub rows_read_per_s: f64,
    /// Rows inserted, updated or deleted per second.
    pub writes_per_s: f64,
    /// Blocks read per second.
    pub blocks_read_per_s: f64,
    /// Blocks hit per second.
    pub blocks_hit_per_s: f64,
}

/// Cost units (milliseconds of CPU or their equivalent) of one event of each kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitCosts {
    /// One scan started.
    pub scan: f64,
    /// One row read.
    pub row_read: f64,
    /// One row written.
    pub write: f64,
    /// One block read from outside shared buffers.
    pub block_read: f64,
    /// One block found in shared buffers.
    pub block_hit: f64,
    /// One KiB of write-ahead log; only where WAL is measured ([`crate::unit_cost::load`]).
    pub wal_kb: f64,
}

impl Default for UnitCosts {
    /// Guesses for a machine nothing has been measured on yet.
    fn default() -> Self {
        Self { scan: 0.02, row_read: 0.001, write: 0.05, block_read: 0.1, block_hit: 0.001, wal_kb: 0.01 }
    }
}

/// Rates between two readings `elapsed_s` seconds apart.
///
/// `None` when any counter went backwards (statistics reset, crash) or `elapsed_s` is not a finite
/// number above 0: then the bucket is unknown, which is not the same as idle.
pub fn rates(previous: &Counters, current: &Counters, elapsed_s: f64) -> Option<Rates> {
    if !elapsed_s.is_finite() || elapsed_s <= 0.0 {
        return None;
    }
    let per_s = |delta: u64| delta as f64 / elapsed_s;
    let inserted = current.inserted.checked_sub(previous.inserted)?;
    let updated = current.updated.checked_sub(previous.updated)?;
    let deleted = current.deleted.checked_sub(previous.deleted)?;
    Some(Rates {
        scans_per_s: per_s(current.scans.checked_sub(previous.scans)?),
        rows_read_per_s: per_s(current.rows_read.checked_sub(previous.rows_read)?),
        writes_per_s: per_s(inserted.saturating_add(updated).saturating_add(deleted)),
        blocks_read_per_s: per_s(current.blocks_read.checked_sub(previous.blocks_read)?),
        blocks_hit_per_s: per_s(current.blocks_hit.checked_sub(previous.blocks_hit)?),
    })
}

/// Load in cost units per second: rates times unit costs.
pub fn cost_units_per_s(rates: &Rates, costs: &UnitCosts) -> f64 {
    rates.scans_per_s * costs.scan
        + rates.rows_read_per_s * costs.row_read
        + rates.writes_per_s * costs.write
        + rates.blocks_read_per_s * costs.block_read
        + rates.blocks_hit_per_s * costs.block_hit
}

/// Exponentially decayed heat: an average of `rate` that forgets half of the past every
/// `half_life_s` seconds.
///
/// In the unit of `rate`; a steady rate is its own heat, whatever the bucket length. Without time
/// passed (`elapsed_s` not above 0) the heat is unchanged; a `half_life_s` not above 0 remembers
/// nothing. A `rate` that is not finite is unknown and leaves the heat unchanged.
pub fn decayed_heat(previous_heat: f64, rate: f64, elapsed_s: f64, half_life_s: f64) -> f64 {
    if elapsed_s.is_nan() || elapsed_s <= 0.0 || !rate.is_finite() {
        return previous_heat;
    }
    if half_life_s.is_nan() || half_life_s <= 0.0 {
        return rate;
    }
    let kept = (-elapsed_s / half_life_s).exp2();
    previous_heat * kept + rate * (1.0 - kept)
}

/// Whether something that was done at `last_s` and is due every `every_s` is due at `now_s`. By a clock that was set back it
/// is: else it would wait until the clock is where it was.
pub fn is_due(last_s: f64, now_s: f64, every_s: f64) -> bool {
    now_s < last_s || now_s - last_s >= every_s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_back_holds_nothing_up() {
        assert!(is_due(100.0, 160.0, 60.0) && !is_due(100.0, 159.0, 60.0));
        assert!(is_due(1e9, 100.0, 60.0) && is_due(0.0, 1e9, 60.0));
    }

    #[test]
    fn rates_and_costs() {
        let previous = Counters { scans: 10, rows_read: 100, inserted: 1, ..Counters::default() };
        let current = Counters {
            scans: 30,
            rows_read: 1_100,
            inserted: 11,
            updated: 20,
            deleted: 10,
            blocks_read: 50,
            blocks_hit: 500,
        };
        let got = rates(&previous, &current, 10.0);
        let want = Rates {
            scans_per_s: 2.0,
            rows_read_per_s: 100.0,
            writes_per_s: 4.0,
            blocks_read_per_s: 5.0,
            blocks_hit_per_s: 50.0,
        };
        assert_eq!(got, Some(want));
        let cost = cost_units_per_s(&want, &UnitCosts::default());
        assert!((cost - (0.04 + 0.1 + 0.2 + 0.5 + 0.05)).abs() < 1e-12);
    }

    #[test]
    fn a_reset_is_unknown() {
        let previous = Counters { deleted: 1, ..Counters::default() };
        assert_eq!(rates(&previous, &Counters::default(), 10.0), None);
        for elapsed_s in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(rates(&previous, &previous, elapsed_s), None);
        }
    }

    #[test]
    fn half_life_halves() {
        assert!((decayed_heat(8.0, 0.0, 60.0, 60.0) - 4.0).abs() < 1e-12);
        assert_eq!(decayed_heat(8.0, f64::NAN, 60.0, 60.0), 8.0);
        assert_eq!(decayed_heat(8.0, 3.0, 60.0, 0.0), 3.0);
        assert_eq!(decayed_heat(8.0, 3.0, 0.0, 60.0), 8.0);
    }
}
