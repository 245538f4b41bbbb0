//! The harness itself: it starts, stops, crashes and recovers servers, with or without the
//! extension's library.

use foreshard_test::{Cluster, ClusterOptions, Result, StopMode};
use std::time::Duration;

fn plain(name: &str) -> ClusterOptions {
    ClusterOptions::new(name).set("shared_preload_libraries", "")
}

#[test]
fn starts_restarts_and_recovers() -> Result<()> {
    let mut cluster = Cluster::start(&plain("smoke"))?;
    let mut client = cluster.connect("postgres")?;
    assert_eq!(client.query_one("SELECT 1")?, "1");
    client.exec("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g")?;

    cluster.restart()?;
    assert!(client.exec("SELECT 1").is_err());
    let mut client = cluster.connect("postgres")?;
    client.exec("INSERT INTO t VALUES (1001)")?;

    cluster.kill9_postmaster()?;
    cluster.start_again()?;
    assert!(cluster.log_contents().contains("automatic recovery"));
    let mut client = cluster.connect("postgres")?;
    assert_eq!(client.query_one("SELECT count(*) FROM t")?, "1001");

    cluster.kill9(client.backend_pid())?;
    cluster.wait_ready(Duration::from_secs(30))?;
    assert_eq!(cluster.psql("postgres", "SELECT sum(g) FROM t")?, "501501\n");
    cluster.stop(StopMode::Fast)
}

#[test]
fn settings_tablespaces_and_dumps() -> Result<()> {
    let mut cluster = Cluster::start(&plain("settings").set("work_mem", "5MB"))?;
    let mut client = cluster.connect("postgres")?;
    assert_eq!(client.query_one("SHOW work_mem")?, "5MB");
    cluster.set_and_reload(&[("work_mem", "6MB"), ("cluster_name", "a 'quoted' one")])?;
    let mut client = cluster.connect("postgres")?;
    assert_eq!(client.query_one("SHOW work_mem")?, "6MB");
    cluster.restart()?;
    let mut client = cluster.connect("postgres")?;
    assert_eq!(client.query_one("SHOW cluster_name")?, "a 'quoted' one");

    let dir = cluster.make_tablespace_dir("s1")?;
    client.exec(&format!("CREATE TABLESPACE s1 LOCATION '{}'", dir.display()))?;
    client.exec("CREATE TABLE t (a int PRIMARY KEY) TABLESPACE s1")?;
    let dump = cluster.pg_dump_schema("postgres")?;
    assert!(dump.contains("CREATE TABLE public.t"));
    assert_eq!(dump, cluster.pg_dump_schema("postgres")?);
    Ok(())
}

#[test]
fn clients_report_errors_notices_and_waits() -> Result<()> {
    let cluster = Cluster::start(&plain("client"))?;
    let mut one = cluster.connect("postgres")?;
    let mut two = cluster.connect("postgres")?;
    one.exec("CREATE TABLE t (a int PRIMARY KEY, b text)")?;
    let copied = one.copy_in("COPY t FROM STDIN", |buffer| {
        buffer.extend_from_slice(b"1\tx\n2\t\\N\n");
        false
    })?;
    assert_eq!(copied, 2);
    let rows = one.exec_params("SELECT a, b FROM t WHERE a >= $1 ORDER BY a", &[Some("1")])?;
    assert_eq!((rows.len(), rows.field(0, "b"), rows.field(1, "b")), (2, Some("x"), None));
    assert_eq!(rows.parse::<i64>(1, "a"), Some(2));
    one.prepare("p", "UPDATE t SET b = $2 WHERE a = $1")?;
    assert_eq!(one.exec_prepared("p", &[Some("2"), Some("y")])?.affected(), 1);

    let error = one.exec("INSERT INTO t VALUES (1)").err();
    let error = error.ok_or("a duplicate was accepted")?;
    assert_eq!(error.sqlstate, "23505");
    assert!(error.detail.is_some_and(|detail| detail.contains("(a)=(1)")));
    one.exec("DO $$ BEGIN RAISE NOTICE 'hello' USING HINT = 'there'; END $$")?;
    assert_eq!(one.take_notices(), ["NOTICE: hello\nHINT: there"]);

    one.exec("BEGIN; LOCK TABLE t")?;
    two.send_query("SELECT count(*) FROM t")?;
    assert!(two.poll_result(Duration::from_millis(100))?.is_none());
    one.exec("COMMIT")?;
    let rows = two.poll_result(Duration::from_secs(10))?;
    assert_eq!(rows.map(|rows| rows.to_text()), Some("2".to_string()));
    Ok(())
}
