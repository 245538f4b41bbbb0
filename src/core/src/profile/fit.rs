//! From samples of one resource to a model.
//!
//! The line is ordinary least squares (linfa-linear, QR) on standardised features, on rows divided
//! by their normaliser: costs scatter in proportion to their size, so without that the few large
//! calls would decide about all others (Carroll and Ruppert 1988, iteratively reweighted). Calls far
//! off the line, measured by the median absolute deviation, are dropped and the line is fitted again,
//! where a session's first call explains them. A line may bend once in the bytes of the row, as where rows
//! become long enough to be compressed, when that predicts unseen rows clearly better (a single hinge of
//! Friedman's MARS, 1991). The interval is cross-conformal (Vovk 2015): every sample is compared with a line
//! fitted without its fold, and the interval ends at the quantiles of these residuals, with the finite-sample
//! correction, and further out when recent predictions were further off. The line stored is fitted on all samples.

use linfa::DatasetBase;
use linfa::traits::Fit;
use linfa_linear::LinearRegression;
use ndarray::{Array1, Array2};

use super::drift::median;
use super::model::{BENT, Bend, Fallback, LEVEL, Model, ModelKind};
use super::{CLOCKS, FEATURES, MIN_SAMPLES, Resource};

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

/// The fewest samples worth a bend.
const MIN_BENT: usize = 80;

/// Where a line may bend: at these quantiles of the rows' bytes.
const BENDS: [f64; 7] = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];

/// A bent line must have at most this share of the straight one's out-of-sample error.
const STRAIGHTER: f64 = 0.95;

/// An interval of a time ends at least so far from the prediction, as a share of it: the same work takes several percent more or
/// less from minute to minute (neighbours, the clock of the processor, what caches hold), which samples of one quiet
/// minute do not tell.
const CLOCK_SPREAD: f64 = 0.08;

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
    bend: Option<Bend>,
}

impl Line {
    fn at(&self, features: &[f64; FEATURES]) -> f64 {
        let rise: f64 = self.slopes.iter().zip(features).map(|(slope, feature)| slope * feature).sum();
        let beyond = self.bend.map_or(0.0, |bend| bend.rise(features[BENT]));
        (self.intercept + rise + beyond).max(0.0)
    }

    fn residual(&self, row: &Row, floor: f64) -> f64 {
        let value = self.at(&row.features);
        (row.actual - value) / value.max(floor)
    }
}

/// A feature that counts, or what it has beyond a bend; standardised.
#[derive(Clone, Copy, Debug)]
struct Column {
    feature: usize,
    beyond: Option<f64>,
    mean: f64,
    deviation: f64,
}

impl Column {
    /// `None` when it does not vary.
    fn new(rows: &[Row], feature: usize, beyond: Option<f64>) -> Option<Self> {
        let mut column = Self { feature, beyond, mean: 0.0, deviation: 1.0 };
        let count = rows.len() as f64;
        let mean = rows.iter().map(|row| column.of(row)).sum::<f64>() / count;
        let squares: f64 = rows.iter().map(|row| (column.of(row) - mean).powi(2)).sum();
        let deviation = (squares / count).sqrt();
        (column.mean, column.deviation) = (mean, deviation);
        (deviation.is_finite() && deviation > 1e-9 * mean.abs().max(1e-9)).then_some(column)
    }

    fn of(&self, row: &Row) -> f64 {
        let value = row.features[self.feature];
        let value = self.beyond.map_or(value, |from| (value - from).max(0.0));
        (value - self.mean) / self.deviation
    }
}

/// Columns none of which is (nearly) a linear function of those before it.
#[derive(Clone, Default)]
struct Columns {
    taken: Vec<Column>,
    /// Orthonormal, spanning the columns taken (modified Gram-Schmidt).
    basis: Vec<Vec<f64>>,
}

impl Columns {
    /// The features that vary and are not collinear.
    fn new(rows: &[Row]) -> Result<Self, Fallback> {
        if rows.len() < MIN_LINEAR {
            return Err(Fallback::TooFewSamples);
        }
        let mut columns = Self::default();
        for column in (0..FEATURES).filter_map(|feature| Column::new(rows, feature, None)) {
            columns.take(rows, column);
        }
        if columns.taken.is_empty() { Err(Fallback::ConstantFeatures) } else { Ok(columns) }
    }

