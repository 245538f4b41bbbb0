-- Shards: what add_shard takes and refuses, and what can be looked at before anything is distributed.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT extname, extnamespace::regnamespace FROM pg_extension WHERE extname = 'foreshard';

SELECT foreshard.add_shard('s1');
SELECT foreshard.add_shard('s2', 'ts_a', 2000);
SELECT foreshard.add_shard('Shard "3"', tablespace => 'ts_b', capacity => 0.5);

SELECT foreshard.add_shard('s1', 'ts_b');
\echo :SQLSTATE
SELECT foreshard.add_shard('');
\echo :SQLSTATE
SELECT foreshard.add_shard(repeat('x', 64));
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'nowhere');
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'pg_global');
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'ts_a', 0);
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'ts_a', -1);
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'ts_a', 'NaN');
\echo :SQLSTATE
SELECT foreshard.add_shard('s4', 'ts_a', 'Infinity');
\echo :SQLSTATE
-- 63 bytes, not 63 characters; NULL in, NULL out.
SELECT foreshard.add_shard(repeat('ä', 32));
\echo :SQLSTATE
SELECT foreshard.add_shard(NULL) IS NULL AS nothing_added;

SELECT shard, node, tablespace, capacity, draining, slots, bytes, cost_units_per_s, utilization, forecast_peak
FROM foreshard.shards ORDER BY shard_id;
SELECT count(*) AS slots FROM foreshard.slots;
SELECT event, detail FROM foreshard.history ORDER BY event_id;
SELECT * FROM foreshard.recommend();
SELECT * FROM foreshard.predict_shard_assignment();
SELECT * FROM foreshard.monitor_resharding_progress();

-- A failed statement leaves no trace.
BEGIN;
SELECT foreshard.add_shard('s9');
ROLLBACK;
SELECT count(*) FROM foreshard.shards WHERE shard = 's9';

-- The columns anybody may build on.
SELECT c.relname AS view, string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), E',\n' ORDER BY a.attnum) AS columns
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
WHERE c.relnamespace = 'foreshard'::regnamespace AND c.relkind = 'v' GROUP BY 1 ORDER BY 1;

DROP EXTENSION foreshard;
-- The schema of a control file stays, as with any extension; nothing is left in it.
SELECT count(*) FROM pg_depend WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'foreshard'::regnamespace;
-- What was there before is not in the way of a fresh start.
CREATE EXTENSION foreshard;
SELECT count(*) FROM foreshard.shards;
