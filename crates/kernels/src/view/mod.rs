//! Runtime-typed slices, in host or GPU memory.

mod slice;

pub use slice::{Slice, SliceMut};

use crate::DeviceError;
use crate::capacity::try_with_capacity;
use crate::element::{DType, Element, Elements, Floats, bf16, f16};
use crate::format::{Packed, Storage};

/// A shared slice whose element type is known at run time.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// `f32` elements.
    F32(&'a [f32]),
    /// `bf16` elements.
    Bf16(&'a [bf16]),
    /// `f16` elements.
    F16(&'a [f16]),
    /// Packed weights.
    Packed(Packed<'a>),
    /// Elements of any type in GPU memory.
    Cuda(Slice<'a>),
}

/// A unique slice whose element type is known at run time.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// `f32` elements.
    F32(&'a mut [f32]),
    /// `bf16` elements.
    Bf16(&'a mut [bf16]),
    /// Elements of any type in GPU memory.
    Cuda(SliceMut<'a>),
}

/// Panics because a CPU kernel was given GPU memory, a bug in the caller.
#[cold]
pub(crate) fn out_of_reach() -> ! {
    panic!("the CPU cannot read a GPU's memory")
}

/// Panics because an operation on floats was given packed weights, a bug in the caller.
#[cold]
pub(crate) fn not_floats(name: &str) -> ! {
    panic!("expected floats, found {name}")
}

/// Runs `$body` with `$name` bound to the contents of a [`View`] or [`ViewMut`]: a slice of floats,
/// or, only with `any`, a [`Packed`] matrix.
macro_rules! with_elements {
    (any $view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::view::View::F32($name) => $body,
            $crate::view::View::Bf16($name) => $body,
            $crate::view::View::F16($name) => $body,
            $crate::view::View::Packed($name) => $body,
            $crate::view::View::Cuda(_) => $crate::view::out_of_reach(),
        }
    };
    ($view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::view::View::F32($name) => $body,
            $crate::view::View::Bf16($name) => $body,
            $crate::view::View::F16($name) => $body,
            $crate::view::View::Packed(packed) => $crate::view::not_floats(packed.format().name),
            $crate::view::View::Cuda(_) => $crate::view::out_of_reach(),
        }
    };
    (mut $view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::view::ViewMut::F32($name) => $body,
            $crate::view::ViewMut::Bf16($name) => $body,
            $crate::view::ViewMut::Cuda(_) => $crate::view::out_of_reach(),
        }
    };
}
pub(crate) use with_elements;

impl<'a> From<Floats<'a>> for View<'a> {
    fn from(floats: Floats<'a>) -> Self {
        match floats {
            Floats::F32(x) => Self::F32(x),
            Floats::Bf16(x) => Self::Bf16(x),
            Floats::F16(x) => Self::F16(x),
        }
    }
}

impl<'a> View<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            View::Packed(packed) => packed.len(),
            View::Cuda(slice) => slice.len(),
            floats => with_elements!(floats, x => x.len()),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Storage format of the elements.
    pub fn storage(&self) -> Storage {
        match self {
            View::F32(_) => DType::F32.into(),
            View::Bf16(_) => DType::Bf16.into(),
            View::F16(_) => DType::F16.into(),
            View::Packed(packed) => Storage::Packed(packed.format()),
            View::Cuda(slice) => slice.storage(),
        }
    }

    /// The type of the elements, which must be floats.
    ///
    /// # Panics
    /// If they are packed.
    pub fn dtype(&self) -> DType {
        let storage = self.storage();
        storage.float().unwrap_or_else(|| panic!("expected floats, found {}", storage.name()))
    }

    /// The elements in GPU memory.
    ///
    /// # Panics
    /// If they are in host memory.
    pub(crate) fn cuda(self) -> Slice<'a> {
        match self {
            View::Cuda(slice) => slice,
            _ => panic!("a GPU cannot read the CPU's memory"),
        }
    }

    /// The slice of `f32`.
    ///
    /// # Panics
    /// If the elements have another type.
    pub fn f32(self) -> &'a [f32] {
        match self {
            View::F32(x) => x,
            View::Cuda(_) => out_of_reach(),
            other => panic!("expected f32, found {}", other.storage().name()),
        }
    }

    /// The elements, which must be floats in host memory.
    ///
    /// # Panics
    /// If they are packed, or in GPU memory.
    pub(crate) fn floats(self) -> Floats<'a> {
        match self {
            View::F32(x) => Floats::F32(x),
            View::Bf16(x) => Floats::Bf16(x),
            View::F16(x) => Floats::F16(x),
            View::Packed(packed) => not_floats(packed.format().name),
            View::Cuda(_) => out_of_reach(),
        }
    }

    /// Length of a row of packed weights; the number of elements if they are floats.
    pub(crate) fn cols(&self) -> usize {
        match self {
            View::Packed(packed) => packed.cols(),
            View::Cuda(slice) => slice.cols(),
            floats => floats.len().max(1),
        }
    }

    /// The packed weights.
    ///
    /// # Panics
    /// If the elements are floats.
    pub fn packed(self) -> Packed<'a> {
        match self {
            View::Packed(packed) => packed,
            View::Cuda(_) => out_of_reach(),
            floats => panic!("expected packed weights, found {}", floats.storage().name()),
        }
    }

    /// The elements `start..start + len`, which must be floats.
    ///
    /// # Panics
    /// If the range is out of bounds, or if the elements are packed.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            View::F32(x) => View::F32(&x[start..start + len]),
            View::Bf16(x) => View::Bf16(&x[start..start + len]),
            View::F16(x) => View::F16(&x[start..start + len]),
            View::Packed(packed) => not_floats(packed.format().name),
            View::Cuda(slice) => View::Cuda(slice.part(start, len)),
        }
    }

    /// Reads the elements `first..first + out.len()`, which must be in one row, as `f32`.
    pub(crate) fn read(self, first: usize, out: &mut [f32]) {
        if let View::Packed(packed) = self {
            return packed.unpack(first, out);
        }
        with_elements!(self, x => {
            let x = &x[first..first + out.len()];
            out.iter_mut().zip(x).for_each(|(out, x)| *out = x.to_f32());
        });
    }

    /// A copy as `f32`.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub fn try_to_vec_f32(&self) -> Result<Vec<f32>, DeviceError> {
        let mut values = try_with_capacity(self.len())?;
        with_elements!(any *self, x => values.extend((0..self.len()).map(|i| x.at(i))));
        Ok(values)
    }

    /// [`View::try_to_vec_f32`] for few elements, of which a failure is not expected.
    ///
    /// # Panics
    /// If the system has no more memory.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        self.try_to_vec_f32().unwrap_or_else(|error| panic!("{error}"))
    }
}

