//! Every kind of trigger is seen as what it is and still does what it did: row and statement level,
//! deferred, with transition tables, SECURITY DEFINER, SET, written in C, PostgreSQL's own; by INSERT,
//! COPY, ON CONFLICT and TRUNCATE.

mod common;

use common::known::{known_options, managed_table};
use common::profile::{Name, Profile, settled, warm_up};
use common::{PATIENCE, Server};
use foreshard_test::{Client, Result, wait_until};

/// The functions, each with a mark in `seen` that it ran.
const FUNCTIONS: &str = "
    CREATE TABLE seen (what text NOT NULL, detail text);
    CREATE FUNCTION kind_row() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen VALUES (TG_NAME, TG_OP);
        RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END $$;
    CREATE FUNCTION kind_statement() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen VALUES (TG_NAME, TG_OP);
        RETURN NULL;
    END $$;
    CREATE FUNCTION kind_fresh() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO seen SELECT TG_NAME, count(*) || ' ' || sum(id) FROM fresh;
        RETURN NULL;
    END $$;
    CREATE FUNCTION kind_definer() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        INSERT INTO seen VALUES (TG_NAME, current_user);
        RETURN NULL;
    END $$;
    CREATE FUNCTION kind_set() RETURNS trigger LANGUAGE plpgsql SET work_mem = '1234kB' AS $$
    BEGIN
        INSERT INTO seen VALUES (TG_NAME, current_setting('work_mem'));
        RETURN NULL;
    END $$;
    CREATE FUNCTION kind_sql_caller() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE NOTICE 'changed from % to %', OLD.note, NEW.note;
        RETURN NULL;
    END $$;";

const TRIGGERS: [&str; 12] = [
    "CREATE TRIGGER a_row BEFORE INSERT OR DELETE ON kinds FOR EACH ROW EXECUTE FUNCTION kind_row()",
    "CREATE TRIGGER b_row AFTER INSERT OR UPDATE ON kinds FOR EACH ROW EXECUTE FUNCTION kind_row()",
    "CREATE TRIGGER c_before BEFORE INSERT ON kinds FOR EACH STATEMENT EXECUTE FUNCTION kind_statement()",
    "CREATE TRIGGER d_fresh AFTER INSERT ON kinds REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION kind_fresh()",
    "CREATE TRIGGER e_truncate BEFORE TRUNCATE ON kinds FOR EACH STATEMENT EXECUTE FUNCTION kind_statement()",
    "CREATE CONSTRAINT TRIGGER f_deferred AFTER INSERT ON kinds DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION kind_row()",
    "CREATE TRIGGER g_definer AFTER INSERT ON kinds FOR EACH ROW EXECUTE FUNCTION kind_definer()",
    "CREATE TRIGGER h_set AFTER INSERT ON kinds FOR EACH ROW EXECUTE FUNCTION kind_set()",
    "CREATE TRIGGER i_changed BEFORE UPDATE ON kinds FOR EACH ROW EXECUTE FUNCTION moddatetime(changed)",
    "CREATE TRIGGER j_words BEFORE INSERT OR UPDATE ON kinds FOR EACH ROW \
     EXECUTE FUNCTION tsvector_update_trigger(words, 'pg_catalog.simple', note)",
    "CREATE TRIGGER k_when AFTER UPDATE OF note ON kinds FOR EACH ROW WHEN (OLD.note IS DISTINCT FROM NEW.note) \
     EXECUTE FUNCTION kind_sql_caller()",
    "CREATE TRIGGER l_quiet BEFORE UPDATE ON kinds FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
];

