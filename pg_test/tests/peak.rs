//! Foresight end to end: real load with a day of 24 seconds and a hot spot that rises from day to day. The auto mode moves
//! slots before the peak; and where the hot spot turns up elsewhere than it always did, it does no harm and is not trusted
//! any longer.
//!
//! Four databases of one cluster have the same load at the same time: one in mode auto, one in mode off; and the same two
//! with a load whose hot spot is on the other shard from the judged day on, and then every day where it was not the day before. Loads, forecasts, plans, moves and the peak are real. What is
//! given in the short form is that a dozen steps have paid before, which with `FORESHARD_LONG=1` is earned by real steps.

mod support;

use foreshard_test::in_turn;
use foreshard_test::load::{Load, Session};
use foreshard_test::{Client, Cluster, ClusterOptions, Result, SqlError, wait_until};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use support::{cluster, wait_for};

/// Length of a day, s.
const DAY_S: f64 = 24.0;
/// Slots, the first half of them on shard a.
const SLOTS: usize = 24;
/// What a shard can carry, cost units/s; a statement costs about one.
const CAPACITY: f64 = 200.0;
/// Statements per second of a slot, and of a slot of the hot spot at the peak of the first day, of each further one, and at most.
const USUAL: f64 = 5.0;
const FIRST_PEAK: f64 = 15.0;
const RISE: f64 = 2.5;
const HIGHEST_PEAK: f64 = 20.0;
/// Steps of a session per second, each some statements or none.
const STEPS: f64 = 80.0;
/// Sessions of a database.
const SESSIONS: usize = 2;
/// Overloaded seconds by which two runs of the same load may differ.
const EDGE_S: u32 = 2;
/// When the auto mode is turned on, s after the judged day began.
const NIGHT_S: f64 = 5.0;
/// What a move may take on a busy machine, s.
const MOVE_S: u32 = 3;
/// Days in which nothing is begun for what is only foreseen, after which that counts as withdrawn.
const SILENT_DAYS: f64 = 2.0;
/// Share of what came that forecasts must cover to be acted upon: 15 points less than they should.
const LEAST_COVERED: f64 = 0.75;
/// Days that are seen before the judged one in the short form, and at most in the long one.
const LEARNT: u32 = 2;
const LEARNT_MOST: u32 = 14;

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// How much of the peak there is at a time of the day: from 11 s on it rises, lasts from 13 s to 21 s, and falls until 23 s.
fn share_of_peak(of_day_s: f64) -> f64 {
    ((of_day_s - 11.0) / 2.0).clamp(0.0, 1.0).min(((23.0 - of_day_s) / 2.0).clamp(0.0, 1.0))
}

/// Statements per second of a slot; `elsewhere_s` is when the hot spot turns up on the other shard, from then on
/// every day where it was not the day before.
fn rate(slot: usize, at_s: f64, begun_s: f64, elsewhere_s: f64) -> f64 {
    let is_elsewhere = at_s >= elsewhere_s && (((at_s - elsewhere_s) / DAY_S) as u64).is_multiple_of(2);
    let is_hot = (slot < SLOTS / 2) != is_elsewhere;
    let peak = (FIRST_PEAK + RISE * ((at_s - begun_s) / DAY_S).floor()).min(HIGHEST_PEAK);
    USUAL + if is_hot { (peak - USUAL) * share_of_peak((at_s - begun_s).rem_euclid(DAY_S)) } else { 0.0 }
}

