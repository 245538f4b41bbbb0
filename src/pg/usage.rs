//! What this process has used so far: readings to subtract from one another.

use foreshard_core::frames::{AMOUNTS, Amount, Amounts};
use pgrx::pg_sys;

// Called for every measured piece; pgrx's guard would cost as much as the reading itself.
mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declaration is PostgreSQL's own (utils/memutils.h).
    unsafe extern "C-unwind" {
        pub fn MemoryContextMemAllocated(context: pg_sys::MemoryContext, recurse: bool) -> pg_sys::Size;
    }
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct; these clocks always exist on Linux.
    unsafe { libc::clock_gettime(clock, &mut time) };
    (time.tv_sec.max(0) as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec.max(0) as u64)
}

/// Monotonic time, ns (about 25 ns to read).
#[inline]
pub fn elapsed_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// CPU time of this process's only thread, ns (170 to 650 ns to read: a system call).
pub fn cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Gives memory that was freed back to the system. What a plan needs for a moment lies between what lasts, and the C library keeps such
/// pages: a process that lives for months and plans every minute would grow by that.
pub fn give_back_memory() {
    // SAFETY: no preconditions; a few milliseconds.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Buffers from this size on are mapped by themselves, bytes.
#[cfg(target_env = "gnu")]
const MAPPED_FROM: libc::c_int = 64 << 10;

/// From now on what is large comes from the system and goes back to it as soon as it is freed. By itself the C library takes ever larger
/// buffers out of its heap once it has seen one freed, and what is small and lasts comes to lie behind them.
pub fn map_large_buffers() {
    // SAFETY: sets a number of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
    }
}

/// What this process has allocated, and what it holds for that, bytes (below 4 GB): the difference are holes.
#[cfg(target_env = "gnu")]
pub fn heap_bytes() -> (u64, u64) {
    // SAFETY: reads numbers of the allocator.
    let info = unsafe { libc::mallinfo() };
    let bytes = |number: libc::c_int| u64::from(number as u32);
    let mapped = bytes(info.hblkhd);
    (bytes(info.uordblks) + mapped, bytes(info.arena) + mapped)
}

/// What this process has allocated, and what it holds for that: not known here.
#[cfg(not(target_env = "gnu"))]
pub fn heap_bytes() -> (u64, u64) {
    (0, 0)
}

/// Which end of a piece a reading is taken at; the clocks are read next to the piece, so that what else the
/// reading takes is not counted as the piece's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Before it begins: the clocks last.
    Start,
    /// After it has ended: the clocks first.
    Finish,
}

/// A reading of everything. `memory`: also the memory held by all contexts, which takes microseconds;
/// otherwise 0. `overhead_ns` is the caller's own reading.
pub fn now(end: End, memory: bool, overhead_ns: u64) -> Amounts {
    let mut amounts = [0; AMOUNTS];
    if end == End::Finish {
        let clocks = clocks_ns();
        let empty = EMPTY_NS.with(|empty| *empty);
        amounts[Amount::ElapsedNs as usize] = clocks[0].saturating_sub(empty[0]);
        amounts[Amount::CpuNs as usize] = clocks[1].saturating_sub(empty[1]);
    }
    let count = |n: i64| n.max(0) as u64;
    // SAFETY: plain counters of this process, copied.
    let (buffers, wal) = unsafe { (pg_sys::pgBufferUsage, pg_sys::pgWalUsage) };
    amounts[Amount::BlocksHit as usize] = count(buffers.shared_blks_hit + buffers.local_blks_hit);
    amounts[Amount::BlocksRead as usize] = count(buffers.shared_blks_read + buffers.local_blks_read);
    amounts[Amount::BlocksDirtied as usize] = count(buffers.shared_blks_dirtied + buffers.local_blks_dirtied);
    amounts[Amount::TempBlocks as usize] = count(buffers.temp_blks_read + buffers.temp_blks_written);
    amounts[Amount::WalBytes as usize] = wal.wal_bytes;
    if memory {
        // SAFETY: walks the tree of contexts; does not allocate and cannot raise.
        let held = unsafe { raw::MemoryContextMemAllocated(pg_sys::TopMemoryContext, true) };
        amounts[Amount::MemoryBytes as usize] = held as u64;
    }
    amounts[Amount::OverheadNs as usize] = overhead_ns;
    if end == End::Start {
        [amounts[Amount::ElapsedNs as usize], amounts[Amount::CpuNs as usize]] = clocks_ns();
    }
    amounts
}

/// Elapsed and CPU time.
fn clocks_ns() -> [u64; 2] {
    [elapsed_ns(), cpu_ns()]
}

/// Readings that [`EMPTY_NS`] is learnt from.
const EMPTY_READINGS: usize = 9;

thread_local! {
    /// What a piece takes in which nothing is done: reading the clocks, which no piece is to pay for. The least of a few,
    /// for others may be interrupted.
    static EMPTY_NS: [u64; 2] = {
        let readings: [_; EMPTY_READINGS] = std::array::from_fn(|_| clocks_ns());
        let least = |clock: usize| readings.windows(2).map(|pair| pair[1][clock] - pair[0][clock]).min();
        [0, 1].map(|clock| least(clock).unwrap_or(0))
    };
}
