//! What is on disk: free space of a tablespace's file system, and sizes of tables read without their locks.

use super::lock::ACCESS_SHARE;
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

/// Bytes of a table with its indexes and its toast table, what `pg_total_relation_size()` tells, but without a lock on any of them:
/// whoever looks waits for nobody. What comes or goes meanwhile may be missing. None: there is no such relation.
pub fn total_bytes(relation: pg_sys::Oid) -> Option<i64> {
    let toast = toast_of(relation)?;
    let heaps = std::iter::once(relation).chain((toast != pg_sys::InvalidOid).then_some(toast));
    let all = heaps.flat_map(|heap| std::iter::once(heap).chain(indexes_of(heap)));
    let bytes: u64 = all.filter_map(path_of).map(|path| bytes_of_files(&path)).sum();
    i64::try_from(bytes).ok()
}

/// The toast table of a relation, which may be invalid; None: there is no such relation.
fn toast_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
    // SAFETY: a row of pg_class is read before it is released.
    unsafe {
        let row = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(relation));
        if row.is_null() {
            return None;
        }
        let toast = (*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_class>()).reltoastrelid;
        pg_sys::ReleaseSysCache(row);
        Some(toast)
    }
}

/// The indexes of a relation, which is not opened for it.
fn indexes_of(relation: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    let mut found = Vec::new();
    // SAFETY: a scan of pg_index by its index on indrelid; every row is read before the next one is fetched, and an ERROR ends
    // the scan with the (sub)transaction.
    unsafe {
        let mut key = pg_sys::ScanKeyData::default();
        pg_sys::ScanKeyInit(
            &mut key,
            pg_sys::Anum_pg_index_indrelid as i16,
            pg_sys::BTEqualStrategyNumber as u16,
            pg_sys::Oid::from(pg_sys::F_OIDEQ),
            pg_sys::Datum::from(relation),
        );
        let catalog = pg_sys::table_open(pg_sys::IndexRelationId, ACCESS_SHARE);
        let by = pg_sys::Oid::from(pg_sys::IndexIndrelidIndexId);
        let scan = pg_sys::systable_beginscan(catalog, by, true, std::ptr::null_mut(), 1, &mut key);
        loop {
            let row = pg_sys::systable_getnext(scan);
            if row.is_null() {
                break;
            }
            found.push((*pg_sys::GETSTRUCT(row).cast::<pg_sys::FormData_pg_index>()).indexrelid);
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(catalog, ACCESS_SHARE);
    }
    found
}

/// The first file of a relation, relative to the data directory, the server's working directory; None: it has no files.
fn path_of(relation: pg_sys::Oid) -> Option<String> {
    // SAFETY: a look-up by oid in the system cache, which gives NULL for what has no files; the text is copied.
    unsafe {
        pgrx::direct_function_call::<String>(
            pg_sys::pg_relation_filepath,
            &[Some(pg_sys::Datum::from(relation))],
        )
    }
}

/// Bytes of all forks of a relation.
fn bytes_of_files(path: &str) -> u64 {
    ["", "_fsm", "_vm", "_init"].iter().map(|fork| bytes_of_segments(&format!("{path}{fork}"))).sum()
}

/// Bytes of the segments of a fork: `path`, `path.1` and so on.
fn bytes_of_segments(path: &str) -> u64 {
    let bytes = |path: &str| std::fs::metadata(path).ok().map(|file| file.len());
    let Some(first) = bytes(path) else { return 0 };
    first + (1_u32..).map_while(|number| bytes(&format!("{path}.{number}"))).sum::<u64>()
}
