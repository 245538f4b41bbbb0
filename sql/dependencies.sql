-- What hangs on what: tables, foreign keys, triggers and what their functions touch.

-- Nothing is looked up in a schema that somebody else may have made first.
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE VIEW foreshard.dependency_graph AS
WITH RECURSIVE
reference AS (
    SELECT DISTINCT coalesce(pg_catalog.pg_partition_root(k.conrelid), k.conrelid)::oid AS from_oid,
           coalesce(pg_catalog.pg_partition_root(k.confrelid), k.confrelid)::oid AS to_oid,
           pg_catalog.jsonb_build_object(
               'constraint', k.conname,
               'columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY u.n) FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY u (attnum, n)
                           JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum),
               'referenced_columns', (SELECT pg_catalog.jsonb_agg(a.attname ORDER BY u.n) FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY u (attnum, n)
                           JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum),
               'on_update', CASE k.confupdtype WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' ELSE 'NO ACTION' END,
               'on_delete', CASE k.confdeltype WHEN 'r' THEN 'RESTRICT' WHEN 'c' THEN 'CASCADE' WHEN 'n' THEN 'SET NULL' WHEN 'd' THEN 'SET DEFAULT' ELSE 'NO ACTION' END
           ) AS detail
    FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0
),
fired AS (
    SELECT DISTINCT coalesce(pg_catalog.pg_partition_root(t.tgrelid), t.tgrelid)::oid AS from_oid, t.tgfoid AS to_oid,
           pg_catalog.jsonb_build_object(
               'trigger', t.tgname,
               'timing', CASE WHEN t.tgtype & 64 <> 0 THEN 'INSTEAD OF' WHEN t.tgtype & 2 <> 0 THEN 'BEFORE' ELSE 'AFTER' END,
               'events', (SELECT pg_catalog.jsonb_agg(e.event ORDER BY e.bit)
                          FROM (VALUES (4, 'INSERT'), (8, 'DELETE'), (16, 'UPDATE'), (32, 'TRUNCATE')) e (bit, event) WHERE t.tgtype & e.bit <> 0),
               'level', CASE WHEN t.tgtype & 1 <> 0 THEN 'ROW' ELSE 'STATEMENT' END,
               'enabled', t.tgenabled <> 'D') AS detail
    FROM pg_catalog.pg_trigger t WHERE NOT t.tgisinternal AND t.tgparentid = 0
),
computed AS (
    SELECT DISTINCT coalesce(pg_catalog.pg_partition_root(f.adrelid), f.adrelid)::oid AS from_oid, d.refobjid AS to_oid,
           pg_catalog.jsonb_build_object(CASE WHEN a.attgenerated = '' THEN 'default' ELSE 'generated' END, a.attname) AS detail
    FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
    WHERE d.refclassid = 'pg_catalog.pg_proc'::regclass
    UNION
    SELECT coalesce(pg_catalog.pg_partition_root(k.conrelid), k.conrelid)::oid, d.refobjid, pg_catalog.jsonb_build_object('constraint', k.conname)
    FROM pg_catalog.pg_constraint k
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid
    WHERE k.contype = 'c' AND k.conrelid <> 0 AND d.refclassid = 'pg_catalog.pg_proc'::regclass
),
-- A body in standard SQL is stored as a parse tree, which names each relation with the privileges it takes:
-- SELECT 2, INSERT 1, UPDATE 4, DELETE 8.
declared AS (
    SELECT DISTINCT f.oid AS from_oid, x.edge,
           coalesce(pg_catalog.pg_partition_root(m.found[1]::oid), m.found[1]::oid)::oid AS to_oid
    FROM pg_catalog.pg_proc f,
         pg_catalog.regexp_matches(f.prosqlbody::text, ':relid (\d+) (?:(?!:relid |:requiredPerms ).)*:requiredPerms (\d+)', 'g') m (found),
         (VALUES ('reads', 2), ('writes', 13)) x (edge, privileges)
    WHERE f.prosqlbody IS NOT NULL AND m.found[2]::bigint & x.privileges <> 0
),
called AS (
    SELECT DISTINCT d.objid AS from_oid, d.refobjid AS to_oid
    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc f ON f.oid = d.objid AND f.prosqlbody IS NOT NULL
    WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.refclassid = 'pg_catalog.pg_proc'::regclass AND d.deptype = 'n'
),
observed AS (
    SELECT o.function_oid AS from_oid, CASE WHEN o.writes THEN 'writes' ELSE 'reads' END AS edge,
           coalesce(pg_catalog.pg_partition_root(o.relation_oid), o.relation_oid)::oid AS to_oid,
           sum(o.seen)::bigint AS seen, max(o.last_seen_at) AS last_seen_at
    FROM foreshard.observed_dependency o GROUP BY 1, 2, 3
),
edge (from_function, from_oid, edge, to_function, to_oid, detail, source, seen, last_seen_at) AS (
    SELECT false, from_oid, 'references', false, to_oid, detail, 'declared', NULL::bigint, NULL::timestamptz FROM reference
    UNION ALL SELECT false, from_oid, 'fires', true, to_oid, detail, 'declared', NULL, NULL FROM fired
    UNION ALL SELECT false, from_oid, 'calls', true, to_oid, detail, 'declared', NULL, NULL FROM computed
    UNION ALL SELECT true, from_oid, edge, false, to_oid, NULL, 'declared', NULL, NULL FROM declared
    UNION ALL SELECT true, from_oid, 'calls', true, to_oid, NULL, 'declared', NULL, NULL FROM called
    UNION ALL SELECT true, from_oid, edge, false, to_oid, NULL, 'observed', seen, last_seen_at FROM observed
),
node (is_function, oid) AS (
    SELECT false, m.table_oid::oid FROM foreshard.managed_table m
    UNION
    SELECT e.to_function, e.to_oid FROM node n JOIN edge e ON e.from_function = n.is_function AND e.from_oid = n.oid
)
SELECT f.kind AS from_kind, e.from_oid,
       CASE WHEN e.from_function THEN e.from_oid::regprocedure::text ELSE e.from_oid::regclass::text END AS from_object,
       e.edge,
       t.kind AS to_kind, e.to_oid,
       CASE WHEN e.to_function THEN e.to_oid::regprocedure::text ELSE e.to_oid::regclass::text END AS to_object,
       e.detail, e.source, e.seen, e.last_seen_at
