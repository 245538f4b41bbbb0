-- For the people who look: what is wrong and how to fix it, how everything is on one screen. Compiling these queries (JIT)
-- would take longer than everything else about them.

-- Nothing is looked up in a schema that somebody else may have made first.
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE FUNCTION foreshard.problems_of_settings() RETURNS TABLE (severity text, object text, problem text, detail text, hint text)
STABLE LANGUAGE sql SET search_path TO pg_catalog, pg_temp AS $$
    SELECT q.severity, 'setting ' || s.name, q.problem, s.name || ' = ' || coalesce(nullif(s.setting, ''), '''''') || coalesce(' ' || nullif(s.unit, ''), ''), q.hint
    FROM pg_settings s
    JOIN (VALUES
        ('track_counts', 'off', 'error', 'loads cannot be observed', 'Set track_counts = on and reload.'),
        ('fsync', 'off', 'error', 'a crash may lose what was committed, moves included', 'Set fsync = on.'),
        ('full_page_writes', 'off', 'error', 'a crash may leave torn pages, of copies too', 'Set full_page_writes = on and reload.'),
        ('autovacuum', 'off', 'warning', 'nobody vacuums partitions and the tables of foreshard', 'Set autovacuum = on and reload.'),
        ('foreshard.observe', 'off', 'warning', 'nothing is observed', 'Set foreshard.observe = on and reload, unless it is meant.')
    ) q (name, setting, severity, problem, hint) USING (name, setting)
    UNION ALL
    SELECT 'warning', 'setting foreshard.hold_at_phase', 'moves wait on entering this phase', s.setting, 'ALTER SYSTEM RESET foreshard.hold_at_phase, then reload.'
    FROM pg_settings s WHERE s.name = 'foreshard.hold_at_phase' AND s.setting <> ''
    UNION ALL
    SELECT 'warning', 'setting foreshard.min_free_disk', 'a copy may fill the disk', s.setting || ' %', 'Keep at least 5 % free.'
    FROM pg_settings s WHERE s.name = 'foreshard.min_free_disk' AND s.setting::int < 5
    UNION ALL
    SELECT 'warning', 'setting foreshard.max_lock_time', 'a cutover may hold up statements for longer than a second', s.setting || ' ms', 'Lower foreshard.max_lock_time.'
    FROM pg_settings s WHERE s.name = 'foreshard.max_lock_time' AND s.setting::int > 1000
    UNION ALL
    SELECT 'warning', 'setting max_worker_processes', 'there may be no worker for the keeper or a move', s.setting || ', wanted are ' || 3 + m.setting::int || ' at least',
           'Raise max_worker_processes and restart.'
    FROM pg_settings s, pg_settings m
    WHERE s.name = 'max_worker_processes' AND m.name = 'foreshard.max_concurrent_moves' AND s.setting::int < 3 + m.setting::int
    UNION ALL
    SELECT 'warning', 'setting foreshard.mode', 'moves are filed by themselves ' || q.problem, q.name || ' = ' || s.setting, q.hint
    FROM pg_settings a,
         (VALUES ('foreshard.min_confidence', 0.5, 'although they probably do not pay', 'Raise foreshard.min_confidence.'),
                 ('foreshard.rollback_window', 1, 'and cannot be swapped back', 'Set foreshard.rollback_window.'),
                 ('foreshard.max_slowdown', 1e-9, 'and are not undone when statements become slower', 'Set foreshard.max_slowdown.')) q (name, least, problem, hint)
    JOIN pg_settings s USING (name)
    WHERE a.name = 'foreshard.mode' AND a.setting = 'auto' AND s.setting::numeric < q.least
$$;

-- Metadata against PostgreSQL's own catalogs, at one snapshot. A slot that is being moved is left out.
CREATE VIEW foreshard.catalog_problems AS
WITH moving AS (SELECT slot_id FROM foreshard.move WHERE NOT finished)
SELECT CASE problem WHEN 'no_partition' THEN 'error' ELSE 'warning' END AS severity,
       CASE WHEN partition IS NULL THEN 'table ' || "table" ELSE 'partition ' || partition END AS object,
       CASE problem WHEN 'no_partition' THEN 'slot ' || slot_id || ' has no partition' WHEN 'no_slot' THEN 'partition of no slot'
                    WHEN 'other_tablespace' THEN 'storage is not on the shard' ELSE problem END AS problem,
       ''::text AS detail, advice AS hint
