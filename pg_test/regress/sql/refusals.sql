-- Everything distribute and undistribute refuse, with SQLSTATE and reason; nothing changes by it.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
-- Without a shard there is nothing to plan.
SELECT count(*) FROM foreshard.recommend();
CREATE TABLE t (id int PRIMARY KEY, v text UNIQUE, doc json, p point, gen int GENERATED ALWAYS AS (1) STORED);
SELECT foreshard.distribute('t', 'id');
\echo :SQLSTATE
SELECT foreshard.add_shard('a', 'ts_a'), foreshard.add_shard('b', 'ts_b');

SELECT foreshard.distribute('t', 'nothing');
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'ctid');
\echo :SQLSTATE
SELECT foreshard.distribute('no_such_table', 'id');
\echo :SQLSTATE
-- Unique indexes must contain the key.
SELECT foreshard.distribute('t', 'id');
\echo :SQLSTATE
ALTER TABLE t DROP CONSTRAINT t_v_key;
-- json has no hash operator class, point neither.
SELECT foreshard.distribute('t', 'doc');
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'p');
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'gen');
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', slots => 0);
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', slots => 4097);
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', slots => -1);
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', shards => ARRAY['a', 'x']);
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', shards => ARRAY[]::text[]);
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', shards => ARRAY['a', NULL]);
\echo :SQLSTATE

-- Kinds of relation.
CREATE TABLE parted (id int) PARTITION BY HASH (id);
CREATE TABLE parted_0 PARTITION OF parted FOR VALUES WITH (MODULUS 1, REMAINDER 0);
CREATE VIEW a_view AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id;
CREATE SEQUENCE a_sequence;
CREATE TEMP TABLE a_temp (id int PRIMARY KEY);
CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY);
CREATE TYPE a_type AS (id int);
CREATE TABLE a_typed OF a_type;
SELECT foreshard.distribute('parted', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('parted_0', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('a_view', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('a_matview', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('a_sequence', 'last_value');
\echo :SQLSTATE
-- Without the session's number, which is part of the schema's name.
DO $$ BEGIN PERFORM foreshard.distribute('a_temp', 'id'); EXCEPTION WHEN OTHERS THEN
    RAISE NOTICE '% %', SQLSTATE, regexp_replace(SQLERRM, 'pg_temp_\d+', 'pg_temp'); END $$;
SELECT foreshard.distribute('an_unlogged', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('a_typed', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('pg_catalog.pg_class', 'oid');
\echo :SQLSTATE
SELECT foreshard.distribute('foreshard.shard', 'shard_id');
\echo :SQLSTATE

-- What hangs on the table, all reasons at once.
CREATE TABLE base (id int PRIMARY KEY, v int, during int4range);
CREATE TABLE heir () INHERITS (base);
CREATE MATERIALIZED VIEW seen AS SELECT v FROM base;
CREATE TABLE holder (b base);
CREATE RULE quiet AS ON DELETE TO base DO NOTHING;
ALTER TABLE base ADD EXCLUDE USING gist (during WITH &&);
CREATE FUNCTION counted() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM base; END;
CREATE UNIQUE INDEX base_v ON base (v);
SELECT foreshard.distribute('base', 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('heir', 'id');
\echo :SQLSTATE

-- Already managed, colocation.
SELECT foreshard.distribute('t', 'id', 4);
SELECT foreshard.distribute('t', 'id', 4);
\echo :SQLSTATE
CREATE TABLE u (id bigint PRIMARY KEY);
SELECT foreshard.distribute('u', 'id', colocate_with => 't');
\echo :SQLSTATE
SELECT foreshard.distribute('u', 'id', slots => 4, colocate_with => 't');
\echo :SQLSTATE
SELECT foreshard.distribute('u', 'id', colocate_with => 'parted');
\echo :SQLSTATE
SELECT foreshard.distribute('u', 'id', colocate_with => 'u');
\echo :SQLSTATE
SELECT foreshard.undistribute('u');
\echo :SQLSTATE
SELECT foreshard.undistribute('parted');
\echo :SQLSTATE
SELECT foreshard.undistribute(NULL) IS NULL AS nothing;
SELECT foreshard.distribute(NULL, 'id');
\echo :SQLSTATE
SELECT foreshard.distribute('u', NULL);
\echo :SQLSTATE

-- Not the owner; not in a read-only transaction.
CREATE ROLE foreshard_regress_other;
GRANT EXECUTE ON FUNCTION foreshard.distribute, foreshard.undistribute TO foreshard_regress_other;
SET ROLE foreshard_regress_other;
SELECT foreshard.distribute('u', 'id');
\echo :SQLSTATE
SELECT foreshard.undistribute('t');
\echo :SQLSTATE
RESET ROLE;
DROP OWNED BY foreshard_regress_other;
DROP ROLE foreshard_regress_other;
BEGIN READ ONLY;
SELECT foreshard.distribute('u', 'id');
\echo :SQLSTATE
ROLLBACK;

SELECT "table", count(*) FROM foreshard.slots GROUP BY 1;
SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'foreshard_rebuild%';
SELECT relkind FROM pg_class WHERE oid = 'u'::regclass;
