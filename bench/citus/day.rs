//! A daily pattern whose peak grows beyond what one worker can serve: foreshard in auto mode against Citus' own strategies.

use crate::hours::{RISES, Told, questions};
use crate::load::{Mix, Question, ask_all, connect, follow, sleep_until};
use crate::world::{Move, World};
use crate::{BUCKETS, Options};
use foreshard_test::bars::{bar_least, bar_most};
use foreshard_test::{Client, Result};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Hot tenants: half of their shards move to balance them, and Citus takes seconds for each.
const HOT: usize = 6;
/// Clients, enough that those who wait for one worker leave some for the other.
const CLIENTS: usize = 16;
/// For how long what the placement can serve is measured, s.
const MEASURED_S: u32 = 10;
/// Peaks of the first day, of the last one that is watched, and of the judged one, as shares of what can be served.
const FIRST_PEAK: f64 = 0.7;
const LAST_PEAK: f64 = 0.9;
const JUDGED_PEAK: f64 = 1.2;
/// Days like the last one that are watched beyond what was asked for while what is foreseen is not trusted.
const MORE_DAYS: u32 = 4;
/// When the auto mode is turned on, as a share of the judged day: yesterday's peak is forgotten, today's has not begun.
const NIGHT: f64 = 0.1;
/// Fewest overloaded seconds of a peak that is one.
const LEAST_PEAK_S: f64 = 5.0;
/// From when a day is prepared until it begins, and from its end until what is still due is given up.
const AHEAD: Duration = Duration::from_secs(2);
const LATE: Duration = Duration::from_secs(30);

/// What all days have in common.
struct Scene<'a> {
    options: &'a Options,
    mix: Mix<'a>,
    /// Questions per second that can be served as it begins.
    served: f64,
}

/// How the judged day went with one policy.
struct Judged {
    name: &'static str,
    told: Told,
    moves: usize,
    bytes: f64,
}

/// Measures foreshard and Citus' strategies on the same day, each from the placement that there was at first.
pub fn bench(options: &Options, world: &mut World, hot: &[String]) -> Result<bool> {
    let mix = Mix { hot: &hot[..HOT.min(hot.len())], tenants: options.tenants };
    world.back()?;
    let served = ask_all(&mut connect(world, options.clients)?, &mix, MEASURED_S)?.per_second;
    println!(
        "the day: {} s, peak of {} tenants of one worker, with which {served:.0} questions/s can be served; from {:.0} s on",
        options.day_s,
        mix.hot.len(),
        RISES * f64::from(options.day_s)
    );
    world.begin_days(options.day_s, options.day_s / BUCKETS)?;
    let mut clients = connect(world, CLIENTS)?;
    let scene = Scene { options, mix, served };
    let (ours, moves) = scene.foreseen(world, &mut clients)?;
    tell(&ours);
    let mut others = Vec::new();
    for strategy in ["by_shard_count", "by_disk_size"] {
        let judged = scene.by_citus(world, &mut clients, strategy)?;
        tell(&judged);
        others.push(judged);
    }
    Ok(judge(options, &ours, &moves, &others))
}