FROM foreshard.layout_problems
UNION ALL
SELECT 'warning', 'table ' || m.table_oid::oid, 'a managed table that does not exist any more', '',
       'A keeper forgets it by itself; if this stays, see whether one runs (foreshard.status()).'
FROM foreshard.managed_table m WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = m.table_oid)
UNION ALL
SELECT 'error', 'table ' || m.table_oid, 'not partitioned by the hash of its key',
       format('key %I', m.key_column) || coalesce(CASE WHEN foreshard.is_open(c.oid) THEN ', partitioned ' || pg_catalog.pg_get_partkeydef(c.oid) END, ''),
       'Partition it by the hash of that column again.'
FROM foreshard.managed_table m JOIN pg_catalog.pg_class c ON c.oid = m.table_oid
LEFT JOIN pg_catalog.pg_partitioned_table r ON r.partrelid = c.oid
WHERE r.partstrat IS DISTINCT FROM 'h' OR r.partnatts <> 1
UNION ALL
SELECT 'error', 'partition ' || p.partition, 'its bound is not that of its slot',
       format('slot %s: modulus %s, remainder %s; partition: %s', s.slot_id, s.modulus, s.remainder, pg_catalog.pg_get_expr(c.relpartbound, 0)),
       'Detach it and attach one with the modulus and remainder of the slot.'
FROM foreshard.slot s JOIN foreshard.slot_partition p USING (slot_id) JOIN pg_catalog.pg_class c ON c.oid = coalesce(p.branch, p.partition)
WHERE s.home_slot_id IS NULL AND c.relispartition AND s.slot_id NOT IN (SELECT slot_id FROM moving)
  -- Given its table, the function would lock it; a bound names no column.
  AND pg_catalog.pg_get_expr(c.relpartbound, 0) <> format('FOR VALUES WITH (modulus %s, remainder %s)', s.modulus, s.remainder)
UNION ALL
SELECT 'error', 'shard ' || h.shard_name, 'its tablespace does not exist', format('tablespace %I', h.tablespace_name),
       'Create the tablespace again; without slots on it: ' || format('SELECT foreshard.drop_shard(%L).', h.shard_name)
FROM foreshard.shard h WHERE h.node_name = 'local' AND h.tablespace_name NOT IN (SELECT spcname FROM pg_catalog.pg_tablespace)
UNION ALL
SELECT 'warning', 'relation ' || c.oid::regclass, 'left over from a move that nobody knows', pg_catalog.pg_size_pretty(foreshard.total_bytes(c.oid)),
       CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
            THEN format('ALTER EXTENSION foreshard DROP %1$s %2$s; ', k.kind, c.oid::regclass) ELSE '' END || format('DROP %s %s;', k.kind, c.oid::regclass)
FROM pg_catalog.pg_class c, LATERAL (SELECT CASE c.relkind WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END AS kind) k
WHERE c.relnamespace = 'foreshard'::regnamespace AND c.relkind IN ('r', 'p', 'f')
  AND c.relname ~ '^(shadow|capture|split|place|remains)_[0-9]+(_[0-9]+)*(_twin|_old)?$'
  -- A graph may have any name.
  AND NOT EXISTS (SELECT FROM foreshard.graph g WHERE c.oid IN (g.metagraph, g.closure, g.components))
  AND NOT EXISTS (SELECT FROM foreshard.graph_partition g WHERE c.oid = g.partition)
  AND NOT EXISTS (SELECT FROM foreshard.move_relation r WHERE c.oid IN (r.shadow, r.capture_log, r.twin))
  AND NOT EXISTS (SELECT FROM foreshard.move_child k WHERE c.oid IN (k.child, k.log))
  AND NOT EXISTS (SELECT FROM foreshard.remote_table t WHERE t.partition = c.oid)
UNION ALL
-- While a move is under way, and until the keeper has had time to see to it, it is as it should be.
SELECT 'warning', 'partition ' || p.partition, 'its toast table does not have its own name, without which pg_upgrade stops',
       format('pg_toast.%I instead of pg_toast_%s', t.relname, c.oid),
       format('A keeper renames it as soon as nobody uses it: end transactions that do, SELECT pid, mode FROM pg_locks WHERE relation = %s;', t.oid)
