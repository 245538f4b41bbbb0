//! The sensor behind the hooks: what is sampled, and what a sample says.
//!
//! All state is this session's own. A statement that is sampled as the first of its transaction makes the
//! whole transaction sampled, so that co-access can be seen. What runs inside a measured piece is measured
//! too, the first [`ALWAYS`] pieces of it all, then one in so many, so that its cost can be told apart.

use super::budget::Budget;
use super::{statement, trigger};
use crate::pg::executor::{self, Draw, Sensor};
use crate::pg::glance::{GLANCE, NEVER_DRAWN};
use crate::pg::local::{Local, LocalBox};
use crate::pg::plan::{Instrument, Key, Named, Report};
use crate::pg::region::{self, Dropped};
use crate::pg::trigger::Measured;
use crate::pg::usage::End;
use crate::pg::{bgworker, guc, usage};
use foreshard_core::frames::{Frames, Kind, Piece};
use foreshard_core::gaps::Gaps;

/// Pieces inside a measured piece that are all measured, so that its own cost is exact when they are few.
const ALWAYS: u32 = 64;
/// Calls of a trigger that are all measured, so that a new trigger is known soon.
const FIRST_CALLS: u64 = 64;
/// Statements of one transaction that are measured because the transaction is.
const MAX_STATEMENTS: u32 = 64;
/// Statements that can be measured at the same time (cursors, nesting).
pub(super) const MAX_TRACKED: usize = 16;

/// The sensor for `pg::executor::register`.
pub static SENSOR: Sensor = Sensor {
    wants_statement,
    follows_leader,
    statement_starts,
    measures,
    part_starts,
    part_ends,
    statement_ends,
    wants_keys,
    wants_window,
    keys,
    first_calls: FIRST_CALLS,
    wants_trigger,
    trigger_starts,
    trigger_ends,
    trigger_fails,
    transaction_ends,
    subtransaction_aborts,
    failed,
};

/// A statement that is being measured.
pub(super) struct Tracked {
    query: usize,
    draw: Draw,
    /// The subtransaction it began in.
    subtransaction: u32,
    /// What is known of it so far.
    pub measured: statement::Measured,
}

/// What the transaction touched.
#[derive(Default)]
pub(super) struct Transaction {
    pub slots: Vec<i64>,
    pub keys: Vec<Key>,
    /// How many were sampled by this session.
    pub number: u32,
}

impl Transaction {
    fn clear(&mut self) {
        self.slots.clear();
        self.keys.clear();
    }
}

pub(super) struct State {
    pub frames: Frames,
    pub tracked: Vec<Tracked>,
    pub transaction: Transaction,
    pub budget: Budget,
    pub edges: statement::RecentEdges,
    gaps: Gaps,
    /// Parallel workers are told to measure.
    leading: bool,
}

impl State {
    fn new() -> Self {
        let seed = (bgworker::pid() as u64) << 32 ^ usage::elapsed_ns();
        Self {
            frames: Frames::default(),
            tracked: Vec::with_capacity(MAX_TRACKED),
            transaction: Transaction {
                slots: Vec::with_capacity(super::samples::MAX_SEGMENTS),
                keys: Vec::with_capacity(statement::MAX_WINDOW),
                number: 0,
            },
            budget: Budget::default(),
            edges: statement::RecentEdges::default(),
            gaps: Gaps::new(seed),
            leading: false,
        }
    }

    /// Tells parallel workers that start now whether to measure: those of the measured part that runs, no others.
    fn lead(&mut self) {
        let leads = self.frames.leads();
        if leads != self.leading
            && let Some(region) = region::get()
        {
            self.leading = leads;
            region.mark_sampling(leads);
        }
    }
}

