//! Where a new key shall be born: bounded load first, then the neighbour's place, then an even spread.
//!
//! A shard takes a key while its work stays within (1 + [`EPSILON`]) times its fair share, the bound of
//! Mirrokni, Thorup, Zadimoghaddam, *Consistent Hashing with Bounded Loads* (SODA 2018), here with
//! weighted balls and weighted bins. Without a neighbour the choice falls on the better of two random slots
//! (Mitzenmacher 2001): many processes that look at the same, slightly old numbers then spread out
//! instead of all running to the same emptiest place.
//!
//! Work is measured in cost units: what is running (load × half-life) plus what was placed since.

use std::collections::VecDeque;

/// No shard is filled beyond this share over its fair part of the work.
pub const EPSILON: f64 = 0.25;

/// A shard that uses less than this part of its capacity may take every key that has a neighbour there:
/// nothing is gained by balancing what is idle.
pub const IDLE: f64 = 0.1;

/// Batches of candidates that a [`Stock`] keeps.
pub const KEPT_BATCHES: usize = 16;

/// How often two slots are drawn before all of them are looked at.
const DRAWS: usize = 4;

/// A slot that a key may be born in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlotState {
    /// Its shard: an index into the shards.
    pub shard: usize,
    /// Cost units per second; 0 when unknown.
    pub load: f64,
    /// Cost units predicted for what was placed there since the load was measured.
    pub placed: f64,
}

/// A shard with at least one of the slots.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ShardState {
    /// Cost units per second.
    pub capacity: f64,
    /// Is being emptied: takes nothing unless all are.
    pub draining: bool,
    /// Work (cost units) of slots that are no candidates.
    pub elsewhere: f64,
}

/// What a key shall be near to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hint {
    /// Nothing.
    None,
    /// A key of this slot.
    Slot(usize),
    /// Something on this shard.
    Shard(usize),
}

/// Small random numbers (splitmix64): good enough to spread, never for secrets.
#[derive(Clone, Copy, Debug)]
pub struct Dice(pub u64);

impl Dice {
    /// The next number in [0, 1).
    #[inline]
    pub fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The next index below `count`.
    #[inline]
    fn below(&mut self, count: usize) -> usize {
        ((self.roll() * count as f64) as usize).min(count.saturating_sub(1))
    }
}

#[derive(Clone, Debug)]
struct Shard {
    capacity: f64,
    /// Part of the capacity of all shards; 0 while draining.
    share: f64,
    work: f64,
    slots: Vec<usize>,
}

/// The slots and shards of a table at one instant, kept up to date with what is placed from here.
#[derive(Clone, Debug)]
pub struct Picture {
    shard_of: Vec<usize>,
    slot_work: Vec<f64>,
    shards: Vec<Shard>,
    half_life_s: f64,
    /// Work of all shards.
    total: f64,
    /// Work of the candidate slots alone.
    own: f64,
    /// Sums of the slots' weights, for drawing.
    ladder: Vec<f64>,
}

/// A number that can be added up: not negative, not NaN, not infinite.
fn sane(number: f64) -> f64 {
    if number.is_finite() && number > 0.0 { number } else { 0.0 }
}

/// The least multiple of `cost` that is no less than `work`: the bound on whole keys.
fn whole_keys(work: f64, cost: f64) -> f64 {
    if cost > 0.0 { (work / cost).ceil() * cost } else { work }
}

