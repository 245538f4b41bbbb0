//! How many rows a ModifyTable node that has run wrote to each of its relations.
//!
//! The node's own instrumentation knows how many rows it was handed, but not where they went. PostgreSQL's statistics
//! know where: they count by relation and subtransaction what is not committed yet. That is exact for the first statement of
//! a subtransaction; when more was written before, it says in what proportion the rows went to the relations that this
//! node wrote to, as far as that can be told: those it routed a row to, or scanned.

use super::builtin::end_loop;
use super::plan::pointers;
use pgrx::pg_sys;

/// Rows written to a relation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Written {
    /// Its oid.
    pub relation: u32,
    /// Rows inserted, updated and deleted.
    pub rows: f64,
}

/// A relation that a node may have written to.
struct Target {
    relation: u32,
    /// On another server: its rows are not counted here.
    foreign: bool,
    /// Rows reached it through the partitioned table.
    routed: bool,
    inserted: f64,
    updated: f64,
    deleted: f64,
}

/// Relations of one node that are looked at.
const MAX_TARGETS: usize = super::plan::MAX_NODES;

/// What a node wrote. `scanned`: rows of a relation that the statement read, None for relations that nobody knows.
///
/// # Safety
/// `state` must be the state of an instrumented ModifyTable node of `estate`, which has run and was not ended yet.
pub(super) unsafe fn by(
    state: *mut pg_sys::ModifyTableState,
    estate: *mut pg_sys::EState,
    scanned: impl Fn(u32) -> Option<f64>,
) -> Vec<Written> {
    // SAFETY: as promised by the caller.
    let (targets, handed, operation) = unsafe { (targets(state, estate), handed(state), (*state).operation) };
    if handed <= 0.0 {
        return Vec::new();
    }
    let inserts = operation == pg_sys::CmdType::CMD_INSERT;
    // Statistics say what the subtransaction wrote, not only this node.
    let concerned: Vec<&Target> = targets
        .iter()
        .filter(|t| t.routed || inserts || scanned(t.relation).is_none_or(|rows| rows > 0.0))
        .collect();
    let counted = |t: &Target| match operation {
        pg_sys::CmdType::CMD_INSERT => t.inserted + t.updated,
        pg_sys::CmdType::CMD_DELETE => t.deleted,
        pg_sys::CmdType::CMD_UPDATE => t.updated + t.deleted,
        _ => t.inserted + t.updated + t.deleted,
    };
    let total: f64 = concerned.iter().map(|t| counted(t)).sum();
    // SAFETY: a plain setting of this session.
    let is_counted = unsafe { pg_sys::pgstat_track_counts };
    // Where nothing was counted though it would have been, nothing was written: BEFORE triggers may have suppressed every row.
    let uncounted: Vec<&Target> = concerned.iter().copied().filter(|t| t.foreign || !is_counted).collect();
    let rest = guessed(&uncounted, (handed - total).max(0.0), inserts, &scanned);
    if total <= 0.0 {
        return rest;
    }
    let scale = (handed / total).min(1.0);
    // An UPDATE that moves a row to another partition deletes it here and inserts it there.
    let moves = operation == pg_sys::CmdType::CMD_UPDATE;
    let left: f64 = concerned.iter().map(|t| t.deleted).sum();
    let came: f64 = concerned.iter().filter(|t| t.routed).map(|t| t.inserted).sum();
    let moved = if moves && came > 0.0 { (left / came).min(1.0) } else { 0.0 };
    let rows = |t: &&Target| {
        let arrived = if t.routed { t.inserted * moved } else { 0.0 };
        Written { relation: t.relation, rows: scale * (counted(t) + arrived) }
    };
    concerned.iter().map(rows).filter(|written| written.rows > 0.0).chain(rest).collect()
}

