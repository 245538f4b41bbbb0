//! Reads a heap and hashes its rows: what verification compares.

use super::keytext;
use super::lock::{self, ACCESS_SHARE};
use super::partition::Router;
use super::progress;
use super::report::{PgResult, internal};
use foreshard_core::digest::RowHasher;
use pgrx::pg_sys;
use std::collections::HashSet;

/// Encodes one attribute: a tag byte, and for values a length and the detoasted bytes. Two values get
/// the same encoding exactly when their stored images are equal.
///
/// # Safety
/// `datum` must be a non-NULL-or-flagged value of `attribute`'s type.
unsafe fn encode(
    datum: pg_sys::Datum,
    isnull: bool,
    attribute: &pg_sys::FormData_pg_attribute,
    sink: &mut impl FnMut(&[u8]),
) {
    if isnull {
        sink(&[0]);
        return;
    }
    if attribute.attbyval {
        let width = (attribute.attlen.max(1) as usize).min(8);
        let bytes = (datum.value() as u64).to_le_bytes();
        sink(&[1]);
        sink(&bytes[..width]);
        return;
    }
    // SAFETY: by-reference values are attlen bytes, a C string (-2) or a varlena (-1).
    unsafe {
        let pointer = datum.cast_mut_ptr::<u8>();
        let bytes = match attribute.attlen {
            -1 => {
                let flat = pg_sys::pg_detoast_datum_packed(pointer.cast());
                pgrx::varlena_to_byte_slice(flat)
            }
            -2 => std::ffi::CStr::from_ptr(pointer.cast()).to_bytes(),
            n => std::slice::from_raw_parts(pointer, n.max(0) as usize),
        };
        sink(&[2]);
        sink(&(bytes.len() as u64).to_le_bytes());
        sink(bytes);
    }
}

/// Visits every row of a heap that the active snapshot sees; values live until the next row. Gives way
/// (55006) to whoever waits for a lock on this or anything else that is compared with it.
fn scan(
    relation: pg_sys::Oid,
    mut visit: impl FnMut(&[&pg_sys::FormData_pg_attribute], &[pg_sys::Datum], &[bool]),
) -> PgResult<()> {
    lock::give_way()?;
    // SAFETY: the relation is opened and locked for the scan, the slot belongs to it, its arrays hold
    // natts entries after slot_getallattrs, and per-row memory is reset only between rows.
    unsafe {
        let rel = pg_sys::table_open(relation, ACCESS_SHARE);
        let descriptor = (*rel).rd_att;
        let natts = (*descriptor).natts.max(0) as usize;
        let attributes: Vec<&pg_sys::FormData_pg_attribute> =
            (0..natts).map(|i| &*super::compat::attribute(descriptor, i)).collect();
        let slot = pg_sys::table_slot_create(rel, std::ptr::null_mut());
        let snapshot = pg_sys::GetActiveSnapshot();
        let scan = pg_sys::table_beginscan(rel, snapshot, 0, std::ptr::null_mut());
        let row_context = pg_sys::AllocSetContextCreateInternal(
            pg_sys::CurrentMemoryContext,
            c"foreshard digest row".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as usize,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as usize,
        );
        let mut row: u64 = 0;
        let (mut block, blocks) =
            (0, pg_sys::RelationGetNumberOfBlocksInFork(rel, pg_sys::ForkNumber::MAIN_FORKNUM));
        while pg_sys::table_scan_getnextslot(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
            let outer = pg_sys::MemoryContextSwitchTo(row_context);
            pg_sys::slot_getallattrs(slot);
            let values = std::slice::from_raw_parts((*slot).tts_values, natts);
            let nulls = std::slice::from_raw_parts((*slot).tts_isnull, natts);
            visit(&attributes, values, nulls);
            pg_sys::MemoryContextSwitchTo(outer);
            pg_sys::MemoryContextReset(row_context);
            row += 1;
            if row.is_multiple_of(1024) {
                pgrx::check_for_interrupts!();
                let now = u32::from((*slot).tts_tid.ip_blkid.bi_hi) << 16
                    | u32::from((*slot).tts_tid.ip_blkid.bi_lo);
                progress::add(now.saturating_sub(block));
                block = block.max(now);
                lock::give_way()?;
            }
        }
        progress::add(blocks.saturating_sub(block));
        pg_sys::table_endscan(scan);
        pg_sys::ExecDropSingleTupleTableSlot(slot);
        pg_sys::MemoryContextDelete(row_context);
        pg_sys::table_close(rel, ACCESS_SHARE);
    }
    Ok(())
}

