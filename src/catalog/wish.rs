//! Where chosen keys shall live: from wishes to the placements that fulfil them, one per slot.

use super::list_size::Sizes;
use super::place::{self, Home};
use super::{colocation, gathering, guest, moves, request, split};
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, error, internal, wrong_state};
use crate::pg::{guc, security, spi};
use foreshard_core::guests::{Guest, ListSize, Relayout, Wish, relayout};
use pgrx::{IntoDatum, JsonB, pg_sys};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// A value with its type.
pub type Key = (pg_sys::Datum, pg_sys::Oid);

/// A text, of which the key's type makes a key.
pub fn text_key(text: &str) -> PgResult<Key> {
    let datum = text.into_datum().ok_or_else(|| internal("a text without a value"))?;
    Ok((datum, pg_sys::TEXTOID))
}

/// A managed table with its slots, for wishes.
pub struct Placing {
    table: pg_sys::Oid,
    owner: pg_sys::Oid,
    router: Router,
    homes: HashMap<u32, Home>,
    wishes: HashMap<u32, BTreeMap<String, Wish>>,
    /// Values that something was wished for, with their text forms, by hash.
    spelled: HashMap<u64, Vec<(pg_sys::Datum, String)>>,
}

impl Placing {
    /// Reads the layout of a managed table.
    ///
    /// # Errors
    /// 55000 for a table that is not managed.
    pub fn of(table: pg_sys::Oid) -> PgResult<Placing> {
        if colocation::managed(table)?.is_none() {
            return Err(wrong_state(format!("table {} is not managed by foreshard", super::name_of(table)?))
                .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
        }
        super::session::plain_text_forms()?;
        let owner = security::relation_owner(table)?;
        let homes = place::layout(table)?;
        let router = Router::of(table, Lifetime::Statement)?;
        Ok(Placing { table, owner, router, homes, wishes: HashMap::new(), spelled: HashMap::new() })
    }

    /// All tables that have a partition of any of its slots, for the privileges: (oid, name).
    pub fn tables(&self) -> PgResult<Vec<(pg_sys::Oid, String)>> {
        let guests = self.homes.values().flat_map(|home| &home.guests).filter_map(|guest| guest.slot);
        let slots: Vec<i64> = self.homes.values().map(|home| home.slot_id).chain(guests).collect();
        spi::rows(
            "SELECT DISTINCT p.table_oid::oid, p.table_oid::text FROM foreshard.slot_partition p WHERE p.slot_id = ANY ($1) ORDER BY 1",
            &[slots.into()],
            |row| Ok((row.need(1)?, row.need(2)?)),
        )
    }

    /// The hash partition of a key, and the key's text form: the one of the list that has it, else the one that was
    /// wished for first; two texts may be one key.
    fn find(&mut self, key: Key) -> PgResult<(u32, String)> {
        // What makes a value of a text may be the owner's code.
        let _guard = security::as_restricted_owner(self.owner);
        let value = self.router.value(key);
        let (number, hash) = self.router.place(Some((value, self.router.key_type())));
        let partition = number.map(|number| self.router.partition(number).to_u32());
        let Some((partition, home)) = partition.and_then(|p| self.homes.get_mut(&p).map(|home| (p, home)))
        else {
            let text = self.router.text(value)?;
            return Err(wrong_state(format!("key {text} belongs to no slot of the table")));
        };
        if let Some(lists) = &mut home.lists
            && let Some((_, text)) = lists.listed(value)?
        {
            return Ok((partition, text));
        }
        let alike = self.spelled.entry(hash).or_default();
        if let Some((_, text)) = alike.iter().find(|(known, _)| self.router.is_same(*known, value)) {
            return Ok((partition, text.clone()));
        }
        let text = self.router.text(value)?;
        alike.push((value, text.clone()));
        Ok((partition, text))
    }

    fn set_of(&self, partition: u32, key: &str) -> Option<&Guest> {
        let home = self.homes.get(&partition)?;
        home.guests.iter().find(|guest| guest.keys.contains(key))
    }

    fn wish(&mut self, partition: u32, key: String, wish: Wish) {
        self.wishes.entry(partition).or_default().insert(key, wish);
    }

    /// A key shall live by itself, on the shard named, else where its slot is.
    ///
    /// # Errors
    /// 42704 unknown shard, 22023 a shard that is drained or a key that is isolated elsewhere.
    pub fn isolate(&mut self, key: Key, shard: Option<&str>) -> PgResult<()> {
        let (partition, text) = self.find(key)?;
        let home = self.homes.get(&partition).map_or(0, |home| home.shard_id);
        let present = self.set_of(partition, &text).filter(|guest| guest.isolated);
        let target = split::target(shard, present.map_or(home, |guest| guest.shard))?;
        if let Some(guest) = present.filter(|guest| guest.shard != target) {
            let slot = guest.slot.unwrap_or_default();
            return Err(bad_argument(format!("key {text} is isolated already, as slot {slot}"))
                .set_hint(format!("Move its slot: SELECT foreshard.move_slot({slot}, ...).")));
        }
        self.wish(partition, text, Wish::Alone(target));
        Ok(())
    }

    /// An isolated key goes back to its slot.
    ///
    /// # Errors
    /// 22023 for a key that is not isolated.
    pub fn unisolate(&mut self, key: Key) -> PgResult<()> {
        let (partition, text) = self.find(key)?;
        if !self.set_of(partition, &text).is_some_and(|guest| guest.isolated) {
            return Err(bad_argument(format!("key {text} is not isolated"))
                .set_hint("See foreshard.placed_keys(table)."));
        }
        self.wish(partition, text, Wish::Home);
        Ok(())
    }

    /// A key shall live with the other chosen keys of a shard; None: with its slot.
    ///
    /// # Errors
    /// As [`Placing::isolate`]; 22023 for an isolated key.
    pub fn put(&mut self, key: Key, shard: Option<i32>) -> PgResult<()> {
        let (partition, text) = self.find(key)?;
        if self.set_of(partition, &text).is_some_and(|guest| guest.isolated) {
            return Err(bad_argument(format!("key {text} is isolated"))
                .set_hint("Call foreshard.unisolate_key(table, key) first, or leave it out of the map."));
        }
        self.wish(partition, text, shard.map_or(Wish::Home, Wish::On));
        Ok(())
    }

    /// Every chosen key that nothing was wished for goes home, isolated ones aside.
    pub fn send_others_home(&mut self) {
        for (partition, home) in &self.homes {
            let shared = home.guests.iter().filter(|guest| !guest.isolated);
            let wished = self.wishes.entry(*partition).or_default();
            for key in shared.flat_map(|guest| &guest.keys) {
                if !wished.contains_key(key) {
                    wished.insert(key.clone(), Wish::Home);
                }
            }
        }
    }

    /// Keys shall be where they were before a placement, as its `former` says; those whose shard takes nothing any more
    /// where their slot is.
    ///
    /// # Errors
    /// 55000 for keys that belong to no slot of the table any more.
    pub fn restore(&mut self, former: &serde_json::Map<String, Value>) -> PgResult<()> {
        let takes = |shard: &colocation::ShardRow| shard.is_local() && !shard.draining;
        let usable: HashSet<i32> =
            colocation::shards()?.iter().filter(|shard| takes(shard)).map(|shard| shard.shard_id).collect();
        let shard =
            |place: &Value| i32::try_from(place.as_i64()?).ok().filter(|shard| usable.contains(shard));
        for (text, place) in former {
            let (partition, text) = self.find(text_key(text)?)?;
            let home = self.homes.get(&partition).map_or(0, |home| home.shard_id);
            let wish = match place {
                Value::Array(alone) => Wish::Alone(alone.first().and_then(shard).unwrap_or(home)),
                place => shard(place).map_or(Wish::Home, Wish::On),
            };
            self.wish(partition, text, wish);
        }
        Ok(())
    }

    /// Files a placement for every slot whose layout changes; their moves, by slot.
    ///
    /// # Errors
    /// 53400 too many partitions, 54000 a key too long for any list, 55006 already moving, 0A000 with every reason why the slot
    /// cannot be divided so.
    pub fn file(self, user: &str, mut asked: serde_json::Value) -> PgResult<Vec<i64>> {
        let mut changes = self.changes()?;
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        changes.sort_by_key(|change| change.home.slot_id);
        self.require_room(&changes)?;
        asked["moved_keys"] = json!(changes.iter().map(|change| change.relayout.moved).sum::<usize>());
        let request_id = request::file_assignment(user, None, &asked)?;
        changes.iter().map(|change| file_one(request_id, change)).collect()
    }

    /// The slots whose layout changes, in lists that can be stored.
    fn changes(&self) -> PgResult<Vec<Change<'_>>> {
        let wished =
            || self.wishes.iter().filter_map(|(number, wishes)| Some((self.homes.get(number)?, wishes)));
        let present = wished().flat_map(|(home, _)| &home.guests).flat_map(|guest| &guest.keys);
        let coming = wished().flat_map(|(_, wishes)| wishes).filter(|(_, wish)| **wish != Wish::Home);
        let guard = security::as_restricted_owner(self.owner);
        let mut sizes = Sizes::of(&self.router, present.chain(coming.map(|(key, _)| key)))?;
        drop(guard);
        let lay_out = |size: &ListSize| {
            let changed = wished().filter_map(|(home, wishes)| {
                let relayout = relayout(home.shard_id, &home.guests, wishes, size)?;
                Some(Change { home, wishes, relayout })
            });
            changed.collect::<Vec<_>>()
        };
        sizes.lay_out(lay_out, |change| &change.relayout.made)
    }

