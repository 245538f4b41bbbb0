-- next_key: keys that hash to where their row should live, as values and as a column's default.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT foreshard.add_shard(s, t) FROM (VALUES ('a', 'ts_a'), ('b', 'ts_b'), ('c', 'ts_c')) v (s, t);
CREATE FUNCTION shard_of(leaf oid) RETURNS text STABLE LANGUAGE sql AS 'SELECT shard::text FROM foreshard.slots WHERE partition = leaf';
CREATE FUNCTION remainder_of(leaf oid) RETURNS int STABLE LANGUAGE sql AS 'SELECT remainder FROM foreshard.slots WHERE partition = leaf';

CREATE TABLE customer (id bigint PRIMARY KEY, name text);
INSERT INTO customer SELECT g, 'c' || g FROM generate_series(1, 100) g;
SELECT foreshard.distribute('customer', 'id', 16);
-- The sequence behind: above all keys, owned by the key's column, described.
SELECT start_value, max_value FROM pg_sequences WHERE sequencename = 'customer_id_foreshard_seq';
SELECT pg_get_serial_sequence('customer', 'id'), obj_description('customer_id_foreshard_seq'::regclass);
SELECT key_sequence FROM foreshard.managed_table;
SELECT foreshard.next_key('customer', NULL::bigint) BETWEEN 8192 AND 16383 AS first_block;
SELECT count(DISTINCT k), min(k) >= 8192 AS above FROM (SELECT foreshard.next_key('customer', NULL::bigint) AS k FROM generate_series(1, 20000)) q;
-- Names are cut and made unique as those of serial columns.
CREATE TABLE a_table_with_a_name_that_is_rather_long (a_key_with_a_long_name_too bigint PRIMARY KEY);
CREATE TABLE twin (id bigint PRIMARY KEY);
CREATE SEQUENCE twin_id_foreshard_seq;
SELECT foreshard.distribute('a_table_with_a_name_that_is_rather_long', 'a_key_with_a_long_name_too', 2);
INSERT INTO twin VALUES (-5), (81920);
SELECT foreshard.distribute('twin', 'id', 2);
SELECT key_sequence FROM foreshard.managed_table ORDER BY 1;
SELECT foreshard.next_key('twin', NULL::bigint) / 8192 AS block;

-- As a default: INSERT, INSERT … SELECT, COPY, in ALTER TABLE and in CREATE TABLE.
ALTER TABLE customer ALTER id SET DEFAULT foreshard.next_key('customer', NULL::bigint);
INSERT INTO customer (name) VALUES ('one') RETURNING id > 8191 AS drawn;
INSERT INTO customer (name) SELECT 'many' FROM generate_series(1, 1000);
COPY customer (name) FROM stdin;
copied
copied
copied
\.
SELECT name, count(*), count(DISTINCT id), bool_and(id > 8191) FROM customer WHERE id > 100 GROUP BY 1 ORDER BY 1;
CREATE TABLE born (id bigint DEFAULT foreshard.next_key('born'::text::regclass, NULL::bigint) PRIMARY KEY, v int);
INSERT INTO born (v) VALUES (1);
\echo :SQLSTATE
SELECT foreshard.distribute('born', 'id', 4);
INSERT INTO born (v) VALUES (1) RETURNING v;
-- A default that names the table comes along through a rebuild …
CREATE TABLE self (id bigint PRIMARY KEY, v int);
ALTER TABLE self ALTER id SET DEFAULT foreshard.next_key('self', NULL::bigint);
CREATE TABLE watcher (self_key bigint DEFAULT foreshard.next_key('self', NULL::bigint));
SELECT foreshard.distribute('self', 'id', 4);
INSERT INTO self (v) VALUES (1) RETURNING v;
INSERT INTO watcher DEFAULT VALUES RETURNING self_key > 0 AS ok;
-- … but not to a table that has no slots.
SELECT foreshard.undistribute('self');
\echo :SQLSTATE
ALTER TABLE self ALTER id DROP DEFAULT;
SELECT foreshard.undistribute('self');
SELECT pg_get_serial_sequence('self', 'id') IS NULL AS sequence_gone, count(*) FROM self;

-- Near a key of the same table: its slot.
SELECT count(*), bool_and(foreshard.get_shard_location('customer', k) = (SELECT shard_of(tableoid) FROM customer WHERE id = 42)) AS near
FROM (SELECT foreshard.next_key('customer', 42) AS k FROM generate_series(1, 50)) q;
INSERT INTO customer SELECT foreshard.next_key('customer', 42), 'near 42' FROM generate_series(1, 50);
SELECT count(DISTINCT tableoid), bool_and(tableoid = (SELECT tableoid FROM customer WHERE id = 42)) AS near FROM customer WHERE name = 'near 42';

