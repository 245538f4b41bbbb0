//! Which plans may read a shadow, and making one do so.

use super::super::compat;
use super::super::partition::fixed::{Divided, FoundBy, Guard, Scan};
use super::super::plan::pointers;
use super::super::region::Region;
use super::super::storage;
use foreshard_core::shared::Seen;
use pgrx::pg_sys;

/// Plan nodes looked at; a bigger plan is not routed.
const MAX_NODES: usize = 4096;

/// A relation in the range table of a statement (from 1) and the copy that could be read in its place.
pub(super) struct Target {
    place: u32,
    /// The way there.
    pub route: Seen,
}

/// What of a statement that [may be routed](may_route) is, and where to, whatever its locks.
///
/// # Safety
/// `query` must be valid and not started yet.
pub(super) unsafe fn targets(query: *mut pg_sys::QueryDesc, seen: &[Seen]) -> Vec<Target> {
    // SAFETY: as promised by the caller.
    unsafe {
        let statement = &*(*query).plannedstmt;
        let Some(named) = named(statement, seen) else { return Vec::new() };
        let targets = chosen(statement, (*query).params, &named, seen);
        let mut nodes = 0;
        let mut fits = |plan: *mut pg_sys::Plan| fits(plan, &targets);
        let fit = !targets.is_empty() && each_plan(statement, &mut nodes, &mut fits);
        if fit { targets } else { Vec::new() }
    }
}

/// Whether a statement may be routed at all. In parallel mode there are no subtransactions to choose in.
///
/// # Safety
/// As for [`targets`].
pub(super) unsafe fn may_route(query: *mut pg_sys::QueryDesc, seen: &[Seen]) -> bool {
    // SAFETY: as promised by the caller; the rest are variables of this process.
    unsafe {
        let statement = &*(*query).plannedstmt;
        let snapshot = (*query).snapshot;
        let reads = statement.commandType == pg_sys::CmdType::CMD_SELECT
            && !statement.hasModifyingCTE
            && statement.rowMarks.is_null();
        if !reads
            || snapshot.is_null()
            || !(*query).crosscheck_snapshot.is_null()
            || (*snapshot).snapshot_type != pg_sys::SnapshotType::SNAPSHOT_MVCC
            || is_cursor()
            || pg_sys::IsInParallelMode()
            || pg_sys::XactIsoLevel == pg_sys::XACT_SERIALIZABLE as i32
            || pg_sys::GetTopTransactionIdIfAny() != pg_sys::InvalidTransactionId
        {
            return false;
        }
        let sees_all = |route: &Seen| {
            let horizon = pg_sys::TransactionId::from_inner(route.horizon);
            pg_sys::TransactionIdFollows((*snapshot).xmin, horizon)
        };
        seen.iter().all(sees_all)
    }
}

/// Whether what is about to start is the query of a portal with a name: `WHERE CURRENT OF` looks for the partition in it.
fn is_cursor() -> bool {
    // SAFETY: a variable of this process; while a portal is started it is the active one.
    unsafe {
        pg_sys::ActivePortal.as_ref().is_some_and(|portal| {
            portal.status == pg_sys::PortalStatus::PORTAL_DEFINED
                && portal.queryDesc.is_null()
                && !portal.name.is_null()
                && *portal.name != 0
        })
    }
}

/// Where the partitions stand in the range table: (index from 1, partition). None: one is named directly.
///
/// # Safety
/// `statement` must be valid.
unsafe fn named(statement: &pg_sys::PlannedStmt, seen: &[Seen]) -> Option<Vec<(u32, u32)>> {
    let mut found = Vec::new();
    // SAFETY: the range table holds RangeTblEntry nodes.
    unsafe {
        for (index, entry) in pointers::<pg_sys::RangeTblEntry>(statement.rtable).enumerate() {
            if (*entry).rtekind != pg_sys::RTEKind::RTE_RELATION {
                continue;
            }
            if let Some(route) = seen.iter().find(|s| s.source == (*entry).relid.to_u32()) {
                if compat::is_named(entry) {
                    return None;
                }
                found.push((index as u32 + 1, route.source));
            }
        }
    }
    Some(found)
}

