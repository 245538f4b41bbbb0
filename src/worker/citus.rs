//! One look at the nodes of an adopted Citus cluster, every bucket: what is where, who else moves shards, and what the nodes
//! counted. The worker of it ends when that is done; a node that is cut off holds up nobody else.

use crate::catalog::citus::counters::{self, Answer};
use crate::catalog::citus::identity::{self, Coordinator};
use crate::catalog::citus::{layout, moving, switch, tenants, triggers};
use crate::pg::bgworker::{self, WorkResult, transaction};
use crate::pg::guc;
use foreshard_core::citus::{REST_S, Switch, gives_way, rest_s};
use std::collections::HashMap;

/// Looks, and logs what failed; one failure does not keep the rest from being looked at.
pub fn look() {
    bgworker::show_activity(Some("looking at the Citus cluster"));
    // The next look is a bucket after this one began, however long the nodes take.
    let begun_s = bgworker::now_s();
    let looks = [transaction(moving::note_others), transaction(layout::follow), ask(begun_s)];
    for failure in looks.into_iter().filter_map(Result::err) {
        pgrx::log!("foreshard citus: {}", failure.line);
        // Only the next bucket tries again.
        let _ = transaction(|| counters::asked(begun_s, Some(&failure.line)));
    }
    if let Err(failure) = who_coordinates() {
        pgrx::log!("foreshard citus: who coordinates: {}", failure.line);
    }
    // Citus asks its nodes for that, and waits for those that are cut off.
    if let Err(failure) = transaction(moving::note_progress) {
        pgrx::log!("foreshard citus: progress of moves: {}", failure.line);
    }
}

/// Asks the nodes who coordinates them while moves are under way, and interrupts those when it is another server. What begins asks
/// by itself.
fn who_coordinates() -> WorkResult<()> {
    let under_way = transaction(moving::under_way)?;
    if under_way.is_empty() {
        return transaction(|| identity::note(None));
    }
    let said = transaction(identity::ask)?;
    let why = match &said {
        Coordinator::Ours => None,
        Coordinator::Another(why) | Coordinator::Unknown(why) => Some(why.as_str()),
    };
    // What is written down may have to wait for somebody; the moves of a server that coordinates nobody may not.
    let mut noted = transaction(|| identity::note(why));
    if let Coordinator::Another(why) = &said {
        for move_id in under_way {
            noted = noted.and(transaction(|| moving::rest(move_id, why, REST_S)));
            noted = noted.and(transaction(|| moving::interrupt(move_id)));
        }
    }
    noted
}

/// What a keeper remembers of moves that Citus switches over.
#[derive(Default)]
pub struct Switches {
    /// Since when each was seen to have its locks, s since 1970.
    since_s: HashMap<i64, f64>,
}

impl Switches {
    /// Keeps up with who else moves shards while that matters. Interrupts carriers in what Citus does for them: of moves that
    /// somebody has cancelled, and of those behind whose switch writers have waited long enough. They clean up, and end the move
    /// or rest.
    pub fn watch(&mut self, now_s: f64) -> WorkResult<()> {
        if !transaction(moving::is_any)? {
            self.since_s.clear();
            return Ok(());
        }
        // Moves wait for others, and nodes may not be looked at now.
        transaction(moving::note_others)?;
        transaction(|| moving::to_stop()?.into_iter().try_for_each(moving::interrupt))?;
        let seen = transaction(switch::seen)?;
        self.since_s.retain(|move_id, _| seen.iter().any(|one| one.move_id == *move_id && one.has_locks));
        let max_lock_time_s = f64::from(guc::MAX_LOCK_TIME.get()) / 1_000.0;
        for one in &seen {
            let held_s =
                if one.has_locks { now_s - *self.since_s.entry(one.move_id).or_insert(now_s) } else { 0.0 };
            let state = Switch { has_locks: one.has_locks, held_s, queue_s: one.queue_s };
            if gives_way(state, max_lock_time_s) {
                // First what the carrier will look for.
                transaction(|| switch::note(one, rest_s(one.gave_way.saturating_add(1))))?;
                transaction(|| moving::interrupt(one.move_id))?;
            }
        }
        Ok(())
    }
}

/// Asks all nodes at once; when that fails one by one, so that the sick one is found and the others are heard.
fn ask(begun_s: f64) -> WorkResult<()> {
    let mut answers = match transaction(|| counters::ask(None, true)) {
        Ok(answers) => answers,
        Err(_) => one_by_one(transaction(counters::nodes)?),
    };
    answers.iter_mut().filter(|answer| answer.measured).for_each(ask_without);
    transaction(|| {
        counters::store(&answers)?;
        counters::asked(begun_s, None)
    })?;
    let triggers = transaction(|| triggers::store(&answers));
    let tenants = transaction(|| {
        counters::store_tenants(&answers)?;
        tenants::note_hashes()
    });
    triggers.and(tenants)
}

fn one_by_one(nodes: Vec<(i32, bool)>) -> Vec<Answer> {
    let asked = nodes.into_iter().flat_map(|(citus_node, measured)| {
        transaction(|| counters::ask(Some(citus_node), true)).unwrap_or_else(|failure| {
            vec![Answer { citus_node, said: Err(failure.line), measured, failed: None }]
        })
    });
    asked.collect()
}

/// A node that did not answer when it was asked for what its foreshard has measured is asked again without that: what is wrong may
/// be that foreshard, by which no node is judged.
fn ask_without(answer: &mut Answer) {
    let Err(error) = &answer.said else { return };
    let again = transaction(|| counters::ask(Some(answer.citus_node), false)).unwrap_or_default();
    if let Some(plain) = again.into_iter().find(|plain| plain.said.is_ok()) {
        *answer = Answer { failed: Some(error.clone()), ..plain };
    }
}
