//! Which keys to place beside those they are used with.

use super::modes::Modes;
use super::{Decision, divisions, plan_options, window};
use crate::catalog::decision::{UNDONE, bytes_of};
use crate::catalog::list_size::KEYS_PER_LIST;
use crate::catalog::wish::{Placing, text_key};
use crate::catalog::{act, division, place, shadow};
use crate::pg::guc::{self, Mode};
use crate::pg::partition::{self, Lifetime, Router};
use crate::pg::report::PgResult;
use crate::pg::{bgworker, keytext};
use foreshard_core::gather::{GatherOptions, Gatherer, Gathering, Located, Room, SlotState, compensated};
use foreshard_core::graph::partition::PartitionOptions;
use foreshard_core::graph::shards::Shards;
use pgrx::pg_sys;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;
/// Before any other key: longer than keys are sampled.
const UNSAMPLED: usize = foreshard_core::shared::KEY_BYTES + 1;

/// What should become of keys of one slot.
#[derive(Clone, Debug)]
pub struct Gathered {
    /// Colocation group.
    pub group_id: i32,
    /// A table of it.
    pub table: pg_sys::Oid,
    /// The slot.
    pub slot_id: i64,
    /// Its shard.
    shard_id: i32,
    /// Keys, and the shard; None: home.
    keys: Vec<(String, Option<i32>)>,
    /// The same by names of shards.
    map: Value,
    /// What is copied.
    bytes: i64,
    /// Cost units per second.
    benefit: f64,
    reason: String,
    /// Why it cannot be done.
    against: Vec<String>,
}

/// What is known of a group: its keys, and how often transactions use them.
pub struct Known<'a> {
    /// Keys by bytes.
    pub gatherer: &'a Gatherer<Vec<u8>>,
    /// Load that shards have carried lately.
    pub served: &'a HashMap<i32, f64>,
    /// Transactions per second.
    pub rate_per_s: f64,
    /// Sampled transactions that count.
    pub counted: f64,
}

/// A table as the gatherer's plans see it.
struct Scene {
    shards: Shards,
    shard_ids: Vec<i32>,
    slots: Vec<SlotState>,
    /// (Slot, its shard).
    homes: Vec<(i64, i32)>,
    chosen: HashMap<Vec<u8>, Located>,
    slot_of: HashMap<Vec<u8>, u32>,
    texts: HashMap<Vec<u8>, String>,
    /// Lists of single keys.
    isolated: usize,
}

/// Plans for the keys of one group, by what is known of its table's layout.
pub fn decide(
    group_id: i32,
    table: pg_sys::Oid,
    known: &Known,
    decision: &Decision,
) -> PgResult<Vec<Gathered>> {
    let cost = guc::CROSS_SHARD_COST.get();
    if cost <= 0.0 || decision.modes.of(group_id) == Mode::Off {
        return Ok(Vec::new());
    }
    let Some(scene) = Scene::read(table, known.gatherer, decision)? else { return Ok(Vec::new()) };
    let planner = plan_options(guc::FORECAST_HORIZON.get());
    // A window's pairs weigh half as much as it has keys; what counts of the windows stands for the present rate.
    let per_weight = 2.0 / known.gatherer.mean_window().max(2.0) / known.counted.max(1.0);
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
    pgrx::check_for_interrupts!();
    let slot_of = |key: &Vec<u8>| scene.slot_of.get(key).copied();
    let served: Vec<f64> =
        scene.shard_ids.iter().map(|shard| known.served.get(shard).copied().unwrap_or(0.0)).collect();
    let shards = compensated(&scene.shards, &served);
    let plan = known.gatherer.plan(&shards, &scene.slots, &scene.chosen, slot_of, &options);
    scene.gathered(group_id, table, &plan, worth_per_s, decision)
}

