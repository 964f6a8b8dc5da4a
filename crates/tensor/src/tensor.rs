//! A contiguous array with an element type and a shape known at run time.

use crate::device::arena::Block;
use crate::mapped::Mapped;
use crate::{Category, Device};
use hone_kernels::format::{self, Tiles};
use hone_kernels::{DType, DeviceError, Storage, View, ViewMut, memory, try_with_capacity};
use std::ops::Range;
use std::sync::Arc;

/// A contiguous, row-major array. Clones share the memory; only a sole handle may write to it.
///
/// On the dry device a tensor has a shape and no memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    memory: Memory,
    storage: Storage,
    shape: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Memory {
    Block(Arc<Block>),
    File { map: Arc<Mapped>, offset: usize },
}

/// Where the elements of a matrix, or of a vector, whose columns are one, lie in a greater tensor:
/// `(row, col)` is its element `first + row · row_step + col · col_step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The first element.
    pub first: usize,
    /// Elements between rows.
    pub row_step: usize,
    /// Elements between columns.
    pub col_step: usize,
}

impl Place {
    /// Rows and columns.
    fn sizes(shape: &[usize]) -> (usize, usize) {
        (shape[0], shape[1..].iter().product())
    }

    fn is_contiguous(self, shape: &[usize]) -> bool {
        let (_, cols) = Self::sizes(shape);
        self.row_step == cols && (cols == 1 || self.col_step == 1)
    }

    /// Copies elements of `N` bytes. Of each, `pair` makes its number in the part and in the whole
    /// that in `from` and that in `to`.
    fn copy<const N: usize>(
        self,
        shape: &[usize],
        from: &[u8],
        to: &mut [u8],
        pair: impl Fn(usize, usize) -> (usize, usize),
    ) {
        // Blocks of columns, so that neither side is read or written all over at once.
        const COLS: usize = 32;
        let ((from, _), (to, _)) = (from.as_chunks::<N>(), to.as_chunks_mut::<N>());
        let (rows, cols) = Self::sizes(shape);
        for start in (0..cols).step_by(COLS) {
            for row in 0..rows {
                for col in start..cols.min(start + COLS) {
                    let at = self.first + row * self.row_step + col * self.col_step;
                    let (source, target) = pair(row * cols + col, at);
                    to[target] = from[source];
                }
            }
        }
    }
}

impl Tensor {
    pub(crate) fn from_block(block: Block, storage: impl Into<Storage>, shape: &[usize]) -> Self {
        let memory = Memory::Block(Arc::new(block));
        Self { memory, storage: storage.into(), shape: shape.to_vec() }
    }

    /// A tensor with its own copy of `bytes`, in the layout of `storage`.
    ///
    /// # Panics
    /// If there are more or fewer bytes than the shape needs, or the system has no more memory.
    pub fn from_bytes(bytes: &[u8], storage: impl Into<Storage>, shape: &[usize]) -> Self {
        Self::try_from_bytes(bytes, storage, shape).unwrap_or_else(|error| panic!("{error}"))
    }

