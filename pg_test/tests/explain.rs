//! What the planner says and does on request: explanations, load curves, modes of single tables, hours for moves,
//! slots that are used together, and the way back.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result, wait_until};
use support::{PATIENCE, cluster, database, error_of, expect_error, wait_for, wait_for_move};

/// Four weeks of hours: `units` cost units/s for every slot, give or take 3 per cent.
fn history(units: &str) -> String {
    format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 3600, s.slot_id, pg_catalog.to_timestamp(h * 3600), 1, 1, 1, ({units}) * (0.97 + 0.06 * random()) \
         FROM foreshard.slot s JOIN foreshard.shard a USING (shard_id), LATERAL (SELECT extract(epoch FROM now())::int8 / 3600 AS now) t, \
             generate_series(now - 28 * 24, now - 1) h"
    )
}

/// The present load of every slot, as if the keeper had seen it.
fn present(units: &str, hot_buckets: i32) -> String {
    format!(
        "INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, heat, hot_buckets) \
         SELECT s.slot_id, now(), 0, 0, 0, 0, 0, 0, 0, {units}, {hot_buckets} FROM foreshard.slot s JOIN foreshard.shard a USING (shard_id) \
         ON CONFLICT (slot_id) DO UPDATE SET heat = excluded.heat, hot_buckets = excluded.hot_buckets"
    )
}

/// Nobody plans or overwrites the loads but the session that asks.
fn quiet(name: &str) -> Result<Cluster> {
    cluster(
        &ClusterOptions::new(name)
            .set("foreshard.forecast_horizon", "1d")
            .set("foreshard.cooldown", "0")
            .set("foreshard.observe", "off"),
    )
}

/// A key of a slot on a shard.
fn key_on(client: &mut Client, shard: &str) -> Result<String> {
    Ok(client.query_one(&format!(
        "SELECT min(k) FROM generate_series(1, 200) k WHERE foreshard.get_shard_location('t', k) = '{shard}'"
    ))?)
}

/// Sets a setting for the whole server and waits until this session knows.
fn set(client: &mut Client, setting: &str, value: &str) -> Result<()> {
    client.exec(&format!("ALTER SYSTEM SET {setting} = '{value}'"))?;
    client.exec("SELECT pg_reload_conf()")?;
    wait_for(client, &format!("SHOW {setting}"), value)
}

