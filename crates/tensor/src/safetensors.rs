//! safetensors files, read through a memory mapping and written whole.
//!
//! Format: <https://github.com/huggingface/safetensors>. Pickled files are refused by content.

mod header;
mod parts;

pub use ::safetensors::tensor::Dtype;
pub use hone_kernels::format::{
    Nf4Parts, Nf4Scales, Nf4Tensors, PackedInts, Parts, PartsError, pack_ints, packed_row_bytes,
    to_e4m3,
};
pub use parts::joined;

use crate::{DType, Device, DeviceError, Mapped, Storage, Tensor};
use ::safetensors::tensor::{Metadata, TensorInfo};
use ::safetensors::{SafeTensorError, SafeTensors, View, serialize_to_file};
use hone_kernels::format::WeightFormat;
use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pickle or a zip of pickles, whatever its name.
    #[error(
        "{}: this is a pickled checkpoint, not safetensors. Reading a pickle runs code from the \
         file, so Hone never does; convert it with the tool that made it (`save_pretrained(…, \
         safe_serialization=True)`)",
        path.display()
    )]
    Pickled {
        /// File.
        path: PathBuf,
    },
    /// The header or the offsets are not those of a safetensors file.
    #[error(
        "{}: not a whole safetensors file ({reason}). It may have been cut short while it was \
         copied: fetch it again",
        path.display()
    )]
    Damaged {
        /// File.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// An element type without meaning for weights.
    #[error(
        "{}: tensor `{tensor}` holds {dtype}; f64, f32, f16 and bf16 are read. A quantised model \
         must be exported in one of these first",
        path.display()
    )]
    ElementType {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A number that is finite as f64 and infinite as f32.
    #[error(
        "{}: tensor `{tensor}` holds {value:e}, which is beyond the range of f32, in which \
         it would be held. Fetch or export the model again",
        path.display()
    )]
    Range {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// The number.
        value: f64,
    },
    /// There was no memory for a tensor that was read or written.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl FileError {
    fn damaged(path: &Path, reason: impl ToString) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A tensor as it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTensor<'a> {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Lengths of the dimensions, slowest first.
    pub shape: &'a [usize],
    /// The elements, little-endian.
    pub bytes: &'a [u8],
}

/// An open safetensors file.
pub struct SafeTensorsFile {
    map: Arc<Mapped>,
    metadata: Metadata,
    /// Where tensor data begins.
    data_start: usize,
}

impl SafeTensorsFile {
    /// Maps the file and checks its header: lengths, offsets, overlaps, gaps.
    ///
    /// # Errors
    /// [`FileError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |source| FileError::Io { path: path.to_owned(), source };
        let map = Mapped::open(path).map_err(io)?;
        let bytes = map.bytes();
        let (header, metadata) = read_header(bytes).map_err(|reason| match is_pickle(bytes) {
            true => FileError::Pickled { path: path.to_owned() },
            false => FileError::damaged(path, reason),
        })?;
        Ok(Self { map: Arc::new(map), metadata, data_start: header + 8 })
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names = self.metadata.offset_keys();
        names.sort();
        names
    }

    /// Where a tensor's bytes are in the file.
    fn range(&self, info: &TensorInfo) -> Range<usize> {
        let (start, end) = info.data_offsets;
        self.data_start + start..self.data_start + end
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        self.map.path()
    }

    /// A tensor as it is in the file, whatever it holds; `None` if there is none of this name.
    pub fn raw(&self, name: &str) -> Option<RawTensor<'_>> {
        let info = self.metadata.info(name)?;
        let bytes = self.map.bytes().get(self.range(info))?;
        Some(RawTensor { dtype: info.dtype, shape: &info.shape, bytes })
    }

    /// The same, to be written into another file.
    pub fn copied(&self, name: &str) -> Option<Lazy<'static>> {
        let info = self.metadata.info(name)?;
        let (range, map) = (self.range(info), Arc::clone(&self.map));
        let (dtype, shape) = (info.dtype, info.shape.clone());
        map.bytes().get(range.clone())?;
        Some(Lazy::Copied(Copied { map, range, dtype, shape }))
    }

    /// Releases the pages of a tensor that was copied.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.metadata.info(name) {
            let range = self.range(info);
            self.map.release(range.start, range.len());
        }
    }

    /// A tensor over the mapping; copied if the file does not align it, or converted from f64 to
    /// f32. `None` if the file has no tensor of this name.
    ///
    /// # Errors
    /// If its elements are not floats, there is no memory for the copy, or an f64 is beyond the
    /// range of f32.
    pub fn tensor(&self, name: &str) -> Result<Option<Tensor>, FileError> {
        let Some(info) = self.metadata.info(name) else { return Ok(None) };
        let Some(dtype) = element_type(info.dtype) else {
            let (path, dtype) = (self.path().to_owned(), format!("{:?}", info.dtype));
            return Err(FileError::ElementType { path, tensor: name.to_owned(), dtype });
        };
        let range = self.range(info);
        let bytes = || self.map.bytes().get(range.clone());
        if info.dtype == Dtype::F64 {
            let out_of_range = |value| {
                let (path, tensor) = (self.path().to_owned(), name.to_owned());
                FileError::Range { path, tensor, value }
            };
            let rounded = |bytes| rounded(bytes, &info.shape, out_of_range);
            let rounded = bytes().map(rounded).transpose()?;
            self.map.release(range.start, range.len());
            return Ok(rounded);
        }
        if let Some(tensor) = Tensor::from_file(&self.map, range.start, dtype, &info.shape) {
            return Ok(Some(tensor));
        }
        let copy = |bytes| Tensor::try_from_bytes(bytes, dtype, &info.shape);
        Ok(bytes().map(copy).transpose()?)
    }
}