    /// Takes a column unless it is collinear; whether it did.
    fn take(&mut self, rows: &[Row], column: Column) -> bool {
        let mut rest: Vec<f64> = rows.iter().map(|row| column.of(row)).collect();
        for direction in &self.basis {
            let along: f64 = direction.iter().zip(&rest).map(|(a, b)| a * b).sum();
            rest.iter_mut().zip(direction).for_each(|(rest, direction)| *rest -= along * direction);
        }
        let left: f64 = rest.iter().map(|value| value * value).sum();
        let taken = left > COLLINEAR * rows.len() as f64;
        if taken {
            rest.iter_mut().for_each(|value| *value /= left.sqrt());
            self.basis.push(rest);
            self.taken.push(column);
        }
        taken
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
/// Whether rare huge outcomes are start-up rather than work, and whether a line may bend, depends on the resource.
pub(super) fn fit(rows: &[Row], resource: Resource) -> Option<Model> {
    let drop_outliers = resource.has_startup();
    if rows.len() < MIN_SAMPLES {
        return None;
    }
    let mean = Candidate::new(rows, &[], drop_outliers).ok()?;
    let line = Columns::new(rows).and_then(|columns| {
        let straight = Candidate::new(rows, &columns.taken, drop_outliers)?;
        // Of what is counted nothing has been seen to bend, and looking for it takes as long as all the rest.
        let bent =
            if CLOCKS.contains(&resource) { bent(rows, &columns, &straight, drop_outliers) } else { None };
        Ok(bent.unwrap_or(straight))
    });
    let judged = line.and_then(|line| {
        if line.is_better(rows, &mean, BETTER) { Ok(line) } else { Err(Fallback::NoBetterThanMean) }
    });
    let model = match judged {
        Ok(line) => line.model(rows, None),
        Err(reason) => mean.model(rows, Some(reason)),
    };
    let least = if CLOCKS.contains(&resource) { CLOCK_SPREAD } else { 0.0 };
    Some(Model {
        lower_quantile: model.lower_quantile.min(-least),
        upper_quantile: model.upper_quantile.max(least),
        ..model
    })
}

/// The line with the bend that fits best, if it is clearly better than the straight one.
fn bent(rows: &[Row], columns: &Columns, straight: &Candidate, drop_outliers: bool) -> Option<Candidate> {
    if rows.len() < MIN_BENT || !columns.taken.iter().any(|column| column.feature == BENT) {
        return None;
    }
    let mut bytes: Vec<f64> = rows.iter().map(|row| row.features[BENT]).collect();
    bytes.sort_by(f64::total_cmp);
    let mut bends = BENDS.map(|share| bytes[(share * bytes.len() as f64) as usize]).to_vec();
    bends.dedup();
    let Fitted { scales, kept, .. } = &straight.fitted;
    let fitted = bends.into_iter().filter_map(|from| {
        let mut columns = columns.clone();
        if !columns.take(rows, Column::new(rows, BENT, Some(from))?) {
            return None;
        }
        let line = least_squares(rows, &columns.taken, scales, |index| kept[index]).ok()?;
        let used = rows.iter().zip(scales).zip(kept).filter(|(_, kept)| **kept);
        let off = used.map(|((row, scale), _)| ((row.actual - line.at(&row.features)) / scale).powi(2));
        Some((off.sum::<f64>(), columns.taken))
    });
    let (_, best) = fitted.min_by(|one, other| one.0.total_cmp(&other.0))?;
    let bent = Candidate::new(rows, &best, drop_outliers).ok()?;
    bent.is_better(rows, straight, STRAIGHTER).then_some(bent)
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

    /// Whether its absolute errors on unseen rows are less than this share of the other's, over the rows it kept.
    fn is_better(&self, rows: &[Row], other: &Self, share: f64) -> bool {
        let kept = rows.iter().enumerate().filter(|(index, _)| self.fitted.kept[*index]);
        let (own, its) = kept.fold((0.0, 0.0), |(own, its), (index, row)| {
            (own + (row.actual - self.unseen[index]).abs(), its + (row.actual - other.unseen[index]).abs())
        });
        own < share * its
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
            bend: self.fitted.line.bend,
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
    let mut line = Line { intercept: solution[width - 1], slopes: [0.0; FEATURES], bend: None };
    for (column, slope) in columns.iter().zip(solution) {
        match column.beyond {
            Some(from) => line.bend = Some(Bend { from, slope: slope / column.deviation }),
            None => line.slopes[column.feature] = slope / column.deviation,
        }
        line.intercept -= slope * column.mean / column.deviation;
    }
    let bend = line.bend.map_or(0.0, |bend| bend.slope);
    let finite = line.slopes.iter().chain([&line.intercept, &bend]).all(|number| number.is_finite());
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
