//! How large the bounds of partitions are in the catalog. A row of pg_class is never stored out of line: a bound that
//! does not fit into a page together with the rest of it, compressed, is an error.

use super::super::report::{PgResult, internal};
use pgrx::pg_sys;

/// The bytes of a page that the bound of a list may take; the rest is for the other columns of pg_class, privileges
/// and settings of the partition among them.
pub const MAX_LIST_BYTES: usize = 7_000;

/// The bytes of a value, as a bound stores them.
///
/// # Safety
/// `value` must be one of type `key_type`.
pub(super) unsafe fn stored(key_type: pg_sys::Oid, value: pg_sys::Datum) -> Vec<u8> {
    // SAFETY: as promised by the caller; a detoasted varlena has the length that its header says.
    unsafe {
        let (mut length, mut by_value) = (0, false);
        pg_sys::get_typlenbyval(key_type, &mut length, &mut by_value);
        if by_value {
            return value.value().to_ne_bytes().to_vec();
        }
        let (start, length) = match usize::try_from(length) {
            Ok(length) => (value.cast_mut_ptr::<u8>().cast_const(), length),
            Err(_) if length == -1 => {
                let value = pg_sys::pg_detoast_datum(value.cast_mut_ptr());
                (value.cast::<u8>().cast_const(), pgrx::varsize(value))
            }
            Err(_) => {
                let text = std::ffi::CStr::from_ptr(value.cast_mut_ptr());
                (text.as_ptr().cast::<u8>(), text.to_bytes().len() + 1)
            }
        };
        std::slice::from_raw_parts(start, length).to_vec()
    }
}

/// The bytes that the bound of a list of these values (as [`super::Router::stored`] tells them) takes in pg_class.
///
/// # Errors
/// XX000 for more than a gigabyte.
pub fn list_bytes<'a>(values: impl Iterator<Item = &'a [u8]>) -> PgResult<usize> {
    // The form in which PostgreSQL writes expressions into its catalog; numbers stand for others of their length.
    let mut bound = String::from(
        "{PARTITIONBOUNDSPEC :strategy l :is_default false :modulus 0 :remainder 0 :listdatums (",
    );
    // Where in the statement each value stood is stored as well.
    for (value, location) in values.zip((10_000..).step_by(13)) {
        bound.push_str(
            "{CONST :consttype 20 :consttypmod -1 :constcollid 100 :constlen 8 :constbyval true :constisnull false :location ",
        );
        bound.push_str(&format!("{location} :constvalue {} [ ", value.len()));
        for byte in value {
            bound.push_str(&format!("{} ", byte.cast_signed()));
        }
        bound.push_str("]}");
    }
    bound.push_str(") :lowerdatums <> :upperdatums <> :location -1}");
    compressed(&bound)
}

/// The bytes that a text takes where the server compresses it in its default way.
fn compressed(text: &str) -> PgResult<usize> {
    let length = i32::try_from(text.len()).map_err(|_| internal("a bound of gigabytes"))?;
    // SAFETY: a text of its own is made, and freed with what was made of it; 0 stands for "did not become smaller".
    unsafe {
        let plain = pg_sys::cstring_to_text_with_len(text.as_ptr().cast(), length);
        let smaller = pg_sys::ffi::pg_guard_ffi_boundary(|| raw::toast_compress_datum(plain.into(), 0));
        let bytes = match smaller.value() {
            0 => text.len(),
            _ => {
                let made = smaller.cast_mut_ptr::<pg_sys::varlena>();
                let bytes = pgrx::varsize(made);
                pg_sys::pfree(made.cast());
                bytes
            }
        };
        pg_sys::pfree(plain.cast());
        Ok(bytes)
    }
}

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declaration is PostgreSQL's own (access/toast_internals.h), the same from 15 to 18.
    unsafe extern "C-unwind" {
        pub fn toast_compress_datum(value: pg_sys::Datum, method: std::ffi::c_char) -> pg_sys::Datum;
    }
}
