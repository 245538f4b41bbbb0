//! Everything that hangs on a table, as statements that create it again under the same name.
//! Captured before the old table steps aside; server functions do all the quoting and deparsing.

use super::name_of;
use crate::pg::report::PgResult;
use crate::pg::security;
use crate::pg::spi::{self, Arg};
use pgrx::pg_sys;
use pgrx::spi::{quote_identifier, quote_literal};

/// An index that no constraint owns, or the constraint that owns one.
pub struct IndexDefinition {
    /// Index or constraint name, quoted.
    pub name: String,
    /// `CREATE [UNIQUE] INDEX`, or None for a constraint.
    pub create: Option<String>,
    /// From ` USING …` on (index), or the constraint's definition.
    pub body: String,
    /// Index comment.
    pub comment: Option<String>,
    /// Constraint comment.
    pub constraint_comment: Option<String>,
}

impl IndexDefinition {
    /// It is a unique index, or one of a primary key or a unique constraint.
    pub fn is_unique(&self) -> bool {
        self.create.as_deref().is_none_or(|create| create.contains("UNIQUE"))
    }
}

/// A statement that makes something again.
pub struct Remake {
    /// The statement.
    pub sql: String,
    /// Whose code may run while it is parsed (a literal of a type of theirs), or checked: it runs as that role. None: as whoever
    /// calls, also when that role may not say it (a DBA did).
    pub author: Option<pg_sys::Oid>,
}

/// What must be made again after a table was rebuilt.
pub struct Definition {
    /// Schema, quoted.
    pub schema: String,
    /// Qualified name, quoted.
    pub name: String,
    /// Bare name, unquoted.
    pub bare_name: String,
    /// Owner, quoted.
    pub owner: String,
    /// Storage parameters as `WITH (…)` holds them, if any.
    pub storage_options: Option<String>,
    /// Columns that INSERT may write, quoted, in order.
    pub columns: Vec<String>,
    /// Indexes and index-backed constraints.
    pub indexes: Vec<IndexDefinition>,
    /// Sequences owned by columns: (sequence, column), quoted.
    pub sequences: Vec<(String, String)>,
    /// Statements that add its foreign keys, and then what they are commented with: the first of what is to be run once
    /// the new table is filled and indexed.
    pub keys: Vec<Remake>,
    /// Statements to run after those, in order.
    pub after: Vec<Remake>,
    /// Statements that take the old table's dependents out of the way.
    pub before: Vec<String>,
    /// Statements per leaf partition; `%s` is the leaf's qualified name.
    pub per_leaf: Vec<String>,
}

impl Definition {
    /// A statement that runs nobody's code.
    fn then(&mut self, sql: String) {
        self.after.push(Remake { sql, author: None });
    }

    /// A statement that may run code of a role.
    fn then_by(&mut self, author: impl Into<Option<pg_sys::Oid>>, sql: String) {
        self.after.push(Remake { sql, author: author.into() });
    }
}

fn texts(sql: &str, table: pg_sys::Oid) -> PgResult<Vec<String>> {
    spi::rows(sql, &[table.into()], |row| row.need::<String>(1))
}

fn comment_on(kind: &str, what: &str, text: &str) -> String {
    format!("COMMENT ON {kind} {what} IS {}", quote_literal(text))
}

