//! Source and copy of one partition, either of which is on a node, and the statements between them.
//!
//! A copy on a node is written through its inbox, which deletes or inserts a row per row that comes in; together with
//! the row of its state, so that two transactions of ours exclude each other there and a chunk whose commit was not
//! heard of is not copied twice. A source on a node logs its changes there, in the transactions that make them.

use super::make::quoted;
use super::{RemoteRow, Shape, behind, shape};
use crate::catalog::link::Link;
use crate::catalog::name_of;
use crate::catalog::shadow::RelationRow;
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi};
use pgrx::pg_sys;

/// A partition on one side.
pub struct Side {
    /// The table here: a heap, or a foreign table.
    pub relation: pg_sys::Oid,
    /// Its qualified name.
    pub name: String,
    /// What is behind it on a node.
    pub remote: Option<RemoteRow>,
}

impl Side {
    fn of(relation: pg_sys::Oid) -> PgResult<Side> {
        Ok(Side { relation, name: name_of(relation)?, remote: behind(relation)? })
    }

    /// Connects to its node; None: it is here.
    pub fn link(&self, role: pg_sys::Oid) -> PgResult<Option<(Link, &RemoteRow)>> {
        let Some(remote) = &self.remote else { return Ok(None) };
        Ok(Some((remote.link(role)?, remote)))
    }

    /// The connection to its node over which a lock is held; None: it is here.
    pub fn holder(&self, role: pg_sys::Oid) -> PgResult<Option<(Link, &RemoteRow)>> {
        let Some(remote) = &self.remote else { return Ok(None) };
        Ok(Some((Link::to_hold(&remote.server, role)?, remote)))
    }
}

/// Source and copy.
pub struct Pair {
    /// What the slot has now.
    pub source: Side,
    /// What it is to have, or had.
    pub copy: Side,
    /// Log of a source that is here.
    pub log: pg_sys::Oid,
    /// Its capture trigger.
    pub trigger: pg_sys::Oid,
    /// What both are like.
    pub shape: Shape,
    /// Columns of the key, quoted.
    pub keys: Vec<String>,
}

/// What one replay did.
pub struct Replayed {
    /// Keys that were made equal.
    pub keys: i64,
    /// Entries of the log on the node that may go once this is committed.
    pub forget: Option<String>,
    /// The source was emptied: the copy has to begin anew.
    pub emptied: bool,
    /// There was nothing else in the log.
    pub complete: bool,
}

/// The pair of a relation of a move; its source must still be a partition.
pub fn pair(row: &RelationRow) -> PgResult<Pair> {
    let shape = shape(row.source)?;
    Ok(Pair {
        source: Side::of(row.source)?,
        copy: Side::of(row.shadow)?,
        log: row.log,
        trigger: row.trigger,
        keys: quoted(&shape.key),
        shape,
    })
}

/// Bytes of a partition with indexes and toast, wherever it is.
pub fn bytes(partition: pg_sys::Oid) -> PgResult<i64> {
    let Some(remote) = behind(partition)? else { return crate::catalog::relation::bytes(partition) };
    let owner = security::relation_owner(remote.table)?;
    let table = super::literal(&remote.table_there());
    let size = remote.link(owner)?.one(&format!("SELECT pg_total_relation_size({table})::text"))?;
    size.and_then(|size| size.parse().ok()).ok_or_else(|| internal("the table on the node is gone"))
}

/// What hangs on a partition alone, but for our capture trigger (0, of a partition on a node, comes as NULL): the preflight has found nothing of it, and a copy would not have it.
fn own_objects(partition: pg_sys::Oid, capture: pg_sys::Oid) -> PgResult<String> {
    let own = spi::one::<String>(
        "SELECT pg_catalog.string_agg(x, ' ' ORDER BY x) FROM ( \
             SELECT format('trigger %s', oid) AS x FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal AND tgparentid = 0 AND oid IS DISTINCT FROM $2 \
             UNION ALL SELECT format('policy %s', oid) FROM pg_catalog.pg_policy WHERE polrelid = $1 \
             UNION ALL SELECT format('statistics %s', oid) FROM pg_catalog.pg_statistic_ext WHERE stxrelid = $1 \
             UNION ALL SELECT format('rule %s', oid) FROM pg_catalog.pg_rewrite WHERE ev_class = $1 \
             UNION ALL SELECT format('publication %s', oid) FROM pg_catalog.pg_publication_rel WHERE prrelid = $1) q",
        &[partition.into(), capture.into()],
    )?;
    Ok(own.unwrap_or_default())
}

impl Pair {
    fn listed(&self, alias: &str) -> String {
        self.shape.names.iter().map(|c| format!("{alias}.{c}")).collect::<Vec<_>>().join(", ")
    }

