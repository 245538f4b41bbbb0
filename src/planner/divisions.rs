//! Which slots to divide, to build the halves of ahead, or to merge.

use super::STAYS;
use super::modes::Modes;
use super::pools::{CITUS, Pool};
use crate::catalog::citus::tenants;
use crate::catalog::decision::{SlotRow, bytes_of};
use crate::catalog::hot_key::{self, Busiest};
use crate::catalog::wish::{Placing, text_key};
use crate::catalog::{act, colocation, division, merge, moves, place, prepared, shadow, slot_key, split};
use crate::pg::guc::{self, Mode};
use crate::pg::report::PgResult;
use foreshard_core::division::{
    BALANCED, Candidate, Keys, NotDivided, Thresholds, Verdict, judge, may_merge,
};
use foreshard_core::placement::{Hold, Segment, Shard, shared_capacities};
use foreshard_core::relief::{Carried, relieve};
use pgrx::pg_sys;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The fewest samples of a key that it is isolated upon.
const LEAST_SAMPLES: f64 = 50.0;

/// What shall become of a slot.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// It is divided now.
    Split,
    /// Its halves are built from lead `at` on; it will be too hot at lead `over`.
    Prepare {
        /// When to begin, leads.
        at: usize,
        /// When it will be too hot, leads.
        over: usize,
    },
    /// It takes up the other slot.
    Merge {
        /// The one that goes.
        other: i64,
    },
    /// Its busiest key gets a place by itself, from lead `at` on; the slot is too hot at lead `over`.
    Isolate {
        /// When to begin, leads.
        at: usize,
        /// When it will be too hot, leads.
        over: usize,
        /// A table of its.
        table: pg_sys::Oid,
        /// The key.
        key: String,
    },
    /// It is a key by itself, and goes home.
    Home {
        /// A table of its.
        table: pg_sys::Oid,
        /// The key.
        key: String,
    },
    /// It is too hot, and stays as it is.
    Not(NotDivided),
}

impl Action {
    /// The machine-readable name.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Prepare { .. } => "prepare",
            Self::Merge { .. } => "merge",
            Self::Isolate { .. } => "isolate",
            Self::Home { .. } => "home",
            Self::Not(_) => "none",
        }
    }

    /// The key that it is about, and its table.
    const fn key(&self) -> Option<(pg_sys::Oid, &String)> {
        match self {
            Self::Isolate { table, key, .. } | Self::Home { table, key } => Some((*table, key)),
            _ => None,
        }
    }

    /// Reason and advice of a refusal.
    pub const fn refusal(&self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Not(why) => Some((why.as_str(), why.advice())),
            _ => None,
        }
    }
}

/// What shall become of one slot, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Division {
    /// The slot.
    pub slot_id: i64,
    /// What to do.
    pub action: Action,
    /// The shard that the second half or the key goes to; None: it stays, or goes where it was prepared to go.
    pub to_shard: Option<i32>,
    /// Why, in words for a person.
    pub reason: String,
}

/// A slot with its loads as shares of the fair load of a mean shard.
struct Known<'a> {
    slot: &'a SlotRow,
    shape: &'a division::Shape,
    hold: Hold,
    curve: Vec<f64>,
    present: f64,
}

impl Known<'_> {
    fn peak(&self) -> f64 {
        self.curve.iter().copied().fold(self.present, f64::max)
    }
}

/// Judges every slot whose load is known, and whose tables may be planned for; halves are built in leads that are
/// `open`.
pub fn decide(slots: &[SlotRow], pool: &Pool, (modes, open): (&Modes, &[bool])) -> PgResult<Vec<Division>> {
    let (segments, places) = (pool.segments.as_slice(), pool.places.as_slice());
    let leads = segments.iter().map(|segment| segment.curve.len()).max().unwrap_or(0);
    let rows: HashMap<i64, &SlotRow> = slots.iter().map(|slot| (slot.slot_id, slot)).collect();
    let mut cluster = vec![0.0; leads];
    for segment in segments {
        cluster.iter_mut().zip(&segment.curve).for_each(|(sum, load)| *sum += load);
    }
    let active = shared_capacities(places, segments).len();
    let mean = cluster.iter().copied().fold(0.0, f64::max) / active.max(1) as f64;
    // Two halves on one shard are no better than the whole, and next to no load is no reason for anything.
    if active < 2 || mean * active as f64 <= foreshard_core::placement::PlanOptions::default().min_load {
        return Ok(Vec::new());
    }
    let shapes = division::shapes()?;
    // Nodes of Citus give no samples; it counts tenants, if it is told to.
    let (keys, busiest) = if pool.is_citus {
        (tenants::keys()?, tenants::busiest()?)
    } else {
        (slot_key::all()?, hot_key::busiest()?)
    };
    let known: Vec<Known> = segments
        .iter()
        .filter(|segment| !is_unknown(segment))
        .filter_map(|segment| {
            let slot = rows.get(&segment.id).copied().filter(|slot| modes.of(slot.group_id) != Mode::Off)?;
            let curve = segment.curve.iter().map(|load| load / mean).collect();
            let shape = shapes.get(&segment.id)?;
            Some(Known { slot, shape, hold: segment.hold, curve, present: slot.heat / mean })
        })
        .collect();
    let thresholds = Thresholds::new(guc::SPLIT_THRESHOLD.get(), guc::MERGE_THRESHOLD.get());
    // Nothing begins in a lead that is closed, however little else runs then.
    let closed = |lead: usize| open.get(lead).is_some_and(|open| !open);
    for (_, load) in cluster.iter_mut().enumerate().filter(|(lead, _)| closed(*lead)) {
        *load = f64::MAX;
    }
    let mut found = splits(&known, (&keys, &busiest), &cluster, &thresholds);
    let parts = Parts { known: &known, keys: &keys, busiest: &busiest, mean };
    parts.place(&mut found, carried(segments, places, &rows, leads));
    found.extend(merges(&known, &thresholds));
    found.extend(ways_home(&known, &thresholds)?);
    Ok(found)
}

