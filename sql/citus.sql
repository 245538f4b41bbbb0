-- A Citus cluster that this server coordinates: its nodes are nodes and shards, its colocation groups are groups, and
-- what Citus calls shards are slots, as pg_dist_node and the like say. Nothing here changes anything in Citus.

-- Nothing is looked up in a schema that somebody else may have made first.
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE TABLE foreshard.citus_cluster (
    cluster_name name PRIMARY KEY,
    -- a database coordinates one cluster
    only_one    boolean NOT NULL UNIQUE DEFAULT true CHECK (only_one),
    -- what a node that joins it is taken to carry
    capacity    float8 NOT NULL CHECK (capacity > 0 AND capacity < 'Infinity'),
    added_by    name NOT NULL,
    added_at    timestamptz NOT NULL DEFAULT now(),
    -- when its nodes were last asked, and what went wrong then
    asked_at    timestamptz,
    last_error  text,
    -- shards that somebody else was moving then; NULL: nobody was
    others_move text,
    -- why its nodes did not take this server for their coordinator, when something was to be moved; NULL: they did
    not_ours    text
);

CREATE TABLE foreshard.citus_table (
    table_oid   regclass PRIMARY KEY,
    group_id    int NOT NULL REFERENCES foreshard.colocation_group ON DELETE CASCADE,
    -- NULL: a table of one shard without a distribution column
    key_column  name
);
CREATE INDEX citus_table_group_idx ON foreshard.citus_table (group_id);

-- The shards of a slot, one of every table of its group, and what the node that holds it said of each.
CREATE TABLE foreshard.citus_shard (
    citus_shard bigint PRIMARY KEY,
    slot_id     bigint NOT NULL REFERENCES foreshard.slot ON DELETE CASCADE,
    table_oid   regclass NOT NULL REFERENCES foreshard.citus_table ON DELETE CASCADE,
    node_name   name NOT NULL REFERENCES foreshard.node,
    -- NULL, like all that follows: not known of this node yet
    collected_at timestamptz,
    -- by the clock of the node, s since 1970: when it counted, and since when the server runs that did
    counted_at  float8,
    counted_since float8,
    bytes       bigint,
    scans       bigint,
    rows_read   bigint,
    inserted    bigint,
    updated     bigint,
    deleted     bigint,
    blocks_read bigint,
    blocks_hit  bigint,
    -- what the foreshard of the node has measured since measured_in, by its clock in us; NULL: it has none, or was not asked
    measured_in bigint,
    measured    bigint[]
) WITH (fillfactor = 50);
CREATE INDEX citus_shard_slot_idx ON foreshard.citus_shard (slot_id);

-- The same as slot_cost and trigger_profile, of shards as their nodes have measured them.
CREATE TABLE foreshard.citus_slot_cost (
    LIKE foreshard.slot_cost,
    PRIMARY KEY (slot_id, table_oid),
    FOREIGN KEY (slot_id) REFERENCES foreshard.slot ON DELETE CASCADE,
    FOREIGN KEY (table_oid) REFERENCES foreshard.citus_table ON DELETE CASCADE
) WITH (fillfactor = 50);
CREATE INDEX citus_slot_cost_table_idx ON foreshard.citus_slot_cost (table_oid);

CREATE TABLE foreshard.citus_trigger (
    table_oid   regclass NOT NULL REFERENCES foreshard.citus_table ON DELETE CASCADE,
    trigger_name name NOT NULL,
    function_oid oid NOT NULL,
    event       text NOT NULL,
    level       text NOT NULL,
    timing      text NOT NULL,
    calls       bigint NOT NULL,
    failed_calls bigint NOT NULL,
    sampled_calls bigint NOT NULL,
    sampled_weight bigint NOT NULL,
    cpu_ns      bigint NOT NULL,
    cpu_inclusive_ns bigint NOT NULL,
    elapsed_ns  bigint NOT NULL,
    elapsed_inclusive_ns bigint NOT NULL,
    memory_bytes bigint NOT NULL,
    memory_weight bigint NOT NULL,
    blocks_hit  bigint NOT NULL,
    blocks_read bigint NOT NULL,
    blocks_dirtied bigint NOT NULL,
    wal_bytes   bigint NOT NULL,
    temp_blocks bigint NOT NULL,
    first_seen_at timestamptz NOT NULL,
    last_seen_at timestamptz NOT NULL,
    PRIMARY KEY (table_oid, trigger_name, function_oid, event, level, timing)
) WITH (fillfactor = 50);

