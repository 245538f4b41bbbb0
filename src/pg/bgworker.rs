//! Background workers: start, signals, waits, and a transaction that turns errors into values.

use super::compat;
use super::glance::GLANCE;
use super::report::{PgResult, cstring};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// What a dynamic worker is started with.
pub struct Spec<'a> {
    /// Shown in pg_stat_activity and in the log.
    pub name: &'a str,
    /// `backend_type` in pg_stat_activity.
    pub kind: &'a str,
    /// The exported entry function.
    pub function: &'a str,
    /// Database to connect to.
    pub database: u32,
    /// A number of the starter's choice, read by [`extra`].
    pub extra: i64,
}

fn fill(target: &mut [std::ffi::c_char], text: &str) {
    let limit = target.len().saturating_sub(1);
    for (slot, byte) in target.iter_mut().zip(text.bytes().take(limit)) {
        *slot = byte as std::ffi::c_char;
    }
}

fn describe(spec: &Spec, flags: u32, restart_s: i32) -> pg_sys::BackgroundWorker {
    let mut worker = pg_sys::BackgroundWorker::default();
    fill(&mut worker.bgw_name, spec.name);
    fill(&mut worker.bgw_type, spec.kind);
    fill(&mut worker.bgw_library_name, "foreshard");
    fill(&mut worker.bgw_function_name, spec.function);
    fill(&mut worker.bgw_extra, &spec.extra.to_string());
    worker.bgw_flags = flags as i32;
    // Recovery finished: nothing of ours runs on a standby.
    worker.bgw_start_time = pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished;
    worker.bgw_restart_time = restart_s;
    worker.bgw_main_arg = pg_sys::Datum::from(spec.database as usize);
    worker
}

/// Registers the launcher, restarted by the postmaster one second after it ends.
pub fn register_launcher(spec: &Spec) {
    let flags = pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION;
    let mut worker = describe(spec, flags, 1);
    // SAFETY: called from _PG_init while preloading; the struct is copied.
    unsafe { pg_sys::RegisterBackgroundWorker(&mut worker) };
}

/// A dynamic worker somebody started.
pub struct Handle(*mut pg_sys::BackgroundWorkerHandle);

impl Handle {
    /// Whether it has not ended yet.
    pub fn is_alive(&self) -> bool {
        let mut pid = 0;
        // SAFETY: the handle came from RegisterDynamicBackgroundWorker in a context that outlives us.
        let status = unsafe { pg_sys::GetBackgroundWorkerPid(self.0, &mut pid) };
        status != pg_sys::BgwHandleStatus::BGWH_STOPPED
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: allocated by RegisterDynamicBackgroundWorker for us alone.
        unsafe { pg_sys::pfree(self.0.cast()) };
    }
}

/// Starts a worker; None when `max_worker_processes` is used up.
pub fn start(spec: &Spec) -> Option<Handle> {
    let flags = pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION;
    let mut worker = describe(spec, flags, pg_sys::BGW_NEVER_RESTART);
    // SAFETY: the struct is copied; the handle is allocated in TopMemoryContext, so it outlives the
    // transaction. MyProcPid asks to be notified of state changes.
    unsafe {
        worker.bgw_notify_pid = pg_sys::MyProcPid;
        let outer = pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        let mut handle = std::ptr::null_mut();
        let started = pg_sys::RegisterDynamicBackgroundWorker(&mut worker, &mut handle);
        pg_sys::MemoryContextSwitchTo(outer);
        // Not made where there is nothing to free.
        started.then(|| Handle(handle))
    }
}

/// The number given as [`Spec::extra`] to the running worker.
pub fn extra() -> i64 {
    // SAFETY: MyBgworkerEntry is set in every background worker before its main function.
    unsafe {
        let entry = pg_sys::MyBgworkerEntry;
        if entry.is_null() {
            return 0;
        }
        let text = std::ffi::CStr::from_ptr((*entry).bgw_extra.as_ptr());
        text.to_str().ok().and_then(|t| t.parse().ok()).unwrap_or(0)
    }
}

/// First call of every worker: PostgreSQL's own handlers (SIGTERM ends it at the next safe point, even
/// inside a query; SIGHUP re-reads the configuration), then the connection. Database 0: no database.
pub fn begin(database: u32) {
    GLANCE.is_ours.set(true);
    compat::install_signal_handlers();
    // SAFETY: called once, first thing in a worker; user 0 is the bootstrap superuser.
    unsafe {
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::BackgroundWorkerInitializeConnectionByOid(pg_sys::Oid::from(database), pg_sys::InvalidOid, 0);
        // A worker is born with SIGHUP ignored: a reload between its fork and its handlers is lost, so the
        // files are read once more (outside a transaction, like a backend between two statements).
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
    }
}

