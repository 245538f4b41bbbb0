-- dependency_graph: foreign keys, triggers and what their functions touch.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT foreshard.add_shard('a', 'ts_a'), foreshard.add_shard('b', 'ts_b');
CREATE TABLE region (id int PRIMARY KEY);
CREATE TABLE customer (id bigint PRIMARY KEY, region int REFERENCES region ON DELETE SET NULL);
CREATE TABLE purchase (customer_id bigint REFERENCES customer ON DELETE CASCADE, no int, PRIMARY KEY (customer_id, no));
CREATE TABLE complaint (id int PRIMARY KEY, customer_id bigint CONSTRAINT complains REFERENCES customer);
CREATE TABLE unrelated (id int PRIMARY KEY, complaint int REFERENCES complaint);
CREATE TABLE audit (who bigint, at timestamptz) PARTITION BY RANGE (at);
CREATE TABLE audit_rest PARTITION OF audit DEFAULT;
SELECT foreshard.distribute('customer', 'id', 4);
SELECT foreshard.distribute('purchase', 'customer_id', colocate_with => 'customer');
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO audit VALUES (NEW.id, now()); RETURN NEW; END $$;
CREATE TRIGGER noting AFTER INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION note();
CREATE TRIGGER once BEFORE DELETE ON purchase FOR EACH STATEMENT EXECUTE FUNCTION suppress_redundant_updates_trigger();
ALTER TABLE purchase DISABLE TRIGGER once;
SELECT from_kind, from_object, edge, to_kind, to_object, detail, source FROM foreshard.dependency_graph ORDER BY edge, from_object, to_object;

-- What was seen: partitions stand as their root, what is gone is left out.
INSERT INTO foreshard.observed_dependency
SELECT 'note'::regproc, r, w, n, timestamptz '2024-01-01 00:00+00' + n * interval '1 hour'
FROM (VALUES ('audit'::regclass::oid, true, 3), ('audit_rest'::regclass, true, 4), ('region'::regclass, false, 5), (4000000000::oid, false, 6)) v (r, w, n);
INSERT INTO foreshard.observed_dependency SELECT 4000000000, 'audit'::regclass, false, 1, now();
INSERT INTO foreshard.observed_dependency
SELECT 'note'::regproc, partition, false, 2, timestamptz '2024-01-02 00:00+00' FROM foreshard.slots WHERE "table" = 'purchase'::regclass;
SELECT from_object, edge, to_kind, to_object, source, seen, last_seen_at AT TIME ZONE 'UTC' AS last_seen_at
FROM foreshard.dependency_graph WHERE from_kind = 'function' ORDER BY 1, 2, 4;

-- Bodies in standard SQL say themselves what they read, write and call; defaults and checks call too.
CREATE VIEW totals AS SELECT count(*) AS n FROM complaint;
CREATE FUNCTION helper() RETURNS bigint BEGIN ATOMIC SELECT n FROM totals; END;
CREATE FUNCTION worker(x bigint) RETURNS bigint BEGIN ATOMIC
    INSERT INTO audit_rest SELECT x, now();
    UPDATE region SET id = id WHERE id = (SELECT helper());
    DELETE FROM unrelated WHERE EXISTS (SELECT FROM (SELECT id FROM complaint) q);
    SELECT x;
END;
CREATE FUNCTION lonely() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM audit; END;
CREATE FUNCTION fine(x bigint) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT x > 0';
ALTER TABLE customer ADD worked bigint DEFAULT worker(1), ADD CONSTRAINT fine CHECK (fine(id));
SELECT from_kind, from_object, edge, to_kind, to_object, detail FROM foreshard.dependency_graph
WHERE source = 'declared' AND edge IN ('reads', 'writes', 'calls') ORDER BY 1, 2, 3, 5;
-- What is dropped is gone.
DROP TABLE purchase;
SELECT count(*) FROM foreshard.dependency_graph WHERE 'purchase' IN (from_object, to_object);
SELECT col_description('foreshard.dependency_graph'::regclass, a.attnum) IS NULL AS bare, count(*) FROM pg_attribute a
WHERE attrelid = 'foreshard.dependency_graph'::regclass AND attnum > 0 GROUP BY 1;
