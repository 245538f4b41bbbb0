//! The SQL functions: check arguments and privileges, call what is below, raise. One file per topic.

mod birth;
mod citus;
mod configure;
mod distribute;
mod explain;
mod graph;
mod influence;
mod locate;
mod node;
pub mod observation;
pub mod people;
mod place;
mod plan;
mod predict;
mod recover;
mod reshard;
mod resolve;
mod setup;
mod undo;
