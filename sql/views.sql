-- What a DBA looks at. Views only read; they are granted to pg_monitor, in functions.sql. They wait for no lock on users' tables:
-- sizes are read from the files, and nothing is called that opens a table.

-- Nothing is looked up in a schema that somebody else may have made first.
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE VIEW foreshard.slots AS
SELECT s.slot_id, s.group_id, p.table_oid AS "table", p.partition, s.modulus, s.remainder,
       h.shard_name AS shard,
       foreshard.total_bytes(p.partition) + coalesce(r.bytes, 0) AS bytes,
       coalesce(m.partner_of, m.move_id) AS move_id, s.last_moved_at, s.home_slot_id, s.isolated, NULL::bigint AS citus_shard
FROM foreshard.slot s
JOIN foreshard.shard h USING (shard_id)
JOIN foreshard.slot_partition p USING (slot_id)
JOIN pg_catalog.pg_class c ON c.oid = p.partition
LEFT JOIN foreshard.remote_table r ON r.partition = c.oid
LEFT JOIN foreshard.move m ON m.slot_id = s.slot_id AND NOT m.finished
UNION ALL
SELECT s.slot_id, s.group_id, t.table_oid, NULL, s.modulus, s.remainder, h.shard_name, t.bytes, m.move_id, s.last_moved_at,
       NULL, s.isolated, t.citus_shard
FROM foreshard.slot s
JOIN foreshard.shard h USING (shard_id)
JOIN foreshard.citus_shard t USING (slot_id)
LEFT JOIN foreshard.move m ON m.slot_id = s.slot_id AND NOT m.finished;

-- What the keeper cannot put right by itself, as the catalog is now. A slot that is being moved is left out.
-- The functions of PostgreSQL that tell what is below a table lock all of it until the transaction ends.
CREATE VIEW foreshard.layout_problems AS
WITH RECURSIVE below AS (
    SELECT m.group_id, m.table_oid, i.inhrelid, ARRAY[i.inhrelid] AS path
    FROM foreshard.managed_table m JOIN pg_catalog.pg_inherits i ON i.inhparent = m.table_oid WHERE NOT i.inhdetachpending
    UNION ALL
    SELECT b.group_id, b.table_oid, i.inhrelid, b.path || i.inhrelid
    FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.inhrelid WHERE NOT i.inhdetachpending
)
SELECT q.group_id, q.slot_id, q."table", q.partition, q.problem, q.advice
FROM (
    SELECT s.group_id, s.slot_id, m.table_oid AS "table", NULL::regclass AS partition, 'no_partition' AS problem,
           format('Keys of this slot have no place: ALTER TABLE %s ATTACH PARTITION … FOR VALUES WITH (MODULUS %s, REMAINDER %s).',
                  m.table_oid, s.modulus, s.remainder) AS advice
    FROM foreshard.managed_table m JOIN foreshard.slot s USING (group_id)
    JOIN pg_catalog.pg_class c ON c.oid = m.table_oid
    LEFT JOIN foreshard.slot_partition p ON (p.slot_id, p.table_oid) = (s.slot_id, m.table_oid)
    LEFT JOIN pg_catalog.pg_class l ON l.oid = p.partition
    WHERE s.home_slot_id IS NULL
      AND (l.oid IS NULL OR NOT EXISTS (SELECT FROM below b WHERE (b.table_oid, b.inhrelid) = (m.table_oid, p.partition)))
    UNION ALL
    SELECT b.group_id, NULL, b.table_oid, c.oid::regclass, 'no_slot',
           'No slot has this bound, so it is neither observed nor moved: detach it and attach one with the modulus and remainder of a slot (see foreshard.slots).'
    FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.inhrelid
    WHERE c.relkind <> 'p' AND NOT EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.partition = ANY (b.path))
    UNION ALL
    SELECT s.group_id, s.slot_id, p.table_oid, p.partition, 'other_tablespace',
           format('Its storage is not on shard %1$s: SELECT foreshard.move_slot(%2$s, %1$L); moves it there online. '
                  'ALTER TABLE %3$s SET TABLESPACE %4$I does so, too, but keeps everybody out while it copies.',
                  h.shard_name, s.slot_id, p.partition, h.tablespace_name)
    FROM foreshard.slot_partition p JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id)
    JOIN pg_catalog.pg_class c ON c.oid = p.partition AND c.relkind = 'r'
    LEFT JOIN pg_catalog.pg_tablespace t ON t.oid = c.reltablespace
    WHERE coalesce(t.spcname, (SELECT b.spcname FROM pg_catalog.pg_database d JOIN pg_catalog.pg_tablespace b ON b.oid = d.dattablespace
                               WHERE d.datname = current_database())) <> h.tablespace_name
) q
WHERE NOT EXISTS (SELECT FROM foreshard.move v WHERE v.slot_id = q.slot_id AND NOT v.finished);

