//! The shop's database: tablespaces as shards, the table, its rows, its distribution.

use crate::trace::{Trace, kind, number, part};
use foreshard_test::{Client, Cluster, ClusterOptions, Result};
use std::fmt::Write;

/// The shards, one tablespace each.
pub const SHARDS: [&str; 4] = ["shard_1", "shard_2", "shard_3", "shard_4"];
/// The slots of the table: 32 for each shard.
pub const SLOTS: usize = 128;
/// The database's name.
pub const DATABASE: &str = "shop";
/// Stock of every object before the replay.
pub const INITIAL_STOCK: i64 = 1_000_000;
/// Capacity of each shard in cost units (ms of CPU) per second.
pub const CAPACITY: f64 = 100.0;
/// Seconds between two readings of the load.
pub const BUCKET_S: u64 = 4;
/// Seconds that forecasts look ahead.
pub const HORIZON_S: u64 = 80;

/// What differs from the extension's defaults, because the demo has minutes, not days.
pub const SETTINGS: [(&str, &str); 8] = [
    ("foreshard.bucket", "4s"),
    ("foreshard.rollback_window", "0"),
    ("foreshard.canary_steps", ""),
    ("foreshard.plan_interval", "8s"),
    ("foreshard.forecast_horizon", "80s"),
    ("foreshard.imbalance_high", "0.05"),
    ("foreshard.imbalance_low", "0.02"),
    ("foreshard.min_confidence", "0.6"),
];

const SCHEMA: &str = "
CREATE TABLE object (
    id         bigint PRIMARY KEY,
    kind       smallint NOT NULL,
    name       text NOT NULL,
    price      numeric(10,2) NOT NULL,
    stock      int NOT NULL,
    version    int NOT NULL DEFAULT 0,
    attributes jsonb NOT NULL,
    body       text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX object_kind_price ON object (kind, price);
CREATE INDEX object_name ON object (name);
CREATE TABLE object_audit (
    object_id    bigint NOT NULL,
    changed_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    stock_before int NOT NULL,
    stock_after  int NOT NULL
);
CREATE FUNCTION object_audit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO object_audit (object_id, stock_before, stock_after) VALUES (NEW.id, OLD.stock, NEW.stock);
    RETURN NULL;
END $$;
CREATE TRIGGER object_audit AFTER UPDATE ON object FOR EACH ROW EXECUTE FUNCTION object_audit();
";

/// Starts the demo's cluster.
pub fn start_cluster() -> Result<Cluster> {
    let mut options = ClusterOptions::new("demo").set("shared_buffers", "256MB");
    for (name, value) in SETTINGS {
        options = options.set(name, value);
    }
    let cluster = Cluster::start(&options)?;
    cluster.publish("demo", DATABASE)?;
    let mut client = cluster.connect("postgres")?;
    for shard in SHARDS {
        let dir = cluster.make_tablespace_dir(shard)?;
        client.exec(&format!("CREATE TABLESPACE {shard} LOCATION '{}'", dir.display()))?;
    }
    client.exec(&format!("CREATE DATABASE {DATABASE}"))?;
    Ok(cluster)
}

/// Creates the table and loads one row for every key of the trace.
pub fn load_objects(client: &mut Client, trace: &Trace) -> Result<u64> {
    client.exec(SCHEMA)?;
    let mut keys = trace.keys.iter();
    let mut next = keys.next();
    let rows = client.copy_in(
        "COPY object (id, kind, name, price, stock, attributes, body) FROM STDIN",
        |buffer| {
            if let Some(&key) = next {
                buffer.extend_from_slice(object_line(key).as_bytes());
            }
            next = keys.next();
            next.is_some()
        },
    )?;
    client.exec("VACUUM (ANALYZE) object")?;
    Ok(rows)
}

/// Creates the extension and the shards and distributes the table; the server's notices.
pub fn distribute(client: &mut Client) -> Result<Vec<String>> {
    client.exec("CREATE EXTENSION foreshard")?;
    for shard in SHARDS {
        client.exec(&format!("SELECT foreshard.add_shard('{shard}', '{shard}', capacity => {CAPACITY})"))?;
    }
    client.take_notices();
    client.exec(&format!(
        "SELECT foreshard.distribute('object', 'id', slots => {SLOTS}, shards => ARRAY['{}']::name[])",
        SHARDS.join("','")
    ))?;
    let notices = client.take_notices();
    // Settles hint bits and dirty pages now, so that they do not look like load later.
    client.exec("VACUUM (ANALYZE) object")?;
    client.exec("CHECKPOINT")?;
    Ok(notices)
}

/// A small generator whose output depends on the key alone.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn word(&mut self) -> &'static str {
        const WORDS: [&str; 24] = [
            "steel", "cotton", "blue", "garden", "compact", "silent", "winter", "double", "light", "kitchen",
            "leather", "outdoor", "classic", "wide", "folding", "oak", "safe", "travel", "quick", "solid",
            "glass", "studio", "heavy", "slim",
        ];
        WORDS[self.roll(WORDS.len() as u64) as usize]
    }
}

/// One line for COPY: about 1 kB, between 0.4 and 1.8.
fn object_line(key: u32) -> String {
    let mut dice = Dice(u64::from(key).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        dice.roll(2);
    }
    let mut line = String::with_capacity(2048);
    let name = format!("{} {} {}-{}", dice.word(), dice.word(), number(key), part(key));
    let (euros, cents) = (1 + dice.roll(499), dice.roll(100));
    // Writing to a String cannot fail.
    let _ = write!(line, "{key}\t{}\t{name}\t{euros}.{cents:02}\t{INITIAL_STOCK}\t", kind(key));
    let _ = write!(
        line,
        "{{\"colour\":\"{}\",\"weight_g\":{},\"tags\":[\"{}\",\"{}\"],\"supplier\":{}}}\t",
        dice.word(),
        dice.roll(20_000),
        dice.word(),
        dice.word(),
        dice.roll(400)
    );
    for _ in 0..45 + dice.roll(210) {
        line.push_str(dice.word());
        line.push(' ');
    }
    line.push('\n');
    line
}
