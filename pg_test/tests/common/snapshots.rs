//! What snapshots from before, and serializable transactions, see of a partition of `t` that is replaced: however it is.

use super::placed::expect_code;
use super::{Server, options};
use foreshard_test::{Client, Result};
use std::time::Duration;

/// A snapshot that is older than the last replay is waited for; one that was taken while both copies were equal
/// reads the new partitions.
pub fn old_snapshots_see_every_row(
    name: &str,
    change: impl FnOnce(&mut Server) -> Result<String>,
) -> Result<()> {
    let mut server = Server::start(&options(name))?;
    server.query(
        "CREATE TABLE other (id int); \
         CREATE TABLE t (id bigint PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 4000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    let snapshot = |server: &Server| -> Result<Client> {
        let mut client = server.cluster.connect("postgres")?;
        client.exec("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM other")?;
        Ok(client)
    };
    let state = "SELECT count(*) || ' ' || sum(v) FROM t";
    let mut old = snapshot(&server)?;
    let move_id = change(&mut server)?;
    server.wait_query(
        &format!(
            "SELECT phase FROM foreshard.move WHERE move_id = {move_id} AND waiting_for LIKE 'snapshot%'"
        ),
        "cutover",
    )?;
    server.query("UPDATE t SET v = 1 WHERE id % 2 = 0")?;
    assert_eq!(old.query_one(state)?, "4000 0");
    let mut young = snapshot(&server)?;
    server.query("UPDATE t SET v = v + 5; DELETE FROM t WHERE id > 3000")?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.phase(&move_id)?, "cutover");
    assert_eq!(old.query_one(state)?, "4000 0");
    old.exec("COMMIT")?;
    server.wait_end(&move_id, "done")?;
    assert_eq!(young.query_one(state)?, "4000 2000", "what a snapshot from before the cutover sees after it");
    young.exec("COMMIT")?;
    assert_eq!(server.query(state)?, "3000 16500");
    server.assert_settled()
}

/// Two serializable transactions that each write what the other has read cannot both commit, even if the
/// partition of key 17 changes between their steps.
pub fn serializable_stays_serializable(
    name: &str,
    change: impl FnOnce(&mut Server) -> Result<String>,
) -> Result<()> {
    let mut server = Server::start(&options(name))?;
    server.query(
        "CREATE TABLE other (id int PRIMARY KEY, v int); INSERT INTO other VALUES (1, 0); \
         CREATE TABLE t (id bigint PRIMARY KEY, v int); INSERT INTO t SELECT g, 0 FROM generate_series(1, 1000) g; \
         SELECT foreshard.distribute('t', 'id', 2)",
    )?;
    server.hold(Some("cutover"))?;
    let move_id = change(&mut server)?;
    server.wait_phase(&move_id, "cutover")?;
    let (mut first, mut second) = (server.cluster.connect("postgres")?, server.cluster.connect("postgres")?);
    second.exec("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM other WHERE id = 1")?;
    first.exec(
        "BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT v FROM t WHERE id = 17; UPDATE other SET v = 1; COMMIT",
    )?;
    server.hold(None)?;
    // No lock is tried for as long as that is known.
    let waits = format!(
        "SELECT coalesce(waiting_for, '') LIKE '%in a serializable transaction' FROM foreshard.progress_moves WHERE move_id = {move_id}"
    );
    server.wait_query(&waits, "t")?;
    let update = second.exec("UPDATE t SET v = 1 WHERE id = 17");
    expect_code(update.and_then(|_| second.exec("COMMIT")), "40001");
    second.exec("ROLLBACK")?;
    server.wait_end(&move_id, "done")?;
    server.assert_settled()
}
