//! The capture trigger: AFTER ROW, internal, ENABLE ALWAYS. It writes the identity key of every
//! changed row to the move's log, in the user's own transaction and without permission checks, and
//! does nothing else: no SPI, no user code. As a mirror it hands the key to `pg::mirror` instead.

use super::mirror::{self, Target};
use pgrx::pg_sys;
use pgrx::prelude::*;

/// Version-1 record of [`foreshard_capture`].
#[unsafe(no_mangle)]
#[doc(hidden)]
pub extern "C" fn pg_finfo_foreshard_capture() -> &'static pg_sys::Pg_finfo_record {
    const V1: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
    &V1
}

const OP_MASK: u32 = 3;
const OP_INSERT: u32 = 0;
const OP_UPDATE: u32 = 2;

/// `tgargs`: the oids of log, shadow, identity index and the shadow's identity index (the last three 0
/// while changes are only logged, the very last also for a partitioned shadow), then the key's attribute numbers in the order of the log's columns.
///
/// # Safety
/// Called by PostgreSQL's function manager only; anything but a row trigger is refused with 39P01.
#[unsafe(no_mangle)]
#[pg_guard]
// SAFETY: see above.
pub unsafe extern "C-unwind" fn foreshard_capture(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: when the context node is TriggerData, PostgreSQL filled it for this call; tuples and
    // relation live until we return.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "foreshard.capture() can only be called as a trigger"
            );
        }
        let data = context.cast::<pg_sys::TriggerData>();
        let trigger = (*data).tg_trigger;
        let count = (*trigger).tgnargs.max(0) as usize;
        let args: Vec<u32> = (0..count)
            .filter_map(|i| std::ffi::CStr::from_ptr(*(*trigger).tgargs.add(i)).to_str().ok()?.parse().ok())
            .collect();
        let Some((&[log_oid, shadow, source_index, shadow_index], key)) = args.split_first_chunk::<4>()
        else {
            return pg_sys::Datum::from(0usize);
        };
        // A log that is gone means that the move is gone; the user's statement must not suffer.
        let log = pg_sys::try_relation_open(pg_sys::Oid::from(log_oid), pg_sys::RowExclusiveLock as i32);
        if log.is_null() {
            return pg_sys::Datum::from(0usize);
        }
        let source = (*data).tg_relation;
        if !(*trigger).tgisinternal || !is_log_of(log, (*source).rd_id) {
            ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED,
                "foreshard.capture() can only be called by a trigger that a move installed"
            );
        }
        let descriptor = (*source).rd_att;
        let operation = (*data).tg_event & OP_MASK;
        let old = (operation != OP_INSERT).then_some((*data).tg_trigtuple);
        let new = match operation {
            OP_INSERT => Some((*data).tg_trigtuple),
            OP_UPDATE => Some((*data).tg_newtuple),
            _ => None,
        };
        let same = match (old, new) {
            (Some(a), Some(b)) => same_key(a, b, key, descriptor),
            _ => false,
        };
        let target = (shadow > 0).then(|| Target {
            source: (*source).rd_id,
            log: (*log).rd_id,
            shadow: pg_sys::Oid::from(shadow),
            source_index: pg_sys::Oid::from(source_index),
            shadow_index: pg_sys::Oid::from(shadow_index),
        });
        for tuple in [old, new.filter(|_| !same)].into_iter().flatten() {
            record(log, target, tuple, key, descriptor);
        }
        // The lock stays to the end of the transaction: whoever empties the log must not miss us.
        pg_sys::relation_close(log, pg_sys::NoLock as i32);
        pg_sys::Datum::from(0usize)
    }
}

/// Whether `log` is a heap that a move made for `source`: relrewrite names the source, and only our
/// carriers can set it.
///
/// # Safety
/// `log` must be open.
unsafe fn is_log_of(log: pg_sys::Relation, source: pg_sys::Oid) -> bool {
    // SAFETY: as promised by the caller.
    unsafe {
        let row = &*(*log).rd_rel;
        row.relkind as u8 == pg_sys::RELKIND_RELATION
            && row.relam == pg_sys::HEAP_TABLE_AM_OID
            && row.relrewrite == source
    }
}

