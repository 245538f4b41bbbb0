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
    /// What is remembered; windows overlap, so they are kept as places.
    logs: Vec<f32>,
    /// (First bucket of a window, what it is relative to).
    windows: Vec<(u32, f32)>,
    /// Squared distance at which a window counts a third of an equal one.
    bandwidth: f32,
}

impl Kernel {
    /// Remembers the first `end` buckets; None when they are too few. `width` is the bandwidth as a share of
    /// the usual distance of a window from its nearest ones.
    pub(super) fn fit(
        history: &History,
        end: usize,
        relative: bool,
        width: f32,
        name: &'static str,
    ) -> Option<Self> {
        let oldest = end.saturating_sub(MAX_WINDOWS + WINDOW + LEADS);
        let known = &history.known[oldest..end];
        let logs: Vec<f32> = history.logs[oldest..end].iter().map(|log| *log as f32).collect();
        let mut windows = Vec::new();
        for first in 0..(logs.len() + 1).saturating_sub(WINDOW + LEADS) {
            let after = &known[first + WINDOW..first + WINDOW + LEADS];
            if after.iter().filter(|known| **known).count() * 2 > LEADS {
                windows.push((first as u32, base(&logs[first..first + WINDOW], relative)));
            }
        }
        if windows.len() < 2 * WINDOW {
            return None;
        }
        let mut model = Self { name, relative, logs, windows, bandwidth: 1.0 };
        model.bandwidth = (model.usual_distance() * width).max(1e-9);
        Some(model)
    }

    /// Distances of every window from one.
    fn distances<'a>(&'a self, window: &'a [f32], base: f32) -> impl Iterator<Item = f32> + 'a {
        self.windows.iter().map(move |(first, own)| {
            let other = &self.logs[*first as usize..][..WINDOW];
            let shift = base - own;
            window.iter().zip(other).map(|(a, b)| (a - b - shift) * (a - b - shift)).sum()
        })
    }

    /// The median, over some windows, of the distance from the tenth nearest that does not overlap.
    fn usual_distance(&self) -> f32 {
        let step = (self.windows.len() / 32).max(1);
        let mut near: Vec<f32> = Vec::new();
        for (first, base) in self.windows.iter().step_by(step) {
            let window = &self.logs[*first as usize..][..WINDOW];
            let all = self.distances(window, *base).zip(&self.windows);
            let apart = all.filter(|(_, (other, _))| other.abs_diff(*first) >= WINDOW as u32);
            let mut distances: Vec<f32> = apart.map(|(distance, _)| distance).collect();
            if let Some(rank) = distances.len().checked_sub(1).map(|last| last.min(9)) {
                near.push(*distances.select_nth_unstable_by(rank, f32::total_cmp).1);
            }
        }
        let middle = near.len() / 2;
        if near.is_empty() { 1.0 } else { *near.select_nth_unstable_by(middle, f32::total_cmp).1 }
    }
}

/// What a window is relative to.
fn base(window: &[f32], relative: bool) -> f32 {
    if relative { window.iter().sum::<f32>() / WINDOW as f32 } else { 0.0 }
}

impl Candidate for Kernel {
    fn name(&self) -> &'static str {
        self.name
    }

    fn predict(&self, logs: &[f64]) -> Leads {
        let last: Vec<f32> =
            logs[logs.len().saturating_sub(WINDOW)..].iter().map(|log| *log as f32).collect();
        if last.len() < WINDOW {
            return [logs.last().copied().unwrap_or(0.0); LEADS];
        }
        let own = base(&last, self.relative);
        let distances: Vec<f32> = self.distances(&last, own).collect();
        // Relative to the nearest one, so that a window like no other is still like some more than others.
        let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min);
        let (mut sums, mut total) = ([0.0_f32; LEADS], 0.0);
        for (distance, (first, base)) in distances.iter().zip(&self.windows) {
            let weight = (-(distance - nearest) / self.bandwidth).exp();
            if weight > 1e-4 {
                total += weight;
                let after = &self.logs[*first as usize + WINDOW..][..LEADS];
                sums.iter_mut().zip(after).for_each(|(sum, value)| *sum += weight * (value - base));
            }
        }
        sums.map(|sum| f64::from(sum / total + own))
    }
}
