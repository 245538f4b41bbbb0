//! The executor's hooks: they tell the sensor when statements begin, run and end, and change nothing
//! but the instrumentation of a sampled one.
//!
//! PostgreSQL's ERROR passes these frames by longjmp: they hold plain data only, and what they leave
//! behind is recognised by its stack address (`foreshard_core::frames`) or dropped when the
//! (sub)transaction ends. The originals are called through raw externs, because pgrx's guard would lose
//! parts of a user's error.

use super::plan;
use super::{compat, guc, route, usage};
use pgrx::pg_sys;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What watches statements and trigger calls; implemented by `observe`. None of the functions may raise.
pub struct Sensor {
    /// A statement begins: should it be looked at? Called for every statement, so it only counts down.
    pub wants_statement: fn() -> bool,
    /// The part of a statement in a parallel worker begins: should it be looked at?
    pub follows_leader: fn() -> bool,
    /// It begins, and these are its relations; the address is that of the hook's frame.
    /// Work of ours began at `since_ns`.
    pub statement_starts:
        fn(query: usize, address: usize, relations: &[plan::Named], since_ns: u64) -> plan::Instrument,
    /// Whether any statement is being measured.
    pub measures: fn(query: usize) -> bool,
    /// A measured statement is about to run a part.
    pub part_starts: fn(query: usize, address: usize),
    /// That part has ended.
    pub part_ends: fn(query: usize, address: usize),
    /// A measured statement ends; work of ours began at `since_ns`.
    pub statement_ends: fn(query: usize, report: &plan::Report, hot_keys: bool, since_ns: u64),
    /// A statement ends while some slot is hot: are its keys wanted?
    pub wants_keys: fn() -> bool,
    /// A measured statement ends: are the keys of its transaction wanted?
    pub wants_window: fn() -> bool,
    /// Keys of hot slots.
    pub keys: fn(&[plan::Key]),
    /// A trigger call begins: should it be measured? The argument says how often its trigger was measured
    /// (`u64::MAX`: it is not watched, but may be part of a measured piece).
    pub wants_trigger: fn(measured_before: u64) -> Option<Draw>,
    /// It begins, after work of ours since `since_ns`; false: do not end it.
    pub trigger_starts: fn(function: u32, weight: u32, address: usize, since_ns: u64) -> bool,
    /// It has ended normally (None: of a trigger that is not watched).
    pub trigger_ends: fn(address: usize, call: Option<&super::trigger::Measured>),
    /// It has ended by an error.
    pub trigger_fails: fn(address: usize),
    /// The transaction has ended.
    pub transaction_ends: fn(committed: bool),
    /// Something of ours failed; measuring of this session should stop for a while.
    pub failed: fn(),
}

/// Why a piece is measured.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// How many pieces like it it stands for.
    pub weight: u32,
    /// It was drawn like most others. Else it is measured without exception, because it is among the first
    /// inside a measured piece: too often to count with the drawn ones without its weight.
    pub typical: bool,
}

static mut SENSOR: Option<&'static Sensor> = None;
static mut PREVIOUS_START: pg_sys::ExecutorStart_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;
static mut PREVIOUS_END: pg_sys::ExecutorEnd_hook_type = None;
/// The statement that runs, and the frame that said so.
static mut CURRENT: Current = Current { query: std::ptr::null_mut(), address: usize::MAX };

#[derive(Clone, Copy)]
struct Current {
    query: *mut pg_sys::QueryDesc,
    address: usize,
}

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declarations are PostgreSQL's own (executor/executor.h), the same in 15 to 18.
    unsafe extern "C-unwind" {
        pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, eflags: i32);
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
    }
}

/// Installs the hooks; from `_PG_init` while preloading.
pub fn register(sensor: &'static Sensor) {
    // SAFETY: single-threaded start-up of the postmaster; backends inherit all of it.
    unsafe {
        SENSOR = Some(sensor);
        PREVIOUS_START = pg_sys::ExecutorStart_hook;
        pg_sys::ExecutorStart_hook = Some(start);
        compat::register_run_hook(run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(finish);
        PREVIOUS_END = pg_sys::ExecutorEnd_hook;
        pg_sys::ExecutorEnd_hook = Some(end);
        pg_sys::RegisterXactCallback(Some(transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction), std::ptr::null_mut());
    }
}

/// The sensor, when this process is to be watched now.
#[inline]
pub(super) fn watching() -> Option<&'static Sensor> {
    if !guc::OBSERVE.get() {
        return None;
    }
    // SAFETY: written once at start-up; the flag is set by our own workers only.
    unsafe { if super::bgworker::is_ours() { None } else { SENSOR } }
}

/// Runs work of ours; a failure inside it stays inside.
#[inline]
pub(super) fn quietly<R>(sensor: &Sensor, work: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Some(value),
        Err(_) => {
            (sensor.failed)();
            None
        }
    }
}

