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

/// Acts as the owner of the extension, for foreshard's own tables.
pub fn as_extension_owner() -> PgResult<UserGuard> {
    let owner = spi::one::<pg_sys::Oid>(
        "SELECT extowner FROM pg_catalog.pg_extension WHERE extname = 'foreshard'",
        &[],
    )?
    .ok_or_else(|| unknown("extension \"foreshard\" is not installed in this database"))?;
    Ok(UserGuard::switch(owner, pg_sys::SECURITY_LOCAL_USERID_CHANGE))
}

/// Acts as a table's owner with no way back to a stronger role: for expressions, opclasses and index
/// functions that the owner wrote.
pub fn as_restricted_owner(owner: pg_sys::Oid) -> UserGuard {
    UserGuard::switch(owner, pg_sys::SECURITY_RESTRICTED_OPERATION)
}

/// The owner of a relation.
pub fn relation_owner(relation: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>("SELECT relowner FROM pg_catalog.pg_class WHERE oid = $1", &[relation.into()])?
        .ok_or_else(|| {
            error(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation {} does not exist", relation.to_u32()),
            )
        })
}

/// 42501 unless the current user owns the table.
pub fn require_owner(relation: pg_sys::Oid, name: &str) -> PgResult<()> {
    // SAFETY: no preconditions.
    if compat::owns_relation(relation, unsafe { pg_sys::GetUserId() }) {
        return Ok(());
    }
    Err(error(PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, format!("must be owner of table {name}")))
}

/// The current effective user's name.
pub fn current_user() -> PgResult<String> {
    Ok(spi::one::<String>("SELECT current_user::text", &[])?.unwrap_or_default())
}
