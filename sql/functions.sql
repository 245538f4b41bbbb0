-- Functions that are plain SQL, views of functions, comments on all functions, and privileges: whoever may look, may look;
-- nothing that changes state is executable by PUBLIC.

-- Nothing is looked up in a schema that somebody else may have made first.
SET LOCAL search_path TO pg_catalog, pg_temp;

CREATE FUNCTION foreshard.monitor_resharding_progress(
    OUT request_id bigint, OUT moves bigint, OUT done bigint, OUT running bigint, OUT waiting bigint,
    OUT failed bigint, OUT percent numeric, OUT eta interval, OUT finished boolean)
RETURNS SETOF record STABLE LANGUAGE sql SET search_path TO pg_catalog, pg_temp AS $$
    SELECT p.request_id, count(*),
           count(*) FILTER (WHERE p.state = 'done'),
           count(*) FILTER (WHERE p.state IN ('running', 'cancelling')),
           count(*) FILTER (WHERE p.state = 'waiting'),
           count(*) FILTER (WHERE p.state IN ('failed', 'cancelled')),
           round(avg(coalesce(p.percent, 0)), 1),
           sum(p.eta),
           bool_and(p.state IN ('done', 'failed', 'cancelled'))
    FROM foreshard.progress_moves p
    GROUP BY p.request_id ORDER BY p.request_id
$$;

CREATE VIEW foreshard.stat_foreshard AS
SELECT area, capacity, used, written, dropped, lost FROM foreshard.observation_areas();

CREATE VIEW foreshard.stat_sampling AS
SELECT statements_sampled, measuring_ms, too_deep, given_up FROM foreshard.observation_sampling();

CREATE VIEW foreshard.stat_data_sources AS
SELECT d.graph_name AS graph, d.source_name AS source, d.from_class, d.to_class,
       CASE WHEN s.server_id = 0 THEN 'local' WHEN s.server_id > 0 THEN coalesce(f.srvname::text, 'dropped') END AS server,
       d.cost_hint_ms, s.calls, s.keys, s.rows, s.failures, s.timeouts, s.refused,
       s.call_ms, s.per_key_ms, s.rows_per_key, s.failure_rate, s.p95_ms,
       s.state, s.kept_out_until, s.last_error, s.last_used_at
FROM foreshard.data_source d
LEFT JOIN foreshard.data_source_states() s USING (source_id)
LEFT JOIN pg_catalog.pg_foreign_server f ON f.oid::bigint = s.server_id;

COMMENT ON VIEW foreshard.stat_data_sources IS 'Data sources at the places where they were asked: what was learnt about latency, rows and failures, and whether they are kept out.';
COMMENT ON VIEW foreshard.stat_foreshard IS 'Memory of the observation: room, use, and what was dropped (shared memory and sessions, all databases together) or lost (by the keeper of this database: overwritten before it was read, evicted, or without room).';
COMMENT ON VIEW foreshard.stat_sampling IS 'What measuring itself took since the server started, all databases together.';

