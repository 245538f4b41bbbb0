//! scratch
use foreshard_core::forecast::*;
#[test]
fn s() {
    let text = std::fs::read_to_string("/tmp/taxi.csv").unwrap();
    let v: Vec<f64> =
        text.lines().skip(1).filter_map(|l| l.rsplit(',').next()?.trim().parse().ok()).collect();
    let v: Vec<f64> = v.chunks_exact(2).map(|c| c[0] + c[1]).collect();
    for days in [2usize, 5, 14] {
        let (mut err, mut snaive, mut inside, mut n) = (0.0, 0.0, 0, 0);
        let mut names = std::collections::BTreeMap::new();
        let mut at = 24 * days;
        while at + 24 < v.len() {
            let s = Series {
                start_s: 0,
                step_s: 3600,
                values: v[at - 24 * days..at].iter().copied().map(Some).collect(),
            };
            let m = fit(&s, &ForecastOptions::default()).unwrap();
            *names.entry(m.name()).or_insert(0) += 1;
            for (p, k) in m.forecast(24).iter().zip(at..) {
                err += (p.mean - v[k]).abs();
                snaive += (v[k - 24] - v[k]).abs();
                n += 1;
                inside += usize::from(p.lower <= v[k] && v[k] <= p.upper);
            }
            at += 31;
        }
        println!(
            "{days} days: MAE/seasonal naive {:.3} coverage {:.3} {names:?}",
            err / snaive,
            inside as f64 / n as f64
        );
    }
}
