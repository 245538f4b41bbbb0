//! Look-ups by one key, planned for the partition that has the key.
//!
//! A SELECT from one managed table with `key = constant` (or a parameter whose value is known) among its conditions
//! reads one partition, and PostgreSQL finds that out at every execution: it opens the table's descriptor, prunes
//! level by level and makes paths for what is left. Here the planner is given that partition at once, as if it had
//! been named, and the plan gets what makes it one of the table: the right to read is the table's, and the plan is made
//! anew when the table or a table between changes. Everything that is not surely the same is planned as always.

use super::asked::Keys;
use super::open_at_once;
use crate::pg::plan::pointers;
use crate::pg::{compat, guc, region};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Levels of partitions: the slot, and the lists of chosen keys below it.
const MAX_LEVELS: usize = 3;
/// The whole row's bit in the columns that are read.
const WHOLE_ROW: i32 = -pg_sys::FirstLowInvalidHeapAttributeNumber;

static mut PREVIOUS: pg_sys::planner_hook_type = None;

/// Installs the hook; from `_PG_init` while preloading.
pub fn register() {
    // SAFETY: single-threaded start-up of the postmaster.
    unsafe {
        PREVIOUS = pg_sys::planner_hook;
        pg_sys::planner_hook = Some(plan);
    }
}

/// Called directly, as in `executor`: what the planner raises passes this frame unchanged.
mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declaration is PostgreSQL's own (optimizer/planner.h), the same in 15 to 18.
    unsafe extern "C-unwind" {
        pub fn standard_planner(
            parse: *mut pg_sys::Query,
            text: *const std::ffi::c_char,
            options: i32,
            params: pg_sys::ParamListInfo,
        ) -> *mut pg_sys::PlannedStmt;
    }
}

/// What stands between the table and the partition that has the key.
#[derive(Clone, Copy)]
struct Way {
    /// The tables above it, the one that was named first; unused ones are 0.
    above: [pg_sys::Oid; MAX_LEVELS],
    /// The partition; 0: none was found.
    leaf: pg_sys::Oid,
}

/// An ERROR of the planner passes this frame by longjmp, so it holds plain data only.
// SAFETY: called by PostgreSQL with an analysed query that the planner may change.
unsafe extern "C-unwind" fn plan(
    parse: *mut pg_sys::Query,
    text: *const std::ffi::c_char,
    options: i32,
    params: pg_sys::ParamListInfo,
) -> *mut pg_sys::PlannedStmt {
    let mut way = Way { above: [pg_sys::InvalidOid; MAX_LEVELS], leaf: pg_sys::InvalidOid };
    // SAFETY: as above; the previous hook and the planner get what we got.
    unsafe {
        if guc::DIRECT_LOOKUPS.get() && may_be_direct(parse) {
            choose(parse, params, &mut way);
        }
        let planned = match PREVIOUS {
            Some(previous) => previous(parse, text, options, params),
            None => raw::standard_planner(parse, text, options, params),
        };
        if way.leaf != pg_sys::InvalidOid {
            complete(planned, &way);
        }
        planned
    }
}

/// The entry of a query's only relation, if it has just one.
///
/// # Safety
/// `parse` must be an analysed query.
#[inline]
unsafe fn only_relation(parse: *const pg_sys::Query) -> Option<*mut pg_sys::RangeTblEntry> {
    // SAFETY: as promised by the caller; the range table holds range table entries.
    unsafe {
        let table = (*parse).rtable;
        (!table.is_null() && (*table).length == 1).then(|| (*(*table).elements).ptr_value.cast())
    }
}

/// Whether a query has the form, without a look at any catalog: most queries are told apart here.
///
/// # Safety
/// `parse` must be an analysed query.
#[inline]
unsafe fn may_be_direct(parse: *const pg_sys::Query) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let Some(entry) = only_relation(parse) else { return false };
        (*parse).commandType == pg_sys::CmdType::CMD_SELECT
            && (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION
            && (*entry).relkind as u8 == pg_sys::RELKIND_PARTITIONED_TABLE
            && (*entry).inh
            && (*entry).tablesample.is_null()
            && (*entry).securityQuals.is_null()
            && !(*parse).hasSubLinks
            && (*parse).cteList.is_null()
            && (*parse).rowMarks.is_null()
            && (*parse).setOperations.is_null()
            && !(*parse).jointree.is_null()
            && !(*(*parse).jointree).quals.is_null()
            && pg_sys::enable_partition_pruning
            // Else the bounds of the partition, with all the keys of all lists, would be looked at as well.
            && pg_sys::constraint_exclusion != pg_sys::ConstraintExclusionType::CONSTRAINT_EXCLUSION_ON as i32
    }
}

/// Finds the partition and makes the query one of it.
#[pg_guard]
// SAFETY: called by `plan` with a query that `may_be_direct`.
unsafe extern "C-unwind" fn choose(parse: *mut pg_sys::Query, params: pg_sys::ParamListInfo, way: *mut Way) {
    // SAFETY: as above; the entry belongs to the query.
    unsafe {
        let Some(entry) = only_relation(parse) else { return };
        let named = (*entry).relid;
        let managed = region::get()
            .and_then(|region| region.segment(named.to_u32()))
            .is_some_and(|segment| !segment.is_asked());
        let columns = compat::columns_read(parse, entry);
        if !managed || pg_sys::bms_is_member(WHOLE_ROW, columns) {
            return;
        }
        if let Some(found) = descend(parse, entry, params).filter(|way| may_estimate(parse, entry, way.leaf))
        {
            *way = found;
            (*entry).relid = found.leaf;
            (*entry).relkind = pg_sys::RELKIND_RELATION as std::ffi::c_char;
            (*entry).inh = false;
            compat::set_named(parse, entry, found.leaf);
        }
    }
}

