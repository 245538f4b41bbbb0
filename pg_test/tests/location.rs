//! get_shard_location() says where PostgreSQL really puts a row: for every key type, on random keys.

mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use support::Random;

/// Random keys per type, besides NULL and the corner cases.
const KEYS: usize = 600;
/// As many shards as slots, so that a wrong slot is nearly always a wrong shard.
const SHARDS: usize = 16;

/// A key type with its corner cases and a source of random values, all as text.
struct KeyType {
    name: &'static str,
    corners: &'static [&'static str],
    random: fn(&mut Random) -> String,
}

const TYPES: [KeyType; 20] = [
    KeyType {
        name: "smallint",
        corners: &["-32768", "32767", "0"],
        random: |r| (r.bits() as i16).to_string(),
    },
    KeyType { name: "int", corners: &["-2147483648", "0"], random: |r| (r.bits() as i32).to_string() },
    KeyType {
        name: "bigint",
        corners: &["-9223372036854775808", "-1", "0", "9223372036854775807"],
        random: |r| (r.bits() as i64 >> r.below(64)).to_string(),
    },
    KeyType { name: "text", corners: &["", " ", "a ", "ä", "'"], random: words },
    KeyType { name: "varchar(40)", corners: &["", "x "], random: words },
    KeyType {
        name: "bpchar(12)",
        corners: &["", "x", "x  "],
        random: |r| words(r).chars().take(12).collect(),
    },
    KeyType { name: "name", corners: &["", "a"], random: words },
    KeyType { name: "uuid", corners: &["00000000-0000-0000-0000-000000000000"], random: uuid },
    KeyType {
        name: "timestamptz",
        corners: &["infinity", "-infinity", "1999-12-31 23:59:59.999999+14"],
        random: moment,
    },
    KeyType {
        name: "date",
        corners: &["infinity", "0001-01-01 BC"],
        random: |r| moment(r)[..10].to_string(),
    },
    KeyType { name: "numeric", corners: &["NaN", "Infinity", "0.0", "1.50", "-0"], random: number },
    KeyType {
        name: "numeric(12,3)",
        corners: &["0.0005", "-1.5"],
        random: |r| format!("{}.{:03}", r.bits() as i16, r.below(1000)),
    },
    KeyType {
        name: "float8",
        corners: &["NaN", "-0", "Infinity", "0.1"],
        random: |r| f64::from_bits(r.bits() & !(1 << 62)).to_string(),
    },
    KeyType {
        name: "bytea",
        corners: &["\\x", "\\x00"],
        random: |r| format!("\\x{:016x}{:04x}", r.bits(), r.below(1 << 16)),
    },
    KeyType { name: "inet", corners: &["::1", "10.0.0.0/8"], random: address },
    KeyType {
        name: "mood",
        corners: &[],
        random: |r| r.pick(&["sad", "ok", "happy", "so so", "élan"]).to_string(),
    },
    KeyType { name: "positive", corners: &["1"], random: |r| (1 + r.below(1 << 30)).to_string() },
    KeyType {
        name: "jsonb",
        corners: &["null", "{}", "[1, {\"b\": 2, \"a\": 1}]"],
        random: |r| format!("{{\"k\": [{}, \"{}\"], \"a\": null}}", r.below(99), uuid(r)),
    },
    KeyType { name: "boolean", corners: &["yes", "0"], random: |r| r.pick(&["true", "false"]).to_string() },
    KeyType {
        name: "interval",
        corners: &["1 month", "30 days", "720:00:00"],
        random: |r| format!("{} days {} us", r.bits() as i16, r.bits() as i32),
    },
];

fn words(r: &mut Random) -> String {
    let letters = ["a", "B", "z", "7", "ß", "é", "語", "_", "'", "\\", " ", "%", "\""];
    (0..r.below(14)).map(|_| r.pick(&letters)).collect()
}

fn uuid(r: &mut Random) -> String {
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        r.bits() as u32,
        r.bits() as u16,
        r.below(4096),
        r.bits() as u16,
        r.bits() >> 16
    )
}

