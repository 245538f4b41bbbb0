//! The move as a state machine: pure, so that every crash can be tried without a server.
//!
//! A move is one stored [`Phase`]. The carrier works in it, reports an [`Event`], asks [`next`]
//! where to go, performs the transition's effects in order and stores the new phase. Effects that
//! [commit with the phase](Effect::commits_with_phase) belong to the very transaction that stores
//! it; all others may take transactions of their own, before or after. Every effect is idempotent,
//! so after a crash the carrier performs [`resume_effects`] of the stored phase and goes on.
//!
//! Legal transitions are one constant matrix ([`matrix()`]), as TiKV's placement driver has it;
//! what is not there is illegal.

mod effect;
mod matrix;

use std::fmt;
use std::str::FromStr;

pub use effect::Effect;
pub use matrix::{Row, matrix, resume_effects};

/// Where a move stands. Stored by its [`as_str`](Phase::as_str) name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Checking whether the move can be made at all.
    Preflight,
    /// Changes of the source are being logged; waiting out older transactions.
    Capture,
    /// Copying rows into the bare shadow.
    Copy,
    /// Building the shadow's indexes.
    Index,
    /// Replaying logged changes.
    CatchUp,
    /// Turning the log into a synchronous mirror.
    Mirror,
    /// Comparing both copies.
    Verify,
    /// The copies are kept equal until somebody asks for the cutover, or they are no longer wanted.
    Prepared,
    /// Reads are routed to the shadow by growing weights.
    Canary,
    /// Trying to swap; the source is authoritative until the swap commits, which leaves the phase.
    Cutover,
    /// Swapped; measured against the forecast, the old copy kept equal as a way back.
    Watch,
    /// Swapped for good; the old copy waits for its grace period to end.
    Retire,
    /// Finished.
    Done,
    /// Cleaning up after a cancel or a rollback.
    Revert,
    /// Cleaning up after a failure.
    RevertFailed,
    /// Cancelled or rolled back; nothing is left behind.
    Cancelled,
    /// Failed; nothing is left behind.
    Failed,
}

impl Phase {
    /// Every phase, in the order of the protocol.
    pub const ALL: [Self; 17] = [
        Self::Preflight,
        Self::Capture,
        Self::Copy,
        Self::Index,
        Self::CatchUp,
        Self::Mirror,
        Self::Verify,
        Self::Prepared,
        Self::Canary,
        Self::Cutover,
        Self::Watch,
        Self::Retire,
        Self::Done,
        Self::Revert,
        Self::RevertFailed,
        Self::Cancelled,
        Self::Failed,
    ];

    /// The stored name, lower snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Capture => "capture",
            Self::Copy => "copy",
            Self::Index => "index",
            Self::CatchUp => "catch_up",
            Self::Mirror => "mirror",
            Self::Verify => "verify",
            Self::Prepared => "prepared",
            Self::Canary => "canary",
            Self::Cutover => "cutover",
            Self::Watch => "watch",
            Self::Retire => "retire",
            Self::Done => "done",
            Self::Revert => "revert",
            Self::RevertFailed => "revert_failed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Whether the move is over: no event is legal any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed)
    }

    /// Whether the move can still be cancelled without a swap: before the cutover has committed.
    pub const fn is_reversible(self) -> bool {
        matches!(
            self,
            Self::Preflight
                | Self::Capture
                | Self::Copy
                | Self::Index
                | Self::CatchUp
                | Self::Mirror
                | Self::Verify
                | Self::Prepared
                | Self::Canary
                | Self::Cutover
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no phase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownPhase {
    /// The name.
    pub name: String,
}

impl fmt::Display for UnknownPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown phase \"{}\"", self.name)
    }
}

impl std::error::Error for UnknownPhase {}

impl FromStr for Phase {
    type Err = UnknownPhase;

    fn from_str(name: &str) -> Result<Self, UnknownPhase> {
        let found = Self::ALL.into_iter().find(|phase| phase.as_str() == name);
        found.ok_or_else(|| UnknownPhase { name: name.to_owned() })
    }
}

/// What happened to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The work of the phase is done.
    Completed,
    /// Too many changed keys are pending to go on under a lock, or mirroring had to give up.
    BacklogTooLarge,
    /// Storage, descriptor, indexes or capture triggers of the source are no longer those of the
    /// capture's start.
    SourceChanged,
    /// The copies differ.
    Mismatch,
    /// A person cancelled the move.
    CancelRequested,
    /// The move cannot go on.
    FatalError,
    /// After the swap: a person, or a regression of the measured load, wants the old copy back.
    RollbackRequested,
}

impl Event {
    /// Every event.
    pub const ALL: [Self; 7] = [
        Self::Completed,
        Self::BacklogTooLarge,
        Self::SourceChanged,
        Self::Mismatch,
        Self::CancelRequested,
        Self::FatalError,
        Self::RollbackRequested,
    ];

    /// The name, lower snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::BacklogTooLarge => "backlog_too_large",
            Self::SourceChanged => "source_changed",
            Self::Mismatch => "mismatch",
            Self::CancelRequested => "cancel_requested",
            Self::FatalError => "fatal_error",
            Self::RollbackRequested => "rollback_requested",
        }
    }
}

/// What the engine of a move can do; phases it lacks are skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Can keep the shadow equal at every commit. Without it the cutover replays the rest of the
    /// log under its lock.
    pub mirror: bool,
    /// Can route reads to the shadow by weight. Needs a mirrored shadow: ignored without `mirror`.
    pub canary: bool,
    /// Can keep the old copy equal after the swap, so that there is a way back.
    pub watch: bool,
    /// Is to wait, verified, until the cutover is asked for.
    pub prepare: bool,
}

/// Where to go, and what to do on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The phase to store.
    pub to: Phase,
    /// What to perform when entering `to`, in this order; each is idempotent.
    pub effects: &'static [Effect],
}

/// Why there is no transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PhaseError {
    /// The event cannot happen in this phase.
    Illegal {
        /// The phase.
        phase: Phase,
        /// The event.
        event: Event,
    },
}

impl fmt::Display for PhaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Illegal { phase, event } = self;
        write!(f, "event {} is not possible in phase {phase}", event.as_str())
    }
}

impl std::error::Error for PhaseError {}

/// The transition for `event` in `phase`, phases that `caps` lack being skipped.
///
/// # Errors
/// [`PhaseError::Illegal`] when the matrix has no such row.
pub fn next(phase: Phase, event: Event, caps: Capabilities) -> Result<Transition, PhaseError> {
    matrix()
        .iter()
        .find(|row| row.from == phase && row.event == event && row.applies(caps))
        .map(|row| Transition { to: row.to, effects: row.effects })
        .ok_or(PhaseError::Illegal { phase, event })
}
