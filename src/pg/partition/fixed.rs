//! The one copy that has every row which a scan of a plan can find, when the scan is bound to a key that is known before
//! it begins.
//!
//! A partition whose rows are divided anew has copies with other rows than its own. A scan may read one of them in its
//! place only if a condition that all its rows fulfil says so: `key = value` or `key = ANY (values)`, by the equality by
//! which the table is partitioned, the values being constants or parameters of the statement, which do not change while it
//! runs. What another part of the plan hands over (a nested loop, a subplan) is no such value. Which copy has a key,
//! PostgreSQL's own partition descriptors say: that of the table, whether it is in the partition at all, and that of the
//! staging table, in which copy.
//!
//! A copy may have rows of other partitions as well (that of a merge, a list of keys): nothing of a scan may ever be asked of
//! them that could raise or tell something about them. An index whose conditions bind the key finds no such rows; else the
//! condition that does has to come before all others ([`Guard`]), as a security barrier, or the scan stays.

use super::asked::{Equality, Key, Keys, given};
use super::open_at_once;
use crate::pg::compat;
use crate::pg::plan::pointers;
use pgrx::pg_sys;

/// Values of a list that are looked at.
const MAX_VALUES: usize = 64;
/// Places of [`Scan::conditions`].
const BY_INDEX: usize = 0;
const FILTER: usize = 1;

/// How a scan comes by its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pg) enum FoundBy {
    /// It looks at all of them.
    Nothing,
    /// This index.
    Index(pg_sys::Oid),
    /// A bitmap, which may know pages only: then conditions of the index are asked again.
    Bitmap,
}

/// What keeps rows of other partitions away from the conditions of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::pg) enum Guard {
    /// Nothing has to be done: the index does, or there are none.
    Index,
    /// This filter, once it is the first.
    Filter(*mut pg_sys::Node),
    /// This condition of a bitmap, once it is the first that is asked again.
    Recheck(*mut pg_sys::Node),
}

/// A scan of a plan.
pub(in crate::pg) struct Scan {
    /// Its relation in the range table.
    pub place: u32,
    /// Where its rows come from.
    pub found_by: FoundBy,
    /// Lists of conditions that every row it finds fulfils: those of an index, and filters.
    pub conditions: [*mut pg_sys::List; 2],
    /// What the conditions call the columns of an index, when it reads nothing else; else null.
    pub columns: *mut pg_sys::List,
    /// Parameters of the statement.
    pub params: pg_sys::ParamListInfo,
}

/// A partition and where its rows are copied to.
#[derive(Clone, Copy)]
pub(in crate::pg) struct Divided {
    /// The partition.
    pub source: pg_sys::Oid,
    /// The table it is a partition of.
    pub parent: pg_sys::Oid,
    /// The partitioned table whose partitions are the copies; invalid: there is only `copy`.
    pub staging: pg_sys::Oid,
    /// The copy.
    pub copy: pg_sys::Oid,
}

impl Divided {
    /// The copy that has every row which a scan of the partition can find; None: it is not known to be one.
    ///
    /// # Safety
    /// The scan must be one of a valid plan, inside a transaction.
    pub unsafe fn copy_for(&self, scan: &Scan) -> Option<pg_sys::Oid> {
        // SAFETY: as promised by the caller.
        unsafe {
            let (bounds, alone) = self.bounds(scan)?;
            if !alone && !bounds.iter().any(|bound| scan.guard(bound).is_some()) {
                return None;
            }
            if self.staging == pg_sys::InvalidOid {
                return (!bounds.is_empty()).then_some(self.copy);
            }
            let found = with_open(self.staging, |relation| {
                Keys::with(self.staging, |key| bounds.iter().find_map(|bound| bound.copy(key, relation)))
            });
            found.flatten().flatten()
        }
    }

    /// What has to be done with a scan that reads the copy; None: it must not.
    ///
    /// # Safety
    /// As for [`Divided::copy_for`].
    pub unsafe fn guard(&self, scan: &Scan) -> Option<Guard> {
        // SAFETY: as promised by the caller.
        unsafe {
            let (bounds, alone) = self.bounds(scan)?;
            if alone { Some(Guard::Index) } else { bounds.iter().find_map(|bound| scan.guard(bound)) }
        }
    }

