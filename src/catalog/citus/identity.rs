//! Whether this server is the coordinator that the nodes know.
//!
//! A clone, a restored backup and a stale primary of the coordinator have its catalogs, and nothing that is stored tells them
//! apart. But the nodes have catalogs of their own, which say where their coordinator is: whoever is found there has in its shared
//! memory a lock that only this server can have taken a moment ago, or is another server.

use crate::pg::report::{PgResult, internal};
use crate::pg::{reading, spi};

/// Longest wait for all nodes, for a connection to one, and for one of theirs to the coordinator, ms.
const PATIENCE_MS: i32 = 5_000;
const CONNECT_MS: i32 = 2_000;

/// Who coordinates the cluster, as its nodes have it.
pub enum Coordinator {
    /// This server.
    Ours,
    /// Another one, in words.
    Another(String),
    /// Nobody could tell, and why not.
    Unknown(String),
}

/// Asks all nodes. Whoever knows another coordinator counts more than who knows this one: nodes are told of a new one in turn.
pub fn ask() -> PgResult<Coordinator> {
    let key = spi::one::<i64>(
        "SELECT ('x' || pg_catalog.left(pg_catalog.replace(pg_catalog.gen_random_uuid()::text, '-', ''), 16))::bit(64)::int8",
        &[],
    )?
    .ok_or_else(|| internal("no random number"))?;
    // Held until the transaction ends.
    if spi::one::<bool>("SELECT pg_catalog.pg_try_advisory_xact_lock($1)", &[key.into()])? != Some(true) {
        return Ok(Coordinator::Unknown("somebody else has the lock that it would be known by".to_string()));
    }
    spi::set_local("citus.node_connection_timeout", &CONNECT_MS.to_string())?;
    let answers = reading::within(PATIENCE_MS, || {
        spi::rows_mut(
            "SELECT f.node_name::text, m.success, m.result \
             FROM (SELECT pg_catalog.array_agg(n.nodename ORDER BY n.nodeid) AS names, pg_catalog.array_agg(n.nodeport ORDER BY n.nodeid) AS ports, \
                       pg_catalog.array_agg($1) AS questions \
                   FROM pg_catalog.pg_dist_node n JOIN foreshard.node o ON o.citus_node = n.nodeid) w \
             CROSS JOIN LATERAL pg_catalog.master_run_on_worker(w.names, w.ports, w.questions, true) m \
             JOIN pg_catalog.pg_dist_node d ON (d.nodename, d.nodeport) = (m.node_name, m.node_port) \
             JOIN foreshard.node f ON f.citus_node = d.nodeid WHERE w.names IS NOT NULL ORDER BY 1",
            &[question(key).as_str().into()],
            |row| {
                let said = row.get::<String>(3)?.unwrap_or_default();
                Ok((row.need::<String>(1)?, row.get::<bool>(2)? == Some(true), said))
            },
        )
    })?;
    Ok(judge(&answers))
}

/// What a node is asked: whether the server where its coordinator should be has that lock. All names say where they are, because
/// it is run as a superuser, there and then on whatever server that is.
fn question(key: i64) -> String {
    let (high, low) = ((key >> 32) as u32, key as u32);
    format!(
        "SELECT CASE WHEN r.success THEN r.result ELSE pg_catalog.concat('it cannot ask the coordinator: '::pg_catalog.text, r.result) END \
         FROM (SELECT pg_catalog.set_config('citus.node_connection_timeout', '{CONNECT_MS}', true) AS done OFFSET 0) c \
         CROSS JOIN LATERAL pg_catalog.run_command_on_coordinator(CASE WHEN c.done IS NOT NULL THEN $foreshard$SELECT CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_locks l \
             WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory'::pg_catalog.text AND l.granted AND l.classid OPERATOR(pg_catalog.=) '{high}'::pg_catalog.oid \
               AND l.objid OPERATOR(pg_catalog.=) '{low}'::pg_catalog.oid AND l.objsubid OPERATOR(pg_catalog.=) '1'::pg_catalog.int2) THEN 'yes' ELSE 'no' END$foreshard$ END) r"
    )
}

/// What (node, whether it answered, answer) come to.
fn judge(answers: &[(String, bool, String)]) -> Coordinator {
    let said = |answer: &str| answers.iter().find(|(_, answered, said)| *answered && said == answer);
    if let Some((node, ..)) = said("no") {
        return Coordinator::Another(format!(
            "node \"{node}\" takes another server for the coordinator: this one may be a clone, a restored backup or a primary that was replaced"
        ));
    }
    if said("yes").is_some() {
        return Coordinator::Ours;
    }
    Coordinator::Unknown(match answers.first() {
        Some((node, _, why)) => {
            format!("no node could tell whether this server is the coordinator; node \"{node}\": {why}")
        }
        None => "there is no node that could tell whether this server is the coordinator".to_string(),
    })
}

/// Notes why this server is not taken for the coordinator; None: it is, or nothing depends on it.
pub fn note(why: Option<&str>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.citus_cluster SET not_ours = $1 WHERE not_ours IS DISTINCT FROM $1",
        &[why.into()],
    )?;
    Ok(())
}
