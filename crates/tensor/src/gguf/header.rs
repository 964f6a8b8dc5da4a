//! The header of one file: magic, version, metadata, and where each tensor lies.

use super::cursor::Cursor;
use super::error::GgufError;
use super::metadata::{Metadata, Value};
use crate::{Mapped, Storage};
use hone_kernels::format::{ShapeError, UnreadType};
use std::path::Path;
use std::sync::Arc;

const MAGIC: &[u8] = b"GGUF";
/// More tensors than any file has; bounds what a header can make us allocate.
const MAX_TENSORS: u64 = 100_000;
/// Dimensions that ggml has.
const MAX_DIMS: u32 = 4;
/// Where `general.alignment` is absent.
const ALIGNMENT: usize = 32;

pub(super) struct Header {
    pub(super) metadata: Metadata,
    /// By name, in the order of the file.
    pub(super) tensors: Vec<(String, Info)>,
}

/// Where a tensor lies.
#[derive(Clone)]
pub(super) struct Info {
    /// Lengths of the dimensions, slowest first.
    pub(super) shape: Vec<usize>,
    pub(super) storage: Storage,
    /// From the beginning of the file.
    pub(super) offset: usize,
    len: usize,
}

pub(super) fn read(path: &Path) -> Result<Header, GgufError> {
    let io = |source| GgufError::Io { path: path.to_owned(), source };
    let map = Arc::new(Mapped::open(path).map_err(io)?);
    let bytes = map.bytes();
    let damaged = |reason| GgufError::damaged(path, reason);
    let mut cursor = Cursor::new(bytes, MAGIC.len());
    if !bytes.starts_with(MAGIC) {
        return Err(damaged("it does not begin with GGUF".to_owned()));
    }
    let version = cursor.u32().map_err(damaged)?;
    if let Some(problem) = unread_version(version) {
        return Err(GgufError::Version { path: path.to_owned(), problem });
    }
    read_checked(&map, &mut cursor)
}

fn unread_version(version: u32) -> Option<&'static str> {
    match version {
        2 | 3 => None,
        1 => Some("GGUF version 1, which has not been written since 2023; fetch a newer file"),
        swapped if matches!(swapped.swap_bytes(), 1..=3) => {
            Some("a big-endian GGUF file; convert it with gguf-convert-endian of the gguf package")
        }
        _ => Some("a GGUF version other than 2 and 3, which are read; a newer Hone may read it"),
    }
}

fn read_checked(map: &Arc<Mapped>, cursor: &mut Cursor<'_>) -> Result<Header, GgufError> {
    let path = map.path();
    let damaged = |reason| GgufError::damaged(path, reason);
    let (num_tensors, metadata) = read_metadata(map, cursor).map_err(damaged)?;
    let alignment = alignment(&metadata).map_err(damaged)?;
    let mut tensors = Vec::new();
    for _ in 0..num_tensors {
        let name = cursor.text().map_err(damaged)?;
        let info = info(cursor, alignment).map_err(|fault| match fault {
            Fault::Reason(reason) => damaged(format!("tensor `{name}` {reason}")),
            Fault::Type(source) => {
                let (path, tensor) = (path.to_owned(), name.to_owned());
                GgufError::ElementType { path, tensor, source }
            }
            Fault::Shape(source @ ShapeError::Ragged { .. }) => {
                let (path, tensor) = (path.to_owned(), name.to_owned());
                GgufError::Ragged { path, tensor, source }
            }
            Fault::Shape(error) => damaged(format!("tensor `{name}` is unusable: {error}")),
        })?;
        tensors.push((name.to_owned(), info));
    }
    let start = cursor.at.next_multiple_of(alignment);
    place(&mut tensors, start, map.bytes().len()).map_err(damaged)?;
    follow(&tensors, start, alignment).map_err(damaged)?;
    Ok(Header { metadata, tensors })
}

fn read_metadata(map: &Arc<Mapped>, cursor: &mut Cursor<'_>) -> Result<(u64, Metadata), String> {
    let (num_tensors, num_keys) = (cursor.u64()?, cursor.u64()?);
    if num_tensors > MAX_TENSORS {
        return Err(format!("it claims {num_tensors} tensors, at most {MAX_TENSORS} are read"));
    }
    Ok((num_tensors, Metadata::read(map, cursor, num_keys)?))
}

/// Why a tensor's entry cannot be used.
enum Fault {
    Type(UnreadType),
    Shape(ShapeError),
    Reason(String),
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

fn alignment(metadata: &Metadata) -> Result<usize, String> {
    let key = "general.alignment";
    match metadata.get(key) {
        None => Ok(ALIGNMENT),
        Some(Value::Integer(n @ 8..=65_536)) if (n as usize).is_power_of_two() => Ok(n as usize),
        Some(_) => Err(format!("`{key}` is not a power of two from 8 to 65536")),
    }
}

/// What is said of one tensor, its offset still counted from where the data begin.
fn info(cursor: &mut Cursor<'_>, alignment: usize) -> Result<Info, Fault> {
    let num_dims = cursor.u32()?;
    if !(1..=MAX_DIMS).contains(&num_dims) {
        return Err(format!("has {num_dims} dimensions, expected 1 to {MAX_DIMS}").into());
    }
    let mut shape = Vec::new();
    for _ in 0..num_dims {
        let len = usize::try_from(cursor.u64()?).ok().filter(|len| *len > 0);
        let reason = "has a dimension of length 0, or of one beyond this system";
        shape.push(len.ok_or_else(|| reason.to_owned())?);
    }
    // The fastest dimension comes first in the file.
    shape.reverse();
    let id = cursor.u32()?;
    let storage = Storage::from_ggml(id).map_err(Fault::Type)?;
    let len = storage.checked_num_bytes(&shape).map_err(Fault::Shape)?;
    let offset = cursor.u64()?;
    let offset = usize::try_from(offset).ok().filter(|at| at.is_multiple_of(alignment));
    let offset = offset.ok_or_else(|| {
        format!("begins at an offset that is not a multiple of the alignment, {alignment}")
    })?;
    Ok(Info { shape, storage, offset, len })
}

/// Counts offsets from the beginning of the file, and checks that tensors end in it and do not
/// overlap.
fn place(tensors: &mut [(String, Info)], start: usize, end: usize) -> Result<(), String> {
    let mut extents = Vec::new();
    for (name, info) in tensors.iter_mut() {
        let begin = start.checked_add(info.offset);
        let place = begin.and_then(|begin| Some((begin, begin.checked_add(info.len)?)));
        let Some((begin, _)) = place.filter(|(_, last)| *last <= end) else {
            return Err(format!(
                "tensor `{name}` has {} bytes from {} on, but the file ends after {}",
                info.len,
                info.offset,
                end.saturating_sub(start)
            ));
        };
        info.offset = begin;
        extents.push((begin, begin + info.len, name.as_str()));
    }
    extents.sort_unstable();
    match extents.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        None => Ok(()),
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].2, pair[1].2)),
    }
}

/// Checks that tensors follow each other with nothing but padding between them, as other programs
/// require: what lies in a gap is of no tensor, and a tensor that was left out leaves one.
fn follow(tensors: &[(String, Info)], start: usize, alignment: usize) -> Result<(), String> {
    let mut expected = start;
    for (name, info) in tensors {
        if info.offset != expected {
            return Err(format!(
                "tensor `{name}` begins {} bytes after where the data begin, and the one before it \
                 ends at {}: there is a gap, or tensors are in another order than in the header",
                info.offset - start,
                expected - start
            ));
        }
        expected = (info.offset + info.len).next_multiple_of(alignment);
    }
    Ok(())
}