    fn matches(&self, a: &str, b: &str, numbered: bool) -> String {
        let one = |(n, key): (usize, &String)| {
            let left = if numbered { format!("{a}.k{}", n + 1) } else { format!("{a}.{key}") };
            format!("{left} OPERATOR(pg_catalog.=) {b}.{key}")
        };
        self.keys.iter().enumerate().map(one).collect::<Vec<_>>().join(" AND ")
    }

    /// Copies blocks [first, last) of the source, but for rows whose key is logged. None: the node says that this
    /// was done already, and up to where; Some: the rows.
    pub fn chunk(&self, first: i64, last: i64) -> PgResult<Result<u64, i64>> {
        let _guard = security::as_restricted_owner(self.shape.owner);
        if let Some(remote) = &self.copy.remote {
            let state = remote.aid_here("state");
            let step = format!("UPDATE {state} SET blocks = $2 WHERE blocks = $1");
            if spi::run(&step, &[first.into(), last.into()])? == 0 {
                let there = spi::one::<i64>(&format!("SELECT blocks FROM {state}"), &[])?;
                return Ok(Err(there.ok_or_else(|| internal("the copy on the node has lost its state"))?));
            }
        }
        let place = |column: &str| {
            format!("{column} >= '({first},0)'::pg_catalog.tid AND {column} < '({last},0)'::pg_catalog.tid")
        };
        let from = match &self.source.remote {
            Some(remote) => format!("{} s WHERE {}", remote.aid_here("rest"), place("s.foreshard_place")),
            None => format!(
                "ONLY {} s WHERE {} AND NOT EXISTS (SELECT FROM {} l WHERE {})",
                self.source.name,
                place("s.ctid"),
                name_of(self.log)?,
                self.matches("l", "s", true)
            ),
        };
        self.insert(&from).map(Ok)
    }

    fn insert(&self, from: &str) -> PgResult<u64> {
        let (columns, values) = (self.shape.names.join(", "), self.listed("s"));
        spi::run(&format!("INSERT INTO {} ({columns}) SELECT {values} FROM {from}", self.copy.name), &[])
    }

    /// The logged keys with the state of their rows, at the snapshot.
    fn changes(&self) -> PgResult<String> {
        if let Some(remote) = &self.source.remote {
            return Ok(remote.aid_here("changes"));
        }
        let numbered: Vec<String> = (1..=self.keys.len()).map(|n| format!("k{n}")).collect();
        let columns = self.shape.names.iter().map(|name| match self.keys.iter().position(|k| k == name) {
            Some(n) => format!("coalesce(s.{name}, l.k{}) AS {name}", n + 1),
            None => format!("s.{name}"),
        });
        let first = self.keys.first().ok_or_else(|| internal("a table without a key"))?;
        Ok(format!(
            "(SELECT s.{first} IS NOT NULL AS foreshard_present, {} FROM (SELECT DISTINCT {} FROM {}) l LEFT JOIN ONLY {} s ON {})",
            columns.collect::<Vec<_>>().join(", "),
            numbered.join(", "),
            name_of(self.log)?,
            self.source.name,
            self.matches("l", "s", true)
        ))
    }

    /// Makes the copy equal to the source for every logged key (of a log on a node: for some), all by one snapshot:
    /// the transaction is REPEATABLE READ. Deletes first, so that keys of other unique indexes may change places.
    pub fn replay(&self) -> PgResult<Replayed> {
        let guard = security::as_restricted_owner(self.shape.owner);
        let changes = self.changes()?;
        let mut forget = None;
        if self.source.remote.is_some() {
            let found = spi::rows(
                &format!(
                    "SELECT coalesce(bool_or(foreshard_all), false), \
                            '{{' || pg_catalog.string_agg(pg_catalog.array_to_string(foreshard_ids, ','), ',') || '}}' FROM {changes}"
                ),
                &[],
                |row| Ok((row.need::<bool>(1)?, row.get::<String>(2)?)),
            )?;
            match found.into_iter().next() {
                Some((true, _)) => {
                    return Ok(Replayed { keys: 0, forget: None, emptied: true, complete: false });
                }
                Some((_, None)) | None => {
                    return Ok(Replayed { keys: 0, forget: None, emptied: false, complete: true });
                }
                Some((_, ids)) => forget = ids,
            }
        } else if !crate::catalog::copy::have_entries(&[self.log])? {
            return Ok(Replayed { keys: 0, forget: None, emptied: false, complete: true });
        }
        let columns = self.shape.names.join(", ");
        let keys = match &self.copy.remote {
            Some(remote) => {
                spi::run(&format!("UPDATE {} SET blocks = blocks", remote.aid_here("state")), &[])?;
                let inbox = remote.aid_here("inbox");
                let key = self.keys.join(", ");
                let gone = format!(
                    "INSERT INTO {inbox} (foreshard_present, {key}) SELECT false, {key} FROM {changes} c"
                );
                spi::run(&gone, &[])?;
                let rows = format!(
                    "INSERT INTO {inbox} (foreshard_present, {columns}) SELECT true, {} FROM {changes} c WHERE c.foreshard_present",
                    self.listed("c")
                );
                spi::run(&rows, &[])?;
                spi::one::<i64>(&format!("SELECT count(*) FROM {changes} c"), &[])?.unwrap_or(0)
            }
            None => {
                let matches = self.matches("c", "t", false);
                spi::run(
                    &format!("DELETE FROM {} t USING {changes} c WHERE {matches}", self.copy.name),
                    &[],
                )?;
                self.insert(&format!("{changes} s WHERE s.foreshard_present"))?;
                spi::one::<i64>(&format!("SELECT count(*) FROM {changes} c"), &[])?.unwrap_or(0)
            }
        };
        if self.source.remote.is_none() {
            spi::run(&format!("DELETE FROM {}", name_of(self.log)?), &[])?;
        }
        drop(guard);
        let entries = forget.as_ref().map_or(0, |ids| ids.matches(',').count() + 1);
        Ok(Replayed { keys, forget, emptied: false, complete: entries < super::make::REPLAY_ENTRIES })
    }

