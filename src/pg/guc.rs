//! Every setting, defined once: name, default, range, unit and meaning. `pg_settings` shows them and
//! the README's table is generated from there (`make docs`).

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString};

/// What the planner may do with its own recommendations.
#[derive(PostgresGucEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Observe and forecast only.
    #[name = c"off"]
    Off,
    /// Write recommendations; a person or `request_resharding` acts.
    #[name = c"advise"]
    Advise,
    /// File confident recommendations as moves.
    #[name = c"auto"]
    Auto,
}

/// How a GUC may be changed.
type Ctx = GucContext;

macro_rules! settings {
    ($( $(#[$doc:meta])* $kind:ident $ident:ident = $name:literal, $default:expr $(, $min:expr, $max:expr)?; $ctx:expr, $flags:expr; $short:literal; )*) => {
        $( $(#[$doc])* pub static $ident: GucSetting<settings!(@type $kind)> = GucSetting::<settings!(@type $kind)>::new($default); )*

        /// Registers every setting; called once from `_PG_init`.
        pub fn register() {
            $( settings!(@define $kind $ident, $name, $short, $ctx, $flags $(, $min, $max)?); )*
            // SAFETY: reserves the prefix so that misspelt settings are reported; plain C string.
            unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"foreshard".as_ptr()) };
        }
    };
    (@type int) => { i32 };
    (@type real) => { f64 };
    (@type boolean) => { bool };
    (@type mode) => { Mode };
    (@type string) => { Option<CString> };
    (@define int $i:ident, $n:literal, $s:literal, $c:expr, $f:expr, $min:expr, $max:expr) => {
        GucRegistry::define_int_guc($n, $s, EMPTY, &$i, $min, $max, $c, $f)
    };
    (@define real $i:ident, $n:literal, $s:literal, $c:expr, $f:expr, $min:expr, $max:expr) => {
        GucRegistry::define_float_guc($n, $s, EMPTY, &$i, $min, $max, $c, $f)
    };
    (@define boolean $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_bool_guc($n, $s, EMPTY, &$i, $c, $f)
    };
    (@define mode $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_enum_guc($n, $s, EMPTY, &$i, $c, $f)
    };
    (@define string $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_string_guc($n, $s, EMPTY, &$i, $c, $f)
    };
}

const EMPTY: &CStr = c"";
const NONE: GucFlags = GucFlags::empty();
const S: GucFlags = GucFlags::UNIT_S;
const MS: GucFlags = GucFlags::UNIT_MS;
const KB: GucFlags = GucFlags::UNIT_KB;

settings! {
    /// Off switch of the keeper's sampling.
    boolean OBSERVE = c"foreshard.observe", true; Ctx::Sighup, NONE;
        c"Watches the load of every slot of managed tables.";
    /// Off, advise or auto.
    mode MODE = c"foreshard.mode", Mode::Advise; Ctx::Sighup, NONE;
        c"What foreshard does with its recommendations: off, advise (write them down) or auto (act on confident ones).";
    /// Seconds between two readings of the counters.
    int BUCKET = c"foreshard.bucket", 10, 1, 3600; Ctx::Sighup, S;
        c"Time between two readings of the statistics counters; the finest resolution of the load history.";
    /// Seconds between two planning rounds.
    int PLAN_INTERVAL = c"foreshard.plan_interval", 60, 1, 86400; Ctx::Sighup, S;
        c"Time between two rounds of forecasting and planning.";
    /// Seconds a forecast looks ahead.
    int FORECAST_HORIZON = c"foreshard.forecast_horizon", 3600, 1, 604800; Ctx::Sighup, S;
        c"How far ahead the load of a slot is forecast and balanced.";
    /// Half-life of heat, seconds.
    int HEAT_HALF_LIFE = c"foreshard.heat_half_life", 60, 1, 86400; Ctx::Sighup, S;
        c"Time after which the heat of a slot that is no longer accessed has halved.";
    /// Least confidence to act on.
    real MIN_CONFIDENCE = c"foreshard.min_confidence", 0.7, 0.0, 1.0; Ctx::Suset, NONE;
        c"Least confidence with which request_resharding and the auto mode may move data.";
    /// Upper threshold of imbalance.
    real IMBALANCE_HIGH = c"foreshard.imbalance_high", 0.20, 0.0, 100.0; Ctx::Sighup, NONE;
        c"Planning starts when the busiest shard's forecast peak exceeds the mean by this share.";
    /// Lower threshold of imbalance.
    real IMBALANCE_LOW = c"foreshard.imbalance_low", 0.10, 0.0, 100.0; Ctx::Sighup, NONE;
        c"Planning stops when the busiest shard's forecast peak exceeds the mean by no more than this share.";
    /// Buckets of overload before acting.
    int HOT_BUCKETS = c"foreshard.hot_buckets", 3, 1, 1000; Ctx::Sighup, NONE;
        c"Consecutive readings for which a shard must be overloaded before a move from it is recommended.";
    /// Rest after a move, seconds.
    int COOLDOWN = c"foreshard.cooldown", 600, 0, 604800; Ctx::Sighup, S;
        c"Time for which a slot that was moved is not recommended for another move.";
    /// Cost of moving.
    real MOVE_COST_PER_MB = c"foreshard.move_cost_per_mb", 10.0, 0.0, 1e9; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) that moving one megabyte is taken to cost when a move must pay for itself.";
    /// Unit cost of a scan.
    real SCAN_COST = c"foreshard.scan_cost", 0.02, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of starting one scan of a slot.";
    /// Unit cost of a row read.
    real ROW_COST = c"foreshard.row_cost", 0.001, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one row read.";
    /// Unit cost of a row written.
    real WRITE_COST = c"foreshard.write_cost", 0.05, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one row inserted, updated or deleted.";
    /// Unit cost of a block read.
    real BLOCK_READ_COST = c"foreshard.block_read_cost", 0.1, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one block read from outside shared buffers.";
    /// Unit cost of a block hit.
    real BLOCK_HIT_COST = c"foreshard.block_hit_cost", 0.001, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one block found in shared buffers.";
    /// Retention of raw buckets, seconds.
    int RETAIN_BUCKET = c"foreshard.retain_bucket", 7200, 60, 2592000; Ctx::Sighup, S;
        c"How long the load history is kept at the resolution of foreshard.bucket.";
    /// Retention of minutes, seconds.
    int RETAIN_1MIN = c"foreshard.retain_1min", 172800, 3600, 31536000; Ctx::Sighup, S;
        c"How long the load history is kept at a resolution of one minute.";
    /// Retention of five minutes, seconds.
    int RETAIN_5MIN = c"foreshard.retain_5min", 1209600, 3600, 315360000; Ctx::Sighup, S;
        c"How long the load history is kept at a resolution of five minutes.";
    /// Retention of hours, seconds.
    int RETAIN_1H = c"foreshard.retain_1h", 34560000, 86400, 2000000000; Ctx::Sighup, S;
        c"How long the load history is kept at a resolution of one hour.";
    /// Retention of events, seconds.
    int RETAIN_HISTORY = c"foreshard.retain_history", 7776000, 3600, 2000000000; Ctx::Sighup, S;
        c"How long finished moves, events and old recommendations are kept.";
    /// Concurrent moves per database.
    int MAX_CONCURRENT_MOVES = c"foreshard.max_concurrent_moves", 1, 1, 8; Ctx::Sighup, NONE;
        c"Moves of one database that run at the same time.";
    /// Lock bound, milliseconds.
    int MAX_LOCK_TIME = c"foreshard.max_lock_time", 40, 1, 10000; Ctx::Sighup, MS;
        c"Longest time a move may keep user statements waiting for a lock.";
    /// Copy chunk, kB.
    int COPY_CHUNK = c"foreshard.copy_chunk", 32768, 64, 1048576; Ctx::Sighup, KB;
        c"Amount of a table copied in one transaction; a crash repeats at most this much.";
    /// Copy rate, kB/s.
    int COPY_RATE = c"foreshard.copy_rate", 0, 0, 2000000000; Ctx::Sighup, KB;
        c"Kilobytes per second a move may copy; 0 means no limit.";
    /// Final drain, keys.
    int CUTOVER_MAX_KEYS = c"foreshard.cutover_max_keys", 200, 1, 100000; Ctx::Sighup, NONE;
        c"Most changed keys that may be replayed under the cutover's lock.";
    /// Free space kept, percent.
    int MIN_FREE_DISK = c"foreshard.min_free_disk", 10, 0, 99; Ctx::Sighup, NONE;
        c"Per cent of the target file system that must stay free after a copy.";
    /// Developer option: the carrier waits on entering this phase.
    string HOLD_AT_PHASE = c"foreshard.hold_at_phase", None; Ctx::Sighup, NONE;
        c"Developer option: moves wait on entering this phase.";
}
