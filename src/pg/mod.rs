//! The FFI floor: the only folder with `unsafe`. Everything above sees safe functions, plain values
//! and [`report::PgResult`].

pub mod bgworker;
pub mod capture;
pub mod compat;
pub mod digest;
pub mod disk;
pub mod guc;
pub mod hooks;
pub mod invalidation;
pub mod lock;
pub mod partition;
pub mod region;
pub mod report;
pub mod security;
pub mod sequence;
pub mod shmem;
pub mod spi;
pub mod storage;
pub mod types;

/// Whether the postmaster is loading `shared_preload_libraries` right now.
pub fn is_preloading() -> bool {
    // SAFETY: a flag of the server, read while the library loads.
    unsafe { pgrx::pg_sys::process_shared_preload_libraries_in_progress }
}
