//! GGUF files, read through a memory mapping and written: metadata and tensors of one file or, to
//! be read, of its parts.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little
//! endian. What metadata and tensors mean is not known here.

mod cursor;
mod error;
mod header;
mod metadata;
mod parts;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod write;

pub use error::GgufError;
pub use metadata::{Array, Value, shortest};
pub use write::{GgufPlan, GgufTensor, GgufUnwritable, GgufWriter, Meta};

use crate::{DeviceError, Mapped, Tensor};
use header::Info;
use metadata::Metadata;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An open GGUF file, or all parts of one that is split.
pub struct GgufFile {
    metadata: Metadata,
    parts: Vec<Arc<Mapped>>,
    /// Index of the part that holds each tensor, and where.
    tensors: BTreeMap<String, (usize, Info)>,
}

impl GgufFile {
    /// Maps the file and, where its name is that of one part of several, all of them, and checks
    /// their headers: lengths, types, offsets, overlaps, and that parts belong together.
    ///
    /// # Errors
    /// [`GgufError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let paths = parts::paths(path)?;
        let mut headers = Vec::new();
        for path in &paths {
            headers.push(header::read(path)?);
        }
        parts::check(&paths, &headers)?;
        let (mut tensors, mut parts, mut first) = (BTreeMap::new(), Vec::new(), None);
        for (part, header) in headers.into_iter().enumerate() {
            for (name, info) in header.tensors {
                if let Some((other, _)) = tensors.insert(name.clone(), (part, info)) {
                    return Err(parts::twice(&paths, &name, [other, part]));
                }
            }
            parts.push(Arc::clone(header.metadata.map()));
            first.get_or_insert(header.metadata);
        }
        let metadata = first.expect("there is at least one part");
        Ok(Self { metadata, parts, tensors })
    }

    /// Path of the file, or of its first part.
    pub fn path(&self) -> &Path {
        self.metadata.map().path()
    }

    /// The file, or its parts in order.
    pub fn paths(&self) -> impl Iterator<Item = PathBuf> {
        self.parts.iter().map(|map| map.path().to_owned())
    }

    /// The value of a key; of a split file, in its first part.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(key)
    }

    /// Keys of the metadata, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.metadata.keys()
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Lengths of a tensor's dimensions, slowest first; `None` if there is no such tensor.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        Some(&self.tensors.get(name)?.1.shape)
    }

    /// A tensor over the mapping, in its blocks. `None` if the file has no tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<Tensor> {
        let (part, info) = self.tensors.get(name)?;
        let tensor = Tensor::from_file(&self.parts[*part], info.offset, info.storage, &info.shape);
        Some(tensor.expect("extents and alignment were checked when the file was opened"))
    }

    /// A tensor has along its slowest dimension as many parts, each of `of` equal parts along the
    /// next dimension: the `index`th of all of these, over the mapping, or copied where the file
    /// does not align it. `None` if there is no such tensor or part, or if its rows are not whole
    /// blocks.
    ///
    /// # Errors
    /// If there is no memory for the copy.
    pub fn part(&self, name: &str, index: usize, of: usize) -> Result<Option<Tensor>, DeviceError> {
        let Some((part, info)) = self.tensors.get(name) else { return Ok(None) };
        let Some((&num_parts, rest)) = info.shape.split_first() else { return Ok(None) };
        let Some((&rows, rest)) = rest.split_first() else { return Ok(None) };
        if index / of >= num_parts || !rows.is_multiple_of(of) {
            return Ok(None);
        }
        let shape = &[&[rows / of], rest].concat()[..];
        let Ok(len) = info.storage.checked_num_bytes(shape) else { return Ok(None) };
        let map = &self.parts[*part];
        let offset = info.offset + index * len;
        if let Some(tensor) = Tensor::from_file(map, offset, info.storage, shape) {
            return Ok(Some(tensor));
        }
        let bytes = &map.bytes()[offset..offset + len];
        Tensor::try_from_bytes(bytes, info.storage, shape).map(Some)
    }

    /// A copy of `tensor`, which is over this file's mapping, with its rows in another order, or
    /// other equal parts of whole blocks: the `i`th is its `from(i)`th. Bytes are copied as they
    /// are. The pages that held them are released.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn reordered(
        tensor: &Tensor,
        num_parts: usize,
        from: impl Fn(usize) -> usize,
    ) -> Result<Tensor, DeviceError> {
        let mut copy = Tensor::try_zeros(tensor.storage(), tensor.shape())?;
        let len = tensor.num_bytes() / num_parts.max(1);
        let bytes = tensor.bytes();
        for (i, part) in copy.bytes_mut().chunks_exact_mut(len.max(1)).enumerate() {
            part.copy_from_slice(&bytes[from(i) * len..][..len]);
        }
        tensor.release_file();
        Ok(copy)
    }
}

#[cfg(test)]
mod tests;
