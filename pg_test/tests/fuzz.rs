//! Every SQL function of the extension, found in pg_proc, with random and hostile arguments in hostile surroundings: no
//! crash, no XX000, nothing that cannot be cancelled, no relation left over. `make fuzz SECONDS=600 SEED=7` runs longer.

mod hostile;
mod support;

use foreshard_test::{Client, Cluster, ClusterOptions, Error, Result, SqlError, wait_until};
use hostile::{Function, MEANWHILE, WORLD, statements};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::{Random, cluster, database};

/// Sessions at a time.
const SESSIONS: u64 = 2;
/// No statement may take longer, its time-out being 0.3 s.
const LONGEST: Duration = Duration::from_secs(8);
/// What every session begins with, and returns to after each call.
const CALM: &str =
    "RESET ROLE; SET statement_timeout = '300ms'; SET lock_timeout = '100ms'; SET search_path = public";

/// A setting from the environment.
fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Errors of PostgreSQL's own that it calls internal, and that only two sessions at once can meet.
fn excused(message: &str) -> bool {
    let races =
        ["tuple concurrently updated", "tuple concurrently deleted", "could not open relation with OID"];
    races.iter().any(|race| message.contains(race))
}

/// What one session saw.
#[derive(Default)]
struct Seen {
    /// Calls, those that went well, and their time by function.
    calls: BTreeMap<String, (u64, u64, Duration)>,
    /// Errors by SQLSTATE.
    codes: BTreeMap<String, u64>,
    /// Failures, the first of each message.
    failures: BTreeMap<String, String>,
}

