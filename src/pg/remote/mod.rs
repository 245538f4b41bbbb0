//! Questions to other servers, several at once, by the connection options of foreign servers of `postgres_fdw` and
//! the current user's mappings, under the rules of `postgres_fdw`.
//!
//! The protocol is libpq's, and libpq is the one that PostgreSQL itself loads for its own `libpqwalreceiver`: a copy
//! linked into this library could be another version, whose symbols would mix with those of `postgres_fdw`'s.
//! Connections belong to this file alone (no other code can name them) and to one pair of server and user.

mod connection;
mod inquiry;
mod libpq;
mod reply;
mod target;

pub use inquiry::{Asked, Command, Inquiry, wait};
pub use reply::Reply;
pub use target::{Target, server_oid};

/// Why a server gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The time was over.
    pub timed_out: bool,
    /// SQLSTATE.
    pub sqlstate: String,
    /// The server's primary message, or libpq's.
    pub message: String,
    /// It may be that the server had to wait for us, who did not read what it sent.
    pub unheard: bool,
}

impl Failure {
    /// One that has nothing to do with time.
    pub fn of(sqlstate: &str, message: impl Into<String>) -> Failure {
        Failure { timed_out: false, sqlstate: sqlstate.to_owned(), message: message.into(), unheard: false }
    }

    fn timeout(what: &str) -> Failure {
        Failure {
            timed_out: true,
            ..Failure::of("57014", format!("{what} took longer than foreshard.resolve_timeout"))
        }
    }
}

/// SQLSTATE of a connection that could not be made or was lost.
const NO_CONNECTION: &str = "08006";
/// SQLSTATE of a server that was reached and refused: a matter of the user's mapping, as far as anybody can tell.
const NOT_LET_IN: &str = "28000";