static STATE: LocalBox<State> = LocalBox::new();
/// Runs `work` on the state; None when it is in use, which only an error inside it can cause.
pub(super) fn with<R>(work: impl FnOnce(&mut State) -> R) -> Option<R> {
    STATE.with(State::new, |state| {
        let result = work(state);
        state.lead();
        GLANCE.in_frame.set(!state.frames.is_empty());
        GLANCE.tracked.set(state.tracked.len() as u32);
        GLANCE.thinning.set(state.budget.thinning());
        result
    })
}

/// Counts down; true when it is time for a sample.
#[inline]
fn due(gap: &'static Local<u32>, setting: i32) -> bool {
    !GLANCE.passes(gap, setting) && due_or_drawn(gap, setting)
}

/// Whether it is time for a sample, when it is not that just one more event passes.
#[cold]
#[inline(never)]
fn due_or_drawn(gap: &'static Local<u32>, setting: i32) -> bool {
    if gap.get() != 1 {
        let first = gap.get() == NEVER_DRAWN;
        let draw = |s: &mut State| {
            let interval = GLANCE.interval(setting);
            if first { s.gaps.first(interval) } else { s.gaps.next(interval) }
        };
        gap.set(with(draw).unwrap_or(2));
        if GLANCE.passes(gap, setting) {
            return false;
        }
    }
    gap.set(0);
    true
}

fn wants_statement() -> bool {
    let before = GLANCE.statements.get();
    GLANCE.statements.set(before.saturating_add(1));
    if GLANCE.in_frame.get() {
        return true;
    }
    let drawn = due(&GLANCE.statement_gap, guc::now(&guc::STATEMENT_SAMPLE_INTERVAL));
    GLANCE.drawn.set(drawn);
    if before == 0 {
        GLANCE.transaction_sampled.set(drawn);
        if drawn {
            with(|state| state.transaction.clear());
        }
        return drawn;
    }
    drawn || (GLANCE.transaction_sampled.get() && before < MAX_STATEMENTS)
}

fn follows_leader() -> bool {
    let follows = region::get().is_some_and(|r| r.leader_samples());
    GLANCE.drawn.set(follows);
    follows
}

fn statement_starts(query: usize, address: usize, relations: &[Named], since_ns: u64) -> Instrument {
    let Some(region) = region::get() else { return Instrument::None };
    let observed = |named: &&Named| region.segment(named.relation).is_some_and(|s| s.activity().observed);
    let managed = relations.iter().any(|n| observed(&n));
    let writes = relations.iter().any(|n| n.writes && observed(&n));
    with(|state| {
        state.frames.drop_left(address);
        state.tracked.retain(|t| t.query != query);
        if let Some(function) = state.frames.trigger() {
            state.edges.push(region, function, relations);
        }
        // A statement on other tables only is part of whatever it runs in.
        let draw = match (managed, state.frames.is_empty()) {
            (false, _) => None,
            (true, true) => Some(Draw { weight: 1, typical: GLANCE.drawn.get() }),
            (true, false) => within(state, guc::STATEMENT_SAMPLE_INTERVAL.get()),
        };
        let Some(draw) = draw else {
            state.budget.spend(usage::elapsed_ns().saturating_sub(since_ns));
            return Instrument::None;
        };
        let nested = !state.frames.is_empty();
        let subtransaction = executor::subtransaction_number();
        let piece = Piece {
            kind: Kind::Statement,
            weight: draw.weight,
            address,
            subtransaction,
            led: draw.typical,
            unrecorded: false,
        };
        if !enter(state, piece, since_ns, false) {
            region.drop_one(Dropped::Depth);
            return Instrument::None;
        }
        if state.tracked.len() >= MAX_TRACKED {
            // The oldest: most likely a cursor left open.
            state.tracked.remove(0);
            region.drop_one(Dropped::Statement);
        }
        let stands_for = match (nested, draw.typical) {
            (true, _) => draw.weight,
            (false, true) => GLANCE.interval(guc::STATEMENT_SAMPLE_INTERVAL.get()),
            // Measured because its transaction is: the drawn ones stand for it.
            (false, false) => 0,
        };
        let measured = statement::Measured::new(stands_for);
        state.tracked.push(Tracked { query, draw, subtransaction, measured });
        if writes { Instrument::NodesAndTime } else { Instrument::Nodes }
    })
    .unwrap_or(Instrument::None)
}