    /// [`Tensor::from_bytes`] for many bytes.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub(crate) fn try_from_bytes(
        bytes: &[u8],
        storage: impl Into<Storage>,
        shape: &[usize],
    ) -> Result<Self, DeviceError> {
        let mut tensor = Self::try_zeros(storage, shape)?;
        tensor.bytes_mut().copy_from_slice(bytes);
        Ok(tensor)
    }

    /// Zeros in host memory.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub fn try_zeros(storage: impl Into<Storage>, shape: &[usize]) -> Result<Self, DeviceError> {
        let storage = storage.into();
        let block = Block::on_host(storage.num_bytes(shape))?;
        Ok(Self::from_block(block, storage, shape))
    }

    /// A tensor with its own copy of `values`.
    ///
    /// # Panics
    /// If there are more or fewer values than the shape needs.
    pub fn from_f32(values: &[f32], shape: &[usize]) -> Self {
        Self::from_bytes(memory::bytes_of(View::F32(values)), DType::F32, shape)
    }

    /// A read-only tensor over bytes of a mapped file; `None` if they are misaligned for `storage`
    /// or outside of the file, or if `storage` cannot have this shape.
    pub fn from_file(
        map: &Arc<Mapped>,
        offset: usize,
        storage: impl Into<Storage>,
        shape: &[usize],
    ) -> Option<Self> {
        let (storage, memory) = (storage.into(), Memory::File { map: Arc::clone(map), offset });
        let num_bytes = storage.checked_num_bytes(shape).ok()?;
        let tensor = Self { memory, storage, shape: shape.to_vec() };
        let bytes = map.bytes().get(offset..)?.get(..num_bytes)?;
        memory::view(bytes, storage, (tensor.len(), tensor.cols()))?;
        Some(tensor)
    }

    /// The matrix or vector of `shape` that is part of a tensor of floats in a mapped file: in its
    /// memory if the part is contiguous, otherwise a copy, and on a dry `device` without memory.
    ///
    /// # Errors
    /// If the system has no more memory.
    ///
    /// # Panics
    /// If the part has elements that the tensor has not.
    pub fn part_of_file(
        &self,
        device: &Device,
        place: Place,
        shape: &[usize],
    ) -> Result<Self, DeviceError> {
        let size = self.dtype().size();
        if let (Memory::File { map, offset }, true) = (&self.memory, place.is_contiguous(shape)) {
            let part = Self::from_file(map, offset + place.first * size, self.storage, shape);
            return Ok(part.expect("a part of the tensor"));
        }
        if device.is_dry() {
            return Device::dry().persistent(Category::Weights, self.storage, shape);
        }
        let mut part = Self::try_zeros(self.storage, shape)?;
        let (from, to) = (self.bytes(), part.bytes_mut());
        match size {
            2 => place.copy::<2>(shape, from, to, |element, at| (at, element)),
            _ => place.copy::<4>(shape, from, to, |element, at| (at, element)),
        }
        Ok(part)
    }

    /// A tensor in host memory made of `parts`, each with its place.
    ///
    /// # Errors
    /// If the system has no more memory, or a part is an error.
    ///
    /// # Panics
    /// If a part is not of this type, or has elements that the tensor has not.
    pub fn assembled(
        dtype: DType,
        shape: &[usize],
        parts: impl Iterator<Item = (Place, Result<Self, DeviceError>)>,
    ) -> Result<Self, DeviceError> {
        let (mut tensor, size) = (Self::try_zeros(dtype, shape)?, dtype.size());
        let to = tensor.bytes_mut();
        for (place, part) in parts {
            let part = part?.to_host()?;
            assert_eq!(part.dtype(), dtype);
            let from = part.bytes();
            match place.is_contiguous(part.shape()) {
                true => to[place.first * size..][..from.len()].copy_from_slice(from),
                false if size == 2 => place.copy::<2>(part.shape(), from, to, |i, at| (i, at)),
                false => place.copy::<4>(part.shape(), from, to, |i, at| (i, at)),
            }
        }
        Ok(tensor)
    }

    /// Some rows of a matrix in host memory: in its memory if that is a mapped file's, otherwise a
    /// copy. `None` if its rows are not one after another, as they are in floats and in the types
    /// of GGUF files.
    ///
    /// # Errors
    /// If the system has no more memory.
    ///
    /// # Panics
    /// If there are no such rows.
    pub fn rows(&self, rows: Range<usize>) -> Result<Option<Self>, DeviceError> {
        let (cols, storage) = (self.cols(), self.storage);
        let row_bytes = match self.shape.len() == 2 && storage.to_ggml().is_some() {
            true => storage.num_bytes(&[1, cols]),
            false => return Ok(None),
        };
        assert!(rows.start <= rows.end && rows.end <= self.shape[0]);
        let (first, shape) = (rows.start * row_bytes, [rows.len(), cols]);
        if let Memory::File { map, offset } = &self.memory
            && let Some(rows) = Self::from_file(map, offset + first, storage, &shape)
        {
            return Ok(Some(rows));
        }
        let bytes = &self.bytes()[first..][..rows.len() * row_bytes];
        Self::try_from_bytes(bytes, storage, &shape).map(Some)
    }

    /// A matrix in host memory made of `pieces`, each some rows, one after another.
    ///
    /// # Errors
    /// If the system has no more memory, or a piece is an error.
    ///
    /// # Panics
    /// If the pieces are not of this type, or have more or fewer bytes.
    pub fn of_rows(
        storage: impl Into<Storage>,
        shape: &[usize],
        pieces: impl Iterator<Item = Result<Self, DeviceError>>,
    ) -> Result<Self, DeviceError> {
        let mut tensor = Self::try_zeros(storage, shape)?;
        let (storage, mut to) = (tensor.storage, tensor.bytes_mut());
        for piece in pieces {
            let piece = piece?;
            assert_eq!(piece.storage, storage);
            let (own, rest) = to.split_at_mut(piece.num_bytes());
            own.copy_from_slice(piece.bytes());
            to = rest;
        }
        assert!(to.is_empty(), "rows are missing");
        Ok(tensor)
    }

    /// The matrix whose columns these bytes have in tiles.
    ///
    /// # Panics
    /// If it is not packed, or its rows are not as many columns.
    #[must_use]
    pub fn with_tiles(self, tiles: Tiles) -> Self {
        let Storage::Packed(format) = self.storage else { panic!("columns of floats are moved") };
        assert_eq!(self.cols(), tiles.groups * tiles.per_group * tiles.len);
        Self { storage: Storage::Packed(format.tiled(tiles)), ..self }
    }

    /// The same elements in another shape with rows of the same length.
    ///
    /// # Panics
    /// If that has other rows.
    #[must_use]
    pub fn with_shape(self, shape: &[usize]) -> Self {
        assert_eq!((self.len(), self.cols()), (shape.iter().product(), shape[shape.len() - 1]));
        Self { shape: shape.to_vec(), ..self }
    }

    /// Storage format of the elements.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// Type of the elements, which must be floats.
    ///
    /// # Panics
    /// If they are packed.
    pub fn dtype(&self) -> DType {
        let float = self.storage.float();
        float.unwrap_or_else(|| panic!("expected floats, found {}", self.storage.name()))
    }

    /// Lengths of the dimensions, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn num_bytes(&self) -> usize {
        self.storage.num_bytes(&self.shape)
    }

    /// The elements, in the memory of the device that holds them.
    ///
    /// # Panics
    /// On a tensor of the dry device.
    pub fn view(&self) -> View<'_> {
        match &self.memory {
            Memory::Block(block) => block.view(self.storage, (self.len(), self.cols())),
            Memory::File { map, offset } => {
                let bytes = &map.bytes()[*offset..*offset + self.num_bytes()];
                let elements = (self.len(), self.cols());
                memory::view(bytes, self.storage, elements).expect("aligned when it was made")
            }
        }
    }

    /// A tensor in host memory with the same elements; this one if it is there already.
    ///
    /// # Errors
    /// If the system has no more memory. [`crate::Device::settle`] reports failures to read the
    /// elements.
    pub fn to_host(&self) -> Result<Tensor, DeviceError> {
        match &self.memory {
            Memory::Block(block) if !self.is_on_host() => {
                Ok(Self::from_block(block.to_host()?, self.storage, &self.shape))
            }
            _ => Ok(self.clone()),
        }
    }

    /// A copy of the elements as little-endian bytes, from any memory; zeros after a failure.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub(crate) fn try_to_bytes(&self) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = try_with_capacity(self.num_bytes())?;
        match &self.memory {
            Memory::Block(block) if !self.is_on_host() => {
                bytes.resize(self.num_bytes(), 0);
                block.read(&mut bytes);
            }
            _ => bytes.extend_from_slice(self.bytes()),
        }
        Ok(bytes)
    }

    /// A copy of the elements as `f32`, from any memory; zeros after a failure.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub fn try_to_vec_f32(&self) -> Result<Vec<f32>, DeviceError> {
        self.to_host()?.view().try_to_vec_f32()
    }

    /// [`Tensor::try_to_vec_f32`] for few elements.
    ///
    /// # Panics
    /// If the system has no more memory.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        self.try_to_vec_f32().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Overwrites all elements, in any memory, with `source`, rounded to nearest.
    ///
    /// # Panics
    /// If the memory is shared with another handle or is a file's, or the lengths differ.
    pub fn copy_from_f32(&mut self, source: &[f32]) {
        assert_eq!(self.len(), source.len());
        let dtype = self.dtype();
        let block = self.sole_block();
        if block.is_on_host() {
            return write_nearest(block.bytes_mut(), dtype, source);
        }
        let mut nearest = vec![0f32; source.len().min(PIECE)];
        let nearest = memory::bytes_of_mut(&mut nearest);
        for (i, piece) in source.chunks(PIECE).enumerate() {
            let nearest = &mut nearest[..piece.len() * dtype.size()];
            write_nearest(nearest, dtype, piece);
            block.write(i * PIECE * dtype.size(), nearest);
        }
    }

    /// The elements, which must be `f32`.
    ///
    /// # Panics
    /// If they are not, or on a tensor of the dry device.
    pub fn f32(&self) -> &[f32] {
        self.view().f32()
    }

    /// The elements, for writing.
    ///
    /// # Panics
    /// If the memory is shared with another handle or is a file's.
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        let (dtype, len) = (self.dtype(), (self.len(), self.cols()));
        self.sole_block().view_mut(dtype, len)
    }

    /// The elements, which must be `int8`, for writing.
    ///
    /// # Panics
    /// As [`Tensor::view_mut`], or if the elements are not `int8`.
    pub fn int8_mut(&mut self) -> format::Int8RowsMut<'_> {
        assert!(self.storage.is_int8());
        let cols = self.cols();
        format::int8_rows_mut(self.bytes_mut(), cols)
    }

    /// The elements, which must be `f16`, for writing.
    ///
    /// # Panics
    /// As [`Tensor::view_mut`], or if the elements are not `f16` in host memory.
    pub(crate) fn f16_mut(&mut self) -> &mut [hone_kernels::f16] {
        assert!(self.storage == DType::F16);
        memory::f16_mut(self.bytes_mut())
    }

    /// All bytes in the layout of the storage format, for writing.
    ///
    /// # Panics
    /// As [`Tensor::view_mut`], or if they are in GPU memory.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.num_bytes();
        &mut self.sole_block().bytes_mut()[..len]
    }

    fn sole_block(&mut self) -> &mut Block {
        match &mut self.memory {
            Memory::Block(block) => {
                Arc::get_mut(block).expect("only a sole handle may write to a tensor")
            }
            Memory::File { .. } => panic!("a mapped tensor is read-only"),
        }
    }

    /// Length of the rows.
    fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The elements, which must be `f32`, for writing.
    ///
    /// # Panics
    /// As [`Tensor::view_mut`], or if the elements are not `f32`.
    pub fn f32_mut(&mut self) -> &mut [f32] {
        self.view_mut().f32()
    }

    /// Whether its bytes are in host memory, or in a mapped file.
    pub fn is_on_host(&self) -> bool {
        match &self.memory {
            Memory::Block(block) => block.is_on_host(),
            Memory::File { .. } => true,
        }
    }

    /// Whether this is the only handle on memory that can be written.
    pub fn is_unique(&mut self) -> bool {
        match &mut self.memory {
            Memory::Block(block) => Arc::get_mut(block).is_some(),
            Memory::File { .. } => false,
        }
    }

    /// Gives the memory of a mapped file's pages back to the system, which reads them again when
    /// they are next wanted; a tensor with memory of its own keeps it.
    pub fn release_file(&self) {
        if let Memory::File { map, offset } = &self.memory {
            map.release(*offset, self.num_bytes());
        }
    }

    /// The elements as little-endian bytes, including scales of rows.
    pub fn bytes(&self) -> &[u8] {
        const { assert!(cfg!(target_endian = "little"), "files hold little-endian numbers") };
        memory::bytes_of(self.view())
    }
}

/// Elements that are copied to a GPU at a time.
const PIECE: usize = 1 << 20;

/// Writes `source` as elements of `dtype`, rounded to nearest.
fn write_nearest(bytes: &mut [u8], dtype: DType, source: &[f32]) {
    if dtype != DType::F16 {
        return memory::view_mut(bytes, dtype).copy_from_f32(source);
    }
    for (element, &value) in memory::f16_mut(bytes).iter_mut().zip(source) {
        *element = hone_kernels::f16::from_f32(value);
    }
}
