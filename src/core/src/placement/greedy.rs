//! The greedy planner: the hottest shard first, from it the move with the highest net benefit.

use super::futures::Ends;
use super::refusal;
use super::state::State;
use super::{Hold, Link, Plan, PlanOptions, RefusalReason, Segment, Shard, Step};

const MIB: f64 = 1_048_576.0;

/// Above this many (segment, shard) pairs only the first two styles compete: the others pay for a few large
/// segments, not for thousands of small ones.
const LARGE: usize = 100_000;
/// Targets that are looked at for a segment, of each kind, before all are.
const NEAR_TARGETS: usize = 12;
/// Moves off a shard that are compared in the sampled futures.
const FINALISTS: usize = 6;

/// A move that would improve.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    segment: usize,
    to: usize,
    benefit: f64,
    /// Benefit less the cost spread over the pay-back time, cost units/s.
    net: f64,
}

/// What keeps a segment that would improve from moving.
pub(super) enum Verdict {
    Move(Candidate),
    NoTarget,
    /// It would, did accesses not have to wait for the nodes that could take it.
    TooFar,
    LowBenefit,
}

/// Plans a checked problem; see [`super::plan`].
pub(super) fn plan(shards: &[Shard], segments: &[Segment], links: &[Link], options: &PlanOptions) -> Plan {
    let mut state = State::new(shards, segments, links);
    let imbalance_before = state.imbalance();
    let mut steps = Vec::new();
    let mut acts = false;
    // A drained segment can find room only after others were balanced away, and the best style of
    // balancing can leave what another one would still move; so again until nothing changes. Every step
    // lowers the objective, which bounds the rounds, as does `max_steps`.
    loop {
        let known = steps.len();
        drain(&mut state, options, &mut steps);
        if state.total_peak >= options.min_load {
            if state.active_imbalance() > 1.0 + options.imbalance_high {
                acts = true;
                balance(&mut state, options, &mut steps);
            }
            gather(&mut state, options, &mut steps);
        }
        if steps.len() == known {
            break;
        }
    }
    Plan {
        refusals: refusal::all(&state, options, acts),
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
            let cut = |state: &State, at: usize| state.linked_to(segment, |shard| shard != at);
            let links = cut(state, state.shard_of(segment)) - cut(state, to);
            let benefit = state.drain_penalty(segment) - growth + links - state.farther(segment, to);
            push(state, options, Candidate { segment, to, benefit, net: benefit }, steps);
        }
    }
}

fn may_drain(state: &State, segment: usize) -> bool {
    let hold = state.segments.get(segment).map(|segment| segment.hold);
    !matches!(hold, Some(Hold::InFlight | Hold::Pinned | Hold::Off) | None)
}

pub(super) fn drain_target(state: &State, segment: usize) -> Option<usize> {
    let used = |to: usize| (state.peak_with(to, segment) / state.capacity(to), to);
    let fit: Vec<(f64, usize)> =
        targets(state, segment).map(used).filter(|(utilisation, _)| *utilisation <= 1.0).collect();
    let nearest = fit.iter().map(|(_, to)| state.farther(segment, *to)).fold(f64::INFINITY, f64::min);
    let mut best: Option<(f64, usize)> = None;
    for (utilisation, to) in fit {
        // Waiting for a node that is farther than another one counts like load.
        let charged = utilisation + (state.farther(segment, to) - nearest) / state.capacity(to);
        if best.is_none_or(|(least, _)| charged < least) {
            best = Some((charged, to));
        }
    }
    best.map(|(_, to)| to)
}

fn targets(state: &State, segment: usize) -> impl Iterator<Item = usize> {
    (0..state.shards.len()).filter(move |shard| state.accepts(*shard, segment))
}

/// Plans the balancing in every style, keeps the best and records it.
fn balance(state: &mut State, options: &PlanOptions, steps: &mut Vec<Step>) {
    let room = options.max_steps.saturating_sub(steps.len());
    let mut best: Option<Trial> = None;
    let large = state.segments.len() * state.shards.len() > LARGE;
    for style in STYLES.into_iter().take(if large { 2 } else { STYLES.len() }) {
        let trial = Trial::run(state.clone(), options, style, room);
        if best.as_ref().is_none_or(|best| trial.is_better(best)) {
            best = Some(trial);
        }
    }
    for candidate in best.map(|best| best.moves).unwrap_or_default() {
        push(state, options, candidate, steps);
    }
}

