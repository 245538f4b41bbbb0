//! What the nodes of a Citus cluster say of their shards: one question per node, all nodes at once, for a bounded time.

use super::measured;
use crate::catalog::heat::{Reading, counters};
use crate::catalog::measured::{IS_ASKED, Said};
use crate::pg::report::{PgResult, internal};
use crate::pg::{guc, reading, spi};
use foreshard_core::breaker::{Breaker, State};
use pgrx::JsonB;
use pgrx::pg_sys::Oid;
use serde_json::Value;
use std::collections::BTreeSet;

/// Most shards whose statistics are asked for.
const MAX_SHARDS: i64 = 65_536;
/// Longest wait for all nodes together, and for one of them, ms; a connection gets less, so that one that does not come about
/// is told apart from all the others.
const PATIENCE_MS: i32 = 5_000;
const CONNECT_MS: i32 = 2_000;
/// Tenants that are kept of every node.
const TENANTS: usize = 100;

/// What a node answered.
pub struct Answer {
    /// `pg_dist_node.nodeid`.
    pub citus_node: i32,
    /// What it said, else why it did not.
    pub said: Result<Value, String>,
    /// It was asked for what its foreshard has measured, too.
    pub measured: bool,
    /// Why it did not answer that; then it was asked again without.
    pub failed: Option<String>,
}

/// The one question: when it is there, since when the server runs that counts, for every shard of ours that is there [id, bytes, scans,
/// rows read, inserted, updated, deleted, blocks read, blocks hit], what tenants did, and of which version its foreshard is; with `measured`
/// also what that has measured (see [`measured`]). Shards that are elsewhere are no relations
/// there. To measure a table takes a lock on it, its toast table and their indexes; what somebody locks against that is not measured now.
///
/// Nodes run it as a superuser, under a `search_path` of their own: every name and operator in it says where it is, and types meet
/// exactly, because an operator that somebody made for what would need a cast is preferred.
fn question(measured: bool) -> PgResult<Option<String>> {
    let more = if measured { measured::probe() + &measured::asks() } else { measured::probe() };
    let question = QUESTION.replacen(MORE, &more, 1);
    spi::one::<String>(&question, &[MAX_SHARDS.into()])
}

/// Where more questions go in [`QUESTION`].
const MORE: &str = "/* more */";
/// Makes the question, a template of `format()`: see [`question`].
const QUESTION: &str = "SELECT pg_catalog.format($f$SELECT pg_catalog.json_build_object('at', pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()), \
             'since', pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time()), \
             's', (WITH l AS MATERIALIZED (SELECT k.relation FROM pg_catalog.pg_locks k WHERE k.mode OPERATOR(pg_catalog.=) 'AccessExclusiveLock'::pg_catalog.text \
                 AND k.database OPERATOR(pg_catalog.=) (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
                 AND k.relation IS NOT NULL) \
             SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_array(q.s, \
                CASE WHEN NOT EXISTS (SELECT FROM l WHERE l.relation OPERATOR(pg_catalog.=) q.o OR l.relation OPERATOR(pg_catalog.=) q.toast \
                    OR EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indexrelid OPERATOR(pg_catalog.=) l.relation \
                        AND (x.indrelid OPERATOR(pg_catalog.=) q.o OR x.indrelid OPERATOR(pg_catalog.=) q.toast))) THEN pg_catalog.pg_total_relation_size(q.c) END, \
                pg_catalog.pg_stat_get_numscans(q.o) OPERATOR(pg_catalog.+) i.scans, \
                pg_catalog.pg_stat_get_tuples_returned(q.o) OPERATOR(pg_catalog.+) pg_catalog.pg_stat_get_tuples_fetched(q.o) OPERATOR(pg_catalog.+) i.rows, \
                pg_catalog.pg_stat_get_tuples_inserted(q.o), pg_catalog.pg_stat_get_tuples_updated(q.o), pg_catalog.pg_stat_get_tuples_deleted(q.o), \
                greatest(pg_catalog.pg_stat_get_blocks_fetched(q.o) OPERATOR(pg_catalog.+) i.fetched \
                    OPERATOR(pg_catalog.-) pg_catalog.pg_stat_get_blocks_hit(q.o) OPERATOR(pg_catalog.-) i.hit, 0::pg_catalog.int8), \
                pg_catalog.pg_stat_get_blocks_hit(q.o) OPERATOR(pg_catalog.+) i.hit)), '[]'::pg_catalog.json) \
             FROM (SELECT n.s, n.c, n.c::pg_catalog.oid AS o, \
                     (SELECT k.reltoastrelid FROM pg_catalog.pg_class k WHERE k.oid OPERATOR(pg_catalog.=) n.c::pg_catalog.oid) AS toast \
                 FROM (SELECT u.s, pg_catalog.to_regclass(u.n) AS c \
                     FROM ROWS FROM (pg_catalog.unnest(%L::pg_catalog.int8[]), pg_catalog.unnest(%L::pg_catalog.text[])) AS u (s, n) OFFSET 0) n OFFSET 0) q \
             CROSS JOIN LATERAL (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_numscans(indexrelid)), 0::pg_catalog.numeric)::pg_catalog.int8 AS scans, \
                    coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_tuples_fetched(indexrelid)), 0::pg_catalog.numeric)::pg_catalog.int8 AS rows, \
                    coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_blocks_fetched(indexrelid)), 0::pg_catalog.numeric)::pg_catalog.int8 AS fetched, \
                    coalesce(pg_catalog.sum(pg_catalog.pg_stat_get_blocks_hit(indexrelid)), 0::pg_catalog.numeric)::pg_catalog.int8 AS hit \
                 FROM pg_catalog.pg_index WHERE indrelid OPERATOR(pg_catalog.=) q.o) i WHERE q.c IS NOT NULL), 't', %s/* more */)$f$, \
             pg_catalog.array_agg(t.citus_shard), pg_catalog.array_agg(CASE WHEN t.in_public THEN 'public.' ELSE '' END || t.name), \
             CASE WHEN pg_catalog.to_regprocedure('pg_catalog.citus_stat_tenants_local(boolean)') IS NOT NULL \
                   AND pg_catalog.current_setting('citus.stat_tenants_track', true) = 'all' \
                  THEN '(SELECT pg_catalog.json_agg(pg_catalog.json_build_array(colocation_id, tenant_attribute, query_count_in_last_period, cpu_usage_in_last_period)) \
                         FROM pg_catalog.citus_stat_tenants_local(false))' ELSE 'NULL' END) \
         FROM (SELECT k.citus_shard, k.name, (c.relnamespace = pg_catalog.to_regnamespace('public')) IS TRUE AND k.name NOT LIKE 'public.%' AS in_public \
               FROM (SELECT x.citus_shard, x.table_oid, pg_catalog.shard_name(x.table_oid, x.citus_shard) AS name FROM foreshard.citus_shard x) k \
               JOIN pg_catalog.pg_class c ON c.oid = k.table_oid JOIN pg_catalog.pg_dist_shard d ON d.shardid = k.citus_shard ORDER BY 1 LIMIT $1) t \
         HAVING count(*) > 0";

