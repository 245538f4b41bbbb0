//! What somebody asked for: one row, and the same in the history, for all moves that come of it.

use super::record_event;
use crate::pg::report::{PgResult, internal};
use crate::pg::spi;
use pgrx::JsonB;
use serde_json::{Value, json};

/// Files what `user` asked for, of one group of tables; its id.
pub fn file(user: &str, group_id: i32, asked: &Value) -> PgResult<i64> {
    insert(user, None, asked, "group_id", group_id.into())
}

/// Files an assignment of slots to shards; its id. What was recommended has a confidence.
pub fn file_assignment(user: &str, confidence: Option<f64>, asked: &Value) -> PgResult<i64> {
    insert(user, confidence, asked, "confidence", confidence.into())
}

fn insert(user: &str, confidence: Option<f64>, asked: &Value, further: &str, value: Value) -> PgResult<i64> {
    let request_id = spi::one_mut::<i64>(
        "INSERT INTO foreshard.resharding_request (requested_by, confidence, assignment) VALUES ($1::name, $2, $3) RETURNING request_id",
        &[user.into(), confidence.into(), JsonB(asked.clone()).into()],
    )?
    .ok_or_else(|| internal("no request id"))?;
    let mut detail = json!({"request_id": request_id, "requested_by": user, "assignment": asked});
    detail[further] = value;
    record_event("request", None, None, detail)?;
    Ok(request_id)
}
