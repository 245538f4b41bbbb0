-- Everything a hook could spoil: errors at every depth, recursion, subtransactions, deferred and nested
-- triggers, cursors, parallel plans, COPY, procedures. Run by tests/hooks.rs with watching on and off; what
-- psql prints must be the same.
-- errors at depth, caught and not
CREATE FUNCTION boom() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.bal = 13 THEN RAISE EXCEPTION 'boom %', NEW.id USING DETAIL='d', HINT='h', ERRCODE='12345', CONSTRAINT='cc', TABLE='tt'; END IF; RETURN NEW; END$$;
CREATE TRIGGER boom BEFORE INSERT OR UPDATE ON acc FOR EACH ROW EXECUTE FUNCTION boom();
CREATE FUNCTION cascade() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN BEGIN UPDATE acc SET bal = NEW.v WHERE id = NEW.acc_id; EXCEPTION WHEN OTHERS THEN INSERT INTO audit(id) VALUES (NEW.id); END; RETURN NULL; END$$;
CREATE TRIGGER cas AFTER INSERT ON b FOR EACH ROW EXECUTE FUNCTION cascade();
INSERT INTO b SELECT g, g, CASE WHEN g % 3 = 0 THEN 13 ELSE 1 END FROM generate_series(1,3000) g;
UPDATE acc SET bal = 13 WHERE id = 5;
-- recursion with error at bottom
CREATE FUNCTION rec() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.bal > 0 AND NEW.bal < 900 THEN UPDATE acc SET bal = NEW.bal + 1 WHERE id = NEW.id; ELSIF NEW.bal=900 THEN RAISE division_by_zero; END IF; RETURN NULL; END$$;
CREATE TRIGGER rec AFTER UPDATE ON acc FOR EACH ROW WHEN (NEW.note='rec') EXECUTE FUNCTION rec();
UPDATE acc SET note='rec', bal=1 WHERE id = 6;
BEGIN; SAVEPOINT s; UPDATE acc SET note='rec', bal=800 WHERE id = 7; ROLLBACK TO s; UPDATE acc SET bal=3 WHERE id=7; COMMIT;
UPDATE acc SET note='rec', bal=901 WHERE id = 8;
-- secdef, set clause
CREATE FUNCTION sd() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET work_mem='1MB' AS $$BEGIN PERFORM count(*) FROM acc WHERE id < 50; RETURN NEW; END$$;
CREATE TRIGGER sd BEFORE UPDATE ON b FOR EACH ROW EXECUTE FUNCTION sd();
UPDATE b SET v = v+1 WHERE id < 200;
-- deferred constraint trigger, transition tables, truncate, statement level
CREATE CONSTRAINT TRIGGER def AFTER DELETE ON b DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION sd();
CREATE FUNCTION st() RETURNS trigger LANGUAGE plpgsql AS $$DECLARE n int; BEGIN SELECT count(*) INTO n FROM newt; RETURN NULL; END$$;
CREATE TRIGGER st AFTER INSERT ON b REFERENCING NEW TABLE AS newt FOR EACH STATEMENT EXECUTE FUNCTION st();
BEGIN; DELETE FROM b WHERE id < 100; INSERT INTO b SELECT g, g, 1 FROM generate_series(10001,10100) g; COMMIT;
-- cursors
BEGIN; DECLARE c CURSOR FOR SELECT * FROM acc ORDER BY id; FETCH 5 FROM c; DECLARE d CURSOR FOR SELECT * FROM b; FETCH 2 FROM d; UPDATE acc SET bal=2 WHERE id=1; FETCH 5 FROM c; CLOSE c; COMMIT;
DO $$DECLARE r record; c refcursor; BEGIN FOR r IN SELECT * FROM acc WHERE id < 300 LOOP IF r.id = 200 THEN BEGIN PERFORM 1/0; EXCEPTION WHEN division_by_zero THEN NULL; END; END IF; UPDATE b SET v=1 WHERE id = r.id; END LOOP; END$$;
-- parallel
SET max_parallel_workers_per_gather=4; SET parallel_setup_cost=0; SET parallel_tuple_cost=0; SET min_parallel_table_scan_size=0; SET enable_partitionwise_aggregate=on;
SELECT count(*) FROM acc WHERE length(note) > 3;
SELECT count(*) FROM acc a JOIN b USING (id) WHERE length(a.note) > 3;
RESET parallel_setup_cost;
-- EXPLAIN, copy, on conflict, merge, returning, cte
EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF, BUFFERS OFF) UPDATE b SET v = 4 WHERE id = 400;
COPY b FROM stdin WITH (FORMAT csv);
20001,1,1
20002,2,1
\.
INSERT INTO b VALUES (20001, 1, 1) ON CONFLICT (id) DO UPDATE SET v = 99;
WITH x AS (UPDATE b SET v = 5 WHERE id IN (500,501) RETURNING id) SELECT count(*) FROM x;
MERGE INTO b USING (SELECT 500 AS id) s ON b.id = s.id WHEN MATCHED THEN UPDATE SET v = 6 WHEN NOT MATCHED THEN INSERT VALUES (s.id, 1, 1);
SELECT count(*) FROM b WHERE id = ANY (ARRAY[1,2,500,501]::bigint[]);
CREATE FUNCTION slow(x int) RETURNS int LANGUAGE plpgsql AS $$BEGIN RETURN (SELECT count(*) FROM acc WHERE id = x); END$$;
SELECT sum(slow(g)) FROM generate_series(1,500) g;
SET statement_timeout='50ms';
SELECT pg_sleep(1), count(*) FROM acc;
RESET statement_timeout;
CREATE OR REPLACE PROCEDURE pr() LANGUAGE plpgsql AS $$BEGIN FOR i IN 1..5 LOOP UPDATE b SET v=i WHERE id=600; COMMIT; END LOOP; ROLLBACK; END$$;
CALL pr();
BEGIN; UPDATE b SET v=7 WHERE id=700; SET LOCAL foreshard.observe=off; UPDATE b SET v=8 WHERE id=700; COMMIT;
-- what it all came to
SELECT sum(bal), count(*), count(note), sum(length(note)) FROM acc;
SELECT sum(v), count(*), sum(acc_id) FROM b;
SELECT count(*), sum(id) FROM audit;