fn moment(r: &mut Random) -> String {
    let day = format!("{:04}-{:02}-{:02}", 1 + r.below(9000), 1 + r.below(12), 1 + r.below(28));
    format!(
        "{day} {:02}:{:02}:{:02}.{:06}+{:02}",
        r.below(24),
        r.below(60),
        r.below(60),
        r.below(1_000_000),
        r.below(13)
    )
}

fn number(r: &mut Random) -> String {
    format!("{}.{:02$}", r.bits() as i64 >> r.below(60), r.below(1000), 3 + r.below(9) as usize)
}

fn address(r: &mut Random) -> String {
    let n = r.bits();
    if n & 1 == 0 {
        return format!("2001:db8::{:x}:{:x}", (n >> 8) & 0xffff, (n >> 32) & 0xffff);
    }
    format!("{}.{}.{}.{}", (n >> 8) & 255, (n >> 16) & 255, (n >> 24) & 255, (n >> 32) & 255)
}

/// The server's own answer for every row, beside ours for the value, for its text, and for a literal.
const COMPARE: &str = "\
CREATE FUNCTION by_literal(key text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE shard text;
BEGIN
    EXECUTE format('SELECT foreshard.get_shard_location(''located'', %L)', key) INTO shard;
    RETURN shard;
END $$;
CREATE VIEW compared AS
SELECT l.k::text AS key, h.shard_name::text AS truth,
       foreshard.get_shard_location('located', l.k) AS by_value,
       foreshard.get_shard_location('located', l.k::text) AS by_text,
       by_literal(l.k::text) AS by_literal
FROM located l JOIN foreshard.slot_partition p ON p.partition = l.tableoid
JOIN foreshard.slot s USING (slot_id) JOIN foreshard.shard h USING (shard_id);";

fn check_type(client: &mut Client, kind: &KeyType, seed: u64) -> Result<()> {
    let mut random = Random(seed);
    client.exec(&format!("CREATE TABLE located (k {}, filler int)", kind.name))?;
    client.exec(&format!("SELECT foreshard.distribute('located', 'k', slots => {SHARDS})"))?;
    let mut values: Vec<String> = kind.corners.iter().map(|text| text.to_string()).collect();
    values.extend((0..KEYS).map(|_| (kind.random)(&mut random)));
    let rows: Vec<String> = values.iter().map(|text| format!("('{}')", text.replace('\'', "''"))).collect();
    client.exec(&format!("INSERT INTO located (k) VALUES (NULL), {}", rows.join(", ")))?;
    client.exec(COMPARE)?;
    let total = client.query_one("SELECT count(*) FROM compared")?;
    assert_eq!(total, (values.len() + 1).to_string(), "{}: rows and their slots", kind.name);
    let wrong = client.exec(
        "SELECT * FROM compared WHERE truth IS DISTINCT FROM by_value OR truth IS DISTINCT FROM by_text \
         OR truth IS DISTINCT FROM by_literal LIMIT 5",
    )?;
    assert!(
        wrong.is_empty(),
        "{} (seed {seed}), key|truth|value|text|literal:\n{}",
        kind.name,
        wrong.to_text()
    );
    client.exec("DROP VIEW compared; DROP FUNCTION by_literal; DROP TABLE located")?;
    Ok(())
}

#[test]
fn keys_are_located_where_postgres_puts_them() -> Result<()> {
    let cluster = Cluster::start(&ClusterOptions::new("location"))?;
    let mut client = cluster.connect("postgres")?;
    client.exec("CREATE EXTENSION foreshard")?;
    for shard in 0..SHARDS {
        client.exec(&format!("SELECT foreshard.add_shard('s{shard}')"))?;
    }
    client.exec("CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'so so', 'élan')")?;
    client.exec("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")?;
    for (index, kind) in TYPES.iter().enumerate() {
        check_type(&mut client, kind, 0x10CA_7E00 + index as u64)?;
    }
    Ok(())
}
