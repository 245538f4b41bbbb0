//! Trigger functions seen without touching their DDL: fmgr's hook lets us stand in for the function.
//!
//! `needs_fmgr_hook` sends every trigger function that is not built in through `fmgr_security_definer`,
//! which calls `fmgr_hook` before the function and, after an error, with FHET_ABORT. At the first
//! FHET_START of an FmgrInfo the function's address is replaced by [`shim`], which sees the whole call.
//! The shim calls the original directly on a frame of plain data, so that an ERROR passes unchanged.

use super::executor::{Draw, Sensor, quietly, rows_so_far, watching};
use super::glance::GLANCE;
use super::local::Local;
use super::region::{self, Dropped, segment_key};
use super::{bgworker, guc, tuple};
use foreshard_core::shared::{Claim, Profile, ProfileIdentity, Segment, SegmentCounter, Total};
use pgrx::pg_sys;

static mut PREVIOUS_NEEDS: pg_sys::needs_fmgr_hook_type = None;
static mut PREVIOUS_HOOK: pg_sys::fmgr_hook_type = None;
/// The record of the function that is about to be called.
static mut PENDING: *mut Record = std::ptr::null_mut();

mod raw {
    use pgrx::pg_sys;
    // SAFETY: the declarations are PostgreSQL's own (utils/lsyscache.h, utils/palloc.h, utils/syscache.h). What looks
    // into the catalog's cache may raise when something is not in it (a cancelled statement): callers hold plain data
    // only, so that it passes. The allocation never raises, with MCXT_ALLOC_NO_OOM and a small size.
    unsafe extern "C-unwind" {
        pub fn get_func_rettype(function: pg_sys::Oid) -> pg_sys::Oid;
        pub fn SearchSysCache1(cache: std::ffi::c_int, key: pg_sys::Datum) -> pg_sys::HeapTuple;
        pub fn ReleaseSysCache(row: pg_sys::HeapTuple);
        pub fn MemoryContextAllocExtended(
            context: pg_sys::MemoryContext,
            size: pg_sys::Size,
            flags: std::ffi::c_int,
        ) -> *mut std::ffi::c_void;
    }
}

/// A measured call, for the sensor.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The trigger's profile.
    pub profile: &'static Profile,
    /// Its key.
    pub profile_key: u64,
    /// The leaf it fired on, if it is one.
    pub segment: Option<&'static Segment>,
    /// Changes when the function is replaced.
    pub version: u64,
    /// What the call was about.
    pub features: tuple::Features,
    /// Why it is measured.
    pub draw: Draw,
    /// Rows the statement has processed, as far as known: not before a row is written.
    pub statement_rows: Option<u64>,
}

/// What we remember of an FmgrInfo; lives in its memory context.
#[repr(C)]
struct Record {
    original: pg_sys::PGFunction,
    /// What another hook keeps for this FmgrInfo.
    next_private: pg_sys::Datum,
    function: u32,
    is_trigger: bool,
    /// Where on the stack its last call began.
    address: usize,
    /// Of the function; 0: not asked for yet.
    version: u64,
    relation: u32,
    event: u32,
    places: Places,
    /// The places are those of `relation` and `event`.
    known: bool,
    /// That relation is watched, and the profile has an entry.
    watched: bool,
}

/// Where in shared memory a trigger's relation and profile stand.
#[derive(Clone, Copy, Default)]
struct Places {
    segment: usize,
    profile: usize,
    profile_key: u64,
    is_leaf: bool,
}

/// A trigger that this session called lately.
#[derive(Clone, Copy)]
struct Recent {
    trigger: u32,
    relation: u32,
    function: u32,
    event: u32,
    name: [u8; 64],
    places: Places,
}

/// `TriggerEvent` bits of calls for a row that is not written yet.
const BEFORE_ROW: u32 = 4 | 8;
const RECENT: usize = 128;
/// By the trigger's oid, which differs between partitions. Every statement comes with an FmgrInfo of its own,
/// and finding out where to count costs more than counting.
static RECENTLY: [Local<Option<Recent>>; RECENT] = [const { Local::new(None) }; RECENT];
/// (Function, whether it is a trigger function), by the function's oid.
static FUNCTIONS: [Local<(u32, bool)>; RECENT] = [const { Local::new((0, false)) }; RECENT];