/// The check hook of `foreshard.observe`: workers connect as the bootstrap superuser, and who exempts his own sessions
/// does not mean to end all watching. They leave out what is set for a role, which PostgreSQL tells the log.
///
/// # Safety
/// Called by PostgreSQL.
#[pg_guard]
pub unsafe extern "C-unwind" fn check_observe(
    _newval: *mut bool,
    _extra: *mut *mut std::ffi::c_void,
    source: pg_sys::GucSource::Type,
) -> bool {
    use pg_sys::GucSource::{PGC_S_DATABASE_USER, PGC_S_USER};
    if !is_ours() || !matches!(source, PGC_S_USER | PGC_S_DATABASE_USER) {
        return true;
    }
    // SAFETY: what GUC_check_errdetail() does; the text is copied.
    unsafe {
        let why = c"Workers of foreshard take no setting of a role for themselves.";
        pg_sys::GUC_check_errdetail_string = pg_sys::format_elog_string(c"%s".as_ptr(), why.as_ptr());
    }
    false
}

/// Whether this process is one of our workers, whose statements are not the users' load.
#[inline]
pub fn is_ours() -> bool {
    GLANCE.is_ours.get()
}

/// Ends the worker cleanly; before-exit callbacks run.
pub fn exit() -> ! {
    // SAFETY: never returns; runs the exit callbacks.
    unsafe { pg_sys::proc_exit(0) };
    // The bindings of some versions do not say that it never returns.
    #[allow(unreachable_code)]
    std::process::exit(0)
}

/// Sleeps until a latch, a signal or the timeout; then serves interrupts and configuration reloads.
pub fn wait(timeout_ms: i64) {
    let events = (pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH) as i32;
    // SAFETY: MyLatch is this process's own; ConfigReloadPending is a sig_atomic flag.
    unsafe {
        pg_sys::WaitLatch(pg_sys::MyLatch, events, timeout_ms.max(0), pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
        pgrx::check_for_interrupts!();
        if pg_sys::ConfigReloadPending != 0 {
            pg_sys::ConfigReloadPending = 0;
            pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        }
    }
}

/// Text for `query` in pg_stat_activity; None: idle.
pub fn show_activity(text: Option<&str>) {
    let (state, text) = match text {
        Some(text) => (pg_sys::BackendState::STATE_RUNNING, text),
        None => (pg_sys::BackendState::STATE_IDLE, ""),
    };
    let text = cstring(text);
    // SAFETY: the text is copied.
    unsafe { pg_sys::pgstat_report_activity(state, text.as_ptr()) };
}

/// Why a worker's transaction was aborted.
pub struct Failure {
    /// SQLSTATE.
    pub code: PgSqlErrorCode,
    /// Message with DETAIL and HINT in one line.
    pub line: String,
}

/// What a worker's transactions return.
pub type WorkResult<T> = Result<T, Failure>;

/// Runs `work` in a transaction of its own. An `Err` or a PostgreSQL ERROR aborts it and comes back as
/// a value; a termination request ends the process as in any backend.
pub fn transaction<R>(work: impl FnOnce() -> PgResult<R>) -> WorkResult<R> {
    transaction_at(pg_sys::XACT_READ_COMMITTED as i32, &[], work)
}

/// As [`transaction`], at REPEATABLE READ: every statement sees the same snapshot.
///
/// `lock_first` is locked ACCESS SHARE before the snapshot is taken: what the snapshot says about those
/// relations is then what they are.
pub fn transaction_repeatable_read<R>(
    lock_first: &[pg_sys::Oid],
    work: impl FnOnce() -> PgResult<R>,
) -> WorkResult<R> {
    transaction_at(pg_sys::XACT_REPEATABLE_READ as i32, lock_first, work)
}

fn transaction_at<R>(
    isolation: i32,
    lock_first: &[pg_sys::Oid],
    work: impl FnOnce() -> PgResult<R>,
) -> WorkResult<R> {
    let outcome = PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the worker is outside any transaction here; the snapshot is popped before commit.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            // Whatever a database or role has as its defaults must not change what we do.
            pg_sys::XactIsoLevel = isolation;
            pg_sys::XactReadOnly = false;
            super::lock::lock_all(lock_first, super::lock::ACCESS_SHARE);
            pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        }
        match work() {
            Ok(value) => {
                // SAFETY: ends what was begun above.
                unsafe {
                    pg_sys::PopActiveSnapshot();
                    pg_sys::CommitTransactionCommand();
                }
                Ok(value)
            }
            // Raised, so that it is caught below like any other error, with its SQLSTATE.
            Err(report) => {
                report.report(PgLogLevel::ERROR);
                Err(Failure { code: PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, line: String::new() })
            }
        }
    }))
    .catch_others(|caught| Err(aborted(caught)))
    .execute();
    // SAFETY: flushes this worker's statistics at most once a second, outside a transaction.
    unsafe { pg_sys::pgstat_report_stat(false) };
    outcome
}

/// Waits until the last transaction that this process has committed is on disk; outside a transaction.
pub fn flush_commit() {
    // SAFETY: the position is the end of a record that this process has written, or 0.
    unsafe { pg_sys::XLogFlush(pg_sys::XactLastCommitEnd) };
}

