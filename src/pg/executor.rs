//! The executor's hooks: they tell the sensor when statements begin, run and end, and change nothing
//! but the instrumentation of a sampled one.
//!
//! PostgreSQL's ERROR passes these frames by longjmp: they hold plain data only, and what they leave
//! behind is recognised by its stack address (`foreshard_core::frames`) or dropped when the
//! (sub)transaction ends. The originals are called through raw externs, because pgrx's guard would lose
//! parts of a user's error.
//!
//! Nearly every statement only passes by: what that takes is inlined and looks at [`GLANCE`], the settings and the gates.
//! Whatever else there is to do is in cold functions of their own, because their frames are kilobytes, which every
//! statement would touch.

use super::glance::{GLANCE, NOTHING_RUNS};
use super::plan;
use super::{around, away, barrier, compat, guc, route, usage};
use pgrx::pg_sys;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What watches statements and trigger calls; implemented by `observe`. None of the functions may raise.
pub struct Sensor {
    /// A statement begins that does not pass by ([`GLANCE`]): should it be looked at?
    pub wants_statement: fn() -> bool,
    /// The part of a statement in a parallel worker begins: should it be looked at?
    pub follows_leader: fn() -> bool,
    /// It begins, and these are its relations; the address is that of the hook's frame.
    /// Work of ours began at `since_ns`.
    pub statement_starts:
        fn(query: usize, address: usize, relations: &[plan::Named], since_ns: u64) -> plan::Instrument,
    /// Whether this statement is being measured.
    pub measures: fn(query: usize) -> bool,
    /// A measured statement is about to run a part.
    pub part_starts: fn(query: usize, address: usize),
    /// That part has ended; `finishing`: it was the one in which triggers fire that were put off to the end.
    pub part_ends: fn(query: usize, address: usize, finishing: bool),
    /// A measured statement ends; work of ours began at `since_ns`.
    pub statement_ends: fn(query: usize, report: &plan::Report, hot_keys: bool, since_ns: u64),
    /// A statement ends while some slot is hot: are its keys wanted?
    pub wants_keys: fn() -> bool,
    /// A measured statement ends: are the keys of its transaction wanted?
    pub wants_window: fn() -> bool,
    /// Keys of hot slots; work of ours began at `since_ns`.
    pub keys: fn(keys: &[plan::Key], since_ns: u64),
    /// Calls of a trigger that are all measured.
    pub first_calls: u64,
    /// A trigger call begins that does not pass by: should it be measured? The argument says how often its trigger was measured
    /// (`u64::MAX`: it is not watched, but may be part of a measured piece).
    pub wants_trigger: fn(measured_before: u64) -> Option<Draw>,
    /// It begins, of a function and whether somebody records it, after work of ours since `since_ns`; false: do not end it.
    pub trigger_starts: fn(function: (u32, bool), weight: u32, address: usize, since_ns: u64) -> bool,
    /// It has ended normally (None: of a trigger that is not watched).
    pub trigger_ends: fn(address: usize, call: Option<&super::trigger::Measured>),
    /// It has ended by an error.
    pub trigger_fails: fn(address: usize),
    /// The transaction has ended.
    pub transaction_ends: fn(committed: bool),
    /// A subtransaction is rolled back, and with it those inside it, which have greater numbers.
    pub subtransaction_aborts: fn(level: u32),
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

/// Set once, at start-up; in one cache line.
#[repr(align(64))]
struct Installed {
    sensor: Option<&'static Sensor>,
    previous_start: pg_sys::ExecutorStart_hook_type,
    previous_finish: pg_sys::ExecutorFinish_hook_type,
    previous_end: pg_sys::ExecutorEnd_hook_type,
}

static mut INSTALLED: Installed =
    Installed { sensor: None, previous_start: None, previous_finish: None, previous_end: None };

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declarations are PostgreSQL's own (executor/executor.h, access/xact.h), the same in 15 to 18.
    unsafe extern "C-unwind" {
        pub fn standard_ExecutorStart(query: *mut pg_sys::QueryDesc, eflags: i32);
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
        pub fn standard_ExecutorEnd(query: *mut pg_sys::QueryDesc);
        pub fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    }
}

/// Installs the hooks; from `_PG_init` while preloading.
pub fn register(sensor: &'static Sensor) {
    // SAFETY: single-threaded start-up of the postmaster; backends inherit all of it.
    unsafe {
        INSTALLED = Installed {
            sensor: Some(sensor),
            previous_start: pg_sys::ExecutorStart_hook,
            previous_finish: pg_sys::ExecutorFinish_hook,
            previous_end: pg_sys::ExecutorEnd_hook,
        };
        pg_sys::ExecutorStart_hook = Some(start);
        compat::register_run_hook(run);
        pg_sys::ExecutorFinish_hook = Some(finish);
        pg_sys::ExecutorEnd_hook = Some(end);
        pg_sys::RegisterXactCallback(Some(transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(subtransaction), std::ptr::null_mut());
    }
}

/// The sensor, when this process is to be watched now.
#[inline]
pub(super) fn watching() -> Option<&'static Sensor> {
    if !guc::now(&guc::OBSERVE) {
        return None;
    }
    // SAFETY: written once at start-up; the flag is set by our own workers only.
    unsafe { if super::bgworker::is_ours() { None } else { INSTALLED.sensor } }
}

