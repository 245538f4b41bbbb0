//! How many chosen keys a list has room for: the layouts of slots in lists that PostgreSQL can store.

use super::wish::text_key;
use crate::pg::partition::{MAX_LIST_BYTES, Router, list_bytes};
use crate::pg::report::{PgResult, PgSqlErrorCode, error};
use foreshard_core::guests::{Guest, ListSize};
use std::collections::HashMap;

/// About as many keys as a list has room for, for plans: 150 uuids fit, 280 of any bigints, 800 small ones.
pub const KEYS_PER_LIST: usize = 200;

/// Keys by which the size of all is guessed.
const SAMPLE: usize = 512;
/// What a guess may be wrong by, to begin with and after each list that was too long.
const MARGIN: f64 = 1.08;
/// What a key takes besides its bytes that are not 0, in such bytes.
const BESIDES: usize = 3;

/// What the keys of a table take in the bounds of lists: guessed from a sample by their lengths, told exactly for a list.
pub struct Sizes {
    stored: HashMap<String, Vec<u8>>,
    /// Bytes in the catalog per byte that is not 0.
    scale: f64,
}

impl Sizes {
    /// Of some keys. Called as the restricted owner of the table: what makes a value of a text may be its code.
    ///
    /// # Errors
    /// What the type's input function says of a text.
    pub fn of<'a>(router: &Router, keys: impl Iterator<Item = &'a String>) -> PgResult<Sizes> {
        let mut stored = HashMap::new();
        for key in keys {
            if !stored.contains_key(key) {
                stored.insert(key.clone(), router.stored(router.value(text_key(key)?)));
            }
        }
        let mut sample: Vec<(&String, &Vec<u8>)> = stored.iter().collect();
        sample.sort();
        let step = sample.len().div_ceil(SAMPLE).max(1);
        let sample: Vec<&[u8]> =
            sample.into_iter().step_by(step).map(|(_, value)| value.as_slice()).collect();
        let empty = list_bytes(std::iter::empty())?;
        let bytes = list_bytes(sample.iter().copied())?.saturating_sub(empty);
        let weight: usize = sample.iter().map(|value| weight(value)).sum();
        let scale = bytes as f64 / weight.max(1) as f64 * MARGIN;
        Ok(Sizes { stored, scale })
    }

    /// Finds layouts all of whose lists can be stored.
    ///
    /// # Errors
    /// 54000 for a key that no list has room for.
    pub fn lay_out<T>(
        &mut self,
        lay_out: impl Fn(&ListSize) -> Vec<T>,
        made: impl Fn(&T) -> &[Guest],
    ) -> PgResult<Vec<T>> {
        loop {
            let guess = |key: &str| self.guess(key);
            let found = lay_out(&ListSize { most_bytes: MAX_LIST_BYTES, bytes_of: &guess });
            if !self.has_long_list(found.iter().flat_map(&made))? {
                return Ok(found);
            }
            self.scale *= MARGIN;
        }
    }

    fn guess(&self, key: &str) -> usize {
        let weight = self.stored.get(key).map_or(key.len() + BESIDES, |value| weight(value));
        (weight as f64 * self.scale).ceil() as usize
    }

    /// Whether a list is too long.
    fn has_long_list<'a>(&self, guests: impl Iterator<Item = &'a Guest>) -> PgResult<bool> {
        let mut long = false;
        for guest in guests {
            let values = guest.keys.iter().filter_map(|key| self.stored.get(key));
            let bytes = list_bytes(values.map(Vec::as_slice))?;
            if bytes <= MAX_LIST_BYTES {
                continue;
            }
            if let Some(key) = guest.keys.first().filter(|_| guest.keys.len() == 1) {
                let start: String = key.chars().take(64).collect();
                let code = PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED;
                return Err(error(code, format!("key {start}… is too long to be listed by a partition"))
                    .set_detail(format!("The bound of its partition would have {bytes} bytes, at most {MAX_LIST_BYTES} fit into the catalog."))
                    .set_hint("Move the whole slot of the key with foreshard.move_slot()."));
            }
            long = true;
        }
        Ok(long)
    }
}

/// What a value takes, in bytes that are not 0: runs of zeros all but vanish.
fn weight(value: &[u8]) -> usize {
    BESIDES + value.iter().filter(|byte| **byte != 0).count()
}
