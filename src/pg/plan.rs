//! What a statement touched: read from its finished plan state, without changing it.
//!
//! Instrumentation is inclusive of child nodes; scans have none that matter (a bitmap heap scan contains
//! its index scans), and what a ModifyTable node writes goes where [`written`] says.

use super::builtin::{self, BuiltInCalls};
use super::region::{self, Region};
use super::scan::{self, IndexUse};
use super::{compat, keydatum, written};
use foreshard_core::shared::{KEY_BYTES, Segment};
use pgrx::pg_sys;
use std::sync::atomic::Ordering;

/// Plan nodes looked at; a bigger plan is known by its first ones.
pub(super) const MAX_NODES: usize = 8192;
/// Keys taken from one statement.
pub const MAX_KEYS: usize = 16;

/// A relation of a statement's range table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its oid.
    pub relation: u32,
    /// The statement modifies it (for a partitioned table: modifies some of its partitions).
    pub writes: bool,
}

/// How a statement is to be instrumented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instrument {
    /// Not measured at all.
    None,
    /// Rows, buffers and WAL of every node.
    Nodes,
    /// The same and time, for the triggers that only the executor sees.
    NodesAndTime,
}

/// What was done to one leaf partition.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Touch {
    /// Its oid.
    pub relation: u32,
    /// Scans started.
    pub scans: f64,
    /// Rows read, filtered ones included.
    pub rows_read: f64,
    /// Rows handed on × planned width, bytes.
    pub result_bytes: f64,
    /// Blocks found in shared buffers by its scans.
    pub blocks_hit: f64,
    /// Blocks read from outside by its scans.
    pub blocks_read: f64,
    /// Rows written.
    pub rows_written: f64,
    /// It may have been written.
    pub writes: bool,
}

/// A key that a statement looked up or wrote.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Key {
    /// The partitioned table; the leaf partition for a key longer than `bytes`, whose hash value cannot be
    /// computed again from them.
    pub relation: u32,
    /// Its first bytes.
    pub bytes: [u8; KEY_BYTES],
    /// How many of them are set.
    pub length: usize,
    /// Length of the whole key, bytes.
    pub whole: usize,
    /// Hash of the whole key.
    pub hash: u64,
    /// Its slot is hot.
    pub hot: bool,
    /// How many keys of a long array it stands for.
    pub weight: u32,
}

/// A finished statement.
#[derive(Debug, Default)]
pub struct Report {
    /// Managed leaf partitions it touched.
    pub touches: Vec<Touch>,
    /// What it did to whatever else: other tables, rows of functions.
    pub elsewhere: Touch,
    /// Built-in triggers it fired on managed tables.
    pub built_in: Vec<BuiltInCalls>,
    /// Keys on hot slots; of a measured statement on any.
    pub keys: Vec<Key>,
    /// This process is a parallel worker; its leader reports everything but CPU time.
    pub worker: bool,
}

/// `instrument_options` of a choice.
pub fn options(instrument: Instrument) -> i32 {
    use pg_sys::InstrumentOption::{INSTRUMENT_BUFFERS, INSTRUMENT_ROWS, INSTRUMENT_TIMER, INSTRUMENT_WAL};
    let nodes = INSTRUMENT_ROWS | INSTRUMENT_BUFFERS | INSTRUMENT_WAL;
    (match instrument {
        Instrument::None => 0,
        Instrument::Nodes => nodes,
        Instrument::NodesAndTime => nodes | INSTRUMENT_TIMER,
    }) as i32
}

/// The elements of a List of pointers.
///
/// # Safety
/// `list` must be null or a valid pointer list.
pub(in crate::pg) unsafe fn pointers<T>(list: *mut pg_sys::List) -> impl Iterator<Item = *mut T> {
    // SAFETY: as promised by the caller.
    let length = if list.is_null() { 0 } else { unsafe { (*list).length.max(0) as usize } };
    // SAFETY: below length.
    (0..length).map(move |i| unsafe { (*(*list).elements.add(i)).ptr_value.cast::<T>() })
}

/// The relations of a statement.
///
/// # Safety
/// `statement` must be a planned statement.
pub unsafe fn relations(statement: *const pg_sys::PlannedStmt) -> Vec<Named> {
    // SAFETY: the range table holds RangeTblEntry nodes, resultRelations integers that index it from 1.
    unsafe {
        let statement = &*statement;
        let targets = statement.resultRelations;
        let target_count = if targets.is_null() { 0 } else { (*targets).length.max(0) as usize };
        let is_target = |index: usize| {
            (0..target_count).any(|i| (*(*targets).elements.add(i)).int_value as usize == index + 1)
        };
        let mut found: Vec<Named> = Vec::new();
        for (index, entry) in pointers::<pg_sys::RangeTblEntry>(statement.rtable).enumerate().take(MAX_NODES)
        {
            if (*entry).rtekind == pg_sys::RTEKind::RTE_RELATION {
                found.push(Named { relation: (*entry).relid.to_u32(), writes: is_target(index) });
            }
        }
        found
    }
}