CREATE VIEW foreshard.shards AS
SELECT h.shard_id, h.shard_name AS shard, h.node_name AS node, h.tablespace_name AS tablespace, h.capacity, h.draining,
       coalesce(l.slots, 0) AS slots,
       coalesce(l.bytes, 0)::bigint AS bytes,
       l.cost_units_per_s,
       l.cost_units_per_s / h.capacity AS utilization,
       f.forecast_peak
FROM foreshard.shard h
LEFT JOIN (
    SELECT s.shard_id, count(*) AS slots, sum(b.bytes) AS bytes, sum(t.cost_units_per_s) AS cost_units_per_s
    FROM foreshard.slot s
    LEFT JOIN foreshard.slot_heat t USING (slot_id)
    LEFT JOIN (
        SELECT p.slot_id, sum(foreshard.total_bytes(p.partition) + coalesce(r.bytes, 0)) AS bytes
        FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition
        LEFT JOIN foreshard.remote_table r ON r.partition = c.oid GROUP BY 1
        UNION ALL
        SELECT t.slot_id, sum(t.bytes) FROM foreshard.citus_shard t GROUP BY 1
    ) b USING (slot_id)
    GROUP BY 1
) l USING (shard_id)
LEFT JOIN (
    SELECT q.shard_id, max(q.load) AS forecast_peak
    FROM (SELECT s.shard_id, f.at, sum(f.cost_units_per_s) AS load
          FROM foreshard.forecast f JOIN foreshard.slot s USING (slot_id) GROUP BY 1, 2) q
    GROUP BY 1
) f USING (shard_id);

-- When the slots of this server were last read, by one row. Overdue: a keeper that works would have read them since. Nobody reads on a
-- standby, nor with foreshard.observe off; slots on nodes are read when those answer.
CREATE VIEW foreshard.last_reading AS
SELECT q.read_at, clock_timestamp() - q.read_at AS age,
       NOT pg_catalog.pg_is_in_recovery() AND coalesce(current_setting('foreshard.observe', true)::boolean, false)
           AND coalesce(clock_timestamp() - coalesce(q.read_at, q.distributed_at)
                        > greatest(5 * current_setting('foreshard.bucket', true)::interval, interval '1 min'), false) AS overdue
FROM (
    SELECT max(t.observed_at) AS read_at, min(m.distributed_at) AS distributed_at
    FROM foreshard.slot s
    JOIN foreshard.shard h ON h.shard_id = s.shard_id AND h.node_name = 'local'
    JOIN foreshard.slot_partition p ON p.slot_id = s.slot_id
    JOIN foreshard.managed_table m ON m.table_oid = p.table_oid
    LEFT JOIN foreshard.slot_heat t ON t.slot_id = s.slot_id
) q;

-- Levels of values, relative to the greatest of them; a blank is unknown.
CREATE FUNCTION foreshard.sparkline(series float8[]) RETURNS text
IMMUTABLE PARALLEL SAFE LANGUAGE sql SET search_path TO pg_catalog, pg_temp AS $$
    SELECT string_agg(CASE WHEN q.level IS NULL THEN ' ' WHEN getdatabaseencoding() = 'UTF8' THEN chr(9601 + q.level)
                           ELSE substr('_.-:=+*#', 1 + q.level, 1) END, '' ORDER BY q.n)
    FROM (SELECT u.n, CASE WHEN u.value NOT IN ('NaN', 'Infinity', '-Infinity')
                           THEN least(7, greatest(0, ceil(8 * (u.value / nullif(max(u.value) FILTER (WHERE u.value < 'Infinity') OVER (), 0))) - 1))::int END AS level
          FROM unnest(series) WITH ORDINALITY u (value, n)) q
$$;

CREATE VIEW foreshard.load_history AS
SELECT slot_id, resolution_s, bucket_at, reads_per_s, writes_per_s, blocks_per_s, cost_units_per_s, cpu_ms_per_s, wal_bytes_per_s,
       trigger_cost_per_s, access_score
