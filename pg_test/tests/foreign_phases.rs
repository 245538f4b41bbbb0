//! Every way a slot can go (to a node, from node to node, home) × every phase of its move × whatever can be lost meanwhile: the
//! carrier, this server, either node, the link to either of them. Under writers, who lose nothing.
//!
//! By default each phase of each way meets one of them (each phase all kinds), versions taking every other phase; `FORESHARD_LONG=1` all.

mod common;

use common::ledger::Ledger;
use common::nodes::{PHASES, ROWS, World};
use foreshard_test::{Link, Result, in_turn};
use std::time::Duration;

/// The ways, one after the other: where a slot goes, and which nodes take part.
const WAYS: [(&str, &[usize]); 3] = [("on_n1", &[0]), ("on_n2", &[0, 1]), ("sb", &[1])];

/// Where a move stands beyond the phases that all go through: while the old copy is kept, when it goes back, when it was
/// cancelled, and when the copies differ.
const OTHERS: [&str; 4] = ["watch", "rollback", "revert", "revert_failed"];

/// What is lost of processes.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Carrier,
    Here,
    Node(usize),
}

fn places() -> Vec<&'static str> {
    PHASES.iter().chain(&OTHERS).copied().collect()
}

fn is_long() -> bool {
    std::env::var_os("FORESHARD_LONG").is_some()
}

/// A slot on its way, held.
struct Held<'a> {
    slot: &'a str,
    to: &'a str,
    move_id: String,
    carrier: i32,
    end: &'static str,
}

/// Begins a move and holds it at a place.
fn hold<'a>(world: &mut World, slot: &'a str, to: &'a str, place: &str) -> Result<Held<'a>> {
    world.here.wait_query("SELECT bool_and(state = 'up' AND held) FROM foreshard.nodes", "t")?;
    let (first, end) = match place {
        "watch" => ("watch", "done"),
        "rollback" => ("watch", "cancelled"),
        "revert" => ("catch_up", "cancelled"),
        "revert_failed" => ("verify", "failed"),
        phase => (phase, "done"),
    };
    let window = if first == "watch" { "600" } else { "0" };
    world.here.set(&[("foreshard.rollback_window", window), ("foreshard.hold_at_phase", first)])?;
    let move_id = world.move_to(slot, to)?;
    let mut carrier = world.here.wait_phase(&move_id, first)?;
    match place {
        "rollback" => {
            world.here.query(&format!("SELECT foreshard.rollback_move({move_id})"))?;
        }
        "revert" => {
            world.here.query(&format!("SELECT foreshard.cancel_move({move_id})"))?;
        }
        "revert_failed" => {
            let copy = format!(
                "SELECT shadow::regclass FROM foreshard.move_relation WHERE move_id = {move_id} ORDER BY source LIMIT 1"
            );
            let copy = world.here.query(&copy)?;
            // So many that no writer comes by all of them.
            world.here.query(&format!(
                "DELETE FROM {copy} WHERE id IN (SELECT id FROM {copy} ORDER BY id LIMIT 200)"
            ))?;
        }
        _ => {}
    }
    if place.starts_with("revert") {
        world.here.hold(Some(place))?;
        carrier = world.here.wait_phase(&move_id, place)?;
    }
    Ok(Held { slot, to, move_id, carrier, end })
}

/// Lets a move go on.
fn let_go(world: &mut World, place: &str) -> Result<()> {
    // A way back has all the time that it needs, an old copy that is kept hardly any more.
    let window = match place {
        "rollback" => "600",
        "watch" => "1",
        _ => "0",
    };
    world.here.set(&[("foreshard.hold_at_phase", ""), ("foreshard.rollback_window", window)])
}

/// Whatever was lost, the move ends as it should, everything that was committed is there, and nothing else; then the slot is
/// where the next way begins.
fn ends_well(world: &mut World, ledger: &Ledger, held: &Held<'_>) -> Result<()> {
    world.here.wait_end(&held.move_id, held.end)?;
    ledger.work(20)?;
    ledger.assert_equal(&mut world.here)?;
    world.assert_nothing_left()?;
    if held.end != "done" {
        world.here.wait_query("SELECT bool_and(state = 'up' AND held) FROM foreshard.nodes", "t")?;
        world.here.set(&[("foreshard.rollback_window", "0")])?;
        let move_id = world.move_to(held.slot, held.to)?;
        world.here.wait_end(&move_id, "done")?;
    }
    assert_eq!(world.shard_of(held.slot)?, held.to);
    Ok(())
}

/// Brings the slot to where a way begins.
fn go_back(world: &mut World, slot: &str, way: usize) -> Result<()> {
    world.here.wait_query("SELECT bool_and(state = 'up' AND held) FROM foreshard.nodes", "t")?;
    world.here.set(&[("foreshard.rollback_window", "0")])?;
    let back = world.move_to(slot, ["sa", "on_n1", "on_n2"][way])?;
    world.here.wait_end(&back, "done")
}

