//! After a move by Citus: whether statements fare worse than before it, so that the slot comes back; and ways back that somebody calls
//! off, or that fail.

mod common;

use common::citus::{ELSEWHERE, World, skipped, wait_for_citus};
use common::{PATIENCE, Server};
use foreshard_test::{Client, Result, wait_until};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// On a worker: how long statements take there that call it.
const TOUCH: &str = "SET citus.enable_ddl_propagation = off; CREATE TABLE fault (s float8); INSERT INTO fault VALUES (0.001); \
    CREATE FUNCTION touch(w bigint) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN PERFORM pg_sleep(s) FROM public.fault; RETURN 0; END $$; \
    RESET citus.enable_ddl_propagation";

/// What Citus sends there.
const TOUCH_HERE: &str = "SET citus.enable_ddl_propagation = off; \
    CREATE FUNCTION touch(w bigint) RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN RETURN 0; END $$; RESET citus.enable_ddl_propagation";

/// A tenant of a slot.
fn tenant(here: &mut Server, slot: &str) -> Result<String> {
    here.query(&format!(
        "SELECT min(g) FROM generate_series(1, 1000) g WHERE get_shard_id_for_distribution_column('tenant', g) \
         = (SELECT citus_shard FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 'tenant'::regclass)"
    ))
}

