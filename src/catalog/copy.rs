//! The statements that fill a shadow: chunks of the source without logged keys, and replay by state.
//! They run as the table's owner under a security-restricted operation (index expressions, operators
//! and types may be the owner's own code).

use super::name_of;
use super::shadow::RelationRow;
use crate::pg::load::{self, Filled, Target};
use crate::pg::report::{PgResult, internal, wrong_state};
use crate::pg::{lock, security, spi};
use pgrx::pg_sys;

/// Size up to which a log with dead entries is scanned in well under a millisecond, bytes.
const MAX_IDLE_LOG_BYTES: i64 = 256 * 1024;
/// About a hundred thousand entries.
const LONG_LOG_BYTES: i64 = 4 << 20;

/// The texts both kinds of statement are made of.
pub struct CopyPlan {
    source: String,
    shadow: String,
    log: String,
    columns: Vec<String>,
    key_names: Vec<String>,
    operators: Vec<String>,
    owner: pg_sys::Oid,
    source_oid: pg_sys::Oid,
    shadow_oid: pg_sys::Oid,
    /// Attribute numbers that both copies store.
    pub stored: Vec<i16>,
}

/// Prepares the statements for one relation.
pub fn plan(row: &RelationRow) -> PgResult<CopyPlan> {
    let columns = spi::rows(
        "SELECT pg_catalog.quote_ident(attname), attnum FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated <> 'v' ORDER BY attnum",
        &[row.source.into()],
        |r| Ok((r.need::<String>(1)?, r.need::<i16>(2)?)),
    )?;
    // The equality of the identity index's own operator class, whatever schema it lives in.
    let keys = spi::rows(
        "SELECT pg_catalog.quote_ident(a.attname), format('OPERATOR(%I.%s)', n.nspname, o.oprname) \
         FROM foreshard.move_relation r JOIN pg_catalog.pg_index i ON i.indexrelid = r.identity_index \
         CROSS JOIN LATERAL ROWS FROM (pg_catalog.unnest(i.indkey::int2[]), pg_catalog.unnest(i.indclass::oid[])) WITH ORDINALITY k (attnum, opclass, n) \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
         JOIN pg_catalog.pg_opclass c ON c.oid = k.opclass \
         JOIN pg_catalog.pg_amop p ON p.amopfamily = c.opcfamily AND p.amoplefttype = c.opcintype AND p.amoprighttype = c.opcintype AND p.amopstrategy = 3 \
         JOIN pg_catalog.pg_operator o ON o.oid = p.amopopr JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace \
         WHERE r.source = $1 AND r.shadow = $2 AND k.n <= i.indnkeyatts ORDER BY k.n",
        &[row.source.into(), row.shadow.into()],
        |r| Ok((r.need::<String>(1)?, r.need::<String>(2)?)),
    )?;
    if keys.len() != row.key.len() || keys.is_empty() {
        return Err(internal("the identity index of the moving partition changed"));
    }
    Ok(CopyPlan {
        source: name_of(row.source)?,
        shadow: name_of(row.shadow)?,
        log: name_of(row.log)?,
        stored: columns.iter().map(|(_, attnum)| *attnum).collect(),
        columns: columns.into_iter().map(|(name, _)| name).collect(),
        key_names: keys.iter().map(|(name, _)| name.clone()).collect(),
        operators: keys.into_iter().map(|(_, operator)| operator).collect(),
        owner: security::relation_owner(row.source)?,
        source_oid: row.source,
        shadow_oid: row.shadow,
    })
}

impl CopyPlan {
    fn key_match(&self, log_alias: &str, row_alias: &str) -> String {
        self.key_names
            .iter()
            .zip(&self.operators)
            .enumerate()
            .map(|(i, (name, operator))| format!("{log_alias}.k{} {operator} {row_alias}.{name}", i + 1))
            .collect::<Vec<_>>()
            .join(" AND ")
    }

    fn prefixed(&self, alias: &str) -> String {
        self.columns.iter().map(|c| format!("{alias}.{c}")).collect::<Vec<_>>().join(", ")
    }

    fn distinct_keys(&self) -> String {
        let columns = (1..=self.key_names.len()).map(|i| format!("k{i}")).collect::<Vec<_>>().join(", ");
        format!("(SELECT DISTINCT {columns} FROM {}) l", self.log)
    }

