//! What the shared memory holds of a relation and of a trigger. Everything is an atomic: readers and
//! writers never wait; numbers that belong together may be an instant apart.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words of a name of at most 64 bytes.
pub const NAME_WORDS: usize = 8;
/// Bytes of a key that a key sample holds; longer keys are known by their hash and beginning.
pub const KEY_BYTES: usize = 48;

/// One counter.
pub type Counter = AtomicU64;

fn zeros<const N: usize>() -> [AtomicU64; N] {
    std::array::from_fn(|_| AtomicU64::new(0))
}

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident, $count:ident { $($(#[$field_doc:meta])* $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name { $($(#[$field_doc])* $field),* }
        impl $name {
            /// Every counter, in the order of the enum.
            pub const ALL: &'static [$name] = &[$($name::$field),*];
        }
        /// How many there are.
        pub const $count: usize = $name::ALL.len();
    };
}

counters! {
    /// What is counted of a leaf partition between two drains. "Sampled" counters add up sampled
    /// executions only; ratios between them are the unit costs.
    SegmentCounter, SEGMENT_COUNTERS {
        /// Trigger calls, exact; of built-in triggers and those that fire for a statement, which no hook can count by
        /// leaf: those of sampled statements, each as often as it stands for others.
        TriggerCalls,
        /// Trigger calls that the measured ones stand for.
        SampledTriggerCalls,
        /// Cost of measured trigger calls, nano cost units (cost unit = 1 ms of CPU), without what other
        /// triggers and statements on managed tables account for themselves; each as often as it stands for others.
        TriggerCostNs,
        /// Sampled statements that touched the partition.
        Statements,
        /// Scans started by them.
        Scans,
        /// Rows read by them, filtered ones included.
        RowsRead,
        /// CPU time of their reading, ns.
        ReadCpuNs,
        /// Elapsed time of their reading, ns.
        ReadElapsedNs,
        /// What the configured unit costs say their reading takes, nano cost units.
        PredictedReadNs,
        /// Blocks found in shared buffers.
        BlocksHit,
        /// Blocks read from outside.
        BlocksRead,
        /// Blocks dirtied.
        BlocksDirtied,
        /// Temporary blocks read and written.
        TempBlocks,
        /// Rows written.
        RowsWritten,
        /// CPU time of their writing, ns.
        WriteCpuNs,
        /// Elapsed time of their writing, ns.
        WriteElapsedNs,
        /// What the configured unit costs say their writing takes, nano cost units.
        PredictedWriteNs,
        /// WAL written, bytes.
        WalBytes,
        /// Result rows × planned width, bytes.
        ResultBytes,
    }
}

counters! {
    /// What is counted of a trigger. Behind [`Total::Weight`] everything adds up measured calls only, each
    /// times the number of calls it stands for.
    Total, TOTALS {
        /// Calls, exact.
        Calls,
        /// Calls that ended in an error, exact.
        Failed,
        /// Measured calls.
        Sampled,
        /// Calls that the measured ones stand for.
        Weight,
        /// CPU time without nested triggers, ns.
        CpuNs,
        /// CPU time, ns.
        CpuInclusiveNs,
        /// Elapsed time without nested triggers, ns.
        ElapsedNs,
        /// Elapsed time, ns.
        ElapsedInclusiveNs,
        /// Memory still allocated when the call returned, bytes (growth only), of the calls below.
        MemoryBytes,
        /// Calls that those stand for that measured memory, too (it takes longer than all the rest).
        MemoryWeight,
        /// Blocks found in shared buffers, without nested triggers; also below.
        BlocksHit,
        /// Blocks read from outside.
        BlocksRead,
        /// Blocks dirtied.
        BlocksDirtied,
        /// WAL written, bytes.
        WalBytes,
        /// Temporary blocks read and written.
        TempBlocks,
    }
}

/// What kind of attention a relation gets: bits of a word of [`Segment`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Activity {
    /// Counted and sampled.
    pub observed: bool,
    /// Over the threshold: keys are sampled.
    pub hot: bool,
    /// A leaf partition (else the partitioned table itself).
    pub leaf: bool,
}

impl Activity {
    fn bits(self) -> u64 {
        u64::from(self.observed) | u64::from(self.hot) << 1 | u64::from(self.leaf) << 2
    }

    fn from_bits(bits: u64) -> Self {
        Self { observed: bits & 1 != 0, hot: bits & 2 != 0, leaf: bits & 4 != 0 }
    }
}

