//! Pages that are written past shared memory.

use pgrx::pg_sys;

mod raw {
    use super::pg_sys;
    // SAFETY: the declaration follows the server headers of 15 to 18, which agree.
    unsafe extern "C-unwind" {
        // access/heaptoast.h
        pub fn heap_toast_insert_or_update(
            relation: pg_sys::Relation,
            new: pg_sys::HeapTuple,
            old: pg_sys::HeapTuple,
            options: std::ffi::c_int,
        ) -> pg_sys::HeapTuple;
    }
}

/// Whether changes of a relation's pages are logged (RelationNeedsWAL).
///
/// # Safety
/// `relation` must be open.
pub unsafe fn needs_wal(relation: pg_sys::Relation) -> bool {
    // SAFETY: as promised by the caller; `wal_level` is a plain setting.
    unsafe {
        #[cfg(feature = "pg15")]
        let moved = (*relation).rd_firstRelfilenodeSubid;
        #[cfg(not(feature = "pg15"))]
        let moved = (*relation).rd_firstRelfilelocatorSubid;
        // InvalidSubTransactionId is 0.
        let is_old = (*relation).rd_createSubid == 0 && moved == 0;
        let is_permanent = (*(*relation).rd_rel).relpersistence as u8 == pg_sys::RELPERSISTENCE_PERMANENT;
        is_permanent && (is_old || pg_sys::wal_level >= pg_sys::WalLevel::WAL_LEVEL_REPLICA as i32)
    }
}

/// Logs whole pages of a heap, and notes in them where.
///
/// # Safety
/// As many blocks as pages, of an open relation, with standard headers.
pub unsafe fn log_pages(relation: pg_sys::Relation, blocks: &mut [u32], pages: &mut [pg_sys::Page]) {
    #[cfg(feature = "pg15")]
    // SAFETY: as promised by the caller.
    let file = unsafe { &raw mut (*relation).rd_node };
    #[cfg(not(feature = "pg15"))]
    // SAFETY: as promised by the caller.
    let file = unsafe { &raw mut (*relation).rd_locator };
    // SAFETY: as promised by the caller.
    unsafe {
        pg_sys::log_newpages(
            file,
            pg_sys::ForkNumber::MAIN_FORKNUM,
            pages.len() as i32,
            blocks.as_mut_ptr(),
            pages.as_mut_ptr(),
            true,
        )
    };
}

/// Writes a page behind the last block of a heap, with its checksum and `lsn` as the place of its last change. With `last`,
/// and at the end of a file, the next checkpoint is asked to sync the file.
///
/// # Safety
/// `page` is a page of ours and `block` the next one of an open relation.
pub unsafe fn extend(
    relation: pg_sys::Relation,
    block: u32,
    page: pg_sys::Page,
    lsn: pg_sys::XLogRecPtr,
    last: bool,
) {
    let ends_file = block % pg_sys::RELSEG_SIZE == pg_sys::RELSEG_SIZE - 1;
    // SAFETY: as promised by the caller.
    unsafe {
        let header = page.cast::<pg_sys::PageHeaderData>();
        (*header).pd_lsn.xlogid = (lsn >> 32) as u32;
        (*header).pd_lsn.xrecoff = lsn as u32;
        pg_sys::PageSetChecksumInplace(page, block);
        let file = pg_sys::RelationGetSmgr(relation);
        pg_sys::smgrextend(file, pg_sys::ForkNumber::MAIN_FORKNUM, block, page.cast(), !(last || ends_file));
    }
}

/// A row with its long values compressed or out of line, as an insertion makes it.
///
/// # Safety
/// `tuple` must be a row of the open heap `relation`; `options` are `HEAP_INSERT_*`.
pub unsafe fn toast(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple, options: i32) -> pg_sys::HeapTuple {
    // SAFETY: as promised by the caller; the guard turns an ERROR into a Rust unwind.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            raw::heap_toast_insert_or_update(relation, tuple, std::ptr::null_mut(), options)
        })
    }
}

/// What an index is read with, as VACUUM reads it.
///
/// # Safety
/// Both must be open, the index one of the heap's; the strategy lives as long as the value.
pub unsafe fn vacuum_info(
    heap: pg_sys::Relation,
    index: pg_sys::Relation,
    strategy: pg_sys::BufferAccessStrategy,
) -> pg_sys::IndexVacuumInfo {
    pg_sys::IndexVacuumInfo {
        index,
        #[cfg(not(feature = "pg15"))]
        heaprel: heap,
        estimated_count: true,
        message_level: pg_sys::DEBUG2 as i32,
        // SAFETY: as promised by the caller.
        num_heap_tuples: unsafe { (*(*heap).rd_rel).reltuples }.into(),
        strategy,
        ..Default::default()
    }
}
