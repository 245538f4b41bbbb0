//! Whether, and where, a series of residuals changed its level.
//!
//! Pettitt (1979), "A non-parametric approach to the change-point problem": with ranks `R` of `n`
//! values, `U(t) = 2 Σ_{i<=t} R(i) - t (n + 1)` peaks at the change, and `K = max |U|` is as large as
//! seen with probability about `2 exp(-6 K² / (n³ + n²))` when there is none. Ranks make it immune to
//! outliers and to the shape of the noise. A significant change that is small is left to the next
//! fit: forgetting costs more than it cures.

/// The fewest residuals worth a look.
const MIN_LENGTH: usize = 24;

/// Accept a change only when chance explains it with less than this probability. The look is
/// repeated thousands of times.
const MAX_P: f64 = 1e-6;

/// Accept a change only when the median moved by this share of the prediction.
const MIN_SHIFT: f64 = 0.25;

/// The fewest residuals on either side of a change.
const MIN_SIDE: usize = 8;

/// Index of the first residual after the change of level; `None` when there is none.
pub(super) fn change(residuals: &[f64]) -> Option<usize> {
    let n = residuals.len() as f64;
    if residuals.len() < MIN_LENGTH {
        return None;
    }
    let (mut rank_sum, mut peak, mut at) = (0.0, 0.0, 0);
    for (index, rank) in ranks(residuals).iter().enumerate() {
        rank_sum += rank;
        let taken = (index + 1) as f64;
        let u = (2.0 * rank_sum - taken * (n + 1.0)).abs();
        if u > peak {
            (peak, at) = (u, index + 1);
        }
    }
    let p = 2.0 * (-6.0 * peak * peak / (n.powi(3) + n.powi(2))).exp();
    let (before, after) = residuals.split_at(at);
    if p > MAX_P || before.len() < MIN_SIDE || after.len() < MIN_SIDE {
        return None;
    }
    moved(before, after).then(|| refined(residuals, median(before), median(after)))
}

/// Whether the median moved by enough to matter.
pub(super) fn moved(before: &[f64], after: &[f64]) -> bool {
    (median(after) - median(before)).abs() >= MIN_SHIFT
}

/// The split for which the residuals are nearest to `before`, then `after`, in absolute distance (Bai
/// 1995). Pettitt's peak leans towards the middle; a few old samples too many would bend the next fit.
fn refined(residuals: &[f64], before: f64, after: f64) -> usize {
    let (mut gain, mut peak, mut at) = (0.0, 0.0, 0);
    for (index, residual) in residuals.iter().enumerate() {
        gain += (residual - after).abs() - (residual - before).abs();
        if gain > peak {
            (peak, at) = (gain, index + 1);
        }
    }
    at.clamp(1, residuals.len() - MIN_SIDE)
}

/// Factors within these are a machine that is slower or faster for a while (a neighbour on the same core
/// was seen to make it 1.6 times) or a function that does the same work with another constant.
const FACTORS: std::ops::RangeInclusive<f64> = 0.4..=2.5;

/// Cheap and expensive calls changed by the same factor when theirs differ by less than this factor.
const SAME: f64 = 1.35;

/// By which factor the cost changed, when all calls changed by the same; from pairs of prediction and ratio of
/// cost to prediction before and after the change. `None` when cheap calls changed by another factor than
/// expensive ones, so that older samples say nothing about the cost now.
pub(super) fn factor(before: &[(f64, f64)], after: &[(f64, f64)]) -> Option<f64> {
    let ratios = |pairs: &[(f64, f64)]| pairs.iter().map(|(_, ratio)| *ratio).collect::<Vec<_>>();
    let factor = median(&ratios(after)) / median(&ratios(before));
    let mut sorted = after.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (cheap, expensive) = sorted.split_at(sorted.len() / 2);
    let tilt = median(&ratios(cheap)) / median(&ratios(expensive));
    (FACTORS.contains(&factor) && (1.0 / SAME..=SAME).contains(&tilt)).then_some(factor)
}

/// Ranks from 1; equal values share their mean rank.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = from as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|index| ranks[*index] = rank);
        from += equal.len();
    }
    ranks
}

/// The median (the upper one of two); 0 of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    if sorted.is_empty() {
        return 0.0;
    }
    let middle = sorted.len() / 2;
    *sorted.select_nth_unstable_by(middle, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_change_and_only_a_large_one() {
        let step = |height: f64| -> Vec<f64> {
            (0..128).map(|i| (i * 37 % 11) as f64 / 50.0 + if i < 96 { 0.0 } else { height }).collect()
        };
        assert_eq!(change(&step(0.5)), Some(96));
        assert_eq!(change(&step(-0.7)), Some(96));
        assert_eq!(change(&step(0.21)), None, "significant, but small");
        assert_eq!(change(&step(0.0)), None);
        assert_eq!(change(&[1.0; 128]), None);
        assert_eq!(change(&step(5.0)[90..102]), None, "too few");
    }

    #[test]
    fn equal_values_share_a_rank() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
    }
}