/// A leaf partition or the partitioned table itself.
#[repr(C)]
#[derive(Debug)]
pub struct Segment {
    /// Slot of a leaf; 0 for the table itself.
    pub slot_id: AtomicU64,
    /// Oid of the partitioned table.
    pub table: AtomicU64,
    /// Colocation group.
    pub group_id: AtomicU64,
    /// Shard of a leaf.
    pub shard_id: AtomicU64,
    /// Attribute number of the key in this relation.
    pub key_attribute: AtomicU64,
    flags: AtomicU64,
    load: AtomicU64,
    capacity: AtomicU64,
    /// Cost predicted for keys placed here that is not part of the load yet, nano cost units.
    pub placed_ns: AtomicU64,
    /// Since when (0: nobody does) and until when another server asks for it, µs of one clock.
    asked: [AtomicU64; 2],
    counters: [Counter; SEGMENT_COUNTERS],
}

impl Default for Segment {
    fn default() -> Self {
        Self {
            slot_id: AtomicU64::new(0),
            table: AtomicU64::new(0),
            group_id: AtomicU64::new(0),
            shard_id: AtomicU64::new(0),
            key_attribute: AtomicU64::new(0),
            flags: AtomicU64::new(0),
            load: AtomicU64::new(0),
            capacity: AtomicU64::new(0),
            placed_ns: AtomicU64::new(0),
            asked: zeros(),
            counters: zeros(),
        }
    }
}

impl Segment {
    /// Adds to a counter.
    #[inline]
    pub fn add(&self, counter: SegmentCounter, amount: u64) {
        if amount > 0 {
            self.counters[counter as usize].fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Takes every counter and leaves zeros.
    pub fn take(&self) -> [u64; SEGMENT_COUNTERS] {
        std::array::from_fn(|i| self.counters[i].swap(0, Ordering::Relaxed))
    }

    /// Reads every counter and leaves it as it is.
    pub fn counters(&self) -> [u64; SEGMENT_COUNTERS] {
        std::array::from_fn(|i| self.counters[i].load(Ordering::Relaxed))
    }

    /// Whether another server asks for it: then its counters only grow, and no keeper of this server has a say in it.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.asked[0].load(Ordering::Relaxed) != 0
    }

    /// (Since when, until when) another server asks for it, µs of one clock; None: nobody does.
    pub fn asked(&self) -> Option<(u64, u64)> {
        let [since, until] = &self.asked;
        let since = since.load(Ordering::Relaxed);
        (since != 0).then(|| (since, until.load(Ordering::Relaxed)))
    }

    /// Says what [`Segment::asked`] answers; a beginning of 0 counts as 1.
    pub fn set_asked(&self, asked: Option<(u64, u64)>) {
        let (since, until) = asked.map_or((0, 0), |(since, until)| (since.max(1), until));
        self.asked[1].store(until, Ordering::Relaxed);
        self.asked[0].store(since, Ordering::Relaxed);
    }

    /// So much of what was placed is part of the load now; what was placed since stays.
    pub fn take_placed(&self, read_ns: u64) {
        let _ = self
            .placed_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |ns| Some(ns.saturating_sub(read_ns)));
    }

    /// The attention the relation gets.
    #[inline]
    pub fn activity(&self) -> Activity {
        Activity::from_bits(self.flags.load(Ordering::Relaxed))
    }

    /// Sets the attention the relation gets.
    pub fn set_activity(&self, activity: Activity) {
        self.flags.store(activity.bits(), Ordering::Relaxed);
    }

    /// (Load of the slot in cost units/s, capacity of its shard in cost units/s).
    pub fn load(&self) -> (f64, f64) {
        (
            f64::from_bits(self.load.load(Ordering::Relaxed)),
            f64::from_bits(self.capacity.load(Ordering::Relaxed)),
        )
    }

    /// Publishes what [`Segment::load`] says.
    pub fn set_load(&self, load: f64, capacity: f64) {
        self.load.store(load.to_bits(), Ordering::Relaxed);
        self.capacity.store(capacity.to_bits(), Ordering::Relaxed);
    }
}

/// Which trigger a profile is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct ProfileIdentity {
    /// Database oid.
    pub database: u32,
    /// Oid of the partitioned table.
    pub table: u32,
    /// Oid of the trigger function.
    pub function: u32,
    /// PostgreSQL's `TriggerEvent` bits of the call: event, level and timing.
    pub event: u32,
    /// Name of the trigger, padded with zeros.
    pub name: [u64; NAME_WORDS],
}

