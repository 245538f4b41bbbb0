//! What a session remembers of a managed table for the birth of its keys.

use super::picture::{self, View};
use super::source::{Blocks, Uuids};
use super::{Kind, Neighbour, Wish};
use crate::catalog::birth::{Cradle, cradles, newborn, parents};
use crate::catalog::name_of;
use crate::observe::directory::note_placed;
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::{PgResult, unsupported, wrong_state};
use crate::pg::{guc, invalidation, security, sequence};
use foreshard_core::birth::{Dice, Hint};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

/// Age after which the catalog is read again: not everything in it announces its changes.
const MAX_AGE: Duration = Duration::from_secs(10);
/// Age after which the loads are looked at again.
const MAX_VIEW_AGE: Duration = Duration::from_millis(100);

/// Where keys of a table come from.
enum Source {
    Blocks(Blocks),
    Uuids(Uuids),
    /// A bigint key without a sequence.
    Missing,
    /// Keys of another type.
    OtherType,
}

/// Another table whose keys serve as neighbours: partitions to shards.
struct Relative {
    group_id: i32,
    router: Router,
    /// By partition number.
    shards: Vec<i32>,
}

/// A managed table.
///
/// `near` belongs to the table named with it; else to the parent, when the foreign keys that do not contain
/// the table's key lead to exactly one managed table; else to the table itself.
pub struct Table {
    oid: pg_sys::Oid,
    group_id: i32,
    router: Router,
    cradles: Vec<Cradle>,
    source: Source,
    near_table: pg_sys::Oid,
    relatives: HashMap<u32, Relative>,
    /// Cost placed by this session in slots that nobody watches, decaying.
    mine: Vec<f64>,
    view: View,
    generation: u64,
    read_at: Instant,
    used_at: u64,
}

impl Table {
    /// Whether nothing is known to have changed.
    pub fn is_fresh(&self) -> bool {
        self.generation == invalidation::generation() && self.read_at.elapsed() < MAX_AGE
    }

    /// When the table was used last, on the session's own clock.
    pub fn used_at(&self) -> u64 {
        self.used_at
    }

    /// Sets what [`Table::used_at`] says.
    pub fn use_at(&mut self, clock: u64) {
        self.used_at = clock;
    }

