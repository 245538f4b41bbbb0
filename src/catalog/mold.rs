//! How an empty table is made like a partition: columns, storage settings, defaults and CHECK constraints.

use super::relation::without_grants;
use super::shadow;
use crate::pg::report::{PgResult, internal};
use crate::pg::{security, spi};
use pgrx::pg_sys;
use pgrx::spi::quote_identifier;

/// A statement about a table: what comes before its name and what behind it.
pub(super) type Statement = (String, String);

pub(super) fn statements(sql: &str, source: pg_sys::Oid) -> PgResult<Vec<Statement>> {
    spi::rows(sql, &[source.into()], |row| Ok((row.need(1)?, row.need(2)?)))
}

pub(super) fn run_all(statements: &[Statement], name: &str) -> PgResult<()> {
    for (before, behind) in statements {
        spi::run(&format!("{before} {name} {behind}"), &[])?;
    }
    Ok(())
}

/// Columns as CREATE TABLE has them, a stand-in for every dropped one; without `constraints` and stand-ins for
/// the staging table.
pub(super) fn columns(source: pg_sys::Oid, whole: bool) -> PgResult<String> {
    let sql = "SELECT pg_catalog.string_agg(CASE WHEN a.attisdropped THEN format('\"foreshard dropped %s\" pg_catalog.\"char\"', a.attnum) \
             ELSE format('%I %s%s%s%s', a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), \
                 CASE WHEN $2 THEN CASE a.attcompression WHEN 'p' THEN ' COMPRESSION pglz' WHEN 'l' THEN ' COMPRESSION lz4' ELSE '' END ELSE '' END, \
                 CASE WHEN a.attcollation <> 0 THEN (SELECT format(' COLLATE %I.%I', n.nspname, c.collname) FROM pg_catalog.pg_collation c \
                     JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace WHERE c.oid = a.attcollation AND c.collname <> 'default') ELSE '' END, \
                 CASE WHEN $2 AND a.attnotnull THEN coalesce(' CONSTRAINT ' || pg_catalog.quote_ident(k.conname), '') || ' NOT NULL' ELSE '' END) END, ', ' ORDER BY a.attnum) \
         FROM pg_catalog.pg_attribute a LEFT JOIN pg_catalog.pg_constraint k ON k.conrelid = a.attrelid AND k.contype = 'n' AND k.conkey[1] = a.attnum \
         WHERE a.attrelid = $1 AND a.attnum > 0 AND ($2 OR NOT a.attisdropped)";
    spi::one::<String>(sql, &[source.into(), whole.into()])?
        .ok_or_else(|| internal("the partition has no columns"))
}

/// Statements that give a new table the column settings of `source`; the version that some servers keep of a
/// column among its options is the server's own business.
const SETTINGS: &str = "SELECT 'ALTER TABLE', change FROM (SELECT a.attnum AS n, 1 AS o, format('DROP COLUMN \"foreshard dropped %s\"', a.attnum) AS change \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND a.attisdropped \
     UNION ALL SELECT a.attnum, 2, format('ALTER COLUMN %I SET STORAGE %s', a.attname, \
             CASE a.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END) \
         FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attstorage <> t.typstorage \
     UNION ALL SELECT a.attnum, 3, format('ALTER COLUMN %I SET STATISTICS %s', a.attname, a.attstattarget) \
         FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND a.attstattarget >= 0 \
     UNION ALL SELECT a.attnum, 4, format('ALTER COLUMN %I SET (%s)', a.attname, pg_catalog.string_agg(option, ', ')) \
         FROM pg_catalog.pg_attribute a, pg_catalog.unnest(a.attoptions) option \
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped AND option NOT LIKE 'pg\\_attver=%' GROUP BY a.attnum, a.attname) q ORDER BY n, o";

/// Statements that add the CHECK constraints of `source`.
const CHECKS: &str = "SELECT 'ALTER TABLE', format('ADD CONSTRAINT %I %s', conname, pg_catalog.pg_get_constraintdef(oid)) \
     FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'c' ORDER BY conname";

/// Statements that add those CHECK constraints of `source` that are its table's.
const INHERITED_CHECKS: &str = "SELECT 'ALTER TABLE', format('ADD CONSTRAINT %I %s', conname, pg_catalog.pg_get_constraintdef(oid)) \
     FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'c' AND coninhcount > 0 ORDER BY conname";

/// How the copies of a partition are made.
pub(super) struct Mold {
    shape: String,
    with: String,
    settings: Vec<Statement>,
    checks: Vec<Statement>,
}

impl Mold {
    /// That of a partition.
    pub(super) fn of(source: pg_sys::Oid) -> PgResult<Mold> {
        let options = spi::one::<String>(
            "SELECT pg_catalog.string_agg(o.prefix || pg_catalog.quote_ident(o.option_name) || '=' || pg_catalog.quote_literal(o.option_value), ', ') \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid, \
                  LATERAL (SELECT '' AS prefix, * FROM pg_catalog.pg_options_to_table(c.reloptions) \
                           UNION ALL SELECT 'toast.', * FROM pg_catalog.pg_options_to_table(t.reloptions)) o WHERE c.oid = $1",
            &[source.into()],
        )?;
        let with = options.map(|options| format!(" WITH ({options})")).unwrap_or_default();
        Ok(Mold {
            shape: columns(source, true)?,
            with,
            settings: statements(SETTINGS, source)?,
            checks: statements(CHECKS, source)?,
        })
    }

