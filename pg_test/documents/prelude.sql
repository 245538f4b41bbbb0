-- What the hidden statements of the documents in docs/ use: waiting for workers. It goes with the session.
\set VERBOSITY default
SET client_min_messages = notice;
CREATE PROCEDURE pg_temp.wait_for(question text) LANGUAGE plpgsql AS $$
DECLARE
    answer boolean;
BEGIN
    FOR tries IN 1..400 LOOP
        EXECUTE question INTO answer;
        COMMIT;
        IF answer THEN RETURN; END IF;
        PERFORM pg_catalog.pg_sleep(0.05);
        COMMIT;
    END LOOP;
    RAISE EXCEPTION 'not within 20 s: %', question;
END
$$;
-- Until every move that was filed has ended, or watches its old copy.
CREATE PROCEDURE pg_temp.wait_for_moves() LANGUAGE plpgsql AS $$
BEGIN
    CALL pg_temp.wait_for($q$SELECT coalesce(bool_and(finished OR phase IN ('watch', 'prepared')), true) FROM foreshard.move$q$);
END
$$;
-- Until the keeper has read the counters; SELECT pg_stat_force_next_flush() before it, as a statement of its own.
CREATE PROCEDURE pg_temp.wait_for_reading() LANGUAGE plpgsql AS $$
BEGIN
    CALL pg_temp.wait_for(pg_catalog.format($q$SELECT max(observed_at) > %L FROM foreshard.heat_map$q$,
                                            pg_catalog.clock_timestamp() + interval '0.2 s'));
END
$$;
