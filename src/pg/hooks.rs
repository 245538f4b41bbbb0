//! The utility hook: a database that is dropped, renamed, moved or copied must not find our workers
//! in its way, nor must DROP EXTENSION. It sends our own workers home and, before the extension goes,
//! locks the partitions under way in the order in which writers lock them. COPY is refused what its snapshot would miss
//! (`barrier`). It never changes a result.

use super::report::PgResult;
use super::{barrier, bgworker, compat, lock, shmem};
use pgrx::pg_sys;
use pgrx::prelude::*;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;
static mut SOURCES: Option<fn() -> PgResult<Vec<pg_sys::Oid>>> = None;
static mut FAREWELL: Option<fn() -> PgResult<()>> = None;

/// Time for which a released database gets no new worker.
const HOLD_US: i64 = 10_000_000;
/// Longest wait for our workers to leave.
const LEAVE_MS: i64 = 3_000;

/// Installs the hook; from `_PG_init` while preloading. `sources` lists the partitions under way in the
/// current database; `farewell` clears other servers of what only we need there.
pub fn register(sources: fn() -> PgResult<Vec<pg_sys::Oid>>, farewell: fn() -> PgResult<()>) {
    // SAFETY: single-threaded start-up of the postmaster.
    unsafe {
        SOURCES = Some(sources);
        FAREWELL = Some(farewell);
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(utility);
    }
}

/// Names of databases a statement needs to itself.
///
/// # Safety
/// `statement` must be a parse tree node.
unsafe fn databases_of(statement: *mut pg_sys::Node) -> Vec<*const std::ffi::c_char> {
    // SAFETY: each node is read as the struct its tag names.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                vec![(*statement.cast::<pg_sys::DropdbStmt>()).dbname.cast_const()]
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let rename = statement.cast::<pg_sys::RenameStmt>();
                if (*rename).renameType == pg_sys::ObjectType::OBJECT_DATABASE {
                    vec![(*rename).subname.cast_const()]
                } else {
                    vec![]
                }
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                vec![(*statement.cast::<pg_sys::AlterDatabaseStmt>()).dbname.cast_const()]
            }
            pg_sys::NodeTag::T_CreatedbStmt => compat::template_of(statement.cast()),
            _ => vec![],
        }
    }
}

/// Called directly, not through pgrx's guard: a guard turns a user's ERROR into a Rust panic and back,
/// which loses its CONTEXT, constraint and table names and every SQLSTATE that PostgreSQL does not know.
mod raw {
    use pgrx::pg_sys;

