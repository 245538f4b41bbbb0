//! report_html() in a real browser, status() and check() as a person sees them.

mod support;

use foreshard_test::install::repository;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{cluster, database, expect_error, move_away, wait_for, wait_for_move};

/// Names as nobody should choose them.
const EVIL: &str = "</script><img src=x onerror=alert(1)>\"&'";

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A browser, if there is one; without it a test on CI fails.
fn browser() -> Result<Option<PathBuf>> {
    let places = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
    if let Some(found) = places.iter().map(Path::new).find(|path| path.exists()) {
        return Ok(Some(found.to_path_buf()));
    }
    if std::env::var("CI").is_ok_and(|ci| ci == "true") {
        return Err(Error::new(
            "There is no Chromium.",
            "apt-get install chromium; scripts/bootstrap.sh does it.",
        ));
    }
    println!("skipped: report_renders_in_a_browser, there is no Chromium (apt-get install chromium)");
    Ok(None)
}

/// Runs the browser on a page of a folder; what it printed and what it logged.
fn browse(browser: &Path, folder: &Path, page: &str, name: &str, more: &[&str]) -> Result<(String, String)> {
    let mut command = Command::new("timeout");
    command
        .arg("60")
        .arg(browser)
        .args([
            "--disable-dev-shm-usage",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--hide-scrollbars",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--enable-logging=stderr", "--v=0"])
        .arg(format!("--user-data-dir={}", folder.join(format!("profile-{name}")).display()))
        .args(more)
        .arg(format!("file://{}", folder.join(page).display()));
    let mut output = command.output()?;
    // Chromium is not ours: one that crashes (it does, once in some hundred starts) says nothing of the page.
    for _ in 0..2 {
        if output.status.code().is_some() {
            break;
        }
        println!("the browser ended with {}, once more", output.status);
        output = command.output()?;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(Error::new(format!("The browser ended with {}.", output.status), text(&output.stderr)));
    }
    Ok((text(&output.stdout), text(&output.stderr)))
}

/// Width and height in the header of a PNG file, and how many bytes it has.
fn png(path: &Path) -> Result<(u32, u32, usize)> {
    let bytes = std::fs::read(path)?;
    let number =
        |at: usize| bytes.get(at..at + 4).map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
    Ok((number(16), number(20), bytes.len()))
}

