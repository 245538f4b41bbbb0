//! Where rows are, and where they should be.

use super::Server;
use foreshard_test::{Result, Rows, SqlError};

/// Modulus, remainder and shard of every partition, as foreshard and as PostgreSQL have it.
pub fn layout(server: &mut Server, table: &str) -> Result<String> {
    server.query(&format!(
        "SELECT s.modulus, s.remainder, s.shard FROM foreshard.slots s JOIN pg_class c ON c.oid = s.partition \
         WHERE s.\"table\" = '{table}'::regclass AND pg_get_expr(c.relpartbound, c.oid) \
             = format('FOR VALUES WITH (modulus %s, remainder %s)', s.modulus, s.remainder) ORDER BY 1, 2"
    ))
}

/// Asserts that a statement failed with this SQLSTATE.
pub fn expect_code(outcome: std::result::Result<Rows, SqlError>, code: &str) -> SqlError {
    match outcome {
        Ok(rows) => panic!("no error {code} but {}", rows.to_text()),
        Err(error) => {
            assert_eq!(error.sqlstate, code, "{error}");
            error
        }
    }
}

/// Asserts that every key is where PostgreSQL routes it, and that foreshard knows.
pub fn assert_located(server: &mut Server, table: &str, key: &str) -> Result<()> {
    let wrong = server.query(&format!(
        "SELECT count(*) FROM (SELECT t.{key}, t.tableoid FROM {table} t) t \
         JOIN foreshard.slots s ON s.partition = t.tableoid \
         WHERE foreshard.get_shard_location('{table}', t.{key}) <> s.shard \
            OR NOT satisfies_hash_partition('{table}'::regclass, s.modulus, s.remainder, t.{key})"
    ))?;
    assert_eq!(wrong, "0", "rows of {table} in the wrong place");
    Ok(())
}