/// Brings segments that are used together onto one shard, as far as no shard gets too hot, nor beyond its capacity.
fn gather(state: &mut State, options: &PlanOptions, steps: &mut Vec<Step>) {
    let goal = 1.0 + options.imbalance_low;
    while steps.len() < options.max_steps {
        let mut best: Option<Candidate> = None;
        for segment in 0..state.segments.len() {
            let from = state.shard_of(segment);
            let free = state.segments.get(segment).is_some_and(|segment| segment.hold == Hold::Free);
            if !free || state.is_draining(from) {
                continue;
            }
            let relief = relief(state, segment);
            for to in state.linked_shards(segment) {
                let peak = state.peak_with(to, segment);
                let fits = peak <= state.capacity(to).max(state.peak(to));
                if !state.accepts(to, segment) || !fits || state.relative_of(to, peak) > goal {
                    continue;
                }
                let benefit = relief - growth(state, to, peak) + saved(state, segment, to);
                let net = benefit - cost(state, options, segment) / options.payback_s;
                let enough =
                    benefit >= least_benefit(state, options, segment) && benefit > 1e-9 * state.mean_load;
                let found = Candidate { segment, to, benefit, net };
                if enough && best.is_none_or(|best| is_better_to_join(state, &found, &best)) {
                    best = Some(found);
                }
            }
        }
        let Some(best) = best else { return };
        push(state, options, best, steps);
    }
}

/// A gain in steps that rounding errors do not reach: sums of the same numbers in another order are equal.
fn rank(state: &State, net: f64) -> f64 {
    (net / (1e-9 * state.mean_load).max(1e-300)).round()
}

/// Whether a candidate is better than another one. Which of two linked segments goes to the other often makes no
/// difference: then the one that carries less goes, whatever they are called.
fn is_better_to_join(state: &State, one: &Candidate, other: &Candidate) -> bool {
    let load = |candidate: &Candidate| (state.height(candidate.segment), state.relative(candidate.to));
    let (own, others) = (rank(state, one.net), rank(state, other.net));
    own > others || own == others && load(one) < load(other)
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
    /// Moves segments off the hottest shards until balanced or nothing pays.
    fn run(mut state: State, options: &PlanOptions, style: Style, room: usize) -> Self {
        let mut trial = Self { moves: Vec::new(), reached: 0.0, cost: 0.0 };
        let goal = 1.0 + options.imbalance_low;
        // Shards from which nothing can move.
        let mut stuck = vec![false; state.shards.len()];
        while trial.moves.len() < room && state.active_imbalance() > goal {
            let hottest = (0..stuck.len())
                .filter(|shard| !stuck[*shard] && overloaded(&state, options, *shard))
                .max_by(|a, b| state.relative(*a).total_cmp(&state.relative(*b)).then(b.cmp(a)));
            let Some(from) = hottest else { break };
            let Some(candidate) = pick(&state, options, style, from, None) else {
                stuck[from] = true;
                continue;
            };
            trial.cost += cost(&state, options, candidate.segment);
            state.apply(candidate.segment, candidate.to);
            trial.moves.push(candidate);
            // What has changed is the two ends: somebody who was stuck may have got a target.
            stuck[candidate.to] = false;
            for shard in (0..stuck.len()).filter(|shard| *shard != candidate.to) {
                let ends = Some([from, candidate.to]);
                if stuck[shard] && pick(&state, options, style, shard, ends).is_some() {
                    stuck[shard] = false;
                }
            }
        }
        trial.reached = state.active_imbalance().max(goal);
        trial
    }

    /// Balance first, then bytes.
    fn is_better(&self, other: &Self) -> bool {
        self.reached.total_cmp(&other.reached).then(self.cost.total_cmp(&other.cost)).is_lt()
    }
}