/// Reads the definition of `table`.
pub fn capture(table: pg_sys::Oid) -> PgResult<Definition> {
    let name = name_of(table)?;
    let args: [Arg; 1] = [table.into()];
    let (schema, bare_name, owner, storage_options, comment) = head(&args)?;
    let columns = texts(
        "SELECT pg_catalog.quote_ident(attname) FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum",
        table,
    )?;
    let sequences = spi::rows(
        "SELECT d.objid::regclass::text, pg_catalog.quote_ident(a.attname) \
         FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S' \
         JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass \
           AND d.refobjid = $1 AND d.deptype = 'a'",
        &args,
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?)),
    )?;
    let mut definition = Definition {
        schema,
        bare_name,
        owner,
        storage_options,
        columns,
        indexes: indexes(table)?,
        sequences,
        keys: Vec::new(),
        after: Vec::new(),
        before: Vec::new(),
        per_leaf: Vec::new(),
        name,
    };
    if let Some(text) = comment {
        definition.then(comment_on("TABLE", &definition.name.clone(), &text));
    }
    foreign_keys(table, &mut definition)?;
    statistics(table, &mut definition)?;
    triggers(table, &mut definition)?;
    policies(table, &mut definition)?;
    grants(table, &mut definition)?;
    publications(table, &mut definition)?;
    views(table, &mut definition)?;
    column_settings(table, &mut definition)?;
    defaults(table, &mut definition)?;
    Ok(definition)
}

type Head = (String, String, String, Option<String>, Option<String>);

fn head(args: &[Arg]) -> PgResult<Head> {
    let found = spi::rows(
        "SELECT pg_catalog.quote_ident(n.nspname), c.relname::text, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(c.relowner)), \
                pg_catalog.obj_description(c.oid, 'pg_class') \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        args,
        |row| Ok((row.need(1)?, row.need(2)?, row.need(3)?, row.get(4)?)),
    )?;
    let (schema, name, owner, comment) =
        found.into_iter().next().ok_or_else(|| crate::pg::report::internal("table vanished"))?;
    Ok((schema, name, owner, storage_options(args)?, comment))
}

/// The relation whose storage settings count: the table, or, since a partitioned table has none, its
/// first leaf.
const STORAGE_MODEL: &str =
    "coalesce((SELECT min(relid::oid) FROM pg_catalog.pg_partition_tree($1) WHERE isleaf AND level > 0), $1)";

/// Storage parameters of heap and toast table as `WITH (…)` holds them.
fn storage_options(args: &[Arg]) -> PgResult<Option<String>> {
    spi::one::<String>(
        &format!(
            "SELECT pg_catalog.string_agg(o.prefix || pg_catalog.quote_ident(o.option_name) || '=' || pg_catalog.quote_literal(o.option_value), ', ') \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_class t ON t.oid = c.reltoastrelid, \
                  LATERAL (SELECT '' AS prefix, * FROM pg_catalog.pg_options_to_table(c.reloptions) \
                           UNION ALL SELECT 'toast.', * FROM pg_catalog.pg_options_to_table(t.reloptions)) o \
             WHERE c.oid = {STORAGE_MODEL}"
        ),
        args,
    )
}

/// The indexes of a table, those of a partitioned one included.
pub fn indexes(table: pg_sys::Oid) -> PgResult<Vec<IndexDefinition>> {
    spi::rows(
        "SELECT pg_catalog.quote_ident(coalesce(k.conname, c.relname)), \
                CASE WHEN k.oid IS NULL THEN CASE WHEN i.indisunique THEN 'CREATE UNIQUE INDEX' ELSE 'CREATE INDEX' END END, \
                CASE WHEN k.oid IS NULL THEN \
                     substr(pg_catalog.pg_get_indexdef(i.indexrelid), \
                            length(format('CREATE %sINDEX %s ON %s%s', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, \
                                          pg_catalog.quote_ident(c.relname), CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END, \
                                          i.indrelid::regclass)) + 1) \
                     ELSE pg_catalog.pg_get_constraintdef(k.oid) END, \
                pg_catalog.obj_description(i.indexrelid, 'pg_class'), \
                pg_catalog.obj_description(k.oid, 'pg_constraint') \
         FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
         LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('p', 'u') \
         WHERE i.indrelid = $1 AND i.indisvalid ORDER BY i.indisprimary DESC, i.indexrelid",
        &[table.into()],
        |row| {
            Ok(IndexDefinition {
                name: row.need(1)?,
                create: row.get(2)?,
                body: row.need(3)?,
                comment: row.get(4)?,
                constraint_comment: row.get(5)?,
            })
        },
    )
}

