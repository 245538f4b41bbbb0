//! The bytes of a key, taken from where a statement holds it, without calling any function of its type.

use super::local::Local;
use pgrx::pg_sys;

const BTREE_EQUAL: u16 = 3;
const HASH_EQUAL: u16 = 1;
/// Elements of `= ANY (array)` taken; of a longer one each stands for some others.
const MAX_ELEMENTS: usize = 16;
/// Elements among which those are chosen.
const MAX_WALKED: usize = 4096;
/// A linear congruential sequence, see [`next_turn`].
static TURN: Local<u32> = Local::new(0);

/// How a type is passed and stored.
#[derive(Clone, Copy)]
struct Passing {
    by_value: bool,
    length: i16,
}

/// Hands the bytes of a value on: by-value types as their 8-byte datum, others as payload. Compressed and
/// out-of-line values are left out: they would have to be fetched.
///
/// # Safety
/// The datum must be a non-NULL value of a type with this passing convention.
unsafe fn bytes_of(datum: pg_sys::Datum, passing: Passing, mut each: impl FnMut(&[u8], usize)) {
    if passing.by_value {
        return each(&(datum.value() as u64).to_ne_bytes(), 8);
    }
    let pointer = datum.cast_mut_ptr::<u8>().cast_const();
    // SAFETY: as promised by the caller; the length is the value's own.
    unsafe {
        let slice = match passing.length {
            -1 if *pointer == 1 || *pointer & 3 == 2 => return,
            -1 => {
                let header = if *pointer & 1 == 1 { 1 } else { 4 };
                let whole = pgrx::varsize_any(pointer.cast());
                std::slice::from_raw_parts(pointer.add(header), whole.saturating_sub(header))
            }
            -2 => std::ffi::CStr::from_ptr(pointer.cast()).to_bytes(),
            fixed => std::slice::from_raw_parts(pointer, fixed.max(0) as usize),
        };
        each(slice, slice.len());
    }
}

/// Passing convention of the built-in types that keys usually have. Others are known only through the column: to ask the catalog's cache may raise, which must not happen where a statement ends.
fn passing_of(oid: pg_sys::Oid, column: &pg_sys::FormData_pg_attribute) -> Option<Passing> {
    if oid == column.atttypid {
        return Some(Passing { by_value: column.attbyval, length: column.attlen });
    }
    built_in(oid)
}

fn built_in(oid: pg_sys::Oid) -> Option<Passing> {
    let (by_value, length) = match oid {
        pg_sys::BOOLOID | pg_sys::CHAROID => (true, 1),
        pg_sys::INT2OID => (true, 2),
        pg_sys::INT4OID | pg_sys::OIDOID | pg_sys::DATEOID | pg_sys::FLOAT4OID => (true, 4),
        pg_sys::INT8OID
        | pg_sys::TIMESTAMPOID
        | pg_sys::TIMESTAMPTZOID
        | pg_sys::TIMEOID
        | pg_sys::FLOAT8OID => (true, 8),
        pg_sys::TEXTOID
        | pg_sys::VARCHAROID
        | pg_sys::BPCHAROID
        | pg_sys::NUMERICOID
        | pg_sys::BYTEAOID
        | pg_sys::INETOID
        | pg_sys::CIDROID => (false, -1),
        pg_sys::NAMEOID => (false, 64),
        pg_sys::UUIDOID => (false, 16),
        pg_sys::MACADDROID => (false, 6),
        _ => return None,
    };
    Some(Passing { by_value, length })
}

fn is_integer(oid: pg_sys::Oid) -> bool {
    oid == pg_sys::INT2OID || oid == pg_sys::INT4OID || oid == pg_sys::INT8OID
}

/// Whether the parameters of a statement may be gone when it ends: a SELECT of a function in SQL that returns a set gets its
/// arguments as they are, perhaps pointers into the row of the statement around it, and if nobody wants all of its rows it is
/// ended with that statement's memory, when its rows are gone.
///
/// # Safety
/// `query` must not have been ended yet.
pub unsafe fn may_lose_parameters(query: *const pg_sys::QueryDesc) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let to_function = pg_sys::CommandDest::DestSQLFunction;
        (*query).operation == pg_sys::CmdType::CMD_SELECT
            && (*query).dest.as_ref().is_some_and(|dest| dest.mydest == to_function)
    }
}

/// The runtime keys of an index scan, which are computed while it runs.
pub struct RuntimeKeys {
    /// The keys.
    pub keys: *const pg_sys::IndexRuntimeKeyInfo,
    /// How many.
    pub count: i32,
    /// Elements of arrays are stepped through, of whichever row they are.
    pub steps: bool,
    /// See [`may_lose_parameters`].
    pub loses_parameters: bool,
}

