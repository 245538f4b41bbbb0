//! Random and hostile arguments for whatever function there is, and the ways to call it.

use crate::support::Random;

/// What an argument may be, as SQL, by its type; every value is tried for every function that takes the type.
fn pool(kind: &str) -> &'static [&'static str] {
    match kind {
        "regclass" => &[
            "'t'",
            "'u'",
            "'w'",
            "'own'",
            "'plain'",
            "'parts'",
            "'parts_1'",
            "'e'",
            "'n'",
            "'c'",
            "'a_view'",
            "'a_matview'",
            "'a_seq'",
            "'plain_pkey'",
            "'a_temp'",
            "'an_unlogged'",
            "'a_type'",
            "'a_foreign'",
            "'pg_class'",
            "'pg_toast.pg_toast_1255'",
            "'foreshard.slot'",
            "'foreshard.slots'",
            "'foreshard.g_closure'",
            "0",
            "1",
            "4294967295",
            "2147483648",
            "'0'",
            "'999999'",
            "'nothing.there'",
            "'\"we\"\"ird ''$t\"'",
            "(SELECT \"partition\" FROM foreshard.slots LIMIT 1)",
            "(SELECT max(oid) FROM gone)",
            "(SELECT min(oid) FROM gone)",
            "(SELECT oid FROM pg_class ORDER BY random() LIMIT 1)",
            "(SELECT other FROM elsewhere)",
        ],
        "regtype" => &["'bigint'", "'text'", "0", "'a_type'", "999999"],
        "text" | "name" | "cstring" | "character varying" => &[
            "''",
            "'a'",
            "'b'",
            "'c'",
            "'t'",
            "'id'",
            "'k'",
            "'s'",
            "'local'",
            "'g'",
            "'ad'",
            "'none'",
            "'1'",
            "'-1'",
            "'42'",
            "'INSERT'",
            "'update'",
            "'DELETE'",
            "'on'",
            "'observe'",
            "'mode'",
            "'auto'",
            "'pg_default'",
            "'pg_global'",
            "'ts_a'",
            "'customer'",
            "'order'",
            "'invoice'",
            "'orders'",
            "'loop'",
            "'\"'",
            "''''",
            "'''; DROP TABLE t; --'",
            "E'\\\\'",
            "'%s%n%d'",
            "E'a\\nb\\tc'",
            "'名前🔥'",
            "E'\\u202egnp'",
            "'{}'",
            "'[1,2'",
            "'NULL'",
            "'$1'",
            "repeat('x', 63)",
            "repeat('x', 64)",
            "repeat('é', 40)",
            "repeat('y', 100000)",
            "repeat('(', 5000)",
            "'SELECT customer_id, order_id FROM public.o WHERE customer_id = ANY ($1)'",
            "'SELECT 1, 2'",
            "'SELECT a, b FROM missing WHERE a = ANY ($1)'",
            "'SELECT k, k / 0 FROM unnest($1::int[]) k'",
            "'SELECT k, pg_sleep(60)::text FROM unnest($1::int[]) k'",
            "'DELETE FROM t RETURNING 1, 2'",
            "'WITH x AS (SELECT 1) SELECT'",
            "'SELECT k, k::text FROM unnest($1::text[]) k; DROP TABLE t'",
        ],
        "smallint" | "integer" | "bigint" | "oid" => &[
            "0",
            "1",
            "2",
            "3",
            "4",
            "5",
            "8",
            "16",
            "-1",
            "2147483647",
            "(-2147483648)",
            "9223372036854775807",
            "(-9223372036854775808)",
            "4097",
            "64",
            "100000",
            "(SELECT min(slot_id) FROM foreshard.slot)",
            "(SELECT max(slot_id) FROM foreshard.slot)",
            "(SELECT slot_id FROM foreshard.slot ORDER BY random() LIMIT 1)",
            "(SELECT max(move_id) FROM foreshard.move)",
            "(SELECT min(move_id) FROM foreshard.move WHERE NOT finished)",
            "(SELECT max(recommendation_id) FROM foreshard.recommendation)",
        ],
        "double precision" | "real" | "numeric" => &[
            "0",
            "1",
            "0.5",
            "-1",
            "'NaN'",
            "'Infinity'",
            "'-Infinity'",
            "1e308",
            "1e-308",
            "100",
            "0.01",
            "1e-12",
        ],
        "boolean" => &["true", "false"],
        "interval" => &[
            "'0'",
            "'1 hour'",
            "'-1 s'",
            "'178000000 years'",
            "'-178000000 years'",
            "'1 month -30 days'",
            "'1 us'",
            "'7 days'",
            "'8 days'",
        ],
        "jsonb" | "json" => &[
            "'{}'",
            "'[]'",
            "'null'",
            "'1'",
            "'\"x\"'",
            "'true'",
            "'{\"1\": \"a\"}'",
            "'{\"1\": \"a\", \"2\": \"b\"}'",
            "'{\"1\": \"nowhere\"}'",
            "'{\"x\": \"a\"}'",
            "'{\"1\": 1}'",
            "'{\"1\": null}'",
            "'{\"9223372036854775808\": \"a\"}'",
            "'{\"-1\": \"a\"}'",
            "'{\"1\": [\"a\"]}'",
            "'{\"\": \"\"}'",
            "'{\"id\": 1, \"v\": \"x\"}'",
            "'{\"id\": \"x\"}'",
            "'{\"id\": 1e400, \"nested\": {\"a\": [1, {\"b\": null}]}}'",
            "'[\"local\"]'",
            "'[\"r\", null]'",
            "'{\"a\": [\"local\"]}'",
            "(repeat('[', 900) || repeat(']', 900))::jsonb",
            "(SELECT jsonb_object_agg(slot_id, 'b') FROM foreshard.slot)",
            "(SELECT jsonb_object_agg(g, 'a') FROM generate_series(1, 3000) g)",
            "jsonb_build_object('名前''\"', repeat('x', 10000))",
            "'[{\"id\": 1}, {\"id\": 2}]'",
        ],
        "text[]" | "name[]" => &[
            "'{}'",
            "'{a}'",
            "'{a,b}'",
            "'{a,a}'",
            "'{NULL}'",
            "'{a,NULL}'",
            "'{\"\"}'",
            "'{1,2,3}'",
            "'{{a,b},{c,a}}'",
            "'[0:1]={a,b}'",
            "'{nowhere}'",
            "array_fill('a'::text, ARRAY[5000])",
            "ARRAY['名前''\"', repeat('x', 9999)]",
        ],
        "double precision[]" => &[
            "'{}'",
            "'{1,2,3}'",
            "'{NULL,NaN,Infinity,-Infinity,-1}'",
            "'{{1,2},{3,4}}'",
            "array_fill(1e308::float8, ARRAY[4000])",
            "'{0,0}'",
            "'{-5,-1}'",
        ],
        "uuid" => &[
            "'00000000-0000-0000-0000-000000000000'",
            "'ffffffff-ffff-ffff-ffff-ffffffffffff'",
            "(SELECT id FROM u LIMIT 1)",
        ],
        _ => &[],
    }
}