    /// Copies blocks [first, last) behind the blocks that the shadow had after the last chunk. Rows whose key is logged are
    /// left to the replay: the bare shadow then holds only versions that existed at capture, so its keys are unique.
    ///
    /// They are stored frozen. Nobody reads them before the cutover has waited for every snapshot that is older than
    /// the last of them, so nobody could tell; a chunk that fails leaves them behind its first block, where the next one finds
    /// them. What it leaves in a toast table would stay for ever, so tables with toasted values are copied without.
    pub fn chunk(&self, first: i64, last: i64, shadow_blocks: i64) -> PgResult<Filled> {
        let frozen = self.freezes()?;
        let _guard = security::as_restricted_owner(self.owner);
        let rows = format!(
            "ONLY {} s WHERE s.ctid >= '({first},0)'::tid AND s.ctid < '({last},0)'::tid \
               AND NOT EXISTS (SELECT FROM {} l WHERE {})",
            self.source,
            self.log,
            self.key_match("l", "s")
        );
        let Some(frozen) = frozen else {
            if shadow_blocks > 0 {
                return Err(wrong_state(format!(
                    "somebody has altered {}, the copy of a partition",
                    self.shadow
                )));
            }
            return Ok(Filled { rows: self.insert_from(&rows)?, blocks: 0 });
        };
        let from_block = u32::try_from(shadow_blocks).map_err(internal)?;
        let target = Target { table: self.shadow_oid, columns: &self.stored, from_block, frozen };
        load::fill(&target, &format!("SELECT {} FROM {rows}", self.prefixed("s")))
    }

    /// Whether rows are stored frozen; None: they cannot be stored by the page. Only a plain heap can whose indexes are not built
    /// yet, which is the copy of a move or merge; the staging table of a split routes its rows.
    fn freezes(&self) -> PgResult<Option<bool>> {
        let found = spi::rows(
            "SELECT c.relkind = 'r' AND a.amhandler = 'pg_catalog.heap_tableam_handler'::pg_catalog.regproc AND NOT c.relhastriggers \
                    AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisready), \
                 (s.reltoastrelid = 0 OR pg_catalog.pg_relation_size(s.reltoastrelid) = 0) \
                     AND (c.reltoastrelid = 0 OR pg_catalog.pg_relation_size(c.reltoastrelid) = 0) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_am a ON a.oid = c.relam, pg_catalog.pg_class s WHERE c.oid = $1 AND s.oid = $2",
            &[self.shadow_oid.into(), self.source_oid.into()],
            |row| Ok((row.need::<bool>(1)?, row.need::<bool>(2)?)),
        )?;
        Ok(found.first().and_then(|(bare, frozen)| bare.then_some(*frozen)))
    }

    /// Makes the shadow equal to the source for every key logged by this transaction's snapshot (one
    /// snapshot for all three statements), and forgets those log entries. Returns log entries replayed. Between the
    /// statements, which may take long, it gives way (55006).
    pub fn replay(&self) -> PgResult<u64> {
        let (keys, shadow, source) = (self.distinct_keys(), &self.shadow, &self.source);
        let doomed = format!("DELETE FROM {shadow} t USING {keys} WHERE {}", self.key_match("l", "t"));
        let guard = security::as_restricted_owner(self.owner);
        spi::run(&doomed, &[])?;
        drop(guard);
        lock::give_way()?;
        let rows = format!("{keys} JOIN ONLY {source} s ON {}", self.key_match("l", "s"));
        let guard = security::as_restricted_owner(self.owner);
        self.insert_from(&rows)?;
        drop(guard);
        lock::give_way()?;
        let _guard = security::as_restricted_owner(self.owner);
        spi::run(&format!("DELETE FROM {}", self.log), &[])
    }

