-- What observation shows before there is anything to show, what predict_cost refuses, and who may look.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT foreshard.add_shard(s, t) FROM (VALUES ('a', 'ts_a'), ('b', 'ts_b')) v (s, t);
CREATE TABLE item (id bigint PRIMARY KEY, name text NOT NULL, price numeric(10, 2), tags jsonb);
CREATE TABLE line (item_id bigint REFERENCES item, no int, PRIMARY KEY (item_id, no));
SELECT foreshard.distribute('item', 'id', 4);
SELECT foreshard.distribute('line', 'item_id', colocate_with => 'item');

-- Unknown is no row, or NULL, never 0.
SELECT * FROM foreshard.stat_triggers;
SELECT * FROM foreshard.hot_keys;
SELECT * FROM foreshard.co_access;
SELECT DISTINCT wal_bytes_per_s, trigger_cost_per_s FROM foreshard.heat_map;
SELECT area, capacity, written >= 0 AS ring, used >= 0 AS table, dropped, lost FROM foreshard.stat_foreshard ORDER BY area COLLATE "C";
SELECT statements_sampled >= 0 AS statements, measuring_ms >= 0 AS measuring, too_deep, given_up FROM foreshard.stat_sampling;

-- Without triggers nothing fires; the checks of foreign keys are told once they were measured.
SELECT * FROM foreshard.predict_cost('item', 'INSERT', 100);
SELECT * FROM foreshard.predict_cost('line', 'INSERT', 100);

-- The triggers of every kind, in the order in which they fire.
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN coalesce(NEW, OLD); END $$;
CREATE TRIGGER zz_before BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION f();
CREATE TRIGGER aa_after AFTER INSERT OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION f();
CREATE TRIGGER once BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON item EXECUTE FUNCTION f();
CREATE TRIGGER finally AFTER INSERT ON item EXECUTE FUNCTION f();
CREATE TRIGGER priced AFTER UPDATE OF price, name ON item FOR EACH ROW WHEN (NEW.price > 5) EXECUTE FUNCTION f();
CREATE TRIGGER off BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION f();
ALTER TABLE item DISABLE TRIGGER off;
CREATE TRIGGER replica BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION f();
ALTER TABLE item ENABLE REPLICA TRIGGER replica;
CREATE TRIGGER always BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION f();
ALTER TABLE item ENABLE ALWAYS TRIGGER always;
SELECT * FROM foreshard.predict_cost('item', 'INSERT', 100, statement_rows => 10);
SELECT * FROM foreshard.predict_cost('item', 'update', 100, non_null => 3, changed => 1);
SELECT trigger, calls FROM foreshard.predict_cost('item', 'DELETE', NULL::bigint);
SELECT trigger, calls FROM foreshard.predict_cost('item', 'TRUNCATE', 0);

-- A row as JSON.
SELECT trigger, calls FROM foreshard.predict_cost('item', 'INSERT', "row" => '{"id": 1, "name": "x", "price": null}', statement_rows => 3);
SELECT foreshard.predict_cost('item', 'INSERT', '{"id": 1, "colour": "red"}'::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', '[1]'::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', '"id"'::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', 'null'::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', NULL::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', '{"id": "one"}'::jsonb);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', '{"price": 12345678901}'::jsonb);
\echo :SQLSTATE

SELECT foreshard.predict_cost('item', 'MERGE', 100);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', '', 100);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', NULL, 100);
\echo :SQLSTATE
SELECT foreshard.predict_cost(NULL, 'INSERT', 100);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', -1);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', 1, non_null => -1);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', 1, changed => -1);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', 1, statement_rows => 0);
\echo :SQLSTATE
SELECT foreshard.predict_cost('item', 'INSERT', 1, statement_rows => NULL);
\echo :SQLSTATE
CREATE TABLE ordinary (id int);
SELECT foreshard.predict_cost('ordinary', 'INSERT', 1);
\echo :SQLSTATE
SELECT foreshard.predict_cost('nobody', 'INSERT', 1);
\echo :SQLSTATE
SELECT foreshard.predict_cost(1::oid::regclass, 'INSERT', 1);
\echo :SQLSTATE

-- Whoever may read the table may ask, and monitors may.
CREATE ROLE regress_reader;
CREATE ROLE regress_monitor IN ROLE pg_monitor;
CREATE ROLE regress_stranger;
GRANT SELECT ON item TO regress_reader;
SET ROLE regress_reader;
SELECT count(*) FROM foreshard.predict_cost('item', 'INSERT', 1);
SELECT count(*) FROM foreshard.predict_cost('item', 'INSERT', '{"id": 1}'::jsonb);
SELECT count(*) FROM foreshard.stat_triggers;
\echo :SQLSTATE
SET ROLE regress_monitor;
SELECT count(*) FROM foreshard.predict_cost('item', 'INSERT', 1);
SELECT count(*) FROM foreshard.stat_triggers;
SET ROLE regress_stranger;
SELECT count(*) FROM foreshard.predict_cost('item', 'INSERT', 1);
\echo :SQLSTATE
SELECT count(*) FROM foreshard.stat_foreshard;
\echo :SQLSTATE
RESET ROLE;

-- A hot key is shown to those who may read it, row security permitting; how hot it is, to every monitor.
INSERT INTO foreshard.hot_key SELECT group_id, 42, 'item', 1, 'secret', false, 7, 6, 8, 7, now() FROM foreshard.managed_table WHERE table_oid = 'item'::regclass;
SELECT "table", slot_id, key, key_hash, accesses_per_s, lower, upper FROM foreshard.hot_keys;
SET ROLE regress_monitor;
SELECT "table", slot_id, key, key_hash, accesses_per_s, lower, upper FROM foreshard.hot_keys;
RESET ROLE;
GRANT SELECT (id) ON item TO regress_monitor;
SET ROLE regress_monitor;
SELECT key, key_hash FROM foreshard.hot_keys;
RESET ROLE;
ALTER TABLE item ENABLE ROW LEVEL SECURITY;
SET ROLE regress_monitor;
SELECT key, key_hash FROM foreshard.hot_keys;
RESET ROLE;
DROP TABLE line, item;
DROP OWNED BY regress_reader, regress_monitor, regress_stranger;
DROP ROLE regress_reader, regress_monitor, regress_stranger;