/// Enters a piece, after work of ours since `since_ns`.
fn enter(state: &mut State, piece: Piece, since_ns: u64, memory: bool) -> bool {
    let now = usage::now(End::Start, memory, state.budget.overhead_ns());
    let began_ns = now[foreshard_core::frames::Amount::ElapsedNs as usize];
    state.budget.spend(began_ns.saturating_sub(since_ns));
    let mut now = now;
    now[foreshard_core::frames::Amount::OverheadNs as usize] = state.budget.overhead_ns();
    state.frames.enter(piece, now)
}

#[inline]
fn measures(query: usize) -> bool {
    GLANCE.tracked.get() > 0 && with(|s| s.tracked.iter().any(|t| t.query == query)).unwrap_or(false)
}

fn part_starts(query: usize, address: usize) {
    let since_ns = usage::elapsed_ns();
    with(|state| {
        let found = state.tracked.iter().find(|t| t.query == query).map(|t| t.draw);
        if let Some(Draw { weight, typical }) = found {
            let subtransaction = executor::subtransaction_number();
            let piece = Piece {
                kind: Kind::Statement,
                weight,
                address,
                subtransaction,
                led: typical,
                unrecorded: false,
            };
            enter(state, piece, since_ns, false);
        }
    });
}

fn part_ends(query: usize, address: usize, finishing: bool) {
    with(|state| {
        let now = usage::now(End::Finish, false, state.budget.overhead_ns());
        let Some(spent) = state.frames.leave(address, now) else { return };
        if let Some(tracked) = state.tracked.iter_mut().find(|t| t.query == query) {
            tracked.measured.add_part(&spent, finishing);
        }
        state.budget.spend_since(&now);
    });
}

fn statement_ends(query: usize, report: &Report, hot_keys: bool, since_ns: u64) {
    let Some(region) = region::get() else { return };
    with(|state| {
        let Some(at) = state.tracked.iter().position(|t| t.query == query) else { return };
        let tracked = state.tracked.remove(at);
        let slots = GLANCE.transaction_sampled.get().then_some(&mut state.transaction.slots);
        statement::attribute(region, (&tracked.measured, tracked.draw.typical), report, slots);
        if GLANCE.transaction_sampled.get() {
            statement::collect(&mut state.transaction.keys, &report.keys);
        }
        let took_ns = usage::elapsed_ns().saturating_sub(since_ns);
        state.budget.spend(took_ns);
        region.count_sampling(1, state.budget.take_unreported_ns());
        state.budget.adjust();
    });
    if hot_keys {
        let hot = report.keys.iter().filter(|key| key.hot);
        statement::push_keys(hot, GLANCE.interval(guc::KEY_SAMPLE_INTERVAL.get()), 0);
    }
}

fn wants_keys() -> bool {
    GLANCE.gates.get().any_hot() && due(&GLANCE.key_gap, guc::now(&guc::KEY_SAMPLE_INTERVAL))
}

/// Keys of a statement never take longer; what seems to was spent by other processes, ns.
const MOST_KEYS_NS: u64 = 100_000;

/// One statement's worth of keys; what that takes is part of the budget.
fn keys(keys: &[Key], since_ns: u64) {
    statement::push_keys(keys.iter(), GLANCE.interval(guc::KEY_SAMPLE_INTERVAL.get()), 0);
    with(|state| {
        // Reported with the next statement that is measured.
        state.budget.spend(usage::elapsed_ns().saturating_sub(since_ns).min(MOST_KEYS_NS));
        state.budget.adjust();
    });
}

/// Whether the keys of the measured statement are wanted because its transaction is sampled: which keys are used
/// together matters once there is load.
fn wants_window() -> bool {
    GLANCE.transaction_sampled.get() && GLANCE.gates.get().any_hot()
}

