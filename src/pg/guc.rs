//! Every setting, defined once: name, default, range, unit and meaning. `pg_settings` shows them and
//! the README's table is generated from there (`make docs`).

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use std::ffi::{CStr, CString};

/// What the planner may do with its own recommendations.
#[derive(PostgresGucEnum, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
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

impl Mode {
    /// Every mode, from the most careful one.
    pub const ALL: [Self; 3] = [Self::Off, Self::Advise, Self::Auto];

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Advise => "advise",
            Self::Auto => "auto",
        }
    }

    /// The mode of a name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.as_str().eq_ignore_ascii_case(name.trim()))
    }
}

/// The value of a plain setting, for hooks that every statement passes: without pgrx's check of the thread, which takes
/// a call into the dynamic linker.
#[inline(always)]
pub fn now<T: pgrx::guc::GucValue<Raw = T> + Copy>(setting: &GucSetting<T>) -> T {
    // SAFETY: the variable is part of the setting, which is static; PostgreSQL writes it on this process's only thread.
    unsafe { *setting.as_ptr() }
}

/// How a GUC may be changed.
type Ctx = GucContext;

macro_rules! settings {
    ($( $(#[$doc:meta])* $kind:ident $ident:ident = $name:literal, $default:expr $(, $min:expr, $max:expr)?; $ctx:expr, $flags:expr; $short:literal; )*) => {
        $( $(#[$doc])* pub static $ident: GucSetting<settings!(@type $kind)> = GucSetting::<settings!(@type $kind)>::new($default); )*

        /// Registers every setting; called once from `_PG_init`.
        pub fn register() {
            $( if allowed($ctx) { settings!(@define $kind $ident, $name, $short, $ctx, $flags $(, $min, $max)?); } )*
            // SAFETY: reserves the prefix so that misspelt settings are reported; plain C string.
            unsafe { pgrx::pg_sys::MarkGUCPrefixReserved(c"foreshard".as_ptr()) };
        }
    };
    (@type int) => { i32 };
    (@type real) => { f64 };
    (@type boolean) => { bool };
    (@type observe) => { bool };
    (@type mode) => { Mode };
    (@type string) => { Option<CString> };
    (@type window) => { Option<CString> };
    (@type steps) => { Option<CString> };
    (@define int $i:ident, $n:literal, $s:literal, $c:expr, $f:expr, $min:expr, $max:expr) => {
        GucRegistry::define_int_guc($n, $s, EMPTY, &$i, $min, $max, $c, $f)
    };
    (@define real $i:ident, $n:literal, $s:literal, $c:expr, $f:expr, $min:expr, $max:expr) => {
        GucRegistry::define_float_guc($n, $s, EMPTY, &$i, $min, $max, $c, $f)
    };
    (@define boolean $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_bool_guc($n, $s, EMPTY, &$i, $c, $f)
    };
    (@define observe $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        // SAFETY: the hook is guarded and has the signature of one.
        unsafe { GucRegistry::define_bool_guc_with_hooks($n, $s, EMPTY, &$i, $c, $f, Some(super::bgworker::check_observe), None, None) }
    };
    (@define mode $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_enum_guc($n, $s, EMPTY, &$i, $c, $f)
    };
    (@define window $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        // SAFETY: the hook is guarded and has the signature of one.
        unsafe { GucRegistry::define_string_guc_with_hooks($n, $s, EMPTY, &$i, $c, $f, Some(super::window::check), None, None) }
    };
    (@define steps $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        // SAFETY: the hook is guarded and has the signature of one.
        unsafe { GucRegistry::define_string_guc_with_hooks($n, $s, EMPTY, &$i, $c, $f, Some(super::check_hook::canary_steps), None, None) }
    };
    (@define string $i:ident, $n:literal, $s:literal, $c:expr, $f:expr) => {
        GucRegistry::define_string_guc($n, $s, EMPTY, &$i, $c, $f)
    };
}

/// Settings of the postmaster can only be made while it preloads; without preloading they have no use.
fn allowed(context: Ctx) -> bool {
    !matches!(context, Ctx::Postmaster) || super::is_preloading()
}

const EMPTY: &CStr = c"";
const NONE: GucFlags = GucFlags::empty();
const S: GucFlags = GucFlags::UNIT_S;
const MS: GucFlags = GucFlags::UNIT_MS;
const KB: GucFlags = GucFlags::UNIT_KB;

settings! {
    /// Off switch of all watching: for a session (superusers, or whoever is granted SET), or everywhere.
    observe OBSERVE = c"foreshard.observe", true; Ctx::Suset, NONE;
        c"Watches the load of every slot of managed tables, and what statements and triggers cost; off in a session: that session is not watched.";
    /// Look-ups by one key are planned for the partition that has it.
    boolean DIRECT_LOOKUPS = c"foreshard.direct_lookups", true; Ctx::Userset, NONE;
        c"Plans a SELECT by one key of a managed table for the partition that has the key, without looking at the others.";
    /// One statement in so many is measured.
    int STATEMENT_SAMPLE_INTERVAL = c"foreshard.statement_sample_interval", 100, 1, 1000000; Ctx::Suset, NONE;
        c"One in so many statements on managed tables is measured; more rarely when measuring exceeds foreshard.observe_budget.";
    /// One trigger call in so many is measured.
    int TRIGGER_SAMPLE_INTERVAL = c"foreshard.trigger_sample_interval", 16, 1, 1000000; Ctx::Suset, NONE;
        c"One in so many trigger calls is measured; all calls are counted.";
    /// One statement in so many gives its keys while a slot is hot.
    int KEY_SAMPLE_INTERVAL = c"foreshard.key_sample_interval", 8, 1, 1000000; Ctx::Suset, NONE;
        c"One in so many statements gives the keys it looks up or writes, while it touches a hot slot.";
    /// When a slot's keys are sampled.
    real HOT_SLOT_THRESHOLD = c"foreshard.hot_slot_threshold", 50.0, 0.0, 1e12; Ctx::Sighup, NONE;
        c"Accesses (scans and written rows) per second over which the keys of a slot are sampled.";
    /// Bound of the measuring, percent of a session's time.
    real OBSERVE_BUDGET = c"foreshard.observe_budget", 0.5, 0.01, 100.0; Ctx::Suset, NONE;
        c"Per cent of a session's busy time that measuring may take; beyond it less is sampled.";
    /// Entries for relations.
    int MAX_RELATIONS = c"foreshard.max_relations", 8192, 64, 1048576; Ctx::Postmaster, NONE;
        c"Partitions and partitioned tables, over all databases, that shared memory has room for.";
    /// Entries for triggers.
    int MAX_TRIGGER_PROFILES = c"foreshard.max_trigger_profiles", 1024, 16, 65536; Ctx::Postmaster, NONE;
        c"Triggers per table and operation, over all databases, that shared memory has room for.";
    /// Samples in flight.
    int SAMPLE_BUFFER = c"foreshard.sample_buffer", 4096, 64, 1048576; Ctx::Postmaster, NONE;
        c"Samples of each kind that shared memory keeps until the keepers have read them.";
    /// Keys kept per group.
    int MAX_HOT_KEYS = c"foreshard.max_hot_keys", 4096, 16, 65536; Ctx::Sighup, NONE;
        c"Counters of the hot key sketch of each colocation group.";
    /// Off, advise or auto.
    mode MODE = c"foreshard.mode", Mode::Advise; Ctx::Sighup, NONE;
        c"What foreshard does with its recommendations: off, advise (write them down) or auto (act on confident ones); configure() overrides it for a table.";
    /// Seconds between two readings of the counters.
    int BUCKET = c"foreshard.bucket", 10, 1, 3600; Ctx::Sighup, S;
        c"Time between two readings of the statistics counters; the finest resolution of the load history.";
    /// Seconds between two planning rounds.
    int PLAN_INTERVAL = c"foreshard.plan_interval", 60, 1, 86400; Ctx::Sighup, S;
        c"Time between two rounds of forecasting and planning.";
    /// Seconds a forecast looks ahead.
    int FORECAST_HORIZON = c"foreshard.forecast_horizon", 3600, 1, 604800; Ctx::Sighup, S;
        c"How far ahead the load of a slot is forecast and balanced.";
    /// Length of the season that loads repeat themselves by.
    int SEASON = c"foreshard.season", 86400, 4, 604800; Ctx::Sighup, S;
        c"Time after which loads repeat themselves; forecasts look for it, and for seven of it, at resolutions that divide it.";
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
    /// Share of the futures that must agree before anything is there to be seen.
    real FORESIGHT = c"foreshard.foresight", 0.5, 0.0, 1.0; Ctx::Sighup, NONE;
        c"Share of the sampled futures in which a shard must become overloaded for moves off it to be planned before it is; 0: never before.";
    /// Rest after a move, seconds.
    int COOLDOWN = c"foreshard.cooldown", 600, 0, 604800; Ctx::Sighup, S;
        c"Time for which a slot that was moved is not recommended for another move.";
    /// When moves may begin.
    window MOVE_WINDOW = c"foreshard.move_window", Some(c""); Ctx::Sighup, NONE;
        c"Hours in which the auto mode may begin moves, as in 22:00-06:00, 12:30-13:00 Europe/Berlin; without a zone by log_timezone; empty: any time. A shard above 90 per cent of its capacity is relieved at any time.";
    /// What a transaction across shards costs.
    real CROSS_SHARD_COST = c"foreshard.cross_shard_cost", 0.05, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) that a transaction is taken to cost more when two slots it touches are on different shards; 0: slots used together are not gathered.";
    /// What waiting for a node costs.
    real WAIT_COST = c"foreshard.wait_cost", 0.02, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) that a millisecond is taken to cost for which an access waits for the round trip to the node of its slot; 0: plans do not look at round trips.";
    /// Cost of moving.
    real MOVE_COST_PER_MB = c"foreshard.move_cost_per_mb", 10.0, 0.0, 1e9; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) that moving one megabyte is taken to cost when a move must pay for itself.";
    /// Unit cost of a scan.
    real SCAN_COST = c"foreshard.scan_cost", 0.02, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of starting one scan of a slot.";
    /// Unit cost of a scan on a node, beside the scan.
    real REMOTE_SCAN_COST = c"foreshard.remote_scan_cost", 0.08, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) that a scan of a slot on a node of postgres_fdw takes there beside the scan itself: statements around it, planning, commit.";
    /// Unit cost of a row read.
    real ROW_COST = c"foreshard.row_cost", 0.001, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one row read.";
    /// Unit cost of a row written.
    real WRITE_COST = c"foreshard.write_cost", 0.05, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one row inserted, updated or deleted.";
    /// Unit cost of a block read.
    real BLOCK_READ_COST = c"foreshard.block_read_cost", 0.1, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one block read from outside shared buffers.";
    /// Unit cost of WAL.
    real WAL_KB_COST = c"foreshard.wal_kb_cost", 0.005, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one kilobyte of WAL written.";
    /// Unit cost of temporary I/O.
    real TEMP_BLOCK_COST = c"foreshard.temp_block_cost", 0.05, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one temporary block read or written.";
    /// Unit cost of memory.
    real MEMORY_MB_COST = c"foreshard.memory_mb_cost", 0.01, 0.0, 1e6; Ctx::Sighup, NONE;
        c"Cost units (ms of CPU) of one megabyte of memory kept by a trigger call.";
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
    /// Bound on leaf partitions per table.
    int MAX_LEAVES = c"foreshard.max_leaves", 1024, 1, 65536; Ctx::Sighup, NONE;
        c"Leaf partitions that a table may have for keys to be placed: each costs every session memory and planning time.";
    /// Lock bound, milliseconds.
    int MAX_LOCK_TIME = c"foreshard.max_lock_time", 40, 1, 10000; Ctx::Sighup, MS;
        c"Longest time a move may keep user statements waiting for a lock.";
    /// Copy chunk, kB.
    int COPY_CHUNK = c"foreshard.copy_chunk", 32768, 64, 1048576; Ctx::Sighup, KB;
        c"Amount of a table copied in one transaction; a crash repeats at most this much.";
    /// Copy rate, kB/s.
    int COPY_RATE = c"foreshard.copy_rate", 0, 0, 2000000000; Ctx::Sighup, KB;
        c"Kilobytes per second a move may copy and replay; 0 means no limit.";
    /// Copy rate, rows/s.
    int COPY_ROWS = c"foreshard.copy_rows", 0, 0, 2000000000; Ctx::Sighup, NONE;
        c"Rows per second a move may copy and replay, fewer than are changed meanwhile and it never catches up; 0 means no limit.";
    /// Replica lag at which copying waits, kB.
    int MAX_REPLICA_LAG = c"foreshard.max_replica_lag", 262144, 0, 2000000000; Ctx::Sighup, KB;
        c"WAL that a replica may be behind before moves stop copying until it has caught up; 0 means no limit.";
    /// WAL rate of the server at which moves wait, kB/s.
    int MAX_WAL_RATE = c"foreshard.max_wal_rate", 0, 0, 2000000000; Ctx::Sighup, KB;
        c"Kilobytes of WAL per second of the whole server over which moves stop copying and replaying; 0 means no limit.";
    /// Age of the oldest snapshot at which moves wait, transactions.
    int MAX_XMIN_AGE = c"foreshard.max_xmin_age", 50000000, 0, 2000000000; Ctx::Sighup, NONE;
        c"Transactions that the oldest snapshot may lie back before moves stop copying and replaying; 0 means no limit.";
    /// Latency at which moves wait, ms.
    int MAX_P99 = c"foreshard.max_p99", 0, 0, 3600000; Ctx::Sighup, MS;
        c"99th percentile of the statements of this database over which moves stop copying and replaying; 0 means no limit.";
    /// Final drain, keys.
    int CUTOVER_MAX_KEYS = c"foreshard.cutover_max_keys", 200, 1, 100000; Ctx::Sighup, NONE;
        c"Most changed keys that may be replayed under the lock that turns a log into a mirror.";
    /// Weights of the canary, per cent.
    steps CANARY_STEPS = c"foreshard.canary_steps", Some(c"1, 5, 25, 100"); Ctx::Sighup, NONE;
        c"Per cent of the reads of a moving slot that its copy serves before the cutover, step by step; empty: no canary.";
    /// How long each weight of the canary stands, milliseconds.
    int CANARY_DWELL = c"foreshard.canary_dwell", 5000, 0, 3600000; Ctx::Sighup, MS;
        c"Time for which every step of the canary stands before it is judged, and for which statements are measured before a move by Citus.";
    /// How much slower is too slow.
    real MAX_SLOWDOWN = c"foreshard.max_slowdown", 2.0, 0.0, 1000.0; Ctx::Sighup, NONE;
        c"How many times slower statements may be on a new copy (median, 99th percentile) before the canary steps back or a swap is undone; 0: any.";
    /// How long the old copy is kept equal after the swap, seconds.
    int ROLLBACK_WINDOW = c"foreshard.rollback_window", 300, 0, 86400; Ctx::Sighup, S;
        c"Time after a cutover in which the old copy is kept equal, so that rollback_move() can swap back at once; 0: none.";
    /// Whether a cutover waits for snapshots on replicas.
    boolean WAIT_FOR_REPLICAS = c"foreshard.wait_for_replica_snapshots", true; Ctx::Sighup, NONE;
        c"A cutover waits, a minute at most, for snapshots on replicas with hot_standby_feedback that are older than what was copied last.";
    /// Load from which on slots are split; the ranges of this and the next keep a factor of two between them.
    real SPLIT_THRESHOLD = c"foreshard.split_threshold", 0.8, 0.4, 100.0; Ctx::Sighup, NONE;
        c"Share of a mean shard's fair load from which on a slot is split (or its halves are built ahead, when that is forecast).";
    /// Load up to which halves are merged.
    real MERGE_THRESHOLD = c"foreshard.merge_threshold", 0.1, 0.0, 0.2; Ctx::Sighup, NONE;
        c"Share of a mean shard's fair load up to which both halves of a split together are merged again; 0: never under load.";
    /// Most splits that wait.
    int MAX_PREPARED_SPLITS = c"foreshard.max_prepared_splits", 4, 0, 4096; Ctx::Sighup, NONE;
        c"Splits of one database that may be built ahead and kept ready; each takes the space of its slot and a second write per changed row.";
    /// How long a prepared split waits, seconds.
    int PREPARED_SPLIT_LIFETIME = c"foreshard.prepared_split_lifetime", 86400, 1, 2592000; Ctx::Sighup, S;
        c"How long a split that was built ahead is kept ready before it is discarded.";
    /// Seconds between two health checks of a node.
    int NODE_CHECK_INTERVAL = c"foreshard.node_check_interval", 10, 0, 86400; Ctx::Sighup, S;
        c"Time between two health checks of a node, which also read its statistics; 0: none.";
    /// Failed checks in a row that make a node sick.
    int NODE_FAILURES = c"foreshard.node_failures", 3, 1, 1000; Ctx::Sighup, NONE;
        c"Failed health checks in a row after which nothing is planned onto a node, and no statement waits for it, until one succeeds.";
    /// Statements that would ask a node in vain fail at once.
    boolean FAIL_FAST = c"foreshard.fail_fast", true; Ctx::Userset, NONE;
        c"Statements that would ask a node whose health checks wait in vain fail at once (08006) instead of waiting for it.";
    /// Free space kept, percent.
    int MIN_FREE_DISK = c"foreshard.min_free_disk", 10, 0, 99; Ctx::Sighup, NONE;
        c"Per cent of the target file system that must stay free after a copy.";
    /// Work of one statement on a graph.
    int GRAPH_MAX_WORK = c"foreshard.graph_max_work", 20000000, 1000, 2000000000; Ctx::Userset, NONE;
        c"Most rows of a closure and edges that one statement may look at to keep a graph's closure; a statement that needs more fails.";
    /// Size of a closure.
    int GRAPH_MAX_ROWS = c"foreshard.graph_max_rows", 500000000, 1000, 2000000000; Ctx::Userset, NONE;
        c"Most rows that create_graph() and rebuild_graph() give a closure.";
    /// Seconds between two looks at the influence of nodes.
    int INFLUENCE_INTERVAL = c"foreshard.influence_interval", 3600, 0, 2592000; Ctx::Sighup, S;
        c"Time after which the influence of a graph's nodes is computed again if the graph changed; 0: never by itself.";
    /// Half-life of accesses to nodes, seconds.
    int GRAPH_HALF_LIFE = c"foreshard.graph_half_life", 3600, 1, 31536000; Ctx::Sighup, S;
        c"Time after which an access to a graph's nodes counts half.";
    /// Rows that a transaction of node moves rewrites.
    int GRAPH_MOVE_BATCH = c"foreshard.graph_move_batch", 20000, 1, 100000000; Ctx::Sighup, NONE;
        c"Rows of a closure after which a transaction that moves nodes ends; writers of the graph wait no longer than for one of them.";
    /// When a node moves by itself.
    real GRAPH_MOVE_THRESHOLD = c"foreshard.graph_move_threshold", 9.0, 0.0, 1e9; Ctx::Sighup, NONE;
        c"In auto mode a node moves to the least loaded shard when its accesses exceed the mean of its shard by this many times; 0: never.";
    /// Time of one question of resolve().
    int RESOLVE_TIMEOUT = c"foreshard.resolve_timeout", 5000, 10, 3600000; Ctx::Suset, MS;
        c"Time that resolve() gives a data source to answer at one place, connecting included; then it asks the replica, or takes another chain.";
    /// Rows of resolve().
    int RESOLVE_MAX_ROWS = c"foreshard.resolve_max_rows", 100000, 1, 10000000; Ctx::Userset, NONE;
        c"Most inputs of resolve(), and most rows that a step of it may give.";
    /// Length of a chain.
    int RESOLVE_MAX_STEPS = c"foreshard.resolve_max_steps", 5, 1, 8; Ctx::Userset, NONE;
        c"Most data sources that resolve() chains.";
    /// When a source is left alone.
    int RESOLVE_BREAKER_FAILURES = c"foreshard.resolve_breaker_failures", 3, 0, 1000; Ctx::Suset, NONE;
        c"Failures in a row after which resolve() leaves a data source at a place alone for a while; 0: never.";
    /// For how long.
    int RESOLVE_BREAKER_PAUSE = c"foreshard.resolve_breaker_pause", 1000, 1, 3600000; Ctx::Suset, MS;
        c"How long resolve() leaves a data source alone that failed; twice as long after every failed try, up to 32 times.";
    /// Developer option: the carrier waits on entering this phase.
    string HOLD_AT_PHASE = c"foreshard.hold_at_phase", None; Ctx::Sighup, NONE;
        c"Developer option: moves wait on entering this phase.";
}
