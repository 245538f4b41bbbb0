//! What a person types in psql, run by `pg_regress`: `pg_test/regress/sql/NAME.sql` with
//! `expected/NAME.out`. What sessions do to each other is in `isolation.rs`.
//!
//! Each file runs in a fresh database of its own and creates the extension itself; the
//! cluster has the tablespaces `ts_a`, `ts_b` and `ts_c`. `FORESHARD_ONLY=NAME` runs one
//! file; `FORESHARD_ACCEPT=1` replaces the expected output by what came out.

use foreshard_test::install::{Install, repository, run};
use foreshard_test::{Cluster, ClusterOptions, Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

const FOLDER: &str = "regress";

#[test]
fn regress() -> Result<()> {
    run_suite()
}

fn home() -> PathBuf {
    repository().join("pg_test").join(FOLDER)
}

/// The names of the files, sorted, possibly restricted to one.
fn names() -> Vec<String> {
    let only = std::env::var("FORESHARD_ONLY").ok();
    let mut names: Vec<String> = fs::read_dir(home().join("sql"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "sql"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_string()))
        .filter(|name| only.as_ref().is_none_or(|only| only == name))
        .collect();
    names.sort();
    names
}

fn run_suite() -> Result<()> {
    let names = names();
    if names.is_empty() {
        return Err(Error::new("There is no regress file to run.", "Look at FORESHARD_ONLY."));
    }
    // Readings come when nobody waits for them.
    let cluster = Cluster::start(&ClusterOptions::new(FOLDER).set("foreshard.bucket", "3600s"))?;
    let mut client = cluster.connect("postgres")?;
    for name in ["ts_a", "ts_b", "ts_c"] {
        let dir = cluster.make_tablespace_dir(name)?;
        client.exec(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()))?;
    }
    let work = work_dir(cluster.install())?;
    let mut failures = String::new();
    for name in &names {
        match run_file(&cluster, &work, name) {
            Ok(()) => println!("ok {name}"),
            Err(error) => failures.push_str(&format!("\n--- {name}\n{error}\n")),
        }
    }
    let _ = fs::remove_dir_all(&work);
    if failures.is_empty() {
        Ok(())
    } else {
        Err(Error::new(
            format!("{} files differ:{failures}", FOLDER),
            "FORESHARD_ACCEPT=1 accepts what came out; read the difference first.",
        ))
    }
}

/// A copy of the suite's files that the servers' user can read and write.
fn work_dir(install: &Install) -> Result<PathBuf> {
    let work = install.run_dir.join(format!("{}-{}-{}", FOLDER, install.major, std::process::id()));
    let _ = fs::remove_dir_all(&work);
    copy_dir(install, &home(), &work)?;
    Ok(work)
}

fn copy_dir(install: &Install, from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    install.user.give(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_dir(install, &source, &target)?;
        } else {
            fs::copy(&source, &target)?;
            install.user.give(&target)?;
        }
    }
    Ok(())
}

fn run_file(cluster: &Cluster, work: &Path, name: &str) -> Result<()> {
    let install = cluster.install();
    let database = format!("{}_{}", FOLDER, name.replace('-', "_"));
    let mut client = cluster.connect("postgres")?;
    client.exec(&format!("CREATE DATABASE \"{database}\" TEMPLATE template0"))?;
    // A file without expected output differs by all of it.
    let expected = work.join("expected").join(format!("{name}.out"));
    if !expected.exists() {
        fs::create_dir_all(work.join("expected"))?;
        fs::write(&expected, "")?;
    }
    let mut command = install.user.command(&install.test_driver("regress/pg_regress")?);
    command
        .arg(format!("--inputdir={}", work.display()))
        .arg(format!("--outputdir={}", work.display()))
        .arg(format!("--bindir={}", install.bin_dir.display()))
        .arg("--use-existing")
        .arg(format!("--dbname={database}"))
        .arg(format!("--host={}", cluster.socket_dir().display()))
        .arg(format!("--port={}", cluster.port()))
        .arg("--user=postgres")
        .arg(name)
        .current_dir(work);
    let outcome = run(&mut command);
    client.exec(&format!("DROP DATABASE \"{database}\" WITH (FORCE)"))?;
    let Err(error) = outcome else {
        return Ok(());
    };
    let results = work.join("results").join(format!("{name}.out"));
    if std::env::var_os("FORESHARD_ACCEPT").is_some() && results.exists() {
        let expected = home().join("expected");
        fs::create_dir_all(&expected)?;
        fs::copy(&results, expected.join(format!("{name}.out")))?;
        return Ok(());
    }
    let differences = fs::read_to_string(work.join("regression.diffs"))
        .or_else(|_| fs::read_to_string(&results))
        .unwrap_or_default();
    let _ = fs::remove_file(work.join("regression.diffs"));
    Err(Error::new(format!("{error}\n{differences}"), ""))
}