/// Whether nothing is forecast of it.
fn is_unknown(segment: &Segment) -> bool {
    segment.futures.is_empty()
}

/// What every shard carries now and at every lead; only shards of this server take parts, and nodes of Citus those of its slots.
fn carried(
    segments: &[Segment],
    places: &[Shard],
    rows: &HashMap<i64, &SlotRow>,
    leads: usize,
) -> Vec<Carried> {
    let mut shards: Vec<Carried> = places
        .iter()
        .map(|place| Carried {
            shard: place.id,
            capacity: place.capacity,
            takes: !place.draining && place.accepts & (STAYS | CITUS) != 0,
            loads: vec![0.0; leads + 1],
        })
        .collect();
    for segment in segments {
        let Some(own) = shards.iter_mut().find(|shard| shard.shard == segment.shard) else { continue };
        let present = rows.get(&segment.id).map_or(0.0, |slot| slot.heat);
        let curve = segment.curve.iter().copied();
        own.loads.iter_mut().zip(std::iter::once(present).chain(curve)).for_each(|(sum, load)| *sum += load);
    }
    shards
}

/// What is known of the parts that slots are divided into.
struct Parts<'a> {
    known: &'a [Known<'a>],
    keys: &'a HashMap<i64, Keys>,
    busiest: &'a HashMap<i64, Busiest>,
    mean: f64,
}

impl Parts<'_> {
    /// Chooses the shard of every part, one after the other: each finds what those before it have left.
    fn place(&self, divisions: &mut [Division], mut shards: Vec<Carried>) {
        for division in divisions {
            let Some(own) = self.known.iter().find(|own| own.slot.slot_id == division.slot_id) else {
                continue;
            };
            let Some(share) = self.share(division, own.shape) else { continue };
            let loads = std::iter::once(&own.present).chain(&own.curve);
            let part: Vec<f64> = loads.map(|load| load * self.mean * share).collect();
            division.to_shard = relieve(&mut shards, own.slot.shard_id, &part);
        }
    }

    /// Share of the slot's load that its new part will have; None: it gets none, or that is prepared already.
    fn share(&self, division: &Division, shape: &division::Shape) -> Option<f64> {
        match division.action {
            Action::Split | Action::Prepare { .. } if !shape.is_prepared => {
                self.keys.get(&division.slot_id).map(|keys| keys.second_share)
            }
            Action::Isolate { .. } => {
                self.busiest.get(&division.slot_id)?.share.map(|share| share.clamp(0.0, 1.0))
            }
            _ => None,
        }
    }
}

