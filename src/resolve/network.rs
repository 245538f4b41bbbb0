//! The sources of a graph with what they are predicted to take.

use super::{memory, unknown_class};
use crate::catalog::colocation;
use crate::catalog::data_source::{self, LOCAL, ShardMap, Source};
use crate::pg::report::{PgResult, PgSqlErrorCode, error, unknown};
use crate::pg::sources::{self, Entry, Place};
use crate::pg::{guc, remote, security};
use foreshard_core::resolve::{
    Admission, Breaker, Chain, Edge, Found, Learnt, Limits, Prediction, Step, cheapest, together,
};
use pgrx::pg_sys::panic::ErrorReport;
use std::collections::HashMap;

/// Chains that are tried before it is given up.
const MAX_CHAINS: usize = 8;
/// Ways looked at in a search.
const MAX_LOOKS: usize = 50_000;

/// A place where a source is asked.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The server's name.
    pub name: String,
    /// Its oid, 0 for this server; None when there is no such server.
    pub oid: Option<u32>,
}

/// Keys of a source that are asked for at the same place.
#[derive(Clone, Debug)]
pub struct Group {
    /// The shards they live on; empty: all keys.
    pub shards: Vec<String>,
    /// The first choice, then replicas.
    pub candidates: Vec<Candidate>,
}

/// The sources of a graph, what is known of them, and where they are asked.
pub struct Network {
    graph: String,
    /// Sources, by the numbers of edges.
    pub sources: Vec<Source>,
    /// Where each is asked.
    pub groups: Vec<Vec<Group>>,
    /// Sources that are not asked for this caller.
    pub distrusted: Vec<Source>,
    classes: Vec<String>,
    edges: Vec<Edge>,
    known: HashMap<(i32, u32), Entry>,
    now_ms: f64,
}

impl Network {
    /// Reads a graph's sources.
    ///
    /// # Errors
    /// 42704 when it has none.
    pub fn read(graph: &str) -> PgResult<Network> {
        let careful = security::is_superuser();
        let _owner = security::as_extension_owner()?;
        let all = data_source::of_graph(graph)?;
        if all.is_empty() {
            return Err(unknown(format!("graph \"{graph}\" has no data sources"))
                .set_hint("Register one: SELECT foreshard.add_data_source(...)."));
        }
        // Code of somebody else's choice does not run as a superuser unless a superuser chose it.
        let trusted = |source: &Source| !careful || security::is_superuser_role(source.owner);
        let (sources, distrusted): (Vec<Source>, Vec<Source>) = all.into_iter().partition(trusted);
        let ids: Vec<i32> = sources.iter().map(|source| source.id).collect();
        let entries = memory::known(&ids)?;
        let shards: Vec<String> = colocation::shards()?.into_iter().map(|shard| shard.name).collect();
        let mut classes: Vec<String> = Vec::new();
        let mut number = |class: &str| {
            classes.iter().position(|own| own == class).unwrap_or_else(|| {
                classes.push(class.to_owned());
                classes.len() - 1
            })
        };
        let edges = sources.iter().map(|s| Edge { from: number(&s.from), to: number(&s.to) }).collect();
        Ok(Network {
            graph: graph.to_owned(),
            groups: sources.iter().map(|source| groups_of(source, &shards)).collect(),
            edges,
            classes,
            known: entries.into_iter().map(|e| ((e.place.source, e.place.server), e)).collect(),
            now_ms: sources::now_ms(),
            sources,
            distrusted,
        })
    }

    /// The cheapest chains.
    ///
    /// # Errors
    /// 42704 for a class that no source knows.
    pub fn search(&self, from: &str, to: &str, keys: f64) -> PgResult<Found> {
        self.search_with(from, to, keys, |edge, keys| self.price(edge, keys))
    }

    fn search_with(
        &self,
        from: &str,
        to: &str,
        keys: f64,
        price: impl Fn(usize, f64) -> Option<Step>,
    ) -> PgResult<Found> {
        let class = |name: &str| {
            let known = self.classes.iter().position(|own| own == name);
            known.ok_or_else(|| self.with_distrust(unknown_class(&self.graph, name)))
        };
        let limits = Limits {
            steps: guc::RESOLVE_MAX_STEPS.get().max(1) as usize,
            chains: MAX_CHAINS,
            looks: MAX_LOOKS,
        };
        Ok(cheapest(&self.edges, self.classes.len(), (class(from)?, class(to)?), keys, &limits, price))
    }

    /// What a source is predicted to take; None when it is kept out.
    fn price(&self, edge: usize, keys: f64) -> Option<Step> {
        let source = self.sources.get(edge)?;
        let groups = self.groups.get(edge)?;
        let count = groups.len().max(1) as f64;
        // Where keys live is looked up when the source is asked; until then they are spread evenly.
        let own = (keys / count).max(1.0_f64.min(keys));
        let predicted: Vec<Option<Prediction>> =
            groups.iter().map(|group| self.predict_group(source, group, own)).collect();
        let works: Vec<Prediction> = predicted.iter().copied().flatten().collect();
        if works.is_empty() || (keys >= count && works.len() < predicted.len()) {
            return None;
        }
        let all = together(works.iter().copied());
        let ms = if keys >= count {
            all.ms
        } else {
            works.iter().map(|one| one.ms).sum::<f64>() / works.len() as f64
        };
        let fan_out = if own > 0.0 { all.rows / (own * works.len() as f64) } else { 1.0 };
        Some(Step { ms, rows: keys * fan_out })
    }