    /// The keys of the partition that the conditions of a scan bind it to, each of them at least to one; and whether the copies
    /// have rows of this partition only.
    ///
    /// # Safety
    /// As for [`Divided::copy_for`].
    unsafe fn bounds(&self, scan: &Scan) -> Option<(Vec<Bound>, bool)> {
        // SAFETY: as promised by the caller.
        unsafe {
            let alone = self.is_alone();
            let found = with_open(self.parent, |relation| {
                Keys::with(self.parent, |key| {
                    let column = key_column(key, self.parent, self.source)?;
                    let mut bounds = bounds(key, scan, column);
                    bounds.retain_mut(|bound| {
                        // What is elsewhere no row of the partition has, but a copy that has others' rows may.
                        let all = bound.values.len();
                        bound.values.retain(|value| key.locate(relation, *value) == Some(self.source));
                        !bound.values.is_empty() && (alone || bound.values.len() == all)
                    });
                    Some(bounds)
                })
            });
            found.flatten().flatten().map(|bounds| (bounds, alone))
        }
    }

    /// Whether a row of the partition with this key belongs into the copy; and, for a copy that has rows of other partitions as
    /// well, whether one of the copy belongs into the partition. None: that cannot be said.
    ///
    /// # Safety
    /// `value` must be one of the key column, inside a transaction that has locked the partition and the copy.
    pub unsafe fn shares(&self, value: pg_sys::Datum, of_source: bool) -> Option<bool> {
        // SAFETY: as promised by the caller.
        unsafe {
            let locate = |table: pg_sys::Oid| {
                let found = with_open(table, |relation| Keys::with(table, |key| key.locate(relation, value)));
                found.flatten()
            };
            if of_source {
                if self.staging == pg_sys::InvalidOid {
                    return Some(true);
                }
                return locate(self.staging).map(|copy| copy == Some(self.copy));
            }
            if self.is_alone() {
                return Some(true);
            }
            locate(self.parent).map(|partition| partition == Some(self.source))
        }
    }

    /// Whether the copies have rows of this partition only: those of a split, divided by hash, do. One that takes several
    /// partitions up, or lists of keys, may have others'.
    ///
    /// # Safety
    /// Inside a transaction.
    unsafe fn is_alone(&self) -> bool {
        // SAFETY: as promised by the caller.
        let hashes = || unsafe { with_open(self.staging, |_| Keys::with(self.staging, |key| key.hashes())) };
        self.staging != pg_sys::InvalidOid && hashes().flatten() == Some(true)
    }

    /// The number of the key's column in the partition, and so in its copies.
    ///
    /// # Safety
    /// Inside a transaction that has locked the partition.
    pub unsafe fn column(&self) -> Option<i16> {
        // SAFETY: as promised by the caller.
        Keys::with(self.parent, |key| unsafe { key_column(key, self.parent, self.source) }).flatten()
    }
}

/// Does `work` with a relation that is open and locked; None: it is gone, or that takes waiting.
///
/// # Safety
/// Inside a transaction.
unsafe fn with_open<R>(table: pg_sys::Oid, work: impl FnOnce(pg_sys::Relation) -> R) -> Option<R> {
    // SAFETY: as promised by the caller; it stays locked to the end of the transaction.
    unsafe {
        let relation = open_at_once(table, pg_sys::AccessShareLock as i32);
        if relation.is_null() {
            return None;
        }
        let result = work(relation);
        pg_sys::relation_close(relation, pg_sys::NoLock as i32);
        Some(result)
    }
}

/// The number that the key's column of a table has in a partition.
///
/// # Safety
/// Inside a transaction; catalog look-ups by oid and name.
unsafe fn key_column(key: &Key, table: pg_sys::Oid, partition: pg_sys::Oid) -> Option<i16> {
    // SAFETY: as promised by the caller; a missing column is null, or 0.
    unsafe {
        let name = pg_sys::get_attname(table, key.partitioning.attribute, true);
        if name.is_null() {
            return None;
        }
        let column = pg_sys::get_attnum(partition, name);
        (column > 0).then_some(column)
    }
}