FROM edge e
CROSS JOIN LATERAL (
    SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind
    FROM pg_catalog.pg_class c WHERE NOT e.from_function AND c.oid = e.from_oid
    UNION ALL SELECT 'function' FROM pg_catalog.pg_proc p WHERE e.from_function AND p.oid = e.from_oid
) f
CROSS JOIN LATERAL (
    SELECT CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table' WHEN 'S' THEN 'sequence' ELSE 'table' END AS kind
    FROM pg_catalog.pg_class c WHERE NOT e.to_function AND c.oid = e.to_oid
    UNION ALL SELECT 'function' FROM pg_catalog.pg_proc p WHERE e.to_function AND p.oid = e.to_oid
) t
WHERE EXISTS (SELECT FROM node n WHERE n.is_function = e.from_function AND n.oid = e.from_oid)
   OR (e.edge = 'references' AND EXISTS (SELECT FROM foreshard.managed_table m WHERE m.table_oid = e.to_oid));

COMMENT ON VIEW foreshard.dependency_graph IS 'Edges from managed tables, and whatever can be reached from them, to what they depend on; foreign keys of other tables to managed ones too. Partitions stand as their root.';
COMMENT ON COLUMN foreshard.dependency_graph.from_kind IS 'table, view, materialized view, foreign table or function.';
COMMENT ON COLUMN foreshard.dependency_graph.from_oid IS 'Oid of the table or function the edge begins at.';
COMMENT ON COLUMN foreshard.dependency_graph.from_object IS 'Name of the table or function the edge begins at.';
COMMENT ON COLUMN foreshard.dependency_graph.edge IS 'references (foreign key), fires (trigger), calls (by a default, generated column, check or function body in standard SQL), reads or writes.';
COMMENT ON COLUMN foreshard.dependency_graph.to_kind IS 'As from_kind.';
COMMENT ON COLUMN foreshard.dependency_graph.to_oid IS 'Oid of the table or function the edge leads to.';
COMMENT ON COLUMN foreshard.dependency_graph.to_object IS 'Name of the table or function the edge leads to.';
COMMENT ON COLUMN foreshard.dependency_graph.detail IS 'Constraint with columns and actions, trigger with timing, events, level and state, or the column or constraint that calls.';
COMMENT ON COLUMN foreshard.dependency_graph.source IS 'declared (from the catalogs) or observed (a trigger function was seen to do it).';
COMMENT ON COLUMN foreshard.dependency_graph.seen IS 'How often it was observed, in samples; NULL for what is declared.';
COMMENT ON COLUMN foreshard.dependency_graph.last_seen_at IS 'When it was observed last; NULL for what is declared.';

SET LOCAL search_path TO foreshard, pg_temp;