/// Outbound keys die with the old table and come back; inbound ones are dropped and added again.
fn foreign_keys(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let keys = spi::rows(
        "SELECT k.conrelid::regclass::text, pg_catalog.quote_ident(k.conname), pg_catalog.pg_get_constraintdef(k.oid), \
                k.conrelid = $1, pg_catalog.obj_description(k.oid, 'pg_constraint'), \
                CASE WHEN k.conrelid = $1 AND pg_catalog.has_table_privilege(c.relowner, k.confrelid, 'REFERENCES') \
                    AND pg_catalog.has_schema_privilege(c.relowner, f.relnamespace, 'USAGE') THEN c.relowner END \
         FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_class f ON f.oid = k.confrelid \
         WHERE k.contype = 'f' AND (k.conrelid = $1 OR k.confrelid = $1) AND k.conparentid = 0 ORDER BY k.oid",
        &[table.into()],
        |row| {
            Ok((
                row.need::<String>(1)?,
                row.need::<String>(2)?,
                row.need::<String>(3)?,
                row.need::<bool>(4)?,
                (row.get::<String>(5)?, row.get::<pg_sys::Oid>(6)?),
            ))
        },
    )?;
    for (referencing, name, body, outbound, (comment, author)) in keys {
        if !outbound {
            definition.before.push(format!("ALTER TABLE {referencing} DROP CONSTRAINT {name}"));
        }
        let holder = if outbound { definition.name.clone() } else { referencing };
        let sql = format!("ALTER TABLE {holder} ADD CONSTRAINT {name} {body}");
        definition.keys.push(Remake { sql, author });
        if let Some(text) = comment {
            definition.then(comment_on("CONSTRAINT", &format!("{name} ON {holder}"), &text));
        }
    }
    Ok(())
}

fn statistics(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let found = spi::rows(
        "SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(s.stxname), pg_catalog.pg_get_statisticsobjdef(s.oid), \
                coalesce(s.stxstattarget, -1)::int, pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(s.stxowner)), \
                CASE WHEN pg_catalog.has_schema_privilege(c.relowner, n.oid, 'CREATE') THEN c.relowner END, \
                pg_catalog.obj_description(s.oid, 'pg_statistic_ext') \
         FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_namespace n ON n.oid = s.stxnamespace \
         JOIN pg_catalog.pg_class c ON c.oid = s.stxrelid WHERE s.stxrelid = $1",
        &[table.into()],
        |row| {
            let (target, owner) = (row.need::<i32>(3)?, row.need::<String>(4)?);
            Ok((
                row.need::<String>(1)?,
                row.need::<String>(2)?,
                target,
                owner,
                row.get::<pg_sys::Oid>(5)?,
                row.get::<String>(6)?,
            ))
        },
    )?;
    for (name, create, target, owner, author, comment) in found {
        definition.before.push(format!("DROP STATISTICS {name}"));
        definition.then_by(author, create);
        if target >= 0 {
            definition.then(format!("ALTER STATISTICS {name} SET STATISTICS {target}"));
        }
        if let Some(text) = comment {
            definition.then(comment_on("STATISTICS", &name, &text));
        }
        definition.then(format!("ALTER STATISTICS {name} OWNER TO {owner}"));
    }
    Ok(())
}

