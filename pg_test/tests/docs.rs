//! The README's SQL is a regress test, and its table of settings is what the server says; the SQL of `docs/` runs, shown
//! output is what comes out, and the reference is that of the code. `make docs` (FORESHARD_ACCEPT=1) writes all of it.

mod documents;

use documents::{Document, Step, all, broken_links, check, look_at, reference};
use foreshard_test::install::repository;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const BEGIN: &str = "<!-- settings:begin -->";
const END: &str = "<!-- settings:end -->";
const HEADER: &str = "-- The SQL of README.md, in order. Made by `make docs`; do not edit.\n";

fn accepting() -> bool {
    std::env::var_os("FORESHARD_ACCEPT").is_some()
}

fn readme() -> Result<String> {
    fs::read_to_string(repository().join("README.md"))
        .map_err(|error| Error::new(format!("README.md cannot be read: {error}."), ""))
}

/// The contents of all fenced blocks whose info string is exactly `sql`, each after a blank line.
fn sql_blocks(markdown: &str) -> String {
    let mut sql = String::from(HEADER);
    let mut fence: Option<(usize, bool)> = None;
    for line in markdown.lines() {
        let ticks = line.trim_start().chars().take_while(|c| *c == '`').count();
        let rest = line.trim_start()[ticks..].trim();
        match fence {
            Some((open, _)) if ticks >= open && rest.is_empty() => fence = None,
            Some((_, true)) => sql.extend([line, "\n"]),
            Some((_, false)) => {}
            None if ticks >= 3 => {
                let wanted = rest == "sql";
                if wanted {
                    sql.push('\n');
                }
                fence = Some((ticks, wanted));
            }
            None => {}
        }
    }
    sql
}

/// The settings as a Markdown table.
fn settings_table(client: &mut Client) -> Result<String> {
    let rows = client.exec(
        "SELECT format('| `%s` | %s | %s | %s |', name, \
             CASE WHEN coalesce(boot_val, '') = '' THEN '' ELSE format('`%s`', boot_val || coalesce(' ' || unit, '')) END, \
             CASE WHEN vartype = 'bool' THEN '`on`, `off`' WHEN enumvals IS NOT NULL THEN '`' || array_to_string(enumvals, '`, `') || '`' \
                  WHEN min_val IS NOT NULL THEN format('%s – %s%s', min_val, max_val, coalesce(' ' || unit, '')) ELSE '' END, \
             short_desc || CASE context WHEN 'superuser' THEN ' Superusers may set it per session.' ELSE '' END) AS line \
         FROM pg_settings WHERE name LIKE 'foreshard.%' ORDER BY name COLLATE \"C\"",
    )?;
    Ok(format!("| setting | default | range | meaning |\n|---|---|---|---|\n{}\n", rows.to_text()))
}