#[test]
fn a_place_is_explained_and_curves_show_the_plan() -> Result<()> {
    let cluster = quiet("explain")?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY); CREATE TABLE plain (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 16, shards => ARRAY['a', 'b'])")?;

    // Nothing is known yet: that is said, and unknown is not 0.
    let text = client.query_one("SELECT foreshard.explain_placement('t', 42)")?;
    for said in
        ["the ring of shards", "It has never been moved", "now unknown, forecast peak unknown", "Mode advise"]
    {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    let unknown = "SELECT bool_and(forecast IS NULL AND load_now IS NULL AND unknown_slots > 0) FROM foreshard.recommend_curves() WHERE shard <> 'c'";
    assert_eq!(client.query_one(unknown)?, "t");

    client.exec(&history("CASE a.shard_name WHEN 'a' THEN 60 ELSE 10 END"))?;
    client.exec(&present("CASE a.shard_name WHEN 'a' THEN 60 ELSE 10 END", 9))?;
    let hot = key_on(&mut client, "a")?;
    let text = client.query_one(&format!("SELECT foreshard.explain_placement('t', {hot})"))?;
    for said in [
        "Considered shard \"c\": gain",
        "confidence 1.00",
        "Shard \"a\": now ",
        "of its fair share; the planner acts above 120 %",
    ] {
        assert!(text.contains(said), "{said} in\n{text}");
    }
    let json = format!("SELECT foreshard.explain_placement_json('t', {hot})");
    let field = |path: &str| format!("{json} #>> '{{{path}}}'");
    assert_eq!(client.query_one(&field("born_on"))?, "a");
    assert_eq!(client.query_one(&field("considered,0,refusal"))?, "");
    assert_eq!(
        client.query_one(&format!("SELECT ({})::float8 BETWEEN 55 AND 65", field("slot,forecast_peak")))?,
        "t"
    );
    assert_eq!(
        client.query_one(&format!(
            "SELECT ({})::int8 = slot_id FROM foreshard.slots s WHERE partition = \
            (SELECT partition FROM foreshard.slots WHERE slot_id = s.slot_id) AND slot_id = ({})::int8",
            field("slot_id"),
            field("slot_id")
        ))?,
        "t"
    );
    // Some slot of shard a is to move, some stay; each says which.
    let verdicts = "SELECT count(DISTINCT v) FROM generate_series(1, 200) k, \
        LATERAL (SELECT foreshard.explain_placement_json('t', k) #>> '{verdict,action}' AS v WHERE k % 20 = 0) x";
    assert_eq!(client.query_one(verdicts)?, "2");

    // Before and after: what leaves a arrives at b and c, and nobody is above capacity.
    client.exec("CREATE TEMP TABLE curve AS SELECT * FROM foreshard.recommend_curves()")?;
    let ok = "SELECT count(DISTINCT at) = 24 AND bool_and(unknown_slots = 0 AND capacity = 1000) FROM curve";
    assert_eq!(client.query_one(ok)?, "t");
    let sums = "SELECT bool_and(abs(f - p) < 1e-6) FROM (SELECT at, sum(forecast) f, sum(planned) p FROM curve GROUP BY 1) q";
    assert_eq!(client.query_one(sums)?, "t");
    let peaks = "SELECT max(planned) < 0.75 * max(forecast) AND max(planned) FILTER (WHERE shard = 'c') > 0 \
        AND max(forecast) FILTER (WHERE shard = 'c') = 0 FROM curve";
    assert_eq!(client.query_one(peaks)?, "t");
    let now = "SELECT max(load_now) FILTER (WHERE shard = 'a') = (SELECT sum(heat) FROM foreshard.slot_heat JOIN foreshard.slot USING (slot_id) \
        JOIN foreshard.shard USING (shard_id) WHERE shard_name = 'a') FROM curve";
    assert_eq!(client.query_one(now)?, "t");

    // Cool-down is a refusal with its reason.
    client.exec("UPDATE foreshard.slot SET last_moved_at = now()")?;
    set(&mut client, "foreshard.cooldown", "10min")?;
    assert_eq!(client.query_one(&field("verdict,refusal"))?, "cooldown");
    let text = client.query_one(&format!("SELECT foreshard.explain_placement('t', {hot})"))?;
    assert!(text.contains("Refused: cooldown. Wait until the cool-down"), "{text}");

    let error = expect_error(&mut client, "55000", "SELECT foreshard.explain_placement('plain', 1)")?;
    assert!(error.message.contains("table public.plain is not managed"), "{error}");
    expect_error(&mut client, "22023", "SELECT foreshard.explain_placement('t', NULL::bigint)")?;
    expect_error(&mut client, "22023", "SELECT foreshard.explain_placement_json(NULL, 1)")?;
    expect_error(&mut client, "22P02", "SELECT foreshard.explain_placement('t', 'no number')")?;
    expect_error(&mut client, "42P01", "SELECT foreshard.explain_placement('nowhere', 1)")?;
    client.exec("CREATE ROLE watcher IN ROLE pg_monitor; CREATE ROLE nobody; GRANT USAGE ON SCHEMA foreshard TO watcher, nobody")?;
    client.exec("SET ROLE watcher")?;
    assert_eq!(client.query_one("SELECT foreshard.explain_placement('t', 1) <> ''")?, "t");
    assert_eq!(client.query_one("SELECT count(*) > 0 FROM foreshard.recommend_curves()")?, "t");
    client.exec("SET ROLE nobody")?;
    for call in [
        "explain_placement('t', 1)",
        "explain_placement_json('t', 1)",
        "recommend_curves()",
        "undo_recommendation(1)",
    ] {
        expect_error(&mut client, "42501", &format!("SELECT foreshard.{call}"))?;
    }
    Ok(())
}

#[test]
fn modes_hours_and_links_are_kept() -> Result<()> {
    let cluster = quiet("modes")?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY); CREATE TABLE u (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 16, shards => ARRAY['a', 'b'])")?;
    client.exec("SELECT foreshard.distribute('u', 'id', colocate_with => 't')")?;
    client.exec(&history("CASE a.shard_name WHEN 'a' THEN 60 ELSE 10 END"))?;
    client.exec(&present("CASE a.shard_name WHEN 'a' THEN 60 ELSE 10 END", 9))?;
    let said = "SELECT string_agg(DISTINCT action || ' ' || coalesce(refusal, '-'), ', ') FROM foreshard.recommend()";
    assert_eq!(client.query_one(said)?, "move -");

    modes(&mut client, said)?;
    hours(&mut client, said)?;
    links(&cluster)
}

