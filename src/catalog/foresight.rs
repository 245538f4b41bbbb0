//! What the keeper's last plan took the loads to come for, and what it was made from. Of thousands of slots a history is millions of
//! rows, which nobody is to read for a look at the plan.

use crate::pg::report::PgResult;
use crate::pg::spi;
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What loads to come were foreseen from, and for what.
pub struct Stamp {
    /// How far ahead, s.
    pub horizon_s: i32,
    /// Length of the season, s.
    pub season_s: i32,
    /// Length of a lead, s.
    pub lead_s: i32,
    /// End of the last bucket, s since 1970.
    pub end_s: i64,
    /// What the slots were like: `heat::layout`.
    pub layout: String,
    /// What users had told: [`told`].
    pub told: String,
}

/// What is stored.
pub struct Last {
    /// What it was made from.
    pub stamp: Stamp,
    /// How long ago, s.
    pub age_s: f64,
    /// When, microseconds since 1970.
    made_us: i64,
}

/// Loads of a slot to come.
pub struct Loads {
    /// Slot.
    pub slot_id: i64,
    /// Leads of each curve.
    pub leads: usize,
    /// The mean, and behind it every sampled future.
    pub loads: Vec<f64>,
}

impl Loads {
    fn digest(&self) -> i64 {
        let mut hasher = DefaultHasher::new();
        self.leads.hash(&mut hasher);
        self.loads.iter().for_each(|load| load.to_bits().hash(&mut hasher));
        hasher.finish() as i64
    }
}

/// What changes when special events or regressors that touch the time since `since_s` do.
pub fn told(since_s: i64) -> PgResult<String> {
    // Of texts that depend on no setting, which workers and sessions may have different ones of.
    let told = spi::one::<String>(
        "SELECT pg_catalog.concat_ws(' ', e.n, e.sum, r.n, r.sum) FROM \
             (SELECT count(*) AS n, sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', event_id, kind, table_oid::oid, \
                  extract(epoch FROM starts_at), extract(epoch FROM ends_at), pg_catalog.hashfloat8extended(factor, 0)), 0)) AS sum \
              FROM foreshard.event WHERE ends_at > pg_catalog.to_timestamp($1)) e, \
             (SELECT count(*) AS n, sum(pg_catalog.hashtextextended(pg_catalog.concat_ws(' ', name, table_oid::oid, \
                  extract(epoch FROM at), pg_catalog.hashfloat8extended(value, 0)), 0)) AS sum \
              FROM foreshard.regressor WHERE at >= pg_catalog.to_timestamp($1)) r",
        &[(since_s as f64).into()],
    )?;
    Ok(told.unwrap_or_default())
}

/// Stores loads to come in the place of all others. Those of slots that are foreseen as before stay as they are: most plans are
/// made within the bucket that the last one knew already.
pub fn store(stamp: &Stamp, all: &[Loads]) -> PgResult<()> {
    let stored = spi::rows("SELECT slot_id, digest FROM foreshard.load_curve", &[], |row| {
        Ok((row.need::<i64>(1)?, row.need::<i64>(2)?))
    })?;
    let stored: HashMap<i64, i64> = stored.into_iter().collect();
    let digests = all.iter().map(|one| (one, one.digest()));
    let changed: Vec<(&Loads, i64)> =
        digests.filter(|(one, digest)| stored.get(&one.slot_id) != Some(digest)).collect();
    let kept: HashSet<i64> = all.iter().map(|one| one.slot_id).collect();
    let mut gone: Vec<i64> = stored.into_keys().filter(|slot_id| !kept.contains(slot_id)).collect();
    gone.extend(changed.iter().map(|(one, _)| one.slot_id));
    if !gone.is_empty() {
        spi::run("DELETE FROM foreshard.load_curve WHERE slot_id = ANY ($1)", &[gone.into()])?;
    }
    for (one, digest) in changed {
        spi::run(
            "INSERT INTO foreshard.load_curve (slot_id, leads, digest, loads) VALUES ($1, $2, $3, $4)",
            &[one.slot_id.into(), (one.leads as i32).into(), digest.into(), one.loads.clone().into()],
        )?;
    }
    spi::run(
        "INSERT INTO foreshard.foresight (horizon_s, season_s, lead_s, end_s, layout, told, made_at) \
         VALUES ($1, $2, $3, $4, $5, $6, pg_catalog.now()) ON CONFLICT (is_all) DO UPDATE SET horizon_s = excluded.horizon_s, \
             season_s = excluded.season_s, lead_s = excluded.lead_s, end_s = excluded.end_s, layout = excluded.layout, told = excluded.told, \
             made_at = excluded.made_at",
        &[
            stamp.horizon_s.into(),
            stamp.season_s.into(),
            stamp.lead_s.into(),
            stamp.end_s.into(),
            stamp.layout.as_str().into(),
            stamp.told.as_str().into(),
        ],
    )?;
    Ok(())
}

/// What was stored last; None: nothing, or this is a standby, which has none of it.
pub fn last() -> PgResult<Option<Last>> {
    if spi::one::<bool>("SELECT pg_catalog.pg_is_in_recovery()", &[])? != Some(false) {
        return Ok(None);
    }
    let found = spi::rows(
        "SELECT horizon_s, season_s, lead_s, end_s, layout, told, extract(epoch FROM pg_catalog.clock_timestamp() - made_at)::float8, \
                (extract(epoch FROM made_at) * 1000000)::int8 FROM foreshard.foresight",
        &[],
        |row| {
            let stamp = Stamp {
                horizon_s: row.need(1)?,
                season_s: row.need(2)?,
                lead_s: row.need(3)?,
                end_s: row.need(4)?,
                layout: row.need(5)?,
                told: row.need(6)?,
            };
            Ok(Last { stamp, age_s: row.need(7)?, made_us: row.need(8)? })
        },
    )?;
    Ok(found.into_iter().next())
}

/// The loads to come that belong to it; none when others have taken their place since.
pub fn loads(last: &Last) -> PgResult<Vec<Loads>> {
    spi::rows(
        "SELECT c.slot_id, c.leads, c.loads FROM foreshard.load_curve c \
         JOIN foreshard.foresight f ON (extract(epoch FROM f.made_at) * 1000000)::int8 = $1 ORDER BY 1",
        &[last.made_us.into()],
        |row| {
            let leads = usize::try_from(row.need::<i32>(2)?).unwrap_or(0);
            Ok(Loads { slot_id: row.need(1)?, leads, loads: row.need(3)? })
        },
    )
}