FROM foreshard.slot_partition p JOIN pg_catalog.pg_class c ON c.oid = p.partition JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid
WHERE t.relname <> 'pg_toast_' || c.oid
  AND NOT EXISTS (SELECT FROM foreshard.move m WHERE m.slot_id = p.slot_id AND (NOT m.finished OR m.finished_at > clock_timestamp() - interval '2 min'))
UNION ALL
SELECT 'warning', format('trigger %I on %s', t.tgname, t.tgrelid::regclass), 'captures changes for a move that nobody knows', '',
       format('DROP TRIGGER %I ON %s;', t.tgname, t.tgrelid::regclass)
FROM pg_catalog.pg_trigger t
WHERE t.tgfoid = 'foreshard.capture'::pg_catalog.regproc
  AND NOT EXISTS (SELECT FROM foreshard.move_relation r WHERE t.tgrelid IN (r.source, r.shadow, r.twin))
  AND NOT EXISTS (SELECT FROM foreshard.move_child k WHERE k.child = t.tgrelid)
UNION ALL
SELECT 'warning', format('publication %I', b.pubname), 'names a partition, which a split or merge would replace', p.partition::text,
       format('Publish table %s instead, with publish_via_partition_root = true.', p.table_oid)
FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication b ON b.oid = r.prpubid JOIN foreshard.slot_partition p ON p.partition = r.prrelid
UNION ALL
SELECT 'warning', 'move ' || m.move_id, 'began again ' || m.restarts || ' times',
       coalesce((SELECT p.last_error FROM foreshard.progress_moves p WHERE p.move_id = m.move_id), ''),
       format('See foreshard.progress_moves; SELECT foreshard.cancel_move(%s) gives it up.', m.move_id)
FROM foreshard.move m WHERE NOT m.finished AND m.restarts >= 5
UNION ALL
SELECT 'error', 'node ' || n.node_name, 'does not answer', coalesce(n.last_error, '') || ' since ' || n.state_since::timestamptz(0),
       'Nothing is planned onto it until it answers; see foreshard.nodes.'
FROM foreshard.node n WHERE n.state = 'down'
UNION ALL
SELECT 'warning', 'slot ' || c.slot_id, format('of table %s is on node %s, which does not answer', c."table", c.held_by),
       format('a copy that is complete to %s is kept on %s: %s', c.complete_to::timestamptz(0), c.retained_on, c.retained_copy),
       format('It can be read under that name, and is kept until the node answers, however long that takes. If the node is lost for good: SELECT foreshard.recover_slot(%s);', c.slot_id)
FROM foreshard.retained_copies c WHERE c.node_state = 'down'
UNION ALL
SELECT 'warning', format('table %I.%I on node %s', r.remote_schema, r.remote_name, r.node_name), 'its slot was recovered without it: what was committed there last may be nowhere else',
       format('since %s; foreign table %s', r.lost_from::timestamptz(0), c.oid::regclass),
       format('When the node answers, SELECT * FROM %1$s EXCEPT SELECT * FROM %2$s shows what differs. After DROP FOREIGN TABLE %1$s it is dropped there, too.', c.oid::regclass, r.table_oid)
FROM foreshard.remote_table r JOIN pg_catalog.pg_class c ON c.oid = r.partition WHERE r.lost_from IS NOT NULL
UNION ALL
SELECT 'warning', 'node ' || c.node_name, 'what its foreshard measures is not used, or not all', format('foreshard %s: %s', c.version, c.why),
       'Its counters and the usual unit costs count meanwhile. '
       || CASE WHEN c.why LIKE 'its role %' THEN
                    (SELECT format('There: GRANT USAGE ON SCHEMA foreshard TO %1$I; GRANT EXECUTE ON FUNCTION foreshard.observe_shards TO %1$I', r.name)
                     FROM (SELECT replace(replace(c.why, 'its role ', ''), ' may not execute observe_shards()', '') AS name) r)
               ELSE 'Preload there the version of this server with foreshard.observe = on, and ALTER EXTENSION foreshard UPDATE' END
       || '; or DROP EXTENSION foreshard there.'