/// Installs the hooks; from `_PG_init` while preloading.
pub fn register() {
    // SAFETY: single-threaded start-up of the postmaster.
    unsafe {
        PREVIOUS_NEEDS = pg_sys::needs_fmgr_hook;
        pg_sys::needs_fmgr_hook = Some(needs_hook);
        PREVIOUS_HOOK = pg_sys::fmgr_hook;
        pg_sys::fmgr_hook = Some(hook);
    }
}

/// The name of a trigger, padded with zeros.
///
/// # Safety
/// `name` must be a C string.
pub unsafe fn name_bytes(name: *const std::ffi::c_char) -> [u8; 64] {
    let mut bytes = [0; 64];
    // SAFETY: as promised by the caller.
    let name = unsafe { std::ffi::CStr::from_ptr(name) }.to_bytes();
    let length = name.len().min(bytes.len());
    bytes[..length].copy_from_slice(&name[..length]);
    bytes
}

// SAFETY: called by fmgr with the oid of an existing function.
unsafe extern "C-unwind" fn needs_hook(function: pg_sys::Oid) -> bool {
    // SAFETY: hooks chain; see raw.
    unsafe {
        if PREVIOUS_NEEDS.is_some_and(|previous| previous(function)) {
            return true;
        }
        watching().is_some() && region::get().is_some() && is_trigger(function)
    }
}

/// Whether a function is a trigger function, which no command can change.
fn is_trigger(function: pg_sys::Oid) -> bool {
    let oid = function.to_u32();
    let known = &FUNCTIONS[oid as usize % RECENT];
    if known.get().0 != oid {
        // SAFETY: see raw.
        known.set((oid, unsafe { raw::get_func_rettype(function) == pg_sys::TRIGGEROID }));
    }
    known.get().1
}

// SAFETY: called by fmgr_security_definer with the FmgrInfo it owns and a word kept with it.
unsafe extern "C-unwind" fn hook(
    event: pg_sys::FmgrHookEventType::Type,
    info: *mut pg_sys::FmgrInfo,
    private: *mut pg_sys::Datum,
) {
    // SAFETY: as above; the private word is null or the record made below.
    unsafe {
        let mut record = (*private).cast_mut_ptr::<Record>();
        if record.is_null() && event == pg_sys::FmgrHookEventType::FHET_START {
            record = remember(info);
            *private = pg_sys::Datum::from(record);
        }
        if record.is_null() {
            return;
        }
        if let Some(previous) = PREVIOUS_HOOK {
            previous(event, info, &raw mut (*record).next_private);
        }
        if !(*record).is_trigger {
            return;
        }
        match event {
            pg_sys::FmgrHookEventType::FHET_START => PENDING = record,
            pg_sys::FmgrHookEventType::FHET_ABORT => aborted(record),
            _ => {}
        }
    }
}

/// The record of a function that is called for the first time through this FmgrInfo; null when memory is
/// short.
///
/// # Safety
/// `info` must be the FmgrInfo of fmgr_security_definer.
unsafe fn remember(info: *mut pg_sys::FmgrInfo) -> *mut Record {
    // SAFETY: the record lives as long as the FmgrInfo, in the same context; no error for lack of memory.
    unsafe {
        let flags = (pg_sys::MCXT_ALLOC_NO_OOM | pg_sys::MCXT_ALLOC_ZERO) as i32;
        let record =
            raw::MemoryContextAllocExtended((*info).fn_mcxt, size_of::<Record>(), flags).cast::<Record>();
        if record.is_null() {
            return record;
        }
        (*record).function = (*info).fn_oid.to_u32();
        (*record).is_trigger = region::get().is_some() && is_trigger((*info).fn_oid);
        if (*record).is_trigger {
            (*record).original = (*info).fn_addr;
            (*info).fn_addr = Some(shim);
        }
        record
    }
}