/// Everything as (trigger, event, level, timing, function, what foreshard can see of it).
const EXPECTED: [[&str; 6]; 15] = [
    ["a_row", "DELETE", "ROW", "BEFORE", "kind_row()", "all"],
    ["a_row", "INSERT", "ROW", "BEFORE", "kind_row()", "all"],
    ["b_row", "INSERT", "ROW", "AFTER", "kind_row()", "all"],
    ["b_row", "UPDATE", "ROW", "AFTER", "kind_row()", "all"],
    ["c_before", "INSERT", "STATEMENT", "BEFORE", "kind_statement()", "all"],
    ["d_fresh", "INSERT", "STATEMENT", "AFTER", "kind_fresh()", "all"],
    ["e_truncate", "TRUNCATE", "STATEMENT", "BEFORE", "kind_statement()", "all"],
    ["f_deferred", "INSERT", "ROW", "AFTER", "kind_row()", "all"],
    ["g_definer", "INSERT", "ROW", "AFTER", "kind_definer()", "all"],
    ["h_set", "INSERT", "ROW", "AFTER", "kind_set()", "all"],
    ["i_changed", "UPDATE", "ROW", "BEFORE", "moddatetime()", "all"],
    ["j_words", "INSERT", "ROW", "BEFORE", "tsvector_update_trigger()", OWN],
    ["j_words", "UPDATE", "ROW", "BEFORE", "tsvector_update_trigger()", OWN],
    ["k_when", "UPDATE", "ROW", "AFTER", "kind_sql_caller()", "all"],
    ["l_quiet", "UPDATE", "ROW", "BEFORE", "suppress_redundant_updates_trigger()", OWN],
];
/// What can be seen of PostgreSQL's own trigger functions.
const OWN: &str = "elapsed, blocks, wal";

fn start() -> Result<Server> {
    let options = known_options("known-kinds").set("foreshard.statement_sample_interval", "1");
    let mut server = Server::start(&options)?;
    server.query(FUNCTIONS)?;
    server.query("CREATE EXTENSION moddatetime; CREATE TABLE parent (id bigint PRIMARY KEY)")?;
    server.query("INSERT INTO parent SELECT generate_series(1, 10)")?;
    managed_table(
        &mut server,
        "kinds",
        ", note text, words tsvector, changed timestamptz, parent_id bigint REFERENCES parent",
    )?;
    server.query("ALTER TABLE kinds ALTER changed SET DEFAULT '2000-01-01'")?;
    TRIGGERS.iter().try_for_each(|sql| server.query(sql).map(drop))?;
    Ok(server)
}

/// One round of statements, every row with keys from `first` on.
fn act(client: &mut Client, first: u64) -> Result<()> {
    let key = |offset: u64| first + offset;
    client.exec("BEGIN")?;
    client.exec(&format!(
        "INSERT INTO kinds (id, note, parent_id) SELECT g, 'one two', 1 FROM generate_series({}, {}) g",
        key(0),
        key(9)
    ))?;
    client.exec("COMMIT")?;
    let mut row = 10;
    client.copy_in("COPY kinds (id, note, parent_id) FROM STDIN", |buffer| {
        buffer.extend_from_slice(format!("{}\tthree\t2\n", key(row)).as_bytes());
        row += 1;
        row < 20
    })?;
    client.exec(&format!("UPDATE kinds SET note = note || ' four' WHERE id = {}", key(0)))?;
    // Changes nothing but the time of change, which is done before anyone looks for redundancy.
    client.exec(&format!("UPDATE kinds SET note = note WHERE id = {}", key(1)))?;
    client.exec(&format!(
        "INSERT INTO kinds (id, note) VALUES ({}, 'again') ON CONFLICT (id) DO UPDATE SET note = EXCLUDED.note",
        key(2)
    ))?;
    client.exec(&format!("DELETE FROM kinds WHERE id = {}", key(3)))?;
    client.exec("TRUNCATE kinds")?;
    Ok(())
}

/// Calls of each of [`EXPECTED`] in one round of [`act`]. PostgreSQL's own functions are counted by the
/// executor, which COPY does without; and it does not say which of the two events of an ON CONFLICT it was.
const CALLS: [u64; 15] = [1, 21, 20, 3, 3, 3, 1, 20, 20, 20, 3, 11, 2, 2, 2];

