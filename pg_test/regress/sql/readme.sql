-- The SQL of README.md, in order. Made by `make docs`; do not edit.

CREATE EXTENSION foreshard;
SELECT foreshard.add_shard('east'), foreshard.add_shard('west', 'pg_default', capacity => 1000);

CREATE TABLE customer (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE purchase (
    customer_id bigint REFERENCES customer,
    no          int,
    total       numeric(10,2),
    PRIMARY KEY (customer_id, no)
);
INSERT INTO customer SELECT i, 'customer ' || i FROM generate_series(1, 1000) i;
INSERT INTO purchase SELECT i, n, i * n FROM generate_series(1, 1000) i, generate_series(1, 3) n;

SELECT foreshard.distribute('customer', 'id', slots => 8);
SELECT foreshard.distribute('purchase', 'customer_id', colocate_with => 'customer');

SELECT shard, count(*) AS slots FROM foreshard.slots WHERE "table" = 'customer'::regclass GROUP BY 1 ORDER BY 1;

SELECT foreshard.get_shard_location('customer', 42) = foreshard.get_shard_location('purchase', 42) AS together;

SELECT count(*) FROM purchase JOIN customer ON id = customer_id WHERE customer_id = 42;

CREATE TABLE ticket (id bigint PRIMARY KEY, customer_id bigint REFERENCES customer, body text);
SELECT foreshard.distribute('ticket', 'id', slots => 8);
ALTER TABLE ticket ALTER id SET DEFAULT foreshard.next_key('ticket', NULL::bigint);

INSERT INTO ticket (body) SELECT 'somewhere' FROM generate_series(1, 1000);
INSERT INTO ticket VALUES (foreshard.next_key('ticket', near => 42), 42, 'on the shard of customer 42');

SELECT foreshard.get_shard_location('ticket', id) = foreshard.get_shard_location('customer', customer_id) AS together
FROM ticket WHERE customer_id = 42;

SELECT from_object, edge, to_object FROM foreshard.dependency_graph WHERE edge = 'references' ORDER BY 1, 3;

INSERT INTO foreshard.event (kind, table_oid, starts_at, ends_at, factor)
VALUES ('campaign', 'purchase', now() + interval '2 days', now() + interval '2 days 6 hours', 3);

SELECT foreshard.request_resharding(0.3, '{"1": "west"}');
SELECT foreshard.request_resharding(0.9, '{"1": "north"}');
SELECT count(*) FROM foreshard.progress_moves;

CREATE TABLE depends (package int, needs int);
INSERT INTO depends VALUES (1, 2), (2, 3), (3, 1), (4, 3);
SELECT foreshard.create_graph('deps', 'depends', 'package', 'needs');
SELECT * FROM foreshard.deps_descendants(4) ORDER BY depth;
SELECT * FROM foreshard.check_graph('deps');
SELECT foreshard.drop_graph('deps');
DROP TABLE depends;

SELECT foreshard.add_data_source('shop', 'purchases', 'customer', 'purchase',
    'SELECT customer_id, customer_id * 1000 + no, total FROM public.purchase WHERE customer_id = ANY ($1)');
SELECT foreshard.add_data_source('shop', 'size', 'purchase', 'size',
    'SELECT k, CASE WHEN k % 1000 < 3 THEN ''small'' ELSE ''large'' END FROM unnest($1::bigint[]) k');
SELECT * FROM foreshard.resolve('shop', 'customer', ARRAY[7], 'purchase') ORDER BY output;
SELECT * FROM foreshard.resolve('shop', 'customer', ARRAY[7], 'size') ORDER BY output;
SELECT step, source, server, keys, rows, outcome FROM foreshard.last_resolve();
