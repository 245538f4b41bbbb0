//! Kernel regression (Nadaraya 1964, Watson 1964) over whole windows, as QueryBot 5000 uses it for spikes
//! (Ma et al., SIGMOD 2018): what came after the windows that looked like the last one.

use super::history::History;
use super::{Candidate, LEADS, Leads};

/// Buckets of a window.
const WINDOW: usize = 24;
/// The most windows remembered, the newest ones.
const MAX_WINDOWS: usize = 1_024;

/// Kernel regression.
pub(super) struct Kernel {
    name: &'static str,
    /// Windows and what followed are compared as differences from the mean of the window.
    relative: bool,
    windows: Vec<([f64; WINDOW], Leads)>,
    /// Squared distance at which a window counts a third of an equal one.
    bandwidth: f64,
}

impl Kernel {
    /// Remembers the first `end` buckets; None when they are too few. `width` is the bandwidth as a share of
    /// the usual distance of a window from its nearest ones.
    pub(super) fn fit(history: &History, end: usize, relative: bool, width: f64, name: &'static str) -> Option<Self> {
        let last = end.checked_sub(LEADS + 1)?;
        let first = (WINDOW - 1).max(last.saturating_sub(MAX_WINDOWS));
        let mut windows = Vec::new();
        for row in first..=last {
            let known = history.known[row + 1..=row + LEADS].iter().filter(|known| **known).count();
            if known * 2 > LEADS {
                let (window, mean) = window(&history.logs[..=row], relative)?;
                windows.push((window, std::array::from_fn(|lead| history.logs[row + 1 + lead] - mean)));
            }
        }
        if windows.len() < 2 * WINDOW {
            return None;
        }
        let mut model = Self { name, relative, windows, bandwidth: 1.0 };
        model.bandwidth = (model.usual_distance() * width).max(1e-9);
        Some(model)
    }

    /// The median, over some windows, of the distance from the tenth nearest that does not overlap.
    fn usual_distance(&self) -> f64 {
        let step = (self.windows.len() / 32).max(1);
        let mut near: Vec<f64> = Vec::new();
        for (place, (window, _)) in self.windows.iter().enumerate().step_by(step) {
            let apart = self.windows.iter().enumerate().filter(|(other, _)| other.abs_diff(place) >= WINDOW);
            let mut distances: Vec<f64> = apart.map(|(_, (other, _))| distance(window, other)).collect();
            if let Some(rank) = distances.len().checked_sub(1).map(|last| last.min(9)) {
                near.push(*distances.select_nth_unstable_by(rank, f64::total_cmp).1);
            }
        }
        let middle = near.len() / 2;
        if near.is_empty() { 1.0 } else { *near.select_nth_unstable_by(middle, f64::total_cmp).1 }
    }
}

/// The last window, and the mean it is relative to.
fn window(logs: &[f64], relative: bool) -> Option<([f64; WINDOW], f64)> {
    let last = logs.get(logs.len().checked_sub(WINDOW)?..)?;
    let mean = if relative { last.iter().sum::<f64>() / WINDOW as f64 } else { 0.0 };
    Some((std::array::from_fn(|i| last[i] - mean), mean))
}

fn distance(a: &[f64; WINDOW], b: &[f64; WINDOW]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

impl Candidate for Kernel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let Some((last, mean)) = window(logs, self.relative) else { return [logs.last().copied().unwrap_or(0.0); LEADS] };
        let distances: Vec<f64> = self.windows.iter().map(|(window, _)| distance(window, &last)).collect();
        // Relative to the nearest one, so that a window like no other is still like some more than others.
        let nearest = distances.iter().copied().fold(f64::INFINITY, f64::min);
        let (mut sums, mut total) = ([0.0; LEADS], 0.0);
        for (distance, (_, after)) in distances.iter().zip(&self.windows) {
            let weight = (-(distance - nearest) / self.bandwidth).exp();
            if weight > 1e-6 {
                total += weight;
                sums.iter_mut().zip(after).for_each(|(sum, value)| *sum += weight * value);
            }
        }
        sums.map(|sum| sum / total + mean)
    }
}
