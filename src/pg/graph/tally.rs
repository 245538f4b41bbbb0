//! What a query has done to a graph so far.
//!
//! One query may insert, update and delete (MERGE, ON CONFLICT, a cascade), and PostgreSQL tells each of it to
//! another trigger, while edges are read as all of it left them. So a trigger before every part of a query opens
//! the tally, the one after it closes it, and who closes the last is given everything.

use super::keys::NodeKey;
use crate::pg::local::{Local, LocalBox};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// A part of what was done.
pub enum Done {
    /// So many more (or fewer) edges from one node to another.
    Edges(NodeKey, NodeKey, i64),
    /// A node that was added to the table of nodes, taken from it, or changed there.
    Node(NodeKey),
}

struct Entry {
    graph: i32,
    subtransaction: u32,
    /// None: something that is under way.
    done: Option<Done>,
}

static ENTRIES: LocalBox<Vec<Entry>> = LocalBox::new();
static REGISTERED: Local<bool> = Local::new(false);

fn entry(graph: i32, done: Option<Done>) -> Entry {
    // SAFETY: inside a transaction.
    Entry { graph, subtransaction: unsafe { pg_sys::GetCurrentSubTransactionId() }, done }
}

/// Before a part of a query.
pub fn open(graph: i32) {
    if !REGISTERED.replace(true) {
        // SAFETY: plain functions of this library, registered once per process.
        unsafe {
            pg_sys::RegisterXactCallback(Some(transaction_ends), std::ptr::null_mut());
            pg_sys::RegisterSubXactCallback(Some(subtransaction_ends), std::ptr::null_mut());
        }
    }
    let begun = entry(graph, None);
    ENTRIES.with(Vec::new, |entries| entries.push(begun));
}

/// After a part of a query; everything that was done, after the last one.
pub fn close(graph: i32, done: Vec<Done>) -> Option<Vec<Done>> {
    let news: Vec<Entry> = done.into_iter().map(|done| entry(graph, Some(done))).collect();
    ENTRIES.with(Vec::new, |entries| {
        if let Some(at) = entries.iter().rposition(|entry| entry.graph == graph && entry.done.is_none()) {
            entries.remove(at);
        }
        entries.extend(news);
        if entries.iter().any(|entry| entry.graph == graph && entry.done.is_none()) {
            return None;
        }
        let (own, others) =
            std::mem::take(entries).into_iter().partition(|entry: &Entry| entry.graph == graph);
        *entries = others;
        Some(own.into_iter().filter_map(|entry| entry.done).collect())
    })?
}

#[pg_guard]
// SAFETY: called by PostgreSQL at the end of a transaction; touches only what is ours.
unsafe extern "C-unwind" fn transaction_ends(event: pg_sys::XactEvent::Type, _arg: *mut std::ffi::c_void) {
    use pg_sys::XactEvent as X;
    match event {
        X::XACT_EVENT_PRE_COMMIT | X::XACT_EVENT_PRE_PREPARE => {
            if ENTRIES.with(Vec::new, |entries| entries.is_empty()) == Some(false) {
                // Triggers of whole statements do not fire when who runs a statement stops before its end.
                ereport!(
                    ERROR,
                    PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                    "a statement on a table of a graph was not run to its end",
                    "The closure of the graph cannot follow statements of which only some rows are fetched."
                );
            }
        }
        X::XACT_EVENT_PARALLEL_PRE_COMMIT => {}
        _ => ENTRIES.forget(),
    }
}

#[pg_guard]
// SAFETY: likewise, of a subtransaction.
unsafe extern "C-unwind" fn subtransaction_ends(
    event: pg_sys::SubXactEvent::Type,
    own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut std::ffi::c_void,
) {
    if event == pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB {
        // Numbers ascend, so greater ones belong to it as well.
        ENTRIES.with(Vec::new, |entries| entries.retain(|entry| entry.subtransaction < own));
    }
}
