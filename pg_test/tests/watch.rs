//! The time after a swap: it is judged against the time before, which outlives a crash, and against the forecast of the slot's load;
//! and the time before it: a canary steps down, and gives up, by itself.

mod common;

use common::{PATIENCE, Server, options};
use foreshard_test::{Client, Result, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// `touch` takes as long as the table `fault` says for what it is called with; while a canary routes, only if the statement reads a copy.
const SETUP: &str = "
    CREATE TABLE t (id bigint PRIMARY KEY, v text);
    INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 2000) g;
    CREATE TABLE other (id bigint PRIMARY KEY, v text);
    INSERT INTO other SELECT g, 'v' || g FROM generate_series(1, 2000) g;
    CREATE TABLE fault (what text PRIMARY KEY, kind text, s float8);
    INSERT INTO fault VALUES ('slot', 'always', 0.0002), ('other', 'always', 0.0002);
    CREATE FUNCTION touch(w text) RETURNS void LANGUAGE plpgsql AS $$
    DECLARE f fault; BEGIN
        SELECT * INTO f FROM fault WHERE what = w;
        IF f.kind = 'fails' THEN RAISE 'the disk is broken'; END IF;
        IF f.kind = 'always' OR EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                                        WHERE l.pid = pg_backend_pid() AND c.relname LIKE 'shadow\\_%' AND c.relkind = 'r') THEN
            IF f.kind = 'error' THEN RAISE 'the disk of the copy is broken'; END IF;
            PERFORM pg_sleep(f.s);
        END IF;
    END $$;
    SELECT foreshard.distribute('t', 'id', 2)";

struct Site {
    server: Server,
    slot: String,
    key: String,
}

impl Site {
    fn new(name: &str, steps: &str) -> Result<Site> {
        let options = options(name)
            .set("foreshard.canary_steps", steps)
            .set("foreshard.canary_dwell", "600")
            .set("foreshard.rollback_window", "600")
            .set("foreshard.plan_interval", "86400");
        let mut server = Server::start(&options)?;
        server.query(SETUP)?;
        let slot = server.slots("t")?[0].clone();
        let of_slot = format!(
            "SELECT min(t.id) FROM t JOIN foreshard.slots s ON s.partition = t.tableoid WHERE s.slot_id = {slot}"
        );
        let key = server.query(&of_slot)?;
        Ok(Site { server, slot, key })
    }

    fn fault(&mut self, kind: &str, s: &str) -> Result<()> {
        self.server.query(&format!("UPDATE fault SET kind = '{kind}', s = {s} WHERE what = 'slot'")).map(drop)
    }

    /// Begins a move and lets it stand before its cutover, its statements being counted.
    fn before_cutover(&mut self) -> Result<String> {
        self.server.hold(Some("cutover"))?;
        let move_id = self.server.move_slot(&self.slot)?;
        self.server.wait_phase(&move_id, "cutover")?;
        Ok(move_id)
    }

    fn cut_over(&mut self, move_id: &str) -> Result<()> {
        self.server.hold(None)?;
        let phase = format!("SELECT phase FROM foreshard.move WHERE move_id = {move_id}");
        self.server.wait_query(&phase, "watch")
    }

    /// Asserts that nothing undoes the move; else says why something did.
    fn assert_watched(&mut self, move_id: &str, why: &str) -> Result<()> {
        let phase = self.server.phase(move_id)?;
        let told = self.history(move_id, "regression", "detail")?;
        assert_eq!(phase, "watch", "{why}, and yet: {told}");
        Ok(())
    }

    fn history(&mut self, move_id: &str, event: &str, what: &str) -> Result<String> {
        self.server.query(&format!(
            "SELECT {what} FROM foreshard.history WHERE event = '{event}' AND move_id = {move_id}"
        ))
    }
}