COMMENT ON FUNCTION foreshard.capture() IS 'Internal: logs the keys of rows that change while their partition moves.';
COMMENT ON FUNCTION foreshard.citus_shard_cost(bigint) IS 'Forecast peak of a shard of Citus with its colocated ones: the cost of the rebalance strategy foreshard.';
COMMENT ON FUNCTION foreshard.citus_node_capacity(integer) IS 'What a node of Citus can carry: the capacity of the rebalance strategy foreshard.';
COMMENT ON FUNCTION foreshard.citus_shard_allowed(bigint, integer) IS 'Whether a shard of Citus may be on a node that may be drained or down, for the rebalance strategy foreshard.';
COMMENT ON FUNCTION foreshard.observe_shards(bigint[], oid[], double precision) IS 'Internal: on a node, watches tables that hold slots or shards for its coordinator and says what was measured of them.';
COMMENT ON FUNCTION foreshard.register_citus_strategy(text, real, real, real) IS 'Registers foreshard as a rebalance strategy of Citus, which balances forecast peaks.';
COMMENT ON FUNCTION foreshard.unregister_citus_strategy(text) IS 'Removes the rebalance strategy from Citus.';
COMMENT ON FUNCTION foreshard.monitor_resharding_progress() IS 'Progress of every resharding request.';
COMMENT ON FUNCTION foreshard.add_shard(text, text, double precision, text) IS 'Adds a shard: a tablespace, of this server or of a node, with a capacity in cost units (ms of CPU) per second.';
COMMENT ON FUNCTION foreshard.add_node(text, text, text, text) IS 'Makes a foreign server of postgres_fdw a node, on which shards may be, or adopts the Citus cluster that this server coordinates (engine => ''citus'').';
COMMENT ON FUNCTION foreshard.drop_node(text, boolean) IS 'Forgets a node that has no shards and no tables of ours any more; by force one that does not answer, with what moves left there.';
COMMENT ON FUNCTION foreshard.claim_node(text) IS 'Takes the tables on a node for this server''s, after a clone, restore or promotion: the other server touches them no more.';
COMMENT ON FUNCTION foreshard.drain_shard(text, boolean) IS 'Empties a shard: nothing is placed on it any more, and its slots move to others; returns how many moves were filed.';
COMMENT ON FUNCTION foreshard.drop_shard(text) IS 'Forgets a shard that holds nothing.';
COMMENT ON FUNCTION foreshard.start_keeper() IS 'Internal: asks for the keeper worker of this database.';
COMMENT ON FUNCTION foreshard.distribute(regclass, text, integer, regclass, text[], boolean, boolean) IS 'Turns an ordinary table into a managed, hash-partitioned one, in one transaction under ACCESS EXCLUSIVE, or online: at once with one slot, which is split in the background.';
COMMENT ON FUNCTION foreshard.undistribute(regclass, boolean) IS 'Turns a managed table back into an ordinary one, in one transaction under ACCESS EXCLUSIVE, or online: its slots are copied into one table in the background.';
COMMENT ON FUNCTION foreshard.get_shard_location(regclass, "any") IS 'Name of the shard that holds a key.';
COMMENT ON FUNCTION foreshard.next_key(regclass, bigint, double precision, regclass) IS 'A new bigint key that hashes to where the row should live: near the key given, within bounded load. Never given twice.';
COMMENT ON FUNCTION foreshard.next_key(regclass, uuid, double precision, regclass) IS 'A new uuid key that hashes to where the row should live: near the key given, within bounded load.';
COMMENT ON FUNCTION foreshard.configure(regclass, text, text) IS 'Sets what applies to one managed table (observe: on or off; mode: off, advise or auto); NULL brings back the default.';
COMMENT ON FUNCTION foreshard.recommend() IS 'Plans now and shows every step and every refusal; changes nothing.';
COMMENT ON FUNCTION foreshard.recommend_curves() IS 'Plans now and shows the load of every shard over the horizon: now, forecast if nothing more moves, and once every step is done; NULL means unknown, nothing changes.';
COMMENT ON FUNCTION foreshard.explain_placement(regclass, "any") IS 'Why the slot of a key is where it is, in words: how it came there, loads now and to come, what was considered, what was refused and why.';
COMMENT ON FUNCTION foreshard.explain_placement_json(regclass, "any") IS 'The same as explain_placement(), as an object.';
COMMENT ON FUNCTION foreshard.undo_recommendation(bigint) IS 'Moves back what was moved upon a recommendation, and leaves the slot to persons for a day.';
COMMENT ON FUNCTION foreshard.predict_shard_assignment(interval) IS 'Map of the moves that balance the forecast load, for request_resharding(), with its least confidence and that of each slot.';
COMMENT ON FUNCTION foreshard.predict_cost(regclass, text, bigint, integer, integer, bigint) IS 'Cost of the triggers that a statement fires: a row per trigger, then the total; NULL means unknown.';
COMMENT ON FUNCTION foreshard.predict_cost(regclass, text, jsonb, bigint) IS 'Cost of the triggers that a statement with rows like this one fires: a row per trigger, then the total; NULL means unknown.';
COMMENT ON FUNCTION foreshard.report_html() IS 'All of it on one self-contained HTML page: loads, forecasts, recommendations with their SQL, moves, costs, keys, problems. Shows what the caller may see.';
COMMENT ON FUNCTION foreshard.worker_states() IS 'Internal: whether the library is preloaded, of which version, which workers serve this database, and how long the looks of its keeper take.';
COMMENT ON FUNCTION foreshard.total_bytes(regclass) IS 'Internal: bytes of a table with indexes and toast table, read from its files without a lock.';
COMMENT ON FUNCTION foreshard.is_open(regclass) IS 'Internal: whether nobody has locked a relation so that whoever looks into it would wait.';
COMMENT ON FUNCTION foreshard.sparkline(double precision[]) IS 'Levels of values as a line of blocks.';
COMMENT ON FUNCTION foreshard.observation_areas() IS 'Internal: behind the view stat_foreshard.';
COMMENT ON FUNCTION foreshard.observation_sampling() IS 'Internal: behind the view stat_sampling.';
COMMENT ON FUNCTION foreshard.verification_progress() IS 'Internal: behind the view progress_moves.';
COMMENT ON FUNCTION foreshard.request_resharding(double precision, jsonb) IS 'Files the moves of a map {"slot_id": "shard"} if the confidence suffices and every entry is valid.';
COMMENT ON FUNCTION foreshard.move_slot(bigint, text) IS 'Moves one slot to a shard, online; to its own shard when it lies in another tablespace than that.';
COMMENT ON FUNCTION foreshard.split_slot(bigint, text, text) IS 'Splits one slot into two, online: (m, r) becomes (2m, r) and (2m, r + m), each on the shard named, else where the slot is. A slot of Citus: into the halves of its hashes, for good.';
COMMENT ON FUNCTION foreshard.merge_slots(bigint, bigint, text) IS 'Merges two slots, online: (2m, r) and (2m, r + m) become (m, r), on the shard named, else on that of slot_a.';
COMMENT ON FUNCTION foreshard.prepare_split(bigint, text, text) IS 'Builds both parts of a slot ahead and keeps them equal to it, so that split_slot() only has to switch over.';
COMMENT ON FUNCTION foreshard.isolate_key(regclass, "any", text) IS 'Gives one key a partition of its own, online, on the shard named, else where its slot is; colocated tables together. Of a table of Citus: a shard for its hash, for good.';
COMMENT ON FUNCTION foreshard.isolate_keys(regclass, text[], text) IS 'Gives each of several keys a partition of its own, online; returns one move per slot that changes.';
COMMENT ON FUNCTION foreshard.unisolate_key(regclass, "any") IS 'Brings an isolated key back to its slot, online.';
COMMENT ON FUNCTION foreshard.place_keys(regclass, jsonb, boolean) IS 'Places keys one by one by a map {"key": "shard"}, online; keys that are not in a whole map, and those with null, go home. Returns one move per slot that changes.';
COMMENT ON FUNCTION foreshard.placed_keys(regclass) IS 'The keys of a table that have partitions of their own, with their slots and shards.';
COMMENT ON FUNCTION foreshard.cancel_move(bigint) IS 'Stops a move before its cutover; the slot stays where it is. By Citus also the way back of one.';
COMMENT ON FUNCTION foreshard.pause_move(bigint) IS 'Holds a move up where it stands, before its cutover. What Citus is at cannot be held up.';
COMMENT ON FUNCTION foreshard.resume_move(bigint) IS 'Lets a paused move go on.';
COMMENT ON FUNCTION foreshard.set_route_weight(bigint, double precision) IS 'Sends this share (0 to 1) of the reads of a moving slot to its copy and stays there; NULL lets the canary take its own steps.';
COMMENT ON FUNCTION foreshard.rollback_move(bigint) IS 'Brings a slot back: cancels a move before its cutover, swaps the copies back after it while the old one is kept.';
COMMENT ON FUNCTION foreshard.recover_slot(bigint, boolean) IS 'Puts the old copy that is kept of a slot in its place, for a node that is lost: what was committed there since complete_to is not in it.';
COMMENT ON FUNCTION foreshard.graph_changed() IS 'Internal: keeps the closure of a graph when edges or nodes change.';
COMMENT ON FUNCTION foreshard.create_graph(text, regclass, text, text, regclass, text, text, text, integer) IS 'Makes a graph of a table of edges and keeps its closure exact from now on.';
COMMENT ON FUNCTION foreshard.adopt_closure(text, regclass, text, text, text, integer, boolean) IS 'Makes a graph of a closure table that is kept by somebody else: its rows of depth 1 are the edges.';
COMMENT ON FUNCTION foreshard.drop_graph(text) IS 'Drops a graph: its closure, directory, functions and triggers.';
COMMENT ON FUNCTION foreshard.drop_lost_graphs() IS 'Internal: drops what is left of graphs whose edges are gone.';
COMMENT ON FUNCTION foreshard.rebuild_graph(text) IS 'Makes a graph''s closure, directory and components right; returns how many rows were wrong.';
COMMENT ON FUNCTION foreshard.check_graph(text) IS 'Compares a graph''s closure with the edges: a row per difference, none when it is right.';
COMMENT ON FUNCTION foreshard.refresh_influence(text, double precision) IS 'Computes PageRank and betweenness of a graph''s nodes now and writes them to its metagraph.';
COMMENT ON FUNCTION foreshard.allow_type(text, text, text[]) IS 'Lets nodes of a type live only on these shards; NULL: on all.';
COMMENT ON FUNCTION foreshard.graph_plan(text) IS 'Plans where a graph''s nodes should live and shows what that changes; changes nothing.';
COMMENT ON FUNCTION foreshard.place_graph(text) IS 'Plans where a graph''s nodes should live and files the moves; returns how many.';
COMMENT ON FUNCTION foreshard.move_node(text, text, text, bigint) IS 'Moves one node to a shard, in this transaction; returns the node''s new version.';
COMMENT ON FUNCTION foreshard.move_nodes(text, jsonb) IS 'Files moves of nodes, {"node": "shard"}, which a worker makes in bounded transactions; returns how many.';
COMMENT ON FUNCTION foreshard.cancel_node_moves(text) IS 'Forgets moves of a graph''s nodes that are still waiting; returns how many.';
COMMENT ON FUNCTION foreshard.add_data_source(text, text, text, text, text, double precision, regclass, text, jsonb) IS 'Registers a query that derives keys of one class from keys of another, for resolve(); whoever resolves runs it with his own rights.';
COMMENT ON FUNCTION foreshard.drop_data_source(text, text) IS 'Forgets a data source.';
COMMENT ON FUNCTION foreshard.resolve(text, text, anyarray, text) IS 'Derives keys of one class from keys of another by the cheapest chain of data sources that works, with the caller''s rights: a row per input and output.';
COMMENT ON FUNCTION foreshard.explain_resolve(text, text, anyarray, text) IS 'The chains that resolve() would consider, cheapest first, with what they are predicted to take; asks no source.';
COMMENT ON FUNCTION foreshard.last_resolve() IS 'What the last resolve() of this session asked: a row per question, with source, shards, server, rows and time.';
COMMENT ON FUNCTION foreshard.data_source_states() IS 'Internal: behind the view stat_data_sources.';
COMMENT ON FUNCTION foreshard.note_access(text, text[]) IS 'Tells that these nodes were used together; returns how many shards they are on.';