/// The copy for every partition in the range table that has one: the only one, or that which has all rows that are asked for.
///
/// # Safety
/// `statement` must be valid, `params` what it is about to run with.
unsafe fn chosen(
    statement: &pg_sys::PlannedStmt,
    params: pg_sys::ParamListInfo,
    named: &[(u32, u32)],
    seen: &[Seen],
) -> Vec<Target> {
    let mut targets = Vec::new();
    for (place, source) in named {
        let mut copies = seen.iter().filter(|route| route.source == *source);
        let Some(first) = copies.next() else { continue };
        if first.parent == 0 {
            targets.push(Target { place: *place, route: *first });
            continue;
        }
        // SAFETY: as promised by the caller.
        let Some(copy) = (unsafe { copy_of(statement, params, *place, first) }) else { continue };
        if let Some(route) = std::iter::once(first).chain(copies).find(|route| route.shadow == copy) {
            targets.push(Target { place: *place, route: *route });
        }
    }
    targets
}

/// A route's partition and where its rows are copied to.
pub(super) fn divided(route: &Seen) -> Divided {
    Divided {
        source: pg_sys::Oid::from(route.source),
        parent: pg_sys::Oid::from(route.parent),
        staging: pg_sys::Oid::from(route.staging),
        copy: pg_sys::Oid::from(route.shadow),
    }
}

/// The copy that has every row which any scan of one place can find.
///
/// # Safety
/// As for [`chosen`].
unsafe fn copy_of(
    statement: &pg_sys::PlannedStmt,
    params: pg_sys::ParamListInfo,
    place: u32,
    route: &Seen,
) -> Option<u32> {
    let divided = divided(route);
    let mut copy = None;
    let mut agree = |plan: *mut pg_sys::Plan| {
        // SAFETY: a node of the statement.
        let Some(scan) = (unsafe { conditions(plan, place, params) }) else { return true };
        // SAFETY: as above, in the transaction that is about to run it.
        let found = scan.and_then(|scan| unsafe { divided.copy_for(&scan) });
        found.is_some() && *copy.get_or_insert(found) == found
    };
    let mut nodes = 0;
    // SAFETY: as promised by the caller.
    let agreed = unsafe { each_plan(statement, &mut nodes, &mut agree) };
    copy.flatten().filter(|_| agreed).map(pg_sys::Oid::to_u32)
}

/// The conditions of a node that finds rows at a place; None: it is another one. Some(None): they are not known.
///
/// # Safety
/// `plan` must be a plan node.
unsafe fn conditions(
    plan: *mut pg_sys::Plan,
    place: u32,
    params: pg_sys::ParamListInfo,
) -> Option<Option<Scan>> {
    use pg_sys::NodeTag::{T_BitmapHeapScan, T_BitmapIndexScan, T_IndexOnlyScan, T_IndexScan, T_SeqScan};
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        if scanned(plan) != Some(place) {
            return None;
        }
        let none = std::ptr::null_mut();
        let (found_by, by_index, columns) = match (*plan).type_ {
            // Its heap scan looks at all of it again.
            T_BitmapIndexScan => return None,
            T_SeqScan => (FoundBy::Nothing, none, none),
            T_IndexScan => {
                let scan = &*plan.cast::<pg_sys::IndexScan>();
                (FoundBy::Index(scan.indexid), scan.indexqualorig, none)
            }
            T_BitmapHeapScan => {
                (FoundBy::Bitmap, (*plan.cast::<pg_sys::BitmapHeapScan>()).bitmapqualorig, none)
            }
            T_IndexOnlyScan => {
                let scan = &*plan.cast::<pg_sys::IndexOnlyScan>();
                (FoundBy::Index(scan.indexid), scan.recheckqual, scan.indextlist)
            }
            _ => return Some(None),
        };
        Some(Some(Scan { place, found_by, conditions: [by_index, (*plan).qual], columns, params }))
    }
}

