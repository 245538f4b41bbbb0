//! The carrier of one move.

use crate::catalog::citus::moving;
use crate::catalog::session;
use crate::mover;
use crate::pg::{bgworker, lock, shmem};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Entry point; the argument is the database's oid, the extra number the move's id.
///
/// # Safety
/// Called by PostgreSQL in a fresh background worker only.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn foreshard_carrier_main(argument: pg_sys::Datum) {
    let database = argument.value() as u32;
    let move_id = bgworker::extra();
    bgworker::on_exit(leave);
    bgworker::begin(database);
    let held = shmem::with_entry(database, |entry| {
        if let Some(slot) = entry.carriers.iter_mut().find(|pid| **pid == 0) {
            *slot = bgworker::pid();
        }
        entry.held_until_us > bgworker::now_us()
    });
    if held == Some(true) {
        return;
    }
    match bgworker::transaction(session::prepare_worker) {
        Ok(()) => match bgworker::transaction(|| moving::is_of_citus(move_id)) {
            Ok(true) => mover::citus::drive(move_id),
            Ok(false) => mover::drive(move_id),
            Err(failure) => pgrx::log!("foreshard carrier: {}", failure.line),
        },
        Err(report) => pgrx::log!("foreshard carrier: {}", report.line),
    }
}

/// # Safety
/// An exit callback of PostgreSQL.
#[pg_guard]
extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    // Whoever is sent away between two transactions would keep them for good.
    lock::release_kept();
    // Nobody is left to look after the reads of a copy; what is known of an old copy that is kept stays.
    mover::canary::close_routes(bgworker::extra());
    super::leave();
}
