//! The pure algorithms of foreshard: no PostgreSQL, no clock, no global randomness.
//!
//! Time and seeds are arguments, so every result can be reproduced from its inputs. Modules, from
//! the raw observation to the act:
//!
//! | module | question it answers |
//! |---|---|
//! | [`ring`] | where does a slot live when nothing is known yet? |
//! | [`birth`] | where shall a new key live? |
//! | [`heat`] | how busy is a slot now? |
//! | [`sketch`] | which of its keys are hot? |
//! | [`affinity`] | which slots are used together? |
//! | [`profile`] | what does a call of a trigger cost? |
//! | [`unit_cost`] | what do the executions cost that nobody measured? |
//! | [`forecast`] | how busy will it be? |
//! | [`placement`] | which moves pay, in which order, and why not the others? |
//! | [`window`] | may a move begin at this time of day? |
//! | [`calibration`] | did what was sure to pay really pay? |
//! | [`graph`] | who reaches whom, how influential is a node, and who shall live together? |
//! | [`breaker`] | is a node used, after these health checks? |
//! | [`host`] | what is looked up before a node is connected to? |
//! | [`phase`] | what does a move do next, whatever happens? |
//! | [`canary`] | how many reads may the new copy serve now? |
//! | [`citus`] | what is Citus told about shards and nodes? |
//! | [`hash_range`] | which ranges of hashes does a shard of Citus become? |
//! | [`digest`] | are two copies of a table equal? |
//! | [`latency`] | is the new copy slower than the old one? |
//! | [`watch`] | does the load that was forecast explain that? |
//! | [`pace`] | when will this be done? |
//! | [`shared`] | how do many processes write samples without waiting for one another? |
//! | [`frames`] | which of the nested calls spent it? |
//! | [`report`] | what does a person see of all that? |
//! | [`resolve`] | which data sources lead from one class of resources to another, and which are sick? |
//! | [`guests`] | which chosen keys live beside their slot, and what changes that? |
//! | [`gather`] | which keys should be chosen, because they are used together? |
//! | [`gaps`] | which event is sampled next? |
//! | [`sim`] | does all of that converge on a cluster, without thrashing? |
//!
//! Deliberately absent: SQL, I/O, threads (unless asked for, in [`graph::rank`]), logging, `unsafe`, and panics
//! outside tests.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod affinity;
pub mod birth;
pub mod breaker;
pub mod calibration;
pub mod canary;
pub mod citus;
pub mod coverage;
pub mod digest;
pub mod division;
pub mod forecast;
pub mod frames;
pub mod gaps;
pub mod gather;
pub mod graph;
pub mod guests;
pub mod hash_range;
pub mod heat;
pub mod host;
pub mod late;
pub mod latency;
pub mod pace;
pub mod phase;
pub mod placement;
pub mod present;
pub mod profile;
pub mod relief;
pub mod report;
pub mod resolve;
pub mod ring;
pub mod shared;
pub mod sim;
pub mod sketch;
pub mod unit_cost;
pub mod watch;
pub mod window;
