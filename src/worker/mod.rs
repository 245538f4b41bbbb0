//! Processes: launcher (one per cluster), keeper (one per database with the extension), carrier (one
//! per move), one for graphs while there is work, one that looks how the nodes are,
//! and one that asks those of a Citus cluster.

pub mod carrier;
mod citus;
mod costs;
mod gather;
pub mod graph;
mod inbox;
pub mod keeper;
mod key_load;
mod late;
pub mod launcher;
mod learn;
mod load;
pub mod nodes;
mod publish;
mod triggers;
mod watch;

use crate::pg::{bgworker, shmem};

/// Enters this process among the workers that DROP DATABASE sends home. False: there is no room, or they are being sent
/// home just now.
fn enter(database: u32) -> bool {
    let entered = shmem::with_entry(database, |entry| {
        let Some(place) = entry.carriers.iter_mut().find(|pid| **pid == 0) else { return false };
        *place = bgworker::pid();
        entry.held_until_us <= bgworker::now_us()
    });
    entered == Some(true)
}

/// Undoes [`enter`], at the end of the process.
fn leave() {
    let pid = bgworker::pid();
    shmem::with_entry(bgworker::database(), |entry| {
        for (place, work) in
            entry.carriers.iter_mut().zip(&mut entry.works).filter(|(place, _)| **place == pid)
        {
            *place = 0;
            *work = Default::default();
        }
    });
}