    /// As [`replay`](Self::replay), for a few keys under a lock: one index look-up per key whatever the
    /// planner believes about tables that were never analysed.
    pub fn replay_few(&self) -> PgResult<u64> {
        super::prefer_index_plans()?;
        let _guard = security::as_restricted_owner(self.owner);
        let (keys, shadow, source) = (self.distinct_keys(), &self.shadow, &self.source);
        let doomed = format!(
            "DELETE FROM {shadow} t USING (SELECT x.* FROM {keys} CROSS JOIN LATERAL \
                 (SELECT c.tableoid AS heap, c.ctid AS row FROM {shadow} c WHERE {} LIMIT 1) x OFFSET 0) d \
             WHERE t.ctid = d.row AND t.tableoid = d.heap",
            self.key_match("l", "c")
        );
        spi::run(&doomed, &[])?;
        let rows = format!(
            "{keys} CROSS JOIN LATERAL (SELECT * FROM ONLY {source} c WHERE {} LIMIT 1) s",
            self.key_match("l", "c")
        );
        self.insert_from(&rows)?;
        spi::run(&format!("DELETE FROM {}", self.log), &[])
    }

    /// Inserts into the shadow the rows `s` of a FROM list.
    fn insert_from(&self, from: &str) -> PgResult<u64> {
        spi::run(
            &format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {from}",
                self.shadow,
                self.columns.join(", "),
                self.prefixed("s")
            ),
            &[],
        )
    }

    /// Gives the log an empty file when it is empty but large: the cutover looks at it under a lock.
    /// Writers keep their lock on the log to the end of their transaction, so with ACCESS EXCLUSIVE in
    /// hand nothing uncommitted is in it. Not now: nothing happens.
    pub fn compact_log(&self, log: pg_sys::Oid) -> PgResult<()> {
        let _ = lock::current_xid();
        if super::relation::bytes(log)? <= MAX_IDLE_LOG_BYTES
            || !lock::try_lock_all(&[log], lock::ACCESS_EXCLUSIVE)
            || self.pending(1)? > 0
        {
            return Ok(());
        }
        spi::run(&format!("TRUNCATE {}", self.log), &[])?;
        Ok(())
    }

    /// Entries of the log now, counted up to `limit`.
    pub fn pending(&self, limit: i64) -> PgResult<i64> {
        Ok(spi::one::<i64>(
            &format!("SELECT count(*) FROM (SELECT FROM {} LIMIT $1) q", self.log),
            &[limit.into()],
        )?
        .unwrap_or(0))
    }
}

/// Whether so much was logged that looking for what is left of it takes some milliseconds.
pub fn has_long_file(log: pg_sys::Oid) -> PgResult<bool> {
    Ok(super::relation::bytes(log)? > LONG_LOG_BYTES)
}

/// Logs that one statement looks at.
const LOGS_AT_ONCE: usize = 64;

/// Whether one of some logs has an entry now; in few statements, because users wait.
pub fn have_entries(logs: &[pg_sys::Oid]) -> PgResult<bool> {
    for some in logs.chunks(LOGS_AT_ONCE) {
        let looks = some.iter().map(|log| Ok(format!("SELECT 1 FROM {}", name_of(*log)?)));
        let looks = looks.collect::<PgResult<Vec<String>>>()?.join(" UNION ALL ");
        if spi::one::<bool>(&format!("SELECT EXISTS ({looks})"), &[])?.unwrap_or(false) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Mean size of the rows that were copied, with what lay between them, bytes.
pub fn row_bytes(move_id: i64) -> PgResult<f64> {
    let bytes = spi::one::<f64>(
        "SELECT (sum(blocks_done) * pg_catalog.current_setting('block_size')::int8 / nullif(sum(rows_done), 0))::float8 \
         FROM foreshard.move_relation WHERE move_id = $1",
        &[move_id.into()],
    )?;
    Ok(bytes.unwrap_or(0.0))
}

/// Stores the progress of a copy, in the transaction that copied.
pub fn set_progress(move_id: i64, source: pg_sys::Oid, blocks_done: i64, filled: &Filled) -> PgResult<()> {
    let (rows, shadow_blocks) = (filled.rows as i64, i64::from(filled.blocks));
    spi::run(
        "UPDATE foreshard.move_relation SET blocks_done = $3, rows_done = rows_done + $4, shadow_blocks = $5 WHERE move_id = $1 AND source = $2",
        &[move_id.into(), source.into(), blocks_done.into(), rows.into(), shadow_blocks.into()],
    )?;
    Ok(())
}
