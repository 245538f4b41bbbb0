//! Processes: launcher (one per cluster), keeper (one per database with the extension), carrier (one
//! per move), one for graphs while there is work, and one that looks how the nodes are.

pub mod carrier;
mod costs;
mod gather;
pub mod graph;
pub mod keeper;
mod key_load;
pub mod launcher;
mod learn;
mod load;
pub mod nodes;
mod publish;
mod triggers;
mod watch;
