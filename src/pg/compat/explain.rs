//! EXPLAIN (FORESHARD), which PostgreSQL has room for from 18 on. The hook speaks only when the option was given; what it
//! says is the caller's of [`register`]. Hooks before ours are called without pgrx's guard, as everywhere.

#![cfg_attr(not(feature = "pg18"), allow(dead_code, reason = "nobody asks before 18"))]

use crate::pg::report::PgResult;
use pgrx::pg_sys;
#[cfg(feature = "pg18")]
use pgrx::prelude::*;

/// One thing that is said of a node of a plan.
pub struct Property {
    /// What it is called.
    pub label: &'static str,
    /// What it is.
    pub value: Value,
}

/// What a property says.
pub enum Value {
    /// A name.
    Text(String),
    /// A number.
    Whole(i64),
    /// An amount and its unit.
    Number(f64, &'static str),
}

impl Property {
    /// A name.
    pub fn text(label: &'static str, text: String) -> Self {
        Self { label, value: Value::Text(text) }
    }

    /// A number.
    pub fn whole(label: &'static str, number: i64) -> Self {
        Self { label, value: Value::Whole(number) }
    }

    /// An amount.
    pub fn number(label: &'static str, unit: &'static str, amount: f64) -> Self {
        Self { label, value: Value::Number(amount, unit) }
    }