#[test]
fn every_kind_is_seen_as_what_it_is() -> Result<()> {
    let mut server = start()?;
    let mut client = server.cluster.connect("postgres")?;
    let names: Vec<Name> = EXPECTED.iter().map(|row| ("kinds", row[0], row[1])).collect();
    let mut first = 1_000;
    let before = warm_up(&mut server, &names, || {
        first += 1_000;
        act(&mut client, first)
    })?;
    client.exec("TRUNCATE seen")?;
    for round in 1..=4 {
        act(&mut client, round * 100)?;
    }
    assert_eq!(
        client.take_notices().last().map(String::as_str),
        Some("NOTICE: changed from one two to again")
    );
    what_they_do(&mut client, 4)?;
    let after = settled(&mut server, &names)?;
    what_is_seen(&mut server, &before, &after, 4)?;
    foreign_keys(&mut server, &mut client)
}

/// The triggers' own marks are those of a server without foreshard.
fn what_they_do(client: &mut Client, rounds: u64) -> Result<()> {
    let marks = client.exec(
        "SELECT what, detail, count(*) FROM seen GROUP BY what, detail ORDER BY what COLLATE \"C\", detail COLLATE \"C\"",
    )?;
    let mut expected: Vec<String> = [
        ("a_row", "DELETE", 1),
        ("a_row", "INSERT", 21),
        ("b_row", "INSERT", 20),
        ("b_row", "UPDATE", 3),
        ("c_before", "INSERT", 3),
        ("e_truncate", "TRUNCATE", 1),
        ("f_deferred", "INSERT", 20),
        ("g_definer", "postgres", 20),
        ("h_set", "1234kB", 20),
    ]
    .iter()
    .map(|(what, detail, times)| format!("{what}|{detail}|{}", times * rounds))
    .collect();
    let all = marks.to_text();
    let (fresh, others): (Vec<&str>, Vec<&str>) = all.lines().partition(|line| line.starts_with("d_fresh"));
    expected.sort();
    assert_eq!(others, expected);
    // Ten rows by INSERT, ten by COPY, none by the INSERT that became an UPDATE.
    let key = |from: u64| (from..from + 10).sum::<u64>();
    let mut sums: Vec<String> = (1..=rounds)
        .flat_map(|round| [key(round * 100), key(round * 100 + 10)])
        .map(|sum| format!("d_fresh|10 {sum}|1"))
        .collect();
    sums.push(format!("d_fresh||{rounds}"));
    sums.sort();
    let mut fresh: Vec<String> = fresh.into_iter().map(String::from).collect();
    fresh.sort();
    assert_eq!(fresh, sums);
    assert_eq!(client.query_one("SHOW work_mem")?, "4MB");
    Ok(())
}

fn what_is_seen(server: &mut Server, before: &[Profile], after: &[Profile], rounds: u64) -> Result<()> {
    for (index, row) in EXPECTED.iter().enumerate() {
        let found = server.query(&format!(
            "SELECT trigger, event, level, timing, function, sees FROM foreshard.stat_triggers \
             WHERE \"table\" = 'kinds'::regclass AND trigger = '{}' AND event = '{}'",
            row[0], row[1]
        ))?;
        assert_eq!(found, row.join("|"));
        let since = after[index].since(before[index]);
        let calls = (CALLS[index] * rounds) as f64;
        println!("{:<10} {:<8} {:?}", row[0], row[1], since);
        let unclear = if row[5] == "all" { 0.0 } else { rounds as f64 };
        assert!((calls..=calls + unclear).contains(&since.calls), "{row:?}: {calls} calls, but {since:?}");
        assert_eq!((since.sampled, since.failed), (since.calls, 0.0), "{row:?}");
        // Of PostgreSQL's own functions the processor's time cannot be seen, and is not made up.
        assert_eq!(since.cpu_us > 0.0, row[5] == "all", "{row:?} {since:?}");
        assert!(since.elapsed_us > 0.0, "{row:?} {since:?}");
    }
    let impossible = server.query(
        "SELECT s.trigger, s.event FROM foreshard.stat_triggers s JOIN pg_trigger t ON t.tgrelid = s.\"table\" AND t.tgname = s.trigger \
         WHERE t.tgtype & CASE s.event WHEN 'INSERT' THEN 4 WHEN 'DELETE' THEN 8 WHEN 'UPDATE' THEN 16 ELSE 32 END = 0",
    )?;
    assert_eq!(impossible, "", "triggers seen at events for which they are not defined");
    Ok(())
}

