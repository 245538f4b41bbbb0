//! The trigger function of graphs: what a statement did to edges or nodes, handed to whoever keeps graphs.

use super::keys::{KeyKind, NodeKey};
use crate::pg::compat;
use crate::pg::local::Local;
use crate::pg::report::PgResult;
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Version-1 record of [`foreshard_graph_changed`].
#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_foreshard_graph_changed() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

/// Who is told.
pub type Handler = fn(&Call) -> PgResult<()>;

static HANDLER: Local<Option<Handler>> = Local::new(None);

/// Names who is told.
pub fn register(handler: Handler) {
    HANDLER.set(Some(handler));
}

/// What the statement was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// INSERT, COPY
    Insert,
    /// DELETE
    Delete,
    /// UPDATE
    Update,
    /// TRUNCATE
    Truncate,
}

/// A call of the trigger.
pub struct Call {
    data: *mut pg_sys::TriggerData,
    /// What the statement was.
    pub event: Event,
    /// Whether the statement is about to begin (nothing can be read then) or has ended.
    pub is_before: bool,
    /// The trigger's arguments.
    pub arguments: Vec<String>,
    /// The table it fired on.
    pub table: pg_sys::Oid,
}

impl Call {
    /// Hands the keys in `columns` of every row that was changed to `tell`, with -1 as they were and 1 as they are; not
    /// rows where one of them is NULL, nor rows of an UPDATE that are the same in these columns and in `others`. With
    /// `which`, only of rows in which that integer column has that small value. Nothing is kept.
    ///
    /// # Errors
    /// Those of `tell`.
    pub fn changes(
        &self,
        columns: &[i16],
        others: &[i16],
        kind: KeyKind,
        which: Option<(i16, i64)>,
        mut tell: impl FnMut(Vec<NodeKey>, i64) -> PgResult<()>,
    ) -> PgResult<()> {
        let compared: Vec<i16> =
            columns.iter().chain(others).copied().chain(which.map(|which| which.0)).collect();
        let (mut old, mut new) =
            (Rows::open(self.data, true, &compared), Rows::open(self.data, false, &compared));
        let mut result = Ok(());
        while result.is_ok() {
            pgrx::check_for_interrupts!();
            // Rows of an UPDATE are in the same order in both.
            let was = old.as_mut().is_some_and(Rows::advance);
            let is = new.as_mut().is_some_and(Rows::advance);
            if !was && !is {
                break;
            }
            if let (Some(old), Some(new), true) = (&old, &new, was && is)
                && old.same(new, &compared)
            {
                continue;
            }
            for (rows, there, sign) in [(&old, was, -1), (&new, is, 1)] {
                if let (Some(rows), true, true) = (rows, there, result.is_ok())
                    && let Some(keys) = rows.keys(columns, kind, which)
                {
                    result = tell(keys, sign);
                }
            }
        }
        result
    }
}

/// A transition table that is being read.
struct Rows {
    store: *mut pg_sys::Tuplestorestate,
    pointer: i32,
    slot: *mut pg_sys::TupleTableSlot,
    descriptor: pg_sys::TupleDesc,
    last: i16,
}