/// Clients that look up tenants, and do something else, until they are dropped.
struct Reads {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Reads {
    fn start(here: &Server, tenants: &[String]) -> Reads {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut statements: Vec<String> =
            tenants.iter().map(|id| format!("SELECT v, touch(id) FROM tenant WHERE id = {id}")).collect();
        statements.push("SELECT pg_sleep(0.001)".to_string());
        let threads = (0..2).map(|_| {
            let (stop, done, statements, conninfo) =
                (stop.clone(), done.clone(), statements.clone(), here.cluster.conninfo("postgres"));
            std::thread::spawn(move || {
                let Ok(mut client) = Client::connect(&conninfo) else { return };
                while !stop.load(Ordering::Relaxed) {
                    if statements.iter().all(|statement| client.exec(statement).is_ok()) {
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        });
        Reads { threads: threads.collect(), stop, done }
    }

    /// Waits until so many rounds more were made.
    fn more(&self, count: u64) -> Result<()> {
        let wanted = self.done.load(Ordering::Relaxed) + count;
        wait_until("look-ups", PATIENCE, || Ok(self.done.load(Ordering::Relaxed) >= wanted))
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn history(here: &mut Server, move_id: &str, event: &str, what: &str) -> Result<String> {
    here.query(&format!(
        "SELECT {what} FROM foreshard.history WHERE event = '{event}' AND move_id = {move_id}"
    ))
}

/// Files a move, as if it had been recommended, and waits until Citus has made it.
fn make(here: &mut Server, slot: &str, to: &str) -> Result<String> {
    let move_id = here.query(&format!("SELECT foreshard.move_slot({slot}, '{to}')"))?;
    here.query(&format!("UPDATE foreshard.move SET recommendation_id = 815 WHERE move_id = {move_id}"))?;
    let swapped = format!("SELECT swapped_at IS NOT NULL FROM foreshard.move WHERE move_id = {move_id}");
    here.wait_query(&swapped, "t")?;
    Ok(move_id)
}

#[test]
fn a_move_that_made_statements_slower_is_taken_back() -> Result<()> {
    if skipped("a_move_that_made_statements_slower_is_taken_back")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-watch")?;
    world.here.set(&[
        ("foreshard.rollback_window", "600"),
        ("foreshard.canary_dwell", "2000"),
        ("foreshard.max_slowdown", "3"),
        ("foreshard.plan_interval", "86400"),
    ])?;
    world.here.query(TOUCH_HERE)?;
    for worker in &mut world.workers {
        worker.query(TOUCH)?;
    }
    let (first, second) = (world.shard(0)?, world.shard(1)?);

    // Where nothing is slower the slot stays.
    let well = world.slot_on(0)?;
    let here = &mut world.here;
    let tenants = [tenant(here, &well)?];
    let reads = Reads::start(here, &tenants);
    let stays = make(here, &well, &second)?;
    here.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {stays}"), "watch")?;
    reads.more(300)?;
    // The keeper looks every second.
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(here.phase(&stays)?, "watch", "{}", history(here, &stays, "regression", "detail")?);
    drop(reads);

    // The other worker is slow, which was not known when the move was filed.
    let slow = world.slot_on(0)?;
    let last = world.here.query(&format!(
        "SELECT max(slot_id) FROM foreshard.slots WHERE \"table\" = 'tenant'::regclass AND shard = '{first}'"
    ))?;
    assert_ne!(slow, last);
    world.workers[1].query("UPDATE fault SET s = 0.08")?;
    let here = &mut world.here;
    // What goes elsewhere in the group is counted with it.
    let hot = tenant(here, &slow)?;
    let tenants = [hot.clone(), hot, tenant(here, &last)?];
    let reads = Reads::start(here, &tenants);
    let back = make(here, &slow, &second)?;
    here.wait_end(&back, "cancelled")?;
    drop(reads);
    assert_eq!(world.shard_of(&slow)?, first);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|0");
    let here = &mut world.here;
    let why = history(here, &back, "regression", "detail ->> 'reason'")?;
    assert!(
        why.starts_with("statements on the tables of the slot's group are slower than before the move: "),
        "{why}"
    );
    let measured = history(
        here,
        &back,
        "regression",
        "(detail #>> '{before,statements}')::int >= 100, (detail #>> '{after,statements}')::int >= 30, \
         (detail #>> '{others_before,statements}')::int > 0, (detail #>> '{after,p99_ms}')::float8 > (detail #>> '{before,p99_ms}')::float8",
    )?;
    assert_eq!(measured, "t|t|t|t");
    assert_eq!(history(here, &back, "moved_back", "count(*)")?, "1");

    // The one before it was judged until this one began, and not for what this one did.
    let over =
        history(here, &stays, "watch", "detail ->> 'over', (detail #>> '{after,statements}')::int >= 100")?;
    assert_eq!(over, format!("move {back}|t"));
    assert_eq!(here.phase(&stays)?, "watch");
    assert_eq!(history(here, &stays, "regression", "count(*)")?, "0");
    assert_eq!(world.shard_of(&well)?, second);
    not_again(&mut world.here, &slow, &back)?;
    world.here.set(&[("foreshard.rollback_window", "1")])?;
    world.here.wait_end(&stays, "done")
}

/// What was taken back is not taken by itself again: at first it rests, and then, for a day, it is left to persons.
fn not_again(here: &mut Server, slot: &str, move_id: &str) -> Result<()> {
    let undone = format!(
        "SELECT undone_at IS NOT NULL, undone_by = move_id FROM foreshard.move WHERE move_id = {move_id}"
    );
    assert_eq!(here.query(&undone)?, "t|t");
    here.set(&[("foreshard.observe", "off")])?;
    // A reading that has begun may end.
    std::thread::sleep(Duration::from_millis(1_500));
    // As hot as it takes for a plan to move it, or another one, in its place.
    here.query(&format!(
        "INSERT INTO foreshard.slot_heat (slot_id, observed_at, scans, rows_read, inserted, updated, deleted, blocks_read, blocks_hit, heat, hot_buckets) \
         SELECT s.slot_id, now(), 0, 0, 0, 0, 0, 0, 0, CASE s.shard_id WHEN k.shard_id THEN 100 ELSE 1 END, 5 \
         FROM foreshard.slot s CROSS JOIN (SELECT shard_id FROM foreshard.slot WHERE slot_id = {slot}) k \
         ON CONFLICT (slot_id) DO UPDATE SET heat = excluded.heat, hot_buckets = 5; \
         DELETE FROM foreshard.forecast; DELETE FROM foreshard.heat_history; \
         INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s) \
         SELECT 60, t.slot_id, to_timestamp(g * 60), 1, 1, 1, t.heat * (0.97 + 0.06 * random()) \
         FROM foreshard.slot_heat t, LATERAL (SELECT extract(epoch FROM now())::int8 / 60 AS now) n, generate_series(now - 200, now - 1) g"
    ))?;
    let said = format!(
        "SELECT count(*) FILTER (WHERE slot_id <> {slot}) > 0, count(*) FILTER (WHERE slot_id = {slot} AND refusal IS DISTINCT FROM 'undone') \
         FROM foreshard.recommend() WHERE action = 'move'"
    );
    for cooldown in ["600", "0"] {
        here.set(&[("foreshard.cooldown", cooldown)])?;
        here.wait_query(
            &format!("SELECT current_setting('foreshard.cooldown')::interval = interval '{cooldown} s'"),
            "t",
        )?;
        assert_eq!(here.query(&said)?, "t|0", "{}", here.query("SELECT r FROM foreshard.recommend() r")?);
    }
    Ok(())
}

#[test]
fn a_way_back_is_called_off_and_given_up() -> Result<()> {
    if skipped("a_way_back_is_called_off_and_given_up")? {
        return Ok(());
    }
    let mut world = World::adopted("citus-back")?;
    world.here.set(&[("foreshard.rollback_window", "600"), ("foreshard.plan_interval", "86400")])?;
    let second = world.shard(1)?;
    let slot = world.slot_on(0)?;
    let here = &mut world.here;
    let moved = make(here, &slot, &second)?;
    here.wait_query(&format!("SELECT phase FROM foreshard.move WHERE move_id = {moved}"), "watch")?;
    let id = tenant(here, &slot)?;

    // Citus waits for a writer; whoever calls the way back off need not.
    let mut writer = here.cluster.connect("postgres")?;
    writer.exec(&format!("BEGIN; UPDATE tenant SET v = v + 1 WHERE id = {id}"))?;
    assert_eq!(here.query(&format!("SELECT foreshard.cancel_move({moved})"))?, "f");
    assert_eq!(here.query(&format!("SELECT foreshard.rollback_move({moved})"))?, "t");
    let carrier = here.wait_phase(&moved, "watch")?;
    wait_for_citus(here, carrier)?;
    assert_eq!(here.query(&format!("SELECT foreshard.cancel_move({moved})"))?, "t");
    let carriers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'foreshard carrier'";
    here.wait_query(carriers, "0")?;
    let stands = format!(
        "SELECT phase, finished, rollback_requested, errors, undone_at IS NULL FROM foreshard.move WHERE move_id = {moved}"
    );
    assert_eq!(here.query(&stands)?, "watch|f|f|0|t");
    assert_eq!(history(here, &moved, "called_off", "count(*)")?, "1");
    writer.exec("COMMIT")?;
    assert_eq!(world.shard_of(&slot)?, second);
    assert_eq!(world.rows()?, "1000|1");

    // A way back that fails every time comes to an end: something has the name there that the shard would have.
    let here = &mut world.here;
    here.query("CALL citus_cleanup_orphaned_resources()")?;
    let name = here.query(&format!(
        "SELECT 'tenant_' || citus_shard FROM foreshard.slots WHERE slot_id = {slot} AND \"table\" = 'tenant'::regclass"
    ))?;
    world.workers[0].wait_query(&format!("SELECT to_regclass('public.{name}') IS NULL"), "t")?;
    world.workers[0].query(&format!(
        "SET citus.enable_ddl_propagation = off; CREATE TYPE public.{name} AS ENUM ('taken'); RESET citus.enable_ddl_propagation"
    ))?;
    let here = &mut world.here;
    assert_eq!(here.query(&format!("SELECT foreshard.rollback_move({moved})"))?, "t");
    here.wait_end(&moved, "done")?;
    let why = history(
        here,
        &moved,
        "gave_up",
        "detail ->> 'way_back', detail ->> 'reason' LIKE '%already exists%', length(detail ->> 'sqlstate'), (detail ->> 'errors')::int IN (3, 6)",
    )?;
    assert_eq!(why, "true|t|5|t");
    assert_eq!(world.shard_of(&slot)?, second);
    assert_eq!(world.here.query(ELSEWHERE)?, "0");
    assert_eq!(world.rows()?, "1000|1");
    Ok(())
}
