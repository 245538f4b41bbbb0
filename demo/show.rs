//! How the demo looks: headings, cells, bars and tables on a terminal or in a file.

use foreshard_test::load::Window;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

/// Cells per line of the heat map.
const CELLS: usize = 36;
/// Width of a bar.
const BAR: usize = 40;

/// Standard output, knowing whether a person's terminal is there.
pub struct Screen {
    /// Colours and redrawing make sense.
    pub terminal: bool,
    drawn: usize,
}

impl Screen {
    /// Standard output as it is.
    pub fn new() -> Screen {
        Screen {
            terminal: std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
            drawn: 0,
        }
    }

    /// A heading.
    pub fn heading(&mut self, text: &str) {
        self.drawn = 0;
        if self.terminal {
            println!("\n\x1b[1m{text}\x1b[0m");
        } else {
            println!("\n== {text}");
        }
    }

    /// Lines that replace the ones drawn before, on a terminal.
    pub fn redraw(&mut self, lines: &[String]) {
        if !self.terminal {
            return;
        }
        if self.drawn > 0 {
            print!("\x1b[{}A", self.drawn);
        }
        for line in lines {
            println!("\x1b[2K{line}");
        }
        for _ in lines.len()..self.drawn {
            println!("\x1b[2K");
        }
        self.drawn = self.drawn.max(lines.len());
        let _ = std::io::stdout().flush();
    }

    /// Ends redrawing: what stands there stays.
    pub fn settle(&mut self) {
        self.drawn = 0;
    }

    /// The heat of every slot, one shard after the other.
    pub fn heat_map(&self, loads: &BTreeMap<i64, f64>, shard_of: &BTreeMap<i64, String>, shards: &[&str]) {
        let mean = loads.values().sum::<f64>() / loads.len().max(1) as f64;
        for shard in shards {
            let ratios: Vec<f64> = loads
                .iter()
                .filter(|(slot, _)| shard_of.get(slot).is_some_and(|place| place == shard))
                .map(|(_, load)| if mean > 0.0 { load / mean } else { 0.0 })
                .collect();
            for (number, line) in ratios.chunks(CELLS).enumerate() {
                let cells: String = line.iter().map(|&ratio| self.cell(ratio)).collect();
                println!("{:>9} {cells}", if number == 0 { shard } else { "" });
            }
        }
        let scale: String = (0..10).map(|step| self.cell(f64::from(step) / 2.0)).collect();
        println!("{:>9} {scale}  0 … 4.5 times the mean slot and more", "scale");
    }

    fn cell(&self, ratio: f64) -> String {
        const COLOURS: [u8; 10] = [17, 19, 28, 70, 142, 178, 208, 202, 196, 199];
        let step = ((ratio * 2.0) as usize).min(9);
        if self.terminal { format!("\x1b[48;5;{}m  \x1b[0m", COLOURS[step]) } else { step.to_string() }
    }
}

/// A bar of `share` (0 to 1) of the full width.
pub fn bar(share: f64) -> String {
    let full = ((share.clamp(0.0, 1.0) * BAR as f64).round()) as usize;
    format!("{}{}", "█".repeat(full), "·".repeat(BAR - full))
}

/// Load per shard as bars; full width is `scale` times the mean.
pub fn shard_bars(shards: &[&str], loads: &[f64], scale: f64) {
    let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
    for (shard, load) in shards.iter().zip(loads) {
        let ratio = if mean > 0.0 { load / mean } else { 0.0 };
        println!("  {shard:<8} {} {load:6.1}  {ratio:.3} × mean", bar(ratio / scale));
    }
}

/// A table of latencies.
pub fn latencies(windows: &[Window]) {
    println!(
        "  {:<14} {:>9} {:>8} {:>8} {:>8} {:>8} {:>9} {:>7}",
        "", "accesses", "per s", "p50 ms", "p99 ms", "max ms", "gap ms", "errors"
    );
    for window in windows {
        println!(
            "  {:<14} {:>9} {:>8.0} {:>8.2} {:>8.2} {:>8.1} {:>9.1} {:>7}",
            window.label,
            window.latencies.count(),
            window.rate_per_s(),
            window.latencies.p50_ms(),
            window.latencies.p99_ms(),
            window.latencies.max_ms(),
            window.longest_gap.as_secs_f64() * 1000.0,
            window.errors
        );
    }
}
