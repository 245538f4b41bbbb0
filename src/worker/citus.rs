//! One look at the nodes of an adopted Citus cluster, every bucket: what is where, who else moves shards, and what the nodes
//! counted. The worker of it ends when that is done; a node that is cut off holds up nobody else.

use crate::catalog::citus::counters::{self, Answer};
use crate::catalog::citus::{layout, moving};
use crate::pg::bgworker::{self, WorkResult, transaction};

/// Looks, and logs what failed.
pub fn look() {
    bgworker::show_activity(Some("looking at the Citus cluster"));
    if let Err(failure) = follow().and_then(|()| ask()) {
        pgrx::log!("foreshard citus: {}", failure.line);
        // Only the next bucket tries again.
        let _ = transaction(|| counters::asked(Some(&failure.line)));
    }
    // Citus asks its nodes for that, and waits for those that are cut off.
    if let Err(failure) = transaction(moving::note_progress) {
        pgrx::log!("foreshard citus: progress of moves: {}", failure.line);
    }
}

fn follow() -> WorkResult<()> {
    transaction(layout::follow)?;
    transaction(moving::note_others)
}

/// Interrupts carriers whose move somebody has cancelled while Citus was at it; they clean up and end it.
pub fn stop_cancelled() -> WorkResult<()> {
    if !transaction(moving::is_any_cancelled)? {
        return Ok(());
    }
    transaction(|| moving::to_stop()?.into_iter().try_for_each(moving::interrupt))
}

/// Asks all nodes at once; when that fails one by one, so that the sick one is found and the others are heard.
fn ask() -> WorkResult<()> {
    let answers = match transaction(|| counters::ask(None)) {
        Ok(answers) => answers,
        Err(_) => one_by_one(transaction(counters::nodes)?),
    };
    transaction(|| {
        counters::store(&answers)?;
        counters::asked(None)
    })?;
    transaction(|| counters::store_tenants(&answers))
}

fn one_by_one(nodes: Vec<i32>) -> Vec<Answer> {
    let asked = nodes.into_iter().flat_map(|citus_node| {
        transaction(|| counters::ask(Some(citus_node)))
            .unwrap_or_else(|failure| vec![Answer { citus_node, said: Err(failure.line) }])
    });
    asked.collect()
}
