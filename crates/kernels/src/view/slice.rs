//! Slices of GPU memory.

use crate::element::{Address, DType};
use crate::format::Storage;
use std::marker::PhantomData;

/// Elements in GPU memory, exclusively borrowed for writing.
#[derive(Debug)]
pub struct SliceMut<'a>(Slice<'a>, PhantomData<&'a mut [u8]>);

impl<'a> SliceMut<'a> {
    /// # Safety
    /// Nothing else may read or write the elements while it lives.
    pub(crate) unsafe fn new(slice: Slice<'a>) -> Self {
        Self(slice, PhantomData)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The elements as a kernel parameter, giving up the exclusive borrow.
    pub(crate) fn into_slice(self) -> Slice<'a> {
        self.0
    }

    /// The elements `start..start + len`, which are floats.
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        Self(self.0.part(start, len), PhantomData)
    }
}

/// Elements in GPU memory.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    address: Address,
    storage: Storage,
    len: usize,
    /// Length of the rows.
    cols: usize,
    memory: PhantomData<&'a [u8]>,
}

impl Slice<'_> {
    /// `len` elements at `address`, in rows of `cols`.
    pub(crate) fn new(
        address: Address,
        storage: impl Into<Storage>,
        len: usize,
        cols: usize,
    ) -> Self {
        Self { address, storage: storage.into(), len, cols, memory: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Storage format of the elements.
    pub fn storage(&self) -> Storage {
        self.storage
    }

    /// The type of the elements, which must be floats.
    ///
    /// # Panics
    /// If they are packed.
    pub fn dtype(&self) -> DType {
        let float = self.storage.float();
        float.unwrap_or_else(|| panic!("expected floats, found {}", self.storage.name()))
    }

    /// Length of the rows.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Address of the first element.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// The elements `start..start + len`, which must be floats.
    pub(crate) fn part(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.len);
        let address = self.address + (start * self.dtype().size()) as u64;
        Self { address, len, ..self }
    }

    /// The slice itself, after checking that its elements are `f32`.
    ///
    /// # Panics
    /// If they are not.
    pub(crate) fn f32(self) -> Self {
        assert!(self.storage == DType::F32, "expected f32, found {}", self.storage.name());
        self
    }

    /// Name of the elements' storage in CUDA sources.
    pub(crate) fn type_name(&self) -> &'static str {
        self.storage.in_kernels()
    }

    /// Size in bytes.
    pub(crate) fn num_bytes(&self) -> usize {
        match self.storage {
            Storage::Float(dtype) => self.len * dtype.size(),
            packed => packed.num_bytes(&[self.len / self.cols.max(1), self.cols]),
        }
    }
}