/// Whether a scan key's value can still be read when the statement has run. A by-reference value that an outer
/// row of a nested loop gave is a pointer into that row, which is gone by then; constants stay, and so do
/// most statements' parameters and what was computed from them.
///
/// # Safety
/// `key` must be one of an initialised scan's keys of `index`, `runtime` its runtime keys.
pub unsafe fn lasts(index: pg_sys::Relation, key: *const pg_sys::ScanKeyData, runtime: &RuntimeKeys) -> bool {
    // SAFETY: as promised by the caller; an expression state keeps the expression it was made of.
    unsafe {
        let found = (0..runtime.count.max(0) as usize)
            .map(|i| &*runtime.keys.add(i))
            .find(|info| std::ptr::eq(info.scan_key.cast_const(), key));
        let stays = match found {
            None => !runtime.steps,
            Some(info) => {
                let expression = (*info.key_expr).expr.cast();
                !runtime.loses_parameters
                    && !super::compat::asks_other_nodes(expression, std::ptr::null_mut())
            }
        };
        if stays {
            return true;
        }
        let column = ((*key).sk_attno - 1).max(0) as usize;
        let input = *(*index).rd_opcintype.add(column);
        let same = (*key).sk_subtype == pg_sys::InvalidOid
            || (*key).sk_subtype == input
            || (is_integer((*key).sk_subtype) && is_integer(input));
        let array = (*key).sk_flags & pg_sys::SK_SEARCHARRAY as i32 != 0;
        same && !array && (*super::compat::attribute((*index).rd_att, column)).attbyval
    }
}

/// The key(s) of `column = value` or `column = ANY (array)` in an index scan: first bytes, whole length, and how many keys it
/// stands for. `turn`: see [`next_turn`], the same for a whole statement.
///
/// # Safety
/// `key` must be an evaluated scan key of `index`.
pub unsafe fn from_scan_key(
    index: pg_sys::Relation,
    key: &pg_sys::ScanKeyData,
    turn: usize,
    mut each: impl FnMut(&[u8], usize, u32),
) {
    const NOT_PLAIN: i32 = (pg_sys::SK_ISNULL
        | pg_sys::SK_UNARY
        | pg_sys::SK_ROW_HEADER
        | pg_sys::SK_ROW_MEMBER
        | pg_sys::SK_SEARCHNULL
        | pg_sys::SK_SEARCHNOTNULL
        | pg_sys::SK_ORDER_BY) as i32;
    // SAFETY: as promised by the caller; the index's arrays have an element for each of its key columns.
    unsafe {
        let method = (*(*index).rd_rel).relam;
        let equal = if method == pg_sys::BTREE_AM_OID {
            key.sk_strategy == BTREE_EQUAL
        } else {
            method == pg_sys::HASH_AM_OID && key.sk_strategy == HASH_EQUAL
        };
        if !equal || key.sk_flags & NOT_PLAIN != 0 {
            return;
        }
        let column = (key.sk_attno - 1).max(0) as usize;
        let input = *(*index).rd_opcintype.add(column);
        let same = key.sk_subtype == pg_sys::InvalidOid
            || key.sk_subtype == input
            || (is_integer(key.sk_subtype) && is_integer(input));
        if !same {
            return;
        }
        let attribute = &*super::compat::attribute((*index).rd_att, column);
        let passing = Passing { by_value: attribute.attbyval, length: attribute.attlen };
        if key.sk_flags & pg_sys::SK_SEARCHARRAY as i32 != 0 {
            from_array(key.sk_argument, passing, turn, each);
        } else {
            bytes_of(key.sk_argument, passing, |bytes, whole| each(bytes, whole, 1));
        }
    }
}

/// How elements of a built-in type lie in an array: their width in bytes, 0: varlenas. None: unknown, or with gaps between them.
fn width_of(element: pg_sys::Oid) -> Option<usize> {
    match built_in(element)?.length {
        -1 => Some(0),
        width @ (2 | 4 | 8 | 16 | 64) => Some(width as usize),
        _ => None,
    }
}

