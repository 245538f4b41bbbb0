//! What the algorithms cost, also as multiples of copying the same data (machines differ).

use std::hint::black_box;
use std::time::Instant;

use foreshard_core::affinity::CoAccess;
use foreshard_core::forecast::{ForecastOptions, MODELS, Series, fit};
use foreshard_core::placement::{ANY, Hold, PlanOptions, Segment, Shard, plan};
use foreshard_core::profile::{Profile, RESERVOIR, RESOURCES, Resource, Sample};
use foreshard_core::ring::{ShardWeight, place_slots};
use foreshard_core::sketch::{HotKeys, Key};

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
    let shards: Vec<_> = (0..8)
        .map(|id| Shard { id, capacity: 1_000.0, draining: false, accepts: ANY, round_trip_ms: 0.0 })
        .collect();
    let segments: Vec<Segment> = (0..1_024)
        .map(|slot| Segment {
            id: slot as i64,
            shard: (slot / skew % 8) as i32,
            bytes: 1 << 20,
            curve: day(slot, 24, 1.0),
            futures: (0..50).map(|k| day(slot, 24, 0.8 + 0.008 * k as f64)).collect(),
            hold: Hold::Free,
            hot_buckets: 9,
            class: ANY,
            wait_cost: 0.0,
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
    let series = Series {
        start_s: 0,
        step_s,
        values: values.iter().copied().map(Some).collect(),
        events: Vec::new(),
        regressors: Vec::new(),
    };
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

/// What every model, and all together, cost on four weeks of hours.
fn four_weeks() {
    let noise = |hour: usize| (hour * 7_919 % 101) as f64;
    let day = |hour: usize| if (8..18).contains(&(hour % 24)) { 500.0 } else { 100.0 };
    let values = (0..672).map(|hour| Some(day(hour) + noise(hour))).collect();
    let series = Series { start_s: 0, step_s: 3_600, values, events: Vec::new(), regressors: Vec::new() };
    for name in MODELS.map(Some).into_iter().chain([None]) {
        let models = name.iter().map(ToString::to_string).collect();
        let options = ForecastOptions { models, ..ForecastOptions::default() };
        let op_ns = time_ns(11, || {
            black_box(fit(black_box(&series), &options).ok());
        });
        report(&format!("fit: four weeks of hours, {}", name.unwrap_or("all")), op_ns, 672, &[0.0; 672]);
    }
}

/// A call whose cost is linear in its features, give or take 20 %.
fn call(index: usize, resources: usize) -> Sample {
    let draw = |prime: usize, below: usize| (index * prime % 10_007 % below) as f64;
    let features = [50.0 + draw(7_919, 2_000), 3.0 + draw(31, 9), draw(57, 4), 1.0 + draw(91, 20)];
    let value = (40.0 + 0.05 * features[0] + 12.0 * features[2]) * (0.8 + draw(101, 401) / 1_000.0);
    let outcomes = std::array::from_fn(|resource| (resource < resources).then_some(value));
    Sample { version: 1, features, outcomes }
}

fn profile(resources: usize) {
    let mut profile = Profile::new();
    (0..RESERVOIR).for_each(|index| drop_result(profile.observe(call(index, resources))));
    let data = vec![0.0; RESERVOIR * 12];
    let op_ns = time_ns(21, || profile.refit());
    report(&format!("refit: 512 samples, {resources} resources"), op_ns, RESERVOIR, &data);
    let calls = 4_096;
    let op_ns = time_ns(21, || {
        (0..calls).for_each(|index| drop_result(profile.observe(black_box(call(index, resources)))));
    });
    report(&format!("observe: a call, {resources} resources"), op_ns, calls, &vec![0.0; calls * 12]);
    let model = profile.models()[Resource::CpuUs.index()].clone();
    let features = call(7, RESOURCES).features;
    let op_ns = time_ns(51, || {
        (0..calls).for_each(|_| {
            black_box(model.as_ref().map(|model| model.predict(black_box(&features))));
        });
    });
    report("predict: a call, 1 resource", op_ns, calls, &vec![0.0; calls * 4]);
}

fn drop_result<T>(result: T) {
    black_box(result);
}

/// Zipf-like: half of the accesses to a hundredth of the keys.
fn skewed(index: usize) -> u64 {
    let draw = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    if draw.is_multiple_of(2) { draw % 1_000 } else { draw % 100_000 }
}

fn sketch() {
    let count = 100_000;
    let keys: Vec<Key> =
        (0..count).filter_map(|index| Key::new(16_384, &skewed(index).to_be_bytes())).collect();
    let mut hot = HotKeys::new(3_600.0, 4_096);
    let mut now_s = 1.7e9;
    let op_ns = time_ns(11, || {
        for key in &keys {
            now_s += 0.001;
            hot.add(black_box(key), 4, now_s);
        }
    });
    report("sketch add: 8-byte keys, 4096 kept", op_ns, count, &vec![0.0; count]);
    let op_ns = time_ns(21, || {
        black_box(hot.top(50, now_s));
    });
    report("sketch top: 50 of 4096", op_ns, 4_096, &vec![0.0; 4_096]);
}

fn affinity() {
    let count = 10_000;
    let mut pairs = CoAccess::new(3_600.0, 10_000);
    let mut now_s = 1.7e9;
    let op_ns = time_ns(11, || {
        for index in 0..count {
            now_s += 0.001;
            let segments: [i64; 4] = std::array::from_fn(|i| (skewed(4 * index + i) % 1_024) as i64);
            pairs.add(black_box(&segments), 1.0, now_s);
        }
    });
    report("co-access add: 4 segments, 10000 pairs", op_ns, count, &vec![0.0; count * 4]);
}

fn main() {
    ring();
    sketch();
    affinity();
    profile(1);
    profile(RESOURCES);
    planner("1024 segments x 24 leads x 50, balanced", 1);
    planner("1024 segments x 24 leads x 50, skewed", 128);
    four_weeks();
    forecast("level", 300, 400);
    forecast("level+season", 3_600, 400);
    forecast("level+season", 300, 4_032);
}