/// The checks of a foreign key, by INSERT on one side and DELETE on the other.
fn foreign_keys(server: &mut Server, client: &mut Client) -> Result<()> {
    managed_table(server, "fathers", "")?;
    managed_table(server, "sons", ", father_id bigint REFERENCES fathers")?;
    client.exec("INSERT INTO fathers SELECT generate_series(1, 1000)")?;
    let check = "SELECT coalesce(sum(sampled_calls), 0), coalesce(bool_and(cpu_us IS NULL AND sees = 'elapsed, blocks, wal'), false), \
                 coalesce(sum(blocks_hit * sampled_calls), 0) FROM foreshard.stat_triggers WHERE \"table\" = ";
    let of_sons = format!(
        "{check}'sons'::regclass AND function = '\"RI_FKey_check_ins\"'::regproc AND event = 'INSERT'"
    );
    let of_fathers = format!(
        "{check}'fathers'::regclass AND function = '\"RI_FKey_noaction_del\"'::regproc AND event = 'DELETE'"
    );
    let mut key = 0;
    let mut seen = (0.0, 0.0);
    foreshard_test::wait_until("the checks of foreign keys are seen", common::PATIENCE, || {
        key += 1;
        client.exec(&format!("INSERT INTO sons VALUES ({key}, {key})"))?;
        client.exec(&format!("DELETE FROM fathers WHERE id = {}", 1000 - key))?;
        let number = |text: String| text.split('|').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0);
        seen = (number(server.query(&of_sons)?), number(server.query(&of_fathers)?));
        Ok(seen.0 > 0.0 && seen.1 > 0.0)
    })?;
    for sql in [of_sons, of_fathers] {
        let text = server.query(&sql)?;
        let fields: Vec<&str> = text.split('|').collect();
        assert_eq!(fields[1], "t", "{text}");
        assert!(fields[2].parse::<f64>().unwrap_or(0.0) > 0.0, "a check touches blocks: {text}");
    }
    Ok(())
}

/// Triggers that moves install are counted like others. Every move has others, so nothing is learnt of them, and what a keeper remembers
/// does not grow by them: that is told in the log.
#[test]
fn triggers_of_moves_are_counted_and_not_learnt() -> Result<()> {
    let mut server = Server::start(&known_options("known-moves").set("log_min_messages", "debug1"))?;
    server.query("CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$")?;
    managed_table(&mut server, "moving", ", v int")?;
    server.query("INSERT INTO moving SELECT g, 0 FROM generate_series(1, 400) g")?;
    server.query("CREATE TRIGGER own BEFORE UPDATE ON moving FOR EACH ROW EXECUTE FUNCTION own()")?;
    server.hold(Some("catch_up"))?;
    let slot = server.slots("moving")?.remove(0);
    let move_id = server.move_slot(&slot)?;
    server.wait_phase(&move_id, "catch_up")?;
    let known = "SELECT coalesce(bool_or(samples >= 20) FILTER (WHERE trigger = 'own'), false) AND \
            coalesce(bool_or(sampled_calls >= 20) FILTER (WHERE trigger LIKE 'foreshard_capture%'), false) \
         FROM foreshard.stat_triggers WHERE event = 'UPDATE'";
    wait_until("both triggers are measured", PATIENCE, || {
        server.query("UPDATE moving SET v = v + 1")?;
        Ok(server.query(known)? == "t")
    })?;
    let learnt = "SELECT count(*) FROM foreshard.trigger_profile JOIN foreshard.trigger_model USING (profile_id) \
         WHERE function_oid = 'foreshard.capture()'::regprocedure";
    assert_eq!(server.query(learnt)?, "0");
    server.hold(None)?;
    server.wait_end(&move_id, "done")?;
    // A keeper tells that once a minute, the first time as soon as it runs.
    assert!(server.cluster.log_contents().contains("foreshard keeper: remembers "));
    Ok(())
}