/// Asks all nodes at once, or one of them; with `measured` those that can tell what they have measured for that, too.
pub fn ask(only: Option<i32>, measured: bool) -> PgResult<Vec<Answer>> {
    let Some(plain) = question(false)? else { return Ok(Vec::new()) };
    let is_any_measured = measured && nodes()?.iter().any(|(_, is_asked)| *is_asked);
    let full = if is_any_measured { question(true)?.unwrap_or_default() } else { String::new() };
    spi::set_local("citus.node_connection_timeout", &CONNECT_MS.to_string())?;
    reading::within(PATIENCE_MS, || {
        spi::rows_mut(
            &format!(
                "SELECT a.nodeid, r.success, r.result, a.measured FROM (SELECT n.nodeid, n.nodename, n.nodeport, $4 AND {IS_ASKED} AS measured FROM pg_catalog.pg_dist_node n \
                     JOIN foreshard.node o ON o.citus_node = n.nodeid WHERE $2 IS NULL OR n.nodeid = $2) a \
                 LEFT JOIN (SELECT m.node_name, m.node_port, m.success, m.result FROM (SELECT pg_catalog.array_agg(n.nodename ORDER BY n.nodeid) AS names, \
                         pg_catalog.array_agg(n.nodeport ORDER BY n.nodeid) AS ports, \
                         pg_catalog.array_agg(CASE WHEN $4 AND {IS_ASKED} THEN $3 ELSE $1 END ORDER BY n.nodeid) AS questions \
                     FROM pg_catalog.pg_dist_node n JOIN foreshard.node o ON o.citus_node = n.nodeid WHERE $2 IS NULL OR n.nodeid = $2) w \
                     CROSS JOIN LATERAL pg_catalog.master_run_on_worker(w.names, w.ports, w.questions, true) m) r \
                   ON (r.node_name, r.node_port) = (a.nodename, a.nodeport)"
            ),
            &[plain.as_str().into(), only.into(), full.as_str().into(), is_any_measured.into()],
            |row| {
                let text = row.get::<String>(3)?.unwrap_or_default();
                let said = match row.get::<bool>(2)? {
                    Some(true) => serde_json::from_str(&text).map_err(|error| error.to_string()),
                    _ => Err(text),
                };
                Ok(Answer { citus_node: row.need(1)?, said, measured: row.need(4)?, failed: None })
            },
        )
    })
}