/// The most careful of the colocated tables counts, over the server's setting.
fn modes(client: &mut Client, said: &str) -> Result<()> {
    client
        .exec("SELECT foreshard.configure('t', 'mode', 'AUTO'), foreshard.configure('u', 'mode', 'off')")?;
    assert_eq!(client.query_one(said)?, "none mode_off");
    let mode = "SELECT foreshard.explain_placement_json('t', 1) ->> 'mode'";
    assert_eq!(client.query_one(mode)?, "off");
    let map = "SELECT foreshard.request_resharding(1, (SELECT jsonb_build_object(min(slot_id), 'c') FROM foreshard.slot))";
    let error = expect_error(client, "55000", map)?;
    assert!(error.message.contains("belongs to a table in mode off"), "{error}");
    client.exec("SELECT foreshard.configure('u', 'mode', NULL)")?;
    assert_eq!(client.query_one(mode)?, "auto");
    assert_eq!(client.query_one(said)?, "move -");
    expect_error(client, "22023", "SELECT foreshard.configure('t', 'mode', 'sometimes')")?;
    // Whoever sets it owns all of what would move.
    client.exec("CREATE ROLE half; GRANT USAGE ON SCHEMA foreshard TO half; GRANT EXECUTE ON FUNCTION foreshard.configure TO half; ALTER TABLE t OWNER TO half")?;
    client.exec("SET ROLE half")?;
    expect_error(client, "42501", "SELECT foreshard.configure('t', 'mode', 'auto')")?;
    client.exec("SELECT foreshard.configure('t', 'observe', 'on')")?;
    client.exec("RESET ROLE")?;
    Ok(())
}

/// Moves begin in the hours that are left for them, unless a shard is all but beyond its capacity.
fn hours(client: &mut Client, said: &str) -> Result<()> {
    for bad in ["25:00-06:00", "22:00", "22:00-06:00 Middle/Earth", "night"] {
        let error = error_of(client, &format!("ALTER SYSTEM SET foreshard.move_window = '{bad}'"))?;
        assert!(error.sqlstate == "22023" && error.detail.is_some(), "{error}");
    }
    for bad in ["1%, 5%, 100%", "5;25", "100, 50", "101"] {
        let error = error_of(client, &format!("ALTER SYSTEM SET foreshard.canary_steps = '{bad}'"))?;
        assert!(error.sqlstate == "22023" && error.detail.is_some(), "{error}");
    }
    let window = |from: i32, to: i32, zone: &str| {
        format!(
            "SELECT to_char(now() AT TIME ZONE '{zone}' + interval '{from} min', 'HH24:MI') || '-' || \
                    to_char(now() AT TIME ZONE '{zone}' + interval '{to} min', 'HH24:MI') || ' {zone}'"
        )
    };
    let later = client.query_one(&window(120, 180, "Asia/Kathmandu"))?;
    set(client, "foreshard.move_window", &later)?;
    assert_eq!(client.query_one(said)?, "move outside_window");
    let begins = "SELECT bool_and(s BETWEEN 6600 AND 10800) FROM generate_series(1, 200, 10) k, \
        LATERAL (SELECT (foreshard.explain_placement_json('t', k) #>> '{verdict,start_in_s}')::float8 AS s) x WHERE s IS NOT NULL";
    assert_eq!(client.query_one(begins)?, "t");
    // A shard in distress waits for nothing; once the first step has relieved it, the others do.
    client.exec(&present("CASE a.shard_name WHEN 'a' THEN 950.0 / (SELECT count(*) FROM foreshard.slot o WHERE o.shard_id = a.shard_id) ELSE 10 END", 9))?;
    assert_eq!(client.query_one(said)?, "move -, move outside_window");
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.recommend() WHERE refusal IS NULL")?, "1");
    client.exec(&present("CASE a.shard_name WHEN 'a' THEN 60 ELSE 10 END", 9))?;
    divisions(client)?;
    // The same hours in another zone are open now.
    let open = client.query_one(&window(-30, 60, "Asia/Kathmandu"))?;
    set(client, "foreshard.move_window", &open)?;
    assert_eq!(client.query_one(said)?, "move -");
    set(client, "foreshard.move_window", "")
}