/// The move with the highest net benefit off a shard, to one of `only` if there are any.
fn pick(
    state: &State,
    options: &PlanOptions,
    style: Style,
    from: usize,
    only: Option<[usize; 2]>,
) -> Option<Candidate> {
    let mut found_all: Vec<Candidate> = Vec::new();
    let near = near_targets(state);
    for segment in state.members(from).iter().copied() {
        if state.height(segment) > style.max_share * state.mean_load
            || blocked(state, options, segment).is_some()
        {
            continue;
        }
        let mut found = match (&only, &near) {
            (Some(only), _) => verdict(state, options, segment, style.tight, only),
            (None, Some(near)) => verdict(state, options, segment, style.tight, near),
            (None, None) => Verdict::NoTarget,
        };
        if only.is_none() && !matches!(found, Verdict::Move(_)) {
            found = verdict_anywhere(state, options, segment, style.tight);
        }
        if let Verdict::Move(found) = found {
            found_all.push(found);
        }
    }
    // What looks best in the mean is often only lucky; of the best few, the one that gains most in the futures.
    // Of equals (whatever takes a shard below its fair share relieves it of the same) the one that carries least.
    let height = |candidate: &Candidate| state.height(candidate.segment);
    found_all.sort_by(|a, b| {
        let nets = rank(state, b.net).total_cmp(&rank(state, a.net));
        nets.then(height(a).total_cmp(&height(b))).then(a.segment.cmp(&b.segment))
    });
    found_all.truncate(FINALISTS);
    let in_futures = |candidate: &Candidate| {
        let moved = state.segments.get(candidate.segment)?;
        let gain = state.futures.mean_gain(moved, ends(state, candidate.segment, candidate.to))?;
        Some(gain - cost(state, options, candidate.segment) / options.payback_s)
    };
    let mut best: Option<(f64, Candidate)> = None;
    for candidate in found_all {
        let net = in_futures(&candidate).unwrap_or(candidate.net);
        if best.is_none_or(|(most, _)| rank(state, net) > rank(state, most)) {
            best = Some((net, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// The two shards of a move.
pub(super) fn ends(state: &State, segment: usize, to: usize) -> Ends {
    let from = state.shard_of(segment);
    Ends {
        from,
        to,
        from_capacity: state.capacity(from),
        to_capacity: state.capacity(to),
        drains: state.is_draining(from),
        joined: saved(state, segment, to),
    }
}

/// The least utilised shards, when there are too many to look at all for every segment.
fn near_targets(state: &State) -> Option<Vec<usize>> {
    if state.shards.len() <= 2 * NEAR_TARGETS {
        return None;
    }
    let mut order: Vec<usize> = (0..state.shards.len()).filter(|shard| !state.is_draining(*shard)).collect();
    order.sort_by(|a, b| state.relative(*a).total_cmp(&state.relative(*b)).then(a.cmp(b)));
    order.truncate(NEAR_TARGETS);
    Some(order)
}

pub(super) fn overloaded(state: &State, options: &PlanOptions, shard: usize) -> bool {
    !state.is_draining(shard) && state.relative(shard) > 1.0 + options.imbalance_low
}

/// Why a segment may not be moved for balance, whatever the benefit.
pub(super) fn blocked(state: &State, options: &PlanOptions, index: usize) -> Option<RefusalReason> {
    let segment = state.segments.get(index)?;
    match segment.hold {
        Hold::Cooldown => Some(RefusalReason::Cooldown),
        Hold::InFlight => Some(RefusalReason::InFlight),
        Hold::InsufficientHistory => Some(RefusalReason::InsufficientHistory),
        Hold::Unsplittable => Some(RefusalReason::UnsplittableKey),
        Hold::Pinned => Some(RefusalReason::Pinned),
        Hold::Off => Some(RefusalReason::ModeOff),
        // Wherever it goes is the next hot shard; but two of them on one shard are better apart.
        Hold::Free
            if state.height(index) > options.unmovable_share * state.mean_load
                && state.relative_of(state.shard_of(index), state.peak_without(index))
                    < options.unmovable_share =>
        {
            Some(RefusalReason::UnsplittableKey)
        }
        Hold::Free
            if segment.hot_buckets < options.min_hot_buckets
                && !state.is_foreseen(state.shard_of(index), options) =>
        {
            Some(RefusalReason::NotHotLongEnough)
        }
        Hold::Free => None,
    }
}

/// What a segment's shard is relieved of without it, cost units/s.
pub(super) fn relief(state: &State, segment: usize) -> f64 {
    let from = state.shard_of(segment);
    state.excess(from, state.peak(from)) - state.excess(from, state.peak_without(segment))
}

/// What a shard's excess grows by when its peak becomes `peak`, cost units/s.
pub(super) fn growth(state: &State, to: usize, peak: f64) -> f64 {
    state.excess(to, peak) - state.excess(to, state.peak(to))
}

/// What a move saves of the links across shards, less what accesses then wait for its node, cost units/s.
pub(super) fn saved(state: &State, segment: usize, to: usize) -> f64 {
    state.joined(segment, to) - state.farther(segment, to)
}

/// The best move of a segment off its (overloaded) shard.
pub(super) fn verdict_anywhere(state: &State, options: &PlanOptions, segment: usize, tight: bool) -> Verdict {
    let all: Vec<usize> = (0..state.shards.len()).collect();
    verdict(state, options, segment, tight, &all)
}

/// The best move of a segment off its (overloaded) shard to one of some shards.
///
/// A `tight` target must end up balanced.
fn verdict(state: &State, options: &PlanOptions, segment: usize, tight: bool, shards: &[usize]) -> Verdict {
    let from = state.shard_of(segment);
    let before = state.peak(from) / state.capacity(from);
    let relief = relief(state, segment);
    let least = least_benefit(state, options, segment);
    let mut best: Option<Candidate> = None;
    let (mut improves, mut far) = (false, false);
    let enough = |benefit: f64| benefit >= least && benefit > 1e-9 * state.mean_load;
    for to in shards.iter().copied().filter(|to| *to != from && state.accepts(*to, segment)) {
        let peak = state.peak_with(to, segment);
        let relieved = relief - growth(state, to, peak) + state.joined(segment, to);
        let benefit = relieved - state.farther(segment, to);
        // The target must not end up hotter than the source was (a small shard could, at a small
        // excess), unless its peak is at another time and does not rise. The factors keep rounding
        // errors from counting as improvements.
        let spares = peak <= state.peak(to) || peak / state.capacity(to) < before * (1.0 - 1e-9);
        let fits = !tight || state.relative_of(to, peak) <= 1.0 + options.imbalance_low;
        far |= spares && fits && enough(relieved) && !enough(benefit);
        if benefit <= 1e-9 * state.mean_load || !spares || !fits {
            continue;
        }
        improves = true;
        let net = benefit - cost(state, options, segment) / options.payback_s;
        // Equal benefits go to the emptiest shard, the largest of those, which is why targets of equal net are compared.
        let room = |to: usize| (state.relative(to), -state.capacity(to));
        let better = best.is_none_or(|best| {
            let (own, others) = (rank(state, net), rank(state, best.net));
            own > others || own == others && room(to) < room(best.to)
        });
        if benefit >= least && better {
            best = Some(Candidate { segment, to, benefit, net });
        }
    }
    match best {
        Some(candidate) => Verdict::Move(candidate),
        None if far => Verdict::TooFar,
        None if improves => Verdict::LowBenefit,
        None => Verdict::NoTarget,
    }
}

/// Cost of moving a segment, cost units.
pub(super) fn cost(state: &State, options: &PlanOptions, segment: usize) -> f64 {
    let bytes = state.segments.get(segment).map_or(0, |segment| segment.bytes);
    bytes as f64 / MIB * options.move_cost_per_mib
}

/// The least benefit that pays for moving a segment, cost units/s.
pub(super) fn least_benefit(state: &State, options: &PlanOptions, segment: usize) -> f64 {
    let pays = cost(state, options, segment) / options.payback_s;
    pays.max(options.min_benefit_fraction * state.mean_load)
}

/// Applies a move and records it.
fn push(state: &mut State, options: &PlanOptions, chosen: Candidate, steps: &mut Vec<Step>) {
    let Candidate { segment, to, benefit, .. } = chosen;
    let Some(moved) = state.segments.get(segment) else { return };
    let from = state.shard_of(segment);
    let ends = ends(state, segment, to);
    let confidence = state.futures.confidence(moved, ends, cost(state, options, segment) / options.payback_s);
    let foreseen = !ends.drains && moved.hot_buckets < options.min_hot_buckets;
    let (peak_before, before) = (state.imbalance(), state.relative(from));
    let (hot, farther) = (overloaded(state, options, from), state.farther(segment, to));
    state.apply(segment, to);
    let id = |shard: usize| state.shards.get(shard).map_or(0, |shard| shard.id);
    let percent = |relative: f64| (relative * 100.0).round();
    let why = match (ends.drains, hot, foreseen) {
        (true, ..) => "is draining",
        (_, false, _) => "holds a part of what is used together",
        (_, _, true) => "will be above its fair share",
        _ => "is above its fair share",
    };
    let waits = match farther {
        more if more >= 0.05 => format!("; its accesses wait for a node, which costs {more:.1} cost units/s"),
        less if less <= -0.05 => {
            format!("; its accesses wait less for a node, which saves {:.1} cost units/s", -less)
        }
        _ => String::new(),
    };
    let reason = format!(
        "shard {} {why}: its peak goes from {} % to {} % of the fair share, that of shard {} to {} %{waits}",
        id(from),
        percent(before),
        percent(state.relative(from)),
        id(to),
        percent(state.relative(to)),
    );
    steps.push(Step {
        segment: moved.id,
        from: id(from),
        to: id(to),
        benefit,
        confidence,
        foreseen,
        peak_before,
        peak_after: state.imbalance(),
        reason,
    });
}