/// The nodes to ask one by one when asking all at once has failed, and which are asked for what they have measured.
pub fn nodes() -> PgResult<Vec<(i32, bool)>> {
    spi::rows(
        &format!("SELECT o.citus_node, {IS_ASKED} FROM foreshard.node o WHERE o.engine = 'citus' ORDER BY 1"),
        &[],
        |row| Ok((row.need(1)?, row.need(2)?)),
    )
}

/// Stores what nodes answered, and how they are.
pub fn store(answers: &[Answer]) -> PgResult<()> {
    for answer in answers {
        match &answer.said {
            Ok(answered) => {
                let said = Said::read(answered);
                store_shards(answer.citus_node, answered, &said)?;
                measured::note(answer.citus_node, &said, answer.failed.as_deref())?;
            }
            Err(_) => measured::forget(answer.citus_node)?,
        }
        store_health(answer)?;
    }
    Ok(())
}

/// Keeps what answers say of tenants; apart from the rest, because Citus reads the texts of tenants as keys, which may fail.
pub fn store_tenants(answers: &[Answer]) -> PgResult<()> {
    for answer in answers {
        if let Ok(said) = &answer.said {
            store_tenants_of(answer.citus_node, said)?;
        }
    }
    Ok(())
}

/// Notes when the nodes were asked, s since 1970, and what went wrong with all of them.
pub fn asked(begun_s: f64, error: Option<&str>) -> PgResult<()> {
    spi::run(
        "UPDATE foreshard.citus_cluster SET asked_at = pg_catalog.to_timestamp($1), last_error = $2",
        &[begun_s.into(), error.into()],
    )?;
    Ok(())
}

fn store_shards(citus_node: i32, answered: &Value, said: &Said) -> PgResult<()> {
    let shards = answered.get("s").cloned().unwrap_or_default();
    let clock = |name: &str| answered.get(name).and_then(Value::as_f64);
    spi::run(
        "UPDATE foreshard.citus_shard t SET collected_at = pg_catalog.clock_timestamp(), counted_at = $3, counted_since = $4, bytes = coalesce(q.n[2], t.bytes), scans = q.n[3], rows_read = q.n[4], \
                inserted = q.n[5], updated = q.n[6], deleted = q.n[7], blocks_read = q.n[8], blocks_hit = q.n[9], measured_in = q.since, measured = q.counted \
         FROM (SELECT c.n, w.since, w.counted FROM (SELECT ARRAY(SELECT v::int8 FROM pg_catalog.jsonb_array_elements_text(a.one) WITH ORDINALITY AS e (v, n) ORDER BY e.n) AS n \
                   FROM pg_catalog.jsonb_array_elements($1) AS a (one)) c \
               LEFT JOIN (SELECT (a.one->>0)::int8 AS shard, (a.one->>1)::int8 AS since, \
                       ARRAY(SELECT v::int8 FROM pg_catalog.jsonb_array_elements_text(a.one->2) WITH ORDINALITY AS e (v, n) ORDER BY e.n) AS counted \
                   FROM pg_catalog.jsonb_array_elements($5) AS a (one)) w ON w.shard = c.n[1]) q \
         WHERE t.citus_shard = q.n[1] AND t.node_name = (SELECT o.node_name FROM foreshard.node o WHERE o.citus_node = $2)",
        &[
            JsonB(shards).into(),
            citus_node.into(),
            clock("at").into(),
            clock("since").into(),
            JsonB(said.shards_as_json()).into(),
        ],
    )?;
    Ok(())
}

/// Replaces what is known of the tenants of a node; where Citus does not count them, nothing is. The slots of tenants are
/// looked up for keys of PostgreSQL's own types only: what reads a text of another type may be somebody's code.
fn store_tenants_of(citus_node: i32, said: &Value) -> PgResult<()> {
    let mut tenants = said.get("t").and_then(Value::as_array).cloned().unwrap_or_default();
    tenants.truncate(TENANTS);
    spi::run(
        "DELETE FROM foreshard.citus_tenant t USING foreshard.node o WHERE o.citus_node = $1 AND t.node_name = o.node_name",
        &[citus_node.into()],
    )?;
    if tenants.is_empty() {
        return Ok(());
    }
    spi::run(
        "INSERT INTO foreshard.citus_tenant (group_id, tenant, node_name, slot_id, queries, cpu_s, observed_at) \
         SELECT g.group_id, q.one->>1, o.node_name, s.slot_id, (q.one->>2)::int8, (q.one->>3)::float8, pg_catalog.now() \
         FROM pg_catalog.jsonb_array_elements($1) AS q (one) JOIN foreshard.colocation_group g ON g.citus_colocation = (q.one->>0)::int \
         JOIN foreshard.node o ON o.citus_node = $2 \
         LEFT JOIN LATERAL (SELECT m.table_oid FROM foreshard.citus_table m JOIN pg_catalog.pg_attribute a ON a.attrelid = m.table_oid AND a.attname = m.key_column \
             WHERE m.group_id = g.group_id AND a.atttypid < 16384 LIMIT 1) m ON true \
         LEFT JOIN foreshard.citus_shard s ON s.citus_shard = CASE WHEN m.table_oid IS NOT NULL \
             THEN pg_catalog.get_shard_id_for_distribution_column(m.table_oid, q.one->>1) END \
         WHERE q.one->>1 IS NOT NULL ON CONFLICT DO NOTHING",
        &[JsonB(Value::Array(tenants)).into(), citus_node.into()],
    )?;
    Ok(())
}

