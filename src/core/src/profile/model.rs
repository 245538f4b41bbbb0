//! A fitted model: plain numbers that can be stored in a table and read back.

use super::FEATURES;

/// The nominal level of every interval.
pub const LEVEL: f64 = 0.9;

/// A prediction never exceeds this: stored features or coefficients may be absurd.
const MAX_PREDICTION: f64 = 1e18;

/// The feature in which a line may bend: the bytes of the row.
pub(super) const BENT: usize = 0;

/// What a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// A linear function of the features.
    Linear,
    /// The mean of the samples, whatever the features.
    Mean,
}

impl ModelKind {
    /// The kind's name in the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Mean => "mean",
        }
    }

    /// The kind called `name`; `None` when there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Linear, Self::Mean].into_iter().find(|kind| kind.name() == name)
    }
}

/// Why a model is only the mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Too few samples for so many features.
    TooFewSamples,
    /// No feature varies.
    ConstantFeatures,
    /// The features do not determine the coefficients.
    RankDeficient,
    /// On samples it was not fitted on, the line was not better than the mean.
    NoBetterThanMean,
}

impl Fallback {
    const ALL: [Self; 4] =
        [Self::TooFewSamples, Self::ConstantFeatures, Self::RankDeficient, Self::NoBetterThanMean];

    /// The reason in words, for people and the catalog.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooFewSamples => "too few samples",
            Self::ConstantFeatures => "features are constant",
            Self::RankDeficient => "rank-deficient",
            Self::NoBetterThanMean => "no better than the mean",
        }
    }

    /// The reason called `name`; `None` when there is none.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }
}

/// What a call will take, in the unit of the resource or in cost units.
///
/// All three are finite and `0 <= lower <= value <= upper`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Prediction {
    /// Expected value.
    pub value: f64,
    /// Lower end of the interval.
    pub lower: f64,
    /// Upper end of the interval.
    pub upper: f64,
}

/// Where a line bends in the bytes of the row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bend {
    /// Bytes from which it is steeper, or less steep.
    pub from: f64,
    /// Unit of the resource per byte beyond, added to the slope.
    pub slope: f64,
}

impl Bend {
    /// What a row of so many bytes adds.
    pub(super) fn rise(&self, bytes: f64) -> f64 {
        finite(self.slope) * (bytes - finite(self.from)).max(0.0)
    }
}

/// A model of one resource of one trigger. Every field is a plain number or a name, so that a model
/// can be stored as a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Linear or the mean.
    pub kind: ModelKind,
    /// Why it is only the mean; `None` for a linear model.
    pub reason: Option<Fallback>,
    /// Prediction when all features are 0, in the unit of the resource.
    pub intercept: f64,
    /// Unit of the resource per unit of each feature; 0 for a feature that does not count.
    pub coefficients: [f64; FEATURES],
    /// Where the line bends, if it does.
    pub bend: Option<Bend>,
    /// Samples it was fitted on.
    pub samples: u32,
    /// Lower end of the interval as a normalised residual, (actual - predicted) / normaliser; at
    /// most 0.
    pub lower_quantile: f64,
    /// Upper end of the interval, likewise; at least 0.
    pub upper_quantile: f64,
    /// Smallest normaliser, in the unit of the resource: the normaliser of a prediction is the
    /// prediction itself, but not less than this.
    pub floor: f64,
    /// Nominal level of the interval, in (0, 1).
    pub level: f64,
}

impl Model {
    /// What a call with these features will take. Features that are not finite count as 0.
    pub fn predict(&self, features: &[f64; FEATURES]) -> Prediction {
        let value = finite(self.line(features)).clamp(0.0, MAX_PREDICTION);
        let normaliser = self.normaliser(value);
        let below = finite(self.lower_quantile * normaliser).min(0.0);
        let above = finite(self.upper_quantile * normaliser).max(0.0);
        Prediction {
            value,
            lower: (value + below).max(0.0),
            upper: (value + above).min(2.0 * MAX_PREDICTION),
        }
    }

    /// How far `actual` is from the prediction, as a multiple of the normaliser.
    pub fn residual(&self, features: &[f64; FEATURES], actual: f64) -> f64 {
        let value = self.predict(features).value;
        finite((actual - value) / self.normaliser(value))
    }

    fn line(&self, features: &[f64; FEATURES]) -> f64 {
        let terms = self.coefficients.iter().zip(features).map(|(slope, feature)| slope * finite(*feature));
        let beyond = self.bend.map_or(0.0, |bend| bend.rise(finite(features[BENT])));
        self.intercept + terms.sum::<f64>() + beyond
    }

    fn normaliser(&self, value: f64) -> f64 {
        value.max(finite(self.floor)).max(f64::MIN_POSITIVE)
    }
}

/// The number itself, or 0 when it is none.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}
