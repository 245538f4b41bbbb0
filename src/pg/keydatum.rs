//! The bytes of a key, taken from where a statement holds it, without calling any function of its type.

use pgrx::pg_sys;

const BTREE_EQUAL: u16 = 3;
const HASH_EQUAL: u16 = 1;
/// Elements of `= ANY (array)` looked at.
const MAX_ELEMENTS: usize = 16;

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

/// Passing convention of the built-in types that keys usually have; others are asked of the catalog's
/// cache only through an index column (see below).
fn is_integer(oid: pg_sys::Oid) -> bool {
    oid == pg_sys::INT2OID || oid == pg_sys::INT4OID || oid == pg_sys::INT8OID
}

/// Whether a scan key's value can still be read when the statement has run. A by-reference value that an outer
/// row of a nested loop gave is a pointer into that row, which is gone by then; constants, the statement's
/// parameters and what was computed from them stay.
///
/// # Safety
/// `key` must be one of an initialised scan's keys of `index`, `runtime` its `count` runtime keys.
pub unsafe fn lasts(
    index: pg_sys::Relation,
    key: *const pg_sys::ScanKeyData,
    runtime: *const pg_sys::IndexRuntimeKeyInfo,
    count: i32,
) -> bool {
    // SAFETY: as promised by the caller; an expression state keeps the expression it was made of.
    unsafe {
        let found = (0..count.max(0) as usize)
            .map(|i| &*runtime.add(i))
            .find(|info| std::ptr::eq(info.scan_key.cast_const(), key));
        let Some(info) = found else { return true };
        if !super::compat::asks_other_nodes((*info.key_expr).expr.cast(), std::ptr::null_mut()) {
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

/// The key(s) of `column = value` or `column = ANY (array)` in an index scan.
///
/// # Safety
/// `key` must be an evaluated scan key of `index`.
pub unsafe fn from_scan_key(
    index: pg_sys::Relation,
    key: &pg_sys::ScanKeyData,
    mut each: impl FnMut(&[u8], usize),
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
            from_array(key.sk_argument, passing, each);
        } else {
            bytes_of(key.sk_argument, passing, &mut each);
        }
    }
}

/// Elements of a one-dimensional array without NULLs whose elements are by-value integers or of fixed
/// length; other arrays are left out.
///
/// # Safety
/// The datum must be an array of elements with this passing convention (integers of any width).
unsafe fn from_array(datum: pg_sys::Datum, passing: Passing, mut each: impl FnMut(&[u8], usize)) {
    let array = datum.cast_mut_ptr::<pg_sys::ArrayType>().cast_const();
    // SAFETY: a plain (4-byte header) array value: header, dimensions, lower bounds, then the elements.
    unsafe {
        if *array.cast::<u8>() & 3 != 0 || (*array).ndim != 1 || (*array).dataoffset != 0 {
            return;
        }
        let dimensions = array.cast::<u8>().add(size_of::<pg_sys::ArrayType>()).cast::<i32>();
        let count = (*dimensions).max(0) as usize;
        let data = array.cast::<u8>().add((size_of::<pg_sys::ArrayType>() + 8).next_multiple_of(8));
        let width = match (*array).elemtype {
            pg_sys::INT2OID => 2,
            pg_sys::INT4OID => 4,
            pg_sys::INT8OID => 8,
            pg_sys::UUIDOID => 16,
            _ => return,
        };
        for i in 0..count.min(MAX_ELEMENTS) {
            let element = data.add(i * width);
            if !passing.by_value {
                each(std::slice::from_raw_parts(element, width), width);
                continue;
            }
            let value = match width {
                2 => i64::from(element.cast::<i16>().read_unaligned()),
                4 => i64::from(element.cast::<i32>().read_unaligned()),
                _ => element.cast::<i64>().read_unaligned(),
            };
            each(&(value as u64).to_ne_bytes(), 8);
        }
    }
}

/// The key an expression stands for, when it is a constant or a parameter of the statement.
///
/// # Safety
/// `expression` must be an expression tree; `parameters` null or those of the running statement.
pub unsafe fn from_expression(
    expression: *mut pg_sys::Expr,
    parameters: pg_sys::ParamListInfo,
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
                    if !value.isnull && value.ptype == param.paramtype {
                        let (mut length, mut by_value) = (0, false);
                        pg_sys::get_typlenbyval(param.paramtype, &mut length, &mut by_value);
                        bytes_of(value.value, Passing { by_value, length }, each);
                    }
                }
            }
            _ => {}
        }
    }
}
