//! Where PostgreSQL puts a key: the hash partition that tuple routing itself would choose.

use super::lock::ACCESS_SHARE;
use super::report::{PgResult, bad_argument, error, internal, unsupported};
use pgrx::pg_sys;
use pgrx::prelude::*;

const PARTSTRAT: i16 = 2;
const PARTATTRS: i16 = 5;
const PARTCLASS: i16 = 6;
const PARTCOLLATION: i16 = 7;
/// Support function 2 of a hash operator class: the extended (seeded) hash.
const HASH_EXTENDED: i16 = 2;

struct HashKey {
    attribute: i16,
    opclass: pg_sys::Oid,
    collation: pg_sys::Oid,
}

/// Reads the single-column hash partition key of a table from pg_partitioned_table.
fn hash_key(table: pg_sys::Oid) -> PgResult<HashKey> {
    // SAFETY: syscache look-ups by oid; vectors hold partnatts >= 1 elements, read before release.
    unsafe {
        let cache = pg_sys::SysCacheIdentifier::PARTRELID as i32;
        let tuple = pg_sys::SearchSysCache1(cache, pg_sys::Datum::from(table));
        if tuple.is_null() {
            return Err(bad_argument("table is not partitioned")
                .set_hint("Distribute it first: SELECT foreshard.distribute(...)."));
        }
        let mut isnull = false;
        let strategy = pg_sys::SysCacheGetAttr(cache, tuple, PARTSTRAT, &mut isnull).value() as u8;
        let attrs = pg_sys::SysCacheGetAttr(cache, tuple, PARTATTRS, &mut isnull);
        let classes = pg_sys::SysCacheGetAttr(cache, tuple, PARTCLASS, &mut isnull);
        let collations = pg_sys::SysCacheGetAttr(cache, tuple, PARTCOLLATION, &mut isnull);
        let attrs = attrs.cast_mut_ptr::<pg_sys::int2vector>();
        let classes = classes.cast_mut_ptr::<pg_sys::oidvector>();
        let collations = collations.cast_mut_ptr::<pg_sys::oidvector>();
        let single = strategy == b'h' && (*attrs).dim1 == 1;
        let key = HashKey {
            attribute: *(*attrs).values.as_ptr(),
            opclass: *(*classes).values.as_ptr(),
            collation: *(*collations).values.as_ptr(),
        };
        pg_sys::ReleaseSysCache(tuple);
        if !single || key.attribute == 0 {
            return Err(unsupported("only tables partitioned by the hash of one column are supported"));
        }
        Ok(key)
    }
}

/// Converts a value to the key column's type: as it is, or through its text form.
fn coerce(datum: pg_sys::Datum, from: pg_sys::Oid, to: pg_sys::Oid, typmod: i32) -> pg_sys::Datum {
    // SAFETY: the datum is of type `from`; I/O functions raise on text they cannot read.
    unsafe {
        if from == to || pg_sys::getBaseType(to) == from {
            return datum;
        }
        let text = if from == pg_sys::UNKNOWNOID {
            datum.cast_mut_ptr::<std::ffi::c_char>()
        } else {
            let (mut out, mut varlena) = (pg_sys::InvalidOid, false);
            pg_sys::getTypeOutputInfo(from, &mut out, &mut varlena);
            pg_sys::OidOutputFunctionCall(out, datum)
        };
        let (mut input, mut ioparam) = (pg_sys::InvalidOid, pg_sys::InvalidOid);
        pg_sys::getTypeInputInfo(to, &mut input, &mut ioparam);
        pg_sys::OidInputFunctionCall(input, text, ioparam, typmod)
    }
}

/// The leaf partition that holds `key` (None: the NULL key), equal to where PostgreSQL routes the row.
/// The key may have any type whose text form the key column's type reads.
///
/// # Errors
/// 22023 for a table that is not partitioned, 0A000 for other than one-column hash partitioning,
/// 55000 when no partition accepts the key.
pub fn locate(table: pg_sys::Oid, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> PgResult<pg_sys::Oid> {
    let hash = hash_key(table)?;
    // SAFETY: the relation stays locked and open while its partition descriptor is read; the support
    // function belongs to the key's own operator class and gets a value of its input type.
    unsafe {
        let relation = pg_sys::table_open(table, ACCESS_SHARE);
        let attribute = pg_sys::get_atttype(table, hash.attribute);
        let typmod = typmod_of(table, hash.attribute);
        let family = pg_sys::get_opclass_family(hash.opclass);
        let input = pg_sys::get_opclass_input_type(hash.opclass);
        let support = pg_sys::get_opfamily_proc(family, input, input, HASH_EXTENDED);
        let mut function = pg_sys::FmgrInfo::default();
        pg_sys::fmgr_info(support, &mut function);
        let mut isnull = key.is_none();
        let mut value = match key {
            Some((datum, from)) => coerce(datum, from, attribute, typmod),
            None => pg_sys::Datum::from(0usize),
        };
        let mut collation = hash.collation;
        let row_hash =
            pg_sys::compute_partition_hash_value(1, &mut function, &mut collation, &mut value, &mut isnull);
        let partitions = pg_sys::RelationGetPartitionDesc(relation, true);
        let bounds = (*partitions).boundinfo;
        let mut leaf = pg_sys::InvalidOid;
        if !bounds.is_null() && (*bounds).nindexes > 0 {
            let index = *(*bounds).indexes.add((row_hash % (*bounds).nindexes as u64) as usize);
            if index >= 0 && index < (*partitions).nparts {
                leaf = *(*partitions).oids.add(index as usize);
            }
        }
        pg_sys::table_close(relation, ACCESS_SHARE);
        if leaf == pg_sys::InvalidOid {
            return Err(error(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no partition accepts this key",
            ));
        }
        Ok(leaf)
    }
}

/// Whether the default hash operator class of a type can drive hash partitioning.
pub fn is_hashable(type_oid: pg_sys::Oid) -> PgResult<bool> {
    // SAFETY: catalog look-ups by oid.
    unsafe {
        let opclass = pg_sys::GetDefaultOpClass(type_oid, hash_am()?);
        if opclass == pg_sys::InvalidOid {
            return Ok(false);
        }
        let input = pg_sys::get_opclass_input_type(opclass);
        let support =
            pg_sys::get_opfamily_proc(pg_sys::get_opclass_family(opclass), input, input, HASH_EXTENDED);
        Ok(support != pg_sys::InvalidOid)
    }
}

fn hash_am() -> PgResult<pg_sys::Oid> {
    // SAFETY: "hash" is a built-in access method; missing_ok avoids an ERROR.
    let am = unsafe { pg_sys::get_index_am_oid(c"hash".as_ptr(), true) };
    if am == pg_sys::InvalidOid { Err(internal("no hash access method")) } else { Ok(am) }
}

/// The type modifier of a column.
fn typmod_of(table: pg_sys::Oid, attribute: i16) -> i32 {
    let (mut type_oid, mut typmod, mut collation) = (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
    // SAFETY: catalog look-up; raises for a column that does not exist.
    unsafe { pg_sys::get_atttypetypmodcoll(table, attribute, &mut type_oid, &mut typmod, &mut collation) };
    typmod
}