struct Walk<'a> {
    region: &'static Region,
    report: &'a mut Report,
    query: *mut pg_sys::QueryDesc,
    nodes: usize,
    /// Look for keys.
    keys: bool,
    /// Read instrumentation.
    counts: bool,
    /// Which elements of long arrays are looked at: the same for all the leaves that are asked for them.
    turn: usize,
}

/// What a measured statement touched; `keys`: also the keys.
///
/// # Safety
/// `query` must have run and not been ended yet.
pub unsafe fn report(query: *mut pg_sys::QueryDesc, keys: bool) -> Report {
    // SAFETY: as promised by the caller.
    unsafe {
        let worker = pg_sys::ParallelWorkerNumber >= 0;
        let mut found = walk(query, true, keys && !worker);
        found.worker = worker;
        if !worker {
            builtin::triggers(query, &mut found.built_in);
        }
        found
    }
}

/// The keys that a statement looked up on, or wrote to, hot slots.
///
/// # Safety
/// As for [`report`].
pub unsafe fn keys(query: *mut pg_sys::QueryDesc) -> Vec<Key> {
    // SAFETY: as promised by the caller.
    unsafe { walk(query, false, true).keys }
}

/// # Safety
/// As for [`report`].
unsafe fn walk(query: *mut pg_sys::QueryDesc, counts: bool, keys: bool) -> Report {
    let mut report = Report::default();
    let Some(region) = region::get() else { return report };
    let mut walk =
        Walk { region, report: &mut report, query, nodes: 0, keys, counts, turn: keydatum::next_turn() };
    // SAFETY: planstate is the root of a tree of initialised nodes.
    unsafe {
        if !(*query).planstate.is_null() {
            visit((*query).planstate, (&raw mut walk).cast());
        }
    }
    report
}

// SAFETY: `context` is the Walk of `walk`; `state` an initialised plan state.
unsafe extern "C-unwind" fn visit(state: *mut pg_sys::PlanState, context: *mut std::ffi::c_void) -> bool {
    // SAFETY: as above.
    unsafe {
        let walk = &mut *context.cast::<Walk>();
        walk.nodes += 1;
        if state.is_null() || walk.nodes > MAX_NODES {
            return walk.nodes > MAX_NODES;
        }
        use pg_sys::NodeTag::{T_IndexOnlyScanState, T_IndexScanState};
        let tag = (*state).type_;
        if scan::reads_heap(tag)
            || scan::reads_otherwise(tag)
            || matches!(tag, T_IndexScanState | T_IndexOnlyScanState)
        {
            walk.scan(state);
        }
        if let Some(used) = IndexUse::of(state, walk.query) {
            walk.index(&used);
        }
        if tag == pg_sys::NodeTag::T_SeqScanState {
            walk.condition(state);
        }
        let stopped = compat::walk_plan_state(state, visit, context);
        // After the children: rows written go where the scans below found them.
        if (*state).type_ == pg_sys::NodeTag::T_ModifyTableState {
            walk.modify(state.cast());
        }
        stopped
    }
}