/// The text with what stands between the markers replaced.
fn with_table(markdown: &str, table: &str) -> Result<String> {
    let missing =
        || Error::new(format!("README.md lacks {BEGIN} or {END}."), "Put both where the table shall be.");
    let (before, rest) = markdown.split_once(BEGIN).ok_or_else(missing)?;
    let (_, after) = rest.split_once(END).ok_or_else(missing)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

fn settings_are_current(cluster: &Cluster) -> Result<()> {
    let table = settings_table(&mut cluster.connect("postgres")?)?;
    let current = readme()?;
    let wanted = with_table(&current, &table)?;
    if accepting() {
        fs::write(repository().join("README.md"), wanted)?;
    } else if current != wanted {
        let message = format!("The settings of README.md are not current; run make docs. They are:\n{table}");
        return Err(Error::new(message, ""));
    }
    Ok(())
}

/// The prompts of README.md, and the reference.
fn reference_is_current(cluster: &Cluster) -> Result<()> {
    cluster.connect("postgres")?.exec("CREATE DATABASE reference TEMPLATE template0")?;
    let mut client = cluster.connect("reference")?;
    client.exec("CREATE EXTENSION foreshard")?;
    let wrong = look_at(&mut client, &Document::parse(&readme()?).console)?;
    if !wrong.is_empty() {
        return Err(Error::new(format!("README.md shows{wrong}"), ""));
    }
    let (file, wanted) = (repository().join("docs/reference.md"), reference::text(&mut client)?);
    let current = fs::read_to_string(&file).unwrap_or_default();
    if accepting() {
        fs::write(file, wanted)?;
    } else if let Some((is, should)) = current.lines().zip(wanted.lines()).find(|(a, b)| a != b) {
        let message =
            format!("docs/reference.md is not current; run make docs. It has\n{is}\ninstead of\n{should}");
        return Err(Error::new(message, ""));
    } else if current != wanted {
        return Err(Error::new("docs/reference.md is not current; run make docs.", ""));
    }
    Ok(())
}

/// A server as the documents want it: their tablespaces, and workers that do not keep a reader waiting.
fn cluster() -> Result<Cluster> {
    let options = ClusterOptions::new("docs")
        .set("foreshard.bucket", "1s")
        .set("foreshard.plan_interval", "1s")
        .set("foreshard.canary_steps", "");
    let cluster = Cluster::start(&options)?;
    let mut client = cluster.connect("postgres")?;
    for name in ["disk1", "disk2", "disk3"] {
        let dir = cluster.make_tablespace_dir(name)?;
        client.exec(&format!("CREATE TABLESPACE {name} LOCATION '{}'", dir.display()))?;
    }
    Ok(cluster)
}

/// Runs a document; on a server of its own if it changes what is common to all databases.
fn check_one(shared: &Cluster, path: &Path) -> Result<String> {
    if fs::read_to_string(path)?.contains("ALTER SYSTEM") {
        return check(&cluster()?, path, accepting());
    }
    check(shared, path, accepting())
}

#[test]
fn documents_are_right() -> Result<()> {
    let shared = cluster()?;
    let only = std::env::var("FORESHARD_ONLY").ok();
    let wanted = |path: &PathBuf| only.as_ref().is_none_or(|only| path.ends_with(format!("{only}.md")));
    let paths: Vec<PathBuf> = all()?.into_iter().filter(wanted).collect();
    let wrong = Mutex::new(String::new());
    let note = |text: String| wrong.lock().map(|mut all| all.push_str(&text)).unwrap_or_default();
    std::thread::scope(|scope| {
        for path in &paths {
            scope.spawn(|| match check_one(&shared, path) {
                Ok(differences) => note(differences),
                Err(error) => note(format!("\n--- {}\n{error}\n", path.display())),
            });
        }
    });
    if only.is_none() {
        for outcome in [settings_are_current(&shared), reference_is_current(&shared)] {
            outcome.unwrap_or_else(|error| note(format!("\n{error}\n")));
        }
    }
    let wrong = wrong.into_inner().unwrap_or_default();
    assert!(wrong.is_empty(), "Read the differences, then make docs (FORESHARD_ACCEPT=1).{wrong}");
    Ok(())
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut paths = all()?;
    paths.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| repository().join(name)));
    let mut broken = Vec::new();
    for path in paths {
        broken.extend(broken_links(&path)?);
    }
    assert!(broken.is_empty(), "Links to what is not there: {broken:#?}");
    Ok(())
}

#[test]
fn readme_sql_is_the_regress_file() -> Result<()> {
    let file = repository().join("pg_test/regress/sql/readme.sql");
    let wanted = sql_blocks(&readme()?);
    assert!(wanted != HEADER, "README.md has no ```sql block.");
    if accepting() {
        fs::write(file, wanted)?;
        return Ok(());
    }
    let current = fs::read_to_string(file).unwrap_or_default();
    assert!(current == wanted, "pg_test/regress/sql/readme.sql is not the SQL of README.md; run make docs.");
    Ok(())
}

#[test]
fn blocks_are_found() {
    let text = "a\n```sql\nSELECT 1;\n```\n```sh\nls\n```\n````md\n```sql\nno\n```\n````\n  ```sql\n  SELECT 2;\n  ```\n";
    assert_eq!(sql_blocks(text), format!("{HEADER}\nSELECT 1;\n\n  SELECT 2;\n"));
    let table = with_table(&format!("x {BEGIN} old {END} y"), "new\n");
    assert_eq!(table.ok(), Some(format!("x {BEGIN}\nnew\n{END} y")));
}

#[test]
fn documents_are_cut() {
    let text = "a\n```sql\nSELECT 1;\n```\n<!-- varies -->\n\n```text\n1\n```\n<!-- run: SELECT 2;\nSELECT 3; -->\n```sql\nSELECT 4;\n```\nprose\n```text\nno\n```\n```console\n=# SELECT 5 \\watch\n=# SELECT\n-# 6;\n```\n";
    let document = Document::parse(text);
    let shown = |sql: &str, output, varies| Step::Shown { sql: sql.into(), output, varies };
    let hidden = Step::Hidden("SELECT 2;\nSELECT 3;".into());
    assert_eq!(
        document.steps,
        [shown("SELECT 1;", Some((7, 8)), true), hidden, shown("SELECT 4;", None, false)]
    );
    assert_eq!(document.console, ["SELECT 5", "SELECT\n 6;"]);
}
