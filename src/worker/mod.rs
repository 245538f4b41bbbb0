//! Processes: launcher (one per cluster), keeper (one per database with the extension), carrier (one
//! per move).

pub mod carrier;
pub mod keeper;
pub mod launcher;
