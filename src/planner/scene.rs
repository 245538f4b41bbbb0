//! What the plans for keys of a table are made from: its layout, with the keys that are known.

use super::Decision;
use crate::catalog::{colocation, decision::SlotRow, place};
use crate::pg::partition::{self, Lifetime, Router};
use crate::pg::report::PgResult;
use crate::pg::{guc, keytext};
use foreshard_core::digest::key_hash;
use foreshard_core::gather::{Gatherer, Located, SlotState};
use foreshard_core::graph::shards::Shards;
use foreshard_core::shared::KEY_BYTES;
use pgrx::pg_sys;
use std::collections::HashMap;

/// Windows that there were when a key was first known to be chosen, by the hash of its text.
pub type Since = HashMap<u64, u64>;

/// A table as the gatherer's plans see it.
pub(super) struct Scene {
    pub(super) table: pg_sys::Oid,
    pub(super) shards: Shards,
    pub(super) shard_ids: Vec<i32>,
    pub(super) slots: Vec<SlotState>,
    /// (Slot, its shard).
    pub(super) homes: Vec<(i64, i32)>,
    pub(super) chosen: HashMap<Vec<u8>, Located>,
    /// Other bytes of a key, with those that stand for all of them.
    pub(super) variants: HashMap<Vec<u8>, Vec<u8>>,
    pub(super) slot_of: HashMap<Vec<u8>, u32>,
    pub(super) texts: HashMap<Vec<u8>, String>,
    /// Lists of single keys.
    pub(super) isolated: usize,
    pub(super) since: Since,
}

/// Whether a slot may be changed now.
pub(super) fn is_free(row: &SlotRow) -> bool {
    let cooldown = f64::from(guc::COOLDOWN.get());
    !row.moving && !row.undone && row.rested_s.is_none_or(|rested| rested >= cooldown)
}

impl Scene {
    /// Of a group's first table; keys that were chosen are watched from `since` on, else from now. None: there is nothing
    /// to choose from.
    pub(super) fn read(
        group_id: i32,
        gatherer: &Gatherer<Vec<u8>>,
        since: &Since,
        decision: &Decision,
    ) -> PgResult<Option<Scene>> {
        // Lists are on this server; slots on others are left alone.
        let usable: Vec<_> =
            decision.shards.iter().filter(|shard| !shard.draining && shard.is_local()).collect();
        let capacities: Vec<f64> = usable.iter().map(|shard| shard.capacity).collect();
        let Some(shards) = Shards::new(&capacities).ok().filter(|shards| shards.len() > 1) else {
            return Ok(None);
        };
        let Some(table) = colocation::tables_of_group(group_id)?.into_iter().next() else {
            return Ok(None);
        };
        let mut router = Router::of(table, Lifetime::Statement)?;
        if !partition::is_listable(router.key_type()) {
            return Ok(None);
        }
        let mut scene = Scene {
            table,
            shards,
            shard_ids: usable.iter().map(|shard| shard.shard_id).collect(),
            slots: Vec::new(),
            homes: Vec::new(),
            chosen: HashMap::new(),
            variants: HashMap::new(),
            slot_of: HashMap::new(),
            texts: HashMap::new(),
            isolated: 0,
            since: Since::new(),
        };
        let mut homes: Vec<(u32, place::Home)> = place::layout(table)?.into_iter().collect();
        homes.sort_by_key(|(_, home)| home.slot_id);
        let listed = scene.read_keys(&mut router, gatherer, &mut homes)?;
        // Beyond those that count: what is there is left alone.
        let others = decision.shards.iter().map(|shard| shard.shard_id);
        let others = others.filter(|shard| !scene.shard_ids.contains(shard));
        let numbers: HashMap<i32, u16> = scene.shard_ids.iter().copied().chain(others).zip(0..).collect();
        let watched =
            |text: &str| since.get(&key_hash(text.as_bytes())).copied().unwrap_or_else(|| gatherer.windows());
        for (_, home) in &homes {
            scene.add(home, &listed, &numbers, decision, watched);
        }
        Ok(Some(scene))
    }

    /// Notes slots and texts of all known keys, each in one form. Returns those that are listed, by the text that is.
    fn read_keys(
        &mut self,
        router: &mut Router,
        gatherer: &Gatherer<Vec<u8>>,
        homes: &mut [(u32, place::Home)],
    ) -> PgResult<HashMap<String, Vec<u8>>> {
        let numbers: HashMap<u32, u32> = homes.iter().map(|(partition, _)| *partition).zip(0..).collect();
        let mut listed = HashMap::new();
        let mut alike: HashMap<u64, Vec<(pg_sys::Datum, &Vec<u8>)>> = HashMap::new();
        let key_type = router.key_type();
        for key in gatherer.keys() {
            let Some((value, partition, hash)) = keytext::seen(router, key_type, key)? else { continue };
            let Some(slot) = numbers.get(&partition.to_u32()).copied() else { continue };
            let alike = alike.entry(hash).or_default();
            if let Some((_, first)) = alike.iter().find(|(first, _)| router.is_same(*first, value)) {
                self.variants.insert(key.clone(), (*first).clone());
                continue;
            }
            alike.push((value, key));
            let lists = homes.get_mut(slot as usize).and_then(|(_, home)| home.lists.as_mut());
            let own = lists.map_or(Ok(None), |lists| lists.listed(value))?;
            let text = match own {
                Some((_, text)) => {
                    listed.insert(text.clone(), key.clone());
                    text
                }
                None => router.text(value)?,
            };
            self.slot_of.insert(key.clone(), slot);
            self.texts.insert(key.clone(), text);
        }
        Ok(listed)
    }

    fn add(
        &mut self,
        home: &place::Home,
        listed: &HashMap<String, Vec<u8>>,
        numbers: &HashMap<i32, u16>,
        decision: &Decision,
        watched: impl Fn(&str) -> u64,
    ) {
        let number = |shard: i32| numbers.get(&shard).copied().unwrap_or(u16::MAX);
        let slot = self.slots.len() as u32;
        let rows = std::iter::once(Some(home.slot_id)).chain(home.guests.iter().map(|guest| guest.slot));
        let rows: Vec<_> = rows.flatten().filter_map(|slot| decision.slot(slot)).collect();
        self.slots.push(SlotState {
            shard: number(home.shard_id),
            load: rows.iter().map(|row| row.heat).sum(),
            bytes: rows.iter().map(|row| row.bytes.unwrap_or(0).max(0) as u64).sum(),
            // Nothing comes home to a shard that is being emptied.
            free: self.shard_ids.contains(&home.shard_id) && rows.iter().all(|row| is_free(row)),
        });
        for guest in &home.guests {
            self.isolated += usize::from(guest.isolated);
            for text in &guest.keys {
                let since = watched(text);
                self.since.insert(key_hash(text.as_bytes()), since);
                // Before any other key: longer than keys are sampled.
                let unsampled = || [vec![u8::MAX; KEY_BYTES + 1], text.clone().into_bytes()].concat();
                let sampled = listed.get(text).cloned();
                // Whether a text of many bytes is a value of many is not asked: it stays.
                let seen = sampled.is_some() || text.len() <= KEY_BYTES;
                let since = seen.then_some(since);
                let place = Located { slot, shard: number(guest.shard), alone: guest.isolated, since };
                let key = sampled.unwrap_or_else(unsampled);
                self.texts.insert(key.clone(), text.clone());
                self.chosen.insert(key, place);
            }
        }
        self.homes.push((home.slot_id, home.shard_id));
    }
}
