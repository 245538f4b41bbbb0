//! What foreshard sees, read through its views.

use foreshard_test::{Client, Result};
use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

/// The mean load of slots over a time, and where they were at its end.
#[derive(Default)]
pub struct Observed {
    sums: BTreeMap<i64, (f64, u32)>,
    /// The shard of each slot.
    pub shard_of: BTreeMap<i64, String>,
    seen: HashSet<(i64, String)>,
}

impl Observed {
    /// Reads the heat map once; readings already seen are not counted twice.
    pub fn read(&mut self, client: &mut Client) -> Result<()> {
        let rows =
            client.exec("SELECT slot_id, shard, cost_units_per_s, observed_at FROM foreshard.heat_map")?;
        for row in 0..rows.len() {
            let Some(slot) = rows.parse::<i64>(row, "slot_id") else {
                continue;
            };
            if let Some(shard) = rows.field(row, "shard") {
                self.shard_of.insert(slot, shard.to_string());
            }
            let load = rows.parse::<f64>(row, "cost_units_per_s");
            let at = rows.field(row, "observed_at").map(str::to_string);
            if let (Some(load), Some(at)) = (load, at)
                && self.seen.insert((slot, at))
            {
                let sum = self.sums.entry(slot).or_default();
                sum.0 += load;
                sum.1 += 1;
            }
        }
        Ok(())
    }

    /// Reads for a while.
    pub fn over(client: &mut Client, time: Duration) -> Result<Observed> {
        let mut observed = Observed::default();
        let end = Instant::now() + time;
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(500));
            observed.read(client)?;
        }
        Ok(observed)
    }

    /// Mean load per slot, in cost units per second; 0 for one never read.
    pub fn loads(&self) -> BTreeMap<i64, f64> {
        self.shard_of
            .keys()
            .map(|slot| {
                let (sum, count) = self.sums.get(slot).copied().unwrap_or_default();
                (*slot, sum / f64::from(count.max(1)))
            })
            .collect()
    }
}

/// Load of each shard, in the order of `shards`.
pub fn per_shard(loads: &BTreeMap<i64, f64>, shard_of: &BTreeMap<i64, String>, shards: &[&str]) -> Vec<f64> {
    let mut sums = vec![0.0; shards.len()];
    for (slot, load) in loads {
        let place = shard_of.get(slot).map(String::as_str);
        if let Some(index) = shards.iter().position(|&shard| Some(shard) == place) {
            sums[index] += load;
        }
    }
    sums
}

/// The busiest shard's load as a multiple of the mean, 1 when nothing is loaded.
pub fn imbalance(shards: &[f64]) -> f64 {
    let mean = shards.iter().sum::<f64>() / shards.len().max(1) as f64;
    if mean > 0.0 { shards.iter().copied().fold(0.0, f64::max) / mean } else { 1.0 }
}
