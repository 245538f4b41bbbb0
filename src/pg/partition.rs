//! Where PostgreSQL puts a key: the partition that tuple routing itself would choose. Below the hash partitions
//! of a managed table there may be lists of chosen keys.

mod asked;
mod bound;
pub mod direct;
pub(in crate::pg) mod fixed;
mod list;

pub use self::bound::{MAX_LIST_BYTES, list_bytes};
use self::list::Lists;
use super::compat;
use super::lock::ACCESS_SHARE;
use super::report::{PgResult, bad_argument, error, internal, unsupported};
use super::security;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use std::collections::HashMap;

const PARTSTRAT: i16 = 2;
const PARTATTRS: i16 = 5;
const PARTCLASS: i16 = 6;
const PARTCOLLATION: i16 = 7;
/// Support function 2 of a hash operator class: the extended (seeded) hash.
const HASH_EXTENDED: i16 = 2;
/// Support function 1 of a btree operator class: the comparison.
const BTREE_ORDER: i16 = 1;

struct PartitionKey {
    strategy: u8,
    attribute: i16,
    opclass: pg_sys::Oid,
    collation: pg_sys::Oid,
}

/// Reads the single-column partition key of a table from pg_partitioned_table.
fn partition_key(table: pg_sys::Oid) -> PgResult<PartitionKey> {
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
        let single = matches!(strategy, b'h' | b'l') && (*attrs).dim1 == 1;
        let key = PartitionKey {
            strategy,
            attribute: *(*attrs).values.as_ptr(),
            opclass: *(*classes).values.as_ptr(),
            collation: *(*collations).values.as_ptr(),
        };
        pg_sys::ReleaseSysCache(tuple);
        if !single || key.attribute == 0 {
            return Err(not_hashed());
        }
        Ok(key)
    }
}