impl Picture {
    /// Takes the picture. A slot whose shard does not exist is never chosen.
    pub fn new(slots: &[SlotState], shards: &[ShardState], half_life_s: f64) -> Self {
        let all_drain = shards.iter().all(|shard| shard.draining);
        let takes = |shard: &ShardState| (all_drain || !shard.draining) && shard.capacity > 0.0;
        let sum: f64 = shards.iter().filter(|s| takes(s)).map(|s| sane(s.capacity)).sum();
        let mut own_shards: Vec<Shard> = shards
            .iter()
            .map(|shard| Shard {
                capacity: sane(shard.capacity),
                share: if takes(shard) && sum > 0.0 { sane(shard.capacity) / sum } else { 0.0 },
                work: sane(shard.elsewhere),
                slots: Vec::new(),
            })
            .collect();
        let mut slot_work = Vec::with_capacity(slots.len());
        for (index, slot) in slots.iter().enumerate() {
            let work = sane(slot.load) * sane(half_life_s) + sane(slot.placed);
            slot_work.push(work);
            if let Some(shard) = own_shards.get_mut(slot.shard) {
                shard.work += work;
                shard.slots.push(index);
            }
        }
        let mut picture = Self {
            shard_of: slots.iter().map(|slot| slot.shard).collect(),
            total: own_shards.iter().map(|shard| shard.work).sum(),
            own: slot_work.iter().sum(),
            slot_work,
            shards: own_shards,
            half_life_s: sane(half_life_s),
            ladder: Vec::new(),
        };
        picture.build_ladder();
        picture
    }

    /// Slots are drawn in proportion to what their shard has left below its bound, so that processes
    /// which share one picture fill all shards evenly instead of the emptiest one.
    fn build_ladder(&mut self) {
        let room = |shard: &Shard| ((1.0 + EPSILON) * shard.share * self.total - shard.work).max(0.0);
        let any_room = self.shards.iter().any(|s| s.share > 0.0 && !s.slots.is_empty() && room(s) > 0.0);
        let mut sum = 0.0;
        self.ladder = self
            .shard_of
            .iter()
            .map(|shard| {
                if let Some(shard) = self.shards.get(*shard) {
                    let weight = if any_room && shard.share > 0.0 { room(shard) } else { shard.share };
                    sum += weight / shard.slots.len().max(1) as f64;
                }
                sum
            })
            .collect();
    }

    /// The slot for a key of this predicted cost; None when there is no slot at all.
    pub fn choose(&self, hint: Hint, cost: f64, dice: &mut Dice) -> Option<usize> {
        let cost = sane(cost);
        let shard = match hint {
            Hint::None => None,
            Hint::Slot(slot) => self.shard_of.get(slot).copied(),
            Hint::Shard(shard) => Some(shard),
        };
        if let Some(shard) = shard.and_then(|shard| self.shards.get(shard))
            && shard.share > 0.0
            && !shard.slots.is_empty()
            && self.fits_neighbour(shard, cost)
        {
            if let Hint::Slot(slot) = hint
                && self.slot_fits_neighbour(slot, shard, cost)
            {
                return Some(slot);
            }
            return self.lighter_of_two(shard, dice);
        }
        self.spread(cost, dice)
    }

    /// Notes that a key of this predicted cost was born in a slot.
    pub fn place(&mut self, slot: usize, cost: f64) {
        let cost = sane(cost);
        if let Some(work) = self.slot_work.get_mut(slot) {
            *work += cost;
            self.own += cost;
            self.total += cost;
            if let Some(shard) = self.shard_of.get(slot).and_then(|shard| self.shards.get_mut(*shard)) {
                shard.work += cost;
            }
        }
    }

    /// The work a part of everything may carry when a key of this cost comes.
    fn bound(share: f64, work: f64, cost: f64) -> f64 {
        whole_keys((1.0 + EPSILON) * share * (work + cost), cost)
    }

    fn fits(&self, shard: &Shard, cost: f64) -> bool {
        shard.share > 0.0 && shard.work + cost <= Self::bound(shard.share, self.total, cost)
    }

    fn fits_neighbour(&self, shard: &Shard, cost: f64) -> bool {
        self.fits(shard, cost) || shard.work + cost <= IDLE * shard.capacity * self.half_life_s
    }

    /// The same bound one level below: a slot's fair share is an equal part of its shard's.
    fn slot_fits_neighbour(&self, slot: usize, shard: &Shard, cost: f64) -> bool {
        let parts = shard.slots.len().max(1) as f64;
        let work = self.slot_work.get(slot).copied().unwrap_or(f64::INFINITY) + cost;
        work <= Self::bound(shard.share / parts, self.own, cost)
            || work <= IDLE * shard.capacity * self.half_life_s / parts
    }

