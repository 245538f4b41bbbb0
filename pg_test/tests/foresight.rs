//! What a keeper forecasts from four weeks of hourly history: the day it learnt, a special event that it was told of,
//! and what it was told of the weather.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result, wait_until};
use support::{PATIENCE, cluster, database, wait_for};

/// Hours between a batch run and the next one to come, which is six hours from now: without a rhythm.
const RUNS: &str = "'{0, 77, 161, 270, 393, 502, 611}'::int[]";

/// Office hours with a little of everything else, and batch runs of two hours that triple the load.
fn history() -> String {
    format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), 1, 1, 1, \
             CASE WHEN h % 24 BETWEEN 8 AND 17 THEN 50 ELSE 20 END * (0.9 + 0.2 * random()) \
                 * CASE WHEN now + 6 - h = ANY ({RUNS}) OR now + 7 - h = ANY ({RUNS}) THEN 3 ELSE 1 END \
         FROM foreshard.slot s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, \
             generate_series(now - 28 * 24, now - 1) h"
    )
}

/// Mean forecast load of a slot six hours from now.
const IN_SIX_HOURS: &str = "SELECT avg(cost_units_per_s) FROM foreshard.forecasts \
    WHERE at = pg_catalog.to_timestamp((extract(epoch FROM now())::int8 / 3600 + 6) * 3600)";

fn number(client: &mut Client, query: &str) -> Result<f64> {
    Ok(client.query_one(query)?.parse().unwrap_or(f64::NAN))
}

#[test]
fn a_day_is_learnt_and_an_event_foreseen() -> Result<()> {
    let settings = ClusterOptions::new("foresight")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s");
    let mut cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 4)")?;
    client.exec(&history())?;
    wait_for(&mut client, "SELECT count(*) >= 4 * 23 FROM foreshard.forecasts WHERE at > now()", "t")?;
    let wrong = client.exec(
        "SELECT slot_id, at, cost_units_per_s, lower, upper, model FROM foreshard.forecasts, \
             LATERAL (SELECT CASE WHEN extract(epoch FROM at)::int8 / 3600 % 24 BETWEEN 8 AND 17 THEN 50 ELSE 20 END AS truth) t \
         WHERE at > now() AND (cost_units_per_s NOT BETWEEN truth * 0.75 AND truth * 1.33 OR lower > truth OR upper < truth)",
    )?;
    assert!(wrong.len() <= 4, "{}", wrong.to_text());
    let usual = number(&mut client, IN_SIX_HOURS)?;
    // Plans of every second forecast the same hours: nothing is written again.
    wait_until("what is known stays as it is", PATIENCE, || {
        let written = "SELECT string_agg(DISTINCT xmin::text, ' ') FROM foreshard.forecast";
        let before = client.query_one(written)?;
        std::thread::sleep(std::time::Duration::from_millis(2_500));
        Ok(client.query_one(written)? == before)
    })?;

    // The runs so far, and the one to come.
    client.exec(&format!(
        "INSERT INTO foreshard.event (kind, table_oid, starts_at, ends_at) \
         SELECT 'batch', 't', run, run + interval '2 h' \
         FROM pg_catalog.to_timestamp((extract(epoch FROM now())::int8 / 3600 + 6) * 3600) next, \
             unnest({RUNS}) hours, LATERAL (SELECT next - hours * interval '1 h' AS run) r"
    ))?;
    let all_with = "SELECT bool_and(model LIKE '% with events') FROM foreshard.forecasts WHERE at > now()";
    wait_for(&mut client, all_with, "t")?;
    let foreseen = number(&mut client, IN_SIX_HOURS)?;
    assert!((2.3..3.4).contains(&(foreseen / usual)), "{foreseen} instead of {usual}");

    // Another table's event is none of this one's business; a bad one is refused.
    client.exec("CREATE TABLE u (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('u', 'id', 2)")?;
    client.exec("UPDATE foreshard.event SET table_oid = 'u'")?;
    wait_for(
        &mut client,
        "SELECT bool_or(model LIKE '% with events') FROM foreshard.forecasts WHERE at > now()",
        "f",
    )?;
    let refused =
        client.exec("INSERT INTO foreshard.event (kind, starts_at, ends_at) VALUES ('x', now(), now())");
    assert!(refused.is_err());
    client.exec("DROP TABLE u")?;
    wait_for(&mut client, "SELECT count(*) FROM foreshard.event", "0")?;
    follows_what_it_is_told_of_the_weather(&mut client)?;

    // A new table has seen ten hours, a hundredth of the load: it takes it for granted that its day is that of the others.
    client.exec("CREATE TABLE v (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('v', 'id', 2)")?;
    client.exec(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
         SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), CASE WHEN h % 24 BETWEEN 8 AND 17 THEN 0.5 ELSE 0.2 END * (0.95 + 0.1 * random()) \
         FROM foreshard.slots s, LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, generate_series(now - 10, now - 1) h \
         WHERE s.\"table\" = 'v'::regclass",
    )?;
    let borrowed = "SELECT count(*) = 2 * 24 AND bool_and(model LIKE '%with a borrowed season') \
        AND bool_and(cost_units_per_s BETWEEN truth / 1.6 AND truth * 1.6) \
        FROM foreshard.forecasts JOIN foreshard.slots USING (slot_id), \
            LATERAL (SELECT CASE WHEN extract(epoch FROM at)::int8 / 3600 % 24 BETWEEN 8 AND 17 THEN 0.5 ELSE 0.2 END AS truth) t \
        WHERE \"table\" = 'v'::regclass";
    wait_for(&mut client, borrowed, "t")?;
    client.exec("DROP TABLE v")?;
    a_week_is_a_week(&mut cluster, &mut client)
}

