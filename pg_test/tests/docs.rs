//! The README's SQL is a regress test, and its table of settings is what the server says.
//! `make docs` (FORESHARD_ACCEPT=1) writes both.

use foreshard_test::install::repository;
use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result};
use std::fs;

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

#[test]
fn settings_table_is_current() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::new("docs"))?;
    let table = settings_table(&mut cluster.connect("postgres")?)?;
    let current = readme()?;
    let wanted = with_table(&current, &table)?;
    if accepting() {
        fs::write(repository().join("README.md"), wanted)?;
        return Ok(());
    }
    assert!(
        current == wanted,
        "The settings of README.md are not current; run make docs. They are:\n{table}"
    );
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