/// Elements of a one-dimensional array without NULLs, of [`width_of`]'s types; other arrays are left out. Of many elements one in
/// so many, beginning at another one every `turn`: whoever sorts what he asks for must not always hide the same keys.
///
/// # Safety
/// The datum must be an array of elements with this passing convention (integers of any width).
unsafe fn from_array(
    datum: pg_sys::Datum,
    passing: Passing,
    turn: usize,
    mut each: impl FnMut(&[u8], usize, u32),
) {
    let array = datum.cast_mut_ptr::<pg_sys::ArrayType>().cast_const();
    // SAFETY: a plain (4-byte header) array value: header, dimensions, lower bounds, then the elements.
    unsafe {
        if *array.cast::<u8>() & 3 != 0 || (*array).ndim != 1 || (*array).dataoffset != 0 {
            return;
        }
        let dimensions = array.cast::<u8>().add(size_of::<pg_sys::ArrayType>()).cast::<i32>();
        let count = ((*dimensions).max(0) as usize).min(MAX_WALKED);
        let header = (size_of::<pg_sys::ArrayType>() + 8).next_multiple_of(8);
        let Some(width) = width_of((*array).elemtype) else { return };
        let stride = count.div_ceil(MAX_ELEMENTS).max(1);
        let first = turn % stride;
        let mut chosen = |i: usize| i % stride == first;
        let mut take = |bytes: &[u8], whole: usize| each(bytes, whole, stride as u32);
        if width == 0 {
            let whole = pgrx::varsize_any(array.cast());
            let all = std::slice::from_raw_parts(array.cast::<u8>(), whole);
            return varlenas(all, header, count, &mut chosen, |place| {
                let element = pg_sys::Datum::from(all.as_ptr().add(place));
                bytes_of(element, Passing { by_value: false, length: -1 }, &mut take);
            });
        }
        for i in (0..count).filter(|i| chosen(*i)) {
            let element = array.cast::<u8>().add(header + i * width);
            if !passing.by_value {
                take(std::slice::from_raw_parts(element, width), width);
                continue;
            }
            let value = match width {
                2 => i64::from(element.cast::<i16>().read_unaligned()),
                4 if (*array).elemtype == pg_sys::OIDOID => i64::from(element.cast::<u32>().read_unaligned()),
                4 => i64::from(element.cast::<i32>().read_unaligned()),
                _ => element.cast::<i64>().read_unaligned(),
            };
            take(&(value as u64).to_ne_bytes(), 8);
        }
    }
}

/// Another number for every statement, without a pattern that statements could have as well.
pub fn next_turn() -> usize {
    TURN.set(TURN.get().wrapping_mul(747_796_405).wrapping_add(2_891_336_453));
    (TURN.get() >> 16) as usize
}

/// Where the chosen ones of `count` varlenas begin, of those that lie in an array from `at` on, aligned to 4 bytes unless short.
fn varlenas(
    array: &[u8],
    mut at: usize,
    count: usize,
    chosen: &mut impl FnMut(usize) -> bool,
    mut each: impl FnMut(usize),
) {
    for i in 0..count {
        // A byte that is no header fills up.
        if array.get(at) == Some(&0) {
            at = at.next_multiple_of(4);
        }
        let Some(header) = array.get(at..) else { return };
        let size = match header {
            [first, ..] if first & 1 == 1 && *first != 1 => usize::from(first >> 1),
            [a, b, c, d, ..] if a & 3 == 0 => (u32::from_le_bytes([*a, *b, *c, *d]) >> 2) as usize,
            // Compressed or elsewhere: not in an array.
            _ => return,
        };
        if size == 0 || size > header.len() {
            return;
        }
        if chosen(i) {
            each(at);
        }
        at += size;
    }
}

/// The key an expression stands for, when it is a constant or a parameter of the statement.
///
/// # Safety
/// `expression` must be an expression tree; `parameters` null or those of the running statement; `column` the attribute
/// that the expression is a value for.
pub unsafe fn from_expression(
    expression: *mut pg_sys::Expr,
    parameters: pg_sys::ParamListInfo,
    column: *const pg_sys::FormData_pg_attribute,
    each: impl FnMut(&[u8], usize),
) {
    // SAFETY: each node is read as the struct its tag names; parameter numbers are checked.
    unsafe {
        let mut node = expression.cast::<pg_sys::Node>();
        while !node.is_null() && (*node).type_ == pg_sys::NodeTag::T_RelabelType {
            node = (*node.cast::<pg_sys::RelabelType>()).arg.cast();
        }
        if node.is_null() {
            return;
        }
        match (*node).type_ {
            pg_sys::NodeTag::T_Const => {
                let constant = &*node.cast::<pg_sys::Const>();
                if !constant.constisnull {
                    let passing = Passing { by_value: constant.constbyval, length: constant.constlen as i16 };
                    bytes_of(constant.constvalue, passing, each);
                }
            }
            pg_sys::NodeTag::T_Param => {
                let param = &*node.cast::<pg_sys::Param>();
                let known = !parameters.is_null()
                    && param.paramkind == pg_sys::ParamKind::PARAM_EXTERN
                    && (*parameters).paramFetch.is_none()
                    && param.paramid >= 1
                    && param.paramid <= (*parameters).numParams;
                if known {
                    let value = &*(*parameters).params.as_ptr().add(param.paramid as usize - 1);
                    if !value.isnull
                        && value.ptype == param.paramtype
                        && let Some(passing) = passing_of(param.paramtype, &*column)
                    {
                        bytes_of(value.value, passing, each);
                    }
                }
            }
            _ => {}
        }
    }
}
