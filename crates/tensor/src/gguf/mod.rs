//! GGUF files, read through a memory mapping: metadata and tensors of one file or of its parts.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, versions 2 and 3, little
//! endian. What metadata and tensors mean is not known here. Such files are only read.

mod cursor;
mod error;
mod header;
mod metadata;
mod parts;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;

pub use error::GgufError;
pub use metadata::{Array, Value};

use crate::{Mapped, Tensor};
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
    ///
    /// # Errors
    /// If Hone does not compute with its type.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>, GgufError> {
        let Some((part, info)) = self.tensors.get(name) else { return Ok(None) };
        let map = &self.parts[*part];
        let Some(storage) = info.kind.storage() else {
            return Err(GgufError::element_type(map.path(), name, info.kind));
        };
        let tensor = Tensor::from_file(map, info.offset, storage, &info.shape);
        match tensor {
            Some(tensor) => Ok(Some(tensor)),
            // Offsets are multiples of at least eight bytes, and extents were checked.
            None => Err(GgufError::damaged(map.path(), format!("tensor `{name}` is misaligned"))),
        }
    }
}

#[cfg(test)]
mod tests;