/// Makes a scan of a copy that has others' rows look at its key before anything else; false: that cannot be.
///
/// # Safety
/// `plan` must be a node of our own copy that still names the indexes of the partition.
unsafe fn shut_out_others(plan: *mut pg_sys::Plan, target: &Target, params: pg_sys::ParamListInfo) -> bool {
    // SAFETY: as promised by the caller; both lists are the copy's own.
    unsafe {
        let Some(Some(scan)) = conditions(plan, target.place, params) else { return true };
        let guard = match divided(&target.route).guard(&scan) {
            Some(Guard::Index) => return true,
            Some(guard) => guard,
            None => return false,
        };
        let bitmap = plan.cast::<pg_sys::BitmapHeapScan>();
        let is_bitmap = (*plan).type_ == pg_sys::NodeTag::T_BitmapHeapScan;
        match guard {
            Guard::Filter(first) => {
                (*plan).qual =
                    pg_sys::lcons(first.cast(), pg_sys::list_delete_ptr((*plan).qual, first.cast()));
                if is_bitmap {
                    let again = pg_sys::copyObjectImpl(first.cast());
                    (*bitmap).bitmapqualorig = pg_sys::lcons(again, (*bitmap).bitmapqualorig);
                }
            }
            Guard::Recheck(first) if is_bitmap => {
                let others = pg_sys::list_delete_ptr((*bitmap).bitmapqualorig, first.cast());
                (*bitmap).bitmapqualorig = pg_sys::lcons(first.cast(), others);
            }
            _ => return false,
        }
        true
    }
}

/// Whether a node is one we know how to route, or reads something else.
///
/// # Safety
/// `plan` must be a plan node.
unsafe fn fits(plan: *mut pg_sys::Plan, targets: &[Target]) -> bool {
    use pg_sys::NodeTag::{
        T_BitmapHeapScan, T_BitmapIndexScan, T_CustomScan, T_IndexOnlyScan, T_IndexScan, T_SeqScan,
    };
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        let tag = (*plan).type_;
        // What it reads, only its provider knows.
        if tag == T_CustomScan {
            return false;
        }
        let Some(place) = scanned(plan) else { return true };
        let Some(Target { route, .. }) = targets.iter().find(|t| t.place == place) else { return true };
        let known = match tag {
            T_SeqScan | T_BitmapHeapScan => true,
            T_IndexScan => has_counterpart(route, (*plan.cast::<pg_sys::IndexScan>()).indexid),
            T_IndexOnlyScan => has_counterpart(route, (*plan.cast::<pg_sys::IndexOnlyScan>()).indexid),
            T_BitmapIndexScan => has_counterpart(route, (*plan.cast::<pg_sys::BitmapIndexScan>()).indexid),
            _ => false,
        };
        known && !asks_for_system_columns(plan, place)
    }
}

fn has_counterpart(route: &Seen, index: pg_sys::Oid) -> bool {
    route.counterpart(index.to_u32()).is_some()
}

/// # Safety
/// `plan` must be a plan node.
unsafe fn asks_for_system_columns(plan: *mut pg_sys::Plan, place: u32) -> bool {
    // SAFETY: both are expression lists; bit 0 stands for the lowest system column.
    unsafe {
        let mut columns: *mut pg_sys::Bitmapset = std::ptr::null_mut();
        pg_sys::pull_varattnos((*plan).targetlist.cast(), place, &mut columns);
        pg_sys::pull_varattnos((*plan).qual.cast(), place, &mut columns);
        let first = pg_sys::bms_next_member(columns, -1);
        first >= 0 && first + pg_sys::FirstLowInvalidHeapAttributeNumber < 0
    }
}

/// The range table index that a scan reads.
///
/// # Safety
/// `plan` must be a plan node.
unsafe fn scanned(plan: *mut pg_sys::Plan) -> Option<u32> {
    use pg_sys::NodeTag as T;
    // SAFETY: these nodes begin with a Scan.
    unsafe {
        matches!(
            (*plan).type_,
            T::T_SeqScan
                | T::T_SampleScan
                | T::T_IndexScan
                | T::T_IndexOnlyScan
                | T::T_BitmapIndexScan
                | T::T_BitmapHeapScan
                | T::T_TidScan
                | T::T_TidRangeScan
                | T::T_ForeignScan
        )
        .then(|| (*plan.cast::<pg_sys::Scan>()).scanrelid)
    }
}

