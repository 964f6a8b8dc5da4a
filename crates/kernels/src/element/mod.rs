//! Element types.
//!
//! Other crates handle types at run time ([`DType`], [`crate::View`]); generics stay inside this
//! crate.

pub use half::{bf16, f16};

/// An address in GPU memory.
pub type Address = u64;

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

    /// The nearest number of this type.
    pub fn rounded(self, x: f32) -> f32 {
        match self {
            DType::F32 => x,
            DType::Bf16 => bf16::from_f32(x).to_f32(),
            DType::F16 => f16::from_f32(x).to_f32(),
        }
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
        let magnitude = bits & 0x7fff;
        // Below the least normal number, 2^-14, a mantissa is added to that, and that taken off
        // again: its bits are never those of a subnormal `f32`, which is zero in kernels that run
        // tiles, and slow elsewhere.
        let least = 113 << 23;
        let subnormal = f32::from_bits(least | magnitude << 13) - f32::from_bits(least);
        let rebias = if magnitude < 0x7c00 { 112 << 23 } else { 224 << 23 };
        let normal = f32::from_bits((magnitude << 13) + rebias);
        let value = if magnitude < 0x400 { subnormal } else { normal };
        f32::from_bits(value.to_bits() | (bits & 0x8000) << 16)
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

/// A shared slice of floats whose type is known at run time.
#[derive(Clone, Copy, Debug)]
pub enum Floats<'a> {
    /// `f32` elements.
    F32(&'a [f32]),
    /// `bf16` elements.
    Bf16(&'a [bf16]),
    /// `f16` elements.
    F16(&'a [f16]),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in kernels that run tiles, where a subnormal f32 is zero.
    #[test]
    fn halves_are_read_where_subnormals_are_zero() {
        struct Read(Vec<u16>);
        impl crate::cpu::Kernel for Read {
            type Output = Vec<f32>;
            const RUNS_TILES: bool = true;

            #[inline(always)]
            fn run(self) -> Vec<f32> {
                self.0.iter().map(|&bits| Element::to_f32(f16::from_bits(bits))).collect()
            }
        }
        let all: Vec<u16> = (0..=u16::MAX).collect();
        for isa in crate::cpu::Isa::available() {
            for (bits, found) in all.iter().zip(isa.run(Read(all.clone()))) {
                let half = f16::from_bits(*bits).to_f32();
                assert!(found == half || (found.is_nan() && half.is_nan()), "{isa:?}, {bits:#x}");
            }
        }
    }

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
