-- configure: settings of single tables.
\set SHOW_CONTEXT never
CREATE EXTENSION foreshard;
SELECT foreshard.add_shard('a', 'ts_a');
CREATE TABLE t (id bigint PRIMARY KEY);
SELECT foreshard.configure('t', 'observe', 'off');
\echo :SQLSTATE
SELECT foreshard.distribute('t', 'id', 2);
SELECT foreshard.configure('t', 'observe', 'off');
TABLE foreshard.table_setting;
SELECT foreshard.configure('t', 'observe', 'TRUE');
TABLE foreshard.table_setting;
SELECT foreshard.configure('t', 'observe', NULL);
TABLE foreshard.table_setting;
SELECT foreshard.configure('t', 'observe', 'sometimes');
\echo :SQLSTATE
SELECT foreshard.configure('t', 'colour', 'red');
\echo :SQLSTATE
SELECT foreshard.configure('t', NULL, 'red');
\echo :SQLSTATE
SELECT foreshard.configure(NULL, 'observe', 'off');
\echo :SQLSTATE
SELECT detail FROM foreshard.history WHERE event = 'configure' ORDER BY event_id;
-- Settings go with the table.
SELECT foreshard.configure('t', 'observe', 'off');
SELECT foreshard.undistribute('t');
TABLE foreshard.table_setting;
