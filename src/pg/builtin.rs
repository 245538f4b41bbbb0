//! Calls of built-in triggers (foreign keys and the like), which no hook sees: counted by the executor's own
//! instrumentation of a sampled statement.

use super::plan::{MAX_NODES, pointers};
use super::region;
use foreshard_core::frames::{Amount, Amounts};
use foreshard_core::shared::ProfileIdentity;
use pgrx::pg_sys;

/// Calls of a built-in trigger, as the executor counted them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BuiltInCalls {
    /// The relation the trigger fired on.
    pub relation: u32,
    /// Oid of the function.
    pub function: u32,
    /// `TriggerEvent` bits.
    pub event: u32,
    /// Name of the trigger.
    pub name: [u8; 64],
    /// They fired after their statement's rows were written.
    pub after: bool,
    /// Calls.
    pub calls: f64,
    /// Elapsed time of all of them, µs.
    pub elapsed_us: f64,
    /// Blocks hit, read, dirtied; WAL bytes; temporary blocks, of all of them.
    pub blocks_hit: f64,
    /// See above.
    pub blocks_read: f64,
    /// See above.
    pub blocks_dirtied: f64,
    /// See above.
    pub wal_bytes: f64,
    /// See above.
    pub temp_blocks: f64,
}

impl BuiltInCalls {
    /// The same without their part of what statements inside them took: which of a statement's triggers ran those is not
    /// known, so they are divided in proportion to time, among those `all` that fired at the end.
    pub fn without(&self, statements: &Amounts, all: &[Self]) -> Self {
        let total_us: f64 = all.iter().filter(|calls| calls.after).map(|calls| calls.elapsed_us).sum();
        let share = if self.after && total_us > 0.0 { self.elapsed_us / total_us } else { 0.0 };
        let left = |whole: f64, amount: Amount, unit: f64| {
            (whole - share * statements[amount as usize] as f64 / unit).max(0.0)
        };
        Self {
            elapsed_us: left(self.elapsed_us, Amount::ElapsedNs, 1e3),
            blocks_hit: left(self.blocks_hit, Amount::BlocksHit, 1.0),
            blocks_read: left(self.blocks_read, Amount::BlocksRead, 1.0),
            blocks_dirtied: left(self.blocks_dirtied, Amount::BlocksDirtied, 1.0),
            wal_bytes: left(self.wal_bytes, Amount::WalBytes, 1.0),
            temp_blocks: left(self.temp_blocks, Amount::TempBlocks, 1.0),
            ..*self
        }
    }
}

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declaration is PostgreSQL's own (executor/instrument.h); it raises only for a node that
    // is still running, which no node is when its statement has ended.
    unsafe extern "C-unwind" {
        pub fn InstrEndLoop(instrument: *mut pg_sys::Instrumentation);
    }
}

/// Closes the open cycle of a node's or trigger's instrumentation, as EXPLAIN does.
///
/// # Safety
/// `instrument` must be valid.
pub(super) unsafe fn end_loop(instrument: *mut pg_sys::Instrumentation) {
    // SAFETY: as promised by the caller.
    unsafe { raw::InstrEndLoop(instrument) };
}

/// First oid that is not PostgreSQL's own: below it a trigger function is built in, and no hook sees it.
const FIRST_FOREIGN_OID: u32 = 10_000;

/// The calls of built-in triggers on managed tables.
///
/// # Safety
/// `query` must have run, with instrumentation, and not been ended yet.
pub unsafe fn triggers(query: *mut pg_sys::QueryDesc, found: &mut Vec<BuiltInCalls>) {
    // SAFETY: the executor state's lists hold result relations whose trigger arrays have numtriggers
    // elements.
    unsafe {
        let estate = &*(*query).estate;
        let lists = [
            estate.es_opened_result_relations,
            estate.es_tuple_routing_result_relations,
            estate.es_trig_target_relations,
        ];
        let Some(region) = region::get() else { return };
        for info in lists.into_iter().flat_map(|list| pointers::<pg_sys::ResultRelInfo>(list)) {
            let (description, instruments) = ((*info).ri_TrigDesc, (*info).ri_TrigInstrument);
            let relation = (*(*info).ri_RelationDesc).rd_id.to_u32();
            if description.is_null() || instruments.is_null() || region.segment(relation).is_none() {
                continue;
            }
            for i in 0..(*description).numtriggers.max(0) as usize {
                let trigger = &*(*description).triggers.add(i);
                if trigger.tgfoid.to_u32() >= FIRST_FOREIGN_OID {
                    continue;
                }
                let instrument = instruments.add(i);
                end_loop(instrument);
                if (*instrument).ntuples > 0.0 && found.len() < MAX_NODES {
                    let mut calls = calls_of(relation, trigger, &*instrument, (*query).operation);
                    // Partitions' copies are one trigger, the partitioned table's.
                    if let Some(root) = region.copied_from(trigger.tgoid.to_u32()) {
                        calls.name = ProfileIdentity::numbered(&calls.name, root);
                    }
                    found.push(calls);
                }
            }
        }
    }
}

/// # Safety
/// `trigger` must be an entry of a relation's trigger description.
unsafe fn calls_of(
    relation: u32,
    trigger: &pg_sys::Trigger,
    counted: &pg_sys::Instrumentation,
    operation: pg_sys::CmdType::Type,
) -> BuiltInCalls {
    const ROW: i32 = 1;
    const BEFORE: i32 = 2;
    const INSTEAD: i32 = 64;
    /// `TriggerEvent` operations and the bits of `tgtype` that say a trigger is defined for them.
    const INSERT: (u32, i32) = (0, 4);
    const DELETE: (u32, i32) = (1, 8);
    const UPDATE: (u32, i32) = (2, 16);
    let kind = i32::from(trigger.tgtype);
    let first = match operation {
        pg_sys::CmdType::CMD_DELETE => DELETE,
        pg_sys::CmdType::CMD_UPDATE => UPDATE,
        _ => INSERT,
    };
    // INSERT … ON CONFLICT DO UPDATE and MERGE fire triggers of other operations than their own.
    let defined = [first, UPDATE, DELETE, INSERT].into_iter().find(|(_, bit)| kind & bit != 0);
    let operation = defined.unwrap_or(first).0;
    let event = operation | if kind & ROW != 0 { 4 } else { 0 } | if kind & BEFORE != 0 { 8 } else { 0 };
    let buffers = &counted.bufusage;
    BuiltInCalls {
        relation,
        function: trigger.tgfoid.to_u32(),
        event,
        // SAFETY: as promised by the caller: tgname is a C string.
        name: unsafe { super::trigger::name_bytes(trigger.tgname) },
        after: kind & (BEFORE | INSTEAD) == 0,
        calls: counted.ntuples,
        elapsed_us: counted.total * 1e6,
        blocks_hit: buffers.shared_blks_hit as f64,
        blocks_read: buffers.shared_blks_read as f64,
        blocks_dirtied: buffers.shared_blks_dirtied as f64,
        wal_bytes: counted.walusage.wal_bytes as f64,
        temp_blocks: (buffers.temp_blks_read + buffers.temp_blks_written) as f64,
    }
}