fn triggers(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let owner = security::relation_owner(table)?;
    let found = spi::rows(
        "SELECT pg_catalog.pg_get_triggerdef(oid), pg_catalog.quote_ident(tgname), tgenabled::text, \
                pg_catalog.obj_description(oid, 'pg_trigger'), tgqual IS NOT NULL \
         FROM pg_catalog.pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal ORDER BY oid",
        &[table.into()],
        |row| {
            Ok((
                row.need::<String>(1)?,
                row.need::<String>(2)?,
                row.need::<String>(3)?,
                (row.get::<String>(4)?, row.need::<bool>(5)?),
            ))
        },
    )?;
    for (create, name, enabled, (comment, has_condition)) in found {
        // Nothing else of it is parsed; and its function may be one that the owner may not call.
        definition.then_by(has_condition.then_some(owner), create);
        let state = match enabled.as_str() {
            "D" => Some("DISABLE TRIGGER"),
            "A" => Some("ENABLE ALWAYS TRIGGER"),
            "R" => Some("ENABLE REPLICA TRIGGER"),
            _ => None,
        };
        if let Some(state) = state {
            definition.then(format!("ALTER TABLE {} {state} {name}", definition.name));
        }
        if let Some(text) = comment {
            definition.then(comment_on("TRIGGER", &format!("{name} ON {}", definition.name), &text));
        }
    }
    Ok(())
}

fn policies(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let author = security::relation_owner(table)?;
    let found = spi::rows(
        "SELECT format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', p.polname, p.polrelid::regclass, \
                CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END, \
                CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END, \
                (SELECT pg_catalog.string_agg(CASE WHEN r = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(r)) END, ', ') \
                   FROM pg_catalog.unnest(p.polroles) r)) \
                || coalesce(' USING (' || pg_catalog.pg_get_expr(p.polqual, p.polrelid) || ')', '') \
                || coalesce(' WITH CHECK (' || pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''), \
                format('POLICY %I ON %s', p.polname, p.polrelid::regclass), pg_catalog.obj_description(p.oid, 'pg_policy') \
         FROM pg_catalog.pg_policy p WHERE p.polrelid = $1 ORDER BY p.polname",
        &[table.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<String>(2)?, row.get::<String>(3)?)),
    )?;
    for (create, what, comment) in found {
        definition.then_by(author, create);
        if let Some(text) = comment {
            definition.then(format!("COMMENT ON {what} IS {}", quote_literal(&text)));
        }
    }
    let flags = spi::rows(
        "SELECT relrowsecurity, relforcerowsecurity FROM pg_catalog.pg_class WHERE oid = $1",
        &[table.into()],
        |row| Ok((row.need::<bool>(1)?, row.need::<bool>(2)?)),
    )?;
    for (enabled, forced) in flags {
        let name = definition.name.clone();
        if enabled {
            // The copy must see every row; the old table is about to go.
            definition.before.push(format!("ALTER TABLE {name} DISABLE ROW LEVEL SECURITY"));
            definition.then(format!("ALTER TABLE {name} ENABLE ROW LEVEL SECURITY"));
        }
        if forced {
            definition.before.push(format!("ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY"));
            definition.then(format!("ALTER TABLE {name} FORCE ROW LEVEL SECURITY"));
        }
    }
    Ok(())
}

/// Ownership first, then exactly the privileges of the old access control list.
fn grants(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let statements = texts(
        "SELECT s FROM (SELECT 0 AS o, format('REVOKE ALL ON %s FROM %I', c.oid::regclass, pg_catalog.pg_get_userbyid(c.relowner)) AS s \
             FROM pg_catalog.pg_class c WHERE c.oid = $1 AND c.relacl IS NOT NULL \
           UNION ALL SELECT 1, format('GRANT %s ON %s TO %s%s', a.privilege_type, c.oid::regclass, \
                 CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, \
                 CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
             FROM pg_catalog.pg_class c, pg_catalog.aclexplode(c.relacl) a WHERE c.oid = $1 \
           UNION ALL SELECT 2, format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, t.attrelid::regclass, \
                 CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(a.grantee)) END, \
                 CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END) \
             FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a WHERE t.attrelid = $1 AND NOT t.attisdropped) q ORDER BY o",
        table,
    )?;
    statements.into_iter().for_each(|statement| definition.then(statement));
    Ok(())
}

