//! Look-ups by one key, planned for the partition that has the key.
//!
//! A SELECT from one managed table with `key = constant` (or a parameter whose value is known) among its conditions
//! reads one partition, and PostgreSQL finds that out at every execution: it opens the table's descriptor, prunes
//! level by level and makes paths for what is left. Here the planner is given that partition at once, as if it had
//! been named, and the plan gets what makes it one of the table: the right to read is the table's, and the plan is made
//! anew when the table or a table between changes. Everything that is not surely the same is planned as always.

use super::{PartitionKey, partition_key};
use crate::pg::plan::pointers;
use crate::pg::{compat, guc, invalidation, region};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::cell::RefCell;
use std::collections::HashMap;

/// Levels of partitions: the slot, and the lists of chosen keys below it.
const MAX_LEVELS: usize = 3;
/// The whole row's bit in the columns that are read.
const WHOLE_ROW: i32 = -pg_sys::FirstLowInvalidHeapAttributeNumber;
/// The strategies of equality.
const HASH_EQUAL: i32 = 1;
const BTREE_EQUAL: i32 = 3;

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
        let managed = region::get().is_some_and(|region| region.segment(named.to_u32()).is_some());
        let columns = compat::columns_read(parse, entry);
        if !managed || pg_sys::bms_is_member(WHOLE_ROW, columns) {
            return;
        }
        if let Some(found) = descend(parse, entry, params) {
            *way = found;
            (*entry).relid = found.leaf;
            (*entry).relkind = pg_sys::RELKIND_RELATION as std::ffi::c_char;
            (*entry).inh = false;
            compat::set_named(parse, entry, found.leaf);
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
            let child = oid.map(|oid| pg_sys::try_relation_open(oid, (*entry).rellockmode));
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

/// How a table is partitioned, as far as look-ups want it.
struct Key {
    partitioning: PartitionKey,
    family: pg_sys::Oid,
    type_: pg_sys::Oid,
    function: pg_sys::FmgrInfo,
}

thread_local! {
    static KEYS: RefCell<Keys> = RefCell::new(Keys::default());
}

/// What the session remembers; forgotten as soon as one of the tables changes.
#[derive(Default)]
struct Keys {
    generation: u64,
    by_table: HashMap<u32, Option<Key>>,
}

impl Keys {
    /// The most tables remembered.
    const MOST: usize = 1024;

    fn with<R>(table: pg_sys::Oid, ask: impl FnOnce(&mut Key) -> R) -> Option<R> {
        let key = KEYS.with_borrow_mut(|keys| {
            if keys.generation != invalidation::generation() || keys.by_table.len() >= Self::MOST {
                keys.by_table.clear();
                keys.generation = invalidation::generation();
            }
            keys.by_table.remove(&table.to_u32())
        });
        // Read, and used, while it is nobody's: both may raise.
        let mut key = match key {
            Some(known) => known,
            None => {
                invalidation::watch([table]);
                Key::read(table)
            }
        };
        let answer = key.as_mut().map(ask);
        KEYS.with_borrow_mut(|keys| keys.by_table.insert(table.to_u32(), key));
        answer
    }
}

impl Key {
    fn read(table: pg_sys::Oid) -> Option<Key> {
        let partitioning = partition_key(table).ok()?;
        // SAFETY: catalog look-ups by oid; the function's memory lasts as long as the session.
        unsafe {
            let family = pg_sys::get_opclass_family(partitioning.opclass);
            let type_ = pg_sys::get_opclass_input_type(partitioning.opclass);
            let number =
                if partitioning.strategy == b'h' { super::HASH_EXTENDED } else { super::BTREE_ORDER };
            let support = pg_sys::get_opfamily_proc(family, type_, type_, number);
            if support == pg_sys::InvalidOid || pg_sys::get_atttype(table, partitioning.attribute) != type_ {
                return None;
            }
            let mut function = pg_sys::FmgrInfo::default();
            pg_sys::fmgr_info_cxt(support, &mut function, pg_sys::TopMemoryContext);
            Some(Key { partitioning, family, type_, function })
        }
    }

    /// The partition that the conditions of a query lead to.
    ///
    /// # Safety
    /// `relation` must be the open table that this is the key of, the query one from it.
    unsafe fn partition(
        &mut self,
        relation: pg_sys::Relation,
        parse: *mut pg_sys::Query,
        params: pg_sys::ParamListInfo,
    ) -> Option<pg_sys::Oid> {
        // SAFETY: as promised by the caller; the descriptor lasts as long as the relation is open.
        unsafe {
            let value = self.value((*(*parse).jointree).quals, params)?;
            let descriptor = pg_sys::RelationGetPartitionDesc(relation, true);
            let bounds = (*descriptor).boundinfo;
            if bounds.is_null() || (*descriptor).nparts <= 0 {
                return None;
            }
            let number = if self.partitioning.strategy == b'h' {
                let mut hash = [0];
                compat::partition_hashes(
                    &mut self.function,
                    self.partitioning.collation,
                    &[value],
                    &mut hash,
                );
                let remainder = hash[0].checked_rem(u64::try_from((*bounds).nindexes).ok()?)?;
                *(*bounds).indexes.add(remainder as usize)
            } else {
                let mut found = false;
                let mut collation = self.partitioning.collation;
                let at = pg_sys::partition_list_bsearch(
                    &mut self.function,
                    &mut collation,
                    bounds,
                    value,
                    &mut found,
                );
                if found && at >= 0 { *(*bounds).indexes.add(at as usize) } else { (*bounds).default_index }
            };
            let number =
                usize::try_from(number).ok().filter(|number| *number < (*descriptor).nparts as usize)?;
            Some(*(*descriptor).oids.add(number))
        }
    }

    /// The key's value that the conditions ask for: one of those that all have to hold is `key = value`.
    ///
    /// # Safety
    /// `quals` must be an analysed condition.
    unsafe fn value(&self, quals: *mut pg_sys::Node, params: pg_sys::ParamListInfo) -> Option<pg_sys::Datum> {
        // SAFETY: each node is read as the struct its tag names.
        unsafe {
            match (*quals).type_ {
                pg_sys::NodeTag::T_OpExpr => self.compared(quals.cast(), params),
                pg_sys::NodeTag::T_BoolExpr => {
                    let both: *mut pg_sys::BoolExpr = quals.cast();
                    if (*both).boolop != pg_sys::BoolExprType::AND_EXPR {
                        return None;
                    }
                    pointers::<pg_sys::Node>((*both).args)
                        .filter(|each| (**each).type_ == pg_sys::NodeTag::T_OpExpr)
                        .find_map(|each| self.compared(each.cast(), params))
                }
                _ => None,
            }
        }
    }

    /// The value that a condition compares the key with for equality.
    ///
    /// # Safety
    /// `condition` must be an analysed OpExpr.
    unsafe fn compared(
        &self,
        condition: *mut pg_sys::OpExpr,
        params: pg_sys::ParamListInfo,
    ) -> Option<pg_sys::Datum> {
        // SAFETY: each node is read as the struct its tag names; catalog look-ups by oid.
        unsafe {
            let condition = &*condition;
            let mut sides = pointers::<pg_sys::Node>(condition.args);
            let (left, right) = (sides.next()?, sides.next()?);
            let given = match (self.is_key(left), self.is_key(right)) {
                (true, false) => right,
                (false, true) => left,
                _ => return None,
            };
            let strategy = if self.partitioning.strategy == b'h' { HASH_EQUAL } else { BTREE_EQUAL };
            let collated = self.partitioning.collation != pg_sys::InvalidOid;
            if (collated && condition.inputcollid != self.partitioning.collation)
                || pg_sys::get_op_opfamily_strategy(condition.opno, self.family) != strategy
            {
                return None;
            }
            let (value, type_) = known_value(given, params)?;
            if type_ == self.type_ { Some(value) } else { integer(value, type_, self.type_) }
        }
    }

    /// # Safety
    /// `node` must be an analysed expression.
    unsafe fn is_key(&self, node: *mut pg_sys::Node) -> bool {
        // SAFETY: read as the struct its tag names.
        unsafe {
            (*node).type_ == pg_sys::NodeTag::T_Var && {
                let var = &*node.cast::<pg_sys::Var>();
                var.varno as u32 == 1 && var.varlevelsup == 0 && var.varattno == self.partitioning.attribute
            }
        }
    }
}

/// The value, and its type, that an expression has for certain: a constant, or a parameter the planner may take for one.
/// NULL is none.
///
/// # Safety
/// `node` must be an analysed expression, `params` what the planner got.
unsafe fn known_value(
    node: *mut pg_sys::Node,
    params: pg_sys::ParamListInfo,
) -> Option<(pg_sys::Datum, pg_sys::Oid)> {
    // SAFETY: read as the struct its tag names; parameters are numbered from 1.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_Const => {
                let constant = &*node.cast::<pg_sys::Const>();
                (!constant.constisnull).then_some((constant.constvalue, constant.consttype))
            }
            pg_sys::NodeTag::T_Param if !params.is_null() => {
                let param = &*node.cast::<pg_sys::Param>();
                if param.paramkind != pg_sys::ParamKind::PARAM_EXTERN
                    || param.paramid <= 0
                    || param.paramid > (*params).numParams
                {
                    return None;
                }
                let mut space = pg_sys::ParamExternData::default();
                let given = match (*params).paramFetch {
                    Some(fetch) => fetch(params, param.paramid, true, &mut space),
                    None => (*params).params.as_mut_ptr().add(param.paramid as usize - 1),
                };
                let given = given.as_ref()?;
                let constant = u32::from(given.pflags) & pg_sys::PARAM_FLAG_CONST != 0;
                (constant && !given.isnull && given.ptype == param.paramtype)
                    .then_some((given.value, given.ptype))
            }
            _ => None,
        }
    }
}

/// An integer of one type as one of another, if it is one of that: they are equal across types.
fn integer(value: pg_sys::Datum, from: pg_sys::Oid, to: pg_sys::Oid) -> Option<pg_sys::Datum> {
    let wide = match from {
        pg_sys::INT2OID => i64::from(value.value() as i16),
        pg_sys::INT4OID => i64::from(value.value() as i32),
        pg_sys::INT8OID => value.value() as i64,
        _ => return None,
    };
    match to {
        pg_sys::INT2OID => i16::try_from(wide).ok().map(pg_sys::Datum::from),
        pg_sys::INT4OID => i32::try_from(wide).ok().map(pg_sys::Datum::from),
        pg_sys::INT8OID => Some(pg_sys::Datum::from(wide)),
        _ => None,
    }
}