    /// Reads a table. Candidates in stock of a `known` table stay, while its partitions are the same.
    pub fn read(oid: pg_sys::Oid, known: Option<Table>) -> PgResult<Table> {
        invalidation::watch([oid]);
        let generation = invalidation::generation();
        let _path = security::pinned_search_path();
        let _owner = security::as_extension_owner()?;
        let Some(newborn) = newborn(oid)? else {
            return Err(wrong_state(format!("table {} is not managed by foreshard", name_of(oid)?))
                .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
        };
        let router = Router::of(oid, Lifetime::Session)?;
        invalidation::watch(router.partitions().iter().copied());
        let cradles = in_order(&router, &cradles(oid)?);
        let key_sequence = newborn.key_sequence.filter(|sequence| sequence::is_owned_by(*sequence, oid));
        invalidation::watch(key_sequence);
        let parents = parents(oid, router.key_attribute())?;
        let near_table = if let [parent] = parents.as_slice() { *parent } else { oid };
        let (mut source, mine) = match known {
            Some(known) if known.has_same_keys(&router, key_sequence) => (known.source, known.mine),
            _ => (source(&router, key_sequence), vec![0.0; cradles.len()]),
        };
        if let Source::Blocks(blocks) = &mut source {
            blocks.has_storage(sequence::storage(blocks.sequence));
        }
        let view = picture::take(&cradles, &mine);
        let group_id = newborn.group_id;
        let relatives = HashMap::new();
        let read_at = Instant::now();
        Ok(Table {
            oid,
            group_id,
            router,
            cradles,
            source,
            near_table,
            relatives,
            mine,
            view,
            generation,
            read_at,
            used_at: 0,
        })
    }

    fn has_same_keys(&self, router: &Router, key_sequence: Option<pg_sys::Oid>) -> bool {
        let same_source = match &self.source {
            Source::Blocks(blocks) => Some(blocks.sequence) == key_sequence,
            Source::Uuids(_) => true,
            Source::Missing | Source::OtherType => false,
        };
        same_source
            && self.router.key_type() == router.key_type()
            && self.router.partitions() == router.partitions()
    }

    /// The slot (its partition's number) for a key.
    pub fn choose(&mut self, wish: &Wish, cost: f64, dice: &mut Dice) -> PgResult<usize> {
        let age = self.view.taken_at.elapsed();
        if age > MAX_VIEW_AGE {
            let decay = 0.5_f64.powf(age.as_secs_f64() / f64::from(guc::HEAT_HALF_LIFE.get().max(1)));
            self.mine.iter_mut().for_each(|cost| *cost *= decay);
            self.view = picture::take(&self.cradles, &self.mine);
        }
        let hint = match wish.near {
            None => Hint::None,
            Some(near) => self.hint(near, wish.near_table.unwrap_or(self.near_table))?,
        };
        match self.view.picture.choose(hint, cost, dice) {
            Some(slot) => Ok(slot),
            None => Err(wrong_state(format!("table {} has no partitions", self.name()?))),
        }
    }

    /// Notes that a key was born in a slot, here and for all other sessions.
    pub fn placed(&mut self, slot: usize, cost: f64) {
        self.view.picture.place(slot, cost);
        if self.view.watched.get(slot) == Some(&true) {
            note_placed(self.router.partition(slot).to_u32(), cost);
        } else if let Some(mine) = self.mine.get_mut(slot) {
            *mine += cost;
        }
    }

    fn hint(&mut self, near: Neighbour, near_table: pg_sys::Oid) -> PgResult<Hint> {
        if near_table == self.oid {
            return Ok(locate(&mut self.router, near).map_or(Hint::None, Hint::Slot));
        }
        let relative = match self.relatives.entry(near_table.to_u32()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(Relative::read(near_table)?),
        };
        if relative.group_id == self.group_id {
            // One layout: the same hash, the same slot.
            return Ok(locate(&mut self.router, near).map_or(Hint::None, Hint::Slot));
        }
        let shard = locate(&mut relative.router, near)
            .and_then(|place| relative.shards.get(place))
            .and_then(|shard_id| self.view.shards.get(shard_id));
        Ok(shard.copied().map_or(Hint::None, Hint::Shard))
    }

    /// A bigint key of a slot.
    pub fn take_bigint(&mut self, slot: usize) -> PgResult<i64> {
        match &mut self.source {
            Source::Blocks(blocks) => blocks.take(slot, &mut self.router),
            _ => Err(self.refusal()?),
        }
    }

    /// A uuid key of a slot.
    pub fn take_uuid(&mut self, slot: usize) -> PgResult<[u8; 16]> {
        match &mut self.source {
            Source::Uuids(uuids) => uuids.take(slot, &mut self.router),
            _ => Err(self.refusal()?),
        }
    }

    /// 0A000 unless keys of this kind can be drawn.
    pub fn require(&self, kind: Kind) -> PgResult<()> {
        match (&self.source, kind) {
            (Source::Blocks(_), Kind::Bigint) | (Source::Uuids(_), Kind::Uuid) => Ok(()),
            _ => Err(self.refusal()?),
        }
    }

    /// Why keys of the kind asked for cannot be drawn.
    fn refusal(&self) -> PgResult<ErrorReport> {
        let name = self.name()?;
        Ok(match &self.source {
            Source::Blocks(_) => unsupported(format!("the keys of table {name} are of type bigint"))
                .set_hint("Give near as a bigint, if only NULL::bigint."),
            Source::Uuids(_) => unsupported(format!("the keys of table {name} are of type uuid"))
                .set_hint("Give near as a uuid, if only NULL::uuid."),
            Source::Missing => unsupported(format!("table {name} has no key sequence"))
                .set_detail("distribute() creates it, unless the key column has a sequence of its own (serial, identity): two would meet one day.")
                .set_hint("Take the column's own sequence away, then call foreshard.undistribute() and foreshard.distribute()."),
            Source::OtherType => unsupported(format!("the keys of table {name} are neither bigint nor uuid"))
                .set_detail("Keys of other types cannot be drawn so that they hash into a chosen slot.")
                .set_hint("Draw the keys otherwise; PostgreSQL routes them by their hash."),
        })
    }

    fn name(&self) -> PgResult<String> {
        let _path = security::pinned_search_path();
        name_of(self.oid)
    }
}

impl Relative {
    fn read(oid: pg_sys::Oid) -> PgResult<Relative> {
        invalidation::watch([oid]);
        let _path = security::pinned_search_path();
        let _owner = security::as_extension_owner()?;
        let Some(managed) = newborn(oid)? else {
            return Err(wrong_state(format!("table {} is not managed by foreshard", name_of(oid)?))
                .set_hint("near_table names the managed table that near is a key of."));
        };
        let router = Router::of(oid, Lifetime::Session)?;
        invalidation::watch(router.partitions().iter().copied());
        let shards = in_order(&router, &cradles(oid)?).iter().map(|cradle| cradle.shard_id).collect();
        Ok(Relative { group_id: managed.group_id, router, shards })
    }
}

fn source(router: &Router, key_sequence: Option<pg_sys::Oid>) -> Source {
    let slots = router.partitions().len();
    match (router.key_type(), key_sequence) {
        (pg_sys::INT8OID, Some(sequence)) => Source::Blocks(Blocks::new(sequence, slots)),
        (pg_sys::INT8OID, None) => Source::Missing,
        (pg_sys::UUIDOID, _) => Source::Uuids(Uuids::new(slots)),
        _ => Source::OtherType,
    }
}

fn locate(router: &mut Router, near: Neighbour) -> Option<usize> {
    match near {
        Neighbour::Bigint(key) => router.locate_bigint(key),
        Neighbour::Uuid(key) => router.locate_uuid(&key),
    }
}

/// The cradles by partition number; a partition that foreshard does not know takes no keys.
fn in_order(router: &Router, cradles: &[Cradle]) -> Vec<Cradle> {
    let by_partition: HashMap<u32, &Cradle> = cradles.iter().map(|c| (c.partition.to_u32(), c)).collect();
    let unknown = |partition| Cradle { partition, slot_id: 0, shard_id: 0, capacity: 0.0, draining: true };
    router
        .partitions()
        .iter()
        .map(|oid| by_partition.get(&oid.to_u32()).map_or_else(|| unknown(*oid), |c| **c))
        .collect()
}
