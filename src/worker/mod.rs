//! Processes: launcher (one per cluster), keeper (one per database with the extension), carrier (one
//! per move), and one for graphs while there is work.

pub mod carrier;
mod costs;
mod gather;
pub mod graph;
pub mod keeper;
mod key_load;
pub mod launcher;
mod learn;
mod load;
mod publish;
mod triggers;
mod watch;