/// Values of any type, with the type.
const ANY: [&str; 22] = [
    "1",
    "1::bigint",
    "1::smallint",
    "(-1)::numeric",
    "'1'",
    "'x'::text",
    "''::text",
    "'1'::varchar",
    "1.5",
    "'NaN'::float8",
    "true",
    "now()",
    "'{}'::jsonb",
    "'00000000-0000-0000-0000-000000000000'::uuid",
    "ROW(1, 2)",
    "ROW(1)::a_type",
    "ARRAY[1, 2]",
    "'\\x00'::bytea",
    "NULL::int",
    "NULL",
    "repeat('z', 100000)",
    "'t'::regclass",
];

/// Arrays of any type.
const ARRAYS: [&str; 14] = [
    "ARRAY[1, 2, 3]",
    "ARRAY[1, 2]::bigint[]",
    "ARRAY['1', 'x']",
    "ARRAY[]::int[]",
    "ARRAY[NULL]::int[]",
    "ARRAY[1, NULL]::text[]",
    "ARRAY[[1, 2], [3, 4]]",
    "'[5:6]={1,2}'::int[]",
    "ARRAY[ROW(1, 2)]",
    "ARRAY['{}'::jsonb]",
    "array_fill(7, ARRAY[20000])",
    "NULL::int[]",
    "ARRAY['x'::a_domain]",
    "ARRAY[1.5, 'NaN']::numeric[]",
];

/// A function of the extension.
pub struct Function {
    /// Qualified and quoted.
    pub name: String,
    /// Types of its arguments.
    pub arguments: Vec<String>,
    /// How many of them, the last ones, have defaults.
    pub defaults: usize,
}

impl Function {
    /// A call with all arguments given, one of them NULL.
    pub fn call_with_null(&self, at: usize, random: &mut Random) -> String {
        let one = |(n, kind): (usize, &String)| match kind.as_str() {
            "\"any\"" | "anyelement" if n == at => "NULL".to_string(),
            "anyarray" if n == at => "NULL::int[]".to_string(),
            _ if n == at => format!("NULL::{kind}"),
            _ => argument(kind, random),
        };
        let arguments: Vec<String> = self.arguments.iter().enumerate().map(one).collect();
        format!("{}({})", self.name, arguments.join(", "))
    }

