//! Keys as text: a sampled key's bytes become a value of the key's type again, which its output
//! function prints.

use super::partition::Router;
use super::report::{PgResult, internal};
use pgrx::pg_sys;

/// What a key sample's bytes are, given the key's type.
struct Shape {
    length: i16,
    by_value: bool,
    /// Text, varchar, name and their like: a beginning of it is worth printing.
    is_text: bool,
}

fn shape_of(type_oid: pg_sys::Oid) -> Shape {
    let mut shape = Shape { length: 0, by_value: false, is_text: false };
    let (mut category, mut preferred) = (0, false);
    // SAFETY: catalog look-ups of an existing type into plain values.
    unsafe {
        pg_sys::get_typlenbyval(type_oid, &mut shape.length, &mut shape.by_value);
        pg_sys::get_type_category_preferred(type_oid, &mut category, &mut preferred);
    }
    shape.is_text = category as u8 == pg_sys::TYPCATEGORY_STRING;
    shape
}

/// The text of a key of type `type_oid`, whose datum was sampled as `bytes`: by-value types as eight
/// bytes of native order, others as their payload without a varlena header.
///
/// Of a `truncated` key only a text's beginning can be told, with an ellipsis; else None. None also for
/// bytes that are no value of the type and for text that is not UTF-8. The flag says whether something is
/// missing: a name's padding is not.
pub fn text(type_oid: pg_sys::Oid, bytes: &[u8], truncated: bool) -> PgResult<(Option<String>, bool)> {
    let shape = shape_of(type_oid);
    if !shape.by_value && shape.is_text && (truncated || shape.length > 0) {
        let ended = bytes.iter().position(|b| *b == 0);
        let cut = truncated && ended.is_none();
        return Ok((beginning(&bytes[..ended.unwrap_or(bytes.len())], cut), cut));
    }
    let text = match value(&shape, bytes, truncated)? {
        Some(value) => print(type_oid, value)?,
        None => None,
    };
    Ok((text, truncated))
}

/// The partition that a sampled key of type `type_oid` belongs to; None for bytes that are no value of it.
pub fn leaf(router: &mut Router, type_oid: pg_sys::Oid, bytes: &[u8]) -> PgResult<Option<pg_sys::Oid>> {
    Ok(place(router, type_oid, bytes)?.map(|(leaf, _)| leaf))
}

/// The same with the hash by which the key is partitioned.
pub fn place(
    router: &mut Router,
    type_oid: pg_sys::Oid,
    bytes: &[u8],
) -> PgResult<Option<(pg_sys::Oid, u64)>> {
    let Some(value) = value(&shape_of(type_oid), bytes, false)? else { return Ok(None) };
    let (_, hash) = router.place(Some((value, type_oid)));
    Ok(router.leaf(Some((value, type_oid)))?.map(|leaf| (leaf, hash)))
}

/// The value of a whole key, in memory of the current context, the partition of the router's own table that it belongs
/// to, and the hash by which it is partitioned; None for bytes that are no value of the type.
pub fn seen(
    router: &mut Router,
    type_oid: pg_sys::Oid,
    bytes: &[u8],
) -> PgResult<Option<(pg_sys::Datum, pg_sys::Oid, u64)>> {
    let Some(value) = value(&shape_of(type_oid), bytes, false)? else { return Ok(None) };
    let value = router.value((value, type_oid));
    let (number, hash) = router.place(Some((value, router.key_type())));
    Ok(number.map(|number| (value, router.partition(number), hash)))
}

/// A value of the type again.
fn value(shape: &Shape, bytes: &[u8], truncated: bool) -> PgResult<Option<pg_sys::Datum>> {
    if shape.by_value {
        let word: Option<[u8; 8]> = bytes.try_into().ok();
        return Ok(word.map(|word| pg_sys::Datum::from(u64::from_ne_bytes(word))));
    }
    // An index holds a name without its padding.
    if let Ok(length) = usize::try_from(shape.length)
        && shape.is_text
        && !truncated
        && bytes.len() < length
    {
        let mut padded = bytes.to_vec();
        padded.resize(length, 0);
        return Ok(Some(copy(&padded, false)?));
    }
    let fits = match shape.length {
        -1 => !truncated,
        length => usize::try_from(length).is_ok_and(|l| l == bytes.len()) && !truncated,
    };
    if fits { Ok(Some(copy(bytes, shape.length == -1)?)) } else { Ok(None) }
}

/// The longest whole characters of a text that was cut.
fn beginning(bytes: &[u8], truncated: bool) -> Option<String> {
    let whole = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // Only its last character may be incomplete.
        Err(error) if truncated && error.error_len().is_none() => {
            std::str::from_utf8(&bytes[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    Some(if truncated { format!("{whole}…") } else { whole.to_string() })
}

/// A by-reference value in memory of the current context.
fn copy(bytes: &[u8], varlena: bool) -> PgResult<pg_sys::Datum> {
    let header = if varlena { pg_sys::VARHDRSZ } else { 0 };
    let size = header + bytes.len();
    i32::try_from(size).map_err(internal)?;
    // SAFETY: the allocation is maximally aligned and has room for header and bytes.
    unsafe {
        let value = pg_sys::palloc0(size.max(1)).cast::<u8>();
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.add(header), bytes.len());
        if varlena {
            pgrx::set_varsize_4b(value.cast(), size as i32);
        }
        Ok(pg_sys::Datum::from(value))
    }
}

/// The text of a value of a type; None: it is not UTF-8.
pub(super) fn print(type_oid: pg_sys::Oid, value: pg_sys::Datum) -> PgResult<Option<String>> {
    let (mut function, mut varlena) = (pg_sys::InvalidOid, false);
    // SAFETY: the value is a complete one of this type; output functions return a C string (they are
    // written in C, so that only superusers can have supplied one).
    unsafe {
        pg_sys::getTypeOutputInfo(type_oid, &mut function, &mut varlena);
        let text = pg_sys::OidOutputFunctionCall(function, value);
        let owned = std::ffi::CStr::from_ptr(text).to_str().ok().map(str::to_string);
        pg_sys::pfree(text.cast());
        Ok(owned)
    }
}
