//! How the current user reaches a foreign server.

use super::libpq::{Libpq, libpq};
use crate::pg::plan::pointers;
use crate::pg::report::{PgResult, PgSqlErrorCode, bad_argument, cstring, error, unsupported};
use crate::pg::{compat, reading};
use foreshard_core::host::to_look_up;
use pgrx::pg_sys;
use std::ffi::{CStr, CString};

/// A foreign server as the current user reaches it. Holds his password, if he has one: nothing of it is ever shown.
pub struct Target {
    /// The server.
    pub server: pg_sys::Oid,
    /// Whose mapping it is.
    pub user: pg_sys::Oid,
    /// The server's name.
    pub name: String,
    /// The name of its first host, if that has to be looked up.
    pub(super) host: Option<String>,
    /// Options for libpq.
    pub(super) options: Vec<(CString, CString)>,
    /// He must be let in by his own password.
    pub(super) password_required: bool,
    pub(super) libpq: Libpq,
}

impl Target {
    /// Reads a server's options and the current user's mapping.
    ///
    /// # Errors
    /// What PostgreSQL says about an unknown server or mapping, 42501 without the right to use it, 2F003 when a
    /// password is required and there is none, 0A000 when it is not one of postgres_fdw's. As SQLSTATE and message.
    pub fn of(server: &str) -> Result<Target, (String, String)> {
        reading::look(None, || read(server)).map_err(|caught| (caught.sqlstate, caught.message))
    }
}

/// The oid of a foreign server, if there is one of this name.
pub fn server_oid(name: &str) -> Option<u32> {
    // SAFETY: a catalog look-up that gives 0 for what does not exist.
    let oid = unsafe { pg_sys::get_foreign_server_oid(cstring(name).as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid.to_u32())
}

fn read(name: &str) -> PgResult<Target> {
    let libpq = libpq()?;
    // SAFETY: catalog look-ups that raise for what does not exist; what they give lives in the current context.
    unsafe {
        let user = pg_sys::GetUserId();
        let server = pg_sys::GetForeignServerByName(cstring(name).as_ptr(), false);
        let wrapper = pg_sys::GetForeignDataWrapper((*server).fdwid);
        if CStr::from_ptr((*wrapper).fdwname) != c"postgres_fdw" {
            return Err(unsupported(format!("server \"{name}\" is not one of postgres_fdw")));
        }
        if !compat::may_use_server((*server).serverid, user) {
            let code = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
            return Err(error(code, format!("permission denied for foreign server {name}")));
        }
        let mapping = pg_sys::GetUserMapping(user, (*server).serverid);
        let mut given = texts((*server).options);
        given.extend(texts((*mapping).options));
        let of = |wanted: &CStr| {
            given.iter().rev().find(|(key, _)| key.as_c_str() == wanted).map(|(_, value)| value)
        };
        let is_superuser = pg_sys::superuser_arg(user);
        let waived = of(c"password_required").is_some_and(|value| value.as_c_str() == c"false");
        let password_required = !is_superuser && !waived;
        if password_required && of(c"password").is_none_or(|password| password.is_empty()) {
            let code = PgSqlErrorCode::ERRCODE_S_R_E_PROHIBITED_SQL_STATEMENT_ATTEMPTED;
            return Err(error(code, "password is required")
                .set_detail("Non-superusers must provide a password in the user mapping."));
        }
        let known = known(&libpq);
        let mut options: Vec<(CString, CString)> =
            given.iter().filter(|(key, _)| known.contains(key)).cloned().collect();
        options.push((c"fallback_application_name".to_owned(), c"foreshard".to_owned()));
        let encoding = CStr::from_ptr(pg_sys::GetDatabaseEncodingName());
        options.push((c"client_encoding".to_owned(), encoding.to_owned()));
        if options.iter().all(|(key, _)| key.as_c_str() != c"dbname") {
            return Err(bad_argument(format!("server \"{name}\" names no database")));
        }
        let server = (*server).serverid;
        let text = |key| of(key).map(|value| value.to_string_lossy()).unwrap_or_default();
        let host = to_look_up(&text(c"host"), &text(c"hostaddr")).map(str::to_owned);
        Ok(Target { server, user, name: name.to_owned(), host, options, password_required, libpq })
    }
}

/// The options of a list of `DefElem`.
///
/// # Safety
/// `list` must be one, or null.
unsafe fn texts(list: *mut pg_sys::List) -> Vec<(CString, CString)> {
    // SAFETY: as promised by the caller; defGetString gives a string for every kind of value.
    unsafe {
        let pair = |option: *mut pg_sys::DefElem| {
            let value = CStr::from_ptr(pg_sys::defGetString(option)).to_owned();
            (CStr::from_ptr((*option).defname).to_owned(), value)
        };
        pointers::<pg_sys::DefElem>(list).map(pair).collect()
    }
}

/// The keywords that a server or a mapping may set, as postgres_fdw has it.
fn known(libpq: &Libpq) -> Vec<CString> {
    let mut keywords = Vec::new();
    // SAFETY: an array that ends with a null keyword, freed after its texts are copied.
    unsafe {
        let all = (libpq.known_options)();
        let mut option = all;
        while !all.is_null() && !(*option).keyword.is_null() {
            let keyword = CStr::from_ptr((*option).keyword);
            let debugging = CStr::from_ptr((*option).dispchar).to_bytes().contains(&b'D');
            if !debugging && keyword != c"client_encoding" && keyword != c"fallback_application_name" {
                keywords.push(keyword.to_owned());
            }
            option = option.add(1);
        }
        if !all.is_null() {
            (libpq.free_options)(all);
        }
    }
    keywords
}
