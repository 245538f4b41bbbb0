//! Load curves of whole shards, without the plan and with it.

use super::Decision;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A shard at one lead.
pub struct CurvePoint {
    /// Shard.
    pub shard_id: i32,
    /// Start of the bucket, unix seconds.
    pub at_s: f64,
    /// Load now, cost units/s; None: nothing was observed.
    pub load_now: Option<f64>,
    /// Forecast load if nothing more moves, cost units/s; None: unknown.
    pub forecast: Option<f64>,
    /// The same once every step of the plan is done.
    pub planned: Option<f64>,
    /// What the shard can carry, cost units/s.
    pub capacity: f64,
    /// Slots on it that have no forecast and are not in the sums.
    pub unknown_slots: i64,
}

/// Sums over the slots of one shard.
#[derive(Clone, Default)]
struct Sum {
    load: f64,
    known: usize,
    unknown: usize,
}

impl Sum {
    fn add(&mut self, load: Option<f64>) {
        self.load += load.unwrap_or(0.0);
        *(if load.is_some() { &mut self.known } else { &mut self.unknown }) += 1;
    }

    /// An empty shard has no load; one of which nothing is known has an unknown one.
    fn get(&self) -> Option<f64> {
        (self.known > 0 || self.unknown == 0).then_some(self.load)
    }
}

impl Decision {
    /// Starts of the leads, unix seconds.
    pub(super) fn lead_starts(&self) -> Vec<f64> {
        let longest = self.forecasts.iter().max_by_key(|forecast| forecast.points.len());
        longest
            .map_or_else(Vec::new, |forecast| forecast.points.iter().map(|point| point.at_s as f64).collect())
    }

    /// Where every slot is once all steps are done.
    fn places_after(&self) -> BTreeMap<i64, i32> {
        let mut places: BTreeMap<i64, i32> =
            self.slots.iter().map(|slot| (slot.slot_id, slot.planned_shard())).collect();
        places.extend(self.plan.steps.iter().map(|step| (step.segment, step.to)));
        places
    }

    /// Loads of every shard at every lead; without any forecast one point per shard, for now.
    pub fn curves(&self) -> Vec<CurvePoint> {
        let forecast: BTreeSet<i64> = self.forecasts.iter().map(|forecast| forecast.slot_id).collect();
        let after = self.places_after();
        let mut starts = self.lead_starts();
        if starts.is_empty() {
            starts.push(self.made_s);
        }
        let numbers: HashMap<i32, usize> = self.places().map(|shard| shard.id).zip(0..).collect();
        let places = numbers.len();
        let sums = || vec![Sum::default(); starts.len() * places];
        let (mut now, mut without, mut with) = (vec![Sum::default(); places], sums(), sums());
        for slot in &self.slots {
            if let Some(sum) = numbers.get(&slot.shard_id).and_then(|shard| now.get_mut(*shard)) {
                sum.add(slot.observed.then_some(slot.heat));
            }
        }
        for segment in self.pools.iter().flat_map(|pool| &pool.segments) {
            pgrx::check_for_interrupts!();
            let known = forecast.contains(&segment.id);
            let place = after.get(&segment.id).copied().unwrap_or(segment.shard);
            for (sums, shard) in [(&mut without, segment.shard), (&mut with, place)] {
                let Some(shard) = numbers.get(&shard) else { continue };
                let own = sums.iter_mut().skip(shard * starts.len()).take(starts.len());
                for (lead, sum) in own.enumerate() {
                    sum.add(segment.curve.get(lead).copied().filter(|_| known));
                }
            }
        }
        let mut points = Vec::with_capacity(without.len());
        for (number, shard) in self.places().enumerate() {
            for (lead, at_s) in starts.iter().enumerate() {
                let at = number * starts.len() + lead;
                points.push(CurvePoint {
                    shard_id: shard.id,
                    at_s: *at_s,
                    load_now: now[number].get(),
                    forecast: without[at].get(),
                    planned: with[at].get(),
                    capacity: shard.capacity,
                    unknown_slots: without[at].unknown as i64,
                });
            }
        }
        points
    }
}
