-- request_resharding, move_slot and cancel_move: what they refuse. Nothing is filed when one entry is wrong.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT foreshard.add_shard(s, t) FROM (VALUES ('a', 'ts_a'), ('b', 'ts_b')) v (s, t);
CREATE TABLE t (id int PRIMARY KEY, v text);
INSERT INTO t SELECT g, 'x' FROM generate_series(1, 100) g;
SELECT foreshard.distribute('t', 'id', 4);
-- Slots are numbered 1 to 4; put them all on a, so that every answer below is known.
UPDATE foreshard.slot SET shard_id = (SELECT shard_id FROM foreshard.shard WHERE shard_name = 'a');
DO $$ DECLARE leaf regclass; BEGIN FOR leaf IN SELECT partition FROM foreshard.slots LOOP EXECUTE format('ALTER TABLE %s SET TABLESPACE ts_a', leaf); END LOOP; END $$;
SET timezone = 'UTC';

SELECT foreshard.request_resharding(0.69, '{"1": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(-0.1, '{"1": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(1.1, '{"1": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding('NaN', '{"1": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '[]');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '"b"');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, 'null');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "99": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "2": "nowhere"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "2": "a"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "two": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "2": 7}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "2": null}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "2": {"to": "b"}}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"1": "b", "99999999999999999999": "b"}');
\echo :SQLSTATE
-- One spelling per slot.
SELECT foreshard.request_resharding(0.9, '{"1": "b", "01": "b"}');
\echo :SQLSTATE
SELECT foreshard.request_resharding(0.9, '{"+1": "b"}');
\echo :SQLSTATE
-- More entries than there may be.
SELECT foreshard.request_resharding(0.9, (SELECT jsonb_object_agg(g, 'b') FROM generate_series(1, 4097) g));
\echo :SQLSTATE
UPDATE foreshard.shard SET draining = true WHERE shard_name = 'b';
SELECT foreshard.request_resharding(0.9, '{"1": "b"}');
\echo :SQLSTATE
UPDATE foreshard.shard SET draining = false;
SELECT foreshard.request_resharding(NULL, '{"1": "b"}') IS NULL AS nothing, foreshard.request_resharding(0.9, NULL) IS NULL AS nothing;

SELECT foreshard.move_slot(99, 'b');
\echo :SQLSTATE
SELECT foreshard.move_slot(1, 'nowhere');
\echo :SQLSTATE
SELECT foreshard.move_slot(1, 'a');
\echo :SQLSTATE
SELECT foreshard.move_slot(-1, 'b');
\echo :SQLSTATE
SELECT foreshard.move_slot(NULL, 'b') IS NULL AS nothing;
SELECT foreshard.cancel_move(1);
\echo :SQLSTATE
SELECT foreshard.cancel_move(-1);
\echo :SQLSTATE
SELECT foreshard.cancel_move(NULL) IS NULL AS nothing;

SELECT count(*) AS requests FROM foreshard.resharding_request;
SELECT count(*) AS moves FROM foreshard.move;

-- Already moving: the second request of the same slot is refused, also within one transaction.
BEGIN;
SELECT foreshard.move_slot(1, 'b') IS NOT NULL AS filed;
SAVEPOINT before;
SELECT foreshard.move_slot(1, 'b');
\echo :SQLSTATE
ROLLBACK TO before;
SELECT foreshard.request_resharding(0.9, '{"2": "b", "1": "b"}');
\echo :SQLSTATE
ROLLBACK TO before;
SELECT foreshard.undistribute('t');
\echo :SQLSTATE
ROLLBACK TO before;
SELECT slot_id, from_shard, to_shard, phase, state, percent, waiting_for, last_error FROM foreshard.progress_moves;
SELECT moves, done, running, waiting, failed, percent, finished FROM foreshard.monitor_resharding_progress();
SELECT foreshard.cancel_move((SELECT move_id FROM foreshard.progress_moves));
ROLLBACK;
SELECT count(*) AS moves FROM foreshard.move;

-- A split is a move of another kind.
BEGIN;
SELECT foreshard.split_slot(1, to_shard_b => 'b') IS NOT NULL AS filed;
SELECT kind, slot_id, from_shard, to_shard, phase FROM foreshard.progress_moves;
SELECT part, modulus, remainder, shard_id FROM foreshard.move_part ORDER BY part;
SELECT assignment FROM foreshard.resharding_request;
SAVEPOINT before;
SELECT foreshard.move_slot(1, 'b');
\echo :SQLSTATE
ROLLBACK TO before;
SELECT foreshard.split_slot(2, 'nowhere');
\echo :SQLSTATE
ROLLBACK;

-- A lower bar, a whole map.
SET foreshard.min_confidence = 0.5;
BEGIN;
SELECT foreshard.request_resharding(0.5, '{"3": "b", "2": "b"}') IS NOT NULL AS filed;
SELECT slot_id, from_shard, to_shard FROM foreshard.progress_moves ORDER BY slot_id;
SELECT requested_by = current_user AS by_me, confidence, assignment FROM foreshard.resharding_request;
SELECT detail - 'request_id' - 'requested_by' AS detail FROM foreshard.history WHERE event = 'request';
ROLLBACK;

-- A horizon must make sense.
SELECT * FROM foreshard.predict_shard_assignment('0 seconds');
\echo :SQLSTATE
SELECT * FROM foreshard.predict_shard_assignment('8 days');
\echo :SQLSTATE
SELECT * FROM foreshard.predict_shard_assignment('-1 hour');
\echo :SQLSTATE
SELECT * FROM foreshard.predict_shard_assignment('1 hour');