fn publications(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let statements = texts(
        "SELECT format('ALTER PUBLICATION %I ADD TABLE %s', p.pubname, r.prrelid::regclass) \
         FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid WHERE r.prrelid = $1",
        table,
    )?;
    statements.into_iter().for_each(|statement| definition.then(statement));
    let replica_identity = spi::one::<String>(
        &format!("SELECT relreplident::text FROM pg_catalog.pg_class WHERE oid = {STORAGE_MODEL}"),
        &[table.into()],
    )?;
    match replica_identity.as_deref() {
        Some("f") => definition.per_leaf.push("ALTER TABLE %s REPLICA IDENTITY FULL".to_string()),
        Some("n") => definition.per_leaf.push("ALTER TABLE %s REPLICA IDENTITY NOTHING".to_string()),
        _ => {}
    }
    Ok(())
}

/// Views keep their identity, grants and dependents: CREATE OR REPLACE points them to the new table.
fn views(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let statements = spi::rows(
        "SELECT DISTINCT format('CREATE OR REPLACE VIEW %s%s AS %s', v.oid::regclass, \
                coalesce(' WITH (' || (SELECT pg_catalog.string_agg(pg_catalog.quote_ident(option_name) || '=' || pg_catalog.quote_literal(option_value), ', ') \
                   FROM pg_catalog.pg_options_to_table(v.reloptions)) || ')', ''), pg_catalog.pg_get_viewdef(v.oid)), \
                CASE WHEN pg_catalog.has_schema_privilege(v.relowner, v.relnamespace, 'CREATE') THEN v.relowner END \
         FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_rewrite r ON r.oid = d.objid JOIN pg_catalog.pg_class v ON v.oid = r.ev_class \
         WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND v.relkind = 'v'",
        &[table.into()],
        |row| Ok((row.need::<String>(1)?, row.get::<pg_sys::Oid>(2)?)),
    )?;
    statements.into_iter().for_each(|(statement, author)| definition.then_by(author, statement));
    Ok(())
}

/// Defaults that name the table itself (`next_key('table', …)`), of its own columns and of other tables',
/// are taken away and set again: a name outlives the table, the oid in a default does not.
fn defaults(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let found = spi::rows(
        "SELECT f.adrelid::regclass::text, pg_catalog.quote_ident(a.attname), pg_catalog.pg_get_expr(f.adbin, f.adrelid), c.relowner \
         FROM pg_catalog.pg_attrdef f JOIN pg_catalog.pg_attribute a ON a.attrelid = f.adrelid AND a.attnum = f.adnum \
         JOIN pg_catalog.pg_class c ON c.oid = f.adrelid \
         WHERE a.attgenerated = '' AND NOT c.relispartition AND c.relrewrite = 0 \
           AND EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid \
               AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = 0) \
         ORDER BY f.oid",
        &[table.into()],
        |row| {
            let author: pg_sys::Oid = row.need(4)?;
            Ok((row.need::<String>(1)?, row.need::<String>(2)?, row.need::<String>(3)?, author))
        },
    )?;
    for (holder, column, expression, author) in found {
        let alter = format!("ALTER TABLE {holder} ALTER COLUMN {column}");
        definition.before.push(format!("{alter} DROP DEFAULT"));
        definition.then_by(author, format!("{alter} SET DEFAULT {expression}"));
    }
    Ok(())
}

fn column_settings(table: pg_sys::Oid, definition: &mut Definition) -> PgResult<()> {
    let targets = spi::rows(
        "SELECT attname::text, attstattarget::int FROM pg_catalog.pg_attribute \
         WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped AND attstattarget >= 0",
        &[table.into()],
        |row| Ok((row.need::<String>(1)?, row.need::<i32>(2)?)),
    )?;
    for (column, target) in targets {
        let column = quote_identifier(&column);
        definition
            .then(format!("ALTER TABLE {} ALTER COLUMN {column} SET STATISTICS {target}", definition.name));
    }
    Ok(())
}
