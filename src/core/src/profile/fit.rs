//! From samples of one resource to a model.
//!
//! The line is ordinary least squares (linfa-linear, QR) on standardised features, on rows divided
//! by their normaliser: costs scatter in proportion to their size, so without that the few large
//! calls would decide about all others (Carroll and Ruppert 1988, iteratively reweighted). Calls far
//! off the line, measured by the median absolute deviation, are dropped and the line is fitted again,
//! where a session's first call explains them. The interval is cross-conformal (Vovk 2015): every
//! sample is compared with a line fitted without its fold, and the interval ends at the quantiles of
//! these residuals, with the finite-sample correction, and further out when recent
//! predictions were further off. The line stored is fitted on all samples.

use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_linear::LinearRegression;
use ndarray::{Array1, Array2};

use super::drift::median;
use super::model::{Fallback, LEVEL, Model, ModelKind};
use super::{FEATURES, MIN_SAMPLES};

/// The fewest samples worth a line; below, noise would draw it.
const MIN_LINEAR: usize = 20;

/// The fewest recent predictions whose errors say something about the tails.
const MIN_TRACK: usize = 60;

/// Folds of the cross-conformal calibration. They interleave, so that each spans all of the time.
const FOLDS: usize = 4;

/// Rounds of weighting and dropping; they settle after two or three.
const ROUNDS: usize = 4;

/// An outlier's distance from the median residual, in (scaled) median absolute deviations.
const OUTLIER_MADS: f64 = 10.0;

/// A spread below this share of the prediction is not told from none: cheap exact functions must not
/// lose samples over rounding.
const MIN_SPREAD: f64 = 0.02;

/// The largest share of samples that may be dropped. When more are far off, they are no accident but
/// what the function does, and all are kept.
const MAX_DROPPED: f64 = 0.1;

/// The smallest normaliser, as a share of the mean outcome.
const FLOOR_SHARE: f64 = 0.05;

/// The line must have at most this share of the mean's out-of-sample error.
const BETTER: f64 = 0.98;

/// A feature is collinear when others explain all but this share of its variance.
const COLLINEAR: f64 = 1e-4;

/// One sample of one resource.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) features: [f64; FEATURES],
    pub(super) actual: f64,
}

/// A linear function of the features.
#[derive(Clone, Copy, Debug)]
struct Line {
    intercept: f64,
    slopes: [f64; FEATURES],
}

impl Line {
    fn at(&self, features: &[f64; FEATURES]) -> f64 {
        let rise: f64 = self.slopes.iter().zip(features).map(|(slope, feature)| slope * feature).sum();
        (self.intercept + rise).max(0.0)
    }

    fn residual(&self, row: &Row, floor: f64) -> f64 {
        let value = self.at(&row.features);
        (row.actual - value) / value.max(floor)
    }
}

/// A feature that counts, standardised.
#[derive(Clone, Copy, Debug)]
struct Column {
    feature: usize,
    mean: f64,
    deviation: f64,
}

impl Column {
    fn of(&self, row: &Row) -> f64 {
        (row.features[self.feature] - self.mean) / self.deviation
    }
}

/// A line with what it was fitted on.
struct Fitted {
    line: Line,
    floor: f64,
    /// Per row: used, or dropped as an outlier.
    kept: Vec<bool>,
    /// Per row: the normaliser.
    scales: Vec<f64>,
}

/// Fits a model; `None` with fewer than [`MIN_SAMPLES`] rows. All numbers must be finite.
///
/// `drop_outliers` says whether rare huge outcomes are start-up rather than work.
pub(super) fn fit(rows: &[Row], drop_outliers: bool) -> Option<Model> {
    if rows.len() < MIN_SAMPLES {
        return None;
    }
    let mean = Candidate::new(rows, &[], drop_outliers).ok()?;
    let line = columns(rows).and_then(|columns| Candidate::new(rows, &columns, drop_outliers));
    let judged = line.and_then(|line| {
        let (of_line, of_mean) = line.errors_with(rows, &mean);
        if of_line < BETTER * of_mean { Ok(line) } else { Err(Fallback::NoBetterThanMean) }
    });
    Some(match judged {
        Ok(line) => line.model(rows, None),
        Err(reason) => mean.model(rows, Some(reason)),
    })
}

/// A fitted line and what it predicts for rows it has not seen.
struct Candidate {
    fitted: Fitted,
    /// Per row: the line fitted without the row's fold.
    unseen: Vec<f64>,
}