impl Scene<'_> {
    /// Questions of a day whose peak is that share of what can be served.
    fn day(&self, peak: f64) -> Vec<Question> {
        questions(&self.mix, self.options.day_s, self.served * peak)
    }

    fn length(&self) -> Duration {
        Duration::from_secs(self.options.day_s.into())
    }

    /// The peak of a day that is watched, counted from 0.
    fn peak(&self, day: u32) -> f64 {
        let last = self.options.days.saturating_sub(1);
        FIRST_PEAK + (LAST_PEAK - FIRST_PEAK) * f64::from(day.min(last)) / f64::from(last.max(1))
    }

    /// One day.
    fn live<T>(
        &self,
        clients: &mut [Client],
        peak: f64,
        begins: Instant,
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<(Told, T)> {
        let until = begins + self.length() + LATE;
        let (answers, done) = follow(clients, &self.day(peak), (begins, until), meanwhile)?;
        Ok((Told::new(self.options.day_s, answers), done))
    }

    /// Watches days from `begins` on until what is foreseen is trusted; how many.
    fn learn(&self, world: &World, clients: &mut [Client], begins: Instant) -> Result<u32> {
        let most = self.options.days + MORE_DAYS;
        for day in 0..most {
            let peak = self.peak(day);
            let (told, ()) = self.live(clients, peak, begins + self.length() * day, || Ok(()))?;
            println!(
                "  day {}: peak {peak:.2} of what can be served, {} s overloaded; {}",
                day + 1,
                told.overloaded(),
                world.standing()?
            );
            let is_enough = self.options.given > 0 || world.is_trusted()?;
            if day + 1 >= self.options.days && is_enough {
                return Ok(day + 1);
            }
        }
        println!("  what is foreseen is not trusted after {most} days");
        Ok(most)
    }

    /// The day with foreshard: it watches the days before, and is in auto mode from the night on.
    fn foreseen(&self, world: &mut World, clients: &mut [Client]) -> Result<(Judged, Vec<Move>)> {
        world.set_mode("advise")?;
        let (first, first_s) = (Instant::now() + AHEAD, now_s() + AHEAD.as_secs_f64());
        let days = self.learn(world, clients, first)?;
        if self.options.given > 0 {
            println!("  given, not earned: {} outcomes of foreseen steps", self.options.given);
            world.give(self.options.given, self.options.day_s / BUCKETS)?;
        }
        let begins = first + self.length() * days;
        let begun_s = first_s + f64::from(days) * f64::from(self.options.day_s);
        let (told, (hot, night)) = self.live(clients, JUDGED_PEAK, begins, || {
            sleep_until(begins + self.length().mul_f64(NIGHT));
            let hot = world.hot_buckets()?;
            world.set_mode("auto")?;
            sleep_until(begins + self.length().mul_f64(RISES));
            Ok((hot, world.recommended()?))
        })?;
        world.set_mode("off")?;
        world.wait_moves()?;
        println!("  when auto mode began a shard had been hot for {hot} buckets (0: nothing of yesterday)");
        println!("  still recommended when the peak began to rise: {night}");
        let moves = world.moves(begun_s)?;
        for one in &moves {
            let swapped =
                one.swapped_s.map_or("never done".to_string(), |at_s| format!("done at {at_s:.1} s"));
            let why = if one.foreseen { "foreseen" } else { "seen" };
            println!("  move filed at {:.1} s of the day, {swapped}, {why}", one.filed_s);
        }
        let made = moves.iter().filter(|one| one.swapped_s.is_some());
        let bytes = made.clone().map(|one| one.bytes).sum::<f64>();
        Ok((Judged { name: "foreshard", told, moves: made.count(), bytes }, moves))
    }

    /// The day with one of Citus' own strategies, which rebalances when it begins.
    fn by_citus(&self, world: &World, clients: &mut [Client], strategy: &'static str) -> Result<Judged> {
        world.back()?;
        let begins = Instant::now() + AHEAD;
        let (told, planned) = self.live(clients, JUDGED_PEAK, begins, || {
            sleep_until(begins);
            world.rebalance(strategy)
        })?;
        Ok(Judged { name: strategy, told, moves: planned.moves, bytes: planned.bytes })
    }
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn tell(judged: &Judged) {
    let told = &judged.told;
    println!(
        "{:<16} {:>4} s overloaded, p50 {:>7.2} ms, p99 {:>8.2} ms, {} answered, {} not; {} moves, {:.1} MB",
        judged.name,
        told.overloaded(),
        told.latencies.p50_ms(),
        told.latencies.p99_ms(),
        told.latencies.count(),
        told.unanswered,
        judged.moves,
        judged.bytes / 1e6
    );
    println!("  {}", told.signs());
    if let Some(error) = &told.error {
        println!("  {error}");
    }
}

/// The bars, all of them told.
fn judge(options: &Options, ours: &Judged, moves: &[Move], others: &[Judged]) -> bool {
    let better = others.iter().map(|one| one.told.overloaded()).min().unwrap_or(0) as f64;
    let rises_s = RISES * f64::from(options.day_s);
    let firsts = others.iter().filter_map(|one| one.told.first_from(rises_s));
    // Without one there is nothing to be ahead of, and the first bar says so.
    let first_s = firsts.reduce(f64::min).unwrap_or(rises_s);
    let begun: Vec<&Move> = moves.iter().filter(|one| one.filed_s < first_s).collect();
    let foreseen = begun.iter().filter(|one| one.foreseen).count() as f64;
    let last_s = begun.iter().map(|one| one.swapped_s.unwrap_or(f64::INFINITY)).reduce(f64::max);
    println!(
        "first overloaded second of the peak without foresight: {first_s:.0} s; {} later moves",
        moves.len() - begun.len()
    );
    let bars = [
        bar_least("overloaded seconds with the better of Citus' own strategies", better, LEAST_PEAK_S),
        bar_most("overloaded seconds of foreshard", ours.told.overloaded() as f64, (better - 1.0).max(0.0)),
        bar_least("moves before the first overload for what was only foreseen", foreseen, 1.0),
        bar_least(
            "seconds from the last of these moves to that overload",
            last_s.map_or(f64::NEG_INFINITY, |last_s| first_s - last_s),
            0.0,
        ),
    ];
    bars.into_iter().all(|holds| holds)
}