    /// A call with random arguments.
    pub fn call(&self, random: &mut Random) -> String {
        let fewest = self.arguments.len() - self.defaults.min(self.arguments.len());
        let given = fewest + random.below((self.arguments.len() - fewest + 1) as u64) as usize;
        let arguments: Vec<String> =
            self.arguments[..given].iter().map(|kind| argument(kind, random)).collect();
        format!("{}({})", self.name, arguments.join(", "))
    }
}

fn argument(kind: &str, random: &mut Random) -> String {
    match kind {
        "\"any\"" | "anyelement" | "anynonarray" => random.pick(&ANY).to_string(),
        "anyarray" | "anycompatiblearray" => random.pick(&ARRAYS).to_string(),
        _ if random.below(12) == 0 => format!("NULL::{kind}"),
        _ => match pool(kind) {
            [] => format!("NULL::{kind}"),
            values => cast(random.pick(values), kind),
        },
    }
}

/// A value of a type; a number that is too great for it is an error of PostgreSQL's, which is not what is looked for.
fn cast(value: &str, kind: &str) -> String {
    match kind {
        "integer" => format!("(least(2147483647, greatest(-2147483648, {value}))::integer)"),
        "smallint" => format!("(least(32767, greatest(-32768, {value}))::smallint)"),
        "regclass" if value.starts_with('(') => format!("{value}::oid::regclass"),
        _ => format!("({value})::{kind}"),
    }
}

/// How a call is made, as statements.
pub fn statements(call: &str, random: &mut Random, parallel: &str) -> Vec<String> {
    let select = match random.below(7) {
        0 => format!("SELECT {call}"),
        1 => format!("SELECT {call} FROM generate_series(1, 3)"),
        2 => format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT * FROM {call}"),
        3 => format!("SELECT count(*) FROM (SELECT * FROM {call} LIMIT 1) q"),
        _ => format!("SELECT * FROM {call}"),
    };
    let role = random.pick(&["watcher", "owner", "nobody_else"]);
    let owned = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
    match random.below(16) {
        0 => owned(&["BEGIN READ ONLY", &select, "ROLLBACK"]),
        1 => owned(&["BEGIN ISOLATION LEVEL SERIALIZABLE", &select, "COMMIT"]),
        2 => owned(&["BEGIN", "SAVEPOINT s", &select, "ROLLBACK TO s", &select, "COMMIT"]),
        3 => owned(&[
            "BEGIN",
            &format!("DECLARE k CURSOR FOR SELECT * FROM {call}"),
            "FETCH 1 FROM k",
            "CLOSE k",
            "ROLLBACK",
        ]),
        4 => owned(&[&format!("SET ROLE {role}"), &select, "RESET ROLE"]),
        5 => owned(&[&format!("DO $do$ BEGIN PERFORM {call}; EXCEPTION WHEN OTHERS THEN RAISE; END $do$")]),
        6 => owned(&["SET statement_timeout = '15ms'", &select, "SET statement_timeout = '300ms'"]),
        7 => owned(&["SET search_path = evil, pg_catalog, public", &select, "SET search_path = public"]),
        8 => owned(&[&format!("SET {parallel} = on"), &select, &format!("RESET {parallel}")]),
        9 => owned(&["BEGIN", &format!("CREATE TEMP TABLE made AS SELECT * FROM {call}"), "ROLLBACK"]),
        10 => owned(&["BEGIN", &select, &select, "ROLLBACK"]),
        11 => owned(&["BEGIN", "DROP TABLE IF EXISTS plain CASCADE", &select, "ROLLBACK"]),
        12 => owned(&["BEGIN", "DROP TABLE t CASCADE", &select, "ROLLBACK"]),
        _ => vec![select],
    }
}