FROM foreshard.measuring_node c WHERE c.why IS NOT NULL
UNION ALL
SELECT 'error', 'node ' || n.node_name, 'its server does not exist', format('server %I', n.server_name), 'Create the server again.'
FROM foreshard.node n WHERE n.engine = 'postgres_fdw' AND n.server_name NOT IN (SELECT srvname FROM pg_catalog.pg_foreign_server)
UNION ALL
SELECT 'notice', format('table %s on node %s', remote_table, node), 'left over from a move', '', 'It is dropped there as soon as the node answers.'
FROM foreshard.remote_tables WHERE orphan
UNION ALL
SELECT 'error', 'graph ' || g.graph_name, 'a table of it does not exist', x.what, format('SELECT foreshard.drop_graph(%L), and create it again.', g.graph_name)
FROM foreshard.graph g, LATERAL (VALUES ('edges', g.edge_table), ('directory', g.metagraph), ('closure', g.closure), ('components', g.components)) x (what, relation)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = x.relation)
UNION ALL
-- Each of its two tables has five, which name the graph and the role of the table.
SELECT 'error', 'graph ' || g.graph_name, 'its closure is not kept: triggers are disabled or gone', 'table ' || x.relation,
       format('ALTER TABLE %s ENABLE ALWAYS TRIGGER … for each trigger foreshard_graph_…; when one is gone, drop the graph and create it again. Then SELECT foreshard.rebuild_graph(%L);', x.relation, g.graph_name)
FROM foreshard.graph g, LATERAL (VALUES (g.edge_table, 'edges'), (g.node_table, 'nodes')) x (relation, role)
JOIN pg_catalog.pg_class c ON c.oid = x.relation
WHERE 5 > (SELECT count(*) FROM pg_catalog.pg_trigger t
           WHERE t.tgrelid = c.oid AND t.tgfoid = 'foreshard.graph_changed'::pg_catalog.regproc AND t.tgenabled IN ('O', 'A')
             AND pg_catalog.encode(t.tgargs, 'escape') = format('%s\000%s\000', g.graph_id, x.role))
UNION ALL
SELECT 'error', 'graph ' || u.graph, 'its closure is not kept: a table of it is not fit for a graph any more', format('table %s: %s', u.relation, u.reason),
       format('Undo that, then SELECT foreshard.rebuild_graph(%L); or drop the graph.', u.graph)
FROM foreshard.unfit_graphs u
UNION ALL
SELECT 'error', 'node ' || n.node_name, 'another server holds the tables there', 'a clone, a restored backup, a promoted standby, or what this is a copy of',
       format('If this is the server that goes on, stop the other one; then SELECT foreshard.claim_node(%L);', n.node_name)
FROM foreshard.node n WHERE NOT n.held
UNION ALL
SELECT 'error', 'Citus cluster ' || c.cluster_name, 'nothing of it is moved: this server is not known to be its coordinator', c.not_ours,
       'If another server is the coordinator now, drop the node here with foreshard.drop_node(); else make its nodes reach this one (SELECT * FROM run_command_on_coordinator(''SELECT 1''), on a node).'
FROM foreshard.citus_cluster c WHERE c.not_ours IS NOT NULL
UNION ALL
SELECT 'error', 'table ' || a.table_oid, format('was altered while slots of it are on node %s', a.node), string_agg(DISTINCT a.difference, '; '),
       'Undo it, or bring the slots home with foreshard.drain_shard().'
FROM foreshard.altered_tables a GROUP BY a.table_oid, a.node
UNION ALL
SELECT 'warning', 'table ' || p.table_oid, format('rights on it differ on node %s', p.node), format('%s statements, such as: %s', count(*), min(p.statement)),
       'The next health check of the node runs them there. What stays (foreshard.pending_rights) names a role that does not exist there, or its owner cannot log in there.'
FROM foreshard.pending_rights p GROUP BY p.table_oid, p.node
UNION ALL
SELECT 'warning', 'table ' || q.table_oid, format('slots of it are on node %s, for which roles with rights on it have no user mapping', q.node_name),
       string_agg(DISTINCT u, ', ' ORDER BY u), format('CREATE USER MAPPING FOR … SERVER %I OPTIONS (user …, password …);', q.server_name)
