//! The FFI floor: the only folder with `unsafe`. Everything above sees safe functions, plain values
//! and [`report::PgResult`].

mod around;
pub mod away;
pub mod barrier;
pub mod bgworker;
pub mod builtin;
pub mod capture;
pub mod check_hook;
pub mod compat;
pub mod digest;
pub mod disk;
pub mod executor;
mod gates;
pub mod glance;
pub mod graph;
pub mod guc;
pub mod hooks;
pub mod host;
pub mod index_check;
pub mod invalidation;
pub mod keydatum;
pub mod keytext;
pub mod load;
pub mod local;
pub mod lock;
pub mod mirror;
pub mod names;
pub mod partition;
pub mod plan;
pub mod progress;
pub mod query;
pub mod reading;
pub mod receive;
pub mod region;
pub mod remote;
pub mod report;
pub mod route;
mod scan;
pub mod security;
pub mod sequence;
pub mod shmem;
pub mod sources;
pub mod spi;
pub mod storage;
pub mod subtransaction;
pub mod transaction;
pub mod trigger;
pub mod tuple;
pub mod types;
pub mod usage;
mod visibility;
pub mod window;
pub mod wire;
mod written;

/// Whether the postmaster is loading `shared_preload_libraries` right now.
pub fn is_preloading() -> bool {
    // SAFETY: a flag of the server, read while the library loads.
    unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether pg_upgrade runs this server, to read an old cluster or to fill a new one: then nothing may act by itself.
pub fn is_binary_upgrade() -> bool {
    // SAFETY: a flag of the server, set from its command line before any library is loaded.
    unsafe { pgrx::pg_sys::IsBinaryUpgrade }
}