/// Rows processed so far by the statement that runs above `address` on the stack.
pub(super) fn rows_so_far(address: usize) -> Option<u64> {
    // SAFETY: CURRENT is reset whenever a (sub)transaction aborts, so the statement is still running.
    unsafe {
        let current = CURRENT;
        if current.query.is_null() || current.address <= address || (*current.query).estate.is_null() {
            return None;
        }
        Some((*(*current.query).estate).es_processed)
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn start(query: *mut pg_sys::QueryDesc, eflags: i32) {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    let mut measured = false;
    // SAFETY: as above.
    unsafe {
        if route::concerns_us() {
            route::begins(query, eflags);
        }
        if let Some(sensor) = watching()
            && eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0
            && wanted(sensor)
        {
            let started = quietly(sensor, || {
                let since_ns = usage::elapsed_ns();
                let relations = plan::relations((*query).plannedstmt);
                (sensor.statement_starts)(query as usize, address, &relations, since_ns)
            });
            if let Some(instrument) = started.filter(|i| *i != plan::Instrument::None) {
                measured = true;
                (*query).instrument_options |= plan::options(instrument);
            }
        }
        match PREVIOUS_START {
            Some(previous) => previous(query, eflags),
            None => raw::standard_ExecutorStart(query, eflags),
        }
        if measured {
            part_ends(query, address);
        }
    }
}

/// Parallel workers measure when their leader does.
fn wanted(sensor: &Sensor) -> bool {
    // SAFETY: a variable of this process, -1 except in parallel workers.
    if unsafe { pg_sys::ParallelWorkerNumber } < 0 {
        return (sensor.wants_statement)();
    }
    (sensor.follows_leader)()
}

fn part_ends(query: *mut pg_sys::QueryDesc, address: usize) {
    if let Some(sensor) = watching() {
        quietly(sensor, || (sensor.part_ends)(query as usize, address));
    }
}

fn part_starts(query: *mut pg_sys::QueryDesc, address: usize) -> bool {
    let Some(sensor) = watching() else { return false };
    if !(sensor.measures)(query as usize) {
        return false;
    }
    quietly(sensor, || (sensor.part_starts)(query as usize, address)).is_some()
}

/// # Safety
/// Called by the version's ExecutorRun hook.
unsafe fn run(query: *mut pg_sys::QueryDesc, arguments: &compat::RunArguments) {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    let measured = part_starts(query, address);
    let since_ns = route::runs(query, None);
    // SAFETY: plain variables of this process; the query is valid.
    unsafe {
        let outer = CURRENT;
        CURRENT = Current { query, address };
        compat::run_next(query, arguments);
        CURRENT = outer;
    }
    route::runs(query, Some(since_ns));
    if measured {
        part_ends(query, address);
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    let measured = part_starts(query, address);
    // SAFETY: plain variables of this process; the query is valid.
    unsafe {
        let outer = CURRENT;
        CURRENT = Current { query, address };
        match PREVIOUS_FINISH {
            Some(previous) => previous(query),
            None => raw::standard_ExecutorFinish(query),
        }
        CURRENT = outer;
    }
    if measured {
        part_ends(query, address);
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn end(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as above; the plan state is alive until the original ends it.
    unsafe {
        if route::concerns_us() {
            route::ends(query);
        }
        if let Some(sensor) = watching() {
            let keys = (sensor.wants_keys)();
            if (sensor.measures)(query as usize) {
                quietly(sensor, || {
                    let since_ns = usage::elapsed_ns();
                    let report = plan::report(query, keys || (sensor.wants_window)());
                    (sensor.statement_ends)(query as usize, &report, keys, since_ns);
                });
            } else if keys {
                quietly(sensor, || (sensor.keys)(&plan::keys(query)));
            }
        }
        match PREVIOUS_END {
            Some(previous) => previous(query),
            None => raw::standard_ExecutorEnd(query),
        }
    }
}

// SAFETY: a transaction callback of PostgreSQL.
unsafe extern "C-unwind" fn transaction(event: pg_sys::XactEvent::Type, _: *mut std::ffi::c_void) {
    use pg_sys::XactEvent::{
        XACT_EVENT_ABORT, XACT_EVENT_COMMIT, XACT_EVENT_PARALLEL_ABORT, XACT_EVENT_PARALLEL_COMMIT,
        XACT_EVENT_PREPARE,
    };
    let committed = match event {
        XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => true,
        XACT_EVENT_ABORT | XACT_EVENT_PARALLEL_ABORT | XACT_EVENT_PARALLEL_COMMIT => false,
        _ => return,
    };
    // SAFETY: plain variables of this process.
    unsafe {
        CURRENT = Current { query: std::ptr::null_mut(), address: usize::MAX };
        route::forget(None, !committed);
        // Not `watching`: what was begun while watching must end.
        if let Some(sensor) = SENSOR {
            quietly(sensor, || (sensor.transaction_ends)(committed));
        }
    }
}

// SAFETY: a subtransaction callback of PostgreSQL.
unsafe extern "C-unwind" fn subtransaction(
    event: pg_sys::SubXactEvent::Type,
    level: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        route::forget(Some(level), true);
        // The statement that ran may be gone with its memory.
        // SAFETY: a plain variable of this process.
        unsafe { CURRENT = Current { query: std::ptr::null_mut(), address: usize::MAX } };
    }
}
