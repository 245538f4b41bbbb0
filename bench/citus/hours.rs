//! The hours of a day: which questions are due when, and in which seconds servers were overloaded.

use crate::load::{Answers, HOT_PERCENT, Mix, Question};
use foreshard_test::Latencies;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use std::time::Duration;

/// When the peak begins to rise, lasts, falls, and is over, as shares of the day.
pub const RISES: f64 = 0.55;
const LASTS: f64 = 0.625;
const FALLS: f64 = 0.875;
const OVER: f64 = 0.95;
/// 99th percentile of the answers that were due in a second, ms, from which that second is overloaded.
const LIMIT_MS: f64 = 250.0;
/// The same tenants at the same times for everybody.
const SEED: u64 = 7;

fn share_of_peak(of_day: f64) -> f64 {
    let (risen, left) = ((of_day - RISES) / (LASTS - RISES), (OVER - of_day) / (OVER - FALLS));
    risen.min(left).clamp(0.0, 1.0)
}

/// What is due in a day whose peak has so many questions per second. Tenants that are not hot are asked about as often at all
/// hours, hot ones (beside that) at the peak only, and as evenly as can be: what comes by chance is not what is measured.
pub fn questions(mix: &Mix, day_s: u32, per_second: f64) -> Vec<Question> {
    let mut random = SmallRng::seed_from_u64(SEED);
    let hot = per_second * f64::from(HOT_PERCENT) / 100.0;
    let others = per_second - hot;
    let (mut hot_due, mut others_due) = (0.0, 0.0);
    let mut turns = mix.hot.iter().cycle();
    let mut all = Vec::new();
    for at_ms in 0..day_s * 1_000 {
        let at = Duration::from_millis(at_ms.into());
        hot_due += hot * share_of_peak(at.as_secs_f64() / f64::from(day_s)) / 1e3;
        others_due += others / 1e3;
        while hot_due >= 1.0 {
            hot_due -= 1.0;
            all.extend(turns.next().map(|tenant| Question { at, tenant: tenant.clone() }));
        }
        while others_due >= 1.0 {
            others_due -= 1.0;
            all.push(Question { at, tenant: mix.any(&mut random) });
        }
    }
    all
}

/// How a day went.
pub struct Told {
    /// Of every second, whether it was overloaded.
    seconds: Vec<bool>,
    /// Of what was answered, from when it was due.
    pub latencies: Latencies,
    /// Questions that were not answered.
    pub unanswered: usize,
    /// What a server said to one of them.
    pub error: Option<String>,
}

impl Told {
    /// Reads it off the answers. A second in which servers fall behind is one whose answers come late: they count where they
    /// were due.
    pub fn new(day_s: u32, answers: Answers) -> Told {
        let mut seconds = vec![(Latencies::default(), 0_usize); day_s as usize];
        for answer in &answers.all {
            let Some((latencies, unanswered)) = seconds.get_mut(answer.at.as_secs() as usize) else {
                continue;
            };
            match answer.latency {
                Some(latency) => latencies.record(latency),
                None => *unanswered += 1,
            }
        }
        let mut latencies = Latencies::default();
        seconds.iter().for_each(|(own, _)| latencies.add(own));
        Told {
            latencies,
            unanswered: seconds.iter().map(|(_, unanswered)| unanswered).sum(),
            seconds: seconds
                .iter()
                .map(|(own, unanswered)| *unanswered > 0 || own.p99_ms() > LIMIT_MS)
                .collect(),
            error: answers.errors.into_iter().next(),
        }
    }

    /// Overloaded seconds.
    pub fn overloaded(&self) -> usize {
        self.seconds.iter().filter(|second| **second).count()
    }

    /// The first of them from a time of the day on, s.
    pub fn first_from(&self, from_s: f64) -> Option<f64> {
        let mut numbered = self.seconds.iter().zip(0_u32..).map(|(second, at)| (*second, f64::from(at)));
        numbered.find(|(second, at_s)| *second && *at_s >= from_s).map(|(_, at_s)| at_s)
    }

    /// A sign for every second.
    pub fn signs(&self) -> String {
        self.seconds.iter().map(|second| if *second { '#' } else { '.' }).collect()
    }
}
