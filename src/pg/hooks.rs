//! The utility hook: a database that is dropped, renamed, moved or copied must not find our workers
//! in its way. It only sends our own workers home; it never changes a result and never raises.

use super::{bgworker, compat, shmem};
use pgrx::pg_sys;
use pgrx::prelude::*;

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Time for which a released database gets no new worker.
const HOLD_US: i64 = 10_000_000;
/// Longest wait for our workers to leave.
const LEAVE_MS: i64 = 3_000;

/// Installs the hook; from `_PG_init` while preloading.
pub fn register() {
    // SAFETY: single-threaded start-up of the postmaster.
    unsafe {
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

#[pg_guard]
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
        let statement = (*pstmt).utilityStmt;
        if !statement.is_null() {
            for name in databases_of(statement) {
                release(name);
            }
        }
        match PREVIOUS {
            Some(previous) => pgrx::pg_sys::ffi::pg_guard_ffi_boundary(|| {
                previous(pstmt, query, read_only, context, params, environment, dest, completion)
            }),
            None => pg_sys::standard_ProcessUtility(
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

/// Asks our workers to leave a database the current user owns, and waits for them, bounded.
///
/// # Safety
/// `name` must be null or a C string.
unsafe fn release(name: *const std::ffi::c_char) {
    if name.is_null() {
        return;
    }
    // SAFETY: look-ups in a running transaction; missing databases give 0.
    let database = unsafe { pg_sys::get_database_oid(name, true) };
    // SAFETY: no preconditions.
    let user = unsafe { pg_sys::GetUserId() };
    if database == pg_sys::InvalidOid || !compat::owns_database(database, user) {
        return;
    }
    let held_until_us = bgworker::now_us() + HOLD_US;
    let mut waited_ms = 0;
    loop {
        let pids = shmem::with(|registry| {
            let mut pids = Vec::new();
            for entry in registry.entries.iter_mut() {
                if entry.state != shmem::State::Free && entry.database == database.to_u32() {
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