-- What of that is in the sums: the totals of the trigger of every shard, and since when the node counts them.
CREATE TABLE foreshard.citus_trigger_seen (
    citus_shard bigint NOT NULL REFERENCES foreshard.citus_shard ON DELETE CASCADE,
    trigger_name name NOT NULL,
    function_oid oid NOT NULL,
    event       text NOT NULL,
    level       text NOT NULL,
    timing      text NOT NULL,
    counted_in  bigint NOT NULL,
    counted     bigint[] NOT NULL,
    PRIMARY KEY (citus_shard, trigger_name, function_oid, event, level, timing)
) WITH (fillfactor = 50);

-- The busiest tenants, where Citus counts them (citus.stat_tenants_track), replaced at every reading.
CREATE TABLE foreshard.citus_tenant (
    group_id    int NOT NULL REFERENCES foreshard.colocation_group ON DELETE CASCADE,
    tenant      text NOT NULL,
    node_name   name NOT NULL,
    slot_id     bigint,
    -- of the tenant's key; NULL: of a type that is not PostgreSQL's own
    hash        int,
    queries     bigint NOT NULL,
    cpu_s       float8,
    observed_at timestamptz NOT NULL,
    PRIMARY KEY (group_id, tenant, node_name)
);

-- Tenants are the users' data, as keys are (see the view hot_keys).
CREATE VIEW foreshard.citus_tenants AS
SELECT t.group_id, CASE WHEN pg_catalog.pg_has_role('pg_read_all_data', 'USAGE') THEN t.tenant END AS tenant,
       t.slot_id, t.node_name AS node, t.queries, t.cpu_s, t.observed_at
FROM foreshard.citus_tenant t;

CREATE VIEW foreshard.citus_clusters AS
SELECT c.cluster_name AS cluster, (SELECT count(*) FROM foreshard.node n WHERE n.engine = 'citus') AS nodes,
       (SELECT count(*) FROM foreshard.citus_table) AS tables, (SELECT count(*) FROM foreshard.citus_shard) AS shards,
       c.asked_at, c.last_error, c.others_move, c.not_ours
FROM foreshard.citus_cluster c;

COMMENT ON TABLE foreshard.citus_cluster IS 'The Citus cluster that was adopted with add_node().';
COMMENT ON TABLE foreshard.citus_table IS 'Distributed tables of the adopted Citus cluster.';
COMMENT ON TABLE foreshard.citus_shard IS 'Shards of the adopted Citus cluster: slot, node, and what the node said of it last.';
COMMENT ON TABLE foreshard.citus_slot_cost IS 'What the accesses to every slot of Citus were measured to cost, on nodes that have a foreshard.';
COMMENT ON TABLE foreshard.citus_trigger IS 'What every trigger of a distributed table cost so far, on nodes that have a foreshard: sums since first_seen_at.';
COMMENT ON TABLE foreshard.citus_trigger_seen IS 'What of the triggers of shards is in those sums.';
COMMENT ON TABLE foreshard.citus_tenant IS 'The busiest tenants of the adopted Citus cluster, as of the last reading.';
COMMENT ON VIEW foreshard.citus_tenants IS 'The busiest tenants where citus.stat_tenants_track is on: queries and CPU of the last period; the tenant is NULL for those who may not read all data.';
COMMENT ON VIEW foreshard.citus_clusters IS 'The adopted Citus cluster: what is known of it, what its nodes last failed with, what others are moving, and why this server does not count as the coordinator.';

SELECT pg_catalog.pg_extension_config_dump('foreshard.citus_cluster', '');

SET LOCAL search_path TO foreshard, pg_temp;