FROM (SELECT DISTINCT r.table_oid, r.node_name, n.server_name, q.relation FROM foreshard.remote_table r JOIN foreshard.node n USING (node_name)
      JOIN pg_catalog.pg_inherits i ON i.inhrelid = r.partition AND i.inhparent = r.table_oid
      JOIN pg_catalog.pg_class l ON l.oid = r.partition
      -- whoever was given rights on the partition alone, too
      CROSS JOIN LATERAL unnest(CASE WHEN l.relacl IS NULL THEN ARRAY[r.table_oid::oid] ELSE ARRAY[r.table_oid::oid, l.oid] END) q (relation)) q
CROSS JOIN LATERAL foreshard.unmapped_roles(q.relation, q.server_name) u
GROUP BY q.table_oid, q.node_name, q.server_name
UNION ALL
SELECT 'error', 'table ' || r.table_oid, 'a trigger has transition tables while slots are on nodes: statements that fire it fail',
       string_agg(DISTINCT 'trigger ' || quote_ident(t.tgname), ', '), 'Drop the trigger, or bring the slots home with foreshard.drain_shard().'
FROM foreshard.remote_table r JOIN pg_catalog.pg_inherits i ON i.inhrelid = r.partition AND i.inhparent = r.table_oid
JOIN pg_catalog.pg_trigger t ON t.tgrelid = r.table_oid AND NOT t.tgisinternal AND (t.tgoldtable IS NOT NULL OR t.tgnewtable IS NOT NULL)
GROUP BY r.table_oid
UNION ALL
SELECT 'warning', 'event trigger ' || e.evtname,
       CASE e.evtname WHEN 'foreshard_table_altered' THEN 'disabled: tables can be altered without their slots on nodes'
                      WHEN 'foreshard_graph_tables_altered' THEN 'disabled: tables of graphs can be altered so that closures are not kept'
                      ELSE 'disabled: graphs do not go with their edges' END,
       '', format('ALTER EVENT TRIGGER %I ENABLE;', e.evtname)
FROM pg_catalog.pg_event_trigger e WHERE e.evtname IN ('foreshard_graph_tables_dropped', 'foreshard_graph_tables_altered', 'foreshard_table_altered') AND e.evtenabled NOT IN ('O', 'A');

CREATE FUNCTION foreshard."check"(closures boolean DEFAULT false,
    OUT severity text, OUT object text, OUT problem text, OUT detail text, OUT hint text)
