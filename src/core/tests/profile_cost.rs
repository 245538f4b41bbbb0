//! What outcomes and predictions of a trigger are in cost units.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

use foreshard_core::profile::{
    CostWeights, FEATURES, LEVEL, Model, ModelKind, Prediction, RESOURCES, Resource, cost_of, cost_units,
    total,
};

#[test]
fn cost_units_price_every_resource_once() {
    let weights = CostWeights { memory_mb: 2.0, block_hit: 0.5, ..CostWeights::default() };
    let mut outcomes = [Some(0.0); RESOURCES];
    outcomes[Resource::CpuUs.index()] = Some(2_000.0);
    outcomes[Resource::ElapsedUs.index()] = Some(9_000.0);
    assert!((cost_units(&outcomes, &weights) - 2.0).abs() < 1e-12);
    outcomes[Resource::CpuUs.index()] = None; // Elapsed time stands in.
    assert!((cost_units(&outcomes, &weights) - 9.0).abs() < 1e-12);
    outcomes[Resource::WalBytes.index()] = Some(1_024.0);
    outcomes[Resource::MemoryBytes.index()] = Some(1_048_576.0);
    outcomes[Resource::BlocksRead.index()] = Some(3.0);
    assert!((cost_units(&outcomes, &weights) - (9.0 + 0.01 + 2.0 + 0.3)).abs() < 1e-12);
    assert_eq!(cost_units(&[None; RESOURCES], &weights), 0.0);

    let flat = |intercept: f64| Model {
        kind: ModelKind::Mean,
        reason: None,
        intercept,
        coefficients: [0.0; FEATURES],
        bend: None,
        samples: 9,
        lower_quantile: -0.5,
        upper_quantile: 1.0,
        floor: 1.0,
        level: LEVEL,
    };
    let mut models = [const { None }; RESOURCES];
    models[Resource::BlocksRead.index()] = Some(flat(10.0));
    assert_eq!(cost_of(&models, &[0.0; FEATURES], &weights), None, "no clock, no cost");
    models[Resource::ElapsedUs.index()] = Some(flat(8_000.0));
    let cost = cost_of(&models, &[0.0; FEATURES], &weights).unwrap();
    assert!(
        (cost.value - 9.0).abs() < 1e-9
            && (cost.lower - 4.5).abs() < 1e-9
            && (cost.upper - 18.0).abs() < 1e-9
    );
    models[Resource::CpuUs.index()] = Some(flat(1_000.0));
    assert!((cost_of(&models, &[0.0; FEATURES], &weights).unwrap().value - 2.0).abs() < 1e-9);
}

#[test]
fn totals_widen_with_the_root_of_the_calls() {
    let part = Prediction { value: 10.0, lower: 7.0, upper: 14.0 };
    let sum = total(&[(part, 100.0)]);
    assert_eq!(sum, Prediction { value: 1_000.0, lower: 970.0, upper: 1_040.0 });
    let sum = total(&[(part, 1.0), (Prediction { value: 5.0, lower: 1.0, upper: 8.0 }, 1.0)]);
    assert_eq!(sum, Prediction { value: 15.0, lower: 10.0, upper: 20.0 });
    assert_eq!(total(&[(part, f64::NAN), (part, -1.0)]), Prediction::default());
}