impl<'a> ViewMut<'a> {
    /// A GPU slice that a kernel test writes.
    #[cfg(test)]
    pub(crate) fn of_gpu(slice: Slice<'a>) -> Self {
        // SAFETY: tests use it by one operation at a time.
        Self::Cuda(unsafe { SliceMut::new(slice) })
    }

    /// The slice of `f32`.
    ///
    /// # Panics
    /// If the elements have another type.
    pub fn f32(self) -> &'a mut [f32] {
        match self {
            ViewMut::F32(x) => x,
            ViewMut::Bf16(_) => panic!("expected f32, found bf16"),
            ViewMut::Cuda(_) => out_of_reach(),
        }
    }

    /// The elements in GPU memory.
    ///
    /// # Panics
    /// If they are in host memory.
    pub(crate) fn cuda(self) -> Slice<'a> {
        match self {
            ViewMut::Cuda(slice) => slice.into_slice(),
            _ => panic!("a GPU cannot write the CPU's memory"),
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            ViewMut::Cuda(slice) => slice.len(),
            elements => with_elements!(mut elements, x => x.len()),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements `start..start + len`.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            ViewMut::F32(x) => ViewMut::F32(&mut x[start..start + len]),
            ViewMut::Bf16(x) => ViewMut::Bf16(&mut x[start..start + len]),
            ViewMut::Cuda(slice) => ViewMut::Cuda(slice.part(start, len)),
        }
    }

    /// Overwrites all elements with those of `source`, rounded to nearest.
    pub fn copy_from_f32(self, source: &[f32]) {
        assert_eq!(self.len(), source.len());
        with_elements!(mut self, x => for (x, &s) in x.iter_mut().zip(source) {
            *x = Element::from_f32(s);
        })
    }
}