/// A database in which everything that is reported is there, under hostile names.
fn furnished(cluster: &Cluster) -> Result<Client> {
    let mut c = database(cluster, "d")?;
    let (table, evil) = (quoted(&EVIL[..30]), EVIL.replace('\'', "''"));
    c.exec(&format!(
        "CREATE TABLE {table} (id bigint PRIMARY KEY, v text); INSERT INTO {table} SELECT g, 'v' FROM generate_series(1, 2000) g; \
         CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; \
         CREATE TRIGGER {table} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION noted(); \
         SELECT foreshard.add_shard('{evil}', 'ts_a'); SELECT foreshard.distribute('{}', 'id', 8)",
        table.replace('\'', "''")
    ))?;
    let slot = c.query_one("SELECT min(slot_id) FROM foreshard.slots")?;
    let move_id = move_away(&mut c, &slot)?;
    wait_for_move(&mut c, &move_id, "done")?;
    // What takes hours to be learnt; the keeper, which would replace it, does not run meanwhile.
    c.exec(&format!(
        "INSERT INTO foreshard.heat_history (resolution_s, slot_id, bucket_at, cost_units_per_s) \
             SELECT 10, s.slot_id, date_trunc('minute', now()) - g * interval '10 s', 20 + 15 * sin(g / 6.0) + 3 * s.slot_id FROM foreshard.slot s, generate_series(0, 60) g \
             ON CONFLICT DO NOTHING; \
         INSERT INTO foreshard.forecast (slot_id, at, cost_units_per_s, lower, upper, interval_level, model, history_buckets, made_at) \
             SELECT s.slot_id, date_trunc('minute', now()) + g * interval '10 s', 22 + g + 3 * s.slot_id, 15 + 3 * s.slot_id, 40 + 4 * s.slot_id, 0.9, 'naive', 60, now() \
             FROM foreshard.slot s, generate_series(1, 30) g ON CONFLICT DO NOTHING; \
         INSERT INTO foreshard.recommendation (made_at, action, slot_id, from_shard, to_shard, confidence, benefit, bytes, imbalance_before, imbalance_after, reason, refusal, advice) \
             SELECT now(), 'move', min(s.slot_id), min(s.shard_id), (SELECT max(shard_id) FROM foreshard.shard), 0.87, 3, 81920, 1.6, 1.2, '{evil}', 'low_confidence', '{evil}' FROM foreshard.slot s; \
         INSERT INTO foreshard.hot_key (group_id, key_hash, table_oid, slot_id, key, truncated, accesses_per_s, lower, upper, access_score, observed_at) \
             SELECT s.group_id, s.slot_id, p.table_oid, s.slot_id, '{evil}', false, 10 * s.slot_id, 8 * s.slot_id, 12 * s.slot_id, 1, now() FROM foreshard.slot s JOIN foreshard.slot_partition p USING (slot_id); \
         INSERT INTO foreshard.group_trust SELECT group_id, 'earned', 12, 0.8, 0.75, now() FROM foreshard.colocation_group; \
         INSERT INTO foreshard.outcome (group_id, slot_id, from_shard, to_shard, raw, stated, stay, there, from_capacity, to_capacity, capacity, least_gain, drains, foreseen, resolution_s, made_at, due_at, judged_at, paid) \
             SELECT g.group_id, 1, 1, 2, 0.8, n / 10.0, '{{}}', '{{}}', 1, 1, 1, 0, false, true, 10, now(), now(), now(), n > 4 FROM foreshard.colocation_group g, generate_series(1, 9) n; \
         CREATE TABLE e (s text, t text, PRIMARY KEY (s, t)); INSERT INTO e VALUES ('{evil}', 'b'), ('b', 'c'), ('c', 'd'); \
         SELECT foreshard.create_graph('g', 'e', 's', 't'); SELECT foreshard.refresh_influence('g')"
    ))?;
    Ok(c)
}

#[test]
fn report_renders_in_a_browser() -> Result<()> {
    let cluster = cluster(
        &ClusterOptions::new("report").set("foreshard.bucket", "1h").set("foreshard.plan_interval", "1d"),
    )?;
    let mut c = furnished(&cluster)?;
    let page = c.query_one("SELECT foreshard.report_html()")?;
    assert!(!page.contains("<img") && !page.contains("<script"), "a name became markup");
    // Who may not see the keys gets the report without them; others none.
    c.exec("CREATE ROLE watcher; GRANT pg_monitor TO watcher; CREATE ROLE nobody_else; SET ROLE watcher")?;
    let seen = c.query_one("SELECT foreshard.report_html()")?;
    let keys = |page: &str| {
        page.split("id=\"keys\"")
            .nth(1)
            .map_or(0, |rest| rest.split("</section>").next().unwrap_or("").matches("<i>hidden").count())
    };
    assert!(keys(&seen) > 0 && keys(&page) == 0, "keys: {} {}", keys(&seen), keys(&page));
    c.exec("SET ROLE nobody_else")?;
    for function in ["report_html", "status", "check"] {
        expect_error(&mut c, "42501", &format!("SELECT foreshard.{function}()"))?;
    }
    c.exec("RESET ROLE")?;
    let Some(browser) = browser()? else { return Ok(()) };
    let folder = repository().join("target/report-test");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("report.html"), &page)?;
    // A window is 500 wide at least, a frame is not.
    std::fs::write(
        folder.join("narrow.html"),
        "<body style='margin:0'><iframe src='report.html' style='border:0;width:420px;height:7600px'></iframe>",
    )?;
    let (wide, dark, narrow) = ("wide.png", "dark.png", "narrow.png");
    let shot = |page: &str, file: &str, size: &str, more: &str| {
        let target = format!("--screenshot={}", folder.join(file).display());
        browse(&browser, &folder, page, file, &[&target, &format!("--window-size={size}"), more])
    };
    // Three of them at a time: a browser mostly waits.
    let logs = std::thread::scope(|scope| {
        let tasks = [
            scope.spawn(|| shot("report.html", wide, "1280,4600", "--incognito")),
            scope.spawn(|| shot("report.html", dark, "1280,4600", "--force-dark-mode")),
            scope.spawn(|| shot("narrow.html", narrow, "500,7600", "--incognito")),
            scope.spawn(|| browse(&browser, &folder, "report.html", "dom", &["--dump-dom"])),
        ];
        tasks
            .into_iter()
            .map(|task| task.join().unwrap_or_else(|_| Err(Error::new("A browser's thread ended.", ""))))
            .collect::<Result<Vec<_>>>()
    })?;
    for (_, log) in &logs {
        assert!(!log.contains("CONSOLE"), "the console says:\n{log}");
    }
    let dom = &logs[3].0;
    assert!(!dom.contains("<img") && !dom.contains("<script"), "a name became an element");
    for figure in [
        "figure class=\"heat\"",
        "figure class=\"curve\"",
        "class=\"shards\"",
        "figure class=\"timeline\"",
        "figure class=\"square\"",
        "path class=\"band\"",
        "path class=\"planned\"",
        "class=\"whisker\"",
    ] {
        assert!(dom.contains(figure), "{figure} is missing");
    }
    for section in ["todo", "shards", "curves", "heat", "moves", "triggers", "keys", "graphs", "calibration"]
    {
        let body = dom
            .split(&format!("<section id=\"{section}\""))
            .nth(1)
            .and_then(|rest| rest.split("</section>").next());
        assert!(
            body.is_some_and(|body| body.contains("<details") || section == "todo" || section == "triggers"),
            "{section} has no table"
        );
    }
    for (file, width, height) in [(wide, 1280, 4600), (dark, 1280, 4600), (narrow, 500, 7600)] {
        let (w, h, bytes) = png(&folder.join(file))?;
        assert!((w, h) == (width, height) && bytes > 100_000, "{file}: {w} x {h}, {bytes} bytes");
    }
    Ok(())
}

