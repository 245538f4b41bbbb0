//! Forecasts that are not relied on, because they did not cover what came: plans then stand on what was seen.

use super::{Curve, futures};
use crate::catalog::forecast_error;
use crate::pg::report::PgResult;
use foreshard_core::coverage::{Coverage, as_it_was, mix_in_days_seen, to_be_replaced};
use foreshard_core::forecast::{ForecastOptions, Series};
use std::collections::{BTreeMap, HashMap};

/// How much of what came lately the forecasts of each slot covered.
#[derive(Default)]
pub(super) struct Reliance {
    by_slot: HashMap<i64, Coverage>,
}

impl Reliance {
    /// Of forecasts of buckets of one length.
    pub(super) fn read(resolution_s: i32) -> PgResult<Self> {
        Ok(Self { by_slot: forecast_error::coverage(resolution_s)? })
    }

    /// Of one slot.
    pub(super) fn of(&self, slot_id: i64) -> Coverage {
        self.by_slot.get(&slot_id).copied().unwrap_or_default()
    }

    /// Puts what was seen in the place of the curves that are not relied on, and of some futures of the others; `end_s` is the end of the
    /// last bucket.
    pub(super) fn correct(
        &self,
        curves: &mut BTreeMap<i64, Curve>,
        all: &BTreeMap<i64, Series>,
        end_s: i64,
        options: &ForecastOptions,
    ) {
        let mean = |curve: &Curve| curve.mean.iter().sum::<f64>() / curve.mean.len().max(1) as f64;
        let segments: Vec<_> = curves.iter().map(|(slot, curve)| (mean(curve), self.of(*slot))).collect();
        let replaced = to_be_replaced(&segments, options.interval_level);
        for ((slot_id, curve), replaced) in curves.iter_mut().zip(replaced) {
            let Some(series) = all.get(slot_id) else { continue };
            let step_s = series.step_s.max(1);
            // Buckets that are not known yet are gaps.
            let buckets = usize::try_from((end_s - series.start_s) / i64::from(step_s)).unwrap_or(0);
            let mut values = series.values.clone();
            values.resize(buckets.max(values.len()).min(2 * super::MAX_HISTORY), None);
            let day = (options.season_s / step_s) as usize;
            if !replaced {
                mix_in_days_seen(&mut curve.futures, &values, day);
            } else if let Some((mean, futures)) =
                as_it_was(&values, day, curve.mean.len(), futures(curve.mean.len()) as usize)
            {
                *curve = Curve { mean, futures };
            }
        }
    }
}
