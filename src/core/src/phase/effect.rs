//! The effects of the move machine.

/// Something a carrier performs. Performing any of them twice is the same as once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Check identity index, space, owner, locks, triggers, inbound keys. Idempotent: reads only.
    CheckPreconditions,
    /// Create the change log and the capture triggers on the source. Idempotent: what exists with
    /// the same definition stays.
    InstallCapture,
    /// Create the empty shadow heap and its unbuilt indexes, so that their files have an owner
    /// before they are filled. Idempotent: an existing shadow of this move stays.
    CreateShadow,
    /// Copy the source into the shadow chunk by chunk. Idempotent: resumes behind the last chunk
    /// whose commit recorded it.
    CopyChunks,
    /// Build the shadow's indexes. Idempotent: valid ones stay, others are built anew.
    BuildIndexes,
    /// Bring the logged keys of the shadow to their current state. Idempotent: by state, not by
    /// operation.
    ReplayLog,
    /// Turn capture into a synchronous mirror, the log drained empty under the same lock.
    /// Idempotent: a mirror stays a mirror.
    InstallMirror,
    /// Turn the mirror back into a log. Idempotent: a log stays a log.
    DemoteMirror,
    /// Vacuum the shadow and compare both copies. Idempotent: reads only (and vacuum).
    VerifyCopies,
    /// Raise (or lower) the weight of the read route to the shadow. Idempotent: the weight to set
    /// is recorded, not the difference.
    StepRoute,
    /// Set the weight of the shadow's route to 0. Idempotent.
    ClearRoutes,
    /// Make the shadow's storage the source's, and the source's the shadow's. Idempotent by
    /// committing with the phase: the stored phase tells whether it happened.
    SwapStorage,
    /// The same swap, backwards. Idempotent in the same way.
    SwapBack,
    /// Remove capture triggers, mirror and change log. Idempotent: what is gone is gone.
    RemoveCapture,
    /// Drop the copy that is not authoritative: the shadow, or after the swap the old storage.
    /// Idempotent: what is gone is gone.
    DropShadow,
    /// Write how the move ended to the history. Idempotent: one row per move.
    RecordOutcome,
}

impl Effect {
    /// Whether the effect must be committed by the very transaction that stores the new phase.
    ///
    /// Otherwise a crash between the two would leave nobody knowing which copy is authoritative.
    /// Such an effect is always the first of its transition: what follows it is performed in the
    /// same transaction or after it, never before.
    pub const fn commits_with_phase(self) -> bool {
        matches!(self, Self::SwapStorage | Self::SwapBack)
    }

    /// The name, lower snake case, for logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CheckPreconditions => "check_preconditions",
            Self::InstallCapture => "install_capture",
            Self::CreateShadow => "create_shadow",
            Self::CopyChunks => "copy_chunks",
            Self::BuildIndexes => "build_indexes",
            Self::ReplayLog => "replay_log",
            Self::InstallMirror => "install_mirror",
            Self::DemoteMirror => "demote_mirror",
            Self::VerifyCopies => "verify_copies",
            Self::StepRoute => "step_route",
            Self::ClearRoutes => "clear_routes",
            Self::SwapStorage => "swap_storage",
            Self::SwapBack => "swap_back",
            Self::RemoveCapture => "remove_capture",
            Self::DropShadow => "drop_shadow",
            Self::RecordOutcome => "record_outcome",
        }
    }
}
