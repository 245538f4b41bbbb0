//! Watching: hooks → samples → shared memory, and the reading of it by keepers.
//!
//! Nothing here touches a table or raises an error; everything has a fixed size, and what does not fit
//! is dropped and counted.

pub mod asked;
mod budget;
pub mod directory;
pub mod drain;
pub mod samples;
mod sensor;
mod statement;
mod trigger;

/// Installs the hooks; from `_PG_init` while preloading.
pub fn register() {
    crate::pg::executor::register(&sensor::SENSOR);
    crate::pg::trigger::register();
}
