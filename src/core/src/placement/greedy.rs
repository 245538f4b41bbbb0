//! The greedy planner.

use super::confidence::confidence;
use super::state::State;
use super::{Hold, Plan, PlanOptions, Refusal, RefusalReason, Segment, Shard, Step};

const MIB: f64 = 1_048_576.0;

/// A move that would improve.
#[derive(Clone, Copy)]
struct Candidate {
    segment: usize,
    to: usize,
    benefit: f64,
    /// Benefit less the cost spread over the pay-back time, cost units/s.
    net: f64,
}

/// What keeps a segment that would improve from moving.
enum Verdict {
    Move(Candidate),
    NoTarget,
    LowBenefit,
}

/// Plans a checked problem; see [`super::plan`].
pub(super) fn plan(shards: &[Shard], segments: &[Segment], options: &PlanOptions) -> Plan {
    let mut state = State::new(shards, segments);
    let imbalance_before = state.imbalance();
    let mut steps = Vec::new();
    let mut acts = false;
    // A drained segment can find room only after others were balanced away, and the best style of
    // balancing can leave what another one would still move; so again until nothing changes. Every step
    // lowers the objective, which bounds the rounds, as does `max_steps`.
    loop {
        let known = steps.len();
        drain(&mut state, options, &mut steps);
        if state.total_peak >= options.min_load && state.active_imbalance() > 1.0 + options.imbalance_high {
            acts = true;
            balance(&mut state, options, &mut steps);
        }
        if steps.len() == known {
            break;
        }
    }
    Plan {
        refusals: refusals(&state, options, acts),
        imbalance_before,
        imbalance_after: state.imbalance(),
        steps,
    }
}

/// Empties draining shards, highest segments first, each to the shard least utilised with it.
fn drain(state: &mut State, options: &PlanOptions, steps: &mut Vec<Step>) {
    let mut order: Vec<usize> = (0..state.segments.len())
        .filter(|segment| state.is_draining(state.shard_of(*segment)))
        .filter(|segment| may_drain(state, *segment))
        .collect();
    order.sort_by(|a, b| state.height(*b).total_cmp(&state.height(*a)).then(a.cmp(b)));
    for segment in order {
        if steps.len() >= options.max_steps {
            return;
        }
        if let Some(to) = drain_target(state, segment) {
            let peak = state.peak_with(to, segment);
            let growth = state.excess(to, peak) - state.excess(to, state.peak(to));
            let benefit = state.drain_penalty(segment) - growth;
            push(state, options, Candidate { segment, to, benefit, net: benefit }, steps);
        }
    }
}

fn may_drain(state: &State, segment: usize) -> bool {
    let hold = state.segments.get(segment).map(|segment| segment.hold);
    !matches!(hold, Some(Hold::InFlight | Hold::Pinned) | None)
}

fn drain_target(state: &State, segment: usize) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for to in targets(state) {
        let utilisation = state.peak_with(to, segment) / state.capacity(to);
        if utilisation <= 1.0 && best.is_none_or(|(least, _)| utilisation < least) {
            best = Some((utilisation, to));
        }
    }
    best.map(|(_, to)| to)
}

fn targets(state: &State) -> impl Iterator<Item = usize> {
    (0..state.shards.len()).filter(|shard| !state.is_draining(*shard))
}

/// Plans the balancing in every style, keeps the best and records it.
fn balance(state: &mut State, options: &PlanOptions, steps: &mut Vec<Step>) {
    let room = options.max_steps.saturating_sub(steps.len());
    let mut best: Option<Trial> = None;
    for style in STYLES {
        let trial = Trial::run(state.clone(), options, style, room);
        if best.as_ref().is_none_or(|best| trial.is_better(best)) {
            best = Some(trial);
        }
    }
    for candidate in best.map(|best| best.moves).unwrap_or_default() {
        push(state, options, candidate, steps);
    }
}

/// How a greedy run restrains itself. Taking the highest benefit each time can paint a plan into a
/// corner (a big segment overloads a shard whose own segments may not move yet), so several runs
/// compete.
#[derive(Clone, Copy)]
struct Style {
    /// Segments above this share of the fair load of a mean shard stay.
    max_share: f64,
    /// Whether targets must end up balanced.
    tight: bool,
}