/// Whether the planner may look at the partition's statistics for the other conditions: for a partition that was reached
/// through its table the right to read that one is enough, for one that is named it is not.
///
/// # Safety
/// As for `choose`.
unsafe fn may_estimate(
    parse: *mut pg_sys::Query,
    entry: *mut pg_sys::RangeTblEntry,
    leaf: pg_sys::Oid,
) -> bool {
    // SAFETY: as promised by the caller; a catalog look-up by oid.
    unsafe {
        let is_alone = (*(*(*parse).jointree).quals).type_ == pg_sys::NodeTag::T_OpExpr;
        is_alone || {
            let named = compat::checked_as(parse, entry);
            let user = if named == pg_sys::InvalidOid { pg_sys::GetUserId() } else { named };
            pg_sys::pg_class_aclcheck(leaf, user, pg_sys::ACL_SELECT as pg_sys::AclMode)
                == pg_sys::AclResult::ACLCHECK_OK
        }
    }
}

/// Level by level, each locked before its partitions are read, as the planner does it.
///
/// # Safety
/// As for `choose`.
unsafe fn descend(
    parse: *mut pg_sys::Query,
    entry: *mut pg_sys::RangeTblEntry,
    params: pg_sys::ParamListInfo,
) -> Option<Way> {
    let mut way = Way { above: [pg_sys::InvalidOid; MAX_LEVELS], leaf: pg_sys::InvalidOid };
    // SAFETY: the table was locked when the query was analysed, or before it was planned again.
    let top = unsafe { pg_sys::try_relation_open((*entry).relid, pg_sys::NoLock as i32) };
    if top.is_null() {
        return None;
    }
    let mut relation = top;
    for level in 0..MAX_LEVELS {
        // SAFETY: the relation is open and locked; it is closed when its partition is, the first one in the end.
        let child = unsafe {
            way.above[level] = (*relation).rd_id;
            let oid = Keys::with((*relation).rd_id, |key| key.partition(relation, parse, params)).flatten();
            let child = oid.map(|oid| open_at_once(oid, (*entry).rellockmode));
            if relation != top {
                pg_sys::relation_close(relation, pg_sys::NoLock as i32);
            }
            child.filter(|child| !child.is_null())
        };
        let Some(child) = child else { break };
        // SAFETY: both are open.
        let kind = unsafe { (*(*child).rd_rel).relkind as u8 };
        let is_last = level + 1 == MAX_LEVELS;
        // SAFETY: as above.
        if kind == pg_sys::RELKIND_PARTITIONED_TABLE && !is_last && unsafe { same_columns(top, child) } {
            relation = child;
            continue;
        }
        // SAFETY: as above.
        unsafe {
            if kind == pg_sys::RELKIND_RELATION && same_columns(top, child) {
                way.leaf = (*child).rd_id;
            }
            pg_sys::relation_close(child, pg_sys::NoLock as i32);
        }
        break;
    }
    // SAFETY: opened above.
    unsafe { pg_sys::relation_close(top, pg_sys::NoLock as i32) };
    (way.leaf != pg_sys::InvalidOid).then_some(way)
}

/// Whether a column has the same number in both, for all of them. Columns that are computed when they are read (since 18) are
/// computed as the table says, not the partition: those are left to PostgreSQL.
///
/// # Safety
/// Both must be open.
unsafe fn same_columns(a: pg_sys::Relation, b: pg_sys::Relation) -> bool {
    // SAFETY: as promised by the caller; attributes are asked for below natts.
    unsafe {
        let (a, b) = ((*a).rd_att, (*b).rd_att);
        (*a).natts == (*b).natts
            && (0..(*a).natts.max(0) as usize).all(|at| {
                let (a, b) = (&*compat::attribute(a, at), &*compat::attribute(b, at));
                a.attgenerated as u8 != b'v'
                    && a.attisdropped == b.attisdropped
                    && a.atttypid == b.atttypid
                    && a.atttypmod == b.atttypmod
                    && a.attcollation == b.attcollation
                    && a.attname.data == b.attname.data
            })
    }
}

/// Makes the plan one of the table: whose right it takes to read, and what it depends on.
#[pg_guard]
// SAFETY: called by `plan` with the plan of a query that `choose` has changed.
unsafe extern "C-unwind" fn complete(planned: *mut pg_sys::PlannedStmt, way: *const Way) {
    // SAFETY: as above; nodes are made in the context in which the plan was made.
    unsafe {
        let mut entries = pointers::<pg_sys::RangeTblEntry>((*planned).rtable);
        let Some(leaf) = entries.find(|entry| (**entry).relid == (*way).leaf) else { return };
        for (level, above) in
            (*way).above.iter().enumerate().take_while(|(_, oid)| **oid != pg_sys::InvalidOid)
        {
            let entry: *mut pg_sys::RangeTblEntry = pg_sys::copyObjectImpl(leaf.cast()).cast();
            (*entry).relid = *above;
            (*entry).relkind = pg_sys::RELKIND_PARTITIONED_TABLE as std::ffi::c_char;
            (*entry).inh = true;
            if level == 0 {
                compat::name_again(planned, entry);
            } else {
                compat::unname(entry);
            }
            (*planned).rtable = pg_sys::lappend((*planned).rtable, entry.cast());
            (*planned).relationOids = pg_sys::lappend_oid((*planned).relationOids, *above);
        }
        compat::unname(leaf);
        // As PostgreSQL calls a partition that it reads instead of the table.
        if (*leaf).alias.is_null() {
            (*leaf).alias = (*leaf).eref;
        }
    }
}
