//! The only `unsafe` of the harness: libpq and a few system calls.

pub mod client;
pub mod sys;