impl Scene {
    /// None: there is nothing to choose from.
    fn read(
        table: pg_sys::Oid,
        gatherer: &Gatherer<Vec<u8>>,
        decision: &Decision,
    ) -> PgResult<Option<Scene>> {
        let mut router = Router::of(table, Lifetime::Statement)?;
        // Lists are on this server; slots on others are left alone.
        let usable: Vec<_> =
            decision.shards.iter().filter(|shard| !shard.draining && shard.is_local()).collect();
        let capacities: Vec<f64> = usable.iter().map(|shard| shard.capacity).collect();
        let Some(shards) = Shards::new(&capacities).ok().filter(|shards| shards.len() > 1) else {
            return Ok(None);
        };
        if !partition::is_listable(router.key_type()) {
            return Ok(None);
        }
        let mut scene = Scene {
            shards,
            shard_ids: usable.iter().map(|shard| shard.shard_id).collect(),
            slots: Vec::new(),
            homes: Vec::new(),
            chosen: HashMap::new(),
            slot_of: HashMap::new(),
            texts: HashMap::new(),
            isolated: 0,
        };
        let mut homes: Vec<(u32, place::Home)> = place::layout(table)?.into_iter().collect();
        homes.sort_by_key(|(_, home)| home.slot_id);
        let numbers: HashMap<u32, u32> = homes.iter().map(|(partition, _)| *partition).zip(0..).collect();
        let mut bytes_of: HashMap<String, Vec<u8>> = HashMap::new();
        let key_type = router.key_type();
        for key in gatherer.keys() {
            let Some((text, partition)) = keytext::listed(&mut router, key_type, key)? else { continue };
            let Some(slot) = numbers.get(&partition.to_u32()) else { continue };
            scene.slot_of.insert(key.clone(), *slot);
            bytes_of.insert(text.clone(), key.clone());
            scene.texts.insert(key.clone(), text);
        }
        for (_, home) in &homes {
            scene.add(home, &bytes_of, decision);
        }
        Ok(Some(scene))
    }

    fn add(&mut self, home: &place::Home, bytes: &HashMap<String, Vec<u8>>, decision: &Decision) {
        let number = |shard: i32| {
            let at = self.shard_ids.iter().position(|own| *own == shard);
            at.and_then(|at| u16::try_from(at).ok()).unwrap_or(u16::MAX)
        };
        let slot = self.slots.len() as u32;
        let rows = std::iter::once(Some(home.slot_id)).chain(home.guests.iter().map(|guest| guest.slot));
        let rows: Vec<_> = rows.flatten().filter_map(|slot| decision.slot(slot)).collect();
        let cooldown = f64::from(guc::COOLDOWN.get());
        let free = |row: &&crate::catalog::decision::SlotRow| {
            !row.moving && !row.undone && row.rested_s.is_none_or(|rested| rested >= cooldown)
        };
        self.slots.push(SlotState {
            shard: number(home.shard_id),
            load: rows.iter().map(|row| row.heat).sum(),
            bytes: rows.iter().map(|row| row.bytes.max(0) as u64).sum(),
            // Nothing comes home to a shard that is being emptied.
            free: self.shard_ids.contains(&home.shard_id) && rows.iter().all(free),
        });
        let mut chosen = Vec::new();
        for guest in &home.guests {
            self.isolated += usize::from(guest.isolated);
            let place = Located { slot, shard: number(guest.shard), alone: guest.isolated };
            for text in &guest.keys {
                let unsampled = || [vec![u8::MAX; UNSAMPLED], text.clone().into_bytes()].concat();
                let key = bytes.get(text).cloned().unwrap_or_else(unsampled);
                chosen.push((key, text.clone(), place));
            }
        }
        for (key, text, place) in chosen {
            self.texts.insert(key.clone(), text);
            self.chosen.insert(key, place);
        }
        self.homes.push((home.slot_id, home.shard_id));
    }

