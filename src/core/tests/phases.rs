//! The move machine on a toy move: a crash after every effect leaves no trace.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::phase::{Capabilities, Effect, Event, Phase, PhaseError, matrix, next, resume_effects};

/// What a move has built so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct World {
    capture: bool,
    mirror: bool,
    shadow: bool,
    copied: bool,
    indexes: bool,
    route: bool,
    swapped: bool,
    outcome: bool,
}

impl World {
    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::CheckPreconditions | Effect::VerifyCopies | Effect::ReplayLog => {}
            Effect::InstallCapture => self.capture = true,
            Effect::CreateShadow => self.shadow = true,
            Effect::CopyChunks => {
                assert!(self.shadow && self.capture, "copied without shadow or capture");
                self.copied = true;
            }
            Effect::BuildIndexes => {
                assert!(self.copied, "indexes before the copy");
                self.indexes = true;
            }
            Effect::InstallMirror => {
                assert!(self.capture && self.indexes, "mirror without capture or indexes");
                self.mirror = true;
            }
            Effect::DemoteMirror => self.mirror = false,
            Effect::StepRoute => {
                assert!(self.mirror, "route to a copy that is not mirrored");
                self.route = true;
            }
            Effect::ClearRoutes => self.route = false,
            Effect::SwapStorage => {
                assert!(self.indexes && self.capture, "swapped to an unfinished copy");
                self.swapped = true;
            }
            Effect::SwapBack => {
                assert!(self.shadow, "no old copy to swap back to");
                self.swapped = false;
            }
            Effect::RemoveCapture => {
                assert!(!self.route, "route to a copy that is no longer mirrored");
                self.capture = false;
                self.mirror = false;
            }
            Effect::DropShadow => {
                self.shadow = false;
                self.copied = false;
                self.indexes = false;
            }
            Effect::RecordOutcome => self.outcome = true,
        }
    }

    fn check_terminal(&self, phase: Phase) {
        let clean = World { swapped: phase == Phase::Done, outcome: true, ..World::default() };
        assert_eq!(*self, clean, "left behind in {phase}");
    }
}

fn all_capabilities() -> impl Iterator<Item = Capabilities> {
    (0..16).map(|bits| Capabilities {
        mirror: bits & 1 != 0,
        canary: bits & 2 != 0,
        watch: bits & 4 != 0,
        prepare: bits & 8 != 0,
    })
}

/// Every (phase, world) that can be reached, found by trying every event everywhere.
fn reachable(caps: Capabilities) -> Vec<(Phase, World)> {
    let mut found = vec![(Phase::Preflight, World::default())];
    let mut at = 0;
    while let Some((phase, world)) = found.get(at).copied() {
        at += 1;
        for event in Event::ALL {
            if let Ok(transition) = next(phase, event, caps) {
                let mut after = world;
                transition.effects.iter().for_each(|effect| after.perform(*effect));
                if !found.contains(&(transition.to, after)) {
                    found.push((transition.to, after));
                }
            }
        }
    }
    found
}

#[test]
fn terminal_phases_leave_nothing_behind() {
    for caps in all_capabilities() {
        let found = reachable(caps);
        for (phase, world) in &found {
            if phase.is_terminal() {
                world.check_terminal(*phase);
            }
            assert_eq!(
                world.swapped,
                matches!(phase, Phase::Watch | Phase::Retire | Phase::Done),
                "{phase}: authoritative copy not known from the stored phase"
            );
        }
        for phase in [Phase::Done, Phase::Cancelled, Phase::Failed] {
            assert!(found.iter().any(|(at, _)| *at == phase), "{phase} not reached");
        }
    }
}

#[test]
fn a_crash_after_any_effect_before_the_phase_is_stored() {
    for caps in all_capabilities() {
        for (phase, world) in reachable(caps) {
            for event in Event::ALL {
                let Ok(transition) = next(phase, event, caps) else {
                    continue;
                };
                let mut want = world;
                transition.effects.iter().for_each(|effect| want.perform(*effect));
                for done in 0..=transition.effects.len() {
                    // Effects that commit with the phase are rolled back by the crash.
                    let mut got = world;
                    let lasting =
                        transition.effects[..done].iter().filter(|effect| !effect.commits_with_phase());
                    let lost = transition.effects[..done].iter().any(|e| e.commits_with_phase());
                    if !lost {
                        lasting.for_each(|effect| got.perform(*effect));
                    }
                    transition.effects.iter().for_each(|effect| got.perform(*effect));
                    assert_eq!(got, want, "{phase} {event:?} crashed after {done} effects");
                }
            }
        }
    }
}

