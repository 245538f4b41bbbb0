//! The visibility map of blocks that were written past shared memory.

use super::compat::needs_wal;
use pgrx::pg_sys;

/// What a page of the map has for blocks, bytes: all of it but the header, two bits a block.
const MAP_BYTES: u32 =
    pg_sys::BLCKSZ - std::mem::size_of::<pg_sys::PageHeaderData>().next_multiple_of(8) as u32;
const BLOCKS_PER_BYTE: u32 = 4;
const BLOCKS_PER_PAGE: u32 = MAP_BYTES * BLOCKS_PER_BYTE;

/// Marks the blocks `from..to` of a heap as all visible and all frozen, as their pages already say of themselves.
///
/// # Safety
/// `relation` must be an open heap with these blocks; nobody else writes to them.
pub unsafe fn set_all_frozen(relation: pg_sys::Relation, from: u32, to: u32) {
    let mut block = from;
    while block < to {
        let end = to.min((block / BLOCKS_PER_PAGE + 1) * BLOCKS_PER_PAGE);
        // SAFETY: as promised by the caller; the buffer is pinned, locked and logged as PostgreSQL does it for a page of the
        // map; an ERROR in the critical section is a PANIC, as there.
        unsafe {
            let mut buffer = pg_sys::InvalidBuffer as pg_sys::Buffer;
            pg_sys::visibilitymap_pin(relation, block, &raw mut buffer);
            pg_sys::LockBuffer(buffer, pg_sys::BUFFER_LOCK_EXCLUSIVE as i32);
            pg_sys::CritSectionCount += 1;
            let map = pg_sys::BufferGetPage(buffer).cast::<u8>().add((pg_sys::BLCKSZ - MAP_BYTES) as usize);
            for block in block..end {
                let at = block % BLOCKS_PER_PAGE;
                *map.add((at / BLOCKS_PER_BYTE) as usize) |= 0b11 << (2 * (at % BLOCKS_PER_BYTE));
            }
            pg_sys::MarkBufferDirty(buffer);
            if needs_wal(relation) {
                pg_sys::log_newpage_buffer(buffer, false);
            }
            pg_sys::CritSectionCount -= 1;
            pg_sys::UnlockReleaseBuffer(buffer);
        }
        block = end;
    }
}