/// Look-ups and updates of every slot at its rate, as even as they can be, reported to the statistics at once.
struct Daily {
    keys: Vec<Vec<String>>,
    due: Vec<f64>,
    steps: usize,
    begun_s: f64,
    elsewhere: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Session for Daily {
    fn connected(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        client.prepare("r", "SELECT n FROM t WHERE id = $1")?;
        client.prepare("w", "UPDATE t SET n = n + 1 WHERE id = $1")?;
        client.prepare("f", "SELECT pg_stat_force_next_flush()")
    }

    fn step(&mut self, client: &mut Client) -> std::result::Result<(), SqlError> {
        let elsewhere_s = self.elsewhere.load(std::sync::atomic::Ordering::Relaxed) as f64;
        let at_s = now_s();
        self.steps += 1;
        for slot in 0..self.keys.len() {
            self.due[slot] += rate(slot, at_s, self.begun_s, elsewhere_s) / STEPS / SESSIONS as f64;
            while self.due[slot] >= 1.0 {
                self.due[slot] -= 1.0;
                let key = &self.keys[slot][self.steps % self.keys[slot].len()];
                let statement = if (self.steps + slot).is_multiple_of(8) { "w" } else { "r" };
                client.exec_prepared(statement, &[Some(key)])?;
            }
        }
        if self.steps.is_multiple_of(16) { client.exec_prepared("f", &[]).map(drop) } else { Ok(()) }
    }
}

/// A database with the table, half of its slots on each of two shards.
struct Scene {
    name: &'static str,
    client: Client,
    keys: Vec<Vec<String>>,
}

impl Scene {
    fn new(cluster: &Cluster, name: &'static str) -> Result<Scene> {
        cluster.connect("postgres")?.exec(&format!("CREATE DATABASE {name} TEMPLATE template0"))?;
        let mut client = cluster.connect(name)?;
        client.exec("CREATE EXTENSION foreshard")?;
        client.exec(&format!(
            "SELECT foreshard.add_shard('a', 'ts_a', {CAPACITY}), foreshard.add_shard('b', 'ts_b', {CAPACITY}); \
             CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0) WITH (fillfactor = 50); \
             INSERT INTO t SELECT g FROM generate_series(1, {}) g; \
             SELECT foreshard.distribute('t', 'id', {SLOTS}, shards => ARRAY['a', 'b'])",
            SLOTS * 25
        ))?;
        // Slots are numbered as the load has them: those of shard a first.
        let rows = client.exec(
            "SELECT dense_rank() OVER (ORDER BY s.shard, s.remainder) - 1 AS slot, t.id FROM t \
             JOIN foreshard.slots s ON s.partition = t.tableoid ORDER BY 1, 2",
        )?;
        let mut keys = vec![Vec::new(); SLOTS];
        for row in 0..rows.len() {
            if let (Some(slot), Some(key)) = (rows.parse::<usize>(row, "slot"), rows.field(row, "id")) {
                keys[slot].push(key.to_string());
            }
        }
        let on_a = client.query_one("SELECT count(*) FROM foreshard.slots WHERE shard = 'a'")?;
        assert_eq!(on_a, (SLOTS / 2).to_string());
        Ok(Scene { name, client, keys })
    }

    fn start(
        &self,
        cluster: &Cluster,
        begun_s: f64,
        elsewhere: &std::sync::Arc<std::sync::atomic::AtomicU64>,
    ) -> Result<Load> {
        let session = |_| Daily {
            keys: self.keys.clone(),
            due: vec![0.0; SLOTS],
            steps: 0,
            begun_s,
            elsewhere: elsewhere.clone(),
        };
        let sessions = (0..SESSIONS).map(session).collect();
        Load::start(&cluster.conninfo(self.name), STEPS * SESSIONS as f64, self.name, sessions)
    }

    /// Loads of the shards, second by second, where slots were then.
    fn seconds(from_s: f64, until_s: f64) -> String {
        format!(
            "SELECT h.bucket_at AS at, n.shard_name AS shard, sum(h.cost_units_per_s) AS load, min(n.capacity) AS capacity \
             FROM foreshard.heat_history h JOIN foreshard.slot s USING (slot_id), LATERAL (SELECT coalesce( \
                 (SELECT m.to_shard FROM foreshard.move m WHERE m.slot_id = h.slot_id AND m.swapped_at <= h.bucket_at ORDER BY m.swapped_at DESC LIMIT 1), \
                 (SELECT m.from_shard FROM foreshard.move m WHERE m.slot_id = h.slot_id AND m.swapped_at > h.bucket_at ORDER BY m.swapped_at LIMIT 1), \
                 s.shard_id) AS shard_id) p, foreshard.shard n \
             WHERE h.resolution_s = 1 AND n.shard_id = p.shard_id AND h.bucket_at >= to_timestamp({from_s}) AND h.bucket_at < to_timestamp({until_s}) \
             GROUP BY 1, 2"
        )
    }

    /// Seconds of shards beyond their capacity; a reading that came late stands for the time since the one before.
    fn overloaded(&mut self, from_s: f64, until_s: f64) -> Result<u32> {
        let seconds = Scene::seconds(from_s, until_s);
        let query = format!(
            "SELECT coalesce(sum(passed) FILTER (WHERE load > capacity), 0)::int FROM ( \
                 SELECT load, capacity, coalesce(extract(epoch FROM at - lag(at) OVER (PARTITION BY shard ORDER BY at)), 1) AS passed \
                 FROM ({seconds}) q) r"
        );
        Ok(self.client.query_one(&query)?.parse().unwrap_or(u32::MAX))
    }

