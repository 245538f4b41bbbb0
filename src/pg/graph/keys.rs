//! Keys of graph nodes: four kinds of types, as values that can be compared and hashed.

use crate::pg::report::wrong_state;
use crate::pg::spi::Arg;
use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;

/// Types that keys of nodes may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// integer
    Int4,
    /// bigint
    Int8,
    /// uuid
    Uuid,
    /// text, and varchar as such
    Text,
}

/// A key. Texts are the bytes of the server's encoding; collations are deterministic, so bytes decide.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NodeKey {
    /// Of either integer type.
    Int(i64),
    /// A uuid.
    Uuid([u8; 16]),
    /// A text.
    Text(Box<[u8]>),
}

impl NodeKey {
    /// The key's bytes, the same on every machine.
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Int(value) => value.to_le_bytes().to_vec(),
            Self::Uuid(bytes) => bytes.to_vec(),
            Self::Text(bytes) => bytes.to_vec(),
        }
    }

    /// The key as PostgreSQL would write it.
    pub fn text(&self) -> String {
        match self {
            Self::Int(value) => value.to_string(),
            Self::Uuid(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
                format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
            }
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        }
    }
}

impl KeyKind {
    /// The kind of a type, if it is one.
    pub fn of(type_: pg_sys::Oid) -> Option<Self> {
        match type_ {
            pg_sys::INT4OID => Some(Self::Int4),
            pg_sys::INT8OID => Some(Self::Int8),
            pg_sys::UUIDOID => Some(Self::Uuid),
            pg_sys::TEXTOID | pg_sys::VARCHAROID => Some(Self::Text),
            _ => None,
        }
    }

    /// The type that columns of graphs have for such keys.
    pub fn type_oid(self) -> pg_sys::Oid {
        match self {
            Self::Int4 => pg_sys::INT4OID,
            Self::Int8 => pg_sys::INT8OID,
            Self::Uuid => pg_sys::UUIDOID,
            Self::Text => pg_sys::TEXTOID,
        }
    }

    /// The name of [`KeyKind::type_oid`].
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Int4 => "pg_catalog.int4",
            Self::Int8 => "pg_catalog.int8",
            Self::Uuid => "pg_catalog.uuid",
            Self::Text => "pg_catalog.text",
        }
    }

    /// A key from the text that [`NodeKey::text`] gives; None: it is no key of this kind.
    pub fn parse(self, text: &str) -> Option<NodeKey> {
        match self {
            Self::Int4 => text.trim().parse::<i32>().ok().map(|value| NodeKey::Int(i64::from(value))),
            Self::Int8 => text.trim().parse().ok().map(NodeKey::Int),
            Self::Text => Some(NodeKey::Text(text.as_bytes().into())),
            Self::Uuid => {
                let digits: Vec<u32> = text
                    .trim()
                    .chars()
                    .filter(|c| *c != '-')
                    .map(|c| c.to_digit(16))
                    .collect::<Option<_>>()?;
                let mut bytes = [0_u8; 16];
                if digits.len() != 2 * bytes.len() {
                    return None;
                }
                for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
                    *byte = pair.iter().fold(0, |high, digit| high * 16 + *digit as u8);
                }
                Some(NodeKey::Uuid(bytes))
            }
        }
    }

    /// Raises 55000 when a type is not one of this kind.
    pub(in crate::pg) fn require(self, type_: pg_sys::Oid) {
        if Self::of(type_) != Some(self) {
            wrong_state("the type of a column that belongs to a graph has changed")
                .report(pgrx::PgLogLevel::ERROR);
        }
    }

    /// A value as a key.
    ///
    /// # Safety
    /// A non-NULL value of a type of this kind.
    pub(in crate::pg) unsafe fn read(self, value: pg_sys::Datum) -> NodeKey {
        match self {
            Self::Int4 => NodeKey::Int(i64::from(value.value() as i32)),
            Self::Int8 => NodeKey::Int(value.value() as i64),
            // SAFETY: a uuid is 16 bytes.
            Self::Uuid => NodeKey::Uuid(unsafe { *value.cast_mut_ptr::<[u8; 16]>() }),
            Self::Text => {
                // SAFETY: a varlena; fetched and unpacked if need be, and copied before it can go.
                let bytes = unsafe {
                    let plain = pg_sys::pg_detoast_datum_packed(value.cast_mut_ptr());
                    let bytes: Box<[u8]> = pgrx::varlena::varlena_to_byte_slice(plain).into();
                    if plain.cast::<u8>() != value.cast_mut_ptr::<u8>() {
                        pg_sys::pfree(plain.cast());
                    }
                    bytes
                };
                NodeKey::Text(bytes)
            }
        }
    }

    /// A key as a value, allocated in the current memory context unless it is passed by value.
    pub(in crate::pg) fn datum(self, key: &NodeKey) -> pg_sys::Datum {
        match key {
            NodeKey::Int(value) => match self {
                Self::Int4 => pg_sys::Datum::from(*value as i32),
                _ => pg_sys::Datum::from(*value),
            },
            // SAFETY: 16 bytes are allocated and filled.
            NodeKey::Uuid(bytes) => unsafe {
                let place = pg_sys::palloc(16).cast::<[u8; 16]>();
                place.write(*bytes);
                pg_sys::Datum::from(place)
            },
            // SAFETY: copies the bytes.
            NodeKey::Text(bytes) => unsafe {
                pg_sys::Datum::from(pg_sys::cstring_to_text_with_len(
                    bytes.as_ptr().cast(),
                    bytes.len() as i32,
                ))
            },
        }
    }

    /// Keys as an array, a parameter of a statement.
    pub fn array<'a>(self, keys: impl IntoIterator<Item = &'a NodeKey>) -> Arg<'static> {
        let mut values: Vec<pg_sys::Datum> = keys.into_iter().map(|key| self.datum(key)).collect();
        let (length, by_value, alignment) = match self {
            Self::Int4 => (4, true, b'i'),
            Self::Int8 => (8, true, b'd'),
            Self::Uuid => (16, false, b'c'),
            Self::Text => (-1, false, b'i'),
        };
        // SAFETY: as many values of that type as are said; the array is a copy in the current context.
        unsafe {
            let array = pg_sys::construct_array(
                values.as_mut_ptr(),
                values.len() as i32,
                self.type_oid(),
                length,
                by_value,
                alignment as std::ffi::c_char,
            );
            let type_ = pg_sys::get_array_type(self.type_oid());
            DatumWithOid::new(pg_sys::Datum::from(array), type_)
        }
    }
}