impl Candidate {
    fn new(rows: &[Row], columns: &[Column], drop_outliers: bool) -> Result<Self, Fallback> {
        let fitted = robust(rows, columns, drop_outliers)?;
        let mut unseen = vec![0.0; rows.len()];
        for fold in 0..FOLDS {
            let train = |index: usize| index % FOLDS != fold && fitted.kept[index];
            let line = least_squares(rows, columns, &fitted.scales, train)?;
            for (index, row) in rows.iter().enumerate().filter(|(index, _)| index % FOLDS == fold) {
                unseen[index] = line.at(&row.features);
            }
        }
        Ok(Self { fitted, unseen })
    }

    /// Out-of-sample absolute errors of both, summed over the rows this one kept.
    fn errors_with(&self, rows: &[Row], other: &Self) -> (f64, f64) {
        let kept = rows.iter().enumerate().filter(|(index, _)| self.fitted.kept[*index]);
        kept.fold((0.0, 0.0), |(own, its), (index, row)| {
            (own + (row.actual - self.unseen[index]).abs(), its + (row.actual - other.unseen[index]).abs())
        })
    }

    fn model(&self, rows: &[Row], reason: Option<Fallback>) -> Model {
        let floor = self.fitted.floor;
        let residuals =
            rows.iter().zip(&self.unseen).map(|(row, value)| (row.actual - value) / value.max(floor));
        let (lower_quantile, upper_quantile) = interval(residuals.collect());
        Model {
            kind: if reason.is_some() { ModelKind::Mean } else { ModelKind::Linear },
            reason,
            intercept: self.fitted.line.intercept,
            coefficients: self.fitted.line.slopes,
            samples: rows.len() as u32,
            lower_quantile,
            upper_quantile,
            floor,
            level: LEVEL,
        }
    }
}

/// Widens the interval to what recent predictions were off, once there are enough of them. Samples in a
/// reservoir are as if drawn in any order, but the next call comes after them: a machine that changes its
/// speed is seen only here (Gibbs and Candès 2021 on conformal prediction under shift).
/// `stretch` is what it took lately to hold as many calls as promised.
pub(super) fn with_track(model: Model, residuals: Vec<f64>, stretch: f64) -> Model {
    let (lower, upper) = if residuals.len() < MIN_TRACK { (0.0, 0.0) } else { interval(residuals) };
    Model {
        lower_quantile: stretch * model.lower_quantile.min(lower),
        upper_quantile: stretch * model.upper_quantile.max(upper),
        ..model
    }
}

/// The features that vary and are not (nearly) a linear function of those before them.
fn columns(rows: &[Row]) -> Result<Vec<Column>, Fallback> {
    if rows.len() < MIN_LINEAR {
        return Err(Fallback::TooFewSamples);
    }
    let count = rows.len() as f64;
    let mut columns = Vec::with_capacity(FEATURES);
    // Orthonormal, spanning the columns taken (modified Gram-Schmidt).
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(FEATURES);
    for feature in 0..FEATURES {
        let mean = rows.iter().map(|row| row.features[feature]).sum::<f64>() / count;
        let squares: f64 = rows.iter().map(|row| (row.features[feature] - mean).powi(2)).sum();
        let deviation = (squares / count).sqrt();
        if !deviation.is_finite() || deviation <= 1e-9 * mean.abs().max(1e-9) {
            continue;
        }
        let column = Column { feature, mean, deviation };
        let mut rest: Vec<f64> = rows.iter().map(|row| column.of(row)).collect();
        for direction in &basis {
            let along: f64 = direction.iter().zip(&rest).map(|(a, b)| a * b).sum();
            rest.iter_mut().zip(direction).for_each(|(rest, direction)| *rest -= along * direction);
        }
        let left: f64 = rest.iter().map(|value| value * value).sum();
        if left > COLLINEAR * count {
            rest.iter_mut().for_each(|value| *value /= left.sqrt());
            basis.push(rest);
            columns.push(column);
        }
    }
    if columns.is_empty() { Err(Fallback::ConstantFeatures) } else { Ok(columns) }
}

