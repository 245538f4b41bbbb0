//! What a query is before it runs: one SELECT with one parameter, and what it gives.

use super::plan::pointers;
use super::report::{PgResult, PgSqlErrorCode, bad_argument, cstring, error};
use pgrx::pg_sys;
use std::ffi::CStr;

/// What was found out about a query.
#[derive(Clone, Debug)]
pub struct Examined {
    /// Type of its parameter.
    pub parameter: pg_sys::Oid,
    /// Names and types of its columns.
    pub columns: Vec<(String, pg_sys::Oid)>,
}

fn not_one(why: &str) -> pgrx::pg_sys::panic::ErrorReport {
    bad_argument("the query of a data source must be a single SELECT")
        .set_detail(why.to_owned())
        .set_hint("For example: SELECT customer_id, order_id FROM shop.orders WHERE customer_id = ANY ($1)")
}

/// The parse tree of a query that is a single SELECT.
///
/// # Errors
/// 42601 for what is no SQL, 22023 for other statements.
fn parsed(sql: &str) -> PgResult<*mut pg_sys::RawStmt> {
    // SAFETY: parsing needs nothing but the text; the tree lives in the current context.
    unsafe {
        let list = pg_sys::pg_parse_query(cstring(sql).as_ptr());
        let mut statements = pointers::<pg_sys::RawStmt>(list);
        let (Some(statement), None) = (statements.next(), statements.next()) else {
            return Err(not_one("There are several statements, or none."));
        };
        if (*(*statement).stmt).type_ != pg_sys::NodeTag::T_SelectStmt {
            return Err(not_one("It is another statement."));
        }
        if has_into((*statement).stmt.cast()) {
            return Err(not_one("It is SELECT … INTO."));
        }
        Ok(statement)
    }
}

/// # Safety
/// `select` must be a SelectStmt.
unsafe fn has_into(select: *const pg_sys::SelectStmt) -> bool {
    // SAFETY: as promised by the caller; set operations hold two of them.
    unsafe {
        !select.is_null()
            && (!(*select).intoClause.is_null() || has_into((*select).larg) || has_into((*select).rarg))
    }
}

/// 22023 unless the text is a single SELECT.
pub fn require_select(sql: &str) -> PgResult<()> {
    parsed(sql).map(|_| ())
}

/// Looks a query over as the current user would run it.
///
/// # Errors
/// What PostgreSQL says when it cannot be prepared; 22023 when it is no reading SELECT with the one parameter $1.
pub fn examine(sql: &str) -> PgResult<Examined> {
    let statement = parsed(sql)?;
    let text = cstring(sql);
    let mut types: *mut pg_sys::Oid = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: the tree is a fresh one; types and count describe an array that grows with the parameters; the query
    // and its target list live in the current context.
    unsafe {
        let query = pg_sys::parse_analyze_varparams(
            statement,
            text.as_ptr(),
            &mut types,
            &mut count,
            std::ptr::null_mut(),
        );
        if (*query).commandType != pg_sys::CmdType::CMD_SELECT || (*query).hasModifyingCTE {
            return Err(not_one("It writes."));
        }
        if !(*query).rowMarks.is_null() {
            return Err(not_one("It locks rows."));
        }
        if count != 1 {
            return Err(bad_argument("the query of a data source must have exactly the parameter $1")
                .set_detail("It is the array of the keys that are asked for."));
        }
        let mut columns = Vec::new();
        for entry in pointers::<pg_sys::TargetEntry>((*query).targetList) {
            if !(*entry).resjunk {
                let name = match (*entry).resname.is_null() {
                    true => String::from("?column?"),
                    false => CStr::from_ptr((*entry).resname).to_string_lossy().into_owned(),
                };
                columns.push((name, pg_sys::exprType((*entry).expr.cast())));
            }
        }
        Ok(Examined { parameter: *types, columns })
    }
}

