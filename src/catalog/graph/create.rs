//! The objects of a graph: tables, indexes, triggers, functions; made and dropped.

use super::{EDGE_DEPTH, Graph, NODE_DEPTH, find_index};
use crate::catalog::colocation::ShardRow;
use crate::catalog::name_of;
use crate::catalog::relation::without_grants;
use crate::pg::graph::keys::KeyKind;
use crate::pg::graph::{announce_change, drop_with};
use crate::pg::report::{PgResult, error, internal, unsupported, wrong_state};
use crate::pg::spi;
use pgrx::pg_sys;
use pgrx::prelude::PgSqlErrorCode;
use pgrx::spi::{quote_identifier, quote_literal};

/// What a graph is to be made of; names are checked.
pub struct Plan<'a> {
    /// Its name.
    pub name: &'a str,
    /// The edge table.
    pub edges: pg_sys::Oid,
    /// Name and number of the source's column.
    pub source: (&'a str, i16),
    /// Name and number of the target's column.
    pub target: (&'a str, i16),
    /// Name of the weight's column.
    pub weight: Option<&'a str>,
    /// The node table.
    pub nodes: Option<pg_sys::Oid>,
    /// Name and number of its key's column.
    pub node_key: Option<(&'a str, i16)>,
    /// Name of its type's column.
    pub node_type: Option<&'a str>,
    /// Name and number of the depth's column, when the edge table is a closure table of the user's: its rows of
    /// depth 1 are edges, those of depth 0 nodes.
    pub depth: Option<(&'a str, i16)>,
    /// What keys are.
    pub kind: KeyKind,
    /// Collation of text keys.
    pub collation: pg_sys::Oid,
    /// The largest depth that is kept.
    pub max_depth: Option<i32>,
}

/// The tables of a new graph.
pub struct Made {
    /// Its id.
    pub graph_id: i32,
    /// The node directory.
    pub metagraph: pg_sys::Oid,
    /// The components.
    pub components: pg_sys::Oid,
    /// The closure.
    pub closure: pg_sys::Oid,
    /// Its parts, by shard.
    pub parts: Vec<(i32, pg_sys::Oid)>,
}

/// How many different keys the rows of a part have.
pub struct Distinct {
    /// Its rows.
    pub rows: u64,
    /// Nodes that they begin at.
    pub ancestors: u64,
    /// Nodes that they end at.
    pub descendants: u64,
}

/// `foreshard."<graph><suffix>"`.
pub(super) fn own_name(graph: &str, suffix: &str) -> String {
    format!("foreshard.{}", quote_identifier(format!("{graph}{suffix}")))
}

pub(super) fn oid_of(name: &str) -> PgResult<pg_sys::Oid> {
    spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[name.into()])?
        .ok_or_else(|| internal(format!("{name} was not made")))
}

/// The functions must have names of their own: another graph's would not be told from them by its arguments.
///
/// # Errors
/// 42723.
pub fn require_free_names(plan: &Plan) -> PgResult<()> {
    let taken = spi::one::<String>(
        "SELECT p.oid::regprocedure::text FROM foreshard.graph_functions($1::name, $2::regtype) f \
         JOIN pg_catalog.pg_proc p ON p.pronamespace = 'foreshard'::regnamespace \
             AND p.proname = pg_catalog.substring(f, 'foreshard.\"?([^\"(]*)') LIMIT 1",
        &[plan.name.into(), plan.kind.type_oid().into()],
    )?;
    match taken {
        None => Ok(()),
        Some(taken) => Err(error(
            PgSqlErrorCode::ERRCODE_DUPLICATE_FUNCTION,
            format!("a function of graph \"{}\" would have the name of {taken}", plan.name),
        )
        .set_hint("Choose another name.")),
    }
}

/// Makes the empty tables and registers the graph. As the extension's owner.
pub fn tables(plan: &Plan, shards: &[ShardRow]) -> PgResult<Made> {
    let key = key_type(plan)?;
    let (metagraph, components, closure) = (
        own_name(plan.name, "_metagraph"),
        own_name(plan.name, "_component"),
        own_name(plan.name, "_closure"),
    );
    let run = |sql: String| spi::run(&sql, &[]);
    run(format!(
        "CREATE TABLE {metagraph} (node {key} NOT NULL, shard_id int NOT NULL, component bigint NOT NULL, \
         type text, influence_score float8, access_score float8, version bigint NOT NULL DEFAULT 1, \
         betweenness float8, accessed_at timestamptz) USING heap WITH (fillfactor = 80)"
    ))?;
    run(format!(
        "CREATE TABLE {components} (component bigint NOT NULL, parent bigint, changes bigint NOT NULL DEFAULT 0) \
         USING heap WITH (fillfactor = 50)"
    ))?;
    run(format!(
        "CREATE TABLE {closure} (ancestor {key} NOT NULL, descendant {key} NOT NULL, depth int NOT NULL, \
         ancestor_shard int NOT NULL, descendant_shard int NOT NULL) PARTITION BY LIST (ancestor_shard)"
    ))?;
    let (metagraph, components, closure) = (oid_of(&metagraph)?, oid_of(&components)?, oid_of(&closure)?);
    let mut parts = Vec::with_capacity(shards.len());
    for shard in shards {
        parts.push((shard.shard_id, part(plan.name, shard.shard_id)?));
    }
    let graph_id = register(plan, metagraph, components, closure)?;
    for (shard_id, table) in &parts {
        spi::run(
            "INSERT INTO foreshard.graph_partition (graph_id, shard_id, partition) VALUES ($1, $2, $3::regclass)",
            &[graph_id.into(), (*shard_id).into(), (*table).into()],
        )?;
    }
    Ok(Made { graph_id, metagraph, components, closure, parts })
}

fn key_type(plan: &Plan) -> PgResult<String> {
    let name = plan.kind.type_name();
    if plan.kind != KeyKind::Text {
        return Ok(name.to_owned());
    }
    // The same as the edges', so that both can be compared without naming a collation.
    let collation = spi::one::<String>(
        "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname) \
         FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = $1",
        &[plan.collation.into()],
    )?;
    Ok(match collation {
        Some(collation) => format!("{name} COLLATE {collation}"),
        None => name.to_owned(),
    })
}

/// Makes the part of a closure for the ancestors on a shard, in the shard's tablespace, without indexes.
fn part(graph: &str, shard_id: i32) -> PgResult<pg_sys::Oid> {
    let (closure, name) = (own_name(graph, "_closure"), own_name(graph, &format!("_closure_s{shard_id}")));
    let space = tablespace(shard_id)?;
    spi::run(
        &format!(
            "CREATE TABLE {name} PARTITION OF {closure} FOR VALUES IN ({shard_id}) USING heap WITH (fillfactor = 90) TABLESPACE {space}"
        ),
        &[],
    )?;
    oid_of(&name)
}

fn register(
    plan: &Plan,
    metagraph: pg_sys::Oid,
    components: pg_sys::Oid,
    closure: pg_sys::Oid,
) -> PgResult<i32> {
    spi::one_mut::<i32>(
        "INSERT INTO foreshard.graph (graph_name, edge_table, source_column, target_column, weight_column, node_table, \
             node_key_column, node_type_column, key_type, max_depth, metagraph, components, closure, depth_column) \
         VALUES ($1::name, $2::regclass, $3::name, $4::name, $5::name, $6::regclass, $7::name, $8::name, $9::regtype, $10, \
             $11::regclass, $12::regclass, $13::regclass, $14::name) RETURNING graph_id",
        &[
            plan.name.into(),
            plan.edges.into(),
            plan.source.0.into(),
            plan.target.0.into(),
            plan.weight.into(),
            plan.nodes.into(),
            plan.node_key.map(|(name, _)| name).into(),
            plan.node_type.into(),
            plan.kind.type_oid().into(),
            plan.max_depth.into(),
            metagraph.into(),
            components.into(),
            closure.into(),
            plan.depth.map(|(name, _)| name).into(),
        ],
    )?
    .ok_or_else(|| internal("no graph id"))
}

/// Notes that the influence of the nodes has just been looked at, when a graph is made.
pub fn first_influence(graph_id: i32) -> PgResult<()> {
    spi::run("INSERT INTO foreshard.graph_influence (graph_id) VALUES ($1)", &[graph_id.into()])?;
    Ok(())
}

/// Tells ANALYZE how many different keys the filled parts have, in the order of the parts, and all of them together; as
/// shares of the rows, so that it stays right while they become more. As the extension's owner.
pub fn tell_distinct(made: &Made, parts: &[Distinct]) -> PgResult<()> {
    let set = |table: pg_sys::Oid, option: &str, rows: u64, keys: [u64; 2]| -> PgResult<()> {
        for (column, keys) in ["ancestor", "descendant"].into_iter().zip(keys) {
            if keys == 0 || rows == 0 {
                continue;
            }
            let share = (keys as f64 / rows as f64).min(1.0);
            let table = name_of(table)?;
            spi::run(&format!("ALTER TABLE {table} ALTER COLUMN {column} SET ({option} = -{share})"), &[])?;
        }
        Ok(())
    };
    for ((_, table), part) in made.parts.iter().zip(parts) {
        set(*table, "n_distinct", part.rows, [part.ancestors, part.descendants])?;
    }
    // Every node has a row with itself.
    let rows = parts.iter().map(|part| part.rows).sum();
    let nodes = parts.iter().map(|part| part.ancestors).sum();
    set(made.closure, "n_distinct_inherited", rows, [nodes, nodes])
}

/// Keys and indexes of the filled tables, and their owner. As the extension's owner.
pub fn finish_tables(plan: &Plan, made: &Made, owner: pg_sys::Oid) -> PgResult<()> {
    let (metagraph, components, closure) =
        (name_of(made.metagraph)?, name_of(made.components)?, name_of(made.closure)?);
    let run = |sql: String| spi::run(&sql, &[]);
    run(format!("ALTER TABLE {metagraph} ADD PRIMARY KEY (node)"))?;
    run(format!("ALTER TABLE {components} ADD PRIMARY KEY (component)"))?;
    for (_, table) in &made.parts {
        part_indexes(*table)?;
    }
    let owner_name = role_name(owner)?;
    let mut all: Vec<pg_sys::Oid> = made.parts.iter().map(|(_, table)| *table).collect();
    all.extend([made.closure, made.metagraph, made.components]);
    for table in &all {
        hand_over(*table, &owner_name)?;
    }
    for table in [made.closure, made.metagraph, made.components] {
        drop_with(table, plan.edges);
    }
    let of = |what: &str| format!("{what} of graph {}.", plan.name);
    for (table, what) in [
        (&closure, "Closure (every path's ends and the edges of a shortest one)"),
        (&metagraph, "Nodes"),
        (&components, "Internal: which changes wait for one another,"),
    ] {
        run(format!("COMMENT ON TABLE {table} IS {}", quote_literal(of(what))))?;
    }
    Ok(())
}

/// Gives a graph's closure a part for a shard that has none yet; readers and writers go on meanwhile. As the
/// extension's owner.
pub fn add_part(graph: &Graph, graph_id: i32, shard_id: i32) -> PgResult<()> {
    let owner = role_name(graph.owner)?;
    let name = own_name(&graph.name, &format!("_closure_s{shard_id}"));
    let (closure, space) = (&graph.closure_name, tablespace(shard_id)?);
    let run = |sql: String| spi::run(&sql, &[]);
    run(format!(
        "CREATE TABLE {name} (LIKE {closure}) USING heap WITH (fillfactor = 90) TABLESPACE {space}"
    ))?;
    part_indexes(oid_of(&name)?)?;
    hand_over(oid_of(&name)?, &owner)?;
    // Attached, not made in place: that would keep readers out.
    run(format!("ALTER TABLE {closure} ATTACH PARTITION {name} FOR VALUES IN ({shard_id})"))?;
    spi::run(
        "INSERT INTO foreshard.graph_partition (graph_id, shard_id, partition) VALUES ($1, $2, $3::regclass)",
        &[graph_id.into(), shard_id.into(), oid_of(&name)?.into()],
    )?;
    announce()
}

/// Gives a table to its owner, and nobody else a right to it: default privileges are those of the extension's owner.
pub(super) fn hand_over(table: pg_sys::Oid, owner: &str) -> PgResult<()> {
    spi::run(&format!("ALTER TABLE {} OWNER TO {owner}", name_of(table)?), &[])?;
    without_grants(table)
}

fn tablespace(shard_id: i32) -> PgResult<String> {
    let space = spi::one::<String>(
        "SELECT pg_catalog.quote_ident(tablespace_name) FROM foreshard.shard WHERE shard_id = $1 AND node_name = 'local'",
        &[shard_id.into()],
    )?;
    space.ok_or_else(|| elsewhere(&shard_id.to_string()))
}

/// Says that a closure has no part on a shard of another server, where only a worker makes tables.
pub fn not_yet(graph: &str) -> pg_sys::panic::ErrorReport {
    wrong_state(format!("the closure of graph \"{graph}\" has no part on that shard yet"))
        .set_detail("The shard is on another server, where only a worker makes tables.")
        .set_hint("Move nodes there by a worker first: SELECT foreshard.move_nodes(...).")
}

/// Says that no part of a closure can be on a shard.
pub fn elsewhere(shard: &str) -> pg_sys::panic::ErrorReport {
    unsupported(format!("shard \"{shard}\" is a node of a Citus cluster"))
        .set_detail("Parts of a graph's closure are on shards of this server and of nodes of postgres_fdw.")
}

/// Both indexes of a part. With the depth in them, each answers by itself what a node reaches or what reaches it, and
/// how far away; a query that reaches nodes through the directory asks for the shard as well. What reaches a node is
/// often very much, so depths come in order there.
pub fn part_indexes(table: pg_sys::Oid) -> PgResult<()> {
    let name = name_of(table)?;
    spi::run(
        &format!("CREATE UNIQUE INDEX ON {name} (ancestor, descendant) INCLUDE (depth, ancestor_shard)"),
        &[],
    )?;
    let key = spi::one::<String>(
        "SELECT pg_catalog.quote_ident(c.relname) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1",
        &[table.into()],
    )?;
    // Publications of all tables take it in, and it is changed row by row.
    let key = key.ok_or_else(|| internal("a part's index was not made"))?;
    spi::run(&format!("ALTER TABLE {name} REPLICA IDENTITY USING INDEX {key}"), &[])?;
    // The ancestor is not part of the key: ties are then broken by place, which is cheaper to sort by.
    spi::run(&format!("CREATE INDEX ON {name} (descendant, depth) INCLUDE (ancestor)"), &[])?;
    Ok(())
}

pub(super) fn role_name(role: pg_sys::Oid) -> PgResult<String> {
    spi::one::<String>(
        "SELECT pg_catalog.quote_ident(rolname) FROM pg_catalog.pg_roles WHERE oid = $1",
        &[role.into()],
    )?
    .ok_or_else(|| internal("the table's owner is gone"))
}

/// Makes the indexes that looking up edges and nodes needs, unless there are such; their names.
pub fn edge_indexes(plan: &Plan, graph_id: i32) -> PgResult<Vec<String>> {
    let (source, target) = (plan.source, plan.target);
    let at_depth = |depth| plan.depth.map(|(column, _)| super::at_depth(column, depth));
    let mut wanted = vec![
        (plan.edges, source, Some(target), at_depth(EDGE_DEPTH)),
        (plan.edges, target, Some(source), at_depth(EDGE_DEPTH)),
    ];
    if let (Some(nodes), Some(key)) = (plan.nodes, plan.node_key) {
        wanted.push((nodes, key, None, at_depth(NODE_DEPTH)));
    }
    let mut made = Vec::new();
    for (table, first, second, which) in wanted {
        if find_index(table, first.1, second.map_or(0, |second| second.1), which.as_deref())?.is_some() {
            continue;
        }
        let which = which.map(|which| format!(" WHERE {which}")).unwrap_or_default();
        let columns: Vec<String> =
            [Some(first), second].into_iter().flatten().map(|(name, _)| quote_identifier(name)).collect();
        let name = quote_identifier(format!("foreshard_graph_{graph_id}_{}", made.len() + 1));
        let columns = columns.join(", ");
        spi::run(&format!("CREATE INDEX {name} ON {} ({columns}){which}", name_of(table)?), &[])?;
        let schema = spi::one::<String>(
            "SELECT pg_catalog.quote_ident(n.nspname) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = $1",
            &[table.into()],
        )?
        .unwrap_or_default();
        let full = format!("{schema}.{name}");
        made.push(full);
    }
    Ok(made)
}

/// The triggers that keep the closure, on the edge table and on the node table. They fire whatever the
/// session's replication role is.
pub fn triggers(plan: &Plan, graph_id: i32) -> PgResult<()> {
    let tables = [Some((plan.edges, "edges")), plan.nodes.map(|nodes| (nodes, "nodes"))];
    for (table, role) in tables.into_iter().flatten() {
        let table = name_of(table)?;
        for (event, rows) in [
            ("INSERT OR UPDATE OR DELETE", ""),
            ("INSERT", "REFERENCING NEW TABLE AS new_rows"),
            ("UPDATE", "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
            ("DELETE", "REFERENCING OLD TABLE AS old_rows"),
            ("TRUNCATE", ""),
        ] {
            let (when, suffix) = if event.contains(' ') { ("BEFORE", "begin") } else { ("AFTER", event) };
            let name =
                quote_identifier(format!("foreshard_graph_{graph_id}_{role}_{}", suffix.to_lowercase()));
            spi::run(
                &format!(
                    "CREATE TRIGGER {name} {when} {event} ON {table} {rows} FOR EACH STATEMENT \
                     EXECUTE FUNCTION foreshard.graph_changed('{graph_id}', '{role}')"
                ),
                &[],
            )?;
            spi::run(&format!("ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}"), &[])?;
        }
    }
    Ok(())
}

/// Statistics of the filled tables, so that the first plans are good. As their owner.
pub fn analyze(made: &Made) -> PgResult<()> {
    for table in [made.closure, made.metagraph, made.components] {
        spi::run(&format!("ANALYZE {}", name_of(table)?), &[])?;
    }
    Ok(())
}

/// Drops everything that a graph is made of, whatever of it is left. As the extension's owner.
pub fn drop_all(graph_id: i32) -> PgResult<()> {
    // One statement each, made by the server with its own quoting.
    let statements = spi::rows(
        "SELECT s FROM foreshard.graph g, LATERAL ( \
             SELECT 1, pg_catalog.format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass) FROM pg_catalog.pg_trigger t \
             WHERE t.tgrelid IN (g.edge_table, g.node_table) AND NOT t.tgisinternal \
               AND t.tgfoid = 'foreshard.graph_changed'::regproc \
               AND t.tgargs LIKE pg_catalog.convert_to(g.graph_id::text, 'SQL_ASCII') || '\\000%'::bytea \
             UNION ALL SELECT 2, pg_catalog.format('DROP FUNCTION %s', p.oid::regprocedure) FROM pg_catalog.pg_proc p \
             WHERE p.oid IN (SELECT pg_catalog.to_regprocedure(f) FROM foreshard.graph_functions(g.graph_name, g.key_type) f) \
             UNION ALL SELECT 2, pg_catalog.format('DROP FOREIGN TABLE IF EXISTS foreshard.remote_inbox_%1$s, foreshard.remote_marks_%1$s', r.remote_id) \
             FROM foreshard.graph_partition q JOIN foreshard.remote_table r ON r.partition = q.partition WHERE q.graph_id = g.graph_id \
             UNION ALL SELECT 3, pg_catalog.format('DROP TABLE %s', c.oid::regclass) FROM pg_catalog.pg_class c \
             WHERE c.oid IN (g.closure, g.metagraph, g.components) \
             UNION ALL SELECT 4, pg_catalog.format('DROP INDEX %s', c.oid::regclass) FROM pg_catalog.pg_class c \
             JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid \
             WHERE i.indrelid IN (g.edge_table, g.node_table) AND c.relname::text ~ ('^foreshard_graph_' || g.graph_id || '_[0-9]+$')) AS d (step, s) \
         WHERE g.graph_id = $1 ORDER BY d.step, d.s",
        &[graph_id.into()],
        |row| row.need::<String>(1),
    )?;
    for statement in statements {
        spi::run(&statement, &[])?;
    }
    spi::run("DELETE FROM foreshard.graph WHERE graph_id = $1", &[graph_id.into()])?;
    announce()
}

/// Lets every session read its graphs again.
pub fn announce() -> PgResult<()> {
    if let Some(table) = spi::one::<pg_sys::Oid>("SELECT 'foreshard.graph'::regclass::oid", &[])? {
        announce_change(table);
    }
    Ok(())
}