/// A split waits as a move does: for the hours, unless its shard is in distress; for a drain; after a failure; and where
/// nothing is to be planned.
fn divisions(client: &mut Client) -> Result<()> {
    client.exec(
        "INSERT INTO foreshard.slot_keys SELECT min(slot_id), 500, 100, 0.02, 0.5, now() FROM foreshard.slot JOIN foreshard.shard USING (shard_id) \
         WHERE shard_name = 'a'",
    )?;
    let slot = client.query_one("SELECT slot_id FROM foreshard.slot_keys")?;
    client.exec("INSERT INTO t SELECT generate_series(1, 200)")?;
    let key = client.query_one(&format!(
        "SELECT min(id) FROM t JOIN foreshard.slots ON partition = t.tableoid WHERE slot_id = {slot}"
    ))?;
    let heat = |heat: f64| format!("UPDATE foreshard.slot_heat SET heat = {heat} WHERE slot_id = {slot}");
    let said = format!(
        "SELECT string_agg(concat_ws(' ', action, refusal), ', ') FROM foreshard.recommend() WHERE slot_id = {slot} AND action <> 'move'"
    );
    client.exec(&heat(300.0))?;
    assert_eq!(client.query_one(&said)?, "split outside_window");
    let explained = format!(
        "SELECT (j ->> 'action') || ' ' || (j ->> 'refusal') || ' ' || ((j ->> 'start_in_s')::float8 BETWEEN 6600 AND 10800) \
        FROM foreshard.explain_placement_json('t', {key}) e, LATERAL (SELECT e -> 'verdict' AS j) x"
    );
    assert_eq!(client.query_one(&explained)?, "split outside_window true");
    let text = client.query_one(&format!("SELECT foreshard.explain_placement('t', {key})"))?;
    assert!(text.contains("It should be split, the second half going to shard \"c\" (start in "), "{text}");
    client.exec(&heat(950.0))?;
    assert_eq!(client.query_one(&said)?, "split", "a shard in distress");
    client.exec("UPDATE foreshard.shard SET draining = true WHERE shard_name = 'a'")?;
    assert_eq!(client.query_one(&said)?, "split draining");
    client.exec("UPDATE foreshard.shard SET draining = false")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'off')")?;
    assert_eq!(client.query_one(&said)?, "none mode_off");
    client.exec("SELECT foreshard.configure('t', 'mode', NULL)")?;
    // What failed a moment ago is not tried again at once.
    client.exec(&format!(
        "WITH r AS (INSERT INTO foreshard.resharding_request (requested_by, assignment) VALUES ('foreshard', '{{}}') RETURNING request_id) \
         INSERT INTO foreshard.move (request_id, kind, slot_id, from_shard, to_shard, phase, finished, finished_at) \
         SELECT request_id, 'split', {slot}, 1, 1, 'failed', true, now() FROM r"
    ))?;
    set(client, "foreshard.cooldown", "10min")?;
    assert_eq!(client.query_one(&said)?, "none cooldown");
    set(client, "foreshard.cooldown", "0")?;
    client.exec("DELETE FROM foreshard.move")?;
    // A past that is no longer remembered is not made up.
    client.exec(&format!("UPDATE foreshard.slot SET last_moved_at = now() WHERE slot_id = {slot}"))?;
    let text = client.query_one(&format!("SELECT foreshard.explain_placement('t', {key})"))?;
    assert!(text.contains("more is no longer remembered") && !text.contains("never been moved"), "{text}");
    // Of 16 slots 15 are not known well enough to forecast, but they count with what they carry now: nothing is hot.
    client.exec(&heat(60.0))?;
    assert_eq!(client.query_one(&said)?, "");
    client.exec(&format!(
        "CREATE TEMP TABLE past AS SELECT * FROM foreshard.heat_history WHERE slot_id <> {slot}"
    ))?;
    client.exec(&format!("DELETE FROM foreshard.heat_history WHERE slot_id <> {slot}"))?;
    assert_eq!(client.query_one(&said)?, "", "unknown loads count");
    client.exec("INSERT INTO foreshard.heat_history SELECT * FROM past; DELETE FROM foreshard.slot_keys")?;
    Ok(())
}