fn key_image(
    key: &[i16],
    attributes: &[&pg_sys::FormData_pg_attribute],
    values: &[pg_sys::Datum],
    nulls: &[bool],
    image: &mut Vec<u8>,
) {
    image.clear();
    for attnum in key {
        let i = (*attnum - 1).max(0) as usize;
        // SAFETY: value i belongs to attribute i of the row just read.
        unsafe { encode(values[i], nulls[i], attributes[i], &mut |bytes| image.extend_from_slice(bytes)) };
    }
}

/// The distinct key images in a capture log, whose columns are the key columns in order. At most
/// `limit` keys; None when there are more.
pub fn logged_keys(log: pg_sys::Oid, key_columns: usize, limit: usize) -> PgResult<Option<HashSet<Vec<u8>>>> {
    let key: Vec<i16> = (1..=key_columns as i16).collect();
    let mut keys = HashSet::new();
    let mut image = Vec::new();
    let mut over = false;
    scan(log, |attributes, values, nulls| {
        if over {
            return;
        }
        key_image(&key, attributes, values, nulls, &mut image);
        if !keys.contains(&image) {
            over = keys.len() >= limit;
            keys.insert(image.clone());
        }
    })?;
    Ok(if over { None } else { Some(keys) })
}

/// Which rows are compared, and by what they are told apart.
pub struct Key<'a> {
    /// Attribute numbers of the identity key.
    pub columns: &'a [i16],
    /// Keys that are left out.
    pub skip: &'a HashSet<Vec<u8>>,
}

/// A row that is compared.
pub struct Row<'a> {
    /// Hash of its key.
    pub key_hash: u128,
    /// Hash of what both copies store of it.
    pub row_hash: u128,
    attributes: &'a [&'a pg_sys::FormData_pg_attribute],
    values: &'a [pg_sys::Datum],
    nulls: &'a [bool],
}

impl Row<'_> {
    /// Some of its columns as text.
    pub fn texts(&self, columns: &[i16]) -> Vec<Option<String>> {
        let text = |attnum: &i16| {
            let i = (*attnum - 1).max(0) as usize;
            if *self.nulls.get(i)? {
                return None;
            }
            keytext::print(self.attributes.get(i)?.atttypid, *self.values.get(i)?).ok().flatten()
        };
        columns.iter().map(text).collect()
    }
}

/// Visits every visible row of `relation` but those left out, hashed; `stored` are the attribute numbers that both
/// copies store.
pub fn each_row(
    relation: pg_sys::Oid,
    key: &Key,
    stored: &[i16],
    visit: &mut dyn FnMut(&Row),
) -> PgResult<()> {
    let mut hasher = RowHasher::new();
    let mut image = Vec::new();
    scan(relation, |attributes, values, nulls| {
        key_image(key.columns, attributes, values, nulls, &mut image);
        if !key.skip.is_empty() && key.skip.contains(&image) {
            return;
        }
        hasher.reset();
        hasher.update(&image);
        let key_hash = hasher.finish();
        hasher.reset();
        for attnum in stored {
            let i = (*attnum - 1).max(0) as usize;
            // SAFETY: value i belongs to attribute i of the row just read.
            unsafe { encode(values[i], nulls[i], attributes[i], &mut |bytes| hasher.update(bytes)) };
        }
        visit(&Row { key_hash, row_hash: hasher.finish(), attributes, values, nulls });
    })
}

/// As [`each_row`], with the number of the partition that `router` would put the row into by its attribute number
/// `attribute`. Rows that no partition takes are an error.
pub fn each_row_of_parts(
    relation: pg_sys::Oid,
    key: &Key,
    stored: &[i16],
    attribute: i16,
    router: &mut Router,
    visit: &mut dyn FnMut(usize, &Row),
) -> PgResult<()> {
    let at = (attribute - 1).max(0) as usize;
    let mut lost: u64 = 0;
    each_row(relation, key, stored, &mut |row| {
        let value = (!row.nulls[at]).then(|| (row.values[at], row.attributes[at].atttypid));
        match router.locate(value) {
            Some(part) => visit(part, row),
            None => lost += 1,
        }
    })?;
    if lost > 0 {
        return Err(internal(format!("{lost} rows of the slot belong to none of its parts")));
    }
    Ok(())
}
