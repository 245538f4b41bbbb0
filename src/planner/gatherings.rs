//! Which keys to place beside those they are used with.

use super::modes::Modes;
pub use super::scene::Since;
use super::scene::{Scene, is_free};
use super::{Decision, plan_options, window};
use crate::catalog::colocation::ShardRow;
use crate::catalog::decision::SlotRow;
use crate::catalog::gathering::{self, Said};
use crate::catalog::list_size::KEYS_PER_LIST;
use crate::catalog::wish::{Placing, text_key};
use crate::catalog::{act, colocation, decision, place, shadow};
use crate::pg::bgworker;
use crate::pg::bgworker::{Failure, WorkResult};
use crate::pg::guc::{self, Mode};
use crate::pg::report::{PgResult, PgSqlErrorCode};
use foreshard_core::gather::{GatherOptions, Gatherer, Gathering, Layout, Room, Standing, compensated};
use foreshard_core::graph::partition::PartitionOptions;
use pgrx::pg_sys;
use serde_json::{Map, Value, json};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;
/// What was refused is not asked again before, s.
const LEAST_PAUSE_S: f64 = 60.0;

/// Reason and advice of a refusal.
type Refusal = (&'static str, &'static str);

/// Keys that cannot have lists.
const UNPLACEABLE: Refusal = (
    "unplaceable_keys",
    "Try foreshard.place_keys() with the keys of this recommendation: it names every reason and what to do.",
);
/// There would be too many partitions.
const LEAF_LIMIT: Refusal =
    ("leaf_limit", "Wait until placements under way have made room, or raise foreshard.max_leaves.");
/// Somebody else was faster.
const BUSY: Refusal = ("busy", "Wait: something else is under way with keys of this slot.");
/// Anything else.
const NOT_FILED: Refusal =
    ("not_filed", "See the server log for the reason; it is tried again after foreshard.cooldown.");

/// What should become of keys of one slot.
#[derive(Clone, Debug)]
pub struct Gathered {
    group_id: i32,
    table: pg_sys::Oid,
    slot_id: i64,
    /// Its shard.
    shard_id: i32,
    /// Keys, and the shard; None: home.
    keys: Vec<(String, Option<i32>)>,
    /// Shards to which keys come, its own included.
    targets: BTreeSet<i32>,
    /// What is copied.
    bytes: i64,
    /// Cost units per second.
    benefit: f64,
    reason: String,
    /// How the slot stood.
    standing: Standing,
    /// Why it cannot be done, and since when it is known, s.
    refused: Option<(Refusal, f64)>,
    /// The recommendation that shows it, and what that says.
    shown: Option<(i64, Said)>,
}

/// What a round of planning for a group came to.
#[derive(Default)]
pub struct Planned {
    /// What should become of keys, by slots.
    pub gathered: Vec<Gathered>,
    /// When chosen keys were first seen to be.
    pub since: Since,
    /// Slots that could not be planned for, because they may not be changed now.
    pub held: Vec<i64>,
}

/// What is known of a group: its keys, and how often transactions use them.
pub struct Known<'a> {
    /// Keys by bytes.
    pub gatherer: &'a Gatherer<Vec<u8>>,
    /// Load that shards have carried lately.
    pub served: &'a HashMap<i32, f64>,
    /// Transactions per second.
    pub rate_per_s: f64,
    /// When chosen keys were first seen to be.
    pub since: &'a Since,
}

/// How slots and shards are now.
pub struct Present {
    standings: HashMap<i64, Standing>,
    /// Shards to which keys may come.
    usable: HashSet<i32>,
}

impl Present {
    /// As the round's decision has them.
    pub fn of(decision: &Decision) -> Self {
        Self::from_rows(&decision.slots, &decision.shards)
    }

    /// Whether some slots had to be left alone and none of them has to be any more.
    pub fn frees(&self, held: &[i64]) -> bool {
        let is_held = |slot: &i64| self.standings.get(slot).is_some_and(|own| own.held);
        !held.is_empty() && !held.iter().any(is_held)
    }

    fn from_rows(slots: &[SlotRow], shards: &[ShardRow]) -> Self {
        let mut standings: HashMap<i64, Standing> = HashMap::new();
        for slot in slots {
            let own = standings.entry(slot.home_slot_id.unwrap_or(slot.slot_id)).or_default();
            own.lists.push((slot.slot_id, slot.shard_id, slot.changed_at_s));
            own.held |= !is_free(slot);
        }
        let usable = shards.iter().filter(|shard| !shard.draining && shard.is_local());
        Self { standings, usable: usable.map(|shard| shard.shard_id).collect() }
    }
}

impl Gathered {
    fn holds(&self, present: &Present) -> bool {
        let now = present.standings.get(&self.slot_id);
        self.standing.holds(now, self.targets.iter().copied(), &present.usable)
    }

