//! Five triggers as people write them, each unlike the others, and rows of widely varying size for them.
//!
//! Every trigger is the only one of a managed table of its name. What it costs follows from the row: from
//! its text, the length of an array, or not at all.

use super::known::managed_table;
use super::{Random, Server};
use foreshard_test::{Client, Error, Result, SqlError};

/// A table with its trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// Writes old and new row as JSON into an audit table; on UPDATE.
    Audit,
    /// Computes a tsvector of a text of 100 to 5000 characters, in PL/pgSQL.
    Words,
    /// Increments a row of a table of counters: costs the same whatever the row.
    Counter,
    /// Inserts a child row for every element of an array.
    Cascade,
    /// Computes something in a loop over an array.
    Loop,
}

/// The plain tables the triggers write to, and their functions.
const SETUP: &str = "
    CREATE TABLE audit_log (at timestamptz NOT NULL, old jsonb NOT NULL, new jsonb NOT NULL);
    CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO audit_log VALUES (clock_timestamp(), to_jsonb(OLD), to_jsonb(NEW));
        RETURN NULL;
    END $$;
    CREATE FUNCTION words() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.found := to_tsvector('pg_catalog.english', NEW.body);
        RETURN NEW;
    END $$;
    -- Many counters and room in their pages: versions of a counter do not pile up.
    CREATE TABLE tally (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 30);
    INSERT INTO tally SELECT g, 0 FROM generate_series(0, 9999) g;
    CREATE FUNCTION counter() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        UPDATE tally SET n = n + 1 WHERE id = NEW.tally_id;
        RETURN NULL;
    END $$;
    CREATE TABLE child (parent_id bigint NOT NULL, item int NOT NULL, note text NOT NULL);
    CREATE FUNCTION cascade() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO child SELECT NEW.id, item, 'item ' || item FROM unnest(NEW.items) item;
        RETURN NULL;
    END $$;
    CREATE FUNCTION loop() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        item int;
        sum bigint := 0;
    BEGIN
        FOREACH item IN ARRAY NEW.items LOOP
            sum := sum + item % 7;
        END LOOP;
        RETURN NEW;
    END $$;";

impl Case {
    /// All of them.
    pub const ALL: [Case; 5] = [Case::Audit, Case::Words, Case::Counter, Case::Cascade, Case::Loop];

    /// The name of the table, the trigger and its function.
    pub fn name(self) -> &'static str {
        match self {
            Case::Audit => "audit",
            Case::Words => "words",
            Case::Counter => "counter",
            Case::Cascade => "cascade",
            Case::Loop => "loop",
        }
    }

    /// The operation that fires it.
    pub fn operation(self) -> &'static str {
        if self == Case::Audit { "UPDATE" } else { "INSERT" }
    }

    fn columns(self) -> &'static str {
        match self {
            Case::Audit => {
                ", name text, address text, tags text[], amount numeric, version int NOT NULL DEFAULT 0"
            }
            Case::Words => ", body text NOT NULL, found tsvector",
            Case::Counter => ", tally_id int NOT NULL, note text",
            Case::Cascade | Case::Loop => ", items int[] NOT NULL",
        }
    }

    fn timing(self) -> &'static str {
        if matches!(self, Case::Words | Case::Loop) { "BEFORE" } else { "AFTER" }
    }
}

/// Creates tables and triggers.
pub fn create_cases(server: &mut Server) -> Result<()> {
    server.query(SETUP)?;
    for case in Case::ALL {
        let name = case.name();
        managed_table(server, name, case.columns())?;
        server.query(&format!(
            "CREATE TRIGGER {name} {} {} ON {name} FOR EACH ROW EXECUTE FUNCTION {name}()",
            case.timing(),
            case.operation()
        ))?;
    }
    Ok(())
}

/// Makes rows; the same ones for the same seed.
pub struct Rows {
    random: Random,
    next_id: u64,
    vocabulary: Vec<String>,
}

impl Rows {
    /// Rows of a seed.
    pub fn new(seed: u64) -> Rows {
        let mut random = Random::new(seed);
        let syllables = ["ka", "ler", "mi", "ton", "sus", "ing", "bra", "ed", "por", "ous", "ve", "tion"];
        let vocabulary = (0..2_000)
            .map(|_| {
                let count = 1 + random.below(4);
                (0..count).map(|_| syllables[random.below(12) as usize]).collect()
            })
            .collect();
        Rows { random, next_id: 1, vocabulary }
    }

