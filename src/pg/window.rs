//! The hours in which moves may begin: the setting `foreshard.move_window` and the clock on the wall it means.

use super::report::cstring;
use super::{check_hook, guc};
use foreshard_core::window::Window;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::{c_char, c_void};

/// The check hook of the setting.
///
/// # Safety
/// Called by PostgreSQL with a pointer to the new value.
#[pg_guard]
pub unsafe extern "C-unwind" fn check(
    newval: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        check_hook::accepts(newval, |text| match Window::parse(text) {
            Err(bad) => Err(format!("{bad}.")),
            Ok(window) => match window.zone() {
                Some(zone) if find_zone(zone).is_null() => {
                    Err(format!("Time zone \"{zone}\" is not recognized."))
                }
                _ => Ok(()),
            },
        })
    }
}

/// The time zone of a name; null: there is none.
fn find_zone(name: &str) -> *mut pg_sys::pg_tz {
    let name = cstring(name);
    // SAFETY: a NUL-terminated name; zones are kept for the life of the process.
    unsafe { pg_sys::pg_tzset(name.as_ptr()) }
}

/// The window that is set; None: moves may begin at any time.
pub fn current() -> Option<Window> {
    let text = guc::MOVE_WINDOW.get()?;
    // The check hook has seen it.
    Window::parse(&text.to_string_lossy()).ok().filter(|window| !window.is_always())
}

/// The minute of the day at a moment (unix seconds), by the clock of the window's time zone.
pub fn minute_at(window: &Window, at_s: i64) -> u32 {
    let zone = window.zone().map(find_zone).filter(|zone| !zone.is_null());
    // SAFETY: the zone is one of the server's own, which are never freed; `log_timezone` is set when the server
    // starts. The result lies in a static buffer that is read at once; null: beyond the calendar.
    unsafe {
        let zone = zone.unwrap_or(pg_sys::log_timezone);
        let local = pg_sys::pg_localtime(&raw const at_s, zone);
        if local.is_null() { 0 } else { ((*local).tm_hour * 60 + (*local).tm_min).max(0) as u32 }
    }
}