#[test]
fn status_and_check_say_what_is_wrong() -> Result<()> {
    let options =
        ClusterOptions::new("check").set("foreshard.bucket", "1").set("foreshard.min_free_disk", "5");
    let mut cluster = Cluster::start(&options)?;
    let mut c = cluster.connect("postgres")?;
    c.exec("CREATE EXTENSION foreshard; SELECT foreshard.add_shard('a'), foreshard.add_shard('b'); CREATE TABLE t (id bigint PRIMARY KEY, v text)")?;
    c.exec("SELECT foreshard.distribute('t', 'id', 4); CREATE TABLE e (s int, t int, PRIMARY KEY (s, t)); SELECT foreshard.create_graph('g', 'e', 's', 't')")?;
    wait_for(&mut c, "SELECT count(*) FROM foreshard.check(closures => true)", "0")?;
    wait_for(&mut c, "SELECT count(*) > 0 FROM foreshard.heat_map WHERE length(recent) > 1", "t")?;
    let status = c.exec("SELECT * FROM foreshard.status()")?.to_text();
    for said in ["foreshard 0.1.0, preloaded", "4 slots on 2 shards", "problems|none", "moves|none", "advise"]
    {
        assert!(status.contains(said), "{said} is not in\n{status}");
    }
    assert_eq!(c.query_one("SELECT foreshard.sparkline('{1,NULL,8,0,4}')")?, "▁ █▁▄");
    // A closure that the caller may not compare is named.
    c.exec("CREATE ROLE looker; GRANT pg_monitor TO looker; SET ROLE looker")?;
    let silent = "SELECT string_agg(severity || ' ' || object, ',') FROM foreshard.check(closures => true)";
    assert_eq!(c.query_one(silent)?, "notice graph g");
    c.exec("RESET ROLE")?;
    // Break what there is to break, and see it named.
    let partition = c.query_one("SELECT min(partition::text) FROM foreshard.slots")?;
    c.exec(&format!(
        "CREATE TABLE foreshard.shadow_1_2 (id int); CREATE PUBLICATION p FOR TABLE {partition}; DROP TRIGGER foreshard_graph_1_edges_delete ON e; \
         CREATE TRIGGER stray AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION foreshard.capture(); \
         UPDATE foreshard.shard SET tablespace_name = 'nowhere' WHERE shard_name = 'b'"
    ))?;
    cluster.set_and_reload(&[("foreshard.hold_at_phase", "copy"), ("track_counts", "off")])?;
    let mut c = cluster.connect("postgres")?;
    let found =
        c.exec("SELECT severity || ' ' || object || ': ' || problem FROM foreshard.check()")?.to_text();
    for said in [
        "warning relation foreshard.shadow_1_2: left over",
        "warning publication p: names a partition",
        "error graph g: its closure is not kept",
        "warning trigger stray on public.t: captures changes",
        "error shard b: its tablespace does not exist",
        "warning setting foreshard.hold_at_phase: moves wait",
        "error setting track_counts: loads cannot be observed",
    ] {
        assert!(found.contains(said), "{said} is not in\n{found}");
    }
    assert_eq!(
        c.query_one("SELECT count(*) FROM foreshard.check() WHERE hint = ''")?,
        "0",
        "every problem says how to fix it"
    );
    let status = c.exec("SELECT * FROM foreshard.status()")?.to_text();
    assert!(status.contains("errors, "), "{status}");
    assert!(c.query_one("SELECT foreshard.report_html()")?.contains("its tablespace does not exist"));
    Ok(())
}

