//! Features of a trigger call, read from its TriggerData.

use super::compat;
use pgrx::pg_sys;

/// Attributes looked at; wider rows count as that wide.
const MAX_ATTRIBUTES: usize = 1664;

/// What a call was about.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Features {
    /// Logical length of the new row (of the old one for DELETE): compressed and out-of-line values count
    /// with their raw size. 0 for statement triggers.
    pub tuple_bytes: u64,
    /// Attributes that are not NULL.
    pub non_null: u64,
    /// Attributes whose stored value differs between old and new row.
    pub changed: u64,
    /// Rows in the transition tables, if there are any.
    pub transition_rows: Option<u64>,
}

/// The values of a heap tuple. Deforming neither allocates nor raises.
///
/// # Safety
/// `tuple` must be a tuple of `descriptor`; the arrays must hold natts elements.
unsafe fn deform(
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    values: &mut [pg_sys::Datum],
    nulls: &mut [bool],
) {
    // SAFETY: as promised by the caller; the raw function leaves plain pointers into the tuple.
    unsafe { raw::heap_deform_tuple(tuple, descriptor, values.as_mut_ptr(), nulls.as_mut_ptr()) };
}

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declarations are PostgreSQL's own (access/htup_details.h, utils/tuplestore.h).
    unsafe extern "C-unwind" {
        pub fn heap_deform_tuple(
            tuple: pg_sys::HeapTuple,
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        );
        pub fn tuplestore_tuple_count(state: *mut pg_sys::Tuplestorestate) -> i64;
    }
}

/// A varlena value's stored bytes: whole size with header, by its first bytes.
///
/// # Safety
/// `pointer` must point to a varlena value.
unsafe fn stored_and_raw(pointer: *const u8) -> (usize, usize) {
    // SAFETY: the first byte tells which of the layouts of postgres.h (little-endian) follows.
    unsafe {
        let first = *pointer;
        if first == 1 {
            // External: tag, then for on-disk values va_rawsize.
            let stored = pgrx::varsize_any(pointer.cast());
            let on_disk = *pointer.add(1) == 18;
            let raw = if on_disk { pointer.add(2).cast::<i32>().read_unaligned().max(0) as usize } else { 0 };
            return (stored, raw.max(stored));
        }
        let stored = pgrx::varsize_any(pointer.cast());
        if first & 3 == 2 {
            // Compressed in line: the raw size without header in the low 30 bits of the second word.
            let raw = (pointer.add(4).cast::<u32>().read_unaligned() & 0x3fff_ffff) as usize + 4;
            return (stored, raw.max(stored));
        }
        (stored, stored)
    }
}

/// Whether two stored values are the same bytes.
///
/// # Safety
/// Both must be values of an attribute of this length and passing convention.
unsafe fn same(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: i16) -> bool {
    if by_value {
        return a == b;
    }
    let (a, b) = (a.cast_mut_ptr::<u8>().cast_const(), b.cast_mut_ptr::<u8>().cast_const());
    // SAFETY: as promised by the caller.
    unsafe {
        let size = |p: *const u8| match length {
            -1 => stored_and_raw(p).0,
            -2 => std::ffi::CStr::from_ptr(p.cast()).to_bytes().len(),
            fixed => fixed.max(0) as usize,
        };
        let (size_a, size_b) = (size(a), size(b));
        size_a == size_b && std::slice::from_raw_parts(a, size_a) == std::slice::from_raw_parts(b, size_b)
    }
}

/// The features of a call.
///
/// # Safety
/// `data` must be the TriggerData of a call that is about to be made.
pub unsafe fn features(data: *const pg_sys::TriggerData) -> Features {
    let mut found = Features::default();
    // SAFETY: relation, tuples and tuplestores belong to the call; attribute indexes stay below natts.
    unsafe {
        let data = &*data;
        let stores = [data.tg_newtable, data.tg_oldtable];
        for store in stores.into_iter().filter(|s| !s.is_null()) {
            let rows = raw::tuplestore_tuple_count(store).max(0) as u64;
            found.transition_rows = Some(found.transition_rows.unwrap_or(0).max(rows));
        }
        if data.tg_trigtuple.is_null() {
            return found;
        }
        let (old, new) = if data.tg_newtuple.is_null() {
            (std::ptr::null_mut(), data.tg_trigtuple)
        } else {
            (data.tg_trigtuple, data.tg_newtuple)
        };
        let descriptor = (*data.tg_relation).rd_att;
        let natts = ((*descriptor).natts.max(0) as usize).min(MAX_ATTRIBUTES);
        let zero = pg_sys::Datum::from(0usize);
        let (mut values, mut nulls) = (vec![zero; natts], vec![true; natts]);
        deform(new, descriptor, &mut values, &mut nulls);
        let (mut old_values, mut old_nulls) = (Vec::new(), Vec::new());
        if !old.is_null() {
            (old_values, old_nulls) = (vec![zero; natts], vec![true; natts]);
            deform(old, descriptor, &mut old_values, &mut old_nulls);
        }
        let mut bytes = u64::from((*new).t_len);
        for i in 0..natts {
            let attribute = &*compat::attribute(descriptor, i);
            if attribute.attisdropped {
                continue;
            }
            if !nulls[i] {
                found.non_null += 1;
                if attribute.attlen == -1 {
                    let (stored, raw) = stored_and_raw(values[i].cast_mut_ptr::<u8>());
                    bytes += (raw - stored) as u64;
                }
            }
            if !old.is_null() {
                let differs = nulls[i] != old_nulls[i]
                    || (!nulls[i] && !same(values[i], old_values[i], attribute.attbyval, attribute.attlen));
                found.changed += u64::from(differs);
            }
        }
        found.tuple_bytes = bytes;
    }
    found
}