/// The type of an array's elements.
///
/// # Errors
/// 42804 for what is no array.
pub fn element_of(array: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    // SAFETY: a catalog look-up by oid; 0 for what is no array.
    let element = unsafe { pg_sys::get_element_type(array) };
    if element != pg_sys::InvalidOid {
        return Ok(element);
    }
    Err(error(
        PgSqlErrorCode::ERRCODE_DATATYPE_MISMATCH,
        "the parameter $1 of a data source must be an array",
    )
    .set_hint("Use it as in: WHERE customer_id = ANY ($1)"))
}

/// Whether keys of one type may be given as those of another, in text: the same type, two integers, two texts.
pub fn are_alike(a: pg_sys::Oid, b: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups by oid.
    let (a, b) = unsafe { (pg_sys::getBaseType(a), pg_sys::getBaseType(b)) };
    let kin: [&[pg_sys::Oid]; 2] = [
        &[pg_sys::INT2OID, pg_sys::INT4OID, pg_sys::INT8OID],
        &[pg_sys::TEXTOID, pg_sys::VARCHAROID, pg_sys::NAMEOID],
    ];
    a == b || kin.iter().any(|types| types.contains(&a) && types.contains(&b))
}

/// The type of arrays of keys in which equal ones are found; None where keys are equal just when their texts are.
///
/// # Errors
/// 42804 for what is no array.
pub fn comparable(key_array: pg_sys::Oid) -> PgResult<Option<pg_sys::Oid>> {
    const BY_TEXT: [pg_sys::Oid; 11] = [
        pg_sys::INT2OID,
        pg_sys::INT4OID,
        pg_sys::INT8OID,
        pg_sys::OIDOID,
        pg_sys::TEXTOID,
        pg_sys::VARCHAROID,
        pg_sys::NAMEOID,
        pg_sys::UUIDOID,
        pg_sys::BOOLOID,
        pg_sys::DATEOID,
        pg_sys::BYTEAOID,
    ];
    let element = element_of(key_array)?;
    // SAFETY: catalog look-ups by oid; an entry of the type cache lives as long as the session.
    unsafe {
        let plain = pg_sys::getBaseType(element);
        if BY_TEXT.contains(&plain) {
            return Ok(None);
        }
        let entry = pg_sys::lookup_type_cache(plain, pg_sys::TYPECACHE_EQ_OPR as i32);
        let array = pg_sys::get_array_type(plain);
        let known = (*entry).eq_opr != pg_sys::InvalidOid && array != pg_sys::InvalidOid;
        Ok(known.then_some(array))
    }
}

/// The value of a type that a text stands for.
///
/// # Errors
/// Raises what the type says about a text that is none of its values.
pub fn value(type_: pg_sys::Oid, text: &str) -> pg_sys::Datum {
    let (mut input, mut own) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
    // SAFETY: the input function of the type gives a value of it, which lives in the current context.
    unsafe {
        pg_sys::getTypeInputInfo(type_, &mut input, &mut own);
        pg_sys::OidInputFunctionCall(input, cstring(text).as_ptr().cast_mut(), own, -1)
    }
}

/// The same as a parameter of a statement.
pub fn parameter(type_: pg_sys::Oid, text: &str) -> super::spi::Arg<'static> {
    let value = value(type_, text);
    // SAFETY: it is a value of this type.
    unsafe { pgrx::datum::DatumWithOid::new(value, type_) }
}

/// An array of any type as texts, in the forms that are set; NULLs are left out.
pub fn texts(array: &pgrx::AnyArray) -> PgResult<Vec<String>> {
    // SAFETY: the datum is of this type.
    let argument = unsafe { pgrx::datum::DatumWithOid::new(array.datum(), array.oid()) };
    let texts = super::spi::one::<Vec<Option<String>>>("SELECT $1::pg_catalog.text[]", &[argument])?;
    Ok(texts.unwrap_or_default().into_iter().flatten().collect())
}
