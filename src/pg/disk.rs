//! Free space of a tablespace's file system.

use super::report::cstring;
use pgrx::pg_sys;

/// Space of a file system, bytes.
struct Space {
    /// Free for an unprivileged process.
    free_bytes: u64,
    /// All of it.
    total_bytes: u64,
}

/// Space where a tablespace of this database lives; None when that cannot be found out.
fn space_of_tablespace(name: &str) -> Option<Space> {
    let name = cstring(name);
    // SAFETY: look-ups by name; GetDatabasePath returns a palloc'd path relative to the data directory,
    // the server's working directory, or for a database not yet there the tablespace's own link.
    unsafe {
        let oid = pg_sys::get_tablespace_oid(name.as_ptr(), true);
        if oid == pg_sys::InvalidOid {
            return None;
        }
        let path = pg_sys::GetDatabasePath(pg_sys::MyDatabaseId, oid);
        let mut text = std::ffi::CStr::from_ptr(path).to_string_lossy().into_owned();
        if !std::path::Path::new(&text).exists() {
            text = match oid.to_u32() {
                1663 => "base".to_string(),
                other => format!("pg_tblspc/{other}/"),
            };
        }
        let text = cstring(&text);
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::statvfs(text.as_ptr(), &mut stat) != 0 {
            return None;
        }
        let unit = stat.f_frsize;
        Some(Space { free_bytes: stat.f_bavail * unit, total_bytes: stat.f_blocks * unit })
    }
}

/// Why so many more bytes do not go into a tablespace of which a share (%) is to stay free; None: they do, or
/// nobody knows.
pub fn shortage(tablespace: &str, bytes: i64, free_share: i32) -> Option<String> {
    let space = space_of_tablespace(tablespace)?;
    let reserve = space.total_bytes / 100 * free_share.max(0) as u64;
    let needed = bytes.max(0) as u64 + reserve;
    (space.free_bytes < needed).then(|| {
        format!(
            "disk_space: tablespace \"{tablespace}\" has {} MB free, the copy needs {} MB ({free_share} % kept free included)",
            space.free_bytes >> 20,
            needed >> 20
        )
    })
}
