//! The trigger function of graphs: what a statement did to edges or nodes, handed to whoever keeps graphs.

use super::keys::{KeyKind, NodeKey};
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
    /// Some columns of the rows as they were (`old`) or are, each value a key; None where one of them is NULL. Only
    /// of rows in which the integer column `which` names has that small value, when it is given.
    pub fn keys(
        &self,
        old: bool,
        columns: &[i16],
        kind: KeyKind,
        which: Option<(i16, i64)>,
    ) -> Vec<Option<Vec<NodeKey>>> {
        let mut found = Vec::new();
        // SAFETY: the transition tables belong to the call. A read pointer of our own leaves alone whoever reads
        // them as well. Only attributes are asked for that the table has.
        unsafe {
            let store = if old { (*self.data).tg_oldtable } else { (*self.data).tg_newtable };
            if store.is_null() {
                return found;
            }
            let descriptor = (*(*self.data).tg_relation).rd_att;
            let last = columns.iter().copied().chain(which.map(|which| which.0)).max().unwrap_or(0);
            if i32::from(last) > (*descriptor).natts {
                return found;
            }
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            let slot = pg_sys::MakeSingleTupleTableSlot(descriptor, &raw const pg_sys::TTSOpsMinimalTuple);
            while pg_sys::tuplestore_gettupleslot(store, true, false, slot) {
                if (*slot).tts_nvalid < last {
                    pg_sys::slot_getsomeattrs_int(slot, i32::from(last));
                }
                let value = |column: i16| {
                    let at = usize::try_from(column).ok()?.checked_sub(1)?;
                    (!*(*slot).tts_isnull.add(at)).then(|| *(*slot).tts_values.add(at))
                };
                // Integers of any width are whole, signed datums.
                if which.is_none_or(|(column, wanted)| {
                    value(column).is_some_and(|value| value.value() as i64 == wanted)
                }) {
                    found.push(
                        columns.iter().map(|column| value(*column).map(|value| kind.read(value))).collect(),
                    );
                }
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
        found
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