fn store_health(answer: &Answer) -> PgResult<()> {
    let found = spi::rows(
        "SELECT node_name::text, state, failures FROM foreshard.node WHERE citus_node = $1",
        &[answer.citus_node.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?, row.need::<i32>(3)?)),
    )?;
    let Some((name, state, failures)) = found.into_iter().next() else { return Ok(()) };
    let before = Breaker {
        state: if state == "down" { State::Open } else { State::Closed },
        failures: failures.max(0) as u32,
    };
    let now = before.after(answer.said.is_ok(), guc::NODE_FAILURES.get().max(1) as u32);
    let state = if now.state == State::Open { "down" } else { "up" };
    let why = answer.said.as_ref().err();
    spi::run(
        "UPDATE foreshard.node SET state = $2, failures = $3, last_error = $4, checked_at = pg_catalog.clock_timestamp(), \
                state_since = CASE WHEN state = $2 THEN state_since ELSE pg_catalog.clock_timestamp() END WHERE node_name = $1::name",
        &[name.as_str().into(), state.into(), (now.failures as i32).into(), why.map(String::as_str).into()],
    )?;
    if now.state != before.state {
        let event = if now.state == State::Open { "node_down" } else { "node_up" };
        crate::catalog::record_event(event, None, None, serde_json::json!({"node": name, "reason": why}))?;
    }
    Ok(())
}

/// The counters of slots all of whose shards were read not longer ago than that; by slot.
pub fn readings(fresh_s: f64) -> PgResult<Vec<Reading>> {
    spi::rows(
        "SELECT q.slot_id, q.shard_id, q.table_oid, q.citus_shard, q.citus_node, q.counted_at, q.scans, q.rows_read, q.inserted, q.updated, q.deleted, q.blocks_read, q.blocks_hit, \
                q.counted_since \
         FROM (SELECT t.*, s.shard_id, o.citus_node, \
                      bool_and(coalesce(t.collected_at > pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1), false) \
                               AND t.counted_at IS NOT NULL AND t.counted_since IS NOT NULL) OVER (PARTITION BY t.slot_id) AS known \
               FROM foreshard.citus_shard t JOIN foreshard.slot s USING (slot_id) JOIN foreshard.node o USING (node_name)) q \
         WHERE q.known ORDER BY 1, 4",
        &[fresh_s.into()],
        |row| {
            // One shard on one node, and one life of the server that is that node: what another one counts is another count.
            let (shard, node, since_s) = (row.need::<i64>(4)?, row.need::<i32>(5)?, row.need::<f64>(14)?);
            Ok(Reading {
                slot_id: row.need(1)?,
                shard_id: row.need(2)?,
                table: row.need::<Oid>(3)?.to_u32(),
                relation: None,
                count: (shard, node, (since_s * 1e6) as i64),
                read_at_s: Some(row.need::<f64>(6)?),
                counters: counters(row, 7)?,
            })
        },
    )
}

/// Shards with slots that were not read since then: what they carry is not known.
pub fn unknown_shards(fresh_s: f64) -> PgResult<BTreeSet<i32>> {
    let found = spi::rows(
        "SELECT DISTINCT s.shard_id FROM foreshard.citus_shard t JOIN foreshard.slot s USING (slot_id) \
         WHERE coalesce(t.collected_at <= pg_catalog.clock_timestamp() - pg_catalog.make_interval(secs => $1), true)",
        &[fresh_s.into()],
        |row| row.need::<i32>(1),
    )?;
    Ok(found.into_iter().collect())
}

/// The shard of a slot that stands for all of them.
pub fn first_shard(slot_id: i64) -> PgResult<i64> {
    spi::one::<i64>(
        "SELECT min(citus_shard) FROM foreshard.citus_shard WHERE slot_id = $1",
        &[slot_id.into()],
    )?
    .ok_or_else(|| internal(format!("slot {slot_id} has no shard in Citus")))
}
