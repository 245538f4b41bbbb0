//! Real PostgreSQL clusters for tests, the demo and the benches of foreshard.
//!
//! * [`Install`]: a private copy of PostgreSQL with the extension in it, made by
//!   `scripts/stage.sh`; `FORESHARD_PG` chooses the major version.
//! * [`Cluster`]: a throwaway server with its own socket directory and port, run by an
//!   unprivileged user; it can be stopped, crashed (`kill9_postmaster`) and started again,
//!   and is removed when dropped (`FORESHARD_KEEP=1` keeps its directory).
//! * [`Client`]: libpq, with prepared statements, one asynchronous query, COPY and notices.
//! * [`Awake`]: processors that do not doze off, for those who measure time in microseconds.
//! * [`bars`]: bars, and how a bench ends.
//! * [`Proxy`]: a link between two servers that can be stalled or cut.
//! * [`load`]: an open-loop load generator that measures from the time a statement was due.
//!
//! ```no_run
//! use foreshard_test::{Cluster, ClusterOptions};
//! # fn main() -> foreshard_test::Result<()> {
//! let cluster = Cluster::start(&ClusterOptions::new("example"))?;
//! let mut client = cluster.connect("postgres")?;
//! assert_eq!(client.query_one("SELECT 1")?, "1");
//! # Ok(())
//! # }
//! ```

pub mod awake;
pub mod bars;
pub mod cluster;
pub mod error;
mod ffi;
pub mod install;
pub mod latency;
pub mod load;
pub mod process;
pub mod proxy;
mod template;
mod turn;

pub use awake::Awake;
pub use cluster::{Cluster, ClusterOptions, StopMode};
pub use error::{Error, Result, SqlError};
pub use ffi::client;
pub use ffi::client::{Client, Rows};
pub use install::Install;
pub use latency::Latencies;
pub use process::{rest, wait_until};
pub use proxy::{Link, Proxy};
pub use turn::in_turn;
