//! The transition matrix.

use super::{Capabilities, Effect, Event, Phase};

/// One legal transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The phase left.
    pub from: Phase,
    /// What happened.
    pub event: Event,
    /// The phase entered.
    pub to: Phase,
    /// What to perform on entering, in order.
    pub effects: &'static [Effect],
    needs: Needs,
}

/// Which engines a row is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Needs {
    Any,
    Mirror,
    NoMirror,
    Prepare,
    Canary,
    NoCanary,
    CanaryLater,
    NoCanaryLater,
    Watch,
    NoWatch,
}

impl Row {
    /// Whether the row is for an engine with these capabilities.
    pub const fn applies(&self, caps: Capabilities) -> bool {
        // A canary reads the shadow under any snapshot, so the shadow must be mirrored.
        let canary = caps.canary && caps.mirror;
        match self.needs {
            Needs::Any => true,
            Needs::Mirror => caps.mirror,
            Needs::NoMirror => !caps.mirror,
            Needs::Prepare => caps.prepare,
            Needs::Canary => canary && !caps.prepare,
            Needs::NoCanary => !canary && !caps.prepare,
            Needs::CanaryLater => canary,
            Needs::NoCanaryLater => !canary,
            Needs::Watch => caps.watch,
            Needs::NoWatch => !caps.watch,
        }
    }
}

/// All legal transitions; at most one row applies to a phase, an event and an engine.
pub const fn matrix() -> &'static [Row] {
    MATRIX
}

/// What a carrier performs again when it finds a move stored in `phase` after a crash.
///
/// It is the work of the phase; effects that commit with the phase are never in it.
pub const fn resume_effects(phase: Phase) -> &'static [Effect] {
    match phase {
        Phase::Preflight => RESTART,
        Phase::Capture => &[E::InstallCapture],
        Phase::Copy => &[E::CreateShadow, E::CopyChunks],
        Phase::Index => &[E::BuildIndexes],
        Phase::CatchUp => &[E::ClearRoutes, E::DemoteMirror, E::ReplayLog],
        Phase::Mirror => &[E::InstallMirror],
        Phase::Verify => &[E::VerifyCopies],
        Phase::Canary => &[E::StepRoute],
        Phase::Prepared | Phase::Cutover => &[],
        Phase::Watch => &[E::ClearRoutes],
        Phase::Retire => &[E::ClearRoutes, E::RemoveCapture],
        Phase::Revert | Phase::RevertFailed => CLEAN,
        Phase::Done => &[E::DropShadow, E::RecordOutcome],
        Phase::Cancelled | Phase::Failed => &[E::RecordOutcome],
    }
}

use Effect as E;
use Event as V;
use Phase as P;

/// Routes first: no read may be sent to a copy that is no longer kept equal.
const CLEAN: &[E] = &[E::ClearRoutes, E::RemoveCapture, E::DropShadow];
const RESTART: &[E] = &[E::ClearRoutes, E::RemoveCapture, E::DropShadow, E::CheckPreconditions];
const STEP_BACK: &[E] = &[E::ClearRoutes, E::DemoteMirror, E::ReplayLog];
const SWAP_BACK: &[E] = &[E::SwapBack, E::ClearRoutes, E::RemoveCapture, E::DropShadow];

const fn row(from: Phase, event: Event, to: Phase, needs: Needs, effects: &'static [Effect]) -> Row {
    Row { from, event, to, effects, needs }
}

const fn any(from: Phase, event: Event, to: Phase, effects: &'static [Effect]) -> Row {
    row(from, event, to, Needs::Any, effects)
}

