//! What is shipped beside the library: PGXN's META.json, licences, the Debian package, and what watches a server.

#[path = "packages/exporter.rs"]
mod exporter;
#[path = "packages/licences.rs"]
mod licences;

use exporter::{collector, metrics_in};
use foreshard_test::install::{Install, repository, run};
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository().join(path)).map_err(|error| Error::new(format!("{path}: {error}."), ""))
}

fn json(path: &str) -> Result<Value> {
    serde_json::from_str(&read(path)?).map_err(|error| Error::new(format!("{path}: {error}."), ""))
}

/// The version of the crate.
fn version() -> Result<String> {
    let manifest = read("Cargo.toml")?;
    let found = manifest.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'));
    found.map(str::to_string).ok_or_else(|| Error::new("Cargo.toml has no version.", ""))
}

/// What is missing or wrong in a META.json, by PGXN's specification 1.0.0.
fn faults(meta: &Value, version: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let mut must = |what: &str, good: bool| {
        if !good {
            faults.push(what.to_string());
        }
    };
    let text = |value: &Value| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let parts: Vec<&str> = version.split('.').collect();
    must("version is not semantic", parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok()));
    must(
        "name",
        text(&meta["name"])
            && meta["name"].as_str().is_some_and(|n| n.len() >= 2 && !n.contains(['/', '\\', ' '])),
    );
    must("abstract", text(&meta["abstract"]));
    must("version", meta["version"] == version);
    let people = meta["maintainer"].as_array().cloned().unwrap_or_else(|| vec![meta["maintainer"].clone()]);
    must("maintainer", !people.is_empty() && people.iter().all(text));
    must("license", meta["license"] == "postgresql");
    must("meta-spec.version", meta["meta-spec"]["version"] == "1.0.0");
    must("meta-spec.url", meta["meta-spec"]["url"] == "https://pgxn.org/meta/spec.txt");
    let status = ["stable", "testing", "unstable"];
    must("release_status", meta["release_status"].as_str().is_none_or(|given| status.contains(&given)));
    must("tags", meta["tags"].as_array().is_none_or(|tags| !tags.is_empty() && tags.iter().all(text)));
    let provided = meta["provides"].as_object().cloned().unwrap_or_default();
    must("provides", !provided.is_empty());
    for (name, one) in &provided {
        must("provides: version", one["version"] == version);
        must("provides: file", one["file"].as_str() == Some(&format!("{name}.control")));
        for file in ["file", "docfile"] {
            must(file, one[file].as_str().is_some_and(|path| repository().join(path).exists()));
        }
    }
    faults
}

#[test]
fn meta_is_complete() -> Result<()> {
    let (meta, version) = (json("META.json")?, version()?);
    assert_eq!(faults(&meta, &version), Vec::<String>::new());
    // A test that cannot fail would say nothing.
    for field in ["name", "abstract", "version", "maintainer", "license", "provides", "meta-spec"] {
        let mut less = meta.clone();
        less.as_object_mut().and_then(|fields| fields.remove(field));
        assert!(!faults(&less, &version).is_empty(), "{field} is required");
    }
    let changelog = read("CHANGELOG.md")?;
    assert!(changelog.contains(&format!("\n## {version}")), "CHANGELOG.md has no chapter for {version}.");
    Ok(())
}

#[test]
fn licences_are_allowed() -> Result<()> {
    let (wrong, all) = licences::refused()?;
    assert!(all > 50, "cargo metadata lists {all} crates only.");
    assert_eq!(wrong, Vec::<String>::new());
    Ok(())
}

/// The regular files of a Debian package, with the right to write that others than root have.
fn contents(package: &Path) -> Result<BTreeSet<String>> {
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(package))?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for line in listed.lines() {
        let owner_and_rights =
            line.contains(" root/root ") && line.get(5..6) == Some("-") && line.get(8..9) == Some("-");
        assert!(owner_and_rights, "not root's alone: {line}");
    }
    let files = listed.lines().filter(|line| line.starts_with('-'));
    Ok(files.filter_map(|line| line.split(" ./").nth(1)).map(str::to_string).collect())
}

