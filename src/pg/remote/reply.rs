//! One result of libpq.

use super::libpq::{Libpq, PgAnswer};
use std::ffi::{CStr, c_char, c_int};

/// A result, freed when it goes.
pub struct Reply {
    raw: *mut PgAnswer,
    libpq: Libpq,
}

impl Drop for Reply {
    fn drop(&mut self) {
        // SAFETY: ours alone, freed once.
        unsafe { (self.libpq.clear)(self.raw) };
    }
}

/// A text of libpq's, lossily; empty for null.
///
/// # Safety
/// `text` must be null or a C string.
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as promised by the caller.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

impl Reply {
    /// # Safety
    /// `raw` must be a result that belongs to nobody else.
    pub(super) unsafe fn new(raw: *mut PgAnswer, libpq: Libpq) -> Reply {
        Reply { raw, libpq }
    }

    pub(super) fn status(&self) -> c_int {
        // SAFETY: a valid result.
        unsafe { (self.libpq.result_status)(self.raw) }
    }

    pub(super) fn error(&self, field: c_int) -> String {
        // SAFETY: a valid result; the text belongs to it.
        unsafe { text((self.libpq.result_error)(self.raw, field)) }
    }

    /// Columns with their types.
    pub fn columns(&self) -> Vec<(String, u32)> {
        // SAFETY: a valid result, columns below their number.
        unsafe {
            let columns = 0..(self.libpq.nfields)(self.raw);
            columns
                .map(|at| (text((self.libpq.fname)(self.raw, at)), (self.libpq.ftype)(self.raw, at)))
                .collect()
        }
    }

    /// Types of the parameters of a described statement.
    pub fn parameters(&self) -> Vec<u32> {
        // SAFETY: a valid result, parameters below their number.
        unsafe {
            (0..(self.libpq.nparams)(self.raw)).map(|at| (self.libpq.paramtype)(self.raw, at)).collect()
        }
    }

    /// A value in text; None for NULL and for what is not there.
    pub fn value(&self, row: usize, column: usize) -> Option<String> {
        let (row, column) = (c_int::try_from(row).ok()?, c_int::try_from(column).ok()?);
        // SAFETY: a valid result; libpq itself looks whether row and column are there. Values are in the encoding
        // of this database.
        unsafe {
            if (self.libpq.getisnull)(self.raw, row, column) != 0 {
                return None;
            }
            Some(text((self.libpq.getvalue)(self.raw, row, column)))
        }
    }
}
