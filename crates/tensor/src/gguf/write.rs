//! Writes GGUF files: the header whole, then tensors at their places, in any order.

use crate::Storage;
use hone_kernels::format::ShapeError;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Bytes that the data of tensors are aligned to, as files have it that do not say otherwise.
const ALIGNMENT: u64 = 32;
/// Version of the format.
const VERSION: u32 = 3;
/// Bytes of a tensor's name that ggml has room for, less the zero that ends it.
const MAX_NAME: usize = 63;
/// Dimensions that ggml has.
const MAX_DIMS: usize = 4;

/// A value of the metadata in the type in which files have it.
#[derive(Clone, Debug, PartialEq)]
pub enum Meta {
    /// 16 bits.
    U16(u16),
    /// 32 bits.
    U32(u32),
    /// 32 bits, signed.
    I32(i32),
    /// 32 bits.
    F32(f32),
    /// A byte, 0 or 1.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of strings.
    Texts(Vec<String>),
    /// An array of numbers of 32 bits, signed.
    I32s(Vec<i32>),
    /// An array of numbers of 32 bits.
    F32s(Vec<f32>),
    /// An array of booleans.
    Bools(Vec<bool>),
}

impl From<&str> for Meta {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl Meta {
    /// The type's number and the bytes.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut scalar = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Self::U16(x) => scalar(2, &x.to_le_bytes()),
            Self::U32(x) => scalar(4, &x.to_le_bytes()),
            Self::I32(x) => scalar(5, &x.to_le_bytes()),
            Self::F32(x) => scalar(6, &x.to_le_bytes()),
            Self::Bool(x) => scalar(7, &[u8::from(*x)]),
            Self::Text(text) => {
                scalar(8, &[]);
                string(out, text);
            }
            Self::Texts(texts) => {
                array(out, 8, texts.len());
                texts.iter().for_each(|text| string(out, text));
            }
            Self::I32s(numbers) => {
                array(out, 5, numbers.len());
                numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Self::F32s(numbers) => {
                array(out, 6, numbers.len());
                numbers.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
            Self::Bools(flags) => {
                array(out, 7, flags.len());
                out.extend(flags.iter().map(|&flag| u8::from(flag)));
            }
        }
    }
}

pub(super) fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn array(out: &mut Vec<u8>, kind: u32, len: usize) {
    out.extend(9u32.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend((len as u64).to_le_bytes());
}

/// What a file says before its metadata.
pub(super) fn preamble(version: u32, num_tensors: usize, num_keys: usize) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(version.to_le_bytes());
    out.extend((num_tensors as u64).to_le_bytes());
    out.extend((num_keys as u64).to_le_bytes());
    out
}

/// What a file says of a tensor; `shape` has the slowest dimension first.
pub(super) fn entry(out: &mut Vec<u8>, name: &str, shape: &[u64], kind: u32, offset: u64) {
    string(out, name);
    out.extend((shape.len() as u32).to_le_bytes());
    shape.iter().rev().for_each(|len| out.extend(len.to_le_bytes()));
    out.extend(kind.to_le_bytes());
    out.extend(offset.to_le_bytes());
}

/// A tensor of a file to be.
#[derive(Clone, Debug, PartialEq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Lengths of the dimensions, slowest first.
    pub shape: Vec<usize>,
    /// How its numbers are stored.
    pub storage: Storage,
}