FROM foreshard.heat_history;

CREATE VIEW foreshard.heat_map AS
SELECT s.slot_id, s.group_id, s.modulus, s.remainder, h.shard_name AS shard,
       t.reads_per_s, t.writes_per_s, t.blocks_per_s, t.cpu_ms_per_s, t.wal_bytes_per_s, t.trigger_cost_per_s,
       t.cost_units_per_s, t.heat, t.access_score,
       t.cost_units_per_s / nullif(sum(t.cost_units_per_s) OVER (PARTITION BY s.group_id), 0) AS share,
       t.observed_at, s.home_slot_id, s.isolated,
       foreshard.sparkline(ARRAY(
           SELECT b.cost_units_per_s FROM (
               SELECT k.bucket_at, k.cost_units_per_s FROM foreshard.heat_history k
               WHERE k.resolution_s = (SELECT coalesce(extract(epoch FROM current_setting('foreshard.bucket', true)::interval)::int,
                                                       (SELECT min(f.resolution_s) FROM foreshard.heat_history f))) AND k.slot_id = s.slot_id
               ORDER BY k.bucket_at DESC LIMIT 24) b
           ORDER BY b.bucket_at)) AS recent
FROM foreshard.slot s
JOIN foreshard.shard h USING (shard_id)
LEFT JOIN foreshard.slot_heat t USING (slot_id);

-- Means of the measured statements; what is measured weighs less the older it is.
CREATE VIEW foreshard.slot_costs AS
SELECT c.slot_id, c.table_oid AS "table", h.shard_name AS shard, c.statements AS measured_statements,
       c.rows_read / nullif(c.statements, 0) AS rows_read, c.rows_written / nullif(c.statements, 0) AS rows_written,
       c.result_bytes / nullif(c.statements, 0) AS result_bytes, c.read_cpu_ms / nullif(c.statements, 0) AS read_cpu_ms,
       c.write_cpu_ms / nullif(c.statements, 0) AS write_cpu_ms, c.elapsed_ms / nullif(c.statements, 0) AS elapsed_ms,
       c.blocks_hit / nullif(c.statements, 0) AS blocks_hit, c.blocks_read / nullif(c.statements, 0) AS blocks_read,
       c.blocks_dirtied / nullif(c.statements, 0) AS blocks_dirtied, c.temp_blocks / nullif(c.statements, 0) AS temp_blocks,
       c.wal_bytes / nullif(c.statements, 0) AS wal_bytes, c.trigger_cost_units / nullif(c.trigger_calls, 0) AS trigger_call_cost_units,
       c.measured_at
FROM (SELECT * FROM foreshard.slot_cost UNION ALL SELECT * FROM foreshard.citus_slot_cost) c
JOIN foreshard.slot s USING (slot_id)
JOIN foreshard.shard h USING (shard_id);

-- The naive forecast: the same time yesterday, else the last bucket that was known when the forecast was made.
CREATE VIEW foreshard.forecast_errors AS
SELECT slot_id, lead, resolution_s, buckets, error / nullif(weight, 0) AS mae, scaled_error / nullif(naive_error, 0) AS mase,
       covered / nullif(weight, 0) AS coverage, last_at
FROM foreshard.forecast_error;

CREATE VIEW foreshard.forecasts AS
SELECT f.slot_id, f.at, f.cost_units_per_s, f.lower, f.upper, f.interval_level, f.model, f.history_buckets, f.mae, f.made_at,
       e.mase, e.coverage
FROM foreshard.forecast f
LEFT JOIN (
    SELECT slot_id, sum(scaled_error) / nullif(sum(naive_error), 0) AS mase, sum(covered) / nullif(sum(weight), 0) AS coverage
    FROM foreshard.forecast_error GROUP BY 1
) e USING (slot_id);

CREATE VIEW foreshard.recommendations AS
SELECT r.recommendation_id, r.made_at, r.action, r.slot_id, a.shard_name AS from_shard, b.shard_name AS to_shard,
       r.confidence, r.benefit, r.bytes, r.imbalance_before, r.imbalance_after, r.reason, r.refusal, r.advice,
       r.foreseen, r.start_at, r.overload_at, r.timing, r.table_oid AS "table",
       CASE WHEN v.may_see THEN r.keys END AS keys
