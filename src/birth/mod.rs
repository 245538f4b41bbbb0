//! Keys at birth: a key that hashes into the slot where its row should live. What a session needs for that
//! is remembered per table, because `next_key()` runs for every inserted row; see ARCHITECTURE.md.

mod picture;
mod source;
mod table;

use crate::pg::report::{PgResult, internal};
use crate::pg::sequence;
use foreshard_core::birth::Dice;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;
use table::Table;

/// Cost units a key is taken to cost when nobody predicts it.
const DEFAULT_COST: f64 = 1.0;
/// Tables a session remembers.
const MAX_TABLES: usize = 64;

/// A key to be born near: of the type that is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Neighbour {
    /// A bigint.
    Bigint(i64),
    /// A uuid.
    Uuid([u8; 16]),
}

/// What type a key shall have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// bigint, of the table's key sequence.
    Bigint,
    /// uuid, random.
    Uuid,
}

/// What is wanted of [`draw`].
pub struct Wish {
    /// Managed table.
    pub table: pg_sys::Oid,
    /// Key to be born near, of `near_table`.
    pub near: Option<Neighbour>,
    /// Managed table of `near`; None: see [`table::Table`].
    pub near_table: Option<pg_sys::Oid>,
    /// Predicted cost, checked.
    pub cost: Option<f64>,
}

#[derive(Default)]
struct Session {
    tables: HashMap<u32, Table>,
    dice: Option<Dice>,
    clock: u64,
}

thread_local! {
    static SESSION: RefCell<Session> = RefCell::new(Session::default());
}

impl Session {
    fn dice(&mut self) -> PgResult<Dice> {
        if let Some(dice) = self.dice {
            return Ok(dice);
        }
        let mut seed = [0; 8];
        sequence::fill_random(&mut seed)?;
        Ok(Dice(u64::from_ne_bytes(seed)))
    }

    /// The table, read (again) when it is unknown or has changed.
    fn table(&mut self, oid: pg_sys::Oid) -> PgResult<&mut Table> {
        let key = oid.to_u32();
        if !self.tables.get(&key).is_some_and(Table::is_fresh) {
            let known = self.tables.remove(&key);
            if self.tables.len() >= MAX_TABLES
                && let Some(oldest) = self.tables.iter().min_by_key(|(_, t)| t.used_at()).map(|(k, _)| *k)
            {
                self.tables.remove(&oldest);
            }
            self.tables.insert(key, Table::read(oid, known)?);
        }
        self.clock += 1;
        let clock = self.clock;
        let table = self.tables.get_mut(&key).ok_or_else(|| internal("no table"))?;
        table.use_at(clock);
        Ok(table)
    }
}

/// Chooses a slot and takes a key of it that nobody else ever gets.
fn draw<K>(wish: &Wish, kind: Kind, take: impl FnOnce(&mut Table, usize) -> PgResult<K>) -> PgResult<K> {
    SESSION.with(|session| {
        let mut session = session.try_borrow_mut().map_err(internal)?;
        let mut dice = session.dice()?;
        let table = session.table(wish.table)?;
        table.require(kind)?;
        let cost = wish.cost.unwrap_or(DEFAULT_COST);
        let slot = table.choose(wish, cost, &mut dice)?;
        let key = take(table, slot)?;
        table.placed(slot, cost);
        session.dice = Some(dice);
        Ok(key)
    })
}

/// A bigint key.
pub fn draw_bigint(wish: &Wish) -> PgResult<i64> {
    sequence::refuse_read_only();
    draw(wish, Kind::Bigint, Table::take_bigint)
}

/// A uuid key.
pub fn draw_uuid(wish: &Wish) -> PgResult<[u8; 16]> {
    draw(wish, Kind::Uuid, Table::take_uuid)
}
