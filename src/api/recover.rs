//! A slot whose node is lost.

use super::reshard::{require_read_committed, require_slot_owner};
use crate::mover::recover::recover;
use crate::pg::report::{PgResult, bad_argument};
use crate::pg::{security, shmem};
use pgrx::prelude::*;

/// Puts the old copy that is kept of a slot in its place, when the node that holds it is lost: asks the node nothing. What was committed
/// there since the copy was last brought up to date is not in it, so that has to be accepted; what is on the node stays there, behind a
/// foreign table beside the partition. Returns the id of the move that ends by it.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, pg_temp)]
fn recover_slot(slot_id: Option<i64>, accept_loss: default!(Option<bool>, "false")) -> PgResult<i64> {
    let (Some(slot_id), Some(accept_loss)) = (slot_id, accept_loss) else {
        return Err(bad_argument("slot_id and accept_loss must not be NULL"));
    };
    shmem::require_preloaded()?;
    require_read_committed()?;
    require_slot_owner(slot_id)?;
    let user = security::current_user()?;
    let _owner = security::as_extension_owner()?;
    recover(slot_id, accept_loss, &user)
}