const STYLES: [Style; 6] = [
    Style { max_share: f64::INFINITY, tight: false },
    Style { max_share: f64::INFINITY, tight: true },
    Style { max_share: 0.4, tight: false },
    Style { max_share: 0.4, tight: true },
    Style { max_share: 0.15, tight: false },
    Style { max_share: 0.15, tight: true },
];

/// A greedy run.
struct Trial {
    moves: Vec<Candidate>,
    /// Imbalance at the end, at least the one at which to stop.
    reached: f64,
    cost: f64,
}

impl Trial {
    /// Moves the segment with the highest net benefit until balanced or nothing pays.
    fn run(mut state: State, options: &PlanOptions, style: Style, room: usize) -> Self {
        let mut trial = Self { moves: Vec::new(), reached: 0.0, cost: 0.0 };
        let goal = 1.0 + options.imbalance_low;
        while trial.moves.len() < room && state.active_imbalance() > goal {
            let Some(candidate) = pick(&state, options, style) else {
                break;
            };
            trial.cost += cost(&state, options, candidate.segment);
            state.apply(candidate.segment, candidate.to);
            trial.moves.push(candidate);
        }
        trial.reached = state.active_imbalance().max(goal);
        trial
    }

    /// Balance first, then bytes.
    fn is_better(&self, other: &Self) -> bool {
        self.reached.total_cmp(&other.reached).then(self.cost.total_cmp(&other.cost)).is_lt()
    }
}

/// The move with the highest net benefit.
fn pick(state: &State, options: &PlanOptions, style: Style) -> Option<Candidate> {
    let mut best: Option<Candidate> = None;
    for segment in 0..state.segments.len() {
        if !overloaded(state, options, state.shard_of(segment))
            || state.height(segment) > style.max_share * state.mean_load
            || blocked(state, options, segment).is_some()
        {
            continue;
        }
        if let Verdict::Move(found) = verdict(state, options, segment, style.tight)
            && best.is_none_or(|best| found.net > best.net)
        {
            best = Some(found);
        }
    }
    best
}

fn overloaded(state: &State, options: &PlanOptions, shard: usize) -> bool {
    !state.is_draining(shard) && state.relative(shard) > 1.0 + options.imbalance_low
}

/// Why a segment may not be moved for balance, whatever the benefit.
fn blocked(state: &State, options: &PlanOptions, index: usize) -> Option<RefusalReason> {
    let segment = state.segments.get(index)?;
    match segment.hold {
        Hold::Cooldown => Some(RefusalReason::Cooldown),
        Hold::InFlight => Some(RefusalReason::InFlight),
        Hold::InsufficientHistory => Some(RefusalReason::InsufficientHistory),
        Hold::Unsplittable => Some(RefusalReason::UnsplittableKey),
        Hold::Pinned => Some(RefusalReason::Pinned),
        Hold::Free if state.height(index) > options.unmovable_share * state.mean_load => {
            Some(RefusalReason::UnsplittableKey)
        }
        Hold::Free if segment.hot_buckets < options.min_hot_buckets => Some(RefusalReason::NotHotLongEnough),
        Hold::Free => None,
    }
}

/// The best move of a segment off its (overloaded) shard.
///
/// A `tight` target must end up balanced.
fn verdict(state: &State, options: &PlanOptions, segment: usize, tight: bool) -> Verdict {
    let from = state.shard_of(segment);
    let before = state.peak(from) / state.capacity(from);
    let left = state.peak_without(segment);
    let relief = state.excess(from, state.peak(from)) - state.excess(from, left);
    let least = least_benefit(state, options, segment);
    let mut best: Option<Candidate> = None;
    let mut improves = false;
    for to in targets(state).filter(|to| *to != from) {
        let peak = state.peak_with(to, segment);
        let benefit = relief - (state.excess(to, peak) - state.excess(to, state.peak(to)));
        // The target must not end up hotter than the source was (a small shard could, at a small
        // excess), unless its peak is at another time and does not rise. The factors keep rounding
        // errors from counting as improvements.
        let spares = peak <= state.peak(to) || peak / state.capacity(to) < before * (1.0 - 1e-9);
        let fits = !tight || state.relative_of(to, peak) <= 1.0 + options.imbalance_low;
        if benefit <= 1e-9 * state.mean_load || !spares || !fits {
            continue;
        }
        improves = true;
        let net = benefit - cost(state, options, segment) / options.payback_s;
        // Equal benefits go to the emptiest shard, which is why targets of equal net are compared.
        let better = best.is_none_or(|best| {
            net > best.net || (net == best.net && state.relative(to) < state.relative(best.to))
        });
        if benefit >= least && better {
            best = Some(Candidate { segment, to, benefit, net });
        }
    }
    match best {
        Some(candidate) => Verdict::Move(candidate),
        None if improves => Verdict::LowBenefit,
        None => Verdict::NoTarget,
    }
}