#[test]
fn debian_package_holds_the_right_files() -> Result<()> {
    let major = Install::from_env()?.major;
    if !Path::new("/usr/bin/dpkg-deb").exists()
        || !Path::new(&format!("/usr/lib/postgresql/{major}/lib")).exists()
    {
        eprintln!("skipped: PostgreSQL {major} is not from Debian packages");
        return Ok(());
    }
    let made = run(Command::new(repository().join("scripts/deb.sh")).args([&major.to_string(), "--staged"]))?;
    let made = String::from_utf8_lossy(&made.stdout).trim().to_string();
    let package = Path::new(made.lines().last().unwrap_or_default());
    let files = contents(package)?;
    let (share, doc) = (
        format!("usr/share/postgresql/{major}/extension"),
        format!("usr/share/doc/postgresql-{major}-foreshard"),
    );
    let wanted = [
        format!("usr/lib/postgresql/{major}/lib/foreshard.so"),
        format!("{share}/foreshard.control"),
        format!("{share}/foreshard--{}.sql", version()?),
        format!("{doc}/copyright"),
        format!("{doc}/third-party.gz"),
        format!("{doc}/README.md"),
        format!("{doc}/docs/tutorial.md"),
        format!("{doc}/docs/reference.md"),
    ];
    for file in &wanted {
        assert!(files.contains(file), "{file} is not in {files:#?}");
    }
    let strange: Vec<_> =
        files.iter().filter(|file| !file.starts_with(&doc) && !wanted.contains(file)).collect();
    assert!(strange.is_empty(), "{strange:?}");
    let field = |name: &str| -> Result<String> {
        let said = run(Command::new("dpkg-deb").arg("--field").arg(package).arg(name))?;
        Ok(String::from_utf8_lossy(&said.stdout).trim().to_string())
    };
    assert_eq!(field("Package")?, format!("postgresql-{major}-foreshard"));
    assert_eq!(field("Version")?, format!("{}-1", version()?));
    assert!(field("Depends")?.contains(&format!("postgresql-{major}, libc6 (>= ")));
    Ok(())
}

#[test]
fn alerts_and_dashboard_name_metrics_that_exist() -> Result<()> {
    let collector = collector()?;
    let known: BTreeSet<&str> = collector.metrics.iter().map(|metric| metric.name.as_str()).collect();
    assert_eq!(known.len(), collector.metrics.len(), "A metric is defined twice.");
    for path in ["docker/prometheus/alerts.yml", "docker/grafana/foreshard.json"] {
        let named = metrics_in(&read(path)?);
        assert!(named.len() > 5, "{path} names {named:?} only.");
        let unknown: Vec<_> = named.iter().filter(|name| !known.contains(name.as_str())).collect();
        assert!(unknown.is_empty(), "{path} names {unknown:?}, which the exporter does not have.");
    }
    // Every alert has its line in the manual, and the other way round.
    let (alerts, manual) = (read("docker/prometheus/alerts.yml")?, read("docs/operations.md")?);
    let defined: BTreeSet<&str> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let explained: BTreeSet<&str> = manual
        .lines()
        .filter_map(|line| line.strip_prefix("| `Foreshard").map(|_| line.split('`').nth(1).unwrap_or("")))
        .collect();
    assert_eq!(defined, explained);
    let dashboard = json("docker/grafana/foreshard.json")?;
    let panels = dashboard["panels"].as_array().cloned().unwrap_or_default();
    let drawn = panels.iter().filter(|panel| panel["targets"][0]["expr"].is_string()).count();
    assert!(drawn > 10, "The dashboard has {drawn} figures.");
    Ok(())
}

