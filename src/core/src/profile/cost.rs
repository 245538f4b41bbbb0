//! Cost units: what different resources have in common. One is one millisecond of CPU.

use super::{FEATURES, Model, Prediction, RESOURCES, Resource};

/// Cost units of each resource.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostWeights {
    /// One millisecond of CPU: 1 by definition of the unit.
    pub cpu_ms: f64,
    /// One block found in shared buffers.
    pub block_hit: f64,
    /// One block read from outside shared buffers.
    pub block_read: f64,
    /// One block made dirty, which somebody has to write.
    pub block_dirtied: f64,
    /// One KiB of write-ahead log.
    pub wal_kb: f64,
    /// One block of a temporary file.
    pub temp_block: f64,
    /// One MiB of memory for the length of a call.
    pub memory_mb: f64,
}

impl Default for CostWeights {
    /// Guesses for a machine nothing has been measured on yet: [`crate::heat::UnitCosts`] where both
    /// have the unit. Hits and memory are 0, because their price is CPU time that was measured.
    fn default() -> Self {
        Self {
            cpu_ms: 1.0,
            block_hit: 0.0,
            block_read: 0.1,
            block_dirtied: 0.05,
            wal_kb: 0.01,
            temp_block: 0.05,
            memory_mb: 0.0,
        }
    }
}

impl CostWeights {
    /// Cost units per unit of `resource`. Elapsed time has the price of CPU time: it only counts
    /// where CPU time cannot be seen. A weight that is negative or not finite counts as 0.
    pub fn of(&self, resource: Resource) -> f64 {
        let weight = match resource {
            Resource::CpuUs | Resource::ElapsedUs => self.cpu_ms / 1e3,
            Resource::MemoryBytes => self.memory_mb / 1_048_576.0,
            Resource::BlocksHit => self.block_hit,
            Resource::BlocksRead => self.block_read,
            Resource::BlocksDirtied => self.block_dirtied,
            Resource::WalBytes => self.wal_kb / 1_024.0,
            Resource::TempBlocks => self.temp_block,
        };
        if weight.is_finite() { weight.max(0.0) } else { 0.0 }
    }
}

/// Cost units of one call, given its outcomes in the order of [`Resource::ALL`].
///
/// Elapsed time stands in where CPU time cannot be seen. Any other unseen resource adds nothing, so
/// the result is then a lower bound.
pub fn cost_units(outcomes: &[Option<f64>; RESOURCES], weights: &CostWeights) -> f64 {
    let seen = |resource: Resource| outcomes[resource.index()].filter(|value| value.is_finite());
    priced(seen(Resource::CpuUs).is_some())
        .filter_map(|resource| Some(seen(resource)?.max(0.0) * weights.of(resource)))
        .sum()
}

/// Predicted cost units of one call with these features.
///
/// `None` when neither CPU nor elapsed time has a model: the cost is unknown. The resources of one
/// call rise and fall together, so the ends of their intervals are added, which is never too narrow.
pub fn cost_of(
    models: &[Option<Model>; RESOURCES],
    features: &[f64; FEATURES],
    weights: &CostWeights,
) -> Option<Prediction> {
    let of = |resource: Resource| models[resource.index()].as_ref();
    let cpu_is_seen = of(Resource::CpuUs).is_some();
    if !cpu_is_seen && of(Resource::ElapsedUs).is_none() {
        return None;
    }
    let mut sum = Prediction::default();
    for resource in priced(cpu_is_seen) {
        if let Some(model) = of(resource) {
            let (part, weight) = (model.predict(features), weights.of(resource));
            sum.value += part.value * weight;
            sum.lower += part.lower * weight;
            sum.upper += part.upper * weight;
        }
    }
    Some(sum)
}

/// The resources that are paid for: one of the two clocks, and all others.
fn priced(cpu_is_seen: bool) -> impl Iterator<Item = Resource> {
    let unpaid = if cpu_is_seen { Resource::ElapsedUs } else { Resource::CpuUs };
    Resource::ALL.into_iter().filter(move |resource| *resource != unpaid)
}

/// The sum of calls × prediction over several triggers.
///
/// Assumes that the errors of calls are independent of each other, within one trigger and between
/// triggers: the half-widths then grow with √calls within one, and add in quadrature between them. An
/// error all calls share (a model that is too low) is not in the interval. Pairs whose number of
/// calls is negative or not finite are left out.
pub fn total(parts: &[(Prediction, f64)]) -> Prediction {
    let (mut value, mut below, mut above) = (0.0, 0.0, 0.0);
    for (part, calls) in parts.iter().filter(|(_, calls)| calls.is_finite() && *calls >= 0.0) {
        value += part.value * calls;
        below += (part.value - part.lower).powi(2) * calls;
        above += (part.upper - part.value).powi(2) * calls;
    }
    Prediction { value, lower: (value - below.sqrt()).max(0.0), upper: value + above.sqrt() }
}