/// Which definition of the function is in force: the transaction that wrote its catalog row. May raise: not to be
/// called where errors are caught.
#[cold]
#[inline(never)]
fn version(function: pg_sys::Oid) -> u64 {
    // SAFETY: a look-up in the catalog cache; the tuple is released.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::PROCOID as i32;
        let row = raw::SearchSysCache1(cache, pg_sys::Datum::from(function));
        if row.is_null() {
            return 0;
        }
        let header = &*(*row).t_data;
        // Not what the row says of its place: that of a newer version, even of one that was rolled back.
        let place = &(*row).t_self;
        let block = u64::from(place.ip_blkid.bi_hi) << 16 | u64::from(place.ip_blkid.bi_lo);
        let version = u64::from(header.t_choice.t_heap.t_xmin.into_inner()) << 32
            ^ block << 16
            ^ u64::from(place.ip_posid);
        raw::ReleaseSysCache(row);
        version
    }
}

/// A call as the shim sees it; plain data.
#[derive(Clone, Copy)]
struct Call {
    /// It has a frame of its own among the measured pieces.
    framed: bool,
    measured: Option<Measured>,
}

/// In place of the trigger function.
// SAFETY: called by fmgr_security_definer right after FHET_START.
unsafe extern "C-unwind" fn shim(call: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let frame = 0_u8;
    let address = &raw const frame as usize;
    // SAFETY: PENDING was set by FHET_START of this very call.
    unsafe {
        let record = PENDING;
        let begun = begin(record, call, address);
        let result = match (*record).original {
            Some(original) => original(call),
            None => pg_sys::Datum::from(0usize),
        };
        if begun.framed {
            ended(address, &begun);
        }
        result
    }
}

#[cold]
#[inline(never)]
fn ended(address: usize, call: &Call) {
    if let Some(sensor) = watching() {
        quietly(sensor, || (sensor.trigger_ends)(address, call.measured.as_ref()));
    }
}

/// Counts a call and says whether it is measured.
///
/// # Safety
/// `record` must be that of the call.
unsafe fn begin(record: *mut Record, call: pg_sys::FunctionCallInfo, address: usize) -> Call {
    let unmeasured = Call { framed: false, measured: None };
    let (Some(sensor), Some(region)) = (watching(), region::get()) else { return unmeasured };
    // SAFETY: as promised by the caller; the context of a call as trigger is its TriggerData.
    unsafe {
        let data = (*call).context.cast::<pg_sys::TriggerData>();
        if data.is_null() || (*data).type_ != pg_sys::NodeTag::T_TriggerData {
            return unmeasured;
        }
        let record = &mut *record;
        record.address = address;
        let relation = (*(*data).tg_relation).rd_id.to_u32();
        let event = (*data).tg_event & 0x1f;
        if !record.known || record.relation != relation || record.event != event || !still(record, region) {
            quietly(sensor, || look_up(record, region, relation, event, data));
        }
        let before = if record.watched { count(record, region) } else { u64::MAX };
        if passes(sensor, before) {
            return unmeasured;
        }
        let Some(draw) = (sensor.wants_trigger)(before) else { return unmeasured };
        if record.version == 0 {
            record.version = version(record.function.into());
        }
        quietly(sensor, || measured(record, (sensor, region), draw, data, address)).unwrap_or(unmeasured)
    }
}

/// Counts down to the next measured call; false: the sensor has to say.
#[inline]
fn passes(sensor: &Sensor, before: u64) -> bool {
    if GLANCE.in_frame.get() || before < sensor.first_calls {
        return false;
    }
    // Not watched: u64::MAX.
    before == u64::MAX || GLANCE.passes(&GLANCE.trigger_gap, guc::now(&guc::TRIGGER_SAMPLE_INTERVAL))
}