    /// The slot.
    pub const fn slot_id(&self) -> i64 {
        self.slot_id
    }

    /// Its recommendation.
    pub fn shown(&self) -> Option<i64> {
        self.shown.as_ref().map(|(id, _)| *id)
    }

    /// Notes the recommendation that shows it.
    pub fn show(&mut self, shown: Option<(i64, Said)>) {
        self.shown = shown;
    }

    /// If another one says the same of the same keys, its recommendation goes on.
    pub fn take_over(&mut self, other: &mut Gathered) {
        if (self.slot_id, self.shard_id, self.table) == (other.slot_id, other.shard_id, other.table)
            && self.keys == other.keys
        {
            self.shown = other.shown.take();
        }
    }

    /// It was tried in vain.
    pub fn refuse(&mut self, failure: &Failure, now_s: f64) {
        let refusal = match failure.code {
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED => LEAF_LIMIT,
            PgSqlErrorCode::ERRCODE_OBJECT_IN_USE => BUSY,
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED => UNPLACEABLE,
            _ => NOT_FILED,
        };
        self.refused = Some((refusal, now_s));
    }

    fn refusal(&self, decision: &Decision) -> (Option<Refusal>, Option<f64>) {
        match self.refused {
            Some((refusal, _)) => (Some(refusal), None),
            None => decision.said_of_hours(),
        }
    }

    /// The keys by names of shards.
    fn map(&self, names: &HashMap<i32, &str>) -> Value {
        let name = |shard: &Option<i32>| shard.and_then(|shard| names.get(&shard).copied());
        let map: Map<String, Value> = self
            .keys
            .iter()
            .map(|(key, to)| (key.clone(), name(to).map_or(Value::Null, Value::from)))
            .collect();
        Value::Object(map)
    }
}

/// Drops what does not hold any more, and what was refused long enough ago to be thought of anew; whether there was
/// any.
pub fn review(plan: &mut Vec<Gathered>, present: &Present, decision: &Decision, now_s: f64) -> bool {
    let before = plan.len();
    let pause_s = f64::from(guc::COOLDOWN.get()).max(LEAST_PAUSE_S);
    let refused_lately = |one: &Gathered| one.refused.is_none_or(|(_, at_s)| now_s - at_s < pause_s);
    let mode = |one: &Gathered| decision.modes.of(one.group_id);
    plan.retain(|one| mode(one) != Mode::Off && one.holds(present) && refused_lately(one));
    plan.len() < before
}

/// Plans for the keys of one group, by what is known of its layout. The planning itself takes seconds, and holds no
/// transaction open. None: there is nothing to choose from.
pub fn decide(
    group_id: i32,
    known: &Known,
    present: &Present,
    decision: &Decision,
) -> WorkResult<Option<Planned>> {
    let cost = guc::CROSS_SHARD_COST.get();
    if cost <= 0.0 || decision.modes.of(group_id) == Mode::Off {
        return Ok(None);
    }
    let scene = bgworker::transaction(|| Scene::read(group_id, known.gatherer, known.since, decision))?;
    let Some(scene) = scene else { return Ok(None) };
    let planner = plan_options(guc::FORECAST_HORIZON.get());
    // A window's pairs weigh half as much as it has keys; what counts of the windows stands for the present rate.
    let gatherer = known.gatherer;
    let per_weight = 2.0 / gatherer.mean_window().max(2.0) / gatherer.counted().max(1.0);
    let worth_per_s = known.rate_per_s * cost * per_weight;
    let leaves = guc::MAX_LEAVES.get().max(0) as usize;
    let options = GatherOptions {
        partition: PartitionOptions {
            slack: guc::IMBALANCE_LOW.get().min(0.03),
            ..GatherOptions::default().partition
        },
        worth: worth_per_s * planner.payback_s,
        byte_cost: planner.move_cost_per_mib / MIB,
        most_uneven: 1.0 + guc::IMBALANCE_LOW.get(),
        room: Room { lists: leaves.saturating_sub(scene.homes.len() + scene.isolated), keys: KEYS_PER_LIST },
        ..GatherOptions::default()
    };
    let served: Vec<f64> =
        scene.shard_ids.iter().map(|shard| known.served.get(shard).copied().unwrap_or(0.0)).collect();
    let shards = compensated(&scene.shards, &served);
    let (slots, chosen, variants) = (&scene.slots, &scene.chosen, &scene.variants);
    let layout = Layout { shards: &shards, slots, chosen, variants };
    let plan = gatherer.plan(&layout, |key| scene.slot_of.get(key).copied(), &options);
    let mut gathered = gathered(group_id, &scene, &plan, worth_per_s, present);
    let now_s = bgworker::now_s();
    bgworker::transaction(|| {
        for one in &mut gathered {
            let reasons = place::reasons(one.slot_id, &shadow::partitions_of_slot(one.slot_id)?)?;
            one.refused = (!reasons.is_empty()).then_some((UNPLACEABLE, now_s));
        }
        Ok(())
    })?;
    let is_held = |slot: &i64| present.standings.get(slot).is_some_and(|own| own.held);
    let held = scene.homes.iter().map(|(slot, _)| *slot).filter(is_held).collect();
    Ok(Some(Planned { gathered, since: scene.since, held }))
}