/// A horizon of seven days is one of 168 hours, and its last day is forecast like a day.
fn a_week_is_a_week(cluster: &mut Cluster, client: &mut Client) -> Result<()> {
    cluster.set_and_reload(&[("foreshard.forecast_horizon", "7d")])?;
    let week = "SELECT count(*) = 4 * 168 AND max(at) > now() + interval '6 days 22 hours' FROM foreshard.forecasts \
        JOIN foreshard.slots USING (slot_id) WHERE \"table\" = 't'::regclass";
    wait_for(client, week, "t")?;
    let wrong = client.query_one(
        "SELECT count(*) FROM foreshard.forecasts JOIN foreshard.slots USING (slot_id), \
             LATERAL (SELECT CASE WHEN extract(epoch FROM at)::int8 / 3600 % 24 BETWEEN 8 AND 17 THEN 50 ELSE 20 END AS truth) t \
         WHERE \"table\" = 't'::regclass AND at > now() + interval '6 days' AND cost_units_per_s NOT BETWEEN truth * 0.6 AND truth * 1.6",
    )?;
    assert!(wrong.parse::<u32>().unwrap_or(99) <= 8, "{wrong} of 92 hours of the last day are off");
    client.exec("SELECT * FROM foreshard.predict_shard_assignment('7 days')").map(drop)?;
    Ok(())
}

/// A degree, by the hour since 1970: without a rhythm, but the same for a quarter of a day.
const DEGREES: &str = "abs(hashint8extended(h / 6, 7) % 1000) / 50.0";

/// A table whose load follows the weather only.
fn follows_what_it_is_told_of_the_weather(client: &mut Client) -> Result<()> {
    client.exec("CREATE TABLE w (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('w', 'id', 2)")?;
    let hours = "LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, LATERAL generate_series(now - 28 * 24, now + 48) h";
    client.exec(&format!(
        "INSERT INTO foreshard.regressor (name, table_oid, at, value) \
         SELECT 'degrees', 'w', pg_catalog.to_timestamp(h * 3600), {DEGREES} FROM (SELECT) q, {hours}"
    ))?;
    client.exec(&format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
         SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), exp(1 + {DEGREES} / 10) * (0.95 + 0.1 * random()) \
         FROM foreshard.slots s, {hours} WHERE s.\"table\" = 'w'::regclass AND h < now"
    ))?;
    // What comes is known to a few per cent, although it comes every six hours anew.
    let follows = format!(
        "SELECT count(*) = 2 * 23 AND bool_and(model LIKE '%with_regressors%') \
             AND avg(abs(ln(cost_units_per_s / exp(1 + {DEGREES} / 10)))) < 0.1 \
         FROM foreshard.forecasts JOIN foreshard.slots USING (slot_id), \
             LATERAL (SELECT extract(epoch FROM at)::int8 / 3600 AS h) q \
         WHERE \"table\" = 'w'::regclass AND at > now()"
    );
    wait_for(client, &follows, "t")?;
    // Turned off, it is not listened to any longer; nonsense is refused.
    client.exec("DELETE FROM foreshard.regressor")?;
    let ignored = "SELECT bool_or(model LIKE '%with_regressors%') FROM foreshard.forecasts WHERE at > now()";
    wait_for(client, ignored, "f")?;
    for value in ["'NaN'", "'Infinity'", "NULL"] {
        let insert = format!("INSERT INTO foreshard.regressor VALUES ('x', 'w', now(), {value})");
        assert!(client.exec(&insert).is_err(), "{value}");
    }
    let twice =
        "INSERT INTO foreshard.regressor SELECT 'x', NULL, '2026-01-01', 1 FROM generate_series(1, 2)";
    assert!(client.exec(twice).is_err());
    client.exec("DROP TABLE w")?;
    Ok(())
}

/// A clock that was ahead for a while stops neither the roll-up nor the judging of steps; and forecasts begin now, wherever a history ends.
#[test]
fn clocks_and_outages_leave_no_trace() -> Result<()> {
    let settings = ClusterOptions::new("clocks")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s");
    let cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 2)")?;
    client.exec(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
             SELECT 60, min(slot_id), date_trunc('minute', now()) + interval '3 days', 1 FROM foreshard.slot; \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
             SELECT 1, slot_id, date_trunc('minute', now()) - g * interval '1 s', 1 FROM foreshard.slot, generate_series(1, 120) g; \
         INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
                 capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at) \
             SELECT group_id, slot_id, 1, 2, 0.9, 0.9, '{}', '{}', 1, 1, 1, 0, false, true, 60, now() + interval '3 days', now() + interval '4 days' FROM foreshard.slot",
    )?;
    wait_for(
        &mut client,
        "SELECT count(*) >= 2 FROM foreshard.heat_history WHERE resolution_s = 60 AND bucket_at < now()",
        "t",
    )?;
    wait_for(
        &mut client,
        "SELECT count(*) FROM foreshard.outcome WHERE judged_at IS NULL AND made_at > now()",
        "0",
    )?;
    // Nothing was observed for the last six hours.
    client.exec(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
         SELECT 3600, slot_id, pg_catalog.to_timestamp((extract(epoch FROM now())::int8 / 3600 - h) * 3600), 10 + h % 24 \
         FROM foreshard.slot, generate_series(7, 28 * 24) h",
    )?;
    wait_for(
        &mut client,
        "SELECT count(*) > 40 AND min(at) > now() - interval '2 h 5 min' FROM foreshard.forecasts",
        "t",
    )
}