fn not_hashed() -> ErrorReport {
    unsupported("only tables partitioned by the hash of one column are supported")
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

enum Finder {
    /// Partition number by remainder, -1 for none.
    Hash(Vec<i32>),
    List(Lists),
}

/// The partitioning of a table by one column, as it was when it was read: keys in, partitions out, without a
/// look at the catalog.
pub struct Router {
    function: pg_sys::FmgrInfo,
    collation: pg_sys::Oid,
    /// The key's type below all domains: their checks are the owner's code and no business of a look-up.
    key_type: pg_sys::Oid,
    typmod: i32,
    attribute: i16,
    finder: Finder,
    partitions: Vec<pg_sys::Oid>,
    /// Of partitions that are partitioned themselves, as they are needed; None: it is a leaf.
    below: HashMap<u32, Option<Box<Router>>>,
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
        let router = Self::of_any(table, lifetime)?;
        if matches!(router.finder, Finder::Hash(_)) { Ok(router) } else { Err(not_hashed()) }
    }

    /// As [`Router::of`], for lists as well.
    pub fn of_any(table: pg_sys::Oid, lifetime: Lifetime) -> PgResult<Router> {
        let PartitionKey { strategy, attribute, opclass, collation } = partition_key(table)?;
        let hashes = strategy == b'h';
        let mut typmod = typmod_of(table, attribute);
        // SAFETY: catalog look-ups by oid; the memory context outlives the router by the caller's word.
        let (memory, function, key_type) = unsafe {
            let column = pg_sys::get_atttype(table, attribute);
            let family = pg_sys::get_opclass_family(opclass);
            let input = pg_sys::get_opclass_input_type(opclass);
            let number = if hashes { HASH_EXTENDED } else { BTREE_ORDER };
            let support = pg_sys::get_opfamily_proc(family, input, input, number);
            let mut function = pg_sys::FmgrInfo::default();
            let memory = match lifetime {
                Lifetime::Statement => pg_sys::CurrentMemoryContext,
                Lifetime::Session => pg_sys::TopMemoryContext,
            };
            pg_sys::fmgr_info_cxt(support, &mut function, memory);
            (memory, function, pg_sys::getBaseTypeAndTypmod(column, &mut typmod))
        };
        let (finder, partitions) = if hashes {
            let (places, partitions) = partitions_of(table);
            (Finder::Hash(places), partitions)
        } else {
            // SAFETY: the table is partitioned by list of one column of this type.
            let (lists, partitions) = unsafe { Lists::read(table, key_type, memory) };
            (Finder::List(lists), partitions)
        };
        let below = HashMap::new();
        Ok(Router { function, collation, key_type, typmod, attribute, finder, partitions, below })
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
        let Finder::Hash(places) = &self.finder else { return None };
        let remainder = hash.checked_rem(places.len() as u64)?;
        usize::try_from(*places.get(remainder as usize)?).ok()
    }

    /// A value of any type as one of the key's.
    pub fn value(&self, (datum, from): (pg_sys::Datum, pg_sys::Oid)) -> pg_sys::Datum {
        coerce(datum, from, self.key_type, self.typmod)
    }

    /// The text form of a value of the key's type.
    pub fn text(&self, value: pg_sys::Datum) -> PgResult<String> {
        list::text(self.key_type, value)
    }

    /// The bytes of a value of the key's type, as the bound of a partition stores them.
    pub fn stored(&self, value: pg_sys::Datum) -> Vec<u8> {
        // SAFETY: the value is of the key's type.
        unsafe { bound::stored(self.key_type, value) }
    }

    /// The keys of every partition as text, by number; None for the DEFAULT one, and for all of a hash.
    pub fn lists(&self) -> PgResult<Vec<Option<Vec<String>>>> {
        match &self.finder {
            Finder::Hash(_) => Ok(vec![None; self.partitions.len()]),
            Finder::List(lists) => lists.texts(self.key_type, self.partitions.len()),
        }
    }

    /// The number of the partition that lists a value of the key's type, as that type compares, and the text form of
    /// the value listed. None: no list has it.
    pub fn listed(&mut self, value: pg_sys::Datum) -> PgResult<Option<(usize, String)>> {
        let Finder::List(lists) = &self.finder else { return Ok(None) };
        // SAFETY: the function belongs to the key's own operator class and gets values of its type.
        match unsafe { lists.find(&mut self.function, self.collation, value) } {
            Some((part, listed)) => Ok(Some((part, list::text(self.key_type, listed)?))),
            None => Ok(None),
        }
    }

    /// Whether two values of the key's type are one key; false for a type without an order.
    pub fn is_same(&self, a: pg_sys::Datum, b: pg_sys::Datum) -> bool {
        // SAFETY: the entry lives as long as the session; its function compares values of the key's type.
        unsafe {
            let entry = pg_sys::lookup_type_cache(self.key_type, pg_sys::TYPECACHE_CMP_PROC_FINFO as i32);
            let compare = &raw mut (*entry).cmp_proc_finfo;
            (*compare).fn_oid != pg_sys::InvalidOid
                && pg_sys::FunctionCall2Coll(compare, self.collation, a, b).value() as i32 == 0
        }
    }

    /// The number of the partition that holds `key`, a value of any type whose text form the key's type
    /// reads. None: no partition does.
    pub fn locate(&mut self, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> Option<usize> {
        self.place(key).0
    }

    /// The same with the hash by which the key is partitioned; 0 for a list.
    pub fn place(&mut self, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> (Option<usize>, u64) {
        let value = key.map(|key| self.value(key));
        match (&self.finder, value) {
            // A NULL key hashes to 0.
            (Finder::Hash(_), None) => (self.number_of(0), 0),
            (Finder::Hash(_), Some(value)) => {
                let mut hash = [0];
                // SAFETY: the function belongs to the key's own operator class and gets a value of its type.
                unsafe {
                    compat::partition_hashes(&mut self.function, self.collation, &[value], &mut hash);
                };
                (self.number_of(hash[0]), hash[0])
            }
            // SAFETY: as above.
            (Finder::List(lists), value) => unsafe {
                (lists.number_of(&mut self.function, self.collation, value), 0)
            },
        }
    }

    /// As [`Router::locate`], the leaf: lists below the partition are looked at as well. For a router that
    /// lives no longer than the statement.
    pub fn leaf(&mut self, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> PgResult<Option<pg_sys::Oid>> {
        let Some(number) = self.locate(key) else { return Ok(None) };
        let partition = self.partition(number);
        let known = self.below.contains_key(&partition.to_u32());
        if !known {
            let below = if is_partitioned(partition) {
                Some(Box::new(Router::of_any(partition, Lifetime::Statement)?))
            } else {
                None
            };
            self.below.insert(partition.to_u32(), below);
        }
        match self.below.get_mut(&partition.to_u32()) {
            Some(Some(below)) => below.leaf(key),
            _ => Ok(Some(partition)),
        }
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
    match find(table, key)? {
        Some(leaf) => Ok(leaf),
        None => Err(error(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "no partition accepts this key",
        )),
    }
}

/// The same; None: no partition accepts the key.
pub fn leaf_of(table: pg_sys::Oid, key: (pg_sys::Datum, pg_sys::Oid)) -> PgResult<Option<pg_sys::Oid>> {
    find(table, Some(key))
}

fn find(table: pg_sys::Oid, key: Option<(pg_sys::Datum, pg_sys::Oid)>) -> PgResult<Option<pg_sys::Oid>> {
    // What makes a key of a text may be code of the owner's: the checks of domains within an array.
    let _guard = security::owner_of(table).map(security::as_restricted_owner);
    Router::of(table, Lifetime::Statement)?.leaf(key)
}

/// Opens and locks a relation without waiting for anybody: null if that takes waiting, or it is gone. Whoever waits does so in
/// the planner itself, whose errors reach the user as they are.
///
/// # Safety
/// Inside a transaction.
unsafe fn open_at_once(relation: pg_sys::Oid, mode: i32) -> pg_sys::Relation {
    // SAFETY: as promised by the caller; a lock that turns out to be of nothing is given back.
    unsafe {
        if !pg_sys::ConditionalLockRelationOid(relation, mode) {
            return std::ptr::null_mut();
        }
        let open = pg_sys::try_relation_open(relation, pg_sys::NoLock as i32);
        if open.is_null() {
            pg_sys::UnlockRelationOid(relation, mode);
        }
        open
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

/// Whether a type can be partitioned by list: it has a default btree operator class.
pub fn is_listable(type_oid: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-up by oid.
    unsafe { pg_sys::GetDefaultOpClass(type_oid, pg_sys::BTREE_AM_OID) != pg_sys::InvalidOid }
}

/// Whether a table is partitioned itself.
fn is_partitioned(table: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-up by oid; a missing relation gives 0.
    unsafe { pg_sys::get_rel_relkind(table) as u8 == pg_sys::RELKIND_PARTITIONED_TABLE }
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