    /// The lighter of two different random slots of a shard.
    fn lighter_of_two(&self, shard: &Shard, dice: &mut Dice) -> Option<usize> {
        let count = shard.slots.len();
        let first = dice.below(count);
        let a = *shard.slots.get(first)?;
        let further = if count > 1 { 1 + dice.below(count - 1) } else { 0 };
        let b = *shard.slots.get((first + further) % count)?;
        Some(if self.slot_work.get(b) < self.slot_work.get(a) { b } else { a })
    }

    /// How full a slot and its shard are, as parts of what they should carry.
    fn crowding(&self, slot: usize) -> f64 {
        let Some(shard) = self.shard_of.get(slot).and_then(|shard| self.shards.get(*shard)) else {
            return f64::INFINITY;
        };
        if shard.share <= 0.0 {
            return f64::INFINITY;
        }
        let own = self.slot_work.get(slot).copied().unwrap_or(0.0) * shard.slots.len() as f64;
        (shard.work + own) / shard.capacity
    }

    fn takes(&self, slot: usize, cost: f64) -> bool {
        self.shard_of
            .get(slot)
            .and_then(|shard| self.shards.get(*shard))
            .is_some_and(|shard| self.fits(shard, cost))
    }

    fn draw(&self, dice: &mut Dice) -> usize {
        let sum = self.ladder.last().copied().unwrap_or(0.0);
        let at = dice.roll() * sum;
        self.ladder.partition_point(|upto| *upto <= at).min(self.ladder.len().saturating_sub(1))
    }

    fn spread(&self, cost: f64, dice: &mut Dice) -> Option<usize> {
        for _ in 0..DRAWS {
            let (a, b) = (self.draw(dice), self.draw(dice));
            let (better, other) = if self.crowding(b) < self.crowding(a) { (b, a) } else { (a, b) };
            for slot in [better, other] {
                if self.takes(slot, cost) {
                    return Some(slot);
                }
            }
        }
        let emptiest = |slots: &mut dyn Iterator<Item = usize>| {
            slots.min_by(|a, b| self.crowding(*a).total_cmp(&self.crowding(*b)))
        };
        let all = 0..self.slot_work.len();
        emptiest(&mut all.clone().filter(|slot| self.takes(*slot, cost)))
            .or_else(|| emptiest(&mut all.clone().filter(|slot| self.crowding(*slot).is_finite())))
            .or_else(|| emptiest(&mut all.clone()))
    }
}

/// Candidates that hashed into some slot and wait to be asked for, in the order in which they came.
///
/// It holds the candidates of the last [`KEPT_BATCHES`] batches; older ones are forgotten. Whatever leaves
/// it never comes back, so no candidate is handed out twice.
#[derive(Clone, Debug)]
pub struct Stock<K> {
    shelves: Vec<VecDeque<(u64, K)>>,
    batch: u64,
}

impl<K: Copy> Stock<K> {
    /// An empty stock for this many slots.
    pub fn new(slots: usize) -> Self {
        Self { shelves: std::iter::repeat_with(VecDeque::new).take(slots).collect(), batch: 0 }
    }

    /// Begins a batch; what is left of a batch that is too old is forgotten.
    pub fn begin_batch(&mut self) {
        self.batch += 1;
        let keep = self.batch.saturating_sub(KEPT_BATCHES as u64);
        for shelf in &mut self.shelves {
            while shelf.front().is_some_and(|(batch, _)| *batch <= keep) {
                shelf.pop_front();
            }
        }
    }

    /// Adds a candidate of the present batch; one of no slot is dropped.
    #[inline]
    pub fn put(&mut self, slot: usize, key: K) {
        if let Some(shelf) = self.shelves.get_mut(slot) {
            shelf.push_back((self.batch, key));
        }
    }

    /// Takes the oldest candidate of a slot.
    #[inline]
    pub fn take(&mut self, slot: usize) -> Option<K> {
        self.shelves.get_mut(slot)?.pop_front().map(|(_, key)| key)
    }

    /// Candidates of all slots.
    pub fn len(&self) -> usize {
        self.shelves.iter().map(VecDeque::len).sum()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.shelves.iter().all(VecDeque::is_empty)
    }
}