/// What goes on beside the calls.
pub const MEANWHILE: [&str; 18] = [
    "INSERT INTO t SELECT g, 'new' FROM generate_series(1000, 1100) g ON CONFLICT DO NOTHING",
    "UPDATE t SET v = v || '!' WHERE id % 7 = 0",
    "DELETE FROM t WHERE id % 11 = 0",
    "INSERT INTO e VALUES ((random() * 30)::int, (random() * 30)::int) ON CONFLICT DO NOTHING",
    "DELETE FROM e WHERE s = (random() * 30)::int",
    "CREATE TABLE IF NOT EXISTS junk (id bigint PRIMARY KEY, v text); INSERT INTO gone SELECT 'junk'::regclass::oid; SELECT foreshard.distribute('junk', 'id', 2)",
    "DROP TABLE IF EXISTS junk",
    "CREATE TRIGGER hostile AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION foreshard.capture('1260', 'x')",
    "CREATE TRIGGER hostile AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION foreshard.capture()",
    "CREATE TRIGGER hostile AFTER INSERT ON plain FOR EACH STATEMENT EXECUTE FUNCTION foreshard.capture('0', '99')",
    "CREATE TRIGGER hostile AFTER INSERT ON plain FOR EACH STATEMENT EXECUTE FUNCTION foreshard.graph_changed('999', 'edges')",
    "CREATE TRIGGER hostile BEFORE INSERT ON plain FOR EACH ROW EXECUTE FUNCTION foreshard.graph_changed('x')",
    "INSERT INTO plain SELECT (random() * 1e9)::bigint, 'x'",
    "DROP TRIGGER IF EXISTS hostile ON plain",
    "SELECT * FROM foreshard.heat_map, foreshard.shards, foreshard.progress_moves, foreshard.recommendations LIMIT 10",
    "SELECT count(*) FROM foreshard.dependency_graph; SELECT count(*) FROM foreshard.catalog_problems",
    "DISCARD ALL; SET statement_timeout = '300ms'; SET lock_timeout = '100ms'",
    "ANALYZE t",
];

/// The database that is called upon.
pub const WORLD: &str = "\
CREATE ROLE watcher; CREATE ROLE owner; CREATE ROLE nobody_else; GRANT pg_monitor TO watcher;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA foreshard TO owner; GRANT CREATE ON SCHEMA public TO owner; GRANT CREATE ON TABLESPACE ts_a, ts_b, ts_c TO owner;
CREATE SCHEMA evil; CREATE FUNCTION evil.lower(text) RETURNS text LANGUAGE sql AS 'SELECT 1 / 0; SELECT $1'; CREATE TABLE evil.pg_class (x int);
CREATE TYPE a_type AS (x int); CREATE DOMAIN a_domain AS text CHECK (VALUE <> 'bad');
CREATE TABLE gone (oid oid); CREATE TABLE dropped (id int PRIMARY KEY); INSERT INTO gone SELECT 'dropped'::regclass; DROP TABLE dropped;
CREATE TABLE elsewhere (other oid);
CREATE TABLE t (id bigint PRIMARY KEY, v text); INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 300) g;
CREATE TABLE u (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), v text); INSERT INTO u (v) SELECT g FROM generate_series(1, 50) g;
CREATE TABLE \"we\"\"ird '$t\" (\"k \"\"'\" text PRIMARY KEY); CREATE TABLE w (k text PRIMARY KEY, v int); INSERT INTO w SELECT g, g FROM generate_series(1, 50) g;
CREATE TABLE plain (id bigint PRIMARY KEY, v text); INSERT INTO plain SELECT g FROM generate_series(1, 50) g;
CREATE TABLE parts (id bigint) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
CREATE TABLE own (id int PRIMARY KEY, v text); ALTER TABLE own OWNER TO owner;
CREATE UNLOGGED TABLE an_unlogged (id int PRIMARY KEY); CREATE VIEW a_view AS SELECT 1 AS id; CREATE MATERIALIZED VIEW a_matview AS SELECT 1 AS id; CREATE SEQUENCE a_seq;
CREATE TABLE o (customer_id int, order_id bigint); INSERT INTO o SELECT g, g FROM generate_series(1, 20) g;
CREATE TABLE e (s int, t int, PRIMARY KEY (s, t)); CREATE TABLE n (k int PRIMARY KEY, kind text);
INSERT INTO e SELECT g, g + 1 FROM generate_series(1, 20) g; INSERT INTO n SELECT g, 'x' FROM generate_series(1, 25) g;
CREATE TABLE c (ancestor int, descendant int, depth int, PRIMARY KEY (ancestor, descendant)); INSERT INTO c VALUES (1, 1, 0), (2, 2, 0), (1, 2, 1);
SELECT foreshard.distribute('t', 'id', 4), foreshard.distribute('u', 'id', 2), foreshard.distribute('w', 'k', 2);
SELECT foreshard.create_graph('g', 'e', 's', 't', 'n', 'k', 'kind'); SELECT foreshard.adopt_closure('ad', 'c');
SELECT foreshard.add_data_source('g', 'orders', 'customer', 'order', 'SELECT customer_id, order_id FROM public.o WHERE customer_id = ANY ($1::int[])');
SELECT foreshard.add_data_source('g', 'loop', 'order', 'invoice', 'SELECT k, k FROM unnest($1::bigint[]) k');
ALTER TABLE t ADD COLUMN later int; GRANT SELECT, INSERT ON t, u, w TO owner;";