fn splits(
    known: &[Known],
    (keys, busiest): (&HashMap<i64, Keys>, &HashMap<i64, Busiest>),
    cluster: &[f64],
    thresholds: &Thresholds,
) -> Vec<Division> {
    let mut groups: HashMap<i32, (f64, f64)> = HashMap::new();
    for one in known {
        let group = groups.entry(one.shape.group_id).or_default();
        *group = (group.0 + one.peak(), group.1 + 1.0);
    }
    let mut found = Vec::new();
    for one in known {
        let prepared = one.shape.is_prepared;
        if one.hold == Hold::InFlight && !prepared {
            continue;
        }
        let (sum, count) = groups.get(&one.shape.group_id).copied().unwrap_or((0.0, 1.0));
        let key = busiest.get(&one.slot.slot_id).filter(|key| makes_load(key));
        let candidate = Candidate {
            present: one.present,
            curve: &one.curve,
            group_mean: sum / count,
            keys: keys.get(&one.slot.slot_id).copied(),
            free: one.hold == Hold::Free || prepared,
            divisible: one.shape.divisible,
            chosen: one.shape.chosen,
            isolable: one.shape.isolable && key.is_some() && !prepared,
        };
        let action = match judge(&candidate, cluster, thresholds) {
            Verdict::Leave => continue,
            // One hot reading may pass by itself.
            Verdict::Split if one.slot.hot_buckets < guc::HOT_BUCKETS.get() => continue,
            Verdict::Isolate { over: 0, .. } if one.slot.hot_buckets < guc::HOT_BUCKETS.get() => continue,
            Verdict::Isolate { at, over } => match key {
                Some(key) => Action::Isolate { at, over, table: key.table, key: key.key.clone() },
                None => continue,
            },
            Verdict::Split => Action::Split,
            // Of what is said of one that is prepared, only this makes a difference: its halves would be of no use.
            Verdict::Not(why) if prepared && why != NotDivided::PopularKey => continue,
            Verdict::Prepare { .. } if prepared => continue,
            // Citus builds nothing ahead: it is told when it is too hot.
            Verdict::Prepare { .. } if one.slot.is_citus => continue,
            Verdict::Prepare { at, over } => Action::Prepare { at, over },
            Verdict::Not(why) => Action::Not(why),
        };
        let percent = |share: f64| (share * 100.0).round();
        let reason = format!(
            "its load is {} % of a mean shard's fair load, and will be {} %; slots are split from {} % on",
            percent(one.present),
            percent(one.peak()),
            percent(thresholds.split)
        );
        found.push(Division { slot_id: one.slot.slot_id, action, to_shard: None, reason });
    }
    found
}

/// Whether a key has a share of its slot's load that is worth a place of its own, by enough samples: a slot may be hot
/// of scans, and of its few look-ups one key be the busiest.
fn makes_load(key: &Busiest) -> bool {
    let half_life_s = f64::from(guc::HEAT_HALF_LIFE.get());
    let samples = key.accesses_per_s * half_life_s
        / std::f64::consts::LN_2
        / f64::from(guc::KEY_SAMPLE_INTERVAL.get().max(1));
    samples >= LEAST_SAMPLES && key.share.is_some_and(|share| share >= BALANCED)
}

/// Only what was split is merged: the layout that a person chose is the coarsest one.
fn merges(known: &[Known], thresholds: &Thresholds) -> Vec<Division> {
    let free = |one: &&Known| one.hold == Hold::Free && one.shape.was_split;
    let place = |one: &Known| (one.shape.group_id, one.shape.modulus, one.shape.remainder);
    let by_place: HashMap<_, &Known> = known.iter().filter(free).map(|one| (place(one), one)).collect();
    let mut found = Vec::new();
    for a in known.iter().filter(free) {
        let (group, modulus, remainder) = place(a);
        let Some(b) = by_place.get(&(group, modulus, remainder + modulus / 2)) else { continue };
        if may_merge([a.present, b.present], [&a.curve, &b.curve], thresholds) {
            let reason = format!(
                "it and slot {} stay below {} % of a mean shard's fair load together",
                b.slot.slot_id,
                (thresholds.merge * 100.0).round()
            );
            found.push(Division {
                slot_id: a.slot.slot_id,
                action: Action::Merge { other: b.slot.slot_id },
                to_shard: None,
                reason,
            });
        }
    }
    found
}

/// Keys that the planner isolated, and that are and will be cold together with the slot that they belong to. What a
/// person isolated stays.
fn ways_home(known: &[Known], thresholds: &Thresholds) -> PgResult<Vec<Division>> {
    let free = |one: &&Known| one.hold == Hold::Free;
    let homes: HashMap<i64, &Known> = known.iter().filter(free).map(|one| (one.slot.slot_id, one)).collect();
    let (mut found, mut isolated) = (Vec::new(), HashMap::new());
    for one in known.iter().filter(free) {
        let home = one.shape.isolated_of.and_then(|home| homes.get(&home));
        let Some(home) = home else { continue };
        if !may_merge([one.present, home.present], [&one.curve, &home.curve], thresholds) {
            continue;
        }
        let Some((table, _)) = moves::tables_of_slot(one.slot.slot_id)?.into_iter().next() else { continue };
        let keys = match isolated.entry(table) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(place::isolated_keys(table)?),
        };
        let Some(key) = keys.get(&one.slot.slot_id).cloned() else { continue };
        let reason = format!(
            "its isolated key and slot {} stay below {} % of a mean shard's fair load together",
            home.slot.slot_id,
            (thresholds.merge * 100.0).round()
        );
        found.push(Division {
            slot_id: home.slot.slot_id,
            action: Action::Home { table, key },
            to_shard: None,
            reason,
        });
    }
    Ok(found)
}

