//! The layout of one slot with chosen keys: which keys live beside it, where, and what has to be made anew
//! when some of them shall live elsewhere.
//!
//! A slot is a home, where every key lives by default, and guests: sets of keys with a place of their own. A
//! shared guest holds the chosen keys of one shard, an isolated one a single key. Only what changes is made anew:
//! the home, because keys come from it and go back to it, and the guests whose keys differ.

use std::collections::{BTreeMap, BTreeSet};

/// A set of keys beside the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Its own slot; None: not made yet.
    pub slot: Option<i64>,
    /// Where it lives.
    pub shard: i32,
    /// It is one key's own place.
    pub isolated: bool,
    /// Its keys, in one text form each.
    pub keys: BTreeSet<String>,
}

/// Where one key shall live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// With the slot.
    Home,
    /// With the other chosen keys of this shard.
    On(i32),
    /// By itself, on this shard.
    Alone(i32),
}

/// What has to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relayout {
    /// Guests to make anew, beside the home.
    pub made: Vec<Guest>,
    /// Slots of the present guests that they replace.
    pub taken: Vec<i64>,
    /// Guests that stay as they are.
    pub kept: usize,
    /// Keys that change their place.
    pub moved: usize,
}

/// The new layout of a slot whose home is on shard `home`; None: nothing changes. A key that shall live where
/// the home is lives with it, unless it shall be alone.
pub fn relayout(home: i32, present: &[Guest], wishes: &BTreeMap<String, Wish>) -> Option<Relayout> {
    let mut guests: Vec<(Guest, bool)> = present.iter().map(|guest| (guest.clone(), false)).collect();
    let mut moved = 0;
    for (key, wish) in wishes {
        let wish = match *wish {
            Wish::On(shard) if shard == home => Wish::Home,
            wish => wish,
        };
        let at = guests.iter().position(|(guest, _)| guest.keys.contains(key));
        let is_there = match (wish, at.and_then(|at| guests.get(at))) {
            (Wish::Home, None) => true,
            (Wish::On(shard), Some((guest, _))) => !guest.isolated && guest.shard == shard,
            (Wish::Alone(shard), Some((guest, _))) => guest.isolated && guest.shard == shard,
            _ => false,
        };
        if is_there {
            continue;
        }
        moved += 1;
        if let Some((guest, changed)) = at.and_then(|at| guests.get_mut(at)) {
            guest.keys.remove(key);
            *changed = true;
        }
        settle(&mut guests, key, wish);
    }
    if moved == 0 {
        return None;
    }
    let mut result = Relayout { moved, ..Relayout::default() };
    for (guest, changed) in guests {
        if !changed {
            result.kept += 1;
            continue;
        }
        result.taken.extend(guest.slot);
        if !guest.keys.is_empty() {
            result.made.push(guest);
        }
    }
    Some(result)
}

/// Gives a key its place among the guests.
fn settle(guests: &mut Vec<(Guest, bool)>, key: &str, wish: Wish) {
    let (shard, isolated) = match wish {
        Wish::Home => return,
        Wish::On(shard) => (shard, false),
        Wish::Alone(shard) => (shard, true),
    };
    let shared = guests.iter_mut().find(|(guest, _)| !isolated && !guest.isolated && guest.shard == shard);
    if let Some((guest, changed)) = shared {
        guest.keys.insert(key.to_string());
        *changed = true;
        return;
    }
    let keys = BTreeSet::from([key.to_string()]);
    guests.push((Guest { slot: None, shard, isolated, keys }, true));
}