    fn predict_group(&self, source: &Source, group: &Group, keys: f64) -> Option<Prediction> {
        let admitted = group.candidates.iter().find(|candidate| {
            candidate.oid.is_some_and(|oid| {
                !matches!(self.breaker(source.id, oid).look(self.now_ms), Admission::KeptOut(_))
            })
        })?;
        Some(self.predict(source, admitted, keys))
    }

    /// What asking a source at a place will take.
    pub fn predict(&self, source: &Source, candidate: &Candidate, keys: f64) -> Prediction {
        let oid = candidate.oid.unwrap_or(0);
        let learnt = self.known.get(&(source.id, oid)).map_or_else(Learnt::default, |entry| entry.learnt);
        learnt.predict(self.now_ms, source.hint_ms, keys)
    }

    fn breaker(&self, source: i32, server: u32) -> Breaker {
        self.known.get(&(source, server)).map_or_else(Breaker::default, |entry| entry.breaker)
    }

    /// The place of a candidate.
    pub fn place(&self, source: &Source, oid: u32) -> Place {
        sources::place(source.id, oid)
    }

    /// Names of a chain's sources.
    pub fn names(&self, chain: &Chain) -> Vec<String> {
        chain
            .edges
            .iter()
            .filter_map(|edge| self.sources.get(*edge))
            .map(|source| source.name.clone())
            .collect()
    }

    /// Classes of a chain, the first one included.
    pub fn classes(&self, chain: &Chain) -> Vec<String> {
        let sources: Vec<&Source> = chain.edges.iter().filter_map(|edge| self.sources.get(*edge)).collect();
        let first = sources.first().map(|source| source.from.clone());
        first.into_iter().chain(sources.iter().map(|source| source.to.clone())).collect()
    }

    /// Why a source is left out, if it is: places that are kept out.
    pub fn left_out(&self, edge: usize) -> Option<String> {
        let (source, groups) = (self.sources.get(edge)?, self.groups.get(edge)?);
        let mut reasons = Vec::new();
        for candidate in groups.iter().flat_map(|group| &group.candidates) {
            let Some(oid) = candidate.oid else {
                reasons.push(format!("server \"{}\" does not exist", candidate.name));
                continue;
            };
            let breaker = self.breaker(source.id, oid);
            if let Admission::KeptOut(until_ms) = breaker.look(self.now_ms) {
                let left_s = (until_ms - self.now_ms).max(0.0) / 1e3;
                reasons.push(format!(
                    "kept out at {} for {left_s:.1} s more after {} failures",
                    place_name(&candidate.name),
                    breaker.failures
                ));
            }
        }
        if reasons.is_empty() { None } else { Some(reasons.join("; ")) }
    }

    /// The error when no chain may be tried: there is none, or all are kept out.
    pub fn nowhere(&self, from: &str, to: &str) -> ErrorReport {
        let free = |_: usize, keys: f64| Some(Step { ms: 0.0, rows: keys });
        let there_is = self.search_with(from, to, 1.0, free).is_ok_and(|found| !found.chains.is_empty());
        if there_is {
            let out = (0..self.sources.len()).filter_map(|edge| {
                let why = self.left_out(edge)?;
                Some(format!("Data source \"{}\": {why}.", self.sources[edge].name))
            });
            return error(
                PgSqlErrorCode::ERRCODE_CANNOT_CONNECT_NOW,
                format!("every chain of data sources from class \"{from}\" to class \"{to}\" is kept out"),
            )
            .set_detail(out.collect::<Vec<_>>().join("\n"))
            .set_hint("They are tried again by themselves; foreshard.stat_data_sources shows their state.");
        }
        let nothing = format!("no chain of data sources leads from class \"{from}\" to class \"{to}\"");
        let report = unknown(nothing).set_hint("foreshard.resolve_max_steps limits the length of chains.");
        self.with_distrust(report)
    }

    /// Tells that sources are left out because of who asks.
    fn with_distrust(&self, report: ErrorReport) -> ErrorReport {
        if self.distrusted.is_empty() {
            return report;
        }
        report.set_hint("You are a superuser: sources that others own are not asked. SET ROLE helps.")
    }
}

/// A place in words.
pub fn place_name(server: &str) -> String {
    if server == LOCAL { "this server".to_owned() } else { format!("server \"{server}\"") }
}

fn candidate(name: &str) -> Candidate {
    let oid = if name == LOCAL { Some(0) } else { remote::server_oid(name) };
    Candidate { name: name.to_owned(), oid }
}

/// Where a source is asked: for a sharded one a group per shard that is elsewhere, and one for all shards that are
/// here, which are asked at once.
fn groups_of(source: &Source, shards: &[String]) -> Vec<Group> {
    let here = || vec![candidate(LOCAL)];
    if source.map == ShardMap::None {
        let named = source.servers.iter().find(|of| of.shard.is_none());
        let candidates =
            named.map_or_else(here, |of| of.servers.iter().map(|name| candidate(name)).collect());
        // A graph that was dropped says nothing about keys any more: all shards are asked.
        if named.is_some() || source.servers.is_empty() {
            return vec![Group { shards: Vec::new(), candidates }];
        }
    }
    let mut local = Group { shards: Vec::new(), candidates: here() };
    let mut groups = Vec::new();
    for shard in shards {
        match source.servers.iter().find(|of| of.shard.as_deref() == Some(shard)) {
            Some(of) if of.servers.iter().any(|name| name != LOCAL) => groups.push(Group {
                shards: vec![shard.clone()],
                candidates: of.servers.iter().map(|name| candidate(name)).collect(),
            }),
            _ => local.shards.push(shard.clone()),
        }
    }
    if !local.shards.is_empty() {
        groups.push(local);
    }
    groups
}
