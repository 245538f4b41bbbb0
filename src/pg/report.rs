//! Errors: SQLSTATE, message, DETAIL and HINT in PostgreSQL style.

use pgrx::pg_sys::panic::ErrorReport;
pub use pgrx::prelude::PgSqlErrorCode;

/// What every fallible function of the extension returns; pgrx raises the report at the SQL edge.
pub type PgResult<T> = Result<T, ErrorReport>;

/// An error with SQLSTATE and primary message.
pub fn error(code: PgSqlErrorCode, message: impl Into<String>) -> ErrorReport {
    ErrorReport::new(code, message.into(), "foreshard")
}

/// 22023: an argument that can never work.
pub fn bad_argument(message: impl Into<String>) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

/// 55000: the object or server is in the wrong state.
pub fn wrong_state(message: impl Into<String>) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
}

/// 42704: no such object.
pub fn unknown(message: impl Into<String>) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, message)
}

/// 0A000: something foreshard does not do.
pub fn unsupported(message: impl Into<String>) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, message)
}

/// 0A000 with every reason why `what` (a whole sentence) is so; nothing without a reason.
pub fn refuse(what: impl Into<String>, reasons: &[String], hint: &str) -> PgResult<()> {
    if reasons.is_empty() {
        return Ok(());
    }
    Err(unsupported(what).set_detail(reasons.join("\n")).set_hint(hint))
}

/// 55006: somebody else works on it.
pub fn busy(message: impl Into<String>) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_OBJECT_IN_USE, message)
}

/// XX000: our bug, or a catalog that somebody edited by hand.
pub fn internal(message: impl std::fmt::Display) -> ErrorReport {
    error(PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, format!("foreshard: {message}"))
}

/// Emits a NOTICE.
pub fn notice(message: &str) {
    pgrx::notice!("{message}");
}

/// Emits a WARNING.
pub fn warning(message: &str) {
    pgrx::warning!("{message}");
}

/// The text a NUL-terminated C string holds, lossily.
pub fn cstring(text: &str) -> std::ffi::CString {
    let clean: Vec<u8> = text.bytes().filter(|b| *b != 0).collect();
    std::ffi::CString::new(clean).unwrap_or_default()
}