/// Fits, drops what is far off, weights by the size of the prediction, and fits again.
fn robust(rows: &[Row], columns: &[Column], drop_outliers: bool) -> Result<Fitted, Fallback> {
    let mut kept = vec![true; rows.len()];
    let mut scales = vec![1.0; rows.len()];
    let mut line = least_squares(rows, columns, &scales, |_| true)?;
    let mut floor = floor_of(rows, &kept);
    for _ in 0..ROUNDS {
        let next = if drop_outliers { without_outliers(rows, &line, floor) } else { kept.clone() };
        let settled = next == kept;
        kept = next;
        floor = floor_of(rows, &kept);
        // The mean stays a plain one: there, every call counts the same.
        if !columns.is_empty() {
            scales = rows.iter().map(|row| line.at(&row.features).max(floor)).collect();
        }
        line = least_squares(rows, columns, &scales, |index| kept[index])?;
        if settled {
            break;
        }
    }
    Ok(Fitted { line, floor, kept, scales })
}

fn floor_of(rows: &[Row], kept: &[bool]) -> f64 {
    let used = rows.iter().zip(kept).filter(|(_, kept)| **kept);
    let (sum, count) = used.fold((0.0, 0.0), |(sum, count), (row, _)| (sum + row.actual, count + 1.0));
    (FLOOR_SHARE * sum / f64::max(count, 1.0)).max(1e-9)
}

/// Which rows are no outliers of `line`.
fn without_outliers(rows: &[Row], line: &Line, floor: f64) -> Vec<bool> {
    let residuals: Vec<f64> = rows.iter().map(|row| line.residual(row, floor)).collect();
    let middle = median(&residuals);
    let distances: Vec<f64> = residuals.iter().map(|residual| (residual - middle).abs()).collect();
    // 1.4826 makes it the standard deviation of a normal distribution.
    let spread = (1.4826 * median(&distances)).max(MIN_SPREAD);
    let kept: Vec<bool> = distances.iter().map(|distance| *distance <= OUTLIER_MADS * spread).collect();
    let dropped = kept.iter().filter(|kept| !**kept).count();
    // One may always go: the very first call of a new function is one.
    let allowed = ((rows.len() as f64 * MAX_DROPPED) as usize).max(1);
    if dropped <= allowed { kept } else { vec![true; rows.len()] }
}

/// Weighted least squares over the rows `used` says; without columns the weighted mean.
fn least_squares(
    rows: &[Row],
    columns: &[Column],
    scales: &[f64],
    used: impl Fn(usize) -> bool,
) -> Result<Line, Fallback> {
    let used: Vec<usize> = (0..rows.len()).filter(|index| used(*index)).collect();
    let width = columns.len() + 1;
    if used.len() <= width {
        return Err(Fallback::TooFewSamples);
    }
    // Dividing a row, its 1 for the intercept included, by its scale weights it by 1 / scale².
    let mut records = Array2::zeros((used.len(), width));
    let mut targets = Array1::zeros(used.len());
    for ((mut record, target), index) in records.outer_iter_mut().zip(targets.iter_mut()).zip(&used) {
        let (row, scale) = (&rows[*index], scales[*index]);
        for (cell, column) in record.iter_mut().zip(columns) {
            *cell = column.of(row) / scale;
        }
        record[width - 1] = 1.0 / scale;
        *target = row.actual / scale;
    }
    let regression = LinearRegression::new().with_intercept(false);
    let fitted = regression.fit(&DatasetBase::new(records, targets)).map_err(|_| Fallback::RankDeficient)?;
    let solution = fitted.params();
    let mut line = Line { intercept: solution[width - 1], slopes: [0.0; FEATURES] };
    for (column, slope) in columns.iter().zip(solution) {
        line.slopes[column.feature] = slope / column.deviation;
        line.intercept -= slope * column.mean / column.deviation;
    }
    let finite = line.intercept.is_finite() && line.slopes.iter().all(|slope| slope.is_finite());
    if finite { Ok(line) } else { Err(Fallback::RankDeficient) }
}

/// The ends of the conformal interval: the quantiles of `residuals` with ranks of `n + 1`, so that a
/// fresh residual is inside with at least the nominal probability (Vovk et al. 2005).
///
/// With fewer than 19 samples these ranks lie outside the sample. The extremes are then widened in
/// proportion to what is missing; a rule of thumb, no guarantee.
fn interval(mut residuals: Vec<f64>) -> (f64, f64) {
    residuals.sort_by(f64::total_cmp);
    let ranks = residuals.len() as f64 + 1.0;
    let tail = (1.0 - LEVEL) / 2.0;
    let widen = (1.0 / (tail * ranks)).max(1.0);
    let below = (tail * ranks).floor().max(1.0) as usize - 1;
    let above = residuals.len().saturating_sub(1 + below);
    let at = |index: usize| residuals.get(index).copied().unwrap_or(0.0);
    ((widen * at(below)).min(0.0), (widen * at(above)).max(0.0))
}
