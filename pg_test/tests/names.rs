//! Hosts that are given by name while no name server answers: nobody waits for the resolver, which takes its time. Skipped where tests
//! do not run as root, who alone can give a server a name server of its own.

mod common;

use common::nodes::World;
use common::placed::expect_code;
use foreshard_test::{Result, StopMode};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

/// Where a name server listens that says nothing.
const SILENT: &str = "127.53.0.1";
/// With these the resolver takes at least 20 s for a name.
const OPTIONS: &str = "options timeout:10 attempts:2";
/// Longest time for a look-up, and for what comes before and behind it on a busy machine.
const BOUND: Duration = Duration::from_secs(9);

#[test]
fn nobody_waits_for_name_servers() -> Result<()> {
    let mut world = World::with_nodes("names")?;
    world.tables(2)?;
    let slot = world.here.slots("acc")?[0].clone();
    let move_id = world.move_to(&slot, "on_n1")?;
    world.here.wait_end(&move_id, "done")?;
    let place = format!("host '{}', port '{}'", world.there.socket_dir().display(), world.there.port());
    world.here.query(&format!(
        "CREATE SERVER s_far FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({place}, dbname 'postgres'); \
         CREATE USER MAPPING FOR postgres SERVER s_far OPTIONS (user 'postgres'); \
         SELECT foreshard.add_data_source('far', 'numbers', 'number', 'next', \
             'SELECT g, g + 1 FROM pg_catalog.unnest($1::int8[]) g', servers => '[\"s_far\"]'); \
         CREATE SERVER s_new FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'new.example', dbname 'postgres'); \
         CREATE USER MAPPING FOR postgres SERVER s_new OPTIONS (user 'postgres')"
    ))?;
    let Ok(_silent) = UdpSocket::bind((SILENT, 53)) else {
        println!("skipped: no name server can be played");
        return Ok(());
    };
    let conf = world.here.cluster.data_dir().join("resolv.conf");
    std::fs::write(&conf, format!("nameserver {SILENT}\n{OPTIONS}\n"))?;
    world.here.cluster.stop(StopMode::Fast)?;
    if !world.here.cluster.start_with_names(&conf)? {
        println!("skipped: a server cannot be given a name server of its own");
        return Ok(());
    }

    // Sessions.
    let mut c = world.here.cluster.connect("postgres")?;
    let begun = Instant::now();
    let error = expect_code(c.exec("SELECT foreshard.add_node('new', 's_new')"), "08001");
    println!("add_node gave up after {:?}", begun.elapsed());
    assert!(error.message.contains("was not looked up in time"), "{error}");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("hostaddr")), "{error}");
    assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    c.exec("ALTER SERVER s_far OPTIONS (SET host 'far.example')")?;
    c.exec("SET foreshard.resolve_timeout = 500")?;
    let begun = Instant::now();
    let asked = c.exec("SELECT count(*) FROM foreshard.resolve('far', 'number', ARRAY[1, 2], 'next')");
    println!("resolve() gave up after {:?}: {:?}", begun.elapsed(), asked.err().map(|e| e.to_string()));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());

    // Health checks: one node that is given by name keeps no other from being looked at.
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    world.here.query("ALTER SERVER s_n1 OPTIONS (SET host 'n1.example')")?;
    world.here.wait_query("SELECT state FROM foreshard.nodes WHERE node = 'n1'", "down")?;
    let why = "SELECT last_error LIKE '%was not looked up in time%' FROM foreshard.nodes WHERE node = 'n1'";
    assert_eq!(world.here.query(why)?, "t");
    for _ in 0..3 {
        let begun = Instant::now();
        let since = world.here.query("SELECT clock_timestamp()")?;
        let looked =
            format!("SELECT coalesce(checked_at > '{since}', false) FROM foreshard.nodes WHERE node = 'n2'");
        world.here.wait_query(&looked, "t")?;
        assert!(begun.elapsed() < BOUND, "n2 was not looked at for {:?}", begun.elapsed());
    }
    // Nor does a statement wait, and a worker leaves when it is told to.
    let begun = Instant::now();
    assert_eq!(world.here.fails("SELECT count(*) FROM acc")?.sqlstate, "08006");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    std::thread::sleep(Duration::from_millis(1_500));
    let begun = Instant::now();
    world.here.cluster.stop(StopMode::Fast)?;
    println!("stopped in {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(world.here.cluster.start_with_names(&conf)?);
    let path = world.there.socket_dir().display().to_string();
    world.here.query(&format!("ALTER SERVER s_n1 OPTIONS (SET host '{path}')"))?;
    world.here.wait_query("SELECT bool_and(state = 'up') FROM foreshard.nodes", "t")?;
    world.assert_nothing_left()
}