/// Runs work of ours; a failure inside it stays inside.
#[inline]
pub(super) fn quietly<R>(sensor: &Sensor, work: impl FnOnce() -> R) -> Option<R> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(value) => Some(value),
        Err(payload) => {
            if is_cancel(payload.as_ref()) {
                // Work of ours asks PostgreSQL nothing that looks for interrupts; should it once, the user's wish to
                // cancel is not lost: it takes effect as soon as PostgreSQL looks for one again.
                compat::cancel_own_statement();
            }
            (sensor.failed)();
            None
        }
    }
}

/// Whether what was caught is the cancelling of the statement.
#[cold]
fn is_cancel(payload: &(dyn std::any::Any + Send)) -> bool {
    use pg_sys::panic::CaughtError::{ErrorReport, PostgresError, RustPanic};
    let report = match payload.downcast_ref::<pg_sys::panic::CaughtError>() {
        Some(PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. }) => report,
        None => return false,
    };
    report.sql_error_code() == pgrx::PgSqlErrorCode::ERRCODE_QUERY_CANCELED
}

/// The subtransaction that runs now; numbers only grow within a transaction.
pub fn subtransaction_number() -> u32 {
    // SAFETY: a number of this process's transaction state.
    unsafe { raw::GetCurrentSubTransactionId() }
}

/// Rows processed so far by the statement that runs above `address` on the stack.
pub(super) fn rows_so_far(address: usize) -> Option<u64> {
    let (query, began) = GLANCE.current.get();
    let query = query as *const pg_sys::QueryDesc;
    // SAFETY: when a (sub)transaction aborts `current` becomes the statement around it, so it is still running.
    unsafe {
        if query.is_null() || began <= address || (*query).estate.is_null() {
            return None;
        }
        Some((*(*query).estate).es_processed)
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn start(query: *mut pg_sys::QueryDesc, eflags: i32) {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    // SAFETY: as above.
    unsafe {
        // First of all: what is refused has begun nothing.
        if away::any() {
            away_begins(query, eflags);
        }
        if barrier::any() {
            barrier_begins(query, eflags);
        }
        if route::any() {
            route_begins(query, eflags);
        }
        let measured = match watching() {
            Some(sensor) if eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0 && wanted(sensor) => {
                statement_starts(sensor, query, address)
            }
            _ => false,
        };
        match INSTALLED.previous_start {
            Some(previous) => previous(query, eflags),
            None => raw::standard_ExecutorStart(query, eflags),
        }
        if measured {
            part_ends(query, address, false);
        }
    }
}

/// # Safety
/// As for [`away::begins`].
#[cold]
#[inline(never)]
unsafe fn away_begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: as promised by the caller.
    unsafe { away::begins(query, eflags) };
}

/// # Safety
/// As for [`barrier::begins`].
#[cold]
#[inline(never)]
unsafe fn barrier_begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: as promised by the caller.
    unsafe { barrier::begins(query, eflags) };
}

/// # Safety
/// As for [`route::begins`].
#[cold]
#[inline(never)]
unsafe fn route_begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: as promised by the caller.
    unsafe { route::begins(query, eflags) };
}

/// Whether the statement is measured from now on.
///
/// # Safety
/// `query` must be valid and not started yet.
#[cold]
#[inline(never)]
unsafe fn statement_starts(sensor: &Sensor, query: *mut pg_sys::QueryDesc, address: usize) -> bool {
    let started = quietly(sensor, || {
        let since_ns = usage::elapsed_ns();
        // SAFETY: as promised by the caller.
        let relations = unsafe { plan::relations((*query).plannedstmt) };
        (sensor.statement_starts)(query as usize, address, &relations, since_ns)
    });
    let Some(instrument) = started.filter(|i| *i != plan::Instrument::None) else { return false };
    // SAFETY: as promised by the caller.
    unsafe { (*query).instrument_options |= plan::options(instrument) };
    true
}

/// Parallel workers measure when their leader does.
#[inline]
fn wanted(sensor: &Sensor) -> bool {
    // SAFETY: a variable of this process, -1 except in parallel workers.
    if unsafe { pg_sys::ParallelWorkerNumber } < 0 {
        return !GLANCE.passes_statement() && (sensor.wants_statement)();
    }
    (sensor.follows_leader)()
}

#[cold]
#[inline(never)]
fn part_ends(query: *mut pg_sys::QueryDesc, address: usize, finishing: bool) {
    if let Some(sensor) = watching() {
        quietly(sensor, || (sensor.part_ends)(query as usize, address, finishing));
    }
}