    /// An empty table of that shape in our schema, a member of the extension that belongs to the owner.
    pub(super) fn make(
        &self,
        name: &str,
        source: pg_sys::Oid,
        owner: pg_sys::Oid,
        tablespace: &str,
    ) -> PgResult<pg_sys::Oid> {
        let what = format!("{} TABLESPACE {}", self.with, quote_identifier(tablespace));
        let child = self.table(name, source, owner, &what)?;
        copy_defaults(source, child)?;
        // What an expression of the owner's computes while it is looked at, it computes as the owner.
        let _guard = security::as_restricted_owner(owner);
        run_all(&self.checks, &format!("foreshard.{name}"))?;
        Ok(child)
    }

    /// A partitioned table of that shape, likewise, with what its partitions inherit; without defaults: what is copied
    /// through it must take none.
    pub(super) fn make_partitioned(
        &self,
        name: &str,
        source: pg_sys::Oid,
        owner: pg_sys::Oid,
        by: &str,
    ) -> PgResult<pg_sys::Oid> {
        let table = self.table(name, source, owner, &format!(" PARTITION BY {by}"))?;
        let checks = statements(INHERITED_CHECKS, source)?;
        let _guard = security::as_restricted_owner(owner);
        run_all(&checks, &format!("foreshard.{name}"))?;
        Ok(table)
    }

    /// `what`: the end of its CREATE TABLE.
    fn table(
        &self,
        name: &str,
        source: pg_sys::Oid,
        owner: pg_sys::Oid,
        what: &str,
    ) -> PgResult<pg_sys::Oid> {
        let full_name = format!("foreshard.{name}");
        spi::run(&format!("CREATE TABLE {full_name} ({}){what}", self.shape), &[])?;
        run_all(&self.settings, &full_name)?;
        adopt(name, source, owner)
    }
}

/// Makes a new table of ours a member of the extension that belongs to the owner of what it is a copy of.
pub(super) fn adopt(name: &str, source: pg_sys::Oid, owner: pg_sys::Oid) -> PgResult<pg_sys::Oid> {
    let oid = spi::one::<pg_sys::Oid>("SELECT $1::regclass::oid", &[format!("foreshard.{name}").into()])?
        .ok_or_else(|| internal("the new table is not there"))?;
    without_grants(oid)?;
    shadow::own(oid, source, name)?;
    // Of a table that logical decoding ignores, the toast must be ignored as well.
    spi::run(
        "UPDATE pg_catalog.pg_class SET relrewrite = $2 WHERE oid = (SELECT reltoastrelid FROM pg_catalog.pg_class WHERE oid = $1)",
        &[oid.into(), source.into()],
    )?;
    let owner_name =
        spi::one::<String>("SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid($1))", &[owner.into()])?
            .unwrap_or_default();
    spi::run(&format!("ALTER TABLE foreshard.{name} OWNER TO {owner_name}"), &[])?;
    Ok(oid)
}

/// Defaults and expressions of generated columns, copied as they are stored: nothing is evaluated. The
/// columns are not marked as generated yet: the copy stores what the source stores.
pub(super) fn copy_defaults(source: pg_sys::Oid, child: pg_sys::Oid) -> PgResult<()> {
    let copied = spi::run(
        "INSERT INTO pg_catalog.pg_attrdef (oid, adrelid, adnum, adbin) \
         SELECT pg_catalog.pg_nextoid('pg_attrdef', 'oid', 'pg_attrdef_oid_index'), $2, adnum, adbin FROM pg_catalog.pg_attrdef WHERE adrelid = $1",
        &[source.into(), child.into()],
    )?;
    if copied == 0 {
        return Ok(());
    }
    spi::run(
        "INSERT INTO pg_catalog.pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype) \
         SELECT d.classid, b.oid, d.objsubid, d.refclassid, \
                CASE WHEN d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 THEN $2 ELSE d.refobjid END, d.refobjsubid, d.deptype \
         FROM pg_catalog.pg_attrdef a JOIN pg_catalog.pg_attrdef b ON b.adrelid = $2 AND b.adnum = a.adnum \
         JOIN pg_catalog.pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid WHERE a.adrelid = $1",
        &[source.into(), child.into()],
    )?;
    // A virtual column is stored as NULL.
    spi::run(
        "UPDATE pg_catalog.pg_attribute c SET atthasdef = s.atthasdef, attnotnull = c.attnotnull AND s.attgenerated <> 'v' \
         FROM pg_catalog.pg_attribute s WHERE s.attrelid = $1 AND c.attrelid = $2 AND s.attnum = c.attnum AND s.attnum > 0 AND s.atthasdef",
        &[source.into(), child.into()],
    )?;
    Ok(())
}