/// Clients that look up a key of the slot, and one of another table, until they are dropped.
struct Reads {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Reads {
    /// So many clients, each of which rests so long after every look-up. A connection that is lost is made again.
    fn start(site: &Site, clients: usize, rest: Duration) -> Reads {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..clients).map(|_| {
            let (stop, done, conninfo, key) =
                (stop.clone(), done.clone(), site.server.cluster.conninfo("postgres"), site.key.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Ok(mut client) = Client::connect(&conninfo) {
                        read(&mut client, &key, rest, &stop, &done);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        });
        Reads { threads: threads.collect(), stop, done }
    }

    /// Waits until so many look-ups more were made.
    fn more(&self, count: u64) -> Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + count;
        wait_until("look-ups", PATIENCE, || Ok(self.done.load(Ordering::Relaxed) >= wanted))
    }
}

fn read(client: &mut Client, key: &str, rest: Duration, stop: &AtomicBool, done: &AtomicU64) {
    let prepared = client.prepare("on", "SELECT v, touch('slot') FROM t WHERE id = $1").is_ok()
        && client.prepare("off", "SELECT v, touch('other') FROM other WHERE id = $1").is_ok();
    while prepared && !stop.load(Ordering::Relaxed) {
        let is_lost = |statement: &str| {
            client.exec_prepared(statement, &[Some(key)]).is_err_and(|error| error.sqlstate != "P0001")
        };
        if ["on", "off"].into_iter().any(is_lost) {
            return;
        }
        done.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(rest);
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// What was counted before the swap outlives the keeper and the server: the watch goes on, from the beginning of its window, says so,
/// and undoes the swap when statements become slower.
#[test]
fn the_watch_outlives_a_crash() -> Result<()> {
    let mut site = Site::new("watch-crash", "")?;
    let move_id = site.before_cutover()?;
    let reads = Reads::start(&site, 1, Duration::from_millis(1));
    reads.more(400)?;
    site.cut_over(&move_id)?;
    reads.more(50)?;
    let resumed = format!(
        "SELECT count(*) || ' ' || bool_and((detail #>> '{{before,statements}}')::int >= 400) FROM foreshard.history \
         WHERE event = 'watch' AND move_id = {move_id} AND detail ? 'resumed'"
    );
    site.server.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'foreshard keeper' AND datname = current_database()",
    )?;
    site.server.wait_query(&resumed, "1 true")?;
    site.server.cluster.kill9_postmaster()?;
    site.server.cluster.start_again()?;
    site.server.wait_query(&resumed, "2 true")?;
    let anew = format!(
        "SELECT watch_from > swapped_at AND phase = 'watch' FROM foreshard.move WHERE move_id = {move_id}"
    );
    assert_eq!(site.server.query(&anew)?, "t");
    reads.more(200)?;
    site.assert_watched(&move_id, "nothing is slower")?;
    site.fault("always", "0.004")?;
    site.server.wait_end(&move_id, "cancelled")?;
    let why = site.history(&move_id, "regression", "detail ->> 'reason'")?;
    assert!(why.contains("slower than before the move") && why.contains("no load was forecast"), "{why}");
    drop(reads);
    site.server.assert_settled()
}

/// Statements that fail since the swap undo it, unless all others fail as often.
#[test]
fn failures_undo_a_swap() -> Result<()> {
    let mut site = Site::new("watch-errors", "")?;
    let move_id = site.before_cutover()?;
    // As if it had been recommended.
    site.server
        .query(&format!("UPDATE foreshard.move SET recommendation_id = 815 WHERE move_id = {move_id}"))?;
    let reads = Reads::start(&site, 1, Duration::from_millis(1));
    reads.more(400)?;
    site.cut_over(&move_id)?;
    site.server.query("UPDATE fault SET kind = 'fails'")?;
    reads.more(300)?;
    // The keeper looks every second.
    std::thread::sleep(Duration::from_millis(2_500));
    site.assert_watched(&move_id, "everything fails")?;
    site.server.query("UPDATE fault SET kind = 'always' WHERE what = 'other'")?;
    site.server.wait_end(&move_id, "cancelled")?;
    let why = site.history(&move_id, "regression", "detail ->> 'reason'")?;
    assert_eq!(why, "statements on the slot fail more often than before the move");
    // For a day it is left to persons.
    let undone = format!("SELECT undone_at IS NOT NULL FROM foreshard.move WHERE move_id = {move_id}");
    assert_eq!(site.server.query(&undone)?, "t");
    drop(reads);
    site.server.assert_settled()
}

/// As many statements more as were forecast may make each slower; as many that were not may not.
#[test]
fn a_forecast_load_is_no_regression() -> Result<()> {
    let mut site = Site::new("watch-forecast", "")?;
    for (times, undone) in [(100.0, false), (1.0, true)] {
        site.fault("always", "0.0002")?;
        let move_id = site.before_cutover()?;
        let before = Reads::start(&site, 1, Duration::from_millis(12));
        before.more(130)?;
        let slot = site.slot.clone();
        let known = format!(
            "foreshard.heat_history h JOIN foreshard.move m ON m.move_id = {move_id} AND h.slot_id = m.slot_id \
             AND h.resolution_s = 1 AND h.bucket_at > m.measured_from - interval '1 s'"
        );
        // A bucket of a busy machine may have none of the load: then the forecast would be of none.
        site.server.wait_query(
            &format!("SELECT count(*) FILTER (WHERE h.cost_units_per_s > 0) >= 2 FROM {known}"),
            "t",
        )?;
        // The load of the last buckets, times that.
        site.server.query(&format!(
            "DELETE FROM foreshard.forecast; \
             INSERT INTO foreshard.forecast (slot_id, at, cost_units_per_s, lower, upper, interval_level, model, history_buckets, made_at) \
             SELECT {slot}, date_trunc('minute', now()) + g * interval '1 min', l.load * {times}, l.load * {times} * 0.7, l.load * {times} * 1.3, 0.9, 'test', 1, now() \
             FROM generate_series(0, 20) g, (SELECT avg(cost_units_per_s) AS load FROM {known}) l"
        ))?;
        site.cut_over(&move_id)?;
        drop(before);
        let after = Reads::start(&site, 5, Duration::ZERO);
        site.fault("always", "0.005")?;
        if undone {
            site.server.wait_end(&move_id, "cancelled")?;
            let why = site.history(&move_id, "regression", "detail ->> 'reason'")?;
            assert!(why.contains("the load is more than forecast: "), "{why}");
        } else {
            after.more(800)?;
            site.assert_watched(&move_id, "the load was forecast")?;
            site.server.set(&[("foreshard.rollback_window", "1")])?;
            site.server.wait_end(&move_id, "done")?;
            site.server.set(&[("foreshard.rollback_window", "600")])?;
            let explained = site.history(&move_id, "watch", "detail ->> 'explained'")?;
            assert!(
                explained.contains("the load is as forecast: ") || explained.contains("less than forecast: "),
                "{explained}"
            );
            let watched = site.history(
                &move_id,
                "watched",
                "concat_ws(' ', detail #> '{load,beyond_forecast}', (detail #>> '{load,explains}')::float8 > 2, \
                 (detail #>> '{load,statements_per_s}')::float8 > 3 * (detail #>> '{load,statements_per_s_before}')::float8, \
                 (detail #>> '{load,measured}')::float8 > 0, detail #> '{load,forecast,mean}' IS NOT NULL, \
                 detail #> '{load,cost_per_statement}' IS NOT NULL)",
            )?;
            assert_eq!(watched, "false t t t t t");
        }
    }
    site.server.assert_settled()
}

/// Reads of the copy that are slower make the canary step down, and in the end give up; those that fail end it at once.
#[test]
fn a_canary_steps_down_and_gives_up() -> Result<()> {
    let mut site = Site::new("watch-canary", "30, 60")?;
    let weights = |move_id: &str| {
        format!(
            "SELECT string_agg(coalesce(detail ->> 'weight', 'refused'), ' ' ORDER BY event_id) FROM foreshard.history \
             WHERE event = 'canary' AND move_id = {move_id} AND (detail ? 'weight' OR detail ? 'refused')"
        )
    };
    let reads = Reads::start(&site, 2, Duration::ZERO);
    for (kind, s, steps, why) in [
        ("slow", "0.004", "0.3 0.6 0.3", "reads of the copy are slower: median of "),
        ("error", "0", "0.3 0.6 refused", "reads of the copy fail more often"),
    ] {
        site.fault("none", "0")?;
        let move_id = site.server.move_slot(&site.slot)?;
        site.server.wait_query(&weights(&move_id), "0.3 0.6")?;
        site.fault(kind, s)?;
        site.server.wait_end(&move_id, "failed")?;
        // On a busy machine those that stay are slow at times, too, and it climbs again.
        let taken = site.server.query(&weights(&move_id))?;
        assert!(taken.starts_with(steps) && taken.ends_with(" refused"), "{kind}: {taken}");
        let refused = format!("{} AND detail ? 'refused'", site_event(&move_id));
        let named = site.server.query(&format!("SELECT detail ->> 'refused' {refused}"))?;
        assert!(named.starts_with(why), "{named}");
        let told = site
            .server
            .query(&format!("SELECT last_error FROM foreshard.progress_moves WHERE move_id = {move_id}"))?;
        assert_eq!(told, named);
        let counted = site.server.query(&format!(
            "SELECT (detail #>> '{{routed,errors}}')::int > 5 FROM (SELECT detail {refused}) q"
        ))?;
        assert_eq!(counted, if kind == "error" { "t" } else { "f" }, "{kind}");
    }
    drop(reads);
    site.server.assert_settled()
}

fn site_event(move_id: &str) -> String {
    format!("FROM foreshard.history WHERE event = 'canary' AND move_id = {move_id}")
}