/// Monitoring must not hang behind the DDL that one wants to see.
#[test]
fn whoever_looks_waits_for_nobody() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::new("looks").set("foreshard.bucket", "1"))?;
    let mut c = cluster.connect("postgres")?;
    c.exec(
        "CREATE EXTENSION foreshard; SELECT foreshard.add_shard('a'), foreshard.add_shard('b'); \
         CREATE TABLE t (id bigint PRIMARY KEY, v text); \
         INSERT INTO t SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 300) g; CREATE INDEX t_v_idx ON t (left(v, 9)); \
         SELECT foreshard.distribute('t', 'id', 4); \
         CREATE TABLE e (s int, t int, PRIMARY KEY (s, t)); INSERT INTO e VALUES (1, 2); SELECT foreshard.create_graph('g', 'e', 's', 't')",
    )?;
    let same = "SELECT bool_and(bytes = pg_total_relation_size(partition)) FROM foreshard.slots";
    wait_for(&mut c, same, "t")?;
    assert_eq!(c.query_one("SELECT foreshard.total_bytes(0) IS NULL")?, "t");
    let (partition, index) = c
        .query_one("SELECT format('%s %s', partition, min(indexrelid::regclass::text)) FROM foreshard.slots JOIN pg_index ON indrelid = partition GROUP BY partition ORDER BY 1 LIMIT 1")?
        .split_once(' ')
        .map(|(partition, index)| (partition.to_owned(), index.to_owned()))
        .unwrap_or_default();
    // The keeper goes on reading while a partition is locked.
    let mut locker = cluster.connect("postgres")?;
    locker.exec(&format!("BEGIN; LOCK TABLE {partition} IN ACCESS EXCLUSIVE MODE; REINDEX INDEX {index}"))?;
    let locked_at = c.query_one("SELECT clock_timestamp()")?;
    let read = format!(
        "SELECT max(observed_at) > '{locked_at}'::timestamptz + interval '3 s' FROM foreshard.heat_map"
    );
    wait_for(&mut c, &read, "t")?;
    let all = c.query_one("SELECT concat_ws(', ', closure, metagraph, components) FROM foreshard.graph")?;
    locker.exec(&format!("LOCK TABLE t, e, {all} IN ACCESS EXCLUSIVE MODE"))?;
    c.exec("SET lock_timeout = '2s'")?;
    for view in ["slots", "shards", "graphs", "layout_problems", "catalog_problems", "status()", "check()"] {
        c.exec(&format!("SELECT * FROM foreshard.{view}"))?;
    }
    assert!(c.query_one("SELECT foreshard.report_html()")?.len() > 1000);
    assert_eq!(c.query_one("SELECT bool_and(bytes > 0) FROM foreshard.slots")?, "t");
    assert_eq!(c.query_one("SELECT closure_bytes > 0 FROM foreshard.graphs")?, "t");
    locker.exec("ROLLBACK")?;
    wait_for(&mut c, same, "t")
}