#[inline]
fn wants_trigger(measured_before: u64) -> Option<Draw> {
    let setting = guc::now(&guc::TRIGGER_SAMPLE_INTERVAL);
    if GLANCE.in_frame.get() {
        return with(|state| within(state, setting)).flatten();
    }
    if measured_before < FIRST_CALLS {
        return Some(Draw { weight: 1, typical: true });
    }
    // Not watched: u64::MAX.
    let drawn = measured_before < u64::MAX && due(&GLANCE.trigger_gap, setting);
    drawn.then(|| Draw { weight: GLANCE.interval(setting), typical: true })
}

/// Whether to measure a piece inside a measured one.
fn within(state: &mut State, setting: i32) -> Option<Draw> {
    let interval = GLANCE.interval(setting);
    let weight = state.frames.wants_child(ALWAYS, interval, &mut state.gaps)?;
    Some(Draw { weight, typical: weight == interval })
}

fn trigger_starts((function, recorded): (u32, bool), weight: u32, address: usize, since_ns: u64) -> bool {
    let begun = with(|state| {
        let memory = state.budget.wants_memory();
        let subtransaction = executor::subtransaction_number();
        let piece = Piece {
            kind: Kind::Trigger(function),
            weight,
            address,
            subtransaction,
            led: false,
            unrecorded: !recorded,
        };
        enter(state, piece, since_ns, memory)
    });
    if begun == Some(false)
        && let Some(region) = region::get()
    {
        region.drop_one(Dropped::Depth);
    }
    begun.unwrap_or(false)
}

fn trigger_ends(address: usize, call: Option<&Measured>) {
    let Some(region) = region::get() else { return };
    with(|state| {
        let memory = state.frames.started_with(address, foreshard_core::frames::Amount::MemoryBytes) > 0;
        let now = usage::now(End::Finish, memory, state.budget.overhead_ns());
        let Some(spent) = state.frames.leave(address, now) else { return };
        if let Some(call) = call {
            trigger::record(region, call, &spent, memory);
            // Not fired on a leaf: on the partitioned table, for a statement. Which leaves that wrote is known at its end.
            let running = GLANCE.current.get().0;
            if call.segment.is_none()
                && let Some(tracked) = state.tracked.iter_mut().find(|t| t.query == running)
            {
                tracked.measured.add_trigger(call.draw.weight, &spent);
            }
        }
        state.budget.spend_since(&now);
        region.count_sampling(0, state.budget.take_unreported_ns());
        state.budget.adjust();
    });
}

fn trigger_fails(address: usize) {
    if GLANCE.in_frame.get() {
        with(|state| state.frames.drop_left(address));
    }
}

fn transaction_ends(committed: bool) {
    let sampled = GLANCE.transaction_sampled.replace(false);
    let weight = GLANCE.interval(guc::STATEMENT_SAMPLE_INTERVAL.get());
    with(|state| {
        let Some(region) = region::get() else { return };
        if sampled && committed {
            statement::push_transaction(region, &state.transaction.slots, weight);
            let Transaction { keys, number, .. } = &mut state.transaction;
            *number = number.wrapping_add(1).max(1);
            statement::push_keys(keys.iter(), weight, (bgworker::pid() as u64) << 32 | u64::from(*number));
        }
        state.transaction.clear();
        state.frames.clear();
        state.tracked.clear();
    });
}

/// What began in it is gone, and so is the memory of its statements.
fn subtransaction_aborts(level: u32) {
    with(|state| {
        state.frames.abort(level);
        state.tracked.retain(|t| t.subtransaction < level);
    });
}

fn failed() {
    if let Some(region) = region::get() {
        region.drop_one(Dropped::Failure);
        region.mark_sampling(false);
    }
    // In use while the call that failed unwinds; its borrow ends before this is called.
    STATE.forget();
    GLANCE.in_frame.set(false);
    GLANCE.tracked.set(0);
    GLANCE.transaction_sampled.set(false);
}
