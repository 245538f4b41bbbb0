//! The scans of a plan state that has run: which index looked what up, and whether that can still be read.

use super::keydatum;
use pgrx::pg_sys;

/// Whether a node reads a heap without an index of its own.
pub(super) fn reads_heap(tag: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag as T;
    matches!(
        tag,
        T::T_SeqScanState
            | T::T_SampleScanState
            | T::T_BitmapHeapScanState
            | T::T_TidScanState
            | T::T_TidRangeScanState
    )
}

/// Whether a node reads rows that are no table's of this server.
pub(super) fn reads_otherwise(tag: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag as T;
    matches!(
        tag,
        T::T_FunctionScanState
            | T::T_ValuesScanState
            | T::T_TableFuncScanState
            | T::T_CteScanState
            | T::T_WorkTableScanState
            | T::T_NamedTuplestoreScanState
            | T::T_ForeignScanState
    )
}

/// Whether a node reads again what another part of the plan, or a trigger, has kept.
pub(super) fn is_stored(tag: pg_sys::NodeTag) -> bool {
    use pg_sys::NodeTag as T;
    matches!(tag, T::T_CteScanState | T::T_WorkTableScanState | T::T_NamedTuplestoreScanState)
}

/// An index scan.
pub(super) struct IndexUse {
    /// The index.
    pub index: pg_sys::Relation,
    keys: pg_sys::ScanKey,
    /// How many keys it has.
    pub count: i32,
    runtime: keydatum::RuntimeKeys,
    /// It looked something up. In a parallel scan the leader may not have.
    began: bool,
    /// Its keys are all there is to it: no order by distance, no array that the executor steps through.
    pub plain: bool,
}

impl IndexUse {
    /// What an index scan, of whichever kind, did; None: another node, or one that looked nothing up, whose
    /// keys may never have got their values.
    ///
    /// # Safety
    /// `state` must be an initialised plan state of `query`.
    pub unsafe fn of(state: *mut pg_sys::PlanState, query: *const pg_sys::QueryDesc) -> Option<Self> {
        // SAFETY: as promised by the caller.
        let loses_parameters = unsafe { keydatum::may_lose_parameters(query) };
        let runtime = |keys: *mut pg_sys::IndexRuntimeKeyInfo, count, steps| keydatum::RuntimeKeys {
            keys,
            count,
            steps,
            loses_parameters,
        };
        // SAFETY: each state is read as the struct its tag names.
        let found = unsafe {
            match (*state).type_ {
                pg_sys::NodeTag::T_IndexScanState => {
                    let scan = &*state.cast::<pg_sys::IndexScanState>();
                    Self {
                        index: scan.iss_RelationDesc,
                        keys: scan.iss_ScanKeys,
                        count: scan.iss_NumScanKeys,
                        runtime: runtime(scan.iss_RuntimeKeys, scan.iss_NumRuntimeKeys, false),
                        began: !scan.iss_ScanDesc.is_null()
                            && (scan.iss_NumRuntimeKeys == 0 || scan.iss_RuntimeKeysReady),
                        plain: scan.iss_NumOrderByKeys == 0,
                    }
                }
                pg_sys::NodeTag::T_IndexOnlyScanState => {
                    let scan = &*state.cast::<pg_sys::IndexOnlyScanState>();
                    Self {
                        index: scan.ioss_RelationDesc,
                        keys: scan.ioss_ScanKeys,
                        count: scan.ioss_NumScanKeys,
                        runtime: runtime(scan.ioss_RuntimeKeys, scan.ioss_NumRuntimeKeys, false),
                        began: !scan.ioss_ScanDesc.is_null()
                            && (scan.ioss_NumRuntimeKeys == 0 || scan.ioss_RuntimeKeysReady),
                        plain: scan.ioss_NumOrderByKeys == 0,
                    }
                }
                pg_sys::NodeTag::T_BitmapIndexScanState => {
                    let scan = &*state.cast::<pg_sys::BitmapIndexScanState>();
                    Self {
                        index: scan.biss_RelationDesc,
                        keys: scan.biss_ScanKeys,
                        count: scan.biss_NumScanKeys,
                        runtime: runtime(
                            scan.biss_RuntimeKeys,
                            scan.biss_NumRuntimeKeys,
                            scan.biss_NumArrayKeys > 0,
                        ),
                        began: scan.biss_NumRuntimeKeys == 0 || scan.biss_RuntimeKeysReady,
                        plain: scan.biss_NumArrayKeys == 0,
                    }
                }
                _ => return None,
            }
        };
        (found.began && !found.index.is_null() && !found.keys.is_null()).then_some(found)
    }

