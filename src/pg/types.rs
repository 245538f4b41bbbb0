//! SQL types pgrx has no plain value for.

use super::report::{PgResult, bad_argument, cstring};
use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::datum::Datum;
use pgrx::nullable::Nullable;
use pgrx::pgrx_sql_entity_graph::metadata::{
    ArgumentError, ReturnsError, ReturnsRef, SqlMappingRef, SqlTranslatable, TypeOrigin,
};
use pgrx::{FromDatum, IntoDatum, pg_sys};

/// A `regclass` that takes no lock by itself (pgrx's `PgRelation` opens the relation).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regclass(pub pg_sys::Oid);

impl FromDatum for Regclass {
    // SAFETY: a regclass datum is an oid; the caller promises the datum's type.
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, oid: pg_sys::Oid) -> Option<Self> {
        // SAFETY: as above.
        unsafe { pg_sys::Oid::from_polymorphic_datum(datum, is_null, oid) }.map(Regclass)
    }
}

impl IntoDatum for Regclass {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        self.0.into_datum()
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::REGCLASSOID
    }
}

// SAFETY: the SQL type is regclass in both directions, by value, four bytes.
unsafe impl SqlTranslatable for Regclass {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(Regclass);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("regclass"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> =
        Ok(ReturnsRef::One(SqlMappingRef::literal("regclass")));
}

// SAFETY: unboxed as the oid it is; NULL only reaches the nullable form because pgrx marks the
// function STRICT when no argument is an Option.
unsafe impl<'fcx> ArgAbi<'fcx> for Regclass {
    // SAFETY: see the impl.
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: see the impl.
        unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or(Regclass(pg_sys::InvalidOid))
    }
    // SAFETY: see the impl.
    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: see the impl.
        unsafe { arg.unbox_arg_using_from_datum() }.into()
    }
}

// SAFETY: returned as the by-value oid it is.
unsafe impl BoxRet for Regclass {
    // SAFETY: see the impl.
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        // SAFETY: an oid is passed by value, so the datum needs no lifetime.
        match self.0.into_datum() {
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}

/// The text of a `jsonb`, read by PostgreSQL itself: no digit of a number is lost. What is no JSON raises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonText(pub String);

impl JsonText {
    /// What it says; 22023 if that cannot be read (numbers and nesting have limits here that `jsonb` has not).
    pub fn parse<T: serde::de::DeserializeOwned>(&self) -> PgResult<T> {
        serde_json::from_str(&self.0).map_err(|error| {
            bad_argument("this jsonb value cannot be used here").set_detail(format!("{error}."))
        })
    }
}

impl FromDatum for JsonText {
    // SAFETY: the caller promises that the datum is a jsonb, which jsonb_out writes as a C string.
    unsafe fn from_polymorphic_datum(datum: pg_sys::Datum, is_null: bool, _: pg_sys::Oid) -> Option<Self> {
        if is_null {
            return None;
        }
        // SAFETY: as above; the text is copied.
        unsafe {
            let text = pgrx::direct_function_call_as_datum(pg_sys::jsonb_out, &[Some(datum)])?;
            Some(JsonText(std::ffi::CStr::from_ptr(text.cast_mut_ptr()).to_string_lossy().into_owned()))
        }
    }
}

// SAFETY: unboxed by way of the text; NULL only reaches the nullable form because pgrx marks the function STRICT
// when no argument is an Option.
unsafe impl<'fcx> ArgAbi<'fcx> for JsonText {
    // SAFETY: see the impl.
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: see the impl.
        unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or_else(|| JsonText("null".to_string()))
    }
    // SAFETY: see the impl.
    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: see the impl.
        unsafe { arg.unbox_arg_using_from_datum() }.into()
    }
}

impl IntoDatum for JsonText {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        let text = cstring(&self.0);
        // SAFETY: jsonb_in takes a C string and gives a jsonb in the current context.
        unsafe { pgrx::direct_function_call_as_datum(pg_sys::jsonb_in, &[Some(text.as_ptr().into())]) }
    }
    fn type_oid() -> pg_sys::Oid {
        pg_sys::JSONBOID
    }
}

// SAFETY: the SQL type of the datum above is jsonb.
unsafe impl SqlTranslatable for JsonText {
    const TYPE_IDENT: &'static str = pgrx::pgrx_resolved_type!(JsonText);
    const TYPE_ORIGIN: TypeOrigin = TypeOrigin::External;
    const ARGUMENT_SQL: Result<SqlMappingRef, ArgumentError> = Ok(SqlMappingRef::literal("jsonb"));
    const RETURN_SQL: Result<ReturnsRef, ReturnsError> = Ok(ReturnsRef::One(SqlMappingRef::literal("jsonb")));
}

// SAFETY: returned as a jsonb in the current context.
unsafe impl BoxRet for JsonText {
    // SAFETY: see the impl.
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> Datum<'fcx> {
        match self.into_datum() {
            // SAFETY: the jsonb lives in the context that the caller wants its result in.
            Some(datum) => unsafe { fcinfo.return_raw_datum(datum) },
            None => fcinfo.return_null(),
        }
    }
}