/// # Safety
/// `tuple` must have the shape of `descriptor`.
unsafe fn value(
    tuple: pg_sys::HeapTuple,
    attnum: u32,
    descriptor: pg_sys::TupleDesc,
) -> Option<pg_sys::Datum> {
    let number = std::num::NonZeroUsize::new(attnum as usize)?;
    // SAFETY: as promised by the caller.
    unsafe { pgrx::htup::heap_getattr_raw(tuple, number, descriptor) }
}

/// Whether both tuples have bitwise equal keys.
///
/// # Safety
/// Both tuples must have the shape of `descriptor`.
unsafe fn same_key(
    a: pg_sys::HeapTuple,
    b: pg_sys::HeapTuple,
    key: &[u32],
    descriptor: pg_sys::TupleDesc,
) -> bool {
    key.iter().all(|attnum| {
        // SAFETY: as promised by the caller; attnum came from the index definition.
        unsafe {
            let attribute = super::compat::attribute(descriptor, (*attnum as usize).saturating_sub(1));
            match (value(a, *attnum, descriptor), value(b, *attnum, descriptor)) {
                (Some(x), Some(y)) => {
                    super::compat::datum_is_equal(x, y, (*attribute).attbyval, (*attribute).attlen as i32)
                }
                (None, None) => true,
                _ => false,
            }
        }
    })
}

/// Remembers a key for the mirror, or appends it to the log.
///
/// # Safety
/// `log` must be open with ROW EXCLUSIVE and have one column per key column.
unsafe fn record(
    log: pg_sys::Relation,
    target: Option<Target>,
    tuple: pg_sys::HeapTuple,
    key: &[u32],
    descriptor: pg_sys::TupleDesc,
) {
    // SAFETY: as promised by the caller; each value is stored in a column of its own type; the formed
    // tuple is freed after the insert copied it.
    unsafe {
        let fits = (*(*log).rd_att).natts.max(0) as usize == key.len()
            && key.iter().enumerate().all(|(i, attnum)| {
                let from = super::compat::attribute(descriptor, (*attnum as usize).saturating_sub(1));
                (*super::compat::attribute((*log).rd_att, i)).atttypid == (*from).atttypid
            });
        // Somebody altered the log. The move sees that by its fingerprint; the user's statement goes on.
        if !fits {
            return;
        }
        let mut values: Vec<pg_sys::Datum> = Vec::with_capacity(key.len());
        let mut nulls: Vec<bool> = Vec::with_capacity(key.len());
        for attnum in key {
            let datum = value(tuple, *attnum, descriptor);
            nulls.push(datum.is_none());
            let attribute = super::compat::attribute(descriptor, (*attnum as usize).saturating_sub(1));
            values.push(match datum {
                // What is remembered must not depend on a row that may be gone when it is looked at.
                Some(datum) if (*attribute).attlen == -1 => fetched(datum),
                Some(datum) => datum,
                None => pg_sys::Datum::from(0usize),
            });
        }
        let key = pg_sys::heap_form_tuple((*log).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        let bytes = std::slice::from_raw_parts((*key).t_data.cast::<u8>(), (*key).t_len as usize);
        if !target.is_some_and(|target| mirror::remember(target, bytes)) {
            pg_sys::simple_heap_insert(log, key);
        }
        pg_sys::heap_freetuple(key);
    }
}

/// A value without a pointer into a toast table.
///
/// # Safety
/// `value` must be a varlena.
unsafe fn fetched(value: pg_sys::Datum) -> pg_sys::Datum {
    // SAFETY: as promised by the caller.
    unsafe {
        let pointer = value.cast_mut_ptr::<pg_sys::varlena>();
        if pgrx::varlena::varatt_is_1b_e(pointer) {
            return pg_sys::Datum::from(pg_sys::detoast_external_attr(pointer));
        }
        value
    }
}
