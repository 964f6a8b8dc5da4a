//! Element types and runtime-typed slices.
//!
//! Other crates handle types at run time ([`DType`], [`View`]); generics stay inside this crate.

pub use half::{bf16, f16};

mod slice;

pub use slice::{Address, Slice, SliceMut};

use crate::DeviceError;
use crate::format::{Packed, Storage};
use crate::room::with_room;

/// Floating-point type that kernels compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16; on the CPU only for weights.
    F16,
}

impl DType {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }

    /// Size in bytes of an array of this shape.
    pub fn num_bytes(self, shape: &[usize]) -> usize {
        shape.iter().product::<usize>() * self.size()
    }

    /// The name used in files and messages: `f32`, `bf16`, `f16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        }
    }

    /// Its name in CUDA sources.
    pub(crate) const fn in_kernels(self) -> &'static str {
        match self {
            DType::F32 => "float",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
        }
    }
}

/// A number that kernels read and write as `f32`.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value, exactly.
    fn to_f32(self) -> f32;
    /// The nearest value, ties to even.
    fn from_f32(x: f32) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
}

// Conversions in `half` branch or call functions; these are selects and shifts, so loops over them
// vectorise.
impl Element for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet_nan = (bits >> 16) | 0x40;
        bf16::from_bits(if x.is_nan() { quiet_nan } else { rounded } as u16)
    }
}

impl Element for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        let bits = u32::from(self.to_bits());
        // Rebias the exponent by a multiplication, which also normalises subnormals.
        let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
        let special = (bits & 0x7c00) == 0x7c00;
        let magnitude = magnitude.to_bits() | if special { 0x7f80_0000 } else { 0 };
        f32::from_bits(magnitude | ((bits & 0x8000) << 16))
    }
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// Elements of an array, read as `f32`.
pub(crate) trait Elements: Copy + Sync {
    /// Element `index`.
    fn at(&self, index: usize) -> f32;
}

impl<E: Element> Elements for &[E] {
    #[inline(always)]
    fn at(&self, index: usize) -> f32 {
        self[index].to_f32()
    }
}

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
            $crate::element::View::F32($name) => $body,
            $crate::element::View::Bf16($name) => $body,
            $crate::element::View::F16($name) => $body,
            $crate::element::View::Packed($name) => $body,
            $crate::element::View::Cuda(_) => $crate::element::out_of_reach(),
        }
    };
    ($view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::element::View::F32($name) => $body,
            $crate::element::View::Bf16($name) => $body,
            $crate::element::View::F16($name) => $body,
            $crate::element::View::Packed(packed) => {
                $crate::element::not_floats(packed.format().name)
            }
            $crate::element::View::Cuda(_) => $crate::element::out_of_reach(),
        }
    };
    (mut $view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::element::ViewMut::F32($name) => $body,
            $crate::element::ViewMut::Bf16($name) => $body,
            $crate::element::ViewMut::Cuda(_) => $crate::element::out_of_reach(),
        }
    };
}
pub(crate) use with_elements;

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
        let mut values = with_room(self.len())?;
        with_elements!(any *self, x => values.extend((0..self.len()).map(|i| x.at(i))));
        Ok(values)
    }

    /// The same of few elements.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_agree_with_half() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (Element::to_f32(f16::from_bits(bits)), f16::from_bits(bits));
            assert!(ours == theirs.to_f32() || (ours.is_nan() && theirs.is_nan()), "f16 {bits:#x}");
            let b = bf16::from_bits(bits);
            assert!(Element::to_f32(b) == b.to_f32() || b.is_nan(), "bf16 {bits:#x}");
        }
        for bits in (0..=u32::MAX).step_by(65_521) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (<bf16 as Element>::from_f32(x), bf16::from_f32(x));
            assert!(ours == theirs || (ours.is_nan() && theirs.is_nan()), "{x:e}");
        }
    }
}