GRANT USAGE ON SCHEMA foreshard TO PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA foreshard FROM PUBLIC;
GRANT EXECUTE ON FUNCTION foreshard.get_shard_location(regclass, "any") TO PUBLIC;
-- They check themselves that the caller may read the table or is a monitor.
GRANT EXECUTE ON FUNCTION foreshard.predict_cost(regclass, text, bigint, integer, integer, bigint),
    foreshard.predict_cost(regclass, text, jsonb, bigint) TO PUBLIC;
-- next_key() checks the privilege to insert.
GRANT EXECUTE ON FUNCTION foreshard.next_key(regclass, bigint, double precision, regclass) TO PUBLIC;
GRANT EXECUTE ON FUNCTION foreshard.next_key(regclass, uuid, double precision, regclass) TO PUBLIC;
GRANT EXECUTE ON FUNCTION foreshard.monitor_resharding_progress(), foreshard.table_portrait(oid), foreshard.graph_refusal(oid), foreshard.wanted_rights(),
    foreshard.unmapped_roles(oid, name) TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.observation_areas(), foreshard.observation_sampling(), foreshard.verification_progress(),
    foreshard.is_open(regclass) TO pg_monitor;
-- observe_shards() is nobody's: it takes places of the shared memory. On a node whoever administers it grants it to the role that the coordinator
-- connects as.
-- It tells the role that resolved, in its own session, what that asked: resolve() names it in its errors.
GRANT EXECUTE ON FUNCTION foreshard.last_resolve() TO PUBLIC;
-- They are in heat_map, and in slots and shards, which a DBA may grant to anybody; pg_total_relation_size() is everybody's, too.
GRANT EXECUTE ON FUNCTION foreshard.sparkline(double precision[]), foreshard.total_bytes(regclass) TO PUBLIC;
-- check_graph() asks itself whether the graph is the caller's; check() names it.
GRANT EXECUTE ON FUNCTION foreshard.check_graph(text) TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.report_html(), foreshard.status(), foreshard."check"(boolean), foreshard.worker_states(),
    foreshard.problems_of_settings() TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.recommend(), foreshard.placed_keys(regclass), foreshard.recommend_curves(),
    foreshard.explain_placement(regclass, "any"), foreshard.explain_placement_json(regclass, "any") TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.predict_shard_assignment(interval) TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.citus_shard_cost(bigint), foreshard.citus_node_capacity(integer), foreshard.citus_shard_allowed(bigint, integer) TO pg_monitor;
GRANT EXECUTE ON FUNCTION foreshard.data_source_states(), foreshard.explain_resolve(text, text, anyarray, text) TO pg_monitor;
GRANT SELECT ON foreshard.slots, foreshard.shards, foreshard.heat_map, foreshard.slot_costs, foreshard.forecasts, foreshard.forecast_errors,
    foreshard.layout_problems, foreshard.catalog_problems, foreshard.load_history, foreshard.last_reading, foreshard.recommendations, foreshard.calibration, foreshard.progress_moves, foreshard.history, foreshard.stat_triggers,
    foreshard.stat_foreshard, foreshard.stat_sampling, foreshard.nodes, foreshard.remote_tables, foreshard.retained_copies, foreshard.altered_tables, foreshard.pending_rights, foreshard.unfit_graphs, foreshard.citus_clusters, foreshard.citus_tenants, foreshard.hot_keys, foreshard.co_access,
    foreshard.dependency_graph, foreshard.graphs,
    foreshard.stat_data_sources, foreshard.graph_influencers, foreshard.graph_traffic_stats, foreshard.node_moves TO pg_monitor;

SELECT foreshard.start_keeper();

SET LOCAL search_path TO foreshard, pg_temp;
