//! Check hooks of settings that are texts: what cannot be read is refused when it is set.

use super::report::cstring;
use foreshard_core::canary::parse_steps;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char, c_void};

/// Whether `judge` accepts a new value; else PostgreSQL tells what it says.
///
/// # Safety
/// `newval` is what a check hook was given.
pub(super) unsafe fn accepts(
    newval: *mut *mut c_char,
    judge: impl FnOnce(&str) -> Result<(), String>,
) -> bool {
    // SAFETY: PostgreSQL passes a valid pointer; the value is null or a NUL-terminated string.
    let text = unsafe {
        let value = *newval;
        if value.is_null() { String::new() } else { CStr::from_ptr(value).to_string_lossy().into_owned() }
    };
    let Err(why) = judge(&text) else { return true };
    let why = cstring(&why);
    // SAFETY: what GUC_check_errdetail() does; the text is copied.
    unsafe {
        pg_sys::GUC_check_errdetail_string = pg_sys::format_elog_string(c"%s".as_ptr(), why.as_ptr());
    }
    false
}

/// That of `foreshard.canary_steps`: a list that cannot be read would end every change after its copy.
///
/// # Safety
/// Called by PostgreSQL with a pointer to the new value.
#[pg_guard]
pub unsafe extern "C-unwind" fn canary_steps(
    newval: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as promised by the caller.
    unsafe { accepts(newval, |text| parse_steps(text).map(drop).map_err(|bad| format!("{bad}."))) }
}
