//! Candidates: where keys come from, before they are sorted by slot.

use crate::catalog::birth::BLOCK;
use crate::pg::partition::Router;
use crate::pg::report::{PgResult, error, internal};
use crate::pg::sequence;
use foreshard_core::birth::Stock;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Candidates hashed at a time.
const CHUNK: usize = 64;
/// Random candidates that count as one batch of the stock.
const RANDOM_BATCH: usize = 1024;
/// Chunks after which a slot is given up: with the most slots a table may have, a chance of e^-128.
const MAX_CHUNKS: usize = 64 * BLOCK as usize / CHUNK;

/// Blocks of a sequence.
pub struct Blocks {
    /// The sequence.
    pub sequence: pg_sys::Oid,
    /// The storage of the sequence that all of this came from; 0: nothing came yet.
    storage: u32,
    slots: usize,
    /// Keys of the present block that are not hashed yet: first and number.
    rest: (i64, i64),
    stock: Stock<i64>,
}

impl Blocks {
    /// Nothing taken yet.
    pub fn new(sequence: pg_sys::Oid, slots: usize) -> Self {
        Blocks { sequence, storage: 0, slots, rest: (0, 0), stock: Stock::new(slots) }
    }

    /// The sequence has this storage now. What came from another one is forgotten: since the sequence was restarted
    /// (or the restart was rolled back), it gives the same values again.
    pub fn has_storage(&mut self, storage: u32) {
        if self.storage != storage {
            *self = Blocks { storage, ..Blocks::new(self.sequence, self.slots) };
        }
    }

    /// A key of this slot. A block leaves the sequence before any of its keys is handed out, and a key
    /// leaves the stock when it is: neither comes back, whatever becomes of the transaction.
    pub fn take(&mut self, slot: usize, router: &mut Router) -> PgResult<i64> {
        for _ in 0..MAX_CHUNKS {
            if let Some(key) = self.stock.take(slot) {
                return Ok(key);
            }
            pgrx::check_for_interrupts!();
            self.fill(router)?;
        }
        Err(internal(format!("no key for partition {slot}")))
    }

    fn fill(&mut self, router: &mut Router) -> PgResult<()> {
        if self.rest.1 == 0 {
            let (value, storage) = sequence::next_durable(self.sequence);
            self.has_storage(storage);
            let first = value.checked_mul(BLOCK).filter(|first| first.checked_add(BLOCK - 1).is_some());
            let Some(first) = first else {
                return Err(error(
                    PgSqlErrorCode::ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED,
                    format!("value {value} of the key sequence is out of range"),
                ));
            };
            self.rest = (first, BLOCK);
            self.stock.begin_batch();
        }
        let first = self.rest.0;
        // BLOCK is a multiple of CHUNK, so a chunk never crosses a block's end.
        let keys: [i64; CHUNK] = std::array::from_fn(|i| first + i as i64);
        let places = router.locate_bigints(&keys);
        self.rest = (first.wrapping_add(CHUNK as i64), self.rest.1 - CHUNK as i64);
        for (key, place) in keys.iter().zip(places) {
            if let Some(slot) = place {
                self.stock.put(slot, *key);
            }
        }
        Ok(())
    }
}

/// Random uuids, version 4 (RFC 9562).
pub struct Uuids {
    drawn: usize,
    stock: Stock<[u8; 16]>,
}

impl Uuids {
    /// Nothing drawn yet.
    pub fn new(slots: usize) -> Self {
        Uuids { drawn: 0, stock: Stock::new(slots) }
    }

    /// A key of this slot.
    pub fn take(&mut self, slot: usize, router: &mut Router) -> PgResult<[u8; 16]> {
        for _ in 0..MAX_CHUNKS {
            if let Some(key) = self.stock.take(slot) {
                return Ok(key);
            }
            pgrx::check_for_interrupts!();
            self.fill(router)?;
        }
        Err(internal(format!("no key for partition {slot}")))
    }

    fn fill(&mut self, router: &mut Router) -> PgResult<()> {
        if self.drawn.is_multiple_of(RANDOM_BATCH) {
            self.stock.begin_batch();
        }
        self.drawn += CHUNK;
        let mut keys = [[0_u8; 16]; CHUNK];
        sequence::fill_random(keys.as_flattened_mut())?;
        for key in &mut keys {
            key[6] = key[6] & 0x0f | 0x40;
            key[8] = key[8] & 0x3f | 0x80;
        }
        for (key, place) in keys.iter().zip(router.locate_uuids(&keys)) {
            if let Some(slot) = place {
                self.stock.put(slot, *key);
            }
        }
        Ok(())
    }
}
