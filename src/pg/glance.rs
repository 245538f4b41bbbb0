//! What every statement and trigger call looks at, in one cache line: after a round trip to the client all of it is
//! cold. Variables of this backend, and the way to those of all backends.

use super::gates::{CLOSED, Gates};
use super::guc;
use super::local::Local;
use foreshard_core::gaps::longest;

/// See the module.
#[repr(align(64))]
pub struct Glance {
    /// Events until the next sample; 0: not drawn yet, [`NEVER_DRAWN`]: nor any before.
    pub statement_gap: Local<u32>,
    /// The same of trigger calls.
    pub trigger_gap: Local<u32>,
    /// The same of keys of hot slots.
    pub key_gap: Local<u32>,
    /// Statements seen in this transaction.
    pub statements: Local<u32>,
    /// By how much sampling is thinned out to keep the budget.
    pub thinning: Local<u32>,
    /// Statements being measured.
    pub tracked: Local<u32>,
    /// Statements that canary routes look at.
    pub routed: Local<u32>,
    /// The transaction is sampled.
    pub transaction_sampled: Local<bool>,
    /// The statement that begins was drawn itself, not only its transaction.
    pub drawn: Local<bool>,
    /// Some piece is being measured.
    pub in_frame: Local<bool>,
    /// This process is one of our workers, whose statements are not the users' load.
    pub is_ours: Local<bool>,
    /// What is open to all backends.
    pub gates: Local<&'static Gates>,
    /// The statement that runs (a pointer), and where on the stack the frame is that said so.
    pub current: Local<(usize, usize)>,
}

/// A gap of a session that has drawn none; longer than any.
pub const NEVER_DRAWN: u32 = u32::MAX;

/// No statement runs.
pub const NOTHING_RUNS: (usize, usize) = (0, usize::MAX);

/// The one of this backend.
pub static GLANCE: Glance = Glance {
    statement_gap: Local::new(NEVER_DRAWN),
    trigger_gap: Local::new(NEVER_DRAWN),
    key_gap: Local::new(NEVER_DRAWN),
    statements: Local::new(0),
    thinning: Local::new(1),
    tracked: Local::new(0),
    routed: Local::new(0),
    transaction_sampled: Local::new(false),
    drawn: Local::new(false),
    in_frame: Local::new(false),
    is_ours: Local::new(false),
    gates: Local::new(&CLOSED),
    current: Local::new(NOTHING_RUNS),
};

impl Glance {
    /// One in how many, with thinning.
    #[inline]
    pub fn interval(&self, setting: i32) -> u32 {
        (setting.max(1) as u32).saturating_mul(self.thinning.get())
    }

    /// Counts down to the next sample of something; false: it is time, or a gap has to be drawn.
    #[inline]
    pub fn passes(&self, gap: &Local<u32>, setting: i32) -> bool {
        let left = gap.get();
        // More is left only when the interval was lowered: then what was drawn for the old one no longer counts.
        let passes = left > 1 && left <= longest(self.interval(setting));
        if passes {
            gap.set(left - 1);
        }
        passes
    }

    /// Counts a statement that nobody wants, as nearly all are; false: the sensor has to say.
    #[inline]
    pub fn passes_statement(&self) -> bool {
        if self.in_frame.get() || self.transaction_sampled.get() {
            return false;
        }
        let passes = self.passes(&self.statement_gap, guc::now(&guc::STATEMENT_SAMPLE_INTERVAL));
        if passes {
            self.statements.set(self.statements.get().saturating_add(1));
            self.drawn.set(false);
        }
        passes
    }

    /// Whether nothing of the transaction that ends is to be told or cleared away, as of nearly all.
    #[inline]
    pub fn ends_quietly(&self) -> bool {
        self.statements.set(0);
        !self.transaction_sampled.get() && self.tracked.get() == 0 && !self.in_frame.get()
    }
}