RETURNS SETOF record VOLATILE LANGUAGE sql SET search_path TO pg_catalog, pg_temp SET jit TO off AS $$
    WITH w AS MATERIALIZED (SELECT * FROM foreshard.worker_states()),
    found AS (
        SELECT 'error' AS severity, 'server' AS object, 'foreshard is not loaded: nothing is observed and nothing can move' AS problem,
               'shared_preload_libraries = ' || coalesce(nullif(current_setting('shared_preload_libraries', true), ''), '''''') AS detail,
               'Set shared_preload_libraries = ''foreshard'' in postgresql.conf and restart PostgreSQL.' AS hint
        FROM w WHERE NOT w.preloaded
        UNION ALL
        SELECT 'error', 'extension foreshard', 'the library is of another version than its SQL objects', w.library_version || ' against ' || e.extversion,
               'ALTER EXTENSION foreshard UPDATE; restart PostgreSQL if the library is the older one.'
        FROM w, pg_extension e WHERE e.extname = 'foreshard' AND e.extversion <> w.library_version
        UNION ALL
        SELECT 'error', 'worker', 'the launcher does not run', '', 'Restart PostgreSQL; its log says why the launcher ended.'
        FROM w WHERE w.preloaded AND w.launcher_pid IS NULL AND NOT pg_is_in_recovery()
        UNION ALL
        SELECT CASE w.keeper_state WHEN 'starting' THEN 'notice' ELSE 'error' END, 'worker',
               CASE w.keeper_state WHEN 'starting' THEN 'the keeper of this database is being started' ELSE 'no keeper serves this database' END, '',
               CASE w.keeper_state WHEN 'starting' THEN 'If this stays, raise max_worker_processes.' ELSE 'SELECT foreshard.start_keeper();' END
        FROM w WHERE w.preloaded AND w.keeper_pid IS NULL AND NOT pg_is_in_recovery()
        UNION ALL
        SELECT 'warning', 'worker', 'the keeper takes longer than a bucket', round(w.keeper_look_ms) || ' ms for ' || s.setting || ' s',
               'Raise foreshard.bucket, or have fewer slots.'
        FROM w, pg_settings s WHERE s.name = 'foreshard.bucket' AND w.keeper_look_ms > 1000 * s.setting::int
        UNION ALL
        -- One that has just been started is about to.
        SELECT 'error', 'worker', 'the keeper does not read the loads of slots',
               format('last reading: %s; the keeper, pid %s, %s', coalesce(r.read_at::timestamptz(0)::text, 'never'), w.keeper_pid,
                      CASE a.wait_event_type WHEN 'Lock' THEN 'waits for a lock: ' || a.wait_event ELSE 'waits for no lock' END),
               format('Lines "foreshard keeper" of the server log say what fails. Who holds a lock that it waits for: SELECT pg_blocking_pids(%1$s); '
                      'another keeper begins after SELECT pg_terminate_backend(%1$s).', w.keeper_pid)
        FROM w, foreshard.last_reading r, pg_stat_activity a
        WHERE r.overdue AND a.pid = w.keeper_pid
          AND coalesce(a.backend_start < clock_timestamp() - greatest(2 * current_setting('foreshard.bucket', true)::interval, interval '5 s'), true)
        UNION ALL
        SELECT p.severity, p.object, p.problem, p.detail, p.hint FROM foreshard.problems_of_settings() p
        UNION ALL
        SELECT c.severity, c.object, c.problem, c.detail, c.hint FROM foreshard.catalog_problems c
        UNION ALL
        SELECT 'error', 'graph ' || g.graph, 'its closure is wrong', d.wrong || ' differences', format('SELECT foreshard.rebuild_graph(%L);', g.graph)
        -- what is not the caller's, or half gone, makes check_graph() raise: it must not get there (OFFSET 0)
        FROM (SELECT q.graph FROM foreshard.graphs q JOIN pg_class c ON c.oid = q.edges AND pg_has_role(c.relowner, 'USAGE')
              WHERE EXISTS (SELECT FROM pg_class x WHERE x.oid = q.closure) AND EXISTS (SELECT FROM pg_class x WHERE x.oid = q.metagraph) OFFSET 0) g
        CROSS JOIN LATERAL (SELECT count(*) AS wrong FROM foreshard.check_graph(g.graph::text)) d
        WHERE closures AND d.wrong > 0
        UNION ALL
        SELECT 'notice', 'graph ' || q.graph, 'its closure is not compared, since its edges are not yours', 'table ' || q.edges,
               'Let the owner of that table, or a superuser, run foreshard.check(closures => true).'
        FROM foreshard.graphs q JOIN pg_class c ON c.oid = q.edges WHERE closures AND NOT pg_has_role(c.relowner, 'USAGE')
    )
    SELECT f.severity, f.object, f.problem, coalesce(f.detail, ''), f.hint FROM found f
    ORDER BY array_position(ARRAY['error', 'warning', 'notice'], f.severity), 2, 3, 4
$$;

