//! Who acts: privilege checks and switches of the effective user that end with their scope.

use super::report::{PgResult, error, unknown};
use super::{compat, spi};
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;

/// Restores user, security context and GUC nesting on drop. On ERROR the transaction's abort does it.
pub struct UserGuard {
    user: pg_sys::Oid,
    context: i32,
    guc_level: i32,
}

impl UserGuard {
    fn switch(user: pg_sys::Oid, add: u32) -> Self {
        let mut guard = UserGuard { user: pg_sys::InvalidOid, context: 0, guc_level: 0 };
        // SAFETY: reads and sets backend-local state; restored by Drop or by transaction abort.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut guard.user, &mut guard.context);
            pg_sys::SetUserIdAndSecContext(user, guard.context | add as i32);
            // Settings that code of that user changes must not outlive the switch.
            guard.guc_level = pg_sys::NewGUCNestLevel();
        }
        guard
    }
}

impl Drop for UserGuard {
    fn drop(&mut self) {
        // SAFETY: restores what `switch` saved. While an ERROR unwinds, the abort of the transaction
        // resets the settings; doing it here could raise again.
        unsafe {
            if !std::thread::panicking() {
                pg_sys::AtEOXact_GUC(false, self.guc_level);
            }
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
        }
    }
}

/// Restores search_path on drop. On ERROR the transaction's abort does it.
pub struct SearchPathGuard {
    guc_level: i32,
}

/// Pins search_path to `pg_catalog, pg_temp`, for a function that is called too often to have that done at
/// every call by a SET clause of its own.
pub fn pinned_search_path() -> SearchPathGuard {
    // SAFETY: what PostgreSQL does for a function's SET clause.
    unsafe {
        let guard = SearchPathGuard { guc_level: pg_sys::NewGUCNestLevel() };
        let context =
            if pg_sys::superuser() { pg_sys::GucContext::PGC_SUSET } else { pg_sys::GucContext::PGC_USERSET };
        let _ = pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            context,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        guard
    }
}

impl Drop for SearchPathGuard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: ends the nesting level that `pinned_search_path` began.
            unsafe { pg_sys::AtEOXact_GUC(true, self.guc_level) };
        }
    }
}

/// 42501 unless the current user may insert into (at least one column of) a table.
pub fn require_insert(relation: pg_sys::Oid) -> PgResult<()> {
    let insert = pg_sys::ACL_INSERT as pg_sys::AclMode;
    // SAFETY: catalog look-ups by oid; raise for a relation that does not exist.
    let allowed = unsafe {
        let user = pg_sys::GetUserId();
        let ok = pg_sys::AclResult::ACLCHECK_OK;
        pg_sys::pg_class_aclcheck(relation, user, insert) == ok
            || pg_sys::pg_attribute_aclcheck_all(relation, user, insert, pg_sys::AclMaskHow::ACLMASK_ANY)
                == ok
    };
    if allowed {
        return Ok(());
    }
    // SAFETY: as above; gives null for a relation that has just gone.
    let name = unsafe {
        let name = pg_sys::get_rel_name(relation);
        if name.is_null() {
            String::new()
        } else {
            std::ffi::CStr::from_ptr(name).to_string_lossy().into_owned()
        }
    };
    Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("permission denied for table {name}"))
        .set_detail("next_key() needs the privilege to insert into the table."))
}

/// Acts as the owner of the extension, for foreshard's own tables.
pub fn as_extension_owner() -> PgResult<UserGuard> {
    let owner = spi::one::<pg_sys::Oid>(
        "SELECT extowner FROM pg_catalog.pg_extension WHERE extname = 'foreshard'",
        &[],
    )?
    .ok_or_else(|| unknown("extension \"foreshard\" is not installed in this database"))?;
    let guard = UserGuard::switch(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE);
    // A session that replays what another server did fires no triggers: neither would our own foreign keys, which take
    // along what belongs to a row that goes. SAFETY: plain variable of this process, set with the guard's nesting level.
    unsafe {
        if pg_sys::SessionReplicationRole != pg_sys::SESSION_REPLICATION_ROLE_ORIGIN as i32 {
            let _ = pg_sys::set_config_option(
                c"session_replication_role".as_ptr(),
                c"origin".as_ptr(),
                pg_sys::GucContext::PGC_SUSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
        }
    }
    Ok(guard)
}

/// Acts as a table's owner with no way back to a stronger role: for expressions, opclasses and index
/// functions that the owner wrote.
pub fn as_restricted_owner(owner: pg_sys::Oid) -> UserGuard {
    UserGuard::switch(owner, pg_sys::SECURITY_RESTRICTED_OPERATION)
}

/// The owner of a relation.
pub fn relation_owner(relation: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    owner_of(relation).ok_or_else(|| {
        error(
            PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
            format!("relation {} does not exist", relation.to_u32()),
        )
    })
}

/// The owner of a relation by the system cache; None: it does not exist.
pub fn owner_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    let cache = pg_sys::SysCacheIdentifier::RELOID as i32;
    // SAFETY: a look-up by oid; the attribute is read before the tuple is released.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(relation));
        if tuple.is_null() {
            return None;
        }
        let mut is_null = false;
        let attribute = pg_sys::Anum_pg_class_relowner as i16;
        let owner = pg_sys::SysCacheGetAttr(cache, tuple, attribute, &mut is_null);
        pg_sys::ReleaseSysCache(tuple);
        Some(pg_sys::Oid::from(owner.value() as u32))
    }
}

/// 42501 unless the current user owns the table.
pub fn require_owner(relation: pg_sys::Oid, name: &str) -> PgResult<()> {
    // SAFETY: no preconditions.
    if compat::owns_relation(relation, unsafe { pg_sys::GetUserId() }) {
        return Ok(());
    }
    Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}")))
}

/// 42501 unless the current user may read the table.
pub fn require_select(relation: pg_sys::Oid, name: &str) -> PgResult<()> {
    let select = pg_sys::ACL_SELECT as pg_sys::AclMode;
    // SAFETY: a catalog look-up by oid; raises for a relation that does not exist.
    let allowed = unsafe { pg_sys::pg_class_aclcheck(relation, pg_sys::GetUserId(), select) };
    if allowed == pg_sys::AclResult::ACLCHECK_OK {
        return Ok(());
    }
    Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("permission denied for table {name}")))
}

/// Whether the current user is a superuser.
pub fn is_superuser() -> bool {
    // SAFETY: no preconditions inside a transaction.
    unsafe { pg_sys::superuser() }
}

/// Whether a role is a superuser.
pub fn is_superuser_role(role: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up by oid; false for a role that is gone.
    unsafe { pg_sys::superuser_arg(role) }
}

/// The current effective user.
pub fn current_role() -> pg_sys::Oid {
    // SAFETY: no preconditions.
    unsafe { pg_sys::GetUserId() }
}

/// The current effective user's name.
pub fn current_user() -> PgResult<String> {
    Ok(spi::one::<String>("SELECT current_user::text", &[])?.unwrap_or_default())
}