/// Slots that transactions use together come together, as far as no shard gets too hot.
fn links(cluster: &Cluster) -> Result<()> {
    let mut client = database(cluster, "linked")?;
    client.exec("DELETE FROM foreshard.shard WHERE shard_name = 'c'")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 16, shards => ARRAY['a', 'b'])")?;
    client.exec(&history(
        "20 / (SELECT count(*) FROM foreshard.slot o WHERE o.shard_id = a.shard_id)::float8",
    ))?;
    client.exec(&present("1", 0))?;
    let planned = "SELECT count(*) FROM foreshard.recommend() WHERE action = 'move'";
    assert_eq!(client.query_one(planned)?, "0", "the shards are balanced");
    // One slot of a and one of b, both of little load, in 400 transactions a second.
    client.exec(
        "INSERT INTO foreshard.coaccess SELECT least(a, b), greatest(a, b), 400 * 3600 / ln(2), 3, 0.9, now() \
         FROM (SELECT min(slot_id) FILTER (WHERE shard_name = 'a') AS a, min(slot_id) FILTER (WHERE shard_name = 'b') AS b \
               FROM foreshard.slot JOIN foreshard.shard USING (shard_id)) q",
    )?;
    let load = |factor: f64| {
        format!(
            "UPDATE foreshard.heat_history h SET cost_units_per_s = cost_units_per_s * {factor} \
             FROM foreshard.coaccess c WHERE h.slot_id IN (slot_a, slot_b)"
        )
    };
    client.exec(&load(0.2))?;
    let together = "SELECT string_agg(r.from_shard || r.to_shard, ', ') FROM foreshard.recommend() r, foreshard.coaccess c \
        WHERE r.action = 'move' AND r.slot_id IN (c.slot_a, c.slot_b) AND r.reason LIKE '%used together%'";
    let moved = client.query_one(together)?;
    assert!(moved == "ab" || moved == "ba", "{moved}");
    assert_eq!(client.query_one(planned)?, "1");
    // Two slots that make most of the load must not meet.
    client.exec(&load(20.0))?;
    assert_eq!(client.query_one(together)?, "", "capacity wins");
    client.exec(&load(0.05))?;
    // What was seen long ago counts for nothing, and is no error.
    client.exec("UPDATE foreshard.coaccess SET observed_at = now() - interval '90 days'")?;
    assert_eq!(client.query_one(planned)?, "0");
    client.exec("UPDATE foreshard.coaccess SET observed_at = now()")?;
    set(&mut client, "foreshard.cross_shard_cost", "0")?;
    assert_eq!(client.query_one(planned)?, "0");
    Ok(())
}