/// What is said of one division: why it is not taken now, and when it may begin, s from now.
pub type Said = (Option<(&'static str, &'static str)>, Option<f64>);

/// Stores them as recommendations, with what is said of each; a lead is `lead_s` long.
pub fn store(divisions: &[Division], said: &[Said], slots: &[SlotRow], lead_s: i32) -> PgResult<()> {
    let after_s = |lead: usize| f64::from(lead_s) * lead as f64;
    let keys: Vec<Option<(pg_sys::Oid, Value)>> =
        divisions.iter().map(|one| one.action.key().map(|(table, key)| (table, json!([key])))).collect();
    let rows: Vec<division::Row> = divisions
        .iter()
        .zip(said)
        .zip(&keys)
        .filter_map(|((one, (refusal, opens_s)), keys)| {
            let slot = slots.iter().find(|slot| slot.slot_id == one.slot_id)?;
            let (start_s, over_s) = match one.action {
                Action::Prepare { at, over } | Action::Isolate { at, over, .. } => {
                    (Some(after_s(at)), Some(after_s(over)))
                }
                Action::Split => (Some(0.0), Some(0.0)),
                Action::Merge { .. } | Action::Home { .. } => (Some(0.0), None),
                Action::Not(_) => (None, None),
            };
            Some(division::Row {
                action: one.action.as_str(),
                slot_id: one.slot_id,
                shard_id: slot.shard_id,
                to_shard: one.to_shard,
                bytes: bytes_of(one.slot_id, slots),
                reason: Some(&one.reason),
                refusal: *refusal,
                start_s: start_s.map(|start_s| opens_s.map_or(start_s, |opens_s| start_s.max(opens_s))),
                over_s,
                keys: keys.as_ref().map(|(table, keys)| (*table, keys)),
            })
        })
        .collect();
    division::store(&rows)
}

/// What may be done now without anybody being asked, the most urgent first.
pub fn due(divisions: &[Division]) -> Vec<Division> {
    let urgency = |one: &Division| match one.action {
        Action::Split | Action::Isolate { .. } => 0,
        Action::Prepare { .. } => 1,
        Action::Merge { .. } | Action::Home { .. } | Action::Not(_) => 2,
    };
    let now = |one: &&Division| match one.action {
        Action::Split | Action::Merge { .. } | Action::Home { .. } => true,
        Action::Prepare { at, .. } | Action::Isolate { at, .. } => at == 0,
        Action::Not(_) => false,
    };
    let mut due: Vec<Division> = divisions.iter().filter(now).cloned().collect();
    due.sort_by_key(urgency);
    due
}

/// Files one; false: something speaks against it, or it is no change. It was decided in another transaction: somebody
/// may have said something else since.
pub fn file(one: &Division) -> PgResult<bool> {
    let user = "foreshard";
    let standing = division::standing(one.slot_id)?;
    let modes = Modes::read()?;
    let Some(standing) = standing.filter(|own| modes.of(own.group_id) == Mode::Auto && !own.is_citus) else {
        return Ok(false);
    };
    let to_shard = match one.to_shard {
        // A shard that is away or emptied since gets nothing; the next plan says where to.
        Some(shard) => match colocation::taking_shard(shard)? {
            Some(name) => Some(name),
            None => return Ok(false),
        },
        None => None,
    };
    let filed = match &one.action {
        Action::Split | Action::Prepare { .. } => {
            let prepare = one.action != Action::Split;
            if standing.draining
                || prepare && !prepared::has_room()?
                || !split::reasons(one.slot_id)?.is_empty()
            {
                return Ok(false);
            }
            vec![split::file(one.slot_id, &[None, to_shard.as_deref()], user, prepare)?]
        }
        Action::Merge { other } => {
            let Some(shard) = merge::shard_for(one.slot_id, *other)? else { return Ok(false) };
            if !merge::reasons(one.slot_id, *other)?.is_empty() {
                return Ok(false);
            }
            vec![merge::file(one.slot_id, *other, Some(&shard), user)?]
        }
        Action::Isolate { table, key, .. } => {
            if standing.draining
                || !place::reasons(one.slot_id, &shadow::partitions_of_slot(one.slot_id)?)?.is_empty()
            {
                return Ok(false);
            }
            let mut placing = Placing::of(*table)?;
            placing.isolate(text_key(key)?, to_shard.as_deref())?;
            placing.file(user, json!({"isolate": 1}))?
        }
        Action::Home { table, key } => {
            if standing.draining {
                return Ok(false);
            }
            let mut placing = Placing::of(*table)?;
            placing.unisolate(text_key(key)?)?;
            placing.file(user, json!({"unisolate": 1}))?
        }
        Action::Not(_) => return Ok(false),
    };
    act::attach(&filed, one.action.as_str(), one.action.key().map(|(_, key)| key.as_str()))?;
    Ok(!filed.is_empty())
}