/// Cost of moving a segment, cost units.
fn cost(state: &State, options: &PlanOptions, segment: usize) -> f64 {
    let bytes = state.segments.get(segment).map_or(0, |segment| segment.bytes);
    bytes as f64 / MIB * options.move_cost_per_mib
}

/// The least benefit that pays for moving a segment, cost units/s.
fn least_benefit(state: &State, options: &PlanOptions, segment: usize) -> f64 {
    let pays = cost(state, options, segment) / options.payback_s;
    pays.max(options.min_benefit_fraction * state.mean_load)
}

/// Applies a move and records it.
fn push(state: &mut State, options: &PlanOptions, chosen: Candidate, steps: &mut Vec<Step>) {
    let Candidate { segment, to, benefit, .. } = chosen;
    let from = state.shard_of(segment);
    let pays = cost(state, options, segment) / options.payback_s;
    let confidence = confidence(state, segment, to, pays);
    let peak_before = state.imbalance();
    let before = state.relative(from);
    state.apply(segment, to);
    let id = |shard: usize| state.shards.get(shard).map_or(0, |shard| shard.id);
    let percent = |relative: f64| (relative * 100.0).round();
    let why = if state.is_draining(from) { "is draining" } else { "is above its fair share" };
    let reason = format!(
        "shard {} {why}: its peak goes from {} % to {} % of the fair share, that of shard {} to {} %",
        id(from),
        percent(before),
        percent(state.relative(from)),
        id(to),
        percent(state.relative(to)),
    );
    steps.push(Step {
        segment: state.segments.get(segment).map_or(0, |segment| segment.id),
        from: id(from),
        to: id(to),
        benefit,
        confidence,
        peak_before,
        peak_after: state.imbalance(),
        reason,
    });
}

/// Segments that matter and stay on shards that stay overloaded or undrained.
fn refusals(state: &State, options: &PlanOptions, acts: bool) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    for (index, segment) in state.segments.iter().enumerate() {
        let shard = state.shard_of(index);
        let reason = if state.is_draining(shard) {
            undrained(state, index)
        } else if acts
            && overloaded(state, options, shard)
            && state.height(index) >= options.min_benefit_fraction * state.mean_load
        {
            unmoved(state, options, index)
        } else {
            None
        };
        if let Some(reason) = reason {
            refusals.push(Refusal { segment: segment.id, reason });
        }
    }
    refusals.sort_by_key(|refusal| refusal.segment);
    refusals
}

fn undrained(state: &State, index: usize) -> Option<RefusalReason> {
    match state.segments.get(index).map(|segment| segment.hold) {
        Some(Hold::InFlight) => Some(RefusalReason::InFlight),
        Some(Hold::Pinned) => Some(RefusalReason::Pinned),
        // A segment that would fit was only beyond the step limit: the next plan takes it.
        _ if drain_target(state, index).is_some() => None,
        _ => Some(RefusalReason::NoTargetCapacity),
    }
}

fn unmoved(state: &State, options: &PlanOptions, index: usize) -> Option<RefusalReason> {
    if let Some(reason) = blocked(state, options, index) {
        return Some(reason);
    }
    match verdict(state, options, index, false) {
        Verdict::NoTarget => Some(RefusalReason::NoTargetCapacity),
        Verdict::LowBenefit => Some(RefusalReason::LowBenefit),
        // It was beyond the step limit: the next plan takes it.
        Verdict::Move(_) => None,
    }
}
