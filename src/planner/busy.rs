//! What is under way, and what has to wait for it: only what has to do with the same shards, or divides the same group.

use super::{Decision, divisions};
use crate::catalog::due::{self, UnderWay};
use crate::pg::guc::{self, Mode};
use crate::pg::report::PgResult;
use foreshard_core::placement::Step;

/// The changes that are at work. Those that only keep a way back, wait prepared, or were paused by a person are not: they
/// last as long as somebody likes, and hold up nobody.
pub struct Busy {
    under_way: Vec<UnderWay>,
    most: usize,
}

impl Busy {
    /// As it is now.
    pub fn read() -> PgResult<Self> {
        Ok(Self { under_way: due::under_way()?, most: guc::MAX_CONCURRENT_MOVES.get().max(1) as usize })
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether a move between two shards has to wait: as many changes as may run at once have to do with either of them, or
    /// divide its group.
    pub fn holds_up_move(&self, group_id: i32, shards: [i32; 2]) -> bool {
        self.count(|one| one.touches(&shards) || one.divides && one.group_id == group_id)
    }

    /// Whether a division of a slot has to wait: as many have to do with its shard or its group.
    pub fn holds_up_division(&self, group_id: i32, shard: i32) -> bool {
        self.count(|one| one.touches(&[shard]) || one.group_id == group_id)
    }

    /// Whether something is on its way to or from a shard: what it will carry is not known well enough to send it a part.
    pub fn concerns(&self, shard: i32) -> bool {
        self.under_way.iter().any(|one| one.touches(&[shard]))
    }

    fn count(&self, counts: impl Fn(&UnderWay) -> bool) -> bool {
        self.under_way.iter().filter(|one| counts(one)).count() >= self.most
    }
}

impl UnderWay {
    fn touches(&self, shards: &[i32]) -> bool {
        self.shards.iter().any(|shard| shards.contains(shard))
    }
}

/// Where slots shall go.
#[derive(Default)]
pub struct Assignment {
    /// `{"slot": "shard"}`.
    pub map: serde_json::Map<String, serde_json::Value>,
    /// `{"slot": confidence}`.
    pub confidences: serde_json::Map<String, serde_json::Value>,
    /// The least of them; None: there is no step.
    pub least: Option<f64>,
}

impl Decision {
    /// Some steps of the plan.
    fn assignment(&self, steps: Vec<usize>) -> Assignment {
        let mut assignment = Assignment::default();
        for index in steps {
            let (step, stated) = (&self.plan.steps[index], self.verdicts[index].stated);
            let slot = step.segment.to_string();
            assignment.map.insert(slot.clone(), self.shard_name(step.to).into());
            assignment.confidences.insert(slot, stated.into());
            assignment.least = Some(assignment.least.map_or(stated, |c| c.min(stated)));
        }
        assignment
    }

    /// The steps that are confident enough to be requested, whenever they are to begin.
    pub fn confident(&self) -> Assignment {
        let least = guc::MIN_CONFIDENCE.get();
        self.assignment(self.plan.independent(|index, _| self.verdicts[index].stated >= least))
    }

    /// The steps that may be taken now without anybody being asked: those of tables in mode auto, of Citus or of all others,
    /// that need not wait for what is under way.
    pub fn takeable(&self, citus: bool, busy: &Busy) -> Assignment {
        let auto = |step: &Step, urgent: bool| {
            let own = self.slot(step.segment).filter(|slot| slot.is_citus == citus && !slot.others_move);
            own.is_some_and(|slot| {
                let waits = !urgent && busy.holds_up_move(slot.group_id, [step.from, step.to]);
                self.modes.of(slot.group_id) == Mode::Auto && !waits
            })
        };
        // What counts on a step that only a person may take, or that waits, must wait for it.
        self.assignment(self.plan.independent(|index, step| {
            self.verdicts.get(index).is_some_and(|said| said.refusal.is_none() && auto(step, said.urgent))
        }))
    }

    /// The divisions that nothing speaks against, of slots whose tables leave that to foreshard, that need not wait for what
    /// is under way.
    pub fn permitted_divisions(&self, busy: &Busy) -> Vec<divisions::Division> {
        let auto = |one: &&divisions::Division| {
            self.slot(one.slot_id).is_some_and(|slot| {
                // Even an urgent one goes where nothing else is just going.
                let waits = one.to_shard.is_some_and(|to| busy.concerns(to))
                    || busy.holds_up_division(slot.group_id, slot.shard_id) && !self.is_urgent(one, slot);
                self.modes.of(slot.group_id) == Mode::Auto && !waits && self.said_of(one).0.is_none()
            })
        };
        self.divisions.iter().filter(auto).cloned().collect()
    }
}
