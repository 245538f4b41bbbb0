//! pgspot finds nothing in the extension's SQL.

use foreshard_test::install::repository;
use foreshard_test::{Error, Result};
use std::process::Command;

#[test]
fn sql_is_clean_for_pgspot() -> Result<()> {
    let pgspot = repository().join("target/pg18-venv/bin/pgspot");
    if !pgspot.exists() {
        // Only whoever tests PostgreSQL 18 has that environment.
        if std::env::var("CI").is_ok_and(|ci| ci == "true") && repository().join("target/pg18-venv").exists()
        {
            return Err(Error::new("There is no pgspot.", "scripts/bootstrap.sh all installs it."));
        }
        println!("skipped: sql_is_clean_for_pgspot, there is no pgspot (scripts/bootstrap.sh all)");
        return Ok(());
    }
    let mut looked = 0;
    for entry in std::fs::read_dir(repository().join("sql"))?.flatten() {
        let output = Command::new(&pgspot).arg(entry.path()).output()?;
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success()
                && text.contains("Errors: 0 Warnings: 0 Unknown: 0")
                && !text.contains("list index"),
            "{}:\n{text}",
            entry.path().display()
        );
        looked += 1;
    }
    assert!(looked >= 9, "only {looked} files");
    Ok(())
}