/// Forecasts are noted to be compared with what comes; what came says how good they were.
fn errors_are_tracked(client: &mut Client) -> Result<()> {
    let noted = "SELECT string_agg(DISTINCT lead::text, ' ') = '1 12 24' AND bool_and(at + lead * interval '-1 h' <= now() AND lower <= upper) \
        FROM foreshard.forecast_due";
    wait_for(client, noted, "t")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.forecast_errors")?, "0");
    let unknown = "SELECT bool_and(mase IS NULL AND coverage IS NULL) FROM foreshard.forecasts";
    assert_eq!(client.query_one(unknown)?, "t");
    // As if ten hours had been forecast ahead by half as wrong as yesterday's load, every fifth beyond its interval.
    client.exec(
        "INSERT INTO foreshard.forecast_due (slot_id, resolution_s, lead, at, cost_units_per_s, lower, upper) \
         SELECT h.slot_id, 3600, 1, h.bucket_at, h.cost_units_per_s + (y.cost_units_per_s - h.cost_units_per_s) / 2, 0, \
             CASE WHEN extract(epoch FROM h.bucket_at)::int8 / 3600 % 5 = 0 THEN 1 ELSE 1000 END \
         FROM foreshard.heat_history h JOIN foreshard.heat_history y ON (y.slot_id, y.resolution_s) = (h.slot_id, h.resolution_s) \
             AND y.bucket_at = h.bucket_at - interval '24 h' \
         WHERE h.resolution_s = 3600 AND h.bucket_at BETWEEN now() - interval '12 h' AND now() - interval '2 h'",
    )?;
    let known = "SELECT bool_and(buckets = 10 AND abs(mase - 0.5) < 1e-6 AND abs(coverage - 0.8) < 0.02 AND mae > 0 AND lead = 1) \
        FROM foreshard.forecast_errors";
    wait_for(client, known, "t")?;
    let shown = "SELECT bool_and(abs(mase - 0.5) < 1e-6) FROM foreshard.forecasts";
    assert_eq!(client.query_one(shown)?, "t");
    // The horizon was another one: of buckets of two resolutions that are due at once the newest say how good forecasts
    // are, and forecasting goes on.
    let two = "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
         SELECT r, slot_id, date_bin(r * interval '1 s', now() - 2 * r * interval '1 s', 'epoch'), 10 \
         FROM foreshard.slot, unnest('{300, 3600}'::int[]) r ON CONFLICT DO NOTHING; \
         INSERT INTO foreshard.forecast_due (slot_id, resolution_s, lead, at, cost_units_per_s, lower, upper) \
         SELECT slot_id, r, 1, date_bin(r * interval '1 s', now() - 2 * r * interval '1 s', 'epoch'), 11, 9, 13 \
         FROM foreshard.slot, unnest('{300, 3600}'::int[]) r ON CONFLICT DO NOTHING";
    wait_until("both are settled", PATIENCE, || {
        client.exec(two)?;
        Ok(client.query_one("SELECT bool_and(resolution_s = 300) FROM foreshard.forecast_errors")? == "t")
    })?;
    client.exec("DELETE FROM foreshard.forecast")?;
    wait_for(client, "SELECT count(*) > 0 FROM foreshard.forecast", "t")?;
    wait_for(client, "SELECT count(*) FROM foreshard.forecast_due WHERE resolution_s = 300", "0")?;
    // A bucket that nobody ever saw is forgotten.
    client.exec("UPDATE foreshard.forecast_due SET at = at - interval '90 days' WHERE lead = 24")?;
    wait_for(client, "SELECT count(*) FROM foreshard.forecast_due WHERE at < now() - interval '1 day'", "0")
}

