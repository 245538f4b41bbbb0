//! Special events: what a person knows ahead of the load.

use crate::pg::report::PgResult;
use crate::pg::spi;
use foreshard_core::forecast::Event;
use std::collections::HashMap;

/// Special events of a table that are looked at.
const MAX_EVENTS: i64 = 200;

/// The special events that touch a time, by slot; slots without any are left out.
pub fn by_slot(since_s: f64, until_s: f64) -> PgResult<HashMap<i64, Vec<Event>>> {
    let events = latest(since_s, until_s)?;
    if events.is_empty() {
        return Ok(HashMap::new());
    }
    let of = |group: i32| -> Vec<Event> {
        let own = events.iter().filter(|(only, _)| only.is_none_or(|only| only == group));
        own.map(|(_, event)| event.clone()).collect()
    };
    let slots = groups()?.into_iter().map(|(slot_id, group)| (slot_id, of(group)));
    Ok(slots.filter(|(_, events)| !events.is_empty()).collect())
}

/// A special event: (colocation group, None for all; what of it the forecast needs).
type GroupEvent = (Option<i32>, Event);

/// Special events that touch a time, of every table (and of all tables) the latest.
fn latest(since_s: f64, until_s: f64) -> PgResult<Vec<GroupEvent>> {
    spi::rows(
        "SELECT q.group_id, pg_catalog.hashtextextended(q.kind, 0), \
                greatest(extract(epoch FROM q.starts_at), -9e15)::int8, least(extract(epoch FROM q.ends_at), 9e15)::int8, q.factor \
         FROM (SELECT m.group_id, e.*, pg_catalog.row_number() OVER (PARTITION BY e.table_oid ORDER BY e.ends_at DESC, e.event_id) AS place \
               FROM foreshard.event e LEFT JOIN foreshard.managed_table m USING (table_oid) \
               WHERE e.ends_at > pg_catalog.to_timestamp($1) AND e.starts_at < pg_catalog.to_timestamp($2)) q \
         WHERE q.place <= $3 ORDER BY q.table_oid, q.place",
        &[since_s.into(), until_s.into(), MAX_EVENTS.into()],
        |row| {
            let event = Event {
                kind: row.need::<i64>(2)? as u64,
                start_s: row.need(3)?,
                end_s: row.need(4)?,
                factor: row.get(5)?,
            };
            Ok((row.get(1)?, event))
        },
    )
}

/// The colocation group of every slot.
pub(super) fn groups() -> PgResult<HashMap<i64, i32>> {
    let rows = spi::rows("SELECT slot_id, group_id FROM foreshard.slot", &[], |row| {
        Ok((row.need(1)?, row.need(2)?))
    })?;
    Ok(rows.into_iter().collect())
}