    fn gathered(
        &self,
        group_id: i32,
        table: pg_sys::Oid,
        plan: &Gathering<Vec<u8>>,
        worth_per_s: f64,
        decision: &Decision,
    ) -> PgResult<Vec<Gathered>> {
        let percent = |share: f64| (share * 100.0).round();
        let mut all = Vec::new();
        for change in &plan.changes {
            let Some((slot_id, shard_id)) = self.homes.get(change.slot as usize).copied() else { continue };
            let shard = |to: Option<u16>| to.and_then(|to| self.shard_ids.get(usize::from(to)).copied());
            let keys = change.keys.iter();
            let keys: Vec<(String, Option<i32>)> =
                keys.filter_map(|(key, to)| Some((self.texts.get(key)?.clone(), shard(*to)))).collect();
            let name = |shard: &Option<i32>| shard.map_or(Value::Null, |id| decision.shard_name(id).into());
            let map: Map<String, Value> = keys.iter().map(|(key, to)| (key.clone(), name(to))).collect();
            let away = keys.iter().filter(|(_, to)| to.is_some()).count();
            let reason = format!(
                "{away} of its keys are used with keys of other shards, {} are no longer chosen; of what is used together {} % is on different shards, {} % would be",
                keys.len() - away,
                percent(plan.crossing.0),
                percent(plan.crossing.1)
            );
            all.push(Gathered {
                group_id,
                table,
                slot_id,
                shard_id,
                keys,
                map: Value::Object(map),
                bytes: bytes_of(slot_id, &decision.slots).max(change.bytes as i64),
                benefit: change.gain * worth_per_s,
                reason,
                against: place::reasons(slot_id, &shadow::partitions_of_slot(slot_id)?)?,
            });
        }
        Ok(all)
    }
}

/// Machine-readable reason and advice for keys that cannot have lists.
const UNPLACEABLE: (&str, &str) = (
    "unplaceable_keys",
    "Try foreshard.place_keys() with the keys of this recommendation: it names every reason and what to do.",
);

/// Stores them as recommendations.
pub fn store(gathered: &[Gathered], decision: &Decision) -> PgResult<()> {
    division::store(&gathered.iter().map(|one| row(one, said_of(one, decision))).collect::<Vec<_>>())
}

/// What is said of one.
fn said_of(one: &Gathered, decision: &Decision) -> divisions::Said {
    if !one.against.is_empty() {
        return (Some(UNPLACEABLE), None);
    }
    if decision.slot(one.slot_id).is_some_and(|slot| slot.undone) {
        return (Some(UNDONE), None);
    }
    decision.said_of_hours()
}

fn row(one: &Gathered, (refusal, opens_s): divisions::Said) -> division::Row<'_> {
    division::Row {
        action: if one.against.is_empty() { "place" } else { "none" },
        slot_id: one.slot_id,
        shard_id: one.shard_id,
        bytes: one.bytes,
        reason: Some(&one.reason),
        refusal,
        start_s: Some(opens_s.unwrap_or(0.0)),
        over_s: None,
        keys: Some((one.table, &one.map)),
        benefit: Some(one.benefit),
    }
}

/// Files those of one group that nothing speaks against, if its tables leave that to foreshard; false: none. They were
/// decided in another transaction: somebody may have said something else since.
pub fn file(group: &[Gathered], decision: &Decision) -> PgResult<bool> {
    let modes = Modes::read()?;
    let may = |one: &&Gathered| said_of(one, decision).0.is_none() && modes.of(one.group_id) == Mode::Auto;
    let Some(first) = group.iter().find(may).filter(|_| window::is_open(bgworker::now_s())) else {
        return Ok(false);
    };
    let mut placing = Placing::of(first.table)?;
    let mut count = 0;
    for one in group.iter().filter(may) {
        for (key, shard) in &one.keys {
            placing.put(text_key(key)?, *shard)?;
        }
        count += one.keys.len();
    }
    let filed = placing.file("foreshard", json!({"place": count, "whole": false}))?;
    act::attach(&filed, "place", None)?;
    Ok(!filed.is_empty())
}