#[test]
fn what_was_done_by_itself_is_told_and_undone() -> Result<()> {
    let settings = ClusterOptions::new("undo")
        .set("foreshard.forecast_horizon", "1d")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.bucket", "1s")
        .set("foreshard.cooldown", "0");
    let cluster = cluster(&settings)?;
    let mut client = database(&cluster, "d")?;
    client.exec("CREATE TABLE t (id bigint PRIMARY KEY)")?;
    client.exec("SELECT foreshard.distribute('t', 'id', 4, shards => ARRAY['a', 'b'])")?;
    client.exec(&history("10"))?;
    client.exec("UPDATE foreshard.shard SET draining = true WHERE shard_name = 'a'")?;
    let wanted = client.query_one("SELECT count(*) FROM foreshard.slots WHERE shard = 'a'")?;
    assert!(wanted.parse::<u32>().is_ok_and(|wanted| wanted >= 2), "{wanted} slots on shard a");
    errors_are_tracked(&mut client)?;
    let ready = format!(
        "SELECT count(*) = {wanted} FROM foreshard.recommendations WHERE action = 'move' AND from_shard = 'a' AND refusal IS NULL"
    );
    wait_for(&mut client, &ready, "t")?;
    assert_eq!(client.query_one("SELECT count(*) FROM foreshard.move")?, "0", "the server advises only");

    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    wait_for(
        &mut client,
        &format!("SELECT count(*) = {wanted} FROM foreshard.move WHERE phase = 'done'"),
        "t",
    )?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'advise')")?;
    let logged = "SELECT bool_and((h.detail ->> 'recommendation_id')::int8 = m.recommendation_id AND h.detail ->> 'reason' LIKE '%is draining%' \
        AND h.detail ->> 'from' = 'a' AND (h.detail ->> 'confidence')::float8 > 0.7) AND count(*) = count(m.recommendation_id) \
        FROM foreshard.move m LEFT JOIN foreshard.history h ON h.move_id = m.move_id AND h.event = 'auto'";
    assert_eq!(client.query_one(logged)?, "t");
    let first = client
        .exec("SELECT recommendation_id, slot_id, move_id FROM foreshard.move ORDER BY move_id LIMIT 1")?
        .to_text();
    let fields: Vec<String> = first.trim().split('|').map(String::from).collect();
    let (recommendation, slot) = (&fields[0], &fields[1]);
    let key = client.query_one(&format!(
        "SELECT min(k) FROM generate_series(1, 500) k WHERE (foreshard.explain_placement_json('t', k) ->> 'slot_id') = '{slot}' AND k % 10 = 0"
    ))?;
    let explain = format!("SELECT foreshard.explain_placement('t', {key})");
    let text = client.query_one(&explain)?;
    assert!(
        text.contains(&format!(
            "requested by foreshard upon recommendation {recommendation} with confidence"
        )),
        "{text}"
    );

    // Back to a shard that is being emptied: no. Then back for good.
    let undo = format!("SELECT foreshard.undo_recommendation({recommendation})");
    let error = expect_error(&mut client, "22023", &undo)?;
    assert!(error.message.contains("is being drained"), "{error}");
    client.exec("UPDATE foreshard.shard SET draining = false")?;
    // Somebody asked before, but the way back was lost and the slot stayed: that is no undoing.
    client.exec(&format!("UPDATE foreshard.move SET undone_at = now(), undone_by = move_id WHERE recommendation_id = {recommendation}"))?;
    assert!(!client.query_one(&explain)?.contains("; undone "));
    let back = client.query_one(&undo)?;
    wait_for_move(&mut client, &back, "done")?;
    let place = format!("SELECT DISTINCT shard FROM foreshard.slots WHERE slot_id = {slot}");
    assert_eq!(client.query_one(&place)?, "a");
    let error = expect_error(&mut client, "55000", &undo)?;
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("It was undone before")), "{error}");
    expect_error(&mut client, "42704", "SELECT foreshard.undo_recommendation(-1)")?;
    expect_error(&mut client, "22023", "SELECT foreshard.undo_recommendation(NULL)")?;
    let text = client.query_one(&explain)?;
    assert!(
        text.contains(&format!("recommendation {recommendation} was undone")) && text.contains("; undone "),
        "{text}"
    );

    // The planner may think what it likes: the slot is a person's for now.
    client.exec("UPDATE foreshard.shard SET draining = true WHERE shard_name = 'a'")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    wait_for(
        &mut client,
        &format!("SELECT refusal FROM foreshard.recommendations WHERE slot_id = {slot}"),
        "undone",
    )?;

    // Somebody has moved it since: what is to be undone is no longer there.
    client.exec("SELECT foreshard.configure('t', 'mode', 'advise')")?;
    let second = client.query_one(&format!(
        "SELECT max(recommendation_id) FROM foreshard.move WHERE recommendation_id <> {recommendation} AND phase = 'done'"
    ))?;
    assert_ne!(second, "", "two slots were moved");
    let moved = client.query_one(&format!("SELECT foreshard.move_slot(slot_id, CASE to_shard WHEN 2 THEN 'c' ELSE 'b' END) FROM foreshard.move WHERE recommendation_id = {second}"))?;
    wait_for_move(&mut client, &moved, "done")?;
    let error =
        expect_error(&mut client, "55000", &format!("SELECT foreshard.undo_recommendation({second})"))?;
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("has been moved since")), "{error}");

    // Under way: it is cancelled.
    client.exec("UPDATE foreshard.move SET undone_at = NULL")?;
    set(&mut client, "foreshard.hold_at_phase", "copy")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'auto')")?;
    let open = "SELECT max(move_id) FROM foreshard.move WHERE NOT finished AND recommendation_id IS NOT NULL";
    wait_for(&mut client, &format!("SELECT ({open}) > 0"), "t")?;
    client.exec("SELECT foreshard.configure('t', 'mode', 'advise')")?;
    let open = client.query_one(open)?;
    let undo = format!(
        "SELECT foreshard.undo_recommendation(recommendation_id) FROM foreshard.move WHERE move_id = {open}"
    );
    assert_eq!(client.query_one(&undo)?, open);
    wait_for_move(&mut client, &open, "cancelled")?;
    let error = expect_error(&mut client, "55000", &undo)?;
    assert!(error.detail.as_deref().is_some_and(|detail| detail.contains("undone before")), "{error}");
    Ok(())
}