impl ProfileIdentity {
    /// The key of the directory: FNV-1a over the words (64 bit; two of some thousand profiles collide
    /// with a chance below 1e-12).
    pub fn key(&self) -> u64 {
        let words = [self.database, self.table, self.function, self.event].map(u64::from);
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        for word in words.iter().chain(&self.name) {
            for byte in word.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        hash
    }

    /// The name as bytes, without padding.
    pub fn name_bytes(&self) -> Vec<u8> {
        let bytes: Vec<u8> = self.name.iter().flat_map(|w| w.to_le_bytes()).collect();
        bytes.iter().copied().take_while(|b| *b != 0).collect()
    }

    /// The name that a trigger of PostgreSQL's own (`RI_ConstraintTrigger_c_16432`), padded with zeros, has with
    /// another oid at its end: as which its partitions' copies are counted. A name without an oid stays.
    pub fn numbered(name: &[u8; NAME_WORDS * 8], oid: u32) -> [u8; NAME_WORDS * 8] {
        let Some(prefix) = name.iter().rposition(|byte| *byte == b'_').map(|at| at + 1) else { return *name };
        let mut digits = [0_u8; 10];
        let (mut rest, mut first) = (oid, digits.len());
        while first > 0 && (rest > 0 || first == digits.len()) {
            first -= 1;
            digits[first] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let mut numbered = [0; NAME_WORDS * 8];
        numbered[..prefix].copy_from_slice(&name[..prefix]);
        for (place, digit) in numbered[prefix..].iter_mut().zip(&digits[first..]) {
            *place = *digit;
        }
        numbered
    }

    /// A name of at most 64 bytes as words.
    pub fn name_words(name: &[u8]) -> [u64; NAME_WORDS] {
        let mut bytes = [0_u8; NAME_WORDS * 8];
        for (place, byte) in bytes.iter_mut().zip(name) {
            *place = *byte;
        }
        std::array::from_fn(|i| u64::from_le_bytes(std::array::from_fn(|b| bytes[i * 8 + b])))
    }
}

/// A trigger on a table for one operation.
#[repr(C)]
#[derive(Debug)]
pub struct Profile {
    ready: AtomicU64,
    identity: [AtomicU64; 2],
    name: [AtomicU64; NAME_WORDS],
    totals: [Counter; TOTALS],
}

impl Default for Profile {
    fn default() -> Self {
        Self { ready: AtomicU64::new(0), identity: zeros(), name: zeros(), totals: zeros() }
    }
}

impl Profile {
    /// Fills a fresh entry in and makes it countable.
    pub fn enter(&self, identity: &ProfileIdentity) {
        let pair = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
        self.identity[0].store(pair(identity.database, identity.table), Ordering::Relaxed);
        self.identity[1].store(pair(identity.function, identity.event), Ordering::Relaxed);
        for (place, word) in self.name.iter().zip(identity.name) {
            place.store(word, Ordering::Relaxed);
        }
        for total in &self.totals {
            total.store(0, Ordering::Relaxed);
        }
        self.ready.store(1, Ordering::Release);
    }

    /// Makes the entry uncountable; before its key is removed.
    pub fn leave(&self) {
        self.ready.store(0, Ordering::Release);
    }

    /// Whose profile it is; None while it is being entered.
    pub fn identity(&self) -> Option<ProfileIdentity> {
        if self.ready.load(Ordering::Acquire) == 0 {
            return None;
        }
        let word = |i: usize| self.identity[i].load(Ordering::Relaxed);
        Some(ProfileIdentity {
            database: (word(0) >> 32) as u32,
            table: word(0) as u32,
            function: (word(1) >> 32) as u32,
            event: word(1) as u32,
            name: std::array::from_fn(|i| self.name[i].load(Ordering::Relaxed)),
        })
    }

    /// Adds to a total.
    #[inline]
    pub fn add(&self, total: Total, amount: u64) {
        if amount > 0 {
            self.totals[total as usize].fetch_add(amount, Ordering::Relaxed);
        }
    }

    /// Reads a total.
    #[inline]
    pub fn total(&self, total: Total) -> u64 {
        self.totals[total as usize].load(Ordering::Relaxed)
    }

    /// Every total since the entry was made. They only grow; a reader keeps what it saw last.
    pub fn totals(&self) -> [u64; TOTALS] {
        std::array::from_fn(|i| self.totals[i].load(Ordering::Relaxed))
    }
}