    /// What happened, for whoever reads a failure.
    fn told(&mut self, from_s: f64, until_s: f64) -> Result<String> {
        let seconds = Scene::seconds(from_s, until_s);
        let loads = self.client.query_one(&format!(
            "SELECT string_agg(shard || ' ' || loads, E'\\n' ORDER BY shard) \
             FROM (SELECT shard, string_agg(round(load)::text, ' ' ORDER BY at) AS loads FROM ({seconds}) q GROUP BY 1) r"
        ))?;
        let moves = self.client.exec(&format!(
            "SELECT slot_id, from_shard, to_shard, phase, round(extract(epoch FROM created_at)::numeric - {from_s}::numeric, 1) AS created, \
                 round(extract(epoch FROM swapped_at)::numeric - {from_s}::numeric, 1) AS swapped, reason FROM foreshard.move ORDER BY move_id"
        ))?;
        let trust = self.client.exec(
            "SELECT trust, outcomes, round(stated::numeric, 2), round(paid::numeric, 2) FROM foreshard.group_trust",
        )?;
        let outcomes = self.client.query_one(&format!(
            "SELECT string_agg(round(extract(epoch FROM made_at)::numeric - {from_s}::numeric) || '+' || coalesce(paid::text, '?'), ' ' ORDER BY made_at) \
             FROM foreshard.outcome WHERE slot_id > 0"
        ))?;
        let model =
            self.client.query_one("SELECT string_agg(DISTINCT model, ', ') FROM foreshard.forecasts")?;
        Ok(format!("{}:\n{loads}\n{}\n{}\n{outcomes}\n{model}", self.name, moves.to_text(), trust.to_text()))
    }

    fn set_mode(&mut self, mode: &str) -> Result<()> {
        self.client.exec(&format!("SELECT foreshard.configure('t', 'mode', '{mode}')")).map(drop)?;
        Ok(())
    }