/// What is killed in a place of a way: all in turn, or everything.
fn victims(place: usize, way: usize) -> Vec<Victim> {
    let nodes = WAYS[way].1;
    if is_long() {
        let nodes = nodes.iter().map(|node| Victim::Node(*node));
        return [Victim::Carrier, Victim::Here].into_iter().chain(nodes).collect();
    }
    vec![match (place / 2 + way) % 3 {
        0 => Victim::Carrier,
        1 => Victim::Here,
        _ => Victim::Node(nodes[(place / 2) % nodes.len()]),
    }]
}

fn kill(world: &mut World, victim: Victim, carrier: i32) -> Result<()> {
    match victim {
        Victim::Carrier => {
            // One that was let go may have ended.
            let _ = world.here.cluster.kill9(carrier);
            Ok(())
        }
        Victim::Here => {
            world.here.cluster.kill9_postmaster()?;
            world.here.cluster.start_again()
        }
        Victim::Node(0) => world.there.kill9_postmaster(),
        Victim::Node(_) => world.apart.as_mut().ok_or("no second server")?.kill9_postmaster(),
    }
}

fn bring_back(world: &mut World, victim: Victim) -> Result<()> {
    let Victim::Node(node) = victim else { return Ok(()) };
    std::thread::sleep(Duration::from_millis(150));
    match node {
        0 => world.there.start_again(),
        _ => world.apart.as_mut().ok_or("no second server")?.start_again(),
    }
}

#[test]
fn crashes_of_every_side_in_every_phase_of_every_way() -> Result<()> {
    let mut world = World::with_two_servers("phases-crash", false)?;
    world.tables(2)?;
    let ledger = Ledger::start_plain(&world.here, ROWS, 2);
    let slot = world.here.slots("acc")?[0].clone();
    let mut round = 0;
    for (number, place) in in_turn(&places()) {
        for (way, (to, _)) in WAYS.iter().enumerate() {
            for (again, victim) in victims(number, way).into_iter().enumerate() {
                if again > 0 {
                    go_back(&mut world, &slot, way)?;
                }
                // While it is held, or in the middle of what comes then.
                let early = round % 2 == 0;
                round += 1;
                println!(
                    "{victim:?} killed in {place} of a move to {to}, {}",
                    if early { "early" } else { "late" }
                );
                let held = hold(&mut world, &slot, to, place)?;
                ledger.work(20)?;
                if early {
                    kill(&mut world, victim, held.carrier)?;
                    let_go(&mut world, place)?;
                } else {
                    let_go(&mut world, place)?;
                    std::thread::sleep(Duration::from_millis(3));
                    kill(&mut world, victim, held.carrier)?;
                }
                bring_back(&mut world, victim)?;
                ends_well(&mut world, &ledger, &held)?;
            }
        }
    }
    ledger.finish();
    Ok(())
}

/// What happens to which link in a place of a way: (node, what it does, before the move is let go on).
fn cuts(place: usize, way: usize) -> Vec<(usize, Link, bool)> {
    let nodes = WAYS[way].1;
    let number = place / 2 * WAYS.len() + way;
    let mut all = Vec::new();
    for node in nodes {
        for link in [Link::Stalled, Link::Cut] {
            all.extend([(*node, link, true), (*node, link, false)]);
        }
    }
    if is_long() { all } else { vec![all[number % all.len()]] }
}

#[test]
fn links_that_stall_or_are_cut_in_every_phase_of_every_way() -> Result<()> {
    let mut world = World::with_two_servers("phases-cut", true)?;
    world.tables(2)?;
    let ledger = Ledger::start_plain(&world.here, ROWS, 2);
    let slot = world.here.slots("acc")?[0].clone();
    let mut round = 0;
    for (number, place) in in_turn(&places()) {
        for (way, (to, _)) in WAYS.iter().enumerate() {
            for (again, (node, link, early)) in cuts(number, way).into_iter().enumerate() {
                if again > 0 {
                    go_back(&mut world, &slot, way)?;
                }
                println!("link to n{} {link:?} in {place} of a move to {to}, early: {early}", node + 1);
                let held = hold(&mut world, &slot, to, place)?;
                ledger.work(20)?;
                if !early {
                    let_go(&mut world, place)?;
                    std::thread::sleep(Duration::from_millis(3));
                }
                let set = |world: &World, link: Link| -> Result<()> {
                    let proxy = if node == 0 { &world.proxy } else { &world.apart_proxy };
                    proxy.as_ref().ok_or("no proxy")?.set(link);
                    Ok(())
                };
                set(&world, link)?;
                if early {
                    let_go(&mut world, place)?;
                }
                std::thread::sleep(Duration::from_millis(250));
                // Stopped and then cut, every other time.
                if round % 2 == 1 {
                    set(&world, Link::Cut)?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                set(&world, Link::Up)?;
                round += 1;
                ends_well(&mut world, &ledger, &held)?;
            }
        }
    }
    ledger.finish();
    Ok(())
}
