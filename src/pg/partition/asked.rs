//! The key that a query asks for, and the partition which that leads to.

use super::{PartitionKey, partition_key};
use crate::pg::plan::pointers;
use crate::pg::{compat, invalidation};
use pgrx::pg_sys;
use std::cell::RefCell;
use std::collections::HashMap;

/// The strategies of equality.
const HASH_EQUAL: i32 = 1;
const BTREE_EQUAL: i32 = 3;

/// An equality that a condition asks for, and the type of the values that it compares keys with.
#[derive(Clone, Copy)]
pub(super) struct Equality {
    operator: pg_sys::Oid,
    collation: pg_sys::Oid,
    type_: pg_sys::Oid,
}

/// How a table is partitioned, as far as look-ups want it.
pub(super) struct Key {
    pub(super) partitioning: PartitionKey,
    pub(super) family: pg_sys::Oid,
    pub(super) type_: pg_sys::Oid,
    function: pg_sys::FmgrInfo,
}

thread_local! {
    static KEYS: RefCell<Keys> = RefCell::new(Keys::default());
}

/// What the session remembers; forgotten as soon as one of the tables changes.
#[derive(Default)]
pub(super) struct Keys {
    generation: u64,
    by_table: HashMap<u32, Option<Key>>,
}

impl Keys {
    /// The most tables remembered.
    const MOST: usize = 1024;

    /// Asks the key of a table; None: it is not one of the kind.
    pub(super) fn with<R>(table: pg_sys::Oid, ask: impl FnOnce(&mut Key) -> R) -> Option<R> {
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
            // A value of the column is one of the operator class as it is, a varchar being a text.
            let column = pg_sys::get_atttype(table, partitioning.attribute);
            if support == pg_sys::InvalidOid || !pg_sys::IsBinaryCoercible(column, type_) {
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
    pub(super) unsafe fn partition(
        &mut self,
        relation: pg_sys::Relation,
        parse: *mut pg_sys::Query,
        params: pg_sys::ParamListInfo,
    ) -> Option<pg_sys::Oid> {
        // SAFETY: as promised by the caller.
        unsafe {
            let value = self.value((*(*parse).jointree).quals, params)?;
            self.locate(relation, value)
        }
    }

    /// The partition that a value of the key's type is in.
    ///
    /// # Safety
    /// `relation` must be the open table that this is the key of.
    pub(super) unsafe fn locate(
        &mut self,
        relation: pg_sys::Relation,
        value: pg_sys::Datum,
    ) -> Option<pg_sys::Oid> {
        // SAFETY: as promised by the caller; the descriptor lasts as long as the relation is open.
        unsafe {
            let descriptor = pg_sys::RelationGetPartitionDesc(relation, true);
            let bounds = (*descriptor).boundinfo;
            if bounds.is_null() || (*descriptor).nparts <= 0 {
                return None;
            }
            let number = if self.hashes() {
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

    /// Whether it is a hash that says where a key is.
    pub(super) fn hashes(&self) -> bool {
        self.partitioning.strategy == b'h'
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
        // SAFETY: as promised by the caller.
        unsafe {
            let known = |node: *mut pg_sys::Node| known_value(node, params);
            self.compared_with(condition, &|node| self.is_key(node), &known).map(|(value, _)| value)
        }
    }

    /// The same, with what is the key and what is known said by the caller.
    ///
    /// # Safety
    /// `condition` must be an OpExpr.
    pub(super) unsafe fn compared_with(
        &self,
        condition: *mut pg_sys::OpExpr,
        is_key: &dyn Fn(*mut pg_sys::Node) -> bool,
        known: &dyn Fn(*mut pg_sys::Node) -> Option<(pg_sys::Datum, pg_sys::Oid)>,
    ) -> Option<(pg_sys::Datum, Equality)> {
        // SAFETY: each node is read as the struct its tag names.
        unsafe {
            let condition = &*condition;
            let mut sides = pointers::<pg_sys::Node>(condition.args);
            let (left, right) = (sides.next()?, sides.next()?);
            let given = match (is_key(left), is_key(right)) {
                (true, false) => right,
                (false, true) => left,
                _ => return None,
            };
            let equality = self.equality(condition.opno, condition.inputcollid);
            if !self.is_equality(&equality) {
                return None;
            }
            let (value, type_) = known(given)?;
            Some((self.as_key(value, type_)?, equality))
        }
    }

    /// An operator and its collation, asked of this key.
    pub(super) fn equality(&self, operator: pg_sys::Oid, collation: pg_sys::Oid) -> Equality {
        Equality { operator, collation, type_: self.type_ }
    }

    /// Whether that is the equality by which keys are partitioned.
    pub(super) fn is_equality(&self, equality: &Equality) -> bool {
        let strategy = if self.hashes() { HASH_EQUAL } else { BTREE_EQUAL };
        let own = self.partitioning.collation;
        // SAFETY: a catalog look-up by oid.
        let found = || unsafe { pg_sys::get_op_opfamily_strategy(equality.operator, self.family) };
        equality.type_ == self.type_
            && (own == pg_sys::InvalidOid || equality.collation == own)
            && found() == strategy
    }

    /// A value of a type as one of the key's, None: there is no equal one.
    pub(super) fn as_key(&self, value: pg_sys::Datum, type_: pg_sys::Oid) -> Option<pg_sys::Datum> {
        if type_ == self.type_ { Some(value) } else { integer(value, type_, self.type_) }
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
            pg_sys::NodeTag::T_Param => {
                let given = given(node.cast(), params)?;
                let constant = u32::from(given.pflags) & pg_sys::PARAM_FLAG_CONST != 0;
                constant.then_some((given.value, given.ptype))
            }
            _ => None,
        }
    }
}

/// What was given for a parameter of a query, unless it is NULL.
///
/// # Safety
/// As for [`known_value`].
pub(super) unsafe fn given(
    param: *const pg_sys::Param,
    params: pg_sys::ParamListInfo,
) -> Option<pg_sys::ParamExternData> {
    // SAFETY: as promised by the caller; parameters are numbered from 1.
    unsafe {
        let param = &*param;
        if params.is_null()
            || param.paramkind != pg_sys::ParamKind::PARAM_EXTERN
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
        (!given.isnull && given.ptype == param.paramtype).then_some(*given)
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
