//! Element types and runtime-typed slices.
//!
//! Other crates speak of types at run time ([`DType`], [`View`]); generics stay inside this crate.

pub use half::{bf16, f16};

use crate::cuda::Slice;

/// Element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// IEEE 754 binary16; on the CPU weights only.
    F16,
    /// Bytes with zero point 128 and one `f32` scale per row: see [`Int8Rows`].
    Int8,
}

impl DType {
    /// Bytes of one element, scales apart.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
            DType::Int8 => 1,
        }
    }

    /// Bytes of an array of that shape.
    pub fn num_bytes(self, shape: &[usize]) -> usize {
        let elements = shape.iter().product::<usize>() * self.size();
        match (self, shape) {
            (DType::Int8, [rows @ .., _]) => elements + 4 * rows.iter().product::<usize>(),
            _ => elements,
        }
    }

    /// The name used in files and messages: `f32`, `bf16`, `f16`, `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::Bf16 => "bf16",
            DType::F16 => "f16",
            DType::Int8 => "int8",
        }
    }
}

/// A number that kernels read and write through `f32`.
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

// The conversions of `half` branch or call out; these are selects and shifts, so loops over them
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

/// A row-major matrix of bytes: element `(i, j)` is `scales[i] · (values[i, j] - 128)`.
///
/// Symmetric quantisation, so that the zero point is the same everywhere; as unsigned bytes, which
/// is how `vpdpbusd` takes its first operand.
#[derive(Clone, Copy, Debug)]
pub struct Int8Rows<'a> {
    /// `[rows, cols]`
    pub values: &'a [u8],
    /// `[rows]`
    pub scales: &'a [f32],
}

impl<'a> Int8Rows<'a> {
    /// Zero.
    pub const ZERO_POINT: u8 = 128;

    /// The values alone, for products whose other operand has taken the scales in.
    pub fn without_scales(self) -> Self {
        Self { scales: &[], ..self }
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.values.len() / self.scales.len().max(1)
    }
}

/// Elements of an array, read through `f32`.
pub(crate) trait Elements: Copy + Sync {
    /// Element `index`, which is in row `row`.
    fn at(&self, index: usize, row: usize) -> f32;
}

impl<E: Element> Elements for &[E] {
    #[inline(always)]
    fn at(&self, index: usize, _: usize) -> f32 {
        self[index].to_f32()
    }
}

impl Elements for Int8Rows<'_> {
    #[inline(always)]
    fn at(&self, index: usize, row: usize) -> f32 {
        let centred = f32::from(self.values[index]) - f32::from(Int8Rows::ZERO_POINT);
        centred * self.scales[row]
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
    /// Bytes with scales.
    Int8(Int8Rows<'a>),
    /// Elements of any type in a GPU's memory.
    Cuda(Slice<'a>),
}

/// A unique slice whose element type is known at run time.
#[derive(Debug)]
pub enum ViewMut<'a> {
    /// `f32` elements.
    F32(&'a mut [f32]),
    /// `bf16` elements.
    Bf16(&'a mut [bf16]),
    /// Elements of any type in a GPU's memory.
    Cuda(Slice<'a>),
}

/// What the CPU says to elements that it cannot reach: a mistake of the caller's.
#[cold]
pub(crate) fn out_of_reach() -> ! {
    panic!("the CPU cannot read a GPU's memory")
}

/// Runs `$body` with `$name` bound to what is inside a [`View`] or [`ViewMut`]: a slice of floats,
/// or with `any` also [`Int8Rows`], which elsewhere are a mistake of the caller's.
macro_rules! with_elements {
    (any $view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::element::View::F32($name) => $body,
            $crate::element::View::Bf16($name) => $body,
            $crate::element::View::F16($name) => $body,
            $crate::element::View::Int8($name) => $body,
            $crate::element::View::Cuda(_) => $crate::element::out_of_reach(),
        }
    };
    ($view:expr, $name:ident => $body:expr) => {
        match $view {
            $crate::element::View::F32($name) => $body,
            $crate::element::View::Bf16($name) => $body,
            $crate::element::View::F16($name) => $body,
            $crate::element::View::Int8(_) => panic!("expected floats, found int8"),
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
            View::Int8(rows) => rows.values.len(),
            View::Cuda(slice) => slice.len(),
            floats => with_elements!(floats, x => x.len()),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        match self {
            View::F32(_) => DType::F32,
            View::Bf16(_) => DType::Bf16,
            View::F16(_) => DType::F16,
            View::Int8(_) => DType::Int8,
            View::Cuda(slice) => slice.dtype(),
        }
    }

    /// The elements in a GPU's memory.
    ///
    /// # Panics
    /// If they are in the CPU's.
    pub(crate) fn cuda(self) -> Slice<'a> {
        match self {
            View::Cuda(slice) => slice,
            _ => panic!("a GPU cannot read the CPU's memory"),
        }
    }

    /// The slice, which must hold `f32`.
    ///
    /// # Panics
    /// If it holds anything else.
    pub fn f32(self) -> &'a [f32] {
        match self {
            View::F32(x) => x,
            View::Cuda(_) => out_of_reach(),
            other => panic!("expected f32, found {}", other.dtype().name()),
        }
    }

    /// Length of the rows that have scales of their own; all elements where there are none.
    pub(crate) fn cols(&self) -> usize {
        match self {
            View::Int8(rows) => rows.cols(),
            View::Cuda(slice) => slice.cols(),
            floats => floats.len().max(1),
        }
    }

    /// The rows of bytes.
    ///
    /// # Panics
    /// If it holds anything else.
    pub fn int8(self) -> Int8Rows<'a> {
        match self {
            View::Int8(rows) => rows,
            View::Cuda(_) => out_of_reach(),
            other => panic!("expected int8, found {}", other.dtype().name()),
        }
    }

    /// The elements `start..start + len`, which have no scales.
    ///
    /// # Panics
    /// If there are fewer, or if they have scales.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            View::F32(x) => View::F32(&x[start..start + len]),
            View::Bf16(x) => View::Bf16(&x[start..start + len]),
            View::F16(x) => View::F16(&x[start..start + len]),
            View::Int8(_) => panic!("expected floats, found int8"),
            View::Cuda(slice) => View::Cuda(slice.part(start, len)),
        }
    }

    /// A copy as `f32`.
    pub fn to_vec_f32(&self) -> Vec<f32> {
        let cols = self.cols();
        with_elements!(any *self, x => (0..self.len()).map(|i| x.at(i, i / cols)).collect())
    }
}

impl<'a> ViewMut<'a> {
    /// The slice, which must hold `f32`.
    ///
    /// # Panics
    /// If it holds anything else.
    pub fn f32(self) -> &'a mut [f32] {
        match self {
            ViewMut::F32(x) => x,
            ViewMut::Bf16(_) => panic!("expected f32, found bf16"),
            ViewMut::Cuda(_) => out_of_reach(),
        }
    }

    /// The elements in a GPU's memory.
    ///
    /// # Panics
    /// If they are in the CPU's.
    pub(crate) fn cuda(self) -> Slice<'a> {
        match self {
            ViewMut::Cuda(slice) => slice,
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
    /// If there are fewer.
    pub fn part(self, start: usize, len: usize) -> Self {
        match self {
            ViewMut::F32(x) => ViewMut::F32(&mut x[start..start + len]),
            ViewMut::Bf16(x) => ViewMut::Bf16(&mut x[start..start + len]),
            ViewMut::Cuda(slice) => ViewMut::Cuda(slice.part(start, len)),
        }
    }

    /// Overwrites every element with the nearest value of `source`.
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
