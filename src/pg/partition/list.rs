//! The lists of a table that is partitioned BY LIST of one column: which partition holds a key, and which keys
//! a partition holds.

use super::super::lock::ACCESS_SHARE;
use super::super::report::{PgResult, internal};
use pgrx::pg_sys;
use std::ffi::CStr;

/// Values of the lists in the order of the key's operator class, each with its partition's number.
pub(super) struct Lists {
    values: Vec<(pg_sys::Datum, usize)>,
    default: Option<usize>,
    null: Option<usize>,
}

impl Lists {
    /// The lists of a table and its partitions by number, copied into `memory`.
    ///
    /// # Safety
    /// `table` must be partitioned by LIST of one column of type `key_type`; `memory` must outlive the result.
    pub(super) unsafe fn read(
        table: pg_sys::Oid,
        key_type: pg_sys::Oid,
        memory: pg_sys::MemoryContext,
    ) -> (Lists, Vec<pg_sys::Oid>) {
        let mut lists = Lists { values: Vec::new(), default: None, null: None };
        let mut partitions = Vec::new();
        // SAFETY: the relation stays locked and open while its partition descriptor is copied; the arrays have
        // the lengths that stand beside them, every value of a list bound is one of the key's type.
        unsafe {
            let (mut length, mut by_value) = (0, false);
            pg_sys::get_typlenbyval(key_type, &mut length, &mut by_value);
            let relation = pg_sys::table_open(table, ACCESS_SHARE);
            let descriptor = pg_sys::RelationGetPartitionDesc(relation, true);
            let bounds = (*descriptor).boundinfo;
            if !bounds.is_null() && (*descriptor).nparts > 0 {
                partitions =
                    std::slice::from_raw_parts((*descriptor).oids, (*descriptor).nparts as usize).to_vec();
                for at in 0..(*bounds).ndatums.max(0) as usize {
                    if let Ok(part) = usize::try_from(*(*bounds).indexes.add(at)) {
                        let value = *(*(*bounds).datums.add(at));
                        lists.values.push((copy(value, length, by_value, memory), part));
                    }
                }
                lists.default = usize::try_from((*bounds).default_index).ok();
                lists.null = usize::try_from((*bounds).null_index).ok();
            }
            pg_sys::table_close(relation, ACCESS_SHARE);
        }
        (lists, partitions)
    }

    /// The number of the partition that holds a key.
    ///
    /// # Safety
    /// `compare` must be the comparison of the key's operator class, the value one of the key's type.
    pub(super) unsafe fn number_of(
        &self,
        compare: &mut pg_sys::FmgrInfo,
        collation: pg_sys::Oid,
        value: Option<pg_sys::Datum>,
    ) -> Option<usize> {
        let Some(value) = value else { return self.null.or(self.default) };
        // SAFETY: as promised by the caller.
        unsafe { self.find(compare, collation, value) }.map(|(part, _)| part).or(self.default)
    }

    /// The number of the partition whose list has a key, and the value that is listed.
    ///
    /// # Safety
    /// As for [`Lists::number_of`].
    pub(super) unsafe fn find(
        &self,
        compare: &mut pg_sys::FmgrInfo,
        collation: pg_sys::Oid,
        value: pg_sys::Datum,
    ) -> Option<(usize, pg_sys::Datum)> {
        let found = self.values.binary_search_by(|(listed, _)| {
            // SAFETY: as promised by the caller.
            let order = unsafe { pg_sys::FunctionCall2Coll(compare, collation, *listed, value) };
            (order.value() as i32).cmp(&0)
        });
        found.ok().and_then(|at| self.values.get(at)).map(|(listed, part)| (*part, *listed))
    }

    /// The keys of every partition as text, None for the DEFAULT one.
    pub(super) fn texts(
        &self,
        key_type: pg_sys::Oid,
        partitions: usize,
    ) -> PgResult<Vec<Option<Vec<String>>>> {
        let mut texts: Vec<Option<Vec<String>>> = vec![Some(Vec::new()); partitions];
        for (value, part) in &self.values {
            let text = text(key_type, *value)?;
            if let Some(Some(keys)) = texts.get_mut(*part) {
                keys.push(text);
            }
        }
        if let Some(default) = self.default.and_then(|default| texts.get_mut(default)) {
            *default = None;
        }
        Ok(texts)
    }
}

/// A value's text form.
pub(super) fn text(key_type: pg_sys::Oid, value: pg_sys::Datum) -> PgResult<String> {
    let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: the value is one of this type; output functions return a C string of their own.
    unsafe {
        pg_sys::getTypeOutputInfo(key_type, &mut function, &mut varlena);
        let text = pg_sys::OidOutputFunctionCall(function, value);
        let owned = CStr::from_ptr(text).to_str().map(str::to_string).map_err(internal);
        pg_sys::pfree(text.cast());
        owned
    }
}

/// # Safety
/// The value must have this length and way of passing.
unsafe fn copy(
    value: pg_sys::Datum,
    length: i16,
    by_value: bool,
    memory: pg_sys::MemoryContext,
) -> pg_sys::Datum {
    if by_value {
        return value;
    }
    // SAFETY: a value by reference is `length` bytes, a varlena (-1; a bound is never toasted) or a C string (-2).
    unsafe {
        let from = value.cast_mut_ptr::<u8>();
        let size = match length {
            -1 => pgrx::varsize_any(from.cast()),
            -2 => CStr::from_ptr(from.cast()).to_bytes_with_nul().len(),
            fixed => fixed.max(0) as usize,
        };
        let to = pg_sys::MemoryContextAlloc(memory, size.max(1)).cast::<u8>();
        std::ptr::copy_nonoverlapping(from, to, size);
        pg_sys::Datum::from(to)
    }
}