    /// Goes on with this key.
    pub fn skip_to(&mut self, id: u64) {
        self.next_id = id;
    }

    /// Between two sizes, every order of magnitude as often as any other.
    fn size(&mut self, least: f64, most: f64) -> usize {
        let share = self.random.below(1_000_001) as f64 / 1e6;
        (least * (most / least).powf(share)).round() as usize
    }

    /// Words of about so many characters together.
    fn text(&mut self, characters: usize) -> String {
        let mut text = String::with_capacity(characters + 12);
        while text.len() < characters {
            let word = self.random.below(self.vocabulary.len() as u64) as usize;
            text.push_str(&self.vocabulary[word]);
            text.push(' ');
        }
        text
    }

    fn numbers(&mut self, count: usize) -> String {
        let numbers: Vec<String> = (0..count).map(|_| self.random.below(1_000_000).to_string()).collect();
        format!("[{}]", numbers.join(","))
    }

    /// A row like another, with a key of its own; of a case whose trigger fires on UPDATE, the row itself.
    pub fn again(&mut self, case: Case, row: &str) -> String {
        match row.split_once(',') {
            Some((_, rest)) if case != Case::Audit => {
                self.next_id += 1;
                format!("{{\"id\": {},{rest}", self.next_id - 1)
            }
            _ => row.to_string(),
        }
    }

    /// A new row of a case's table, as a JSON object.
    pub fn row(&mut self, case: Case) -> String {
        let id = self.next_id;
        self.next_id += 1;
        match case {
            Case::Audit => {
                let (name, address, tags) =
                    (self.size(5.0, 400.0), self.size(10.0, 4_000.0), self.size(1.0, 60.0));
                let tags: Vec<String> = (0..tags).map(|_| format!("\"{}\"", self.text(6).trim())).collect();
                let amount = self.random.below(10_000_000);
                format!(
                    "{{\"id\": {id}, \"name\": \"{}\", \"address\": \"{}\", \"tags\": [{}], \"amount\": {amount}.25, \"version\": 0}}",
                    self.text(name),
                    self.text(address),
                    tags.join(",")
                )
            }
            Case::Words => {
                let size = self.size(100.0, 5_000.0);
                format!("{{\"id\": {id}, \"body\": \"{}\"}}", self.text(size))
            }
            Case::Counter => {
                let size = self.size(1.0, 300.0);
                let tally = self.random.below(10_000);
                format!("{{\"id\": {id}, \"tally_id\": {tally}, \"note\": \"{}\"}}", self.text(size))
            }
            Case::Cascade => {
                let items = self.size(1.0, 500.0);
                format!("{{\"id\": {id}, \"items\": {}}}", self.numbers(items))
            }
            Case::Loop => {
                let items = self.size(5.0, 10_000.0);
                format!("{{\"id\": {id}, \"items\": {}}}", self.numbers(items))
            }
        }
    }
}

/// A connection with the statements prepared that [`fire`] runs.
pub fn connect(server: &Server) -> Result<Client> {
    let mut client = server.cluster.connect("postgres")?;
    for case in Case::ALL {
        let name = case.name();
        client.prepare(
            &format!("insert_{name}"),
            &format!("INSERT INTO {name} SELECT r.* FROM jsonb_populate_record(NULL::{name}, $1::jsonb) r"),
        )?;
    }
    client.prepare(
        "fire_audit",
        "UPDATE audit SET version = version + 1 WHERE id = ($1::jsonb ->> 'id')::bigint",
    )?;
    Ok(client)
}

/// Puts a row where it is before its trigger is to fire: only an UPDATE needs one.
pub fn place(client: &mut Client, case: Case, row: &str) -> std::result::Result<(), SqlError> {
    if case == Case::Audit { client.exec_prepared("insert_audit", &[Some(row)]).map(drop) } else { Ok(()) }
}

/// Fires a case's trigger once, for a row that is in place.
pub fn fire(client: &mut Client, case: Case, row: &str) -> Result<()> {
    let statement = match case {
        Case::Audit => "fire_audit".to_string(),
        _ => format!("insert_{}", case.name()),
    };
    let rows = client.exec_prepared(&statement, &[Some(row)])?;
    if rows.affected() == 1 {
        return Ok(());
    }
    Err(Error::new(format!("{statement} changed {} rows instead of 1.", rows.affected()), ""))
}
