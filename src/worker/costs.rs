//! Measured unit costs of every slot, kept by the keeper.

use crate::catalog::heat::Load;
use crate::catalog::unit_cost;
use foreshard_core::heat::{Rates, cost_units_per_s};

/// What slots were measured to cost.
#[derive(Default)]
pub struct Book {}

impl Book {
    /// The load of a slot with these rates.
    pub fn load(&self, _slot_id: i64, rates: &Rates) -> Load {
        Load {
            cost_units_per_s: cost_units_per_s(rates, &unit_cost::configured()),
            cpu_ms_per_s: None,
            wal_bytes_per_s: None,
            trigger_cost_per_s: None,
        }
    }
}
