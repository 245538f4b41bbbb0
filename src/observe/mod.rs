//! Watching: hooks → samples → shared memory, and the reading of it by keepers.
//!
//! Nothing here touches a table or raises an error; everything has a fixed size, and what does not fit
//! is dropped and counted.

pub mod directory;
pub mod drain;
pub mod samples;
