//! The recorded accesses.

use foreshard_test::install::{repository, run};
use foreshard_test::{Error, Result};
use std::process::Command;

/// Where the trace lies in the repository.
pub const TRACE_FILE: &str = "demo/data/orm-busy.trace.xz";

/// A trace with its keys numbered densely.
pub struct Trace {
    /// The distinct keys in ascending order.
    pub keys: Vec<u32>,
    /// The accesses in order, as positions in `keys`.
    pub accesses: Vec<u32>,
}

impl Trace {
    /// Reads and numbers the trace.
    pub fn load() -> Result<Trace> {
        let path = repository().join(TRACE_FILE);
        let output = run(Command::new("xz").arg("-dc").arg(&path)).map_err(|error| {
            Error::new(
                format!("{TRACE_FILE} cannot be unpacked: {error}"),
                "Install xz-utils and check that the clone is complete.",
            )
        })?;
        let (words, rest) = output.stdout.as_chunks::<4>();
        if words.is_empty() || !rest.is_empty() {
            return Err(Error::new(
                format!("{TRACE_FILE} is not a list of 4-byte integers."),
                "Restore it from the repository.",
            ));
        }
        let raw: Vec<u32> = words.iter().map(|word| u32::from_be_bytes(*word)).collect();
        let mut keys = raw.clone();
        keys.sort_unstable();
        keys.dedup();
        let position = |key: &u32| keys.binary_search(key).unwrap_or(0) as u32;
        let accesses = raw.iter().map(position).collect();
        Ok(Trace { keys, accesses })
    }
}

/// The object's type, from its key.
pub fn kind(key: u32) -> u32 {
    key >> 27
}

/// The object's number within its type.
pub fn number(key: u32) -> u32 {
    (key >> 9) & 0x3_ffff
}

/// The part of the object.
pub fn part(key: u32) -> u32 {
    key & 0x1ff
}