impl Seen {
    fn note(&mut self, sql: &str, outcome: &std::result::Result<(), SqlError>, took: Duration) {
        if took > LONGEST {
            self.failures.insert(format!("took {took:?}: {}", shorten(sql)), sql.to_string());
        }
        let Err(error) = outcome else { return };
        *self.codes.entry(error.sqlstate.clone()).or_default() += 1;
        let bad = error.sqlstate.starts_with("XX") && !excused(&error.message);
        if bad || error.is_connection_loss() {
            let what = format!("{}: {}", error.sqlstate, shorten(&error.message));
            self.failures.entry(what).or_insert_with(|| shorten(sql));
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(400).collect()
}

fn functions(client: &mut Client) -> Result<Vec<Function>> {
    let rows = client.exec(
        "SELECT p.oid::regprocedure::text, p.pronamespace::regnamespace || '.' || quote_ident(p.proname), \
                (SELECT string_agg(format_type(a.t, NULL), '|' ORDER BY a.n) FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY a (t, n)), p.pronargdefaults \
         FROM pg_proc p WHERE p.pronamespace = 'foreshard'::regnamespace AND p.prokind = 'f' ORDER BY 1",
    )?;
    let text = |row: usize, column: usize| rows.get(row, column).unwrap_or_default().to_string();
    let one = |row: usize| Function {
        name: text(row, 1),
        arguments: text(row, 2).split('|').filter(|kind| !kind.is_empty()).map(str::to_owned).collect(),
        defaults: text(row, 3).parse().unwrap_or(0),
    };
    Ok((0..rows.len()).map(one).collect())
}

fn prepare(cluster: &Cluster) -> Result<Client> {
    let mut elsewhere = cluster.connect("postgres")?;
    elsewhere.exec("CREATE TABLE far (id int)")?;
    let other = elsewhere.query_one("SELECT 'far'::regclass::oid")?;
    let mut client = database(cluster, "d")?;
    client.exec(WORLD)?;
    client.exec(&format!("INSERT INTO elsewhere VALUES ({other})"))?;
    if client.exec("CREATE EXTENSION postgres_fdw").is_ok() {
        client.exec(&format!(
            "CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '{}', port '{}', dbname 'postgres'); \
             CREATE USER MAPPING FOR postgres SERVER loop OPTIONS (user 'postgres'); \
             CREATE FOREIGN TABLE a_foreign (id int) SERVER loop",
            cluster.socket_dir().display(),
            cluster.port()
        ))?;
    }
    Ok(client)
}

/// One session, until the time is over, but every function at least once.
fn session(
    cluster: &Cluster,
    functions: &[Function],
    part: usize,
    seed: u64,
    time: Duration,
) -> Result<Seen> {
    let mut random = Random(seed);
    let mut seen = Seen::default();
    let mut client = cluster.connect("d")?;
    let parallel = if cluster.install().major >= 16 { "debug_parallel_query" } else { "force_parallel_mode" };
    let begin = Instant::now();
    let first = random.below(functions.len() as u64) as usize;
    run(cluster, &mut client, CALM, &mut seen)?;
    // No argument may be NULL without a word.
    for function in functions.iter().skip(part).step_by(SESSIONS as usize) {
        for at in 0..function.arguments.len() {
            let sql = format!("SELECT * FROM {}", function.call_with_null(at, &mut random));
            run(cluster, &mut client, &sql, &mut seen)?;
        }
    }
    let mut round = 0;
    while round < functions.len() || begin.elapsed() < time {
        let function = &functions[(first + round) % functions.len()];
        round += 1;
        if random.below(6) == 0 {
            run(cluster, &mut client, random.pick(&MEANWHILE), &mut seen)?;
        }
        let call = function.call(&mut random);
        let start = Instant::now();
        let mut well = true;
        for sql in statements(&call, &mut random, parallel) {
            well &= run(cluster, &mut client, &sql, &mut seen)?;
        }
        // Whatever the calls left open.
        run(cluster, &mut client, "ROLLBACK", &mut seen)?;
        run(cluster, &mut client, CALM, &mut seen)?;
        let count = seen.calls.entry(function.name.clone()).or_default();
        *count = (count.0 + 1, count.1 + u64::from(well), count.2 + start.elapsed());
    }
    Ok(seen)
}

/// Runs a statement; whether it went well. After a crash there is a new connection.
fn run(cluster: &Cluster, client: &mut Client, sql: &str, seen: &mut Seen) -> Result<bool> {
    let begin = Instant::now();
    let outcome = client.exec(sql).map(drop);
    seen.note(sql, &outcome, begin.elapsed());
    if outcome.as_ref().is_err_and(SqlError::is_connection_loss) {
        wait_until("the server is back", Duration::from_secs(30), || Ok(cluster.connect("d").is_ok()))?;
        *client = cluster.connect("d")?;
    }
    Ok(outcome.is_ok())
}

/// Ends what is still moving; then nothing is left that nobody owns, and DROP EXTENSION takes everything along.
fn nothing_is_left(client: &mut Client) -> Result<()> {
    client.exec("RESET ALL; SET statement_timeout = '30s'; DROP TRIGGER IF EXISTS hostile ON plain")?;
    let under_way = "SELECT move_id FROM foreshard.move WHERE NOT finished AND NOT cancel_requested AND NOT rollback_requested";
    wait_until("all moves have ended", Duration::from_secs(60), || {
        for move_id in client.exec(under_way)?.to_text().lines() {
            // It may just have ended, or be past its cutover.
            let _ = client.exec(&format!("SELECT foreshard.resume_move({move_id})"));
            let _ = client.exec(&format!("SELECT foreshard.cancel_move({move_id})"));
        }
        Ok(client.query_one("SELECT count(*) FROM foreshard.move WHERE NOT finished")? == "0")
    })?;
    let left = "SELECT object, problem FROM foreshard.check() WHERE problem ~ 'left over|captures changes'";
    assert_eq!(client.exec(left)?.to_text(), "", "left over");
    client.exec("DROP EXTENSION foreshard CASCADE")?;
    let left = "SELECT relname FROM pg_class WHERE relname ~ '^(shadow|capture|split|place)_[0-9]' AND relkind <> 'i'";
    assert_eq!(client.exec(left)?.to_text(), "", "outlived the extension");
    Ok(())
}

/// What the log says of workers and of the server.
fn log_failures(log: &str, failures: &mut BTreeMap<String, String>) {
    let bad = ["PANIC:", "terminated by signal", "TRAP:"];
    let leaks = [" leak", "still referenced", "not closed", "still active"];
    for line in log.lines() {
        // The words of a statement are not the server's.
        if line.contains("STATEMENT:") || line.contains("CONTEXT:") {
            continue;
        }
        let internal =
            line.contains(" XX") && (line.contains("ERROR:") || line.contains("FATAL:")) && !excused(line);
        let leak = line.contains("WARNING:") && leaks.iter().any(|word| line.contains(word));
        if internal || leak || bad.iter().any(|word| line.contains(word)) {
            let what = line.split("  ").skip(1).collect::<Vec<_>>().join("  ");
            failures.entry(format!("log: {}", shorten(&what))).or_insert_with(|| shorten(line));
        }
    }
}

#[test]
fn no_function_can_be_broken() -> Result<()> {
    let time = Duration::from_secs(asked("FORESHARD_FUZZ_SECONDS", 3));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seed = asked("FORESHARD_FUZZ_SEED", if std::env::var_os("CI").is_some() { 1 } else { now });
    println!("seed {seed}");
    let options = ClusterOptions::new("fuzz")
        .set("log_error_verbosity", "verbose")
        .set("fsync", "off")
        .set("jit", "off")
        .set("foreshard.bucket", "1");
    let cluster = cluster(&options)?;
    let mut client = prepare(&cluster)?;
    let functions = functions(&mut client)?;
    assert!(functions.len() > 60, "only {} functions", functions.len());
    let sessions: Vec<Seen> = std::thread::scope(|scope| {
        let (cluster, functions) = (&cluster, &functions);
        let started: Vec<_> = (0..SESSIONS)
            .map(|n| (n as usize, seed.wrapping_mul(0x9E37).wrapping_add(n)))
            .map(|(part, seed)| scope.spawn(move || session(cluster, functions, part, seed, time)))
            .collect();
        let ended = started
            .into_iter()
            .map(|one| one.join().unwrap_or_else(|_| Err(Error::new("A session ended.", ""))));
        ended.collect::<Result<_>>()
    })?;
    let mut failures = BTreeMap::new();
    let mut calls = 0;
    for seen in sessions {
        println!("{:?}", seen.codes);
        calls += seen.calls.values().map(|(calls, ..)| calls).sum::<u64>();
        for (function, (calls, well, time)) in &seen.calls {
            println!("{function}: {calls} calls, {well} went well, {time:.1?}");
        }
        failures.extend(seen.failures);
    }
    println!("{calls} calls of {} functions", functions.len());
    log_failures(&cluster.log_contents(), &mut failures);
    let told: Vec<String> = failures.iter().map(|(what, sql)| format!("{what}\n    {sql}")).collect();
    assert!(told.is_empty(), "seed {seed}: {} failures:\n{}", told.len(), told.join("\n"));
    nothing_is_left(&mut client)
}