FROM foreshard.recommendation r
LEFT JOIN foreshard.shard a ON a.shard_id = r.from_shard
LEFT JOIN foreshard.shard b ON b.shard_id = r.to_shard
LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = r.table_oid
-- Of a table of Citus they are tenants (see the view citus_tenants).
CROSS JOIN LATERAL (SELECT CASE WHEN p.partrelid IS NULL THEN pg_catalog.pg_has_role('pg_read_all_data', 'USAGE')
                                ELSE pg_catalog.has_column_privilege(p.partrelid, p.partattrs[0], 'SELECT')
                                     AND NOT pg_catalog.row_security_active(p.partrelid) END AS may_see) v;

-- Of the steps recommended with about one confidence, the share that paid; a group's trust stands on its newest.
CREATE VIEW foreshard.calibration AS
SELECT g.group_id, pg_catalog.array_agg(DISTINCT m.table_oid) AS tables, b.confidence_from, b.confidence_to,
       b.outcomes, b.stated, b.paid, t.trust, t.since AS trust_since
FROM foreshard.colocation_group g
JOIN (SELECT group_id, table_oid FROM foreshard.managed_table UNION ALL SELECT group_id, table_oid FROM foreshard.citus_table) m USING (group_id)
JOIN foreshard.group_trust t USING (group_id)
LEFT JOIN (
    SELECT o.group_id, least(floor(o.stated * 5), 4) / 5 AS confidence_from, (least(floor(o.stated * 5), 4) + 1) / 5 AS confidence_to,
           count(*) AS outcomes, avg(o.stated) AS stated, avg(o.paid::int)::float8 AS paid
    FROM foreshard.outcome o WHERE o.paid IS NOT NULL GROUP BY 1, 2, 3
) b USING (group_id)
GROUP BY g.group_id, b.confidence_from, b.confidence_to, b.outcomes, b.stated, b.paid, t.trust, t.since;

CREATE VIEW foreshard.progress_moves AS
SELECT q.move_id, q.request_id, q.slot_id, q.from_shard, q.to_shard, q.phase, q.state,
       q.rows_done, q.rows_total, q.bytes_done, q.bytes_total,
       CASE WHEN q.phase = 'done' THEN 100.0
            WHEN v.blocks_total > 0 THEN round(least(100.0 * v.blocks_done / v.blocks_total, 100), 1)
            WHEN q.bytes_total > 0 THEN round(100.0 * q.bytes_done / q.bytes_total, 1) END AS percent,
       q.bytes_done / nullif(extract(epoch FROM q.elapsed), 0)::float8 AS bytes_per_s,
       -- unknown rather than stale or negative
       CASE WHEN q.state <> 'running' THEN NULL
            WHEN v.blocks_done > 0
            THEN pg_catalog.make_interval(secs => v.elapsed_s * greatest(v.blocks_total - v.blocks_done, 0) / v.blocks_done)
            WHEN q.phase = 'copy' AND q.bytes_done > 0
            THEN q.elapsed * (greatest(q.bytes_total - q.bytes_done, 0)::float8 / q.bytes_done)
            WHEN q.phase = 'index' THEN x.eta
            WHEN q.phase = 'catch_up' AND q.ready_at > clock_timestamp() THEN q.ready_at - clock_timestamp() END AS eta,
       -- how old the oldest change may be that the copy lacks
       CASE WHEN q.finished OR q.phase NOT IN ('copy', 'index', 'catch_up', 'mirror', 'verify', 'prepared', 'canary', 'cutover', 'watch') THEN NULL
            WHEN q.caught_up_at = 'infinity' THEN interval '0'
            ELSE greatest(clock_timestamp() - q.caught_up_at, interval '0') END AS lag,
       q.weight, q.pending_keys, q.lock_attempts, q.waiting_for, q.restarts,
       -- it may name a key
       CASE WHEN q.last_error IS NULL THEN NULL
            WHEN EXISTS (SELECT FROM foreshard.slot_partition p WHERE p.slot_id = q.slot_id
                         AND NOT (pg_catalog.has_table_privilege(p.table_oid, 'SELECT') AND NOT pg_catalog.row_security_active(p.table_oid)))
                THEN 'hidden: it may name keys of a table that you may not read'
            ELSE q.last_error END AS last_error,
       q.started_at, q.elapsed,
       q.kind, q.finished_at, q.requested_by, q.reason, q.reads_routed, q.reads_stayed, q.reads_unroutable,
       q.scans_compared, q.scans_incomparable