/// Without statistics (`track_counts` is off, or the rows went to other servers): where rows were read, else to every relation alike.
fn guessed(
    targets: &[&Target],
    handed: f64,
    inserts: bool,
    scanned: &impl Fn(u32) -> Option<f64>,
) -> Vec<Written> {
    let read = |t: &Target| scanned(t.relation).unwrap_or(0.0);
    let total: f64 = targets.iter().map(|t| read(t)).sum();
    let alike = 1.0 / targets.len().max(1) as f64;
    let share = |t: &Target| if !inserts && total > 0.0 { read(t) / total } else { alike };
    let rows = targets.iter().map(|t| Written { relation: t.relation, rows: handed * share(t) });
    rows.filter(|written| written.rows > 0.0).collect()
}

/// Rows that a node was handed to write.
///
/// # Safety
/// As for [`by`].
unsafe fn handed(state: *mut pg_sys::ModifyTableState) -> f64 {
    // SAFETY: as promised by the caller; without conflicts `ntuples2` of the node itself is 0.
    unsafe {
        if (*state).operation == pg_sys::CmdType::CMD_MERGE {
            return (*state).mt_merge_inserted + (*state).mt_merge_updated + (*state).mt_merge_deleted;
        }
        let source = (*state).ps.lefttree;
        if source.is_null() || (*source).instrument.is_null() {
            return 0.0;
        }
        end_loop((*source).instrument);
        let plan = (*state).ps.plan.cast::<pg_sys::ModifyTable>();
        let skips = (*plan).onConflictAction == pg_sys::OnConflictAction::ONCONFLICT_NOTHING;
        let own = (*state).ps.instrument;
        let skipped = if skips && !own.is_null() { (*own).ntuples2 } else { 0.0 };
        (*(*source).instrument).ntuples - skipped
    }
}

/// The relations of a node that may have been written to.
///
/// # Safety
/// As for [`by`].
unsafe fn targets(state: *mut pg_sys::ModifyTableState, estate: *mut pg_sys::EState) -> Vec<Target> {
    // SAFETY: as promised by the caller; result relations and the lists of them live until ExecutorEnd.
    unsafe {
        let mut found: Vec<Target> = Vec::new();
        let routed = pointers::<pg_sys::ResultRelInfo>((*estate).es_tuple_routing_result_relations)
            .filter(|info| std::ptr::eq((**info).ri_RootResultRelInfo, (*state).rootResultRelInfo));
        let own = (0..(*state).mt_nrels.max(0) as usize).map(|i| (*state).resultRelInfo.add(i));
        for (info, is_routed) in routed.map(|info| (info, true)).chain(own.map(|info| (info, false))) {
            let target = target(info, is_routed);
            let partitioned = (*(*(*info).ri_RelationDesc).rd_rel).relkind
                == pg_sys::RELKIND_PARTITIONED_TABLE as std::ffi::c_char;
            if !partitioned && found.len() < MAX_TARGETS {
                found.push(target);
            }
        }
        found
    }
}

/// # Safety
/// `info` must be a result relation that is open.
unsafe fn target(info: *mut pg_sys::ResultRelInfo, routed: bool) -> Target {
    // SAFETY: as promised by the caller; what statistics keep of a relation is null or lives in the transaction.
    unsafe {
        let relation = (*info).ri_RelationDesc;
        let statistics = (*relation).pgstat_info;
        let counted = if statistics.is_null() { None } else { (*statistics).trans.as_ref() };
        let of = |count: fn(&pg_sys::PgStat_TableXactStatus) -> i64| {
            counted.map_or(0.0, |c| count(c).max(0) as f64)
        };
        Target {
            relation: (*relation).rd_id.to_u32(),
            foreign: (*(*relation).rd_rel).relkind == pg_sys::RELKIND_FOREIGN_TABLE as std::ffi::c_char,
            routed,
            inserted: of(|c| c.tuples_inserted),
            updated: of(|c| c.tuples_updated),
            deleted: of(|c| c.tuples_deleted),
        }
    }
}
