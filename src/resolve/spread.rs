//! Which keys are asked for where.

use super::network::Group;
use crate::catalog::data_source::{self, ShardMap, Source};
use crate::catalog::{colocation, graph};
use crate::pg::partition::{Lifetime, Router};
use crate::pg::report::PgResult;
use crate::pg::{query, reading, security};
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// The keys of every group, in the order of the groups. A key of which nobody knows where it lives is asked for
/// everywhere: that is dearer, but never misses it.
///
/// # Errors
/// SQLSTATE and message of what is no key.
pub fn spread(
    source: &Source,
    groups: &[Group],
    keys: &[&str],
) -> Result<Vec<Vec<String>>, (String, String)> {
    let own = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<String>>();
    if groups.len() <= 1 {
        return Ok(vec![own(keys); groups.len()]);
    }
    let keys = own(keys);
    let look = || {
        data_source::set_forms()?;
        locate(source, &keys)
    };
    let located = reading::look(None, look).map_err(|caught| (caught.sqlstate, caught.message))?;
    let mut spread = vec![Vec::new(); groups.len()];
    for key in keys {
        let home = located.get(&key).and_then(|shard| groups.iter().position(|g| g.shards.contains(shard)));
        for (number, own) in spread.iter_mut().enumerate() {
            if home.is_none_or(|home| home == number) {
                own.push(key.clone());
            }
        }
    }
    Ok(spread)
}

/// The shard of every key that has one.
fn locate(source: &Source, keys: &[String]) -> PgResult<HashMap<String, String>> {
    match source.map {
        ShardMap::None => Ok(HashMap::new()),
        ShardMap::Table(table) => by_partitions(source, table, keys),
        ShardMap::Graph(id) => by_directory(id, keys),
    }
}

fn by_partitions(
    source: &Source,
    table: pgrx::pg_sys::Oid,
    keys: &[String],
) -> PgResult<HashMap<String, String>> {
    let managed = {
        let _owner = security::as_extension_owner()?;
        colocation::managed(table)?.is_some()
    };
    if !managed {
        return Ok(HashMap::new());
    }
    let element = query::element_of(source.key_array)?;
    let mut router = Router::of(table, Lifetime::Statement)?;
    let mut shards: HashMap<u32, Option<String>> = HashMap::new();
    let mut located = HashMap::new();
    for key in keys {
        let Some(leaf) = router.leaf(Some((query::value(element, key), element)))? else { continue };
        let shard = match shards.entry(leaf.to_u32()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let _owner = security::as_extension_owner()?;
                unknown.insert(colocation::shard_of_partition(leaf)?)
            }
        };
        if let Some(shard) = shard {
            located.insert(key.clone(), shard.clone());
        }
    }
    Ok(located)
}

fn by_directory(graph_id: i32, keys: &[String]) -> PgResult<HashMap<String, String>> {
    let graph = graph::by_id(graph_id)?;
    let names: HashMap<i32, String> = {
        let _owner = security::as_extension_owner()?;
        colocation::shards()?.into_iter().map(|shard| (shard.shard_id, shard.name)).collect()
    };
    let _owner = security::as_restricted_owner(graph.owner);
    let found = data_source::shards_of_nodes(&graph.metagraph_name, graph.kind.type_name(), keys)?;
    Ok(found.into_iter().filter_map(|(node, shard)| Some((node, names.get(&shard)?.clone()))).collect())
}
