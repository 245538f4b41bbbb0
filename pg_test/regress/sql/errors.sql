-- The hooks only look on: a user's errors keep every field they have without foreshard.
\set SHOW_CONTEXT always
CREATE EXTENSION foreshard;
CREATE TABLE t (id int CONSTRAINT my_key PRIMARY KEY, v int CONSTRAINT my_check CHECK (v > 0));
INSERT INTO t VALUES (1, 1);
CREATE FUNCTION fields(statement text) RETURNS TABLE (state text, message text, detail text, hint text, con text, tab text, sch text, context text)
LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE statement;
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT,
        con = CONSTRAINT_NAME, tab = TABLE_NAME, sch = SCHEMA_NAME, context = PG_EXCEPTION_CONTEXT;
    RETURN NEXT;
END $$;
\x on
SELECT * FROM fields('INSERT INTO t VALUES (1, 2)');
SELECT * FROM fields('DO $d$ BEGIN INSERT INTO t VALUES (1, 2); END $d$');
SELECT * FROM fields('DO $d$ BEGIN RAISE EXCEPTION ''mine'' USING ERRCODE = ''ZZ001'', DETAIL = ''d'', HINT = ''h'', CONSTRAINT = ''c'', TABLE = ''tt'', SCHEMA = ''s''; END $d$');
SELECT * FROM fields('ALTER TABLE t ADD CONSTRAINT other CHECK (v > 5)');
SELECT * FROM fields('CREATE TABLE t (id int)');
SELECT * FROM fields('DROP TABLE nobody');
\x off
-- Positions too.
PREPARE dup AS INSERT INTO t VALUES (1, 3);
EXECUTE dup;
CREATE TABLE u (id nosuchtype);
DO $$ BEGIN PERFORM 1 / 0; END $$;
