-- get_shard_location: every kind of key, keys given as another type, and what it refuses.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT count(foreshard.add_shard('s' || g)) FROM generate_series(0, 15) g;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TABLE k_int (id int PRIMARY KEY);
CREATE TABLE k_bigint (id bigint PRIMARY KEY);
CREATE TABLE k_text (id text PRIMARY KEY);
CREATE TABLE k_uuid (id uuid PRIMARY KEY);
CREATE TABLE k_timestamptz (id timestamptz PRIMARY KEY);
CREATE TABLE k_numeric (id numeric PRIMARY KEY);
CREATE TABLE k_enum (id mood PRIMARY KEY);
CREATE TABLE k_date (id date PRIMARY KEY);
SELECT t, foreshard.distribute(t::regclass, 'id', 16) FROM unnest(ARRAY['k_int', 'k_bigint', 'k_text', 'k_uuid',
    'k_timestamptz', 'k_numeric', 'k_enum', 'k_date']) t;
INSERT INTO k_int VALUES (-1), (0), (42);
INSERT INTO k_bigint VALUES (-1), (42), (4611686018427387904);
INSERT INTO k_text VALUES (''), ('a'), ('42');
INSERT INTO k_uuid VALUES ('00000000-0000-0000-0000-000000000000'), ('0b0cd7f0-5b4e-4c8e-9d2a-6a1d2f1b7a11');
INSERT INTO k_timestamptz VALUES ('2024-02-29 12:00+00'), ('infinity');
INSERT INTO k_numeric VALUES (1.5), (42), ('NaN');
INSERT INTO k_enum VALUES ('sad'), ('ok'), ('happy');
INSERT INTO k_date VALUES ('2024-02-29'), ('-infinity');
CREATE FUNCTION really(leaf oid) RETURNS text STABLE LANGUAGE sql AS 'SELECT shard::text FROM foreshard.slots WHERE partition = leaf';

SELECT 'k_int' AS t, id::text AS key, foreshard.get_shard_location('k_int', id) = really(tableoid) AS "right" FROM k_int
UNION ALL SELECT 'k_bigint', id::text, foreshard.get_shard_location('k_bigint', id) = really(tableoid) FROM k_bigint
UNION ALL SELECT 'k_text', id, foreshard.get_shard_location('k_text', id) = really(tableoid) FROM k_text
UNION ALL SELECT 'k_uuid', id::text, foreshard.get_shard_location('k_uuid', id) = really(tableoid) FROM k_uuid
UNION ALL SELECT 'k_timestamptz', id::text, foreshard.get_shard_location('k_timestamptz', id) = really(tableoid) FROM k_timestamptz
UNION ALL SELECT 'k_numeric', id::text, foreshard.get_shard_location('k_numeric', id) = really(tableoid) FROM k_numeric
UNION ALL SELECT 'k_enum', id::text, foreshard.get_shard_location('k_enum', id) = really(tableoid) FROM k_enum
UNION ALL SELECT 'k_date', id::text, foreshard.get_shard_location('k_date', id) = really(tableoid) FROM k_date
ORDER BY t, key;

-- The same key in another type's clothes.
SELECT foreshard.get_shard_location('k_bigint', 42) = truth AS int_literal,
       foreshard.get_shard_location('k_bigint', 42::smallint) = truth AS smallint,
       foreshard.get_shard_location('k_bigint', 42::bigint) = truth AS bigint,
       foreshard.get_shard_location('k_bigint', 42::numeric) = truth AS numeric,
       foreshard.get_shard_location('k_bigint', 42.0::float8) = truth AS float8,
       foreshard.get_shard_location('k_bigint', '42') = truth AS literal,
       foreshard.get_shard_location('k_bigint', ' 42 '::text) = truth AS text
FROM (SELECT really(tableoid) AS truth FROM k_bigint WHERE id = 42) q;
SELECT foreshard.get_shard_location('k_text', 42) = really(tableoid) AS int_as_text FROM k_text WHERE id = '42';
SELECT foreshard.get_shard_location('k_timestamptz', '2024-02-29 13:00+01') = really(tableoid) AS other_zone,
       foreshard.get_shard_location('k_timestamptz', timestamptz '2024-02-29 12:00+00') = really(tableoid) AS typed
FROM k_timestamptz WHERE id < 'infinity';
SELECT foreshard.get_shard_location('k_numeric', 1.50) = really(tableoid) AS scale FROM k_numeric WHERE id = 1.5;
SELECT foreshard.get_shard_location('k_date', timestamp '2024-02-29 00:00') = really(tableoid) AS timestamp_as_date
FROM k_date WHERE id > '-infinity';
PREPARE ask(bigint) AS SELECT foreshard.get_shard_location('k_bigint', $1) = (SELECT really(tableoid) FROM k_bigint WHERE id = $1);
EXECUTE ask(-1);
EXECUTE ask(4611686018427387904);

-- The same table under other names.
CREATE SCHEMA "Other place";
CREATE TABLE "Other place"."T 1" ("The key" int PRIMARY KEY);
SELECT foreshard.distribute('"Other place"."T 1"', 'The key', 4);
SELECT foreshard.get_shard_location('"Other place"."T 1"', 5) IS NOT NULL AS found;
ALTER TABLE "Other place"."T 1" RENAME TO t2;
SELECT foreshard.get_shard_location('"Other place".t2', 5) IS NOT NULL AS found;

-- Unknown stays unknown, nonsense is refused.
SELECT foreshard.get_shard_location(NULL, 5) IS NULL AS unknown;
SELECT foreshard.get_shard_location('k_int', NULL) = foreshard.get_shard_location('k_int', NULL::int) AS null_key_has_a_place;
SELECT foreshard.get_shard_location('k_int', 'five');
\echo :SQLSTATE
SELECT foreshard.get_shard_location('k_int', 99999999999);
\echo :SQLSTATE
SELECT foreshard.get_shard_location('k_enum', 'angry');
\echo :SQLSTATE
SELECT foreshard.get_shard_location('k_uuid', 42);
\echo :SQLSTATE
SELECT foreshard.get_shard_location('nobody', 42);
\echo :SQLSTATE
CREATE TABLE ordinary (id int PRIMARY KEY);
SELECT foreshard.get_shard_location('ordinary', 42);
\echo :SQLSTATE
CREATE TABLE foreign_hash (id int) PARTITION BY HASH (id);
SELECT foreshard.get_shard_location('foreign_hash', 42);
\echo :SQLSTATE
CREATE TABLE foreign_hash_0 PARTITION OF foreign_hash FOR VALUES WITH (MODULUS 1, REMAINDER 0);
SELECT foreshard.get_shard_location('foreign_hash', 42);
\echo :SQLSTATE
CREATE TABLE by_range (id int) PARTITION BY RANGE (id);
CREATE TABLE by_range_default PARTITION OF by_range DEFAULT;
SELECT foreshard.get_shard_location('by_range', 42);
\echo :SQLSTATE
CREATE TABLE two_keys (a int, b int) PARTITION BY HASH (a, b);
SELECT foreshard.get_shard_location('two_keys', 42);
\echo :SQLSTATE
CREATE TABLE expression_key (a int) PARTITION BY HASH ((a + 1));
SELECT foreshard.get_shard_location('expression_key', 42);
\echo :SQLSTATE