/// Calls `work` for every node of a statement until it says false; false then, or when there are too many.
///
/// # Safety
/// `statement` must be valid.
unsafe fn each_plan(
    statement: &pg_sys::PlannedStmt,
    nodes: &mut usize,
    // SAFETY: called with plan nodes of the statement only.
    work: &mut dyn FnMut(*mut pg_sys::Plan) -> bool,
) -> bool {
    // SAFETY: as promised by the caller; sub-plans that were optimised away are null.
    unsafe {
        walk(statement.planTree, nodes, work)
            && pointers::<pg_sys::Plan>(statement.subplans).all(|plan| walk(plan, nodes, work))
    }
}

/// # Safety
/// `plan` must be null or a plan node.
unsafe fn walk(
    plan: *mut pg_sys::Plan,
    nodes: &mut usize,
    // SAFETY: called with `plan` and its children only.
    work: &mut dyn FnMut(*mut pg_sys::Plan) -> bool,
) -> bool {
    use pg_sys::NodeTag::{T_Append, T_BitmapAnd, T_BitmapOr, T_MergeAppend, T_SubqueryScan};
    if plan.is_null() {
        return true;
    }
    *nodes += 1;
    if *nodes > MAX_NODES {
        return false;
    }
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        pg_sys::check_stack_depth();
        if !work(plan) {
            return false;
        }
        let children = match (*plan).type_ {
            T_Append => (*plan.cast::<pg_sys::Append>()).appendplans,
            T_MergeAppend => (*plan.cast::<pg_sys::MergeAppend>()).mergeplans,
            T_BitmapAnd => (*plan.cast::<pg_sys::BitmapAnd>()).bitmapplans,
            T_BitmapOr => (*plan.cast::<pg_sys::BitmapOr>()).bitmapplans,
            T_SubqueryScan => {
                if !walk((*plan.cast::<pg_sys::SubqueryScan>()).subplan, nodes, work) {
                    return false;
                }
                std::ptr::null_mut()
            }
            _ => std::ptr::null_mut(),
        };
        pointers::<pg_sys::Plan>(children).all(|child| walk(child, nodes, work))
            && walk((*plan).lefttree, nodes, work)
            && walk((*plan).righttree, nodes, work)
    }
}

/// The plan of a statement that reads the shadows; None: it goes on as it is. It lives as long as the query's own plan: in
/// the context in which the query is being started.
///
/// # Safety
/// The targets are some of this query's.
pub(super) unsafe fn route(
    region: &Region,
    query: *mut pg_sys::QueryDesc,
    targets: &[&Target],
) -> Option<*mut pg_sys::PlannedStmt> {
    // SAFETY: as promised by the caller.
    unsafe {
        let routes: Vec<Seen> = targets.iter().map(|target| target.route).collect();
        if !lock_pairs(region, &routes) {
            return None;
        }
        let copy = pg_sys::copyObjectImpl((*query).plannedstmt.cast()).cast::<pg_sys::PlannedStmt>();
        for Target { place, route } in targets {
            let entry = (*(*(*copy).rtable).elements.add(*place as usize - 1)).ptr_value;
            (*entry.cast::<pg_sys::RangeTblEntry>()).relid = pg_sys::Oid::from(route.shadow);
        }
        let mut nodes = 0;
        let mut substitute = |plan: *mut pg_sys::Plan| substitute(plan, targets, (*query).params);
        each_plan(&*copy, &mut nodes, &mut substitute).then_some(copy)
    }
}

