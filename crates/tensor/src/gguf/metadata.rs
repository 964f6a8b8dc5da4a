//! Keys and values of a file's header. Values stay in the mapping until they are asked for.

use super::cursor::Cursor;
use crate::Mapped;
use std::collections::BTreeMap;
use std::sync::Arc;

/// More keys than any file has; bounds what a header can make us allocate.
const MAX_KEYS: u64 = 1 << 16;
/// Arrays in arrays beyond this are hostile; files have none at all.
const MAX_DEPTH: usize = 4;

/// A value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// An integer of any type.
    Integer(i128),
    /// A float. An `f32` becomes the `f64` of its shortest decimal, since 1e-5 was meant where
    /// 9.99999974737875e-6 is stored.
    Float(f64),
    /// A boolean.
    Bool(bool),
    /// A string.
    Text(&'a str),
    /// An array.
    Array(Array<'a>),
}

impl<'a> Value<'a> {
    /// The kind of value, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Bool(_) => "a boolean",
            Self::Text(_) => "a string",
            Self::Array(_) => "an array",
        }
    }

    fn read(kind: u32, cursor: &mut Cursor<'a>) -> Result<Self, String> {
        Ok(match kind {
            U8 => Self::Integer(u8::from_le_bytes(cursor.array()?).into()),
            I8 => Self::Integer(i8::from_le_bytes(cursor.array()?).into()),
            U16 => Self::Integer(u16::from_le_bytes(cursor.array()?).into()),
            I16 => Self::Integer(i16::from_le_bytes(cursor.array()?).into()),
            U32 => Self::Integer(u32::from_le_bytes(cursor.array()?).into()),
            I32 => Self::Integer(i32::from_le_bytes(cursor.array()?).into()),
            U64 => Self::Integer(u64::from_le_bytes(cursor.array()?).into()),
            I64 => Self::Integer(i64::from_le_bytes(cursor.array()?).into()),
            F32 => Self::Float(shortest(f32::from_le_bytes(cursor.array()?))),
            F64 => Self::Float(f64::from_le_bytes(cursor.array()?)),
            BOOL => match cursor.array()? {
                [0] => Self::Bool(false),
                [1] => Self::Bool(true),
                [other] => return Err(format!("a boolean is {other}, expected 0 or 1")),
            },
            STRING => Self::Text(cursor.text()?),
            ARRAY => {
                let (kind, len) = (cursor.u32()?, cursor.u64()?);
                let rest = cursor.rest();
                skip_elements(kind, len, cursor, 1)?;
                Self::Array(Array { kind, len: len as usize, bytes: rest })
            }
            other => return Err(format!("a value has type {other}, which no version knows")),
        })
    }
}

const U8: u32 = 0;
const I8: u32 = 1;
const U16: u32 = 2;
const I16: u32 = 3;
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;
const I64: u32 = 11;
const F64: u32 = 12;

/// Size in bytes of a value; `None` where it varies.
fn size_of(kind: u32) -> Option<u64> {
    match kind {
        U8 | I8 | BOOL => Some(1),
        U16 | I16 => Some(2),
        U32 | I32 | F32 => Some(4),
        U64 | I64 | F64 => Some(8),
        _ => None,
    }
}

/// Passes over the elements of an array. Each takes at least a byte of the file, so that none is
/// longer than the file.
fn skip_elements(kind: u32, len: u64, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), String> {
    if let Some(size) = size_of(kind) {
        return cursor.take(size.saturating_mul(len)).map(|_| ());
    }
    for _ in 0..len {
        match kind {
            STRING => drop(cursor.string()?),
            ARRAY if depth < MAX_DEPTH => {
                let (kind, len) = (cursor.u32()?, cursor.u64()?);
                skip_elements(kind, len, cursor, depth + 1)?;
            }
            ARRAY => return Err(format!("arrays are nested more than {MAX_DEPTH} deep")),
            other => return Err(format!("an array has elements of type {other}")),
        }
    }
    Ok(())
}

/// The `f64` of the shortest decimal that is this `f32`.
pub fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// An array in a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    kind: u32,
    len: usize,
    /// The elements, and what follows them in the file.
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements; those of an array of strings that is not UTF-8 end with an error that says
    /// which.
    pub fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, String>> {
        let (kind, mut cursor) = (self.kind, Cursor::new(self.bytes, 0));
        (0..self.len).map(move |i| {
            Value::read(kind, &mut cursor).map_err(|_| format!("element {i} is not UTF-8"))
        })
    }
}

/// The metadata of a file.
pub(super) struct Metadata {
    map: Arc<Mapped>,
    /// Type of each key's value, and where in the file it is.
    values: BTreeMap<String, (u32, usize)>,
}

impl Metadata {
    /// Reads `count` keys, passing over their values.
    pub(super) fn read(
        map: &Arc<Mapped>,
        cursor: &mut Cursor<'_>,
        count: u64,
    ) -> Result<Self, String> {
        if count > MAX_KEYS {
            return Err(format!("it claims {count} keys, at most {MAX_KEYS} are read"));
        }
        let mut values = BTreeMap::new();
        for _ in 0..count {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let at = cursor.at;
            Value::read(kind, cursor).map_err(|reason| format!("key `{key}`: {reason}"))?;
            if values.insert(key.to_owned(), (kind, at)).is_some() {
                return Err(format!("key `{key}` is there twice"));
            }
        }
        Ok(Self { map: Arc::clone(map), values })
    }

    pub(super) fn map(&self) -> &Arc<Mapped> {
        &self.map
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'_>> {
        let (kind, at) = *self.values.get(key)?;
        Value::read(kind, &mut Cursor::new(self.map.bytes(), at)).ok()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }
}
