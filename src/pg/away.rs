//! Statements that would ask a server which is known not to answer fail at once, before the executor connects to it:
//! else every session that comes by waits as long as the server's own time-outs let it, until none is left for those
//! that need nothing of it.
//!
//! Only what would certainly connect is refused. A foreign scan connects when it begins, but one below an Append that
//! may leave out some of its children need not begin; rows that are inserted find their partition later. Those meet
//! what postgres_fdw tells.

use super::glance::GLANCE;
use super::local::Local;
use super::plan::pointers;
use super::report::{PgSqlErrorCode, error};
use super::{bgworker, compat, guc, region};
use foreshard_core::shared::AwayServers;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Plan nodes looked at; what is behind them is left to postgres_fdw.
const MAX_NODES: usize = 4096;
/// How often a session takes out what nobody has renewed, µs.
const TIDY_US: i64 = 10_000_000;

/// When this session last did so.
static TIDIED: Local<i64> = Local::new(0);

/// Whether any server of any database does not answer: the first thing that a statement looks at.
#[inline]
pub(super) fn any() -> bool {
    GLANCE.gates.get().any_away()
}

fn now_us() -> u64 {
    bgworker::now_us().max(0) as u64
}

fn key_of(server: pg_sys::Oid) -> u64 {
    region::segment_key(bgworker::database(), server.to_u32())
}

/// Says for so long that a server of this database does not answer. False: there is no room to say so.
pub fn note(server: pg_sys::Oid, hold_ms: u64) -> bool {
    let until_us = now_us().saturating_add(hold_ms.saturating_mul(1000));
    region::get().is_some_and(|region| region.away().set(key_of(server), now_us(), until_us))
}

/// Says that it answers, or that it is no longer known that it does not.
pub fn forget(server: pg_sys::Oid) {
    if let Some(region) = region::get() {
        region.away().clear(key_of(server));
    }
}

/// A statement begins: refuses it when it would ask a server that does not answer.
///
/// # Safety
/// `query` must be valid and not started yet. Called by the executor's hook before the original, which holds plain data only:
/// an ERROR passes it.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn begins(query: *mut pg_sys::QueryDesc, eflags: i32) {
    // SAFETY: a variable of this process, -1 except in parallel workers, which do what their leader was let do.
    let is_worker = unsafe { pg_sys::ParallelWorkerNumber } >= 0;
    let only_explains = eflags & pg_sys::EXEC_FLAG_EXPLAIN_ONLY as i32 != 0;
    if is_worker || only_explains || bgworker::is_ours() || !guc::now(&guc::FAIL_FAST) {
        return;
    }
    let Some(region) = region::get() else { return };
    let away = region.away();
    tidy(away);
    // SAFETY: as promised by the caller.
    let found = unsafe { asked_in_vain(&*(*query).plannedstmt, away) };
    if let Some(server) = found {
        does_not_answer(server).report(PgLogLevel::ERROR);
    }
}

/// Takes out what nobody has renewed, of databases that are gone for example, so that statements pass by again.
fn tidy(away: AwayServers<'_>) {
    let now = bgworker::now_us();
    if now.saturating_sub(TIDIED.get()) > TIDY_US {
        TIDIED.set(now);
        away.forget_old(now_us());
    }
}

/// 08006: a server does not answer.
fn does_not_answer(server: pg_sys::Oid) -> ErrorReport {
    // SAFETY: a look-up in a running transaction; what is found is this call's own copy. A server that is gone raises.
    let name = unsafe {
        let found = pg_sys::GetForeignServer(server);
        std::ffi::CStr::from_ptr((*found).servername).to_string_lossy().into_owned()
    };
    error(PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE, format!("server \"{name}\" does not answer"))
        .set_detail("Its last health checks waited in vain; foreshard.nodes has the reason. The statement was not sent.")
        .set_hint(
            "Statements that need nothing of it go on. It is asked again as soon as a health check succeeds \
             (foreshard.node_check_interval), or at once with foreshard.fail_fast = off. The view foreshard.retained_copies has \
             what is still kept here of its slots.",
        )
}

/// The first server that a statement would certainly connect to, and that does not answer.
///
/// # Safety
/// `statement` must be valid.
unsafe fn asked_in_vain(statement: &pg_sys::PlannedStmt, away: AwayServers<'_>) -> Option<pg_sys::Oid> {
    let mut search = Search { away, now_us: now_us(), nodes: 0 };
    // SAFETY: as promised by the caller; the executor begins all sub-plans, and those that were optimised away are null.
    unsafe {
        search
            .below(statement.planTree)
            .or_else(|| pointers::<pg_sys::Plan>(statement.subplans).find_map(|plan| search.below(plan)))
    }
}

struct Search<'a> {
    away: AwayServers<'a>,
    now_us: u64,
    nodes: usize,
}

impl Search<'_> {
    /// # Safety
    /// `plan` must be null or a plan node.
    unsafe fn below(&mut self, plan: *mut pg_sys::Plan) -> Option<pg_sys::Oid> {
        use pg_sys::NodeTag::{T_Append, T_CustomScan, T_ForeignScan, T_MergeAppend, T_SubqueryScan};
        self.nodes += 1;
        if plan.is_null() || self.nodes > MAX_NODES {
            return None;
        }
        // SAFETY: each node is read as the struct its tag names.
        unsafe {
            pg_sys::check_stack_depth();
            let children = match (*plan).type_ {
                T_ForeignScan => {
                    let server = (*plan.cast::<pg_sys::ForeignScan>()).fs_server;
                    if self.away.is_away(key_of(server), self.now_us) {
                        return Some(server);
                    }
                    std::ptr::null_mut()
                }
                T_Append | T_MergeAppend if compat::may_prune(plan) => std::ptr::null_mut(),
                T_Append => (*plan.cast::<pg_sys::Append>()).appendplans,
                T_MergeAppend => (*plan.cast::<pg_sys::MergeAppend>()).mergeplans,
                T_CustomScan => (*plan.cast::<pg_sys::CustomScan>()).custom_plans,
                T_SubqueryScan => {
                    if let Some(found) = self.below((*plan.cast::<pg_sys::SubqueryScan>()).subplan) {
                        return Some(found);
                    }
                    std::ptr::null_mut()
                }
                _ => std::ptr::null_mut(),
            };
            pointers::<pg_sys::Plan>(children)
                .find_map(|child| self.below(child))
                .or_else(|| self.below((*plan).lefttree))
                .or_else(|| self.below((*plan).righttree))
        }
    }
}
