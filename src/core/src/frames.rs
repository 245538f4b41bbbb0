//! Who spent what when measured pieces of work nest: triggers inside statements inside triggers.
//!
//! A piece is entered and left in the order of the C stack. An error may leave pieces without saying so
//! (a longjmp past their frames); their stack addresses give them away: the stack grows downwards, so
//! whatever was entered at a lower address than the piece at hand is gone.

use crate::gaps::Gaps;

/// Counters a measurement reads at both ends.
pub const AMOUNTS: usize = 9;
/// Readings or differences of monotone counters, see [`Amount`].
pub type Amounts = [u64; AMOUNTS];

/// What the places of [`Amounts`] mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Amount {
    /// CPU time of this process, ns.
    CpuNs,
    /// Time, ns.
    ElapsedNs,
    /// Memory held by memory contexts, bytes.
    MemoryBytes,
    /// Blocks found in shared buffers.
    BlocksHit,
    /// Blocks read from outside.
    BlocksRead,
    /// Blocks dirtied.
    BlocksDirtied,
    /// WAL written, bytes.
    WalBytes,
    /// Temporary blocks read and written.
    TempBlocks,
    /// Foreshard's own bookkeeping inside the piece, ns.
    OverheadNs,
}

/// Pieces that nest deeper are part of the innermost measured one.
pub const MAX_DEPTH: usize = 64;

/// What a piece of work is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Kind {
    /// A statement on a managed table: accounts for itself.
    #[default]
    Statement,
    /// A trigger call; the number names its function.
    Trigger(u32),
}

/// A piece of work that begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Piece {
    /// What it is.
    pub kind: Kind,
    /// How many pieces like it it stands for.
    pub weight: u32,
    /// Where on the stack it began.
    pub address: usize,
    /// The subtransaction it began in: numbers only grow within a transaction.
    pub subtransaction: u32,
    /// Parallel workers that start while it is the innermost piece belong to it, and measure too.
    pub led: bool,
    /// Nobody records it (a trigger of a table that is not watched): what it takes is part of the piece around it.
    pub unrecorded: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Frame {
    piece: Piece,
    start: Amounts,
    nested_triggers: Amounts,
    nested_statements: Amounts,
    accounted: Amounts,
    children: u32,
    /// Which of the next ones is measured, once the first ones were.
    chosen: u32,
}

/// What a finished piece took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spent {
    /// Everything between its ends.
    pub inclusive: Amounts,
    /// Without the triggers that ran inside it.
    pub exclusive: Amounts,
    /// Without the triggers and managed statements inside it: what nobody else accounts for.
    pub own: Amounts,
    /// The managed statements directly inside it, those of triggers left out.
    pub statements: Amounts,
}

/// The stack of measured pieces.
#[derive(Debug)]
pub struct Frames {
    stack: [Frame; MAX_DEPTH],
    depth: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self { stack: [Frame::default(); MAX_DEPTH], depth: 0 }
    }
}

fn add(to: &mut Amounts, what: &Amounts, times: u64) {
    for (sum, amount) in to.iter_mut().zip(what) {
        *sum = sum.saturating_add(amount.saturating_mul(times));
    }
}

fn less(from: &Amounts, what: &Amounts) -> Amounts {
    std::array::from_fn(|i| from[i].saturating_sub(what[i]))
}

impl Frames {
    /// Nothing is being measured.
    pub fn is_empty(&self) -> bool {
        self.depth == 0
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.depth = 0;
    }

    /// The innermost measured trigger function, if any.
    pub fn trigger(&self) -> Option<u32> {
        self.stack[..self.depth].iter().rev().find_map(|f| match f.piece.kind {
            Kind::Trigger(function) => Some(function),
            _ => None,
        })
    }

    /// Whether parallel workers that start now belong to a measured piece.
    pub fn leads(&self) -> bool {
        self.depth.checked_sub(1).is_some_and(|top| self.stack[top].piece.led)
    }

    /// A reading with which the piece at `address` was entered; 0 when it is not the innermost one that is left.
    pub fn started_with(&mut self, address: usize, amount: Amount) -> u64 {
        self.drop_inside(address);
        let top = self.depth.checked_sub(1).map(|top| &self.stack[top]);
        top.filter(|top| top.piece.address == address).map_or(0, |top| top.start[amount as usize])
    }

    /// Drops pieces that an error left: those at or below `address`.
    pub fn drop_left(&mut self, address: usize) {
        self.drop_while(|piece| piece.address <= address);
    }

    /// Drops pieces that an error left: those inside the one at `address`.
    fn drop_inside(&mut self, address: usize) {
        self.drop_while(|piece| piece.address < address);
    }

    /// Drops pieces that an error left, which was caught: those that began in a subtransaction that is rolled back, or
    /// in one inside it.
    pub fn abort(&mut self, subtransaction: u32) {
        self.drop_while(|piece| piece.subtransaction >= subtransaction);
    }

    fn drop_while(&mut self, is_gone: impl Fn(&Piece) -> bool) {
        while self.depth > 0 && is_gone(&self.stack[self.depth - 1].piece) {
            self.depth -= 1;
        }
    }

    /// Counts a piece inside the innermost one and says whether to measure it: the first `always` of
    /// them, then of every `interval` one that `gaps` draws: with a fixed stride, of several triggers that take turns
    /// always the same one would be measured. The result is its weight: how many pieces it stands for.
    pub fn wants_child(&mut self, always: u32, interval: u32, gaps: &mut Gaps) -> Option<u32> {
        let top = self.depth.checked_sub(1).map(|i| &mut self.stack[i])?;
        top.children = top.children.saturating_add(1);
        if top.children <= always {
            return Some(1);
        }
        let interval = interval.max(1);
        let place = (top.children - always - 1) % interval;
        if place == 0 {
            top.chosen = gaps.place(interval);
        }
        (place == top.chosen).then_some(interval)
    }

    /// Enters a piece. False: too deep, do not leave it.
    pub fn enter(&mut self, piece: Piece, now: Amounts) -> bool {
        self.drop_left(piece.address);
        if self.depth == MAX_DEPTH {
            return false;
        }
        self.stack[self.depth] = Frame { piece, start: now, ..Frame::default() };
        self.depth += 1;
        true
    }

    /// Leaves the piece entered at `address`; None when it is not on the stack.
    pub fn leave(&mut self, address: usize, now: Amounts) -> Option<Spent> {
        self.drop_inside(address);
        let top = self.depth.checked_sub(1)?;
        if self.stack[top].piece.address != address {
            return None;
        }
        self.depth = top;
        let frame = self.stack[top];
        let inclusive = less(&now, &frame.start);
        if let Some(parent) = top.checked_sub(1).map(|i| &mut self.stack[i]) {
            let times = u64::from(frame.piece.weight);
            let accounted = if frame.piece.unrecorded { &frame.accounted } else { &inclusive };
            add(&mut parent.accounted, accounted, times);
            match frame.piece.kind {
                Kind::Trigger(_) => add(&mut parent.nested_triggers, &inclusive, times),
                Kind::Statement => {
                    add(&mut parent.nested_triggers, &frame.nested_triggers, times);
                    add(&mut parent.nested_statements, &inclusive, times);
                }
            }
        }
        Some(Spent {
            inclusive,
            exclusive: less(&inclusive, &frame.nested_triggers),
            own: less(&inclusive, &frame.accounted),
            statements: frame.nested_statements,
        })
    }
}
