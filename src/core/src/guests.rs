//! The layout of one slot with chosen keys: which keys live beside it, where, and what has to be made anew
//! when some of them shall live elsewhere.
//!
//! A slot is a home, where every key lives by default, and guests: sets of keys with a place of their own. A
//! shared guest holds chosen keys of one shard, as many as a list has room for; an isolated one holds a single key.
//! Only what changes is made anew: the home, because keys come from it and go back to it, and the guests whose keys
//! differ.

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

/// How much a list holds. PostgreSQL keeps the bound of a partition, every key of it included, in one row of its
/// catalog, which has to fit into a page.
pub struct ListSize<'a> {
    /// The most bytes of one list.
    pub most_bytes: usize,
    /// About what a key takes of them.
    pub bytes_of: &'a dyn Fn(&str) -> usize,
}

impl ListSize<'_> {
    /// What some keys take.
    fn of(&self, keys: &BTreeSet<String>) -> usize {
        keys.iter().map(|key| (self.bytes_of)(key)).sum()
    }
}

/// A guest while its keys come and go.
struct Draft {
    guest: Guest,
    bytes: usize,
    changed: bool,
}

impl Draft {
    /// Whether it holds chosen keys of `shard`.
    fn shares(&self, shard: i32) -> bool {
        !self.guest.isolated && self.guest.shard == shard
    }
}

/// The new layout of a slot whose home is on shard `home`; None: nothing changes. A key that shall live where
/// the home is lives with it, unless it shall be alone. A key that is larger than a list may be has one to itself.
pub fn relayout(
    home: i32,
    present: &[Guest],
    wishes: &BTreeMap<String, Wish>,
    size: &ListSize,
) -> Option<Relayout> {
    let draft = |guest: &Guest| Draft { bytes: size.of(&guest.keys), guest: guest.clone(), changed: false };
    let mut drafts: Vec<Draft> = present.iter().map(draft).collect();
    let mut moved = 0;
    let mut coming: BTreeMap<i32, Vec<&String>> = BTreeMap::new();
    for (key, wish) in wishes {
        let wish = match *wish {
            Wish::On(shard) if shard == home => Wish::Home,
            wish => wish,
        };
        let at = drafts.iter().position(|draft| draft.guest.keys.contains(key));
        let is_there = match (wish, at.and_then(|at| drafts.get(at))) {
            (Wish::Home, None) => true,
            (Wish::On(shard), Some(draft)) => draft.shares(shard),
            (Wish::Alone(shard), Some(draft)) => draft.guest.isolated && draft.guest.shard == shard,
            _ => false,
        };
        if is_there {
            continue;
        }
        moved += 1;
        let bytes = (size.bytes_of)(key);
        if let Some(draft) = at.and_then(|at| drafts.get_mut(at)) {
            draft.guest.keys.remove(key);
            draft.bytes = draft.bytes.saturating_sub(bytes);
            draft.changed = true;
        }
        match wish {
            Wish::Home => {}
            Wish::On(shard) => coming.entry(shard).or_default().push(key),
            Wish::Alone(shard) => drafts.push(fresh(shard, true, key, bytes)),
        }
    }
    if moved == 0 {
        return None;
    }
    for (shard, keys) in coming {
        fill(&mut drafts, shard, &keys, size);
    }
    let shards: BTreeSet<i32> = drafts.iter().filter(|draft| draft.changed).map(|d| d.guest.shard).collect();
    for shard in shards {
        while let Some((from, into)) = joinable(&drafts, shard, size.most_bytes) {
            join(&mut drafts, from, into);
        }
    }
    Some(finished(drafts, moved))
}

/// What has to be made so that the guests become as drafted.
fn finished(drafts: Vec<Draft>, moved: usize) -> Relayout {
    let mut result = Relayout { moved, ..Relayout::default() };
    for Draft { guest, changed, .. } in drafts {
        if !changed {
            result.kept += 1;
            continue;
        }
        result.taken.extend(guest.slot);
        if !guest.keys.is_empty() {
            result.made.push(guest);
        }
    }
    result
}

/// A guest that there was not before.
fn fresh(shard: i32, isolated: bool, key: &str, bytes: usize) -> Draft {
    let keys = BTreeSet::from([key.to_string()]);
    Draft { guest: Guest { slot: None, shard, isolated, keys }, bytes, changed: true }
}

/// Gives keys a place among the shared guests of a shard: where something changes anyway, else in the one with
/// most room if that is worth a copy of it, else in a new one.
fn fill(drafts: &mut Vec<Draft>, shard: i32, keys: &[&String], size: &ListSize) {
    let most = size.most_bytes;
    let mut left: usize = keys.iter().map(|key| (size.bytes_of)(key)).sum();
    let mut open: Option<usize> = None;
    for key in keys {
        let bytes = (size.bytes_of)(key);
        let has_room = |draft: &Draft| draft.shares(shard) && draft.bytes + bytes <= most;
        if !open.and_then(|at| drafts.get(at)).is_some_and(has_room) {
            let worth = left.min(most / 2);
            open = drafts.iter().position(|draft| draft.changed && has_room(draft)).or_else(|| {
                let roomy = drafts.iter().enumerate().filter(|(_, d)| has_room(d) && most - d.bytes >= worth);
                roomy.min_by_key(|(at, draft)| (draft.bytes, *at)).map(|(at, _)| at)
            });
        }
        left = left.saturating_sub(bytes);
        match open.and_then(|at| drafts.get_mut(at)) {
            Some(draft) => {
                draft.guest.keys.insert((*key).clone());
                draft.bytes += bytes;
                draft.changed = true;
            }
            None => {
                open = Some(drafts.len());
                drafts.push(fresh(shard, false, key, bytes));
            }
        }
    }
}

/// Two shared guests of a shard that have room in one: the smaller one, and the one that takes it up. Of guests that
/// stay as they are one is worth a copy only for a guest that is nearly empty.
fn joinable(drafts: &[Draft], shard: i32, most: usize) -> Option<(usize, usize)> {
    let shared = drafts.iter().enumerate().filter(|(_, d)| d.shares(shard) && !d.guest.keys.is_empty());
    let mut by_size: Vec<(usize, &Draft)> = shared.collect();
    by_size.sort_by_key(|(at, draft)| (draft.bytes, *at));
    let (from, small) = *by_size.iter().find(|(_, draft)| draft.changed)?;
    let mut others = by_size.into_iter().filter(|(at, _)| *at != from);
    let fits = |draft: &Draft| match draft.changed {
        true => draft.bytes + small.bytes <= most,
        false => small.bytes <= most / 4 && draft.bytes + small.bytes <= most / 4 * 3,
    };
    others.find(|(_, draft)| fits(draft)).map(|(into, _)| (from, into))
}

/// Two guests become one, which is the slot of either if there was one.
fn join(drafts: &mut [Draft], from: usize, into: usize) {
    let Some(small) = drafts.get_mut(from) else { return };
    let (keys, bytes) = (std::mem::take(&mut small.guest.keys), std::mem::take(&mut small.bytes));
    let slot = small.guest.slot;
    if let Some(large) = drafts.get_mut(into) {
        large.guest.keys.extend(keys);
        large.bytes += bytes;
        large.changed = true;
        if large.guest.slot.is_none() {
            large.guest.slot = slot;
            if let Some(small) = drafts.get_mut(from) {
                small.guest.slot = None;
            }
        }
    }
}