/// Values, of the key's type, of which every row that a scan finds has one, by this equality.
struct Bound {
    values: Vec<pg_sys::Datum>,
    equality: Equality,
    /// The condition, and which of the scan's lists it is in.
    condition: *mut pg_sys::Node,
    list: usize,
}

impl Bound {
    /// The one partition that has all of them.
    ///
    /// # Safety
    /// `relation` must be the open table that this is the key of.
    unsafe fn copy(&self, key: &mut Key, relation: pg_sys::Relation) -> Option<pg_sys::Oid> {
        if !key.is_equality(&self.equality) {
            return None;
        }
        // SAFETY: as promised by the caller.
        let mut copies = self.values.iter().map(|value| unsafe { key.locate(relation, *value) });
        let first = copies.next()??;
        copies.all(|copy| copy == Some(first)).then_some(first)
    }
}

/// What each condition of a scan binds a column to.
///
/// # Safety
/// As for [`Divided::copy_for`].
unsafe fn bounds(key: &Key, scan: &Scan, column: i16) -> Vec<Bound> {
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        let is_key = |node: *mut pg_sys::Node| scan.is_column(node, column);
        let known = |node: *mut pg_sys::Node| value(node, scan.params);
        let bound = |(list, condition): (usize, *mut pg_sys::Node)| {
            let (values, equality) = match (*condition).type_ {
                pg_sys::NodeTag::T_OpExpr => {
                    let (value, equality) = key.compared_with(condition.cast(), &is_key, &known)?;
                    (vec![value], equality)
                }
                pg_sys::NodeTag::T_ScalarArrayOpExpr => listed(key, condition.cast(), scan, &is_key)?,
                _ => return None,
            };
            Some(Bound { values, equality, condition, list })
        };
        let all = |list: usize| pointers::<pg_sys::Node>(scan.conditions[list]).map(move |node| (list, node));
        all(BY_INDEX).chain(all(FILTER)).filter_map(bound).collect()
    }
}

impl Scan {
    /// How a condition keeps rows that do not fulfil it away from all others; None: it may not. Only a condition that tells
    /// nothing of the rows it is asked of may come before one that was first.
    ///
    /// # Safety
    /// The bound must be of this scan.
    unsafe fn guard(&self, bound: &Bound) -> Option<Guard> {
        let condition = bound.condition;
        // SAFETY: as promised by the caller.
        let (is_first, tells_nothing) = unsafe {
            let first = pointers::<pg_sys::Node>(self.conditions[bound.list]).next();
            (first == Some(condition), !pg_sys::contain_leaked_vars(condition))
        };
        // An index of another kind may be asked for more rows, of which its conditions are then asked again.
        let method = |index| compat::access_method(index);
        match (self.found_by, bound.list) {
            (FoundBy::Nothing, FILTER) => (is_first || tells_nothing).then_some(Guard::Filter(condition)),
            (FoundBy::Index(index), BY_INDEX) => {
                matches!(method(index), pg_sys::BTREE_AM_OID | pg_sys::HASH_AM_OID).then_some(Guard::Index)
            }
            (FoundBy::Index(index), _) => {
                let exact = method(index) == pg_sys::BTREE_AM_OID;
                (exact && (is_first || tells_nothing)).then_some(Guard::Filter(condition))
            }
            (FoundBy::Bitmap, BY_INDEX) => (is_first || tells_nothing).then_some(Guard::Recheck(condition)),
            (FoundBy::Bitmap, _) => tells_nothing.then_some(Guard::Filter(condition)),
            _ => None,
        }
    }