-- Near the only parent of another group: its shard.
CREATE TABLE ticket (id bigint PRIMARY KEY, customer_id bigint REFERENCES customer, v text);
SELECT foreshard.distribute('ticket', 'id', 8);
INSERT INTO ticket SELECT foreshard.next_key('ticket', c), c FROM generate_series(1, 100) c;
SELECT count(*), bool_and(shard_of(t.tableoid) = shard_of(c.tableoid)) AS near FROM ticket t JOIN customer c ON c.id = customer_id;
-- Of the same group: its slot; the key itself being the reference, near is a key of the table.
CREATE TABLE detail (id bigint PRIMARY KEY, boss bigint REFERENCES customer);
SELECT foreshard.distribute('detail', 'id', colocate_with => 'customer');
INSERT INTO detail SELECT foreshard.next_key('detail', c), c FROM generate_series(1, 50) c;
SELECT count(*), bool_and(remainder_of(d.tableoid) = remainder_of(c.tableoid)) AS near FROM detail d JOIN customer c ON c.id = boss;
-- Two parents: near is a key of the table itself, unless near_table says otherwise.
ALTER TABLE ticket ADD other_id bigint REFERENCES detail;
SELECT bool_and(foreshard.get_shard_location('ticket', foreshard.next_key('ticket', id)) = shard_of(tableoid)) AS near_itself FROM ticket;
SELECT bool_and(foreshard.get_shard_location('ticket', foreshard.next_key('ticket', id, near_table => 'customer')) = shard_of(tableoid)) AS near_customer FROM customer;
SELECT foreshard.next_key('ticket', 1, near_table => 'watcher');
\echo :SQLSTATE

-- uuid keys: random ones of version 4.
CREATE TABLE node (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), parent uuid);
INSERT INTO node (id) VALUES ('00000000-0000-4000-8000-000000000001');
SELECT foreshard.distribute('node', 'id', 8);
SELECT count(DISTINCT k), bool_and(k::text ~ '^.{8}-.{4}-4.{3}-[89ab].{3}-.{12}$') AS version_4,
       bool_and(foreshard.get_shard_location('node', k) = (SELECT shard_of(tableoid) FROM node)) AS near
FROM (SELECT foreshard.next_key('node', '00000000-0000-4000-8000-000000000001'::uuid) AS k FROM generate_series(1, 300)) q;
ALTER TABLE node ALTER id SET DEFAULT foreshard.next_key('node', NULL::uuid);
INSERT INTO node (parent) SELECT NULL FROM generate_series(1, 2000);
-- Shards that are busy elsewhere may be left out.
SELECT count(*), count(DISTINCT tableoid) > 1 AS spread FROM node;

-- Bounded load: a shard that has more than its share is left alone, near or not.
CREATE TABLE heavy (id bigint PRIMARY KEY);
SELECT foreshard.distribute('heavy', 'id', 12);
-- The keeper tells backends of it within a second.
DO $$ BEGIN PERFORM pg_sleep(2.5); END $$;
SELECT foreshard.next_key('heavy', NULL::bigint, 1e6) AS heaviest \gset
SELECT count(*) FILTER (WHERE shard = foreshard.get_shard_location('heavy', :heaviest)) AS on_it, count(DISTINCT shard) AS others
FROM (SELECT foreshard.get_shard_location('heavy', foreshard.next_key('heavy', n)) AS shard
      FROM generate_series(1, 500), (VALUES (:heaviest), (NULL)) v (n)) q;

-- A moved slot, a renamed table, another schema: all the same.
ALTER TABLE ticket RENAME TO request;
CREATE SCHEMA elsewhere;
ALTER TABLE request SET SCHEMA elsewhere;
SELECT foreshard.next_key('elsewhere.request', NULL::bigint) > 0 AS ok, pg_get_serial_sequence('elsewhere.request', 'id');

-- What it refuses.
SELECT foreshard.next_key(NULL, 1);
\echo :SQLSTATE
SELECT foreshard.next_key('customer', 1, -1);
\echo :SQLSTATE
SELECT foreshard.next_key('customer', 1, 'NaN');
\echo :SQLSTATE
SELECT foreshard.next_key('customer', 1, 'Infinity');
\echo :SQLSTATE
SELECT foreshard.next_key('customer', NULL::uuid);
\echo :SQLSTATE
SELECT foreshard.next_key('node', 1);
\echo :SQLSTATE
CREATE TABLE by_text (id text PRIMARY KEY);
SELECT foreshard.distribute('by_text', 'id', 2);
SELECT foreshard.next_key('by_text', 1);
\echo :SQLSTATE
SELECT foreshard.next_key('watcher', 1);
\echo :SQLSTATE
DROP SEQUENCE elsewhere.ticket_id_foreshard_seq;
SELECT foreshard.next_key('elsewhere.request', 1);
\echo :SQLSTATE
SELECT foreshard.undistribute('elsewhere.request');
-- A key with a generator of its own keeps it, and gets no second one.
CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int);
CREATE TABLE counted (id bigserial PRIMARY KEY, v int);
SELECT foreshard.distribute('numbered', 'id', 2), foreshard.distribute('counted', 'id', 2);
SELECT pg_get_serial_sequence('numbered', 'id'), pg_get_serial_sequence('counted', 'id');
SELECT foreshard.next_key('numbered', 1);
\echo :SQLSTATE
SELECT foreshard.next_key('counted', 1);
\echo :SQLSTATE
CREATE TABLE edge (id bigint PRIMARY KEY);
INSERT INTO edge VALUES (9223372036854775807);
SELECT foreshard.distribute('edge', 'id', 2);
SELECT foreshard.next_key('edge', 1);
\echo :SQLSTATE
BEGIN READ ONLY;
SELECT foreshard.next_key('born', NULL::bigint);
\echo :SQLSTATE
ROLLBACK;
-- The sequence goes with the table.
DROP TABLE born;
SELECT count(*) FROM pg_class WHERE relname = 'born_id_foreshard_seq';