    /// 53400 when a table would get too many partitions.
    fn require_room(&self, changes: &[Change]) -> PgResult<()> {
        let exceeded = |what: String| error(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, what);
        let leaves: usize = self.homes.values().map(|home| home.guests.len() + 1).sum();
        let made: usize = changes.iter().map(|change| change.relayout.made.len()).sum();
        let taken: usize = changes.iter().map(|change| change.relayout.taken.len()).sum();
        let most = guc::MAX_LEAVES.get().max(0) as usize;
        let any_slot = self.homes.values().map(|home| home.slot_id).next();
        let coming = match any_slot.filter(|_| made > taken) {
            Some(slot_id) => gathering::coming_lists(slot_id)?.max(0) as usize,
            None => 0,
        };
        let leaves = (leaves + coming + made).saturating_sub(taken);
        if made > taken && leaves > most {
            return Err(exceeded(format!(
                "table {} would have {leaves} leaf partitions, at most {most} are allowed",
                super::name_of(self.table)?
            ))
            .set_hint("Raise foreshard.max_leaves, or choose keys of fewer slots and shards."));
        }
        Ok(())
    }
}

/// A slot whose layout changes.
struct Change<'a> {
    home: &'a Home,
    wishes: &'a BTreeMap<String, Wish>,
    relayout: Relayout,
}