/// # Safety
/// `plan` must be a node of our own copy.
unsafe fn substitute(plan: *mut pg_sys::Plan, targets: &[&Target], params: pg_sys::ParamListInfo) -> bool {
    use pg_sys::NodeTag::{T_BitmapIndexScan, T_IndexOnlyScan, T_IndexScan};
    // SAFETY: each node is written as the struct its tag names.
    unsafe {
        let Some(place) = scanned(plan) else { return true };
        let Some(target) = targets.iter().find(|t| t.place == place) else { return true };
        let route = &target.route;
        if route.parent != 0 && !shut_out_others(plan, target, params) {
            return false;
        }
        let index = match (*plan).type_ {
            T_IndexScan => &mut (*plan.cast::<pg_sys::IndexScan>()).indexid,
            T_IndexOnlyScan => &mut (*plan.cast::<pg_sys::IndexOnlyScan>()).indexid,
            T_BitmapIndexScan => &mut (*plan.cast::<pg_sys::BitmapIndexScan>()).indexid,
            _ => return true,
        };
        if let Some(counterpart) = route.counterpart(index.to_u32()) {
            *index = pg_sys::Oid::from(counterpart);
        }
        true
    }
}

/// Locks every partition and shadow at once, without waiting, and looks that they still belong together and the
/// routes are still open. Locks stay to the end of the transaction, as those of any statement.
///
/// # Safety
/// Inside a transaction.
pub(super) unsafe fn lock_pairs(region: &Region, seen: &[Seen]) -> bool {
    let share = pg_sys::AccessShareLock as i32;
    // SAFETY: any oid may be locked; relations are closed again.
    unsafe {
        for route in seen {
            let (source, shadow) = (pg_sys::Oid::from(route.source), pg_sys::Oid::from(route.shadow));
            if !pg_sys::ConditionalLockRelationOid(source, share)
                || !pg_sys::ConditionalLockRelationOid(shadow, share)
            {
                return false;
            }
            if !belong_together(source, shadow, route.storage) {
                return false;
            }
        }
    }
    seen.iter().all(|route| region.routes().is_open(route))
}

/// Whether the partition has the storage that is mirrored, whatever is written to it is, and both have the same columns.
///
/// # Safety
/// Both must be locked.
unsafe fn belong_together(source: pg_sys::Oid, shadow: pg_sys::Oid, storage: u32) -> bool {
    // SAFETY: relations that are gone are null; the others are closed again.
    unsafe {
        let (a, b) = (pg_sys::RelationIdGetRelation(source), pg_sys::RelationIdGetRelation(shadow));
        let fit = !a.is_null()
            && !b.is_null()
            && (*(*a).rd_rel).relfilenode.to_u32() == storage
            && is_captured(a)
            && same_columns((*a).rd_att, (*b).rd_att);
        for relation in [a, b] {
            if !relation.is_null() {
                pg_sys::RelationClose(relation);
            }
        }
        fit
    }
}

/// Whether the capture trigger fires: a superuser may have disabled it.
///
/// # Safety
/// `relation` must be open.
unsafe fn is_captured(relation: pg_sys::Relation) -> bool {
    // SAFETY: a relation's triggers are valid while it is open.
    unsafe {
        let Some(triggers) = (*relation).trigdesc.as_ref() else { return false };
        (0..triggers.numtriggers.max(0) as usize).any(|i| {
            let trigger = &*triggers.triggers.add(i);
            let name = std::ffi::CStr::from_ptr(trigger.tgname).to_bytes();
            trigger.tgisinternal
                && trigger.tgenabled as u8 == b'A'
                && name.starts_with(storage::CAPTURE.to_bytes())
        })
    }
}

/// # Safety
/// Both must be valid.
unsafe fn same_columns(a: pg_sys::TupleDesc, b: pg_sys::TupleDesc) -> bool {
    // SAFETY: the index is below natts of both.
    unsafe {
        (*a).natts == (*b).natts
            && (0..(*a).natts.max(0) as usize).all(|index| {
                let (x, y) = (&*compat::attribute(a, index), &*compat::attribute(b, index));
                (x.atttypid, x.atttypmod, x.attlen, x.attcollation, x.attisdropped)
                    == (y.atttypid, y.atttypmod, y.attlen, y.attcollation, y.attisdropped)
            })
    }
}