/// A tensor to be written.
pub enum Lazy<'a> {
    /// It exists already.
    Ready(Tensor),
    /// It is computed when it is written, so that a file may be larger than memory.
    Deferred {
        /// Element type in the file.
        dtype: DType,
        /// Lengths of the dimensions.
        shape: Vec<usize>,
        /// Computes it, with the type and shape above.
        make: Box<dyn Fn() -> Result<Tensor, DeviceError> + 'a>,
    },
    /// It is another file's, of any type.
    Copied(Copied),
    /// Its bytes, of any type.
    Raw(RawTensor<'a>),
}

/// A tensor of a file as it is there.
pub struct Copied {
    map: Arc<Mapped>,
    /// Its bytes in the file.
    range: Range<usize>,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> From<&'a Tensor> for Lazy<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self::Ready(tensor.clone())
    }
}

/// A tensor that is being written, and the first failure to compute one of the file's tensors.
struct Entry<'e, 'a> {
    lazy: Lazy<'a>,
    failed: &'e OnceLock<DeviceError>,
}

impl View for Entry<'_, '_> {
    fn dtype(&self) -> Dtype {
        match &self.lazy {
            Lazy::Ready(tensor) => file_type(tensor.dtype()),
            Lazy::Deferred { dtype, .. } => file_type(*dtype),
            Lazy::Copied(copied) => copied.dtype,
            Lazy::Raw(raw) => raw.dtype,
        }
    }
    fn shape(&self) -> &[usize] {
        self.lazy.shape()
    }
    fn data(&self) -> Cow<'_, [u8]> {
        // After a failure nothing more is computed. The library writes what it is given, however
        // little that is, and `write` removes the file.
        if self.failed.get().is_some() {
            return Cow::Borrowed(&[]);
        }
        self.lazy.bytes().unwrap_or_else(|error| {
            let _ = self.failed.set(error);
            Cow::Borrowed(&[])
        })
    }
    fn data_len(&self) -> usize {
        match &self.lazy {
            Lazy::Ready(tensor) => tensor.num_bytes(),
            Lazy::Deferred { dtype, shape, .. } => shape.iter().product::<usize>() * dtype.size(),
            Lazy::Copied(copied) => copied.range.len(),
            Lazy::Raw(raw) => raw.bytes.len(),
        }
    }
}

impl Lazy<'_> {
    /// Lengths of its dimensions.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Ready(tensor) => tensor.shape(),
            Self::Deferred { shape, .. } | Self::Copied(Copied { shape, .. }) => shape,
            Self::Raw(raw) => raw.shape,
        }
    }

    fn bytes(&self) -> Result<Cow<'_, [u8]>, DeviceError> {
        let bytes = match self {
            Self::Ready(tensor) if tensor.is_on_host() => return Ok(Cow::Borrowed(tensor.bytes())),
            Self::Ready(tensor) => tensor.try_to_bytes()?,
            Self::Copied(Copied { map, range, .. }) => {
                return Ok(Cow::Borrowed(&map.bytes()[range.clone()]));
            }
            Self::Raw(raw) => return Ok(Cow::Borrowed(raw.bytes)),
            Self::Deferred { dtype, shape, make } => {
                let tensor = make()?;
                assert_eq!((tensor.dtype(), tensor.shape()), (*dtype, shape.as_slice()));
                let bytes = tensor.try_to_bytes()?;
                tensor.release_file();
                bytes
            }
        };
        Ok(Cow::Owned(bytes))
    }
}