    // SAFETY: the declaration is PostgreSQL's own (tcop/utility.h).
    unsafe extern "C-unwind" {
        pub fn standard_ProcessUtility(
            pstmt: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            read_only: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

/// An ERROR of the statement passes this frame by longjmp, so it holds plain data only.
#[allow(clippy::too_many_arguments)]
// SAFETY: called by PostgreSQL with a valid planned statement; passes everything on unchanged.
unsafe extern "C-unwind" fn utility(
    pstmt: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: as above.
    unsafe {
        if concerns_us((*pstmt).utilityStmt) {
            release_databases_of((*pstmt).utilityStmt);
        }
        if barrier::any() {
            barrier::copies((*pstmt).utilityStmt);
        }
        match PREVIOUS {
            Some(previous) => {
                previous(pstmt, query, read_only, context, params, environment, dest, completion);
            }
            None => raw::standard_ProcessUtility(
                pstmt,
                query,
                read_only,
                context,
                params,
                environment,
                dest,
                completion,
            ),
        }
    }
}

/// Whether a statement may want something of ours; most (BEGIN, COMMIT) do not, and are not delayed by
/// pgrx's guard.
///
/// # Safety
/// `statement` must be null or a parse tree node.
unsafe fn concerns_us(statement: *const pg_sys::Node) -> bool {
    use pg_sys::NodeTag::{T_AlterDatabaseStmt, T_CreatedbStmt, T_DropStmt, T_DropdbStmt, T_RenameStmt};
    // SAFETY: as promised by the caller.
    let tag = unsafe { statement.as_ref() }.map(|node| node.type_);
    matches!(tag, Some(T_DropdbStmt | T_RenameStmt | T_AlterDatabaseStmt | T_CreatedbStmt | T_DropStmt))
}

/// Our own work before a statement, inside pgrx's guard.
#[pg_guard]
// SAFETY: called by `utility` with the parse tree node of a statement, or null.
unsafe extern "C-unwind" fn release_databases_of(statement: *mut pg_sys::Node) {
    // SAFETY: as above.
    unsafe {
        if !statement.is_null() {
            for name in databases_of(statement) {
                release_named(name);
            }
            if compat::drops_extension(statement, c"foreshard") {
                before_drop_extension();
            }
        }
    }
}

/// DROP EXTENSION takes the capture logs before the partitions whose triggers go; a writer takes them
/// the other way round. So the partitions are locked first, when nobody of ours is in the way.
fn before_drop_extension() {
    // SAFETY: look-ups in a running transaction; a missing extension gives 0. SOURCES and FAREWELL are set
    // once, at start-up.
    let (extension, user, sources, farewell) = unsafe {
        (pg_sys::get_extension_oid(c"foreshard".as_ptr(), true), pg_sys::GetUserId(), SOURCES, FAREWELL)
    };
    if extension == pg_sys::InvalidOid || !compat::owns_extension(extension, user) {
        return;
    }
    let database = bgworker::database();
    release(database);
    // Before anything is locked: other servers take their time.
    if let Some(Err(report)) = farewell.map(|leave| leave()) {
        report.report(PgLogLevel::ERROR);
    }
    match sources.map_or(Ok(Vec::new()), |list| list()) {
        Ok(relations) => lock::lock_all_in_any_order(&relations, lock::ACCESS_EXCLUSIVE),
        Err(report) => report.report(PgLogLevel::ERROR),
    }
    // Waiting may have taken long enough for workers to be back.
    release(database);
}

/// As [`release`], for a database the current user owns.
///
/// # Safety
/// `name` must be null or a C string.
unsafe fn release_named(name: *const std::ffi::c_char) {
    if name.is_null() {
        return;
    }
    // SAFETY: look-ups in a running transaction; missing databases give 0.
    let database = unsafe { pg_sys::get_database_oid(name, true) };
    // SAFETY: no preconditions.
    let user = unsafe { pg_sys::GetUserId() };
    if database != pg_sys::InvalidOid && compat::owns_database(database, user) {
        release(database.to_u32());
    }
}

/// Those that were sent home stay there for so long, and some seconds more: what is done meanwhile takes its time.
pub fn keep_workers_away(limit_ms: i64) {
    let until_us = bgworker::now_us() + limit_ms * 1000 + HOLD_US;
    shmem::with_entry(bgworker::database(), |entry| {
        entry.held_until_us = entry.held_until_us.max(until_us);
    });
}

/// Asks our workers to leave a database, and waits for them, bounded.
fn release(database: u32) {
    let held_until_us = bgworker::now_us() + HOLD_US;
    let mut waited_ms = 0;
    loop {
        let pids = shmem::with(|registry| {
            let mut pids = Vec::new();
            for entry in registry.entries.iter_mut() {
                if entry.state != shmem::State::Free && entry.database == database {
                    entry.held_until_us = held_until_us;
                    pids.extend(entry.carriers.iter().chain([&entry.keeper]).copied().filter(|p| *p > 0));
                }
            }
            pids
        })
        .unwrap_or_default();
        if pids.is_empty() || waited_ms >= LEAVE_MS {
            return;
        }
        for pid in pids {
            // SAFETY: our own workers, which clear their entry when they end.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        // SAFETY: a plain sleep; interrupts are served by the statement itself.
        unsafe { pg_sys::pg_usleep(20_000) };
        waited_ms += 20;
    }
}