/// Begins a measured call. Its frame is not touched by the calls that pass.
///
/// # Safety
/// As for [`begin`]; `data` is the TriggerData of the call.
#[cold]
#[inline(never)]
unsafe fn measured(
    record: &mut Record,
    (sensor, region): (&Sensor, &'static region::Region),
    draw: Draw,
    data: *const pg_sys::TriggerData,
    address: usize,
) -> Call {
    let since_ns = super::usage::elapsed_ns();
    let places = &record.places;
    let measured = record.watched.then(|| Measured {
        profile: &region.profiles[places.profile],
        profile_key: places.profile_key,
        segment: places.is_leaf.then(|| &region.segments[places.segment]),
        version: record.version,
        // SAFETY: as promised by the caller.
        features: unsafe { tuple::features(data) },
        draw,
        // Rows that a statement is only about to write are not counted yet.
        statement_rows: if record.event & BEFORE_ROW == BEFORE_ROW { None } else { rows_so_far(address) },
    });
    let framed = (sensor.trigger_starts)((record.function, record.watched), draw.weight, address, since_ns);
    Call { framed, measured: measured.filter(|_| framed) }
}

/// Counts a call of a watched trigger; how many calls of it were measured before.
fn count(record: &Record, region: &'static region::Region) -> u64 {
    let profile = &region.profiles[record.places.profile];
    profile.add(Total::Calls, 1);
    if record.places.is_leaf {
        region.segments[record.places.segment].add(SegmentCounter::TriggerCalls, 1);
    }
    profile.total(Total::Sampled)
}

fn still(record: &Record, region: &region::Region) -> bool {
    // Whether it has become watched since is asked at the next statement.
    !record.watched || record.places.are_of(record.relation, region)
}

impl Places {
    /// Whether they still are the relation's and the trigger's.
    fn are_of(&self, relation: u32, region: &region::Region) -> bool {
        region.segment_keys().is_at(self.segment, segment_key(bgworker::database(), relation))
            && region.profile_keys().is_at(self.profile, self.profile_key)
    }
}

/// Finds the entries of a relation and of the trigger's profile.
///
/// # Safety
/// `data` must be the TriggerData of the call.
unsafe fn look_up(
    record: &mut Record,
    region: &'static region::Region,
    relation: u32,
    event: u32,
    data: *const pg_sys::TriggerData,
) {
    (record.known, record.watched) = (true, false);
    (record.relation, record.event) = (relation, event);
    // SAFETY: as promised by the caller.
    let (trigger, name) = unsafe {
        let trigger = (*data).tg_trigger;
        ((*trigger).tgoid.to_u32(), name_bytes((*trigger).tgname))
    };
    let recent = &RECENTLY[trigger as usize % RECENT];
    let known = recent.get().filter(|r| {
        (r.trigger, r.relation, r.function, r.event) == (trigger, relation, record.function, event)
            && r.name == name
            && r.places.are_of(relation, region)
    });
    let places = match known {
        Some(known) => known.places,
        None => {
            let Some(places) = find_places(record.function, region, relation, event, &name) else { return };
            recent.set(Some(Recent { trigger, relation, function: record.function, event, name, places }));
            places
        }
    };
    record.watched = region.segments[places.segment].activity().observed;
    record.places = places;
}

/// The places of an observed relation and of the profile of a trigger on it.
fn find_places(
    function: u32,
    region: &'static region::Region,
    relation: u32,
    event: u32,
    name: &[u8; 64],
) -> Option<Places> {
    let database = bgworker::database();
    let place = region.segment_keys().find(segment_key(database, relation))?;
    let segment = &region.segments[place];
    let activity = segment.activity();
    if !activity.observed {
        return None;
    }
    let identity = ProfileIdentity {
        database,
        table: segment.table.load(std::sync::atomic::Ordering::Relaxed) as u32,
        function,
        event,
        name: ProfileIdentity::name_words(name),
    };
    let (profile, profile_key) = enter_profile(region, &identity)?;
    Some(Places { segment: place, profile, profile_key, is_leaf: activity.leaf })
}

/// The place and key of a trigger's profile, made if there is room.
pub fn enter_profile(region: &region::Region, identity: &ProfileIdentity) -> Option<(usize, u64)> {
    let key = identity.key();
    match region.profile_keys().claim(key) {
        Claim::Found(place) => Some((place, key)),
        Claim::Entered(place) => {
            region.profiles[place].enter(identity);
            Some((place, key))
        }
        Claim::Full => {
            region.drop_one(Dropped::Profile);
            None
        }
    }
}

/// A call ended in an error, which the shim did not see.
///
/// # Safety
/// `record` must be that of the call.
unsafe fn aborted(record: *mut Record) {
    // SAFETY: as promised by the caller.
    let record = unsafe { &*record };
    if let Some(region) = region::get()
        && record.watched
        && still(record, region)
    {
        region.profiles[record.places.profile].add(Total::Failed, 1);
    }
    if let Some(sensor) = watching() {
        quietly(sensor, || (sensor.trigger_fails)(record.address));
    }
}