FROM (
    SELECT m.move_id, m.request_id, m.slot_id, m.kind, m.finished_at, m.reason, o.requested_by, a.shard_name AS from_shard, b.shard_name AS to_shard,
           m.phase, m.finished,
           CASE WHEN m.finished THEN m.phase WHEN m.started_at IS NULL THEN 'waiting'
                WHEN m.cancel_requested OR m.rollback_requested THEN 'cancelling' WHEN m.paused THEN 'paused'
                WHEN m.phase = 'watch' THEN 'watching' WHEN m.phase = 'prepared' AND m.prepare THEN 'prepared' ELSE 'running' END AS state,
           coalesce(r.rows_done, m.rows_copied) AS rows_done, coalesce(r.rows_total, m.rows_copied) AS rows_total,
           coalesce(r.blocks_done * current_setting('block_size')::bigint, m.bytes_copied) AS bytes_done,
           coalesce(r.blocks_total * current_setting('block_size')::bigint, m.bytes_copied) AS bytes_total,
           m.route_weight AS weight, m.pending_keys, m.lock_attempts, m.waiting_for, m.restarts, m.last_error, m.started_at,
           m.reads_routed, m.reads_stayed, m.reads_unroutable, m.scans_compared, m.scans_incomparable, m.caught_up_at, m.ready_at,
           coalesce(m.finished_at, clock_timestamp()) - m.started_at AS elapsed
    FROM foreshard.move m
    JOIN foreshard.resharding_request o USING (request_id)
    JOIN foreshard.shard a ON a.shard_id = m.from_shard
    JOIN foreshard.shard b ON b.shard_id = m.to_shard
    LEFT JOIN (SELECT move_id, sum(rows_done)::bigint AS rows_done, sum(rows_total)::bigint AS rows_total,
                      sum(blocks_done)::bigint AS blocks_done, sum(blocks_total)::bigint AS blocks_total
               FROM foreshard.move_relation GROUP BY 1) r USING (move_id)
    WHERE m.partner_of IS NULL
) q
-- While both copies are compared, of that; else of the copying.
LEFT JOIN foreshard.verification_progress() v ON v.move_id = q.move_id AND q.state IN ('running', 'cancelling')
-- An index takes as long as its heap and itself are large; the one that is being built counts by what is done of it.
LEFT JOIN LATERAL (
    SELECT CASE WHEN sum(w.done) > 0 AND sum(w.spent_s) > 0
                THEN pg_catalog.make_interval(secs => (sum(w.size) - sum(w.done)) * sum(w.spent_s) / sum(w.done)) END AS eta
    FROM (SELECT d.size, CASE WHEN i.built THEN d.size ELSE d.size * coalesce(b.share, 0) END AS done,
                 coalesce(CASE WHEN i.built THEN i.built_s ELSE b.spent_s END, 0) AS spent_s
          FROM foreshard.move_index i JOIN foreshard.move_relation r USING (move_id, source)
          LEFT JOIN pg_catalog.pg_class c ON c.oid = i.source_index
          LEFT JOIN (SELECT p.index_relid, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS spent_s,
                            -- a B-tree is half done when its rows are read
                            CASE WHEN p.phase LIKE '%loading%' THEN 0.5 + 0.5 * least(p.tuples_done::float8 / nullif(p.tuples_total, 0), 1)
                                 WHEN p.phase LIKE '%sorting%' THEN 0.5
                                 ELSE least(p.blocks_done::float8 / nullif(p.blocks_total, 0), 1) * CASE WHEN p.phase LIKE '%scanning%' THEN 0.5 ELSE 1 END
                            END AS share
                     FROM pg_catalog.pg_stat_progress_create_index p JOIN pg_catalog.pg_stat_activity a USING (pid)
                     WHERE p.datname = current_database()) b ON b.index_relid = i.shadow_index
          CROSS JOIN LATERAL (SELECT greatest(r.blocks_total + coalesce(c.relpages, 0), 1)::float8 AS size) d
          WHERE i.move_id = q.move_id AND q.phase = 'index' AND q.state = 'running') w
) x ON true;