    fn trust(&mut self) -> Result<String> {
        Ok(self.client.query_one("SELECT min(trust) FROM foreshard.group_trust")?)
    }
}

/// As if a dozen steps had paid.
const SEED: &str = "INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, \
         capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at, judged_at, paid) \
     SELECT group_id, 0, 1, 2, 0.95, 0.95, '{}', '{}', 1, 1, 1, 0, false, true, 1, now(), now(), now(), true \
     FROM foreshard.colocation_group, generate_series(1, 8)";

fn sleep_until(at_s: f64) {
    std::thread::sleep(Duration::from_secs_f64((at_s - now_s()).max(0.0)));
}

fn options() -> ClusterOptions {
    ClusterOptions::new("peak")
        .set("foreshard.season", "24s")
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.forecast_horizon", "24s")
        .set("foreshard.heat_half_life", "2s")
        .set("foreshard.cooldown", "0")
        .set("foreshard.scan_cost", "1")
        .set("foreshard.statement_sample_interval", "1000000")
        .set("foreshard.max_concurrent_moves", "4")
        .set("foreshard.split_threshold", "100")
        .set("foreshard.merge_threshold", "0")
        .set("jit", "off")
}

/// Waits until the judged day begins, with foresight trusted; returns its beginning.
fn learn(scenes: &mut [Scene; 4], begun_s: f64, long: bool) -> Result<f64> {
    let mut days = LEARNT;
    sleep_until(begun_s + f64::from(days) * DAY_S - 1.5);
    if !long {
        for scene in [0, 2] {
            scenes[scene].client.exec(SEED)?;
        }
        return Ok(begun_s + f64::from(days) * DAY_S);
    }
    while scenes[0].trust()? != "earned" || scenes[2].trust()? != "earned" {
        let known = scenes[0].told(now_s() - DAY_S, now_s())?;
        assert!(days < LEARNT_MOST, "trust is not earned in {days} days: {known}");
        days += 1;
        sleep_until(begun_s + f64::from(days) * DAY_S - 1.5);
    }
    println!("trust was earned in {days} days");
    Ok(begun_s + f64::from(days) * DAY_S)
}

#[test]
fn the_auto_mode_moves_before_the_peak_and_does_no_harm_when_it_is_wrong() -> Result<()> {
    if in_turn(&[()]).next().is_none() {
        println!("the other version's turn; FORESHARD_LONG=1 takes all");
        return Ok(());
    }
    let long = std::env::var_os("FORESHARD_LONG").is_some();
    let cluster = cluster(&options())?;
    let names = ["honest", "honest_off", "wrong", "wrong_off"];
    let mut scenes = Vec::new();
    for name in names {
        scenes.push(Scene::new(&cluster, name)?);
    }
    let Ok(mut scenes) = <[Scene; 4]>::try_from(scenes) else { panic!("four scenes") };
    scenes[1].set_mode("off")?;
    scenes[3].set_mode("off")?;
    let (never, elsewhere) = (marker(), marker());
    let begun_s = now_s().ceil();
    for scene in &mut scenes {
        // What was before the load is none of its days.
        scene.client.exec("DELETE FROM foreshard.heat_history")?;
    }
    let loads =
        [0, 1, 2, 3].map(|at| scenes[at].start(&cluster, begun_s, if at < 2 { &never } else { &elsewhere }));
    let judged_s = learn(&mut scenes, begun_s, long)?;
    elsewhere.store(judged_s as u64, std::sync::atomic::Ordering::Relaxed);
    // In the night, when the last peak is forgotten: whoever moves now does it for the one to come.
    sleep_until(judged_s + NIGHT_S);
    for at in [0, 2] {
        let hot = scenes[at].client.query_one("SELECT max(hot_buckets) FROM foreshard.slot_heat")?;
        assert_eq!(hot, "0", "{}", scenes[at].name);
    }
    scenes[0].set_mode("auto")?;
    scenes[2].set_mode("auto")?;
    let until_s = judged_s + DAY_S;
    sleep_until(until_s + 1.5);
    let mut over = [0; 4];
    for (at, scene) in scenes.iter_mut().enumerate() {
        over[at] = scene.overloaded(judged_s, until_s)?;
        println!("{}", scene.told(judged_s, until_s)?);
    }
    println!("overloaded seconds: {names:?} {over:?}");

    // Before the first second in which a shard was overloaded where nothing moves, the moves were done, but one that had
    // just begun.
    assert!(over[1] >= 5, "the peak did not come");
    let peak = scenes[1].client.query_one(&format!(
        "SELECT min(at) FROM ({}) q WHERE load > capacity",
        Scene::seconds(judged_s, until_s)
    ))?;
    let ahead = format!(
        "SELECT count(*) FILTER (WHERE swapped_at < '{peak}') >= 2 \
             AND bool_and(phase = 'done' AND (swapped_at < '{peak}' OR created_at > '{peak}'::timestamptz - interval '{MOVE_S} s')) \
             AND bool_and(reason LIKE '%will be above%') FROM foreshard.move WHERE created_at < '{peak}'"
    );
    assert_eq!(scenes[0].client.query_one(&ahead)?, "t", "moved before {peak}");
    assert!(2 * over[0] <= over[1], "{over:?}");

    // Where the forecasts were wrong, moves did no harm, and forecasts are not trusted any longer.
    // The two are different clients at different times: seconds at the edge of the capacity may fall on either side.
    assert!(over[3] >= 5 && over[2] <= over[3] + EDGE_S, "{over:?}");
    let acted = "SELECT count(*) > 0 FROM foreshard.move WHERE reason LIKE '%will be above%'";
    assert_eq!(scenes[2].client.query_one(acted)?, "t");
    let patience = Duration::from_secs_f64(DAY_S * if long { 6.0 } else { 4.0 });
    // By what became of steps, or by what forecasts covered of what came; or it speaks no more, since the days that were seen speak against it.
    let silent = format!(
        "SELECT count(*) = 0 AND now() > to_timestamp({until_s} + {SILENT_DAYS} * {DAY_S}) FROM foreshard.move \
         WHERE reason LIKE '%will be above%' AND created_at > greatest(to_timestamp({until_s}), now() - make_interval(secs => {SILENT_DAYS} * {DAY_S}))"
    );
    let covers =
        "SELECT round(avg(coverage)::numeric, 2) FROM foreshard.forecast_errors WHERE resolution_s = 1";
    let mut why = (String::new(), 1.0);
    let withdrawn = wait_until("foresight is withdrawn", patience, || {
        why = (scenes[2].trust()?, scenes[2].client.query_one(covers)?.parse().unwrap_or(1.0));
        Ok(why.0 == "withdrawn" || why.1 < LEAST_COVERED || scenes[2].client.query_one(&silent)? == "t")
    });
    println!(
        "{:.0} s after the judged day: {why:?} {}",
        now_s() - until_s,
        scenes[2].told(judged_s, now_s())?
    );
    withdrawn?;
    for load in loads {
        let load = load?;
        assert!(load.error_texts().is_empty(), "{:?}", load.error_texts());
    }
    wait_for(&mut scenes[0].client, "SELECT count(*) FROM t", &(SLOTS * 25).to_string())
}

/// A time that has not come.
fn marker() -> std::sync::Arc<std::sync::atomic::AtomicU64> {
    std::sync::Arc::new(std::sync::atomic::AtomicU64::new(u64::MAX))
}