impl Walk<'_> {
    fn touch(&mut self, relation: u32) -> &mut Touch {
        let touches = &mut self.report.touches;
        let at = touches.iter().position(|t| t.relation == relation).unwrap_or_else(|| {
            touches.push(Touch { relation, ..Touch::default() });
            touches.len() - 1
        });
        &mut touches[at]
    }

    fn is_leaf(&self, relation: u32) -> bool {
        self.region.segment(relation).map(|s| s.activity()).is_some_and(|a| a.leaf && a.observed)
    }

    /// # Safety
    /// `state` must be a scan's state.
    unsafe fn scan(&mut self, state: *mut pg_sys::PlanState) {
        // SAFETY: as promised by the caller; InstrEndLoop only closes the open cycle, as EXPLAIN does.
        unsafe {
            let relation = (*state.cast::<pg_sys::ScanState>()).ss_currentRelation;
            let instrument = (*state).instrument;
            if !self.counts || instrument.is_null() {
                return;
            }
            let oid = match relation.as_ref() {
                Some(relation) => super::route::source_of(relation.rd_id.to_u32()),
                None => 0,
            };
            builtin::end_loop(instrument);
            let counted = &*instrument;
            if counted.nloops <= 0.0 {
                return;
            }
            let buffers = &counted.bufusage;
            let width = f64::from((*(*state).plan).plan_width.max(0));
            let own = scan::reads_otherwise((*state).type_) || !self.is_leaf(oid);
            let touch = if own { &mut self.report.elsewhere } else { self.touch(oid) };
            touch.rows_read += counted.ntuples + counted.nfiltered1 + counted.nfiltered2;
            touch.result_bytes += counted.ntuples * width;
            // What is read again from memory is no scan, and what it was made of is charged where that was read.
            if !scan::is_stored((*state).type_) {
                touch.scans += counted.nloops;
                touch.blocks_hit += buffers.shared_blks_hit as f64;
                touch.blocks_read += buffers.shared_blks_read as f64;
            }
        }
    }

    /// # Safety
    /// As for [`IndexUse::lasting_keys`].
    unsafe fn index(&mut self, used: &IndexUse) {
        if !self.keys {
            return;
        }
        // SAFETY: indkey holds indnatts elements, scan keys name one of them.
        unsafe {
            let form = &*(*used.index).rd_index;
            let leaf = super::route::source_of(used.heap());
            let Some((segment, hot)) = self.giving_keys(leaf) else { return };
            let wanted = segment.key_attribute.load(Ordering::Relaxed) as i16;
            for key in used.lasting_keys() {
                let column = key.sk_attno - 1;
                let is_key = column >= 0
                    && column < form.indnatts
                    && *form.indkey.values.as_ptr().add(column as usize) == wanted;
                if is_key && self.report.keys.len() < MAX_KEYS {
                    keydatum::from_scan_key(used.index, key, self.turn, |bytes, whole, weight| {
                        push_key(&mut self.report.keys, leaf, (segment, hot), (bytes, whole), weight);
                    });
                }
            }
        }
    }

    /// The key of a scan that has no index to find it, when that is a constant or a parameter: of a small or a new table.
    ///
    /// # Safety
    /// `state` must be a sequential scan's state.
    unsafe fn condition(&mut self, state: *mut pg_sys::PlanState) {
        // SAFETY: as promised by the caller.
        unsafe {
            let relation = (*state.cast::<pg_sys::ScanState>()).ss_currentRelation;
            // It begins with its first row.
            let began = !(*state.cast::<pg_sys::ScanState>()).ss_currentScanDesc.is_null();
            if !self.keys || relation.is_null() || !began {
                return;
            }
            let leaf = super::route::source_of((*relation).rd_id.to_u32());
            let Some((segment, hot)) = self.giving_keys(leaf) else { return };
            let column = segment.key_attribute.load(Ordering::Relaxed) as i16;
            if column < 1 || i32::from(column) > (*(*relation).rd_att).natts {
                return;
            }
            for value in scan::compared_with(state, column) {
                let column = compat::attribute((*relation).rd_att, column as usize - 1);
                let gone = !(*column).attbyval && keydatum::may_lose_parameters(self.query);
                let parameters = if gone { std::ptr::null_mut() } else { (*self.query).params };
                keydatum::from_expression(value, parameters, column, |bytes, whole| {
                    push_key(&mut self.report.keys, leaf, (segment, hot), (bytes, whole), 1);
                });
            }
        }
    }

    /// A leaf whose keys are wanted, and whether it is hot.
    fn giving_keys(&self, leaf: u32) -> Option<(&'static Segment, bool)> {
        // Of what another server asks for nobody knows here which column has the keys.
        let segment = self.region.segment(leaf).filter(|segment| !segment.is_asked())?;
        let activity = segment.activity();
        (activity.hot || (self.counts && activity.leaf && activity.observed))
            .then_some((segment, activity.hot))
    }

    /// # Safety
    /// `state` must be a ModifyTable's state whose children were visited.
    unsafe fn modify(&mut self, state: *mut pg_sys::ModifyTableState) {
        // SAFETY: the executor state and its lists of result relations are alive until ExecutorEnd.
        unsafe {
            let estate = &*(*self.query).estate;
            let mut leaves: Vec<u32> = Vec::new();
            let mut note = |oid: u32| {
                if !leaves.contains(&oid) && leaves.len() < MAX_NODES {
                    leaves.push(oid);
                }
            };
            if (*state).operation == pg_sys::CmdType::CMD_INSERT {
                for info in pointers::<pg_sys::ResultRelInfo>(estate.es_tuple_routing_result_relations) {
                    note((*(*info).ri_RelationDesc).rd_id.to_u32());
                }
            }
            for i in 0..(*state).mt_nrels.max(0) as usize {
                note((*(*(*state).resultRelInfo.add(i)).ri_RelationDesc).rd_id.to_u32());
            }
            leaves.retain(|oid| self.is_leaf(*oid));
            if self.keys && !leaves.is_empty() && (*state).operation == pg_sys::CmdType::CMD_INSERT {
                self.inserted_keys(state, &leaves);
            }
            if !self.counts {
                return;
            }
            let scanned = |relation| self.is_leaf(relation).then(|| self.touched_rows(relation));
            for written in written::by(state, (*self.query).estate, scanned) {
                if self.is_leaf(written.relation) {
                    let touch = self.touch(written.relation);
                    touch.rows_written += written.rows;
                    touch.writes = true;
                } else {
                    self.report.elsewhere.rows_written += written.rows;
                }
            }
        }
    }

    fn touched_rows(&self, leaf: u32) -> f64 {
        self.report.touches.iter().find(|t| t.relation == leaf).map_or(0.0, |t| t.rows_read)
    }

    /// The keys of an INSERT's VALUES that are constants or parameters: of several rows those of the first ones, when all the
    /// leaves they may have gone to give keys.
    ///
    /// # Safety
    /// As for [`Walk::modify`].
    unsafe fn inserted_keys(&mut self, state: *mut pg_sys::ModifyTableState, leaves: &[u32]) {
        // SAFETY: a target list holds TargetEntry nodes in the order of the target's attributes, lists of values hold a
        // list of expressions for every row; each node is read as the struct its tag names.
        unsafe {
            let giving: Vec<_> = leaves.iter().filter_map(|leaf| self.giving_keys(*leaf)).collect();
            let (Some((region_leaf, _)), true) = (giving.first(), giving.len() == leaves.len()) else {
                return;
            };
            let hot = giving.iter().all(|(_, hot)| *hot);
            let target = (*(*state).resultRelInfo).ri_RelationDesc;
            let segment = self.region.segment((*target).rd_id.to_u32()).unwrap_or(region_leaf);
            let wanted = segment.key_attribute.load(Ordering::Relaxed) as i16;
            let source = (*state).ps.lefttree;
            if source.is_null() || wanted < 1 || i32::from(wanted) > (*(*target).rd_att).natts {
                return;
            }
            let attribute = compat::attribute((*target).rd_att, wanted as usize - 1);
            let leaf = if let [leaf] = leaves { Some(*leaf) } else { None };
            let of = Column { leaf, segment, hot, attribute };
            let targets = (*(*source).plan).targetlist;
            let entry = pointers::<pg_sys::TargetEntry>(targets).find(|entry| (**entry).resno == wanted);
            let Some(expression) = entry.map(|entry| (*entry).expr) else { return };
            match (*source).type_ {
                pg_sys::NodeTag::T_ResultState => self.inserted_key(expression, &of),
                pg_sys::NodeTag::T_ValuesScanState => {
                    let Some(column) = scan::column_of(expression) else { return };
                    let rows = (*(*source).plan.cast::<pg_sys::ValuesScan>()).values_lists;
                    for row in pointers::<pg_sys::List>(rows).take(MAX_KEYS) {
                        if let Some(value) = pointers::<pg_sys::Expr>(row).nth(column) {
                            self.inserted_key(value, &of);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// # Safety
    /// `expression` must be of the running statement, the column's attribute that of an open relation.
    unsafe fn inserted_key(&mut self, expression: *mut pg_sys::Expr, of: &Column) {
        // SAFETY: as promised by the caller.
        unsafe {
            keydatum::from_expression(expression, (*self.query).params, of.attribute, |bytes, whole| {
                if of.leaf.is_some() || whole <= KEY_BYTES {
                    let leaf = of.leaf.unwrap_or(0);
                    push_key(&mut self.report.keys, leaf, (of.segment, of.hot), (bytes, whole), 1);
                }
            });
        }
    }
}

/// The key's column, of an INSERT's target.
struct Column {
    /// The leaf that was written to; None: there are several, so that of a long key, which is known by its leaf, nothing
    /// can be said.
    leaf: Option<u32>,
    segment: &'static Segment,
    hot: bool,
    attribute: *const pg_sys::FormData_pg_attribute,
}

/// Each key counts once per statement: every leaf that `key = ANY (array)` scans has the whole array.
fn push_key(
    keys: &mut Vec<Key>,
    leaf: u32,
    (segment, hot): (&Segment, bool),
    (bytes, whole): (&[u8], usize),
    weight: u32,
) {
    let table = segment.table.load(Ordering::Relaxed) as u32;
    let relation = if whole > KEY_BYTES { leaf } else { table };
    let hash = foreshard_core::digest::key_hash(bytes);
    if let Some(known) = keys.iter_mut().find(|k| k.hash == hash && k.relation == relation) {
        known.hot |= hot;
        return;
    }
    if keys.len() >= MAX_KEYS {
        return;
    }
    let mut key =
        Key { relation, bytes: [0; KEY_BYTES], length: bytes.len().min(KEY_BYTES), whole, hash, hot, weight };
    key.bytes[..key.length].copy_from_slice(&bytes[..key.length]);
    keys.push(key);
}
