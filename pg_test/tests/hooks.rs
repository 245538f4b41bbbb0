//! Hooks only observe: a script of everything they could spoil prints the same, errors with all their
//! fields included, whether every statement and trigger call is measured or none.

mod support;

use foreshard_test::{ClusterOptions, Error, Result, wait_until};
use std::process::Stdio;
use support::{PATIENCE, cluster, database};

const SETUP: &str = "CREATE TABLE acc (id bigint PRIMARY KEY, bal bigint, note text); \
    INSERT INTO acc SELECT g, 0, repeat('x', 50) FROM generate_series(1, 20000) g; \
    CREATE TABLE b (id bigint PRIMARY KEY, acc_id bigint, v int); \
    CREATE TABLE audit (id bigint); \
    SELECT foreshard.distribute('acc', 'id', 8), foreshard.distribute('b', 'id', 8); \
    ANALYZE acc, b";

const WATCHED: &str = "SET foreshard.trigger_sample_interval = 1; SET foreshard.statement_sample_interval = 1; \
    SET foreshard.key_sample_interval = 1; SET foreshard.observe_budget = 100;\n";
const UNWATCHED: &str = "SET foreshard.observe = off;\n";

/// What psql prints when it runs the script, with every field of every error.
fn printed(cluster: &foreshard_test::Cluster, database: &str, settings: &str) -> Result<String> {
    let script = format!("{settings}\\set VERBOSITY verbose\n{}", include_str!("../sql/hooks.sql"));
    let failed = |e: std::io::Error| Error::new(format!("psql did not run: {e}"), "");
    let mut psql = cluster
        .client_command("psql", database)
        .args(["-X", "-q", "-a"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = psql.stdin.take() {
        std::thread::spawn(move || std::io::Write::write_all(&mut input, script.as_bytes()));
    }
    let output = psql.wait_with_output().map_err(failed)?;
    let all = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&all).into_owned();
    Ok(text.lines().filter(|line| !line.starts_with("SET foreshard")).collect::<Vec<_>>().join("\n"))
}

#[test]
fn watching_changes_no_result() -> Result<()> {
    for libraries in ["foreshard", "pg_stat_statements,foreshard"] {
        let options = ClusterOptions::new("hooks")
            .set("foreshard.bucket", "1")
            .set("foreshard.hot_slot_threshold", "0")
            .set("shared_preload_libraries", libraries);
        let cluster = cluster(&options)?;
        let mut outputs = Vec::new();
        for (name, settings) in [("watched", WATCHED), ("unwatched", UNWATCHED)] {
            let mut client = database(&cluster, name)?;
            client.exec(SETUP)?;
            wait_until("the tables are watched", PATIENCE, || {
                client.exec("UPDATE b SET v = v WHERE id = 1")?;
                let used = "SELECT sum(used) >= 18 FROM foreshard.stat_foreshard WHERE area = 'relations'";
                Ok(client.query_one(used)? == "t")
            })?;
            outputs.push(printed(&cluster, name, settings)?);
            let known = "SELECT count(*) FILTER (WHERE sampled_calls > 0) FROM foreshard.stat_triggers";
            if name == "watched" {
                // The comparison would prove nothing if nothing had been measured.
                wait_until("triggers are known", PATIENCE, || Ok(client.query_one(known)? == "6"))?;
            }
        }
        for expected in ["ERROR:  12345: boom 5", "CONSTRAINT NAME:  cc", "division_by_zero", "57014"] {
            assert!(outputs[0].contains(expected), "{expected} is missing in:\n{}", outputs[0]);
        }
        assert_eq!(outputs[0], outputs[1], "with {libraries}");
    }
    Ok(())
}