/// Whether the part is measured.
#[inline]
fn part_starts(query: *mut pg_sys::QueryDesc, address: usize) -> bool {
    GLANCE.tracked.get() > 0 && measured_part_starts(query, address)
}

#[cold]
#[inline(never)]
fn measured_part_starts(query: *mut pg_sys::QueryDesc, address: usize) -> bool {
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
    // SAFETY: the query is valid.
    unsafe {
        let outer = GLANCE.current.replace((query as usize, address));
        compat::run_next(query, arguments);
        GLANCE.current.set(outer);
    }
    route::runs(query, Some(since_ns));
    if measured {
        part_ends(query, address, false);
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    let measured = part_starts(query, address);
    // SAFETY: set once, at start-up; the query is valid.
    unsafe {
        let outer = GLANCE.current.replace((query as usize, address));
        match INSTALLED.previous_finish {
            Some(previous) => previous(query),
            None => raw::standard_ExecutorFinish(query),
        }
        GLANCE.current.set(outer);
    }
    if measured {
        part_ends(query, address, true);
    }
}

// SAFETY: called by PostgreSQL with a valid query; passes it on.
unsafe extern "C-unwind" fn end(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as above; the plan state is alive until the original ends it.
    unsafe {
        if route::is_timing() {
            route_ends(query);
        }
        if GLANCE.tracked.get() > 0 || gives_keys() {
            statement_ends(query);
        }
        match INSTALLED.previous_end {
            Some(previous) => previous(query),
            None => raw::standard_ExecutorEnd(query),
        }
    }
}

/// Whether it is time for a statement to give its keys, because some slot is hot.
#[inline]
fn gives_keys() -> bool {
    GLANCE.gates.get().any_hot()
        && watching().is_some()
        && !GLANCE.passes(&GLANCE.key_gap, guc::now(&guc::KEY_SAMPLE_INTERVAL))
}

/// # Safety
/// As for [`route::ends`].
#[cold]
#[inline(never)]
unsafe fn route_ends(query: *mut pg_sys::QueryDesc) {
    // SAFETY: as promised by the caller.
    unsafe { route::ends(query) };
}

/// # Safety
/// `query` must not have been ended yet.
#[cold]
#[inline(never)]
unsafe fn statement_ends(query: *mut pg_sys::QueryDesc) {
    let Some(sensor) = watching() else { return };
    // SAFETY: as promised by the caller. A parallel worker's keys are its leader's; EXPLAIN looks nothing up.
    let looked_up = unsafe {
        let state = (*query).estate.as_ref();
        pg_sys::ParallelWorkerNumber < 0
            && state.is_some_and(|s| s.es_top_eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 == 0)
    };
    let keys = looked_up && (sensor.wants_keys)();
    // SAFETY: as promised by the caller.
    unsafe {
        if (sensor.measures)(query as usize) {
            quietly(sensor, || {
                let since_ns = usage::elapsed_ns();
                let report = plan::report(query, keys || (sensor.wants_window)());
                (sensor.statement_ends)(query as usize, &report, keys, since_ns);
            });
        } else if keys {
            quietly(sensor, || {
                let since_ns = usage::elapsed_ns();
                (sensor.keys)(&plan::keys(query), since_ns);
            });
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
    GLANCE.current.set(NOTHING_RUNS);
    around::transaction_ends();
    if route::is_timing() {
        route::forget(None, !committed);
    }
    if !GLANCE.ends_quietly() {
        transaction_ends(committed);
    }
}

#[cold]
#[inline(never)]
fn transaction_ends(committed: bool) {
    // Not `watching`: what was begun while watching must end.
    // SAFETY: written once at start-up.
    if let Some(sensor) = unsafe { INSTALLED.sensor } {
        quietly(sensor, || (sensor.transaction_ends)(committed));
    }
}

// SAFETY: a subtransaction callback of PostgreSQL.
unsafe extern "C-unwind" fn subtransaction(
    event: pg_sys::SubXactEvent::Type,
    level: pg_sys::SubTransactionId,
    _: pg_sys::SubTransactionId,
    _: *mut std::ffi::c_void,
) {
    use pg_sys::SubXactEvent::{SUBXACT_EVENT_ABORT_SUB, SUBXACT_EVENT_COMMIT_SUB, SUBXACT_EVENT_START_SUB};
    match event {
        SUBXACT_EVENT_START_SUB => around::begins(level, GLANCE.current.get()),
        SUBXACT_EVENT_COMMIT_SUB => around::commits(level),
        _ => {}
    }
    if event == SUBXACT_EVENT_ABORT_SUB {
        route::forget(Some(level), true);
        GLANCE.current.set(around::aborts(level));
        if GLANCE.tracked.get() > 0 || GLANCE.in_frame.get() {
            subtransaction_aborts(level);
        }
    }
}

#[cold]
#[inline(never)]
fn subtransaction_aborts(level: u32) {
    // SAFETY: written once at start-up.
    if let Some(sensor) = unsafe { INSTALLED.sensor } {
        quietly(sensor, || (sensor.subtransaction_aborts)(level));
    }
}