/// Why a file cannot be written as it is wanted.
#[derive(Debug, thiserror::Error)]
pub enum GgufUnwritable {
    /// No type of the format stores numbers like this.
    #[error("tensor `{tensor}` is in {storage}, for which GGUF has no type")]
    Type {
        /// Tensor.
        tensor: String,
        /// Name of the storage.
        storage: &'static str,
    },
    /// Rows that are not whole blocks, or too large a shape.
    #[error("tensor `{tensor}`: {source}")]
    Shape {
        /// Tensor.
        tensor: String,
        /// What is wrong with it.
        source: ShapeError,
    },
    /// ggml has no room for it, or two have the same name.
    #[error("tensor `{tensor}` {problem}")]
    Tensor {
        /// Tensor.
        tensor: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two values of one key.
    #[error("the key `{key}` is there twice")]
    Key {
        /// Key.
        key: String,
    },
}

/// A file to be: its header, and where each tensor begins.
#[derive(Clone, Debug)]
pub struct GgufPlan {
    header: Vec<u8>,
    tensors: Vec<GgufTensor>,
    /// Offset and length in bytes of each.
    extents: Vec<(u64, u64)>,
    num_bytes: u64,
}

impl GgufPlan {
    /// Lays out tensors in this order behind the metadata.
    ///
    /// # Errors
    /// If a name or key is there twice, or a tensor has no form in a file.
    pub fn new(
        metadata: &[(String, Meta)],
        tensors: Vec<GgufTensor>,
    ) -> Result<Self, GgufUnwritable> {
        let mut header = preamble(VERSION, tensors.len(), metadata.len());
        let mut keys = BTreeSet::new();
        for (key, value) in metadata {
            if !keys.insert(key) {
                return Err(GgufUnwritable::Key { key: key.clone() });
            }
            string(&mut header, key);
            value.write(&mut header);
        }
        let (mut offset, mut extents, mut names) = (0, Vec::new(), BTreeSet::new());
        for tensor in &tensors {
            if !names.insert(&tensor.name) {
                let problem = "is there twice".to_owned();
                return Err(GgufUnwritable::Tensor { tensor: tensor.name.clone(), problem });
            }
            let (kind, len) = checked(tensor)?;
            let shape: Vec<u64> = tensor.shape.iter().map(|&len| len as u64).collect();
            entry(&mut header, &tensor.name, &shape, kind, offset);
            extents.push((offset, len));
            offset = (offset + len).next_multiple_of(ALIGNMENT);
        }
        header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);
        let start = header.len() as u64;
        extents.iter_mut().for_each(|(at, _)| *at += start);
        Ok(Self { header, tensors, extents, num_bytes: start + offset })
    }

    /// Size of the file.
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// Bytes of each tensor, in the order of the file.
    pub fn lens(&self) -> impl Iterator<Item = u64> {
        self.extents.iter().map(|(_, len)| *len)
    }
}

/// Number of a tensor's type, and its length in bytes.
fn checked(tensor: &GgufTensor) -> Result<(u32, u64), GgufUnwritable> {
    let GgufTensor { name, shape, storage } = tensor;
    let unusable = |problem| Err(GgufUnwritable::Tensor { tensor: name.clone(), problem });
    if name.len() > MAX_NAME {
        return unusable(format!("has a name of more than {MAX_NAME} bytes"));
    }
    if shape.is_empty() || shape.len() > MAX_DIMS || shape.contains(&0) {
        return unusable(format!(
            "has shape {shape:?}, expected 1 to {MAX_DIMS} dimensions above 0"
        ));
    }
    let kind = storage
        .to_ggml()
        .ok_or_else(|| GgufUnwritable::Type { tensor: name.clone(), storage: storage.name() })?;
    let len = storage
        .checked_num_bytes(shape)
        .map_err(|source| GgufUnwritable::Shape { tensor: name.clone(), source })?;
    Ok((kind, len as u64))
}

/// A file that is being written.
pub struct GgufWriter {
    file: File,
    plan: GgufPlan,
}

impl GgufWriter {
    /// Creates the file, or overwrites it, with its header, and as long as it will be.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn create(path: &Path, plan: GgufPlan) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(&plan.header)?;
        file.set_len(plan.num_bytes)?;
        Ok(Self { file, plan })
    }

    /// Opens a file that was created with this plan, to write what it lacks; `None` if there is no
    /// such file.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn reopen(path: &Path, plan: &GgufPlan) -> io::Result<Option<Self>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut header = vec![0; plan.header.len()];
        let is_same = file.metadata()?.len() == plan.num_bytes
            && file.read_exact(&mut header).is_ok()
            && header == plan.header;
        Ok(is_same.then(|| Self { file, plan: plan.clone() }))
    }

    /// The file's plan.
    pub fn plan(&self) -> &GgufPlan {
        &self.plan
    }

    /// Writes bytes of the tensor with this number, from `start` within it on.
    ///
    /// # Errors
    /// If the system refuses.
    ///
    /// # Panics
    /// If the tensor has no such bytes.
    pub fn write(&mut self, index: usize, start: u64, bytes: &[u8]) -> io::Result<()> {
        let (offset, len) = self.plan.extents[index];
        assert!(start + bytes.len() as u64 <= len, "beyond the tensor");
        self.file.seek(SeekFrom::Start(offset + start))?;
        self.file.write_all(bytes)
    }

    /// Waits until all is on the disk.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }
}