/// Where some keys of a slot are, as `move.former` has it.
fn places_of<'a>(home: &Home, keys: impl Iterator<Item = &'a String>) -> Value {
    let place = |key: &String| match home.guests.iter().find(|guest| guest.keys.contains(key)) {
        None => Value::Null,
        Some(guest) if guest.isolated => json!([guest.shard]),
        Some(guest) => json!(guest.shard),
    };
    keys.map(|key| (key.clone(), place(key))).collect()
}

/// Files the placement of one slot.
fn file_one(request_id: i64, Change { home, wishes, relayout }: &Change) -> PgResult<i64> {
    let former = places_of(home, wishes.keys());
    // Another session may file a move of the slot or of one of its chosen keys meanwhile.
    let move_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard, guests, former) \
         SELECT $1, 'place', s.slot_id, s.shard_id, s.shard_id, $3, $5 FROM foreshard.slot s WHERE s.slot_id = $2 AND s.shard_id = $4 \
         ON CONFLICT (slot_id) WHERE NOT finished DO NOTHING RETURNING move_id",
        &[
            request_id.into(),
            home.slot_id.into(),
            relayout.taken.clone().into(),
            home.shard_id.into(),
            JsonB(former).into(),
        ],
    )?
    .ok_or_else(|| moves::already_moving(home.slot_id))?;
    let busy = spi::one::<i64>(
        "SELECT m.slot_id FROM foreshard.move m WHERE m.slot_id = ANY ($1) AND NOT m.finished LIMIT 1",
        &[relayout.taken.clone().into()],
    )?;
    if let Some(slot_id) = busy {
        return Err(moves::already_moving(slot_id));
    }
    let first = (None, home.shard_id, Some(home.slot_id), false);
    let parts = relayout.made.iter().map(|guest| {
        let keys: Vec<String> = guest.keys.iter().cloned().collect();
        (Some(keys), guest.shard, guest.slot, guest.isolated)
    });
    for (part, (keys, shard, slot, isolated)) in (0..).zip(std::iter::once(first).chain(parts)) {
        spi::run(
            "INSERT INTO foreshard.move_part (move_id, part, modulus, remainder, shard_id, slot_id, keys, isolated) \
             SELECT $1, $2, s.modulus, s.remainder, $4, $5, $6, $7 FROM foreshard.slot s WHERE s.slot_id = $3",
            &[
                move_id.into(),
                i32::into(part),
                home.slot_id.into(),
                shard.into(),
                slot.into(),
                keys.into(),
                isolated.into(),
            ],
        )?;
    }
    place::refuse(home.slot_id, &reasons(move_id, home.slot_id)?)?;
    Ok(move_id)
}

/// Everything that speaks against a placement that was filed.
pub fn reasons(move_id: i64, slot_id: i64) -> PgResult<Vec<String>> {
    let families = guest::families(move_id)?;
    let sources: Vec<pg_sys::Oid> = families.iter().flat_map(|family| family.sources.clone()).collect();
    let mut found = place::reasons(slot_id, &sources)?;
    let parts = split::parts(move_id)?;
    for family in &families {
        found.extend(guest::against_family(family)?);
        found.extend(guest::against_branch(family, parts.len())?);
        found.extend(guest::against_keys(family, &parts)?);
    }
    // The partitions of a slot have most reasons in common.
    let mut seen = HashSet::new();
    found.retain(|reason| seen.insert(reason.clone()));
    Ok(found)
}