    /// Whether an expression is a column of the relation, as it is or as another type of the same bytes.
    ///
    /// # Safety
    /// `node` must be an expression of this scan.
    unsafe fn is_column(&self, node: *mut pg_sys::Node, column: i16) -> bool {
        // SAFETY: each node is read as the struct its tag names; the columns of an index are target entries, from 1.
        unsafe {
            let node = unlabelled(node);
            if (*node).type_ != pg_sys::NodeTag::T_Var {
                return false;
            }
            let var = &*node.cast::<pg_sys::Var>();
            if var.varlevelsup != 0 {
                return false;
            }
            if var.varno == pg_sys::INDEX_VAR && !self.columns.is_null() {
                let entries = pointers::<pg_sys::TargetEntry>(self.columns);
                let found = entries.into_iter().find(|entry| (**entry).resno == var.varattno);
                return found.is_some_and(|entry| {
                    let node = unlabelled((*entry).expr.cast());
                    (*node).type_ == pg_sys::NodeTag::T_Var && {
                        let var = &*node.cast::<pg_sys::Var>();
                        var.varno as u32 == self.place && var.varattno == column
                    }
                });
            }
            var.varno as u32 == self.place && var.varattno == column
        }
    }
}

/// An expression without what only calls its value by another type.
///
/// # Safety
/// `node` must be an expression.
unsafe fn unlabelled(mut node: *mut pg_sys::Node) -> *mut pg_sys::Node {
    // SAFETY: read as the struct its tag names.
    unsafe {
        while (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        node
    }
}

/// The value that an expression has throughout a statement, and its type; None: it may change, or is NULL.
///
/// # Safety
/// `node` must be an expression of a plan that is about to run with these parameters.
unsafe fn value(
    node: *mut pg_sys::Node,
    params: pg_sys::ParamListInfo,
) -> Option<(pg_sys::Datum, pg_sys::Oid)> {
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        let type_ = pg_sys::exprType(node);
        let node = unlabelled(node);
        match (*node).type_ {
            pg_sys::NodeTag::T_Const => {
                let constant = &*node.cast::<pg_sys::Const>();
                (!constant.constisnull).then_some((constant.constvalue, type_))
            }
            pg_sys::NodeTag::T_Param => given(node.cast(), params).map(|given| (given.value, type_)),
            _ => None,
        }
    }
}

/// The values of `column = ANY (array)`.
///
/// # Safety
/// As for [`Divided::copy_for`].
unsafe fn listed(
    key: &Key,
    condition: *const pg_sys::ScalarArrayOpExpr,
    scan: &Scan,
    is_key: &dyn Fn(*mut pg_sys::Node) -> bool,
) -> Option<(Vec<pg_sys::Datum>, Equality)> {
    // SAFETY: each node is read as the struct its tag names; the array is one of elements of this type.
    unsafe {
        let condition = &*condition;
        let mut sides = pointers::<pg_sys::Node>(condition.args);
        let (left, right) = (sides.next()?, sides.next()?);
        let equality = key.equality(condition.opno, condition.inputcollid);
        if !condition.useOr || !is_key(left) || !key.is_equality(&equality) {
            return None;
        }
        let (array, type_) = value(right, scan.params)?;
        let type_ = pg_sys::get_element_type(type_);
        if type_ == pg_sys::InvalidOid {
            return None;
        }
        let (mut length, mut by_value, mut align) = (0, false, 0);
        pg_sys::get_typlenbyvalalign(type_, &mut length, &mut by_value, &mut align);
        let array = pg_sys::pg_detoast_datum(array.cast_mut_ptr()).cast::<pg_sys::ArrayType>();
        let (mut values, mut nulls, mut count) = (std::ptr::null_mut(), std::ptr::null_mut(), 0);
        pg_sys::deconstruct_array(
            array,
            type_,
            length.into(),
            by_value,
            align,
            &mut values,
            &mut nulls,
            &mut count,
        );
        let count = usize::try_from(count).ok().filter(|count| *count <= MAX_VALUES)?;
        // A NULL equals nothing. An element without an equal of the key's type is left to PostgreSQL.
        let known = (0..count).filter(|at| !*nulls.add(*at)).map(|at| key.as_key(*values.add(at), type_));
        known.collect::<Option<_>>().map(|values| (values, equality))
    }
}