impl Rows {
    /// The rows as they were (`old`) or are; None: the event has no such rows.
    fn open(data: *mut pg_sys::TriggerData, old: bool, columns: &[i16]) -> Option<Self> {
        // SAFETY: the transition tables belong to the call. A read pointer of our own leaves alone whoever reads
        // them as well. Only attributes are asked for that the table has.
        unsafe {
            let store = if old { (*data).tg_oldtable } else { (*data).tg_newtable };
            let descriptor = (*(*data).tg_relation).rd_att;
            let last = columns.iter().copied().max().unwrap_or(0);
            if store.is_null() || i32::from(last) > (*descriptor).natts {
                return None;
            }
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsMinimalTuple);
            Some(Self { store, pointer, slot, descriptor, last })
        }
    }

    /// Goes to the next row; false: there is none.
    fn advance(&mut self) -> bool {
        // SAFETY: opened in `open`; both tables may be one store's, so the pointer is chosen anew.
        unsafe {
            pg_sys::tuplestore_select_read_pointer(self.store, self.pointer);
            // Copied: the other table's reading must not take it away.
            if !pg_sys::tuplestore_gettupleslot(self.store, true, true, self.slot) {
                return false;
            }
            if (*self.slot).tts_nvalid < self.last {
                pg_sys::slot_getsomeattrs_int(self.slot, i32::from(self.last));
            }
            true
        }
    }

    fn value(&self, column: i16) -> Option<pg_sys::Datum> {
        let at = usize::try_from(column).ok()?.checked_sub(1)?;
        // SAFETY: the slot holds a row with at least `last` attributes.
        unsafe { (!*(*self.slot).tts_isnull.add(at)).then(|| *(*self.slot).tts_values.add(at)) }
    }

    /// Whether both rows have the same bytes in these columns.
    fn same(&self, other: &Self, columns: &[i16]) -> bool {
        columns.iter().all(|column| match (self.value(*column), other.value(*column)) {
            (None, None) => true,
            (Some(a), Some(b)) => {
                let at = usize::try_from(*column - 1).unwrap_or_default();
                // SAFETY: both rows are the same table's, and the column is one of its.
                unsafe {
                    let attribute = compat::attribute(self.descriptor, at);
                    compat::datum_image_eq(a, b, (*attribute).attbyval, i32::from((*attribute).attlen))
                }
            }
            _ => false,
        })
    }

    fn keys(&self, columns: &[i16], kind: KeyKind, which: Option<(i16, i64)>) -> Option<Vec<NodeKey>> {
        // Integers of any width are whole, signed datums.
        if which.is_some_and(|(column, wanted)| {
            self.value(column).map(|value| value.value() as i64) != Some(wanted)
        }) {
            return None;
        }
        // SAFETY: the columns are keys of this kind.
        columns.iter().map(|column| self.value(*column).map(|value| unsafe { kind.read(value) })).collect()
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: made in `open`.
            unsafe { pg_sys::ExecDropSingleTupleTableSlot(self.slot) };
        }
    }
}

/// # Safety
/// Called by PostgreSQL's function manager only; anything but a trigger of statements is refused with 39P01.
#[unsafe(no_mangle)]
#[pg_guard]
// SAFETY: see above.
pub unsafe extern "C-unwind" fn foreshard_graph_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: when the context node is TriggerData, PostgreSQL filled it for this call.
    unsafe {
        let context = (*fcinfo).context;
        let data = context.cast::<pg_sys::TriggerData>();
        let is_call = !context.is_null()
            && (*context).type_ == pg_sys::NodeTag::T_TriggerData
            && (*data).tg_event & pg_sys::TRIGGER_EVENT_ROW == 0;
        if !is_call {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "foreshard.graph_changed() can only be called as a trigger of statements"
            );
        }
        let trigger = (*data).tg_trigger;
        let count = (*trigger).tgnargs.max(0) as usize;
        let argument = |at| std::ffi::CStr::from_ptr(*(*trigger).tgargs.add(at)).to_string_lossy();
        let call = Call {
            data,
            event: match (*data).tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
                pg_sys::TRIGGER_EVENT_INSERT => Event::Insert,
                pg_sys::TRIGGER_EVENT_DELETE => Event::Delete,
                pg_sys::TRIGGER_EVENT_UPDATE => Event::Update,
                _ => Event::Truncate,
            },
            is_before: (*data).tg_event & pg_sys::TRIGGER_EVENT_TIMINGMASK == pg_sys::TRIGGER_EVENT_BEFORE,
            arguments: (0..count).map(|at| argument(at).into_owned()).collect(),
            table: (*(*data).tg_relation).rd_id,
        };
        if let Some(handler) = HANDLER.get()
            && let Err(report) = handler(&call)
        {
            report.report(PgLogLevel::ERROR);
        }
        pg_sys::Datum::from(0usize)
    }
}