-- The keys of rows that a verification found to differ are the users' data.
CREATE VIEW foreshard.history AS
SELECT entry_id AS event_id, at, event, move_id, slot_id,
       CASE WHEN pg_catalog.pg_has_role('pg_read_all_data', 'USAGE') THEN detail ELSE detail - 'rows' END AS detail
FROM foreshard.journal;

-- A trigger function of PostgreSQL's own passes by the hooks; the executor's instrumentation of measured
-- statements sees its elapsed time, its blocks and its WAL.
CREATE VIEW foreshard.stat_triggers AS
SELECT p.table_oid AS "table", p.trigger_name AS trigger, p.function_oid::regprocedure AS function,
       p.event, p.level, p.timing, p.calls, p.failed_calls, p.sampled_calls,
       CASE WHEN NOT b.built_in THEN p.cpu_ns / 1e3::float8 / b.n END AS cpu_us,
       CASE WHEN NOT b.built_in THEN p.cpu_inclusive_ns / 1e3::float8 / b.n END AS cpu_us_inclusive,
       CASE WHEN NOT b.built_in THEN p.cpu_inclusive_ns / 1e3::float8 END AS total_cpu_us_inclusive,
       p.elapsed_ns / 1e3::float8 / b.n AS elapsed_us,
       p.elapsed_inclusive_ns / 1e3::float8 / b.n AS elapsed_us_inclusive,
       p.memory_bytes / nullif(p.memory_weight, 0)::float8 AS memory_retained_bytes,
       p.blocks_hit / b.n AS blocks_hit, p.blocks_read / b.n AS blocks_read, p.blocks_dirtied / b.n AS blocks_dirtied,
       p.wal_bytes / b.n AS wal_bytes, p.temp_blocks / b.n AS temp_blocks,
       CASE WHEN b.built_in THEN 'elapsed, blocks, wal' ELSE 'all' END AS sees,
       m.model, m.reason AS model_reason, m.samples, m.relative_error, m.bias, m.r2, m.coverage
FROM (
    SELECT profile_id, table_oid, trigger_name, function_oid, event, level, timing, calls, failed_calls, sampled_calls, sampled_weight, cpu_ns, cpu_inclusive_ns,
           elapsed_ns, elapsed_inclusive_ns, memory_bytes, memory_weight, blocks_hit, blocks_read, blocks_dirtied, wal_bytes, temp_blocks
    FROM foreshard.trigger_profile
    -- Of distributed tables no models are learnt.
    UNION ALL
    SELECT NULL, table_oid, trigger_name, function_oid, event, level, timing, calls, failed_calls, sampled_calls, sampled_weight, cpu_ns, cpu_inclusive_ns,
           elapsed_ns, elapsed_inclusive_ns, memory_bytes, memory_weight, blocks_hit, blocks_read, blocks_dirtied, wal_bytes, temp_blocks
    FROM foreshard.citus_trigger
) p
CROSS JOIN LATERAL (SELECT p.function_oid::bigint < 10000 AS built_in, nullif(p.sampled_weight, 0)::float8 AS n) b
LEFT JOIN foreshard.trigger_model m
    ON m.profile_id = p.profile_id AND m.resource = CASE WHEN b.built_in THEN 'elapsed_us' ELSE 'cpu_us' END;

-- Keys are the users' data, as the most common values in pg_stats are: being a monitor shows which slots
-- have hot keys and how hot, the key itself only to those who may read that column of every row anyway
-- (members of pg_read_all_data may, unless row security applies to them). Granting the whole view to
-- pg_read_all_data instead would hide the numbers from those who watch.
CREATE VIEW foreshard.hot_keys AS
SELECT k.group_id, k.table_oid AS "table", k.slot_id,
       CASE WHEN v.may_see THEN k.key END AS key,
       CASE WHEN v.may_see THEN k.key_hash END AS key_hash,
       k.truncated, k.accesses_per_s, k.lower, k.upper, k.access_score, k.observed_at
FROM foreshard.hot_key k
JOIN pg_catalog.pg_class c ON c.oid = k.table_oid
JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = c.oid
CROSS JOIN LATERAL (SELECT pg_catalog.has_column_privilege(c.oid, r.partattrs[0], 'SELECT')
                           AND NOT pg_catalog.row_security_active(c.oid) AS may_see) v;

CREATE VIEW foreshard.co_access AS
SELECT slot_a, slot_b, weight, lift, share, observed_at FROM foreshard.coaccess;

SET LOCAL search_path TO foreshard, pg_temp;