/// Writes tensors in the types they have, aside, and renames the file when it is whole. It is not
/// synced to disk. After an error, a file that was at `path` before is still there.
///
/// # Errors
/// [`FileError::Io`], or [`FileError::Device`] if there is no memory for a tensor.
/// [`Device::settle`] reports failures to read its elements.
pub fn write<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, Lazy<'a>)>,
) -> Result<(), FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let mut aside = OsString::from(".");
    aside.push(path.file_name().unwrap_or_default());
    aside.push(".partial");
    let aside = path.with_file_name(aside);
    // The library makes a private file and gives it the name; the result must be as readable as
    // any other new file.
    let permissions =
        File::create(&aside).and_then(|file| file.metadata()).map_err(io)?.permissions();
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let failed = OnceLock::new();
    let entry = |(name, lazy)| (name, Entry { lazy, failed: &failed });
    let tensors = tensors.into_iter().map(entry);
    let written = serialize_to_file(tensors, Some(metadata), &aside).map_err(|error| match error {
        SafeTensorError::IoError(source) => io(source),
        other => FileError::damaged(path, other),
    });
    let written = failed.into_inner().map_or(written, |error| Err(error.into()));
    let finish =
        || fs::set_permissions(&aside, permissions).and_then(|()| fs::rename(&aside, path));
    let written = written.and_then(|()| finish().map_err(io));
    if written.is_err() {
        // Best effort: the first error is the one to report.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Copies `source` to a new tensor that outlives steps, stored as `storage`. If `source` is a
/// mapped file, its pages are released, so that plans need not count them.
///
/// # Errors
/// If there is no memory for it.
///
/// # Panics
/// If `storage` is a format that is only read from files.
pub fn load_as(
    device: &Device,
    category: crate::Category,
    source: &Tensor,
    storage: impl Into<Storage>,
) -> Result<Tensor, DeviceError> {
    let storage = storage.into();
    if device.target() == crate::Target::Cuda && !device.is_dry() {
        return device.upload(category, &load_as(Device::host(), category, source, storage)?);
    }
    let is_packed = |storage: Storage| storage.float().is_none();
    if is_packed(source.storage()) && is_packed(storage) && !device.is_dry() {
        let floats = load_as(Device::host(), category, source, DType::F32)?;
        return load_as(device, category, &floats, storage);
    }
    let mut copy = device.persistent(category, storage, source.shape())?;
    let bytes = source.num_bytes() + copy.num_bytes();
    if let Some(on) = device.begin(crate::Cost::memory_bound("convert", bytes)) {
        let cols = source.shape().last().copied().unwrap_or(1);
        match storage {
            Storage::Float(DType::F16) => on.convert_to_f16(source.view(), copy.f16_mut()),
            Storage::Float(_) => on.convert(source.view(), copy.view_mut()),
            Storage::Packed(format) => on.pack(source.view(), cols, format, copy.bytes_mut()),
        }
        source.release_file();
    }
    Ok(copy)
}

/// Packs a matrix of floats in the host's memory, so that an error of one column counts by its
/// importance. As [`load_as`] where nothing is known of columns or there is nothing to search for.
///
/// # Errors
/// If there is no memory for it.
pub fn pack_as(
    source: &Tensor,
    storage: Storage,
    importance: &[f32],
) -> Result<Tensor, DeviceError> {
    let (device, category) = (Device::host(), crate::Category::Workspace);
    let is_searched = |format: &&WeightFormat| format.search.is_some() && !importance.is_empty();
    let format = match storage {
        Storage::Packed(format) => Some(format).filter(is_searched),
        Storage::Float(_) => None,
    };
    let Some(format) = format else { return load_as(device, category, source, storage) };
    let mut packed = Tensor::try_zeros(storage, source.shape())?;
    let bytes = source.num_bytes() + packed.num_bytes();
    if let Some(on) = device.begin(crate::Cost::memory_bound("pack", bytes)) {
        on.pack_by_importance(source.view(), importance, format, packed.bytes_mut());
    }
    Ok(packed)
}

/// Length and content of the header. The library compares offsets with each other and with the
/// length of the file.
pub(crate) fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    header::check(bytes)?;
    SafeTensors::read_metadata(bytes).map_err(|error| match error {
        SafeTensorError::InvalidOffset(name) => {
            format!("the offset of tensor `{name}` is not where the tensor before it ends")
        }
        other => other.to_string(),
    })
}

/// Whether a file that is not safetensors is a zip archive (`torch.save` since 1.6) or a bare
/// pickle of protocol 2 or later. Not for safetensors files: their first bytes are a length, and
/// lengths such as 640 look like the start of a pickle.
fn is_pickle(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..])
}

/// The nearest f32 of each f64.
///
/// # Errors
/// `out_of_range` of a number that has none, or if there is no memory.
fn rounded(
    bytes: &[u8],
    shape: &[usize],
    out_of_range: impl Fn(f64) -> FileError,
) -> Result<Tensor, FileError> {
    let mut tensor = Tensor::try_zeros(DType::F32, shape)?;
    for (x, &value) in tensor.f32_mut().iter_mut().zip(bytes.as_chunks().0) {
        let value = f64::from_le_bytes(value);
        *x = value as f32;
        if x.is_infinite() && value.is_finite() {
            return Err(out_of_range(value));
        }
    }
    Ok(tensor)
}

/// What elements are once they are read.
fn element_type(dtype: Dtype) -> Option<DType> {
    match dtype {
        Dtype::F32 | Dtype::F64 => Some(DType::F32),
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::Bf16),
        _ => None,
    }
}

fn file_type(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::Bf16 => Dtype::BF16,
    }
}