#[test]
fn a_crash_after_the_phase_is_stored_is_resumed() {
    for caps in all_capabilities() {
        for (phase, world) in reachable(caps) {
            for event in Event::ALL {
                let Ok(transition) = next(phase, event, caps) else {
                    continue;
                };
                let mut want = world;
                transition.effects.iter().for_each(|effect| want.perform(*effect));
                // Only what commits with the phase is sure to have happened, then any number of
                // the others.
                let others = || transition.effects.iter().filter(|e| !e.commits_with_phase());
                for done in 0..=others().count() {
                    let mut got = world;
                    let sure = transition.effects.iter().filter(|e| e.commits_with_phase());
                    sure.chain(others().take(done)).for_each(|effect| got.perform(*effect));
                    for _ in 0..2 {
                        resume_effects(transition.to).iter().for_each(|e| got.perform(*e));
                    }
                    assert_eq!(got, want, "{phase} {event:?}: {} not resumed", transition.to);
                }
            }
        }
    }
}

#[test]
fn every_phase_reaches_an_end() {
    for caps in all_capabilities() {
        for (start, _) in reachable(caps) {
            let mut phase = start;
            for _ in 0..Phase::ALL.len() {
                if let Ok(transition) = next(phase, Event::Completed, caps) {
                    phase = transition.to;
                }
            }
            assert!(phase.is_terminal(), "{start} ends in {phase}");
        }
    }
}

#[test]
fn cancelling_ends_in_cancelled_without_a_swap() {
    for caps in all_capabilities() {
        for (phase, world) in reachable(caps) {
            let cancelled = next(phase, Event::CancelRequested, caps);
            assert_eq!(cancelled.is_ok(), phase.is_reversible(), "{phase}");
            let Ok(first) = cancelled else { continue };
            let mut world = world;
            first.effects.iter().for_each(|effect| world.perform(*effect));
            let last = next(first.to, Event::Completed, caps).unwrap();
            last.effects.iter().for_each(|effect| world.perform(*effect));
            assert_eq!((last.to, world.swapped), (Phase::Cancelled, false), "from {phase}");
        }
    }
}

#[test]
fn failing_before_the_swap_ends_in_failed() {
    for caps in all_capabilities() {
        for (phase, _) in reachable(caps) {
            if phase.is_reversible() || phase == Phase::Revert {
                let failed = next(phase, Event::FatalError, caps).unwrap();
                assert_eq!(failed.to, Phase::RevertFailed);
                assert_eq!(next(failed.to, Event::Completed, caps).unwrap().to, Phase::Failed);
            }
        }
    }
}

#[test]
fn phases_an_engine_lacks_are_skipped() {
    for caps in all_capabilities() {
        let found = reachable(caps);
        let has = |phase| found.iter().any(|(at, _)| *at == phase);
        assert_eq!(has(Phase::Mirror), caps.mirror);
        assert_eq!(has(Phase::Canary), caps.canary && caps.mirror);
        assert_eq!(has(Phase::Prepared), caps.prepare);
        assert_eq!(has(Phase::Watch), caps.watch);
    }
}

#[test]
fn the_matrix_is_unambiguous() {
    for caps in all_capabilities() {
        for (index, row) in matrix().iter().enumerate().filter(|(_, row)| row.applies(caps)) {
            let same = |other: &&_| {
                let other: &foreshard_core::phase::Row = other;
                other.applies(caps) && (other.from, other.event) == (row.from, row.event)
            };
            assert!(!matrix()[index + 1..].iter().any(|other| same(&other)), "{row:?}");
            assert!(!row.from.is_terminal(), "{row:?}");
            let mut later = row.effects.iter().skip(1);
            assert!(!later.any(|effect| effect.commits_with_phase()), "{row:?}");
        }
    }
    let caps = Capabilities { mirror: true, canary: true, watch: true, prepare: false };
    let (phase, event) = (Phase::Done, Event::Completed);
    assert_eq!(next(phase, event, caps), Err(PhaseError::Illegal { phase, event }));
}

#[test]
fn names_round_trip() {
    for phase in Phase::ALL {
        assert_eq!(phase.as_str().parse(), Ok(phase));
    }
    assert!("Done".parse::<Phase>().is_err());
}
