//! A slice whose disjoint parts are written by several tasks.

use std::marker::PhantomData;
use std::ops::Range;

/// Shares a mutable slice between tasks that write disjoint parts of it.
pub struct Split<'a, T> {
    start: *mut T,
    len: usize,
    lifetime: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `slice`, whose callers promise disjoint parts.
unsafe impl<T: Send> Sync for Split<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Split<'_, T> {}

impl<'a, T> Split<'a, T> {
    /// Borrows the slice for as long as `self` lives.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), lifetime: PhantomData }
    }

    /// The part `offset..offset + len`.
    ///
    /// # Safety
    /// Parts in use at the same time must not overlap.
    ///
    /// # Panics
    /// If the part is not inside the slice.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, offset: usize, len: usize) -> &mut [T] {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: inside the slice (checked), and not overlapping another part in use (promised).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }
}

/// A part of one of several arrays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Index of the array.
    pub array: usize,
    /// Its elements.
    pub range: Range<usize>,
}

/// Arrays of these lengths in pieces of `len` elements, the last of each array as long as it is.
/// Handed out together, so that arrays too small to be shared between threads do not wait for one
/// another.
pub(crate) fn pieces(lens: impl IntoIterator<Item = usize>, len: usize) -> Vec<Piece> {
    let of_array = |(array, total): (usize, usize)| {
        (0..total).step_by(len).map(move |start| {
            let range = start..total.min(start + len);
            Piece { array, range }
        })
    };
    lens.into_iter().enumerate().flat_map(of_array).collect()
}