    /// As in the text format.
    #[cfg(feature = "pg18")]
    fn line(&self) -> String {
        match &self.value {
            Value::Text(text) => format!("{}: {text}", self.label),
            Value::Whole(number) => format!("{}: {number}", self.label),
            Value::Number(amount, unit) => format!("{}: {amount:.3} {unit}", self.label),
        }
    }
}

/// What is said of a relation that is read, and of a table that is written.
pub type Describe = fn(pg_sys::Oid) -> PgResult<Vec<Property>>;

/// Adds the option; PostgreSQL below 18 has none.
#[cfg(not(feature = "pg18"))]
pub fn register(_scanned: Describe, _written: Describe) {}

#[cfg(feature = "pg18")]
const OPTION: &std::ffi::CStr = c"foreshard";

#[cfg(feature = "pg18")]
static mut PREVIOUS: pg_sys::explain_per_node_hook_type = None;
#[cfg(feature = "pg18")]
static mut DESCRIBE: Option<(Describe, Describe)> = None;
/// Its address says that the option is on.
#[cfg(feature = "pg18")]
static ON: u8 = 1;

/// Adds the option; from `_PG_init`.
#[cfg(feature = "pg18")]
pub fn register(scanned: Describe, written: Describe) {
    // SAFETY: single-threaded start-up of the postmaster, or of the backend that loads the library, once.
    unsafe {
        DESCRIBE = Some((scanned, written));
        pg_sys::RegisterExtensionExplainOption(OPTION.as_ptr(), Some(chosen));
        PREVIOUS = pg_sys::explain_per_node_hook;
        pg_sys::explain_per_node_hook = Some(node);
    }
}

/// The option was given: `foreshard`, `foreshard true`, `foreshard off`.
#[cfg(feature = "pg18")]
#[pg_guard]
// SAFETY: called by PostgreSQL with the state and the option of an EXPLAIN.
unsafe extern "C-unwind" fn chosen(
    state: *mut pg_sys::ExplainState,
    option: *mut pg_sys::DefElem,
    _parse: *mut pg_sys::ParseState,
) {
    // SAFETY: as above; only the address is kept, and only compared.
    unsafe {
        let on =
            if pg_sys::defGetBoolean(option) { (&raw const ON).cast_mut() } else { std::ptr::null_mut() };
        pg_sys::SetExplainExtensionState(state, pg_sys::GetExplainExtensionId(OPTION.as_ptr()), on.cast());
    }
}

/// An ERROR of another extension's hook passes this frame by longjmp, so it holds plain data only.
#[cfg(feature = "pg18")]
// SAFETY: called by PostgreSQL with a node of the plan that is explained.
unsafe extern "C-unwind" fn node(
    plan_state: *mut pg_sys::PlanState,
    ancestors: *mut pg_sys::List,
    relationship: *const std::ffi::c_char,
    plan_name: *const std::ffi::c_char,
    state: *mut pg_sys::ExplainState,
) {
    // SAFETY: as above.
    unsafe {
        if let Some(previous) = PREVIOUS {
            previous(plan_state, ancestors, relationship, plan_name, state);
        }
        // Without any option there is no state of ours, and nothing to guard.
        if !(*state).extension_state.is_null() {
            explain((*plan_state).plan, state);
        }
    }
}

/// Our own work at a node, inside pgrx's guard.
#[cfg(feature = "pg18")]
#[pg_guard]
// SAFETY: called by `node`.
unsafe extern "C-unwind" fn explain(plan: *mut pg_sys::Plan, state: *mut pg_sys::ExplainState) {
    // SAFETY: as above; DESCRIBE is set once, at start-up.
    let told = unsafe {
        let id = pg_sys::GetExplainExtensionId(OPTION.as_ptr());
        if pg_sys::GetExplainExtensionState(state, id).is_null() {
            return;
        }
        let Some((scanned, written)) = DESCRIBE else { return };
        match place(plan) {
            Some((index, false)) => relation(state, index).map(scanned),
            Some((index, true)) => relation(state, index).map(written),
            None => None,
        }
    };
    match told {
        // SAFETY: the state is that of the running EXPLAIN.
        Some(Ok(properties)) if !properties.is_empty() => unsafe { print(&properties, state) },
        Some(Err(report)) => report.report(PgLogLevel::ERROR),
        _ => {}
    }
}

/// Where in the range table stands what a node reads, or (true) the table it writes.
///
/// # Safety
/// `plan` must be a plan node.
#[cfg(feature = "pg18")]
unsafe fn place(plan: *mut pg_sys::Plan) -> Option<(u32, bool)> {
    use pg_sys::NodeTag::{
        T_BitmapHeapScan, T_ForeignScan, T_IndexOnlyScan, T_IndexScan, T_ModifyTable, T_SampleScan,
        T_SeqScan, T_TidRangeScan, T_TidScan,
    };
    // SAFETY: each node is read as the struct its tag names; all scans begin with Scan.
    unsafe {
        match (*plan).type_ {
            T_SeqScan | T_SampleScan | T_IndexScan | T_IndexOnlyScan | T_BitmapHeapScan | T_TidScan
            | T_TidRangeScan | T_ForeignScan => Some(((*plan.cast::<pg_sys::Scan>()).scanrelid, false)),
            T_ModifyTable => Some(((*plan.cast::<pg_sys::ModifyTable>()).nominalRelation, true)),
            _ => None,
        }
    }
}

/// The relation at a place of the range table, from 1.
///
/// # Safety
/// `state` must be that of a running EXPLAIN of a plan.
#[cfg(feature = "pg18")]
unsafe fn relation(state: *mut pg_sys::ExplainState, index: u32) -> Option<pg_sys::Oid> {
    let at = (index as usize).checked_sub(1)?;
    // SAFETY: the range table holds RangeTblEntry nodes.
    let entry = unsafe { &*crate::pg::plan::pointers::<pg_sys::RangeTblEntry>((*state).rtable).nth(at)? };
    (entry.rtekind == pg_sys::RTEKind::RTE_RELATION).then_some(entry.relid)
}

/// One line of text, or a group with a property each.
///
/// # Safety
/// As for [`relation`].
#[cfg(feature = "pg18")]
unsafe fn print(properties: &[Property], state: *mut pg_sys::ExplainState) {
    use crate::pg::report::cstring;
    const GROUP: &std::ffi::CStr = c"Foreshard";
    // SAFETY: labels and values are copied into the output.
    unsafe {
        if (*state).format == pg_sys::ExplainFormat::EXPLAIN_FORMAT_TEXT {
            let lines: Vec<String> = properties.iter().map(Property::line).collect();
            pg_sys::ExplainPropertyText(GROUP.as_ptr(), cstring(&lines.join(", ")).as_ptr(), state);
            return;
        }
        pg_sys::ExplainOpenGroup(GROUP.as_ptr(), GROUP.as_ptr(), true, state);
        for property in properties {
            let label = cstring(property.label);
            match &property.value {
                Value::Text(text) => {
                    pg_sys::ExplainPropertyText(label.as_ptr(), cstring(text).as_ptr(), state);
                }
                Value::Whole(number) => {
                    pg_sys::ExplainPropertyInteger(label.as_ptr(), std::ptr::null(), *number, state);
                }
                Value::Number(amount, unit) => {
                    pg_sys::ExplainPropertyFloat(label.as_ptr(), cstring(unit).as_ptr(), *amount, 3, state);
                }
            }
        }
        pg_sys::ExplainCloseGroup(GROUP.as_ptr(), GROUP.as_ptr(), true, state);
    }
}