fn gathered(
    group_id: i32,
    scene: &Scene,
    plan: &Gathering<Vec<u8>>,
    worth_per_s: f64,
    present: &Present,
) -> Vec<Gathered> {
    let percent = |share: f64| (share * 100.0).round();
    let mut all = Vec::new();
    for change in &plan.changes {
        let Some((slot_id, shard_id)) = scene.homes.get(change.slot as usize).copied() else { continue };
        let shard = |to: Option<u16>| to.and_then(|to| scene.shard_ids.get(usize::from(to)).copied());
        let keys = change.keys.iter();
        let mut keys: Vec<(String, Option<i32>)> =
            keys.filter_map(|(key, to)| Some((scene.texts.get(key)?.clone(), shard(*to)))).collect();
        keys.sort();
        let away = keys.iter().filter(|(_, to)| to.is_some()).count();
        let reason = format!(
            "{away} of its keys are used with keys of other shards, {} are no longer chosen; of what is used together {} % is on different shards, {} % would be",
            keys.len() - away,
            percent(plan.crossing.0),
            percent(plan.crossing.1)
        );
        all.push(Gathered {
            group_id,
            table: scene.table,
            slot_id,
            shard_id,
            targets: keys.iter().filter_map(|(_, to)| *to).chain([shard_id]).collect(),
            keys,
            bytes: change.bytes as i64,
            benefit: change.gain * worth_per_s,
            reason,
            // As the round's decision had it: what changed since then does not hold.
            standing: present.standings.get(&slot_id).cloned().unwrap_or_default(),
            refused: None,
            shown: None,
        });
    }
    all
}

/// Shows the plan of a group as recommendations; what says the same as before is not written again. Returns what is
/// shown, for each.
pub fn store(plan: &[Gathered], decision: &Decision) -> PgResult<Vec<Option<(i64, Said)>>> {
    let shown: Vec<i64> = plan.iter().filter_map(Gathered::shown).collect();
    let present: HashSet<i64> = gathering::present(&shown)?.into_iter().collect();
    let names: HashMap<i32, &str> =
        decision.shards.iter().map(|shard| (shard.shard_id, shard.name.as_str())).collect();
    let show = |one: &Gathered| {
        let (refusal, opens_s) = one.refusal(decision);
        let unplaceable = refusal == Some(UNPLACEABLE);
        let said = Said {
            action: if unplaceable { "none" } else { "place" },
            bytes: one.bytes,
            reason: one.reason.clone(),
            benefit: one.benefit,
            refusal,
        };
        let start_s = Some(opens_s.unwrap_or(0.0));
        match one.shown.as_ref().filter(|(id, _)| present.contains(id)) {
            Some((id, before)) => {
                if *before != said {
                    gathering::change(*id, &said, start_s)?;
                }
                Ok(Some((*id, said)))
            }
            None => {
                let keys = (one.table, one.map(&names));
                let added = gathering::add(one.slot_id, one.shard_id, keys, &said, start_s)?;
                Ok(added.map(|id| (id, said)))
            }
        }
    };
    plan.iter().map(show).collect()
}

/// Whether nothing is known to speak against it, and its tables leave it to foreshard.
pub fn may_file(one: &Gathered, decision: &Decision) -> bool {
    decision.modes.of(one.group_id) == Mode::Auto && one.refusal(decision).0.is_none()
}

/// Files one; false: it is no change, or does not hold any more. It was decided in another transaction: somebody may have
/// said or done something else since.
pub fn file(one: &Gathered) -> PgResult<bool> {
    let present = Present::from_rows(&decision::slots_of(Some(one.slot_id))?, &colocation::shards()?);
    let may = one.holds(&present) && Modes::read()?.of(one.group_id) == Mode::Auto;
    if !may || !window::is_open(bgworker::now_s()) {
        return Ok(false);
    }
    let mut placing = Placing::of(one.table)?;
    for (key, shard) in &one.keys {
        placing.put(text_key(key)?, *shard)?;
    }
    let filed = placing.file("foreshard", json!({"place": one.keys.len(), "whole": false}))?;
    act::attach(&filed, "place", None)?;
    Ok(!filed.is_empty())
}