    /// The keys whose values can still be read.
    ///
    /// # Safety
    /// The plan state must not have been ended yet.
    pub unsafe fn lasting_keys(&self) -> impl Iterator<Item = &pg_sys::ScanKeyData> {
        // SAFETY: as promised by the caller; the keys are an array of `count`.
        (0..self.count.max(0) as usize).map(|i| unsafe { &*self.keys.add(i) }).filter(|key| unsafe {
            // SAFETY: as above.
            keydatum::lasts(self.index, *key, &self.runtime)
        })
    }

    /// The heap it belongs to.
    ///
    /// # Safety
    /// As for [`IndexUse::lasting_keys`].
    pub unsafe fn heap(&self) -> u32 {
        // SAFETY: as promised by the caller.
        unsafe { (*(*self.index).rd_index).indrelid.to_u32() }
    }

    /// The array of keys.
    pub fn keys(&self) -> pg_sys::ScanKey {
        self.keys
    }
}

/// Functions of `=` on the types that keys usually have, integers of different widths among them: whoever is equal
/// by one of these is the same key.
const EQUAL: [u32; 19] = [
    // int2eq, int4eq, int8eq, int24eq, int42eq, int28eq, int82eq, int48eq, int84eq
    63, 65, 467, 158, 159, 1850, 1856, 852, 474, //
    // texteq, bpchareq, nameeq, uuid_eq, oideq
    67, 1048, 62, 2956, 184, //
    // date_eq, timestamp_eq, timestamptz_eq, numeric_eq, byteaeq
    1086, 2052, 1152, 1718, 1948,
];

/// What a scan without an index compares a column of its relation with: the other side of `column = value`, for every
/// such condition that all of its rows fulfil.
///
/// # Safety
/// `state` must be an initialised plan state of a scan, `column` an attribute number of its relation.
pub(super) unsafe fn compared_with(
    state: *mut pg_sys::PlanState,
    column: i16,
) -> impl Iterator<Item = *mut pg_sys::Expr> {
    // SAFETY: as promised by the caller; a scan's condition is a list of expressions in conjunction, each read as the
    // struct its tag names, an operator on two values has two arguments.
    unsafe {
        let conditions = super::plan::pointers::<pg_sys::Node>((*(*state).plan).qual);
        conditions.filter_map(move |node| {
            if (*node).type_ != pg_sys::NodeTag::T_OpExpr {
                return None;
            }
            let operator = &*node.cast::<pg_sys::OpExpr>();
            let mut sides = super::plan::pointers::<pg_sys::Expr>(operator.args);
            let (Some(left), Some(right), None) = (sides.next(), sides.next(), sides.next()) else {
                return None;
            };
            if !EQUAL.contains(&operator.opfuncid.to_u32()) {
                return None;
            }
            match (is_column(left, column), is_column(right, column)) {
                (true, false) => Some(right),
                (false, true) => Some(left),
                _ => None,
            }
        })
    }
}

/// Whether an expression is a column of the scanned relation.
///
/// # Safety
/// `expression` must be null or a planned expression of a scan.
unsafe fn is_column(expression: *mut pg_sys::Expr, column: i16) -> bool {
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        let node = unlabelled(expression);
        !node.is_null()
            && (*node).type_ == pg_sys::NodeTag::T_Var
            && (*node.cast::<pg_sys::Var>()).varattno == column
    }
}

/// The column of the scanned rows that an expression is, from 0.
///
/// # Safety
/// As for [`is_column`].
pub(super) unsafe fn column_of(expression: *mut pg_sys::Expr) -> Option<usize> {
    // SAFETY: as promised by the caller.
    unsafe {
        let node = unlabelled(expression);
        let is_column = !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_Var;
        let attribute = if is_column { (*node.cast::<pg_sys::Var>()).varattno } else { 0 };
        usize::try_from(attribute).ok()?.checked_sub(1)
    }
}

/// An expression without changes of its type that change no value.
///
/// # Safety
/// `expression` must be null or a planned expression.
unsafe fn unlabelled(expression: *mut pg_sys::Expr) -> *mut pg_sys::Node {
    let mut node = expression.cast::<pg_sys::Node>();
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        while !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
    }
    node
}

/// The scan key "column = ?" by the index's own operator class.
///
/// # Safety
/// `index` must be an open B-tree with that many columns.
pub(super) unsafe fn equality_key(index: pg_sys::Relation, column: usize) -> pg_sys::ScanKeyData {
    let mut key = pg_sys::ScanKeyData::default();
    // SAFETY: as promised by the caller.
    unsafe {
        let family = *(*index).rd_opfamily.add(column);
        let type_ = *(*index).rd_opcintype.add(column);
        let strategy = pg_sys::BTEqualStrategyNumber as i16;
        let operator = pg_sys::get_opfamily_member(family, type_, type_, strategy);
        pg_sys::ScanKeyEntryInitialize(
            &mut key,
            0,
            column as i16 + 1,
            strategy as u16,
            type_,
            *(*index).rd_indcollation.add(column),
            pg_sys::get_opcode(operator),
            pg_sys::Datum::from(0usize),
        );
    }
    key
}