/// A database with something of everything that is exported.
fn busy_database(cluster: &Cluster) -> Result<Client> {
    let mut client = cluster.connect("postgres")?;
    client.exec(
        "CREATE EXTENSION foreshard; CREATE ROLE watcher IN ROLE pg_monitor; \
         SELECT foreshard.add_shard('a', 'pg_default'), foreshard.add_shard('b', 'pg_default'); \
         CREATE TABLE t (id bigint PRIMARY KEY, x int); INSERT INTO t SELECT i, i FROM generate_series(1, 100) i; \
         CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END'; \
         CREATE TRIGGER touch BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION touch(); \
         SELECT foreshard.distribute('t', 'id', slots => 4); \
         CREATE TABLE e (a int, b int); INSERT INTO e VALUES (1, 2); SELECT foreshard.create_graph('g', 'e', 'a', 'b')",
    )?;
    client.exec(
        "SELECT foreshard.add_data_source('g', 's', 'x', 'y', 'SELECT k, k FROM unnest($1::bigint[]) k'); \
         SELECT foreshard.resolve('g', 'x', ARRAY[1::bigint], 'y')",
    )?;
    client.exec(
        "SELECT foreshard.move_slot(slot_id, CASE shard WHEN 'a' THEN 'b' ELSE 'a' END) \
         FROM foreshard.slots WHERE slot_id = 1",
    )?;
    let ready = "SELECT (SELECT count(cost_units_per_s) > 0 FROM foreshard.heat_map) AND EXISTS (SELECT FROM foreshard.stat_triggers)";
    wait_until("loads and triggers are seen", Duration::from_secs(20), || {
        // Triggers are watched once the keeper knows the table.
        client.exec("UPDATE t SET x = x + 1")?;
        Ok(client.query_one(ready)? == "t")
    })?;
    Ok(client)
}

#[test]
fn every_query_of_the_exporter_yields_its_columns() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::new("exporter").set("foreshard.bucket", "1s"))?;
    let mut client = busy_database(&cluster)?;
    client.exec("SET ROLE watcher")?;
    let collector = collector()?;
    let mut without_rows = Vec::new();
    for (name, query) in &collector.queries {
        let rows = client.exec(query)?;
        let metrics: Vec<_> = collector.metrics.iter().filter(|metric| metric.query == *name).collect();
        assert!(!metrics.is_empty(), "no metric comes from {name}");
        let mut used = BTreeSet::new();
        for metric in metrics {
            assert_eq!(metric.values.len(), 1, "{}", metric.name);
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            for column in metric.labels.iter().chain(&metric.values) {
                assert!(rows.column(column).is_some(), "{} wants {column}, which {name} lacks", metric.name);
                used.insert(column.clone());
            }
            for row in 0..rows.len() {
                let value = rows.field(row, &metric.values[0]);
                let good = value.is_none_or(|value| value.parse::<f64>().is_ok_and(f64::is_finite));
                assert!(good, "{} is {value:?}", metric.name);
            }
        }
        assert_eq!(used.len(), rows.width(), "{name} has columns that nothing uses");
        if rows.is_empty() {
            without_rows.push(name.as_str());
        }
    }
    // What comes only with days of history, with nodes or by chance has none here.
    without_rows
        .retain(|name| !["calibration", "forecasts", "nodes", "progress", "recommendations"].contains(name));
    assert!(without_rows.is_empty(), "no rows from {without_rows:?}");
    let unknown: Vec<_> =
        collector.metrics.iter().filter(|m| !collector.queries.contains_key(&m.query)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    // What is scraped waits for no lock on a table.
    let mut locker = cluster.connect("postgres")?;
    let closure = locker.query_one("SELECT closure FROM foreshard.graph")?;
    locker.exec(&format!("BEGIN; LOCK TABLE t, e, {closure} IN ACCESS EXCLUSIVE MODE"))?;
    client.exec("SET lock_timeout = '2s'")?;
    for query in collector.queries.values() {
        client.exec(query)?;
    }
    Ok(())
}