/// Runs a command that manages its own transactions (VACUUM); outside a transaction.
pub fn command(sql: &str) -> WorkResult<()> {
    let text = super::report::cstring(sql);
    PgTryBuilder::new(AssertUnwindSafe(|| {
        // SAFETY: the worker is outside any transaction; the command's tree must outlive those it makes, so it
        // lives in a context of its own.
        unsafe {
            pg_sys::SetCurrentStatementStartTimestamp();
            pg_sys::StartTransactionCommand();
            let context = pg_sys::AllocSetContextCreateInternal(
                pg_sys::TopMemoryContext,
                c"foreshard command".as_ptr(),
                pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
                pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
            );
            pg_sys::MemoryContextSwitchTo(context);
            let parsed = pgrx::PgList::<pg_sys::RawStmt>::from_pg(pg_sys::pg_parse_query(text.as_ptr()));
            if let Some(raw) = parsed.get_ptr(0) {
                let mut plan = pgrx::PgBox::<pg_sys::PlannedStmt>::alloc_node(pg_sys::NodeTag::T_PlannedStmt);
                plan.commandType = pg_sys::CmdType::CMD_UTILITY;
                plan.utilityStmt = (*raw).stmt;
                pg_sys::ProcessUtility(
                    plan.into_pg(),
                    text.as_ptr(),
                    false,
                    pg_sys::ProcessUtilityContext::PROCESS_UTILITY_TOPLEVEL,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    pg_sys::CreateDestReceiver(pg_sys::CommandDest::DestNone),
                    std::ptr::null_mut(),
                );
            }
            pg_sys::CommitTransactionCommand();
            pg_sys::MemoryContextDelete(context);
        }
        Ok(())
    }))
    .catch_others(|caught| Err(aborted(caught)))
    .execute()
}

/// Ends the transaction after an error and says what it was.
fn aborted(caught: pg_sys::panic::CaughtError) -> Failure {
    // SAFETY: after an ERROR the transaction is in progress or aborted; this ends it either way.
    unsafe { pg_sys::AbortCurrentTransaction() };
    match caught {
        pg_sys::panic::CaughtError::PostgresError(report)
        | pg_sys::panic::CaughtError::ErrorReport(report) => failure(&report),
        pg_sys::panic::CaughtError::RustPanic { ereport, .. } => failure(&ereport),
    }
}

fn failure(report: &pg_sys::panic::ErrorReportWithLevel) -> Failure {
    let mut line = report.message().to_string();
    for (label, part) in [("detail", report.detail()), ("hint", report.hint())] {
        if let Some(text) = part {
            // A detail has a line per reason.
            line.push_str(&format!(" ({label}: {})", text.replace('\n', "; ")));
        }
    }
    Failure { code: report.sql_error_code(), line }
}

/// Seconds since the epoch, with fraction.
pub fn now_s() -> f64 {
    const POSTGRES_EPOCH_S: f64 = 946_684_800.0;
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentTimestamp() as f64 / 1e6 + POSTGRES_EPOCH_S }
}

/// PostgreSQL's clock, microseconds.
pub fn now_us() -> i64 {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentTimestamp() }
}

/// When the statement began that a client of this session has sent, by that clock, microseconds.
pub fn statement_us() -> i64 {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// This process's id.
pub fn pid() -> i32 {
    // SAFETY: set at process start.
    unsafe { pg_sys::MyProcPid }
}

/// Oid of the connected database, 0 for none.
pub fn database() -> u32 {
    // SAFETY: set when the connection was made.
    unsafe { pg_sys::MyDatabaseId }.to_u32()
}

/// Runs `callback` when this process ends, before shared memory is detached.
pub fn on_exit(callback: unsafe extern "C-unwind" fn(i32, pg_sys::Datum)) {
    // SAFETY: the callback is a plain function of this library.
    unsafe { pg_sys::before_shmem_exit(Some(callback), pg_sys::Datum::from(0usize)) };
}

/// A database of the cluster.
pub struct Database {
    /// Its oid.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// A keeper may visit it: it accepts connections and is no template.
    pub takes_workers: bool,
}

/// All databases.
pub fn databases() -> PgResult<Vec<Database>> {
    let mut found = Vec::new();
    // SAFETY: scans the shared catalog pg_database under a registered catalog snapshot; each tuple's
    // fixed part is FormData_pg_database.
    unsafe {
        let catalog = pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as i32);
        let scan = pg_sys::table_beginscan_catalog(catalog, 0, std::ptr::null_mut());
        loop {
            let tuple = pg_sys::heap_getnext(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() {
                break;
            }
            let header = (*tuple).t_data;
            let row =
                header.cast::<u8>().add((*header).t_hoff as usize).cast::<pg_sys::FormData_pg_database>();
            let name = std::ffi::CStr::from_ptr((*row).datname.data.as_ptr());
            found.push(Database {
                oid: (*row).oid.to_u32(),
                name: name.to_string_lossy().into_owned(),
                // A connection limit of -2 marks a database whose DROP was interrupted.
                takes_workers: (*row).datallowconn && !(*row).datistemplate && (*row).datconnlimit != -2,
            });
        }
        pg_sys::table_endscan(scan);
        pg_sys::table_close(catalog, pg_sys::AccessShareLock as i32);
    }
    Ok(found)
}