CREATE FUNCTION foreshard.status(OUT topic text, OUT state text)
RETURNS SETOF record VOLATILE LANGUAGE sql SET search_path TO pg_catalog, pg_temp SET jit TO off AS $$
    WITH w AS MATERIALIZED (SELECT * FROM foreshard.worker_states()),
    h AS MATERIALIZED (SELECT * FROM foreshard.heat_map),
    s AS MATERIALIZED (SELECT * FROM foreshard.shards),
    m AS MATERIALIZED (SELECT * FROM foreshard.progress_moves WHERE state NOT IN ('done', 'failed', 'cancelled')),
    r AS MATERIALIZED (SELECT * FROM foreshard.recommendations WHERE action <> 'none'),
    p AS MATERIALIZED (SELECT * FROM foreshard."check"())
    SELECT q.topic, q.state FROM (
        SELECT 1 AS n, 'server' AS topic, format('PostgreSQL %s, foreshard %s, %s', split_part(current_setting('server_version'), ' ', 1), e.extversion,
               CASE WHEN w.preloaded THEN 'preloaded' ELSE 'NOT preloaded: nothing is observed and nothing can move' END) AS state
        FROM w, pg_extension e WHERE e.extname = 'foreshard'
        UNION ALL
        SELECT 2, 'workers', CASE WHEN NOT w.preloaded THEN 'none' WHEN pg_is_in_recovery() THEN 'none on a standby'
               ELSE format('launcher %s, keeper %s, %s', coalesce(w.launcher_pid::text, 'MISSING'), coalesce(w.keeper_pid::text, w.keeper_state),
                           CASE w.carriers WHEN 0 THEN 'nobody moves' WHEN 1 THEN '1 carrier' ELSE w.carriers || ' carriers' END) END FROM w
        UNION ALL
        SELECT 3, 'mode', format('%s, bucket %s, looks %s ahead', coalesce(current_setting('foreshard.mode', true), '?'),
               coalesce(current_setting('foreshard.bucket', true), '?'), coalesce(current_setting('foreshard.forecast_horizon', true), '?'))
        UNION ALL
        SELECT 4, 'data', format('%s tables, %s slots on %s shards, %s', (SELECT count(DISTINCT "table") FROM foreshard.slots),
               (SELECT count(*) FROM h), count(*), pg_size_pretty(coalesce(sum(s.bytes), 0)::bigint)) FROM s
        UNION ALL
        SELECT 5, 'load', coalesce(round(sum(s.cost_units_per_s)::numeric, 1) || ' cost units/s, hottest shard '
               || (SELECT format('%s with %s %% of its capacity', t.shard, round((100 * t.utilization)::numeric, 1)) FROM s t
                   WHERE t.utilization IS NOT NULL ORDER BY t.utilization DESC LIMIT 1), 'not observed yet')
               || coalesce((SELECT ', NOT READ since ' || l.read_at::timestamptz(0) FROM foreshard.last_reading l WHERE l.overdue), '') FROM s
        UNION ALL
        SELECT 6, 'hottest slot', coalesce((SELECT format('%s on %s: %s cost units/s, %s %% of its group  %s', h.slot_id, h.shard, round(h.cost_units_per_s::numeric, 1),
               round((100 * coalesce(h.share, 0))::numeric, 1), h.recent) FROM h WHERE h.cost_units_per_s IS NOT NULL ORDER BY h.cost_units_per_s DESC, h.slot_id LIMIT 1),
               'not observed yet')
        UNION ALL
        SELECT 7, 'moves', CASE count(*) WHEN 0 THEN 'none' ELSE format('%s running, %s waiting', count(*) FILTER (WHERE m.state IN ('running', 'cancelling')),
               count(*) FILTER (WHERE m.state NOT IN ('running', 'cancelling'))) END FROM m
        UNION ALL
        SELECT 8, '', t.line FROM (SELECT format('%s %s: slot %s, %s → %s, %s%s%s%s', m.kind, m.move_id, m.slot_id, m.from_shard, m.to_shard, m.phase,
               coalesce(' ' || m.percent || ' %', ''), coalesce(', copied in ' || date_trunc('second', m.eta), ''), coalesce(', waits for ' || m.waiting_for, '')) AS line
               FROM m WHERE m.started_at IS NOT NULL ORDER BY m.move_id LIMIT 5) t
        UNION ALL
        SELECT 9, 'recommended', CASE count(*) WHEN 0 THEN 'nothing' ELSE format('%s steps, %s ready; see foreshard.recommendations', count(*), count(*) FILTER (WHERE r.refusal IS NULL)) END FROM r
        UNION ALL
        SELECT 10, 'problems', CASE count(*) WHEN 0 THEN 'none' ELSE format('%s errors, %s warnings; see foreshard.check()', count(*) FILTER (WHERE p.severity = 'error'),
               count(*) FILTER (WHERE p.severity <> 'error')) END FROM p
        UNION ALL
        SELECT 11, '', t.line FROM (SELECT format('%s: %s: %s', p.severity, p.object, p.problem) AS line FROM p LIMIT 3) t
    ) q ORDER BY q.n
$$;

COMMENT ON FUNCTION foreshard.problems_of_settings() IS 'Internal: behind check().';
COMMENT ON VIEW foreshard.catalog_problems IS 'Where the metadata of foreshard and the catalogs of PostgreSQL disagree, and what was left over; check() shows it too.';
COMMENT ON FUNCTION foreshard."check"(boolean) IS 'What is wrong with the installation, its settings, its metadata and its nodes, and how to fix each; no row when all is well. With closures, graphs are compared with their edges too.';
COMMENT ON FUNCTION foreshard.status() IS 'Everything on one screen: server, workers, loads, moves going on, recommendations, problems.';

SET LOCAL search_path TO foreshard, pg_temp;
