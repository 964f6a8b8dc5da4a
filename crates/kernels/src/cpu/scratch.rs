//! Per-thread scratch memory for packed operands and sums.

use crate::element::bf16;
use std::cell::RefCell;

thread_local! {
    static LINES: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line(#[allow(dead_code)] [u8; 64]);

/// A type for which every bit pattern is a value.
///
/// # Safety
/// Every bit pattern must be valid, and the alignment must be at most 64.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: floating-point numbers and integers have no invalid patterns.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for bf16 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u8 {}

/// Reinterprets a slice as elements of another type, as many as fit.
pub(crate) fn reinterpret<E: Plain>(x: &mut [f32]) -> &mut [E] {
    const { assert!(align_of::<E>() <= align_of::<f32>()) };
    let len = size_of_val(x) / size_of::<E>();
    // SAFETY: the same memory, long enough and aligned; any bits are values of `E`, and of `f32`.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), len) }
}

/// Scratch memory of the current task, a bump allocator.
#[derive(Default)]
pub(crate) struct Scratch<'a>(&'a mut [Line]);

/// Runs `body` with `bytes` of its thread's scratch memory, whose contents are left over from
/// earlier tasks. Calls must not nest.
pub(crate) fn with_scratch<R>(bytes: usize, body: impl FnOnce(Scratch<'_>) -> R) -> R {
    LINES.with_borrow_mut(|lines| {
        let count = bytes.div_ceil(64);
        if lines.len() < count {
            lines.resize(count, Line([0; 64]));
        }
        body(Scratch(lines))
    })
}

impl<'a> Scratch<'a> {
    /// Reborrows the memory, which can be allocated again afterwards.
    pub fn reborrow(&mut self) -> Scratch<'_> {
        Scratch(self.0)
    }

    /// Allocates `len` elements, aligned to a cache line.
    ///
    /// # Panics
    /// If not enough memory is left.
    pub fn take<E: Plain>(&mut self, len: usize) -> &'a mut [E] {
        let count = (len * size_of::<E>()).div_ceil(64);
        let (lines, rest) = std::mem::take(&mut self.0).split_at_mut(count);
        self.0 = rest;
        // SAFETY: the same memory, long enough and aligned; any bits are values of `E`.
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
    }
}