    /// Forgets entries of the log on the node, whose replay is committed.
    pub fn forget(&self, ids: &str) -> PgResult<()> {
        if let Some((link, remote)) = self.source.link(self.shape.owner)? {
            link.exec(&format!(
                "DELETE FROM {} WHERE id = ANY ('{ids}'::bigint[])",
                remote.aid_there("log")
            ))?;
        }
        Ok(())
    }

    /// Makes everything that a copy on a node was given durable there, whatever `synchronous_commit` the sessions of
    /// postgres_fdw had: a commit that is flushed flushes those before it. What was read to compare it is told to the statistics, too.
    pub fn flush_there(&self) -> PgResult<()> {
        if let Some((link, remote)) = self.copy.link(self.shape.owner)? {
            link.exec(&format!(
                "SELECT pg_stat_force_next_flush(); UPDATE {} SET blocks = blocks",
                remote.aid_there("state")
            ))?;
        }
        Ok(())
    }

    /// Blocks of the source.
    pub fn blocks(&self) -> PgResult<i64> {
        if let Some((link, remote)) = self.source.link(self.shape.owner)? {
            let size = link.one(&format!(
                "SELECT (pg_relation_size({}) / current_setting('block_size')::int8)::text",
                super::literal(&remote.table_there())
            ))?;
            return size
                .and_then(|size| size.parse().ok())
                .ok_or_else(|| internal("the table on the node is gone"));
        }
        let blocks = "SELECT pg_catalog.pg_relation_size($1::regclass) / pg_catalog.current_setting('block_size')::int8";
        Ok(spi::one::<i64>(blocks, &[self.source.relation.into()])?.unwrap_or(0))
    }

    /// Notes the file of a source on a node: rows are copied by their places in it.
    pub fn note_file(&self, move_id: i64) -> PgResult<()> {
        let Some(file) = self.file_there()? else { return Ok(()) };
        spi::run(
            "UPDATE foreshard.move_relation SET file_there = $3 WHERE move_id = $1 AND source = $2",
            &[move_id.into(), self.source.relation.into(), file.as_str().into()],
        )?;
        Ok(())
    }

    /// Whether a source on a node was rewritten (VACUUM FULL, CLUSTER) since [`note_file`](Self::note_file): what was
    /// copied by place may be missing rows then. Nobody can rewrite it while the transaction that read a chunk lasts.
    pub fn was_rewritten(&self) -> PgResult<bool> {
        let Some(file) = self.file_there()? else { return Ok(false) };
        let noted = "SELECT file_there FROM foreshard.move_relation WHERE source = $1";
        Ok(spi::one::<String>(noted, &[self.source.relation.into()])? != Some(file))
    }

    fn file_there(&self) -> PgResult<Option<String>> {
        let Some((link, remote)) = self.source.link(self.shape.owner)? else { return Ok(None) };
        let file = format!("SELECT pg_relation_filenode({})::text", super::literal(&remote.table_there()));
        link.one(&file)
    }

    /// What must not change about the source while it moves; None: it is gone.
    pub fn fingerprint(&self) -> PgResult<Option<String>> {
        let here = crate::catalog::shadow::fingerprint(self.source.relation, self.trigger, self.log)?;
        let portrait = self.shape.portrait();
        let own = own_objects(self.source.relation, self.trigger)?;
        Ok(here.map(|here| format!("{here} {own} {portrait}")))
    }

    /// Ends what [`hold_there`](Self::hold_there) began.
    pub fn release_there(&self) -> PgResult<()> {
        for side in [&self.source, &self.copy] {
            let Some(remote) = &side.remote else { continue };
            if let Some(link) = Link::that_holds(&remote.server, self.shape.owner)? {
                link.exec("COMMIT")?;
            }
        }
        Ok(())
    }
}