const MATRIX: &[Row] = &[
    // The way forward.
    any(P::Preflight, V::Completed, P::Capture, &[E::InstallCapture]),
    any(P::Capture, V::Completed, P::Copy, &[E::CreateShadow, E::CopyChunks]),
    any(P::Copy, V::Completed, P::Index, &[E::BuildIndexes]),
    any(P::Index, V::Completed, P::CatchUp, &[E::ReplayLog]),
    row(P::CatchUp, V::Completed, P::Mirror, Needs::Mirror, &[E::InstallMirror]),
    row(P::CatchUp, V::Completed, P::Verify, Needs::NoMirror, &[E::VerifyCopies]),
    any(P::Mirror, V::Completed, P::Verify, &[E::VerifyCopies]),
    row(P::Verify, V::Completed, P::Prepared, Needs::Prepare, &[]),
    row(P::Prepared, V::Completed, P::Canary, Needs::CanaryLater, &[E::StepRoute]),
    row(P::Prepared, V::Completed, P::Cutover, Needs::NoCanaryLater, &[]),
    row(P::Verify, V::Completed, P::Canary, Needs::Canary, &[E::StepRoute]),
    row(P::Verify, V::Completed, P::Cutover, Needs::NoCanary, &[]),
    any(P::Canary, V::Completed, P::Cutover, &[]),
    row(P::Cutover, V::Completed, P::Watch, Needs::Watch, &[E::SwapStorage, E::ClearRoutes]),
    row(
        P::Cutover,
        V::Completed,
        P::Retire,
        Needs::NoWatch,
        &[E::SwapStorage, E::ClearRoutes, E::RemoveCapture],
    ),
    any(P::Watch, V::Completed, P::Retire, &[E::ClearRoutes, E::RemoveCapture]),
    any(P::Retire, V::Completed, P::Done, &[E::DropShadow, E::RecordOutcome]),
    // Steps back to the log: a lock that would be held too long, or a mirror that gave up.
    any(P::Mirror, V::BacklogTooLarge, P::CatchUp, STEP_BACK),
    any(P::Verify, V::BacklogTooLarge, P::CatchUp, STEP_BACK),
    any(P::Prepared, V::BacklogTooLarge, P::CatchUp, STEP_BACK),
    any(P::Canary, V::BacklogTooLarge, P::CatchUp, STEP_BACK),
    any(P::Cutover, V::BacklogTooLarge, P::CatchUp, STEP_BACK),
    // The source is another one now: start with a clean slate.
    any(P::Capture, V::SourceChanged, P::Preflight, RESTART),
    any(P::Copy, V::SourceChanged, P::Preflight, RESTART),
    any(P::Index, V::SourceChanged, P::Preflight, RESTART),
    any(P::CatchUp, V::SourceChanged, P::Preflight, RESTART),
    any(P::Mirror, V::SourceChanged, P::Preflight, RESTART),
    any(P::Verify, V::SourceChanged, P::Preflight, RESTART),
    any(P::Prepared, V::SourceChanged, P::Preflight, RESTART),
    any(P::Canary, V::SourceChanged, P::Preflight, RESTART),
    any(P::Cutover, V::SourceChanged, P::Preflight, RESTART),
    // Different copies are a bug or a broken disk: never try again silently.
    any(P::Verify, V::Mismatch, P::RevertFailed, CLEAN),
    any(P::Canary, V::Mismatch, P::RevertFailed, CLEAN),
    any(P::Cutover, V::Mismatch, P::RevertFailed, CLEAN),
    // Cancel, until the swap has committed.
    any(P::Preflight, V::CancelRequested, P::Revert, CLEAN),
    any(P::Capture, V::CancelRequested, P::Revert, CLEAN),
    any(P::Copy, V::CancelRequested, P::Revert, CLEAN),
    any(P::Index, V::CancelRequested, P::Revert, CLEAN),
    any(P::CatchUp, V::CancelRequested, P::Revert, CLEAN),
    any(P::Mirror, V::CancelRequested, P::Revert, CLEAN),
    any(P::Verify, V::CancelRequested, P::Revert, CLEAN),
    any(P::Prepared, V::CancelRequested, P::Revert, CLEAN),
    any(P::Canary, V::CancelRequested, P::Revert, CLEAN),
    any(P::Cutover, V::CancelRequested, P::Revert, CLEAN),
    any(P::Revert, V::Completed, P::Cancelled, &[E::RecordOutcome]),
    // Failures, until the swap has committed.
    any(P::Preflight, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Capture, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Copy, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Index, V::FatalError, P::RevertFailed, CLEAN),
    any(P::CatchUp, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Mirror, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Verify, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Prepared, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Canary, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Cutover, V::FatalError, P::RevertFailed, CLEAN),
    any(P::Revert, V::FatalError, P::RevertFailed, CLEAN),
    any(P::RevertFailed, V::Completed, P::Failed, &[E::RecordOutcome]),
    // After the swap there is one way back, while the old copy is kept equal; when it no longer
    // can be (new DDL, a broken mirror), the only way is forward.
    any(P::Watch, V::RollbackRequested, P::Revert, SWAP_BACK),
    any(P::Watch, V::SourceChanged, P::Retire, &[E::ClearRoutes, E::RemoveCapture]),
    any(P::Watch, V::FatalError, P::Retire, &[E::ClearRoutes, E::RemoveCapture]),
];
