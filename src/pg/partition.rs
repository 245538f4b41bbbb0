//! Where PostgreSQL puts a key: the hash partition that tuple routing itself would choose.

use super::compat;
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

/// Converts a value to a base type: as it is, or through its text form.
fn coerce(datum: pg_sys::Datum, from: pg_sys::Oid, to: pg_sys::Oid, typmod: i32) -> pg_sys::Datum {
    // SAFETY: the datum is of type `from`; I/O functions raise on text they cannot read.
    unsafe {
        if from == to || pg_sys::getBaseType(from) == to {
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

/// The partitioning of a table by the hash of one column, as it was when it was read: keys in, partitions
/// out, without a look at the catalog.
pub struct Router {
    function: pg_sys::FmgrInfo,
    collation: pg_sys::Oid,
    /// The key's type below all domains: their checks are the owner's code and no business of a look-up.
    key_type: pg_sys::Oid,
    typmod: i32,
    attribute: i16,
    /// Partition number by remainder, -1 for none.
    places: Vec<i32>,
    partitions: Vec<pg_sys::Oid>,
}

/// How long a [`Router`] is meant to live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lifetime {
    /// No longer than the statement.
    Statement,
    /// As long as the session.
    Session,
}

impl Router {
    /// Reads the partitioning of `table`.
    ///
    /// # Errors
    /// 22023 for a table that is not partitioned, 0A000 for other than one-column hash partitioning.
    pub fn of(table: pg_sys::Oid, lifetime: Lifetime) -> PgResult<Router> {
        let hash = hash_key(table)?;
        let mut typmod = typmod_of(table, hash.attribute);
        // SAFETY: catalog look-ups by oid; the memory context outlives the router by the caller's word.
        let (function, key_type) = unsafe {
            let attribute = pg_sys::get_atttype(table, hash.attribute);
            let family = pg_sys::get_opclass_family(hash.opclass);
            let input = pg_sys::get_opclass_input_type(hash.opclass);
            let support = pg_sys::get_opfamily_proc(family, input, input, HASH_EXTENDED);
            let mut function = pg_sys::FmgrInfo::default();
            let memory = match lifetime {
                Lifetime::Statement => pg_sys::CurrentMemoryContext,
                Lifetime::Session => pg_sys::TopMemoryContext,
            };
            pg_sys::fmgr_info_cxt(support, &mut function, memory);
            (function, pg_sys::getBaseTypeAndTypmod(attribute, &mut typmod))
        };
        let (places, partitions) = partitions_of(table);
        let HashKey { attribute, collation, .. } = hash;
        Ok(Router { function, collation, key_type, typmod, attribute, places, partitions })
    }

    /// The key's type; of a domain the base type.
    pub fn key_type(&self) -> pg_sys::Oid {
        self.key_type
    }

    /// The key's attribute number in the partitioned table.
    pub fn key_attribute(&self) -> i16 {
        self.attribute
    }

    /// The partitions by number.
    pub fn partitions(&self) -> &[pg_sys::Oid] {
        &self.partitions
    }

    /// The partition a number stands for.
    pub fn partition(&self, number: usize) -> pg_sys::Oid {
        self.partitions.get(number).copied().unwrap_or(pg_sys::InvalidOid)
    }

    fn number_of(&self, hash: u64) -> Option<usize> {
        let remainder = hash.checked_rem(self.places.len() as u64)?;
        usize::try_from(self.places[remainder as usize]).ok()
    }

    /// The number of the partition that holds `key`, a value of any type whose text form the key's type
    /// reads. None: no partition does.
    pub fn locate(&mut self, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> Option<usize> {
        self.place(key).0
    }

    /// The same with the hash by which the key is partitioned.
    pub fn place(&mut self, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> (Option<usize>, u64) {
        let Some((datum, from)) = key else {
            // A NULL key hashes to 0.
            return (self.number_of(0), 0);
        };
        let value = coerce(datum, from, self.key_type, self.typmod);
        let mut hash = [0];
        // SAFETY: the function belongs to the key's own operator class and gets a value of its type.
        unsafe { compat::partition_hashes(&mut self.function, self.collation, &[value], &mut hash) };
        (self.number_of(hash[0]), hash[0])
    }

    /// As [`Router::locate`].
    pub fn locate_bigint(&mut self, key: i64) -> Option<usize> {
        self.locate(Some((pg_sys::Datum::from(key), pg_sys::INT8OID)))
    }

    /// As [`Router::locate`].
    pub fn locate_uuid(&mut self, key: &[u8; 16]) -> Option<usize> {
        self.locate(Some((pg_sys::Datum::from(key.as_ptr()), pg_sys::UUIDOID)))
    }

    /// The partition numbers of many keys; only for a key of type bigint.
    pub fn locate_bigints<const N: usize>(&mut self, keys: &[i64; N]) -> [Option<usize>; N] {
        self.locate_many(pg_sys::INT8OID, &keys.map(pg_sys::Datum::from))
    }

    /// The partition numbers of many keys; only for a key of type uuid.
    pub fn locate_uuids<const N: usize>(&mut self, keys: &[[u8; 16]; N]) -> [Option<usize>; N] {
        self.locate_many(pg_sys::UUIDOID, &std::array::from_fn(|i| pg_sys::Datum::from(keys[i].as_ptr())))
    }

    fn locate_many<const N: usize>(
        &mut self,
        from: pg_sys::Oid,
        values: &[pg_sys::Datum; N],
    ) -> [Option<usize>; N] {
        let mut hashes = [0; N];
        if self.key_type != from {
            return [None; N];
        }
        // SAFETY: the function belongs to the operator class of the key's type, which is the values'.
        unsafe { compat::partition_hashes(&mut self.function, self.collation, values, &mut hashes) };
        hashes.map(|hash| self.number_of(hash))
    }
}

/// (Partition number by remainder, partitions by number) of a hash-partitioned table.
fn partitions_of(table: pg_sys::Oid) -> (Vec<i32>, Vec<pg_sys::Oid>) {
    // SAFETY: the relation stays locked and open while its partition descriptor is copied; the arrays have
    // the lengths that stand beside them.
    unsafe {
        let relation = pg_sys::table_open(table, ACCESS_SHARE);
        let descriptor = pg_sys::RelationGetPartitionDesc(relation, true);
        let bounds = (*descriptor).boundinfo;
        let mut read = (Vec::new(), Vec::new());
        if !bounds.is_null() && (*bounds).nindexes > 0 && (*descriptor).nparts > 0 {
            let remainders = (*bounds).nindexes as usize;
            read.0 = std::slice::from_raw_parts((*bounds).indexes, remainders).to_vec();
            read.1 = std::slice::from_raw_parts((*descriptor).oids, (*descriptor).nparts as usize).to_vec();
        }
        pg_sys::table_close(relation, ACCESS_SHARE);
        read
    }
}

/// The leaf partition that holds `key` (None: the NULL key), equal to where PostgreSQL routes the row.
/// The key may have any type whose text form the key column's type reads.
///
/// # Errors
/// 22023 for a table that is not partitioned, 0A000 for other than one-column hash partitioning,
/// 55000 when no partition accepts the key.
pub fn locate(table: pg_sys::Oid, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> PgResult<pg_sys::Oid> {
    let mut router = Router::of(table, Lifetime::Statement)?;
    match router.locate(key) {
        Some(number) => Ok(router.partition(number)),
        None => Err(error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no partition accepts this key",
        )),
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

/// Whether a type is bigint or a domain over it.
pub fn is_bigint(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-up by oid.
    unsafe { pg_sys::getBaseType(type_oid) == pg_sys::INT8OID }
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
