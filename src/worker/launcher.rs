//! The launcher: finds databases that have the extension and keeps a keeper in each. It is connected to
//! no database; whether the extension is there is found out by a keeper that looks once and leaves.

use crate::observe::directory;
use crate::pg::bgworker::{self, Handle, Spec};
use crate::pg::shmem::{self, State};
use crate::pg::{barrier, sources};
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

/// Pause between two looks at pg_database, ms.
const SCAN_MS: i64 = 2_000;

/// Whether the log says already that there are too many databases.
static WARNED: AtomicBool = AtomicBool::new(false);

/// Registers the launcher with the postmaster.
pub fn register() {
    bgworker::register_launcher(&Spec {
        name: "foreshard launcher",
        kind: "foreshard launcher",
        function: "foreshard_launcher_main",
        database: 0,
        extra: 0,
    });
}

/// Entry point.
///
/// # Safety
/// Called by PostgreSQL in a fresh background worker only.
#[unsafe(no_mangle)]
#[pg_guard]
pub extern "C-unwind" fn foreshard_launcher_main(_argument: pg_sys::Datum) {
    bgworker::begin(0);
    shmem::with(|registry| registry.launcher = bgworker::pid());
    let mut keepers: HashMap<u32, Handle> = HashMap::new();
    loop {
        match bgworker::transaction(bgworker::databases) {
            Ok(all) => {
                let there: Vec<u32> = all.iter().map(|database| database.oid).collect();
                directory::withdraw_dropped(&there);
                sources::forget_dropped(&there);
                let open = all.into_iter().filter(|database| database.takes_workers);
                let databases: Vec<(u32, String)> = open.map(|d| (d.oid, d.name)).collect();
                let known: Vec<u32> = databases.iter().map(|(oid, _)| *oid).collect();
                sync_registry(&known);
                start_keepers(&databases, &mut keepers);
            }
            Err(report) => pgrx::log!("foreshard launcher: {}", report.line),
        }
        // Of databases without a keeper, too.
        barrier::tidy();
        bgworker::show_activity(None);
        bgworker::wait(SCAN_MS);
    }
}

/// New databases are to be probed; vanished ones are forgotten.
fn sync_registry(databases: &[u32]) {
    shmem::with(|registry| {
        for entry in registry.entries.iter_mut() {
            if entry.state != State::Free && !databases.contains(&entry.database) && entry.keeper == 0 {
                *entry = shmem::Entry::default();
            }
        }
    });
    let unserved = databases.iter().filter(|d| shmem::with_entry(**d, |_| ()).is_none()).count();
    if unserved > 0 && !WARNED.swap(true, Ordering::Relaxed) {
        pgrx::log!(
            "foreshard launcher: {unserved} databases are not looked at, there is room for {}",
            shmem::MAX_DATABASES
        );
    }
}

fn start_keepers(databases: &[(u32, String)], keepers: &mut HashMap<u32, Handle>) {
    keepers.retain(|_, handle| handle.is_alive());
    for (database, name) in databases {
        if keepers.contains_key(database) {
            continue;
        }
        let wanted = shmem::with_entry(*database, |entry| {
            let due = entry.keeper == 0
                && matches!(entry.state, State::Probe | State::Running)
                && entry.held_until_us <= bgworker::now_us();
            if due {
                entry.state = State::Running;
            }
            due
        });
        if wanted != Some(true) {
            continue;
        }
        let started = bgworker::start(&Spec {
            name: &format!("foreshard keeper {name}"),
            kind: "foreshard keeper",
            function: "foreshard_keeper_main",
            database: *database,
            extra: 0,
        });
        match started {
            Some(handle) => {
                keepers.insert(*database, handle);
            }
            None => {
                pgrx::log!("foreshard launcher: no free background worker; raise max_worker_processes");
                shmem::with_entry(*database, |entry| entry.state = State::Probe);
            }
        }
    }
}
