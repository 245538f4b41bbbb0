//! What the algorithms cost, also as multiples of copying the same data (machines differ).

use std::hint::black_box;
use std::time::Instant;

use foreshard_core::forecast::{ForecastOptions, Series, fit};
use foreshard_core::placement::{Hold, PlanOptions, Segment, Shard, plan};
use foreshard_core::ring::{ShardWeight, place_slots};

/// Median time of one call, ns.
fn time_ns(repeats: usize, mut call: impl FnMut()) -> f64 {
    call();
    let mut times: Vec<f64> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_nanos() as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Prints one line; `data` is what the operation reads.
fn report(name: &str, op_ns: f64, items: usize, data: &[f64]) {
    let mut copy = vec![0.0; data.len()];
    let copy_ns = time_ns(51, || {
        copy.copy_from_slice(black_box(data));
        black_box(&copy);
    });
    let each = op_ns / items as f64;
    println!("{name:<44} {op_ns:>13.0} ns {each:>10.0} ns/item {:>10.1} x memcpy", op_ns / copy_ns);
}

fn day(slot: usize, leads: usize, scale: f64) -> Vec<f64> {
    let angle = |lead: usize| (lead + slot) as f64 / 24.0 * std::f64::consts::TAU;
    let mean = scale * 400.0 / (slot as f64 + 8.0);
    (0..leads).map(|lead| mean * (1.0 + 0.5 * angle(lead).sin())).collect()
}

fn ring() {
    let shards: Vec<_> = (0..8).map(|shard_id| ShardWeight { shard_id, capacity: 1.0 }).collect();
    let op_ns = time_ns(51, || {
        black_box(place_slots(black_box(42), 1_024, &shards, 0.1).ok());
    });
    report("place_slots: 1024 slots, 8 shards", op_ns, 1_024, &vec![0.0; 1_024]);
}

fn planner(name: &str, skew: usize) {
    let shards: Vec<_> = (0..8).map(|id| Shard { id, capacity: 1_000.0, draining: false }).collect();
    let segments: Vec<Segment> = (0..1_024)
        .map(|slot| Segment {
            id: slot as i64,
            shard: (slot / skew % 8) as i32,
            bytes: 1 << 20,
            curve: day(slot, 24, 1.0),
            futures: (0..50).map(|k| day(slot, 24, 0.8 + 0.008 * k as f64)).collect(),
            hold: Hold::Free,
            hot_buckets: 9,
        })
        .collect();
    let data: Vec<f64> = segments.iter().flat_map(|s| s.futures.concat()).collect();
    let mut steps = 0;
    let op_ns = time_ns(5, || {
        steps = plan(&shards, black_box(&segments), &PlanOptions::default()).map_or(0, |p| p.steps.len());
    });
    report(&format!("plan: {name} ({steps} steps)"), op_ns, 1_024, &data);
}

fn forecast(name: &str, step_s: u32, buckets: usize) {
    let values: Vec<f64> = (0..buckets).map(|i| 100.0 + (i * 7_919 % 101) as f64).collect();
    let series = Series { start_s: 0, step_s, values: values.iter().copied().map(Some).collect() };
    let op_ns = time_ns(21, || {
        black_box(fit(black_box(&series), &ForecastOptions::default()).ok());
    });
    report(&format!("fit: {buckets} buckets, {name}"), op_ns, buckets, &values);
    if let Ok(model) = fit(&series, &ForecastOptions::default()) {
        let op_ns = time_ns(51, || {
            black_box(model.sample_path(24, black_box(7)));
        });
        report("sample_path: 24 leads", op_ns, 24, &values[..24]);
    }
}

fn main() {
    ring();
    planner("1024 segments x 24 leads x 50, balanced", 1);
    planner("1024 segments x 24 leads x 50, skewed", 128);
    forecast("level", 300, 400);
    forecast("level+season", 3_600, 400);
    forecast("level+season", 300, 4_032);
}
