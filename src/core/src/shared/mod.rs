//! Lock-free structures over plain atomics, for memory that many processes share.
//!
//! They own nothing: the caller lends slices (in production they lie in PostgreSQL's shared memory, in
//! tests on the heap). All-zero memory is the valid empty state of every structure here.

mod away;
mod barrier;
mod directory;
mod layout;
mod ring;
mod route;

pub use away::{AWAY, AwayServer, AwayServers};
pub use barrier::{BARRIERS, Barrier, Barriers};
pub use directory::{Claim, Directory};
pub use layout::{
    Activity, Counter, KEY_BYTES, NAME_WORDS, Profile, ProfileIdentity, SEGMENT_COUNTERS, Segment,
    SegmentCounter, TOTALS, Total,
};
pub use ring::{Entry, Pushed, SampleRing};
pub use route::{ARMS, Arm, ROUTE_INDEXES, ROUTED_MOVES, ROUTES, Route, RouteSpec, RouteStats, Routes, Seen};
