//! Aligned memory and typed views of bytes.

use crate::DeviceError;
use crate::element::{DType, f16};
use crate::format::{Packed, Storage};
use crate::view::{View, ViewMut};
use memmap2::MmapMut;
use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Alignment of regions and of blocks inside the arena: one cache line.
pub const ALIGNMENT: usize = 64;

/// A fixed range of zeroed memory aligned to [`ALIGNMENT`], shared by disjoint blocks.
#[derive(Debug)]
pub struct Region {
    start: *mut u8,
    len: usize,
    /// The mapping, if the memory came directly from the system.
    map: Option<MmapMut>,
}

/// Regions of at least this size are mapped directly: pages cost nothing before they are used, and
/// huge pages are possible.
const LARGE: usize = 1 << 20;

// SAFETY: `Region` gives access only through `bytes` and `bytes_mut`, whose callers promise not to
// alias a part that is being written.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` zeroed bytes. Pages of a large region are allocated on first touch.
    ///
    /// # Errors
    /// If the system has no more memory.
    pub fn new(len: usize) -> Result<Self, DeviceError> {
        if len == 0 {
            return Ok(Self { start: std::ptr::null_mut(), len, map: None });
        }
        let refused = || DeviceError::out_of_host_memory(len);
        if len >= LARGE {
            let mut map = MmapMut::map_anon(len).map_err(|_| refused())?;
            // Best effort: falls back to small pages.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Ok(Self { start: map.as_mut_ptr(), len, map: Some(map) });
        }
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(Self::layout(len)) };
        if start.is_null() {
            return Err(refused());
        }
        Ok(Self { start, len, map: None })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes `offset..offset + len`.
    ///
    /// # Safety
    /// Nothing may write to this part while the slice is in use.
    pub unsafe fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        if len == 0 {
            return &[];
        }
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: inside the region (checked), initialised (zeroed), not written (promised).
        unsafe { std::slice::from_raw_parts(self.start.add(offset), len) }
    }

    /// The bytes `offset..offset + len`, to write.
    ///
    /// # Safety
    /// Nothing else may read or write this part while the slice is in use.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn bytes_mut(&self, offset: usize, len: usize) -> &mut [u8] {
        if len == 0 {
            return &mut [];
        }
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: inside the region (checked), initialised (zeroed), not aliased (promised).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset), len) }
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, ALIGNMENT).expect("a length that fits the address space")
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.len > 0 && self.map.is_none() {
            // SAFETY: allocated in `new` with this very layout.
            unsafe { dealloc(self.start, Self::layout(self.len)) };
        }
    }
}

/// Returns freed memory to the system, so that resident memory reflects actual use. Does nothing
/// with C libraries other than glibc.
pub fn release_free_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: no precondition; glibc's own locks guard the heap.
        unsafe { libc::malloc_trim(0) };
    }
}

/// Views bytes as `len` elements in rows of `cols`; `None` if they are misaligned or their number
/// does not match.
pub fn view(
    bytes: &[u8],
    storage: impl Into<Storage>,
    (len, cols): (usize, usize),
) -> Option<View<'_>> {
    // SAFETY: every bit pattern is a value of these types; `align_to` respects alignment.
    let view = unsafe {
        match storage.into() {
            Storage::Float(DType::F32) => whole(bytes.align_to()).map(View::F32),
            Storage::Float(DType::Bf16) => whole(bytes.align_to()).map(View::Bf16),
            Storage::Float(DType::F16) => whole(bytes.align_to()).map(View::F16),
            Storage::Packed(format) => Packed::new(bytes, format, (len, cols)).map(View::Packed),
        }
    };
    view.filter(|view| view.len() == len)
}

/// Views bytes as elements of `dtype`, for writing.
///
/// # Panics
/// If the bytes are misaligned, not a whole number of elements, or `dtype` is read-only.
pub fn view_mut(bytes: &mut [u8], dtype: DType) -> ViewMut<'_> {
    // SAFETY: as in `view`.
    let (before, after, view) = unsafe {
        match dtype {
            DType::F32 => {
                let (before, middle, after) = bytes.align_to_mut();
                (before.len(), after.len(), ViewMut::F32(middle))
            }
            DType::Bf16 => {
                let (before, middle, after) = bytes.align_to_mut();
                (before.len(), after.len(), ViewMut::Bf16(middle))
            }
            DType::F16 => panic!("f16 tensors are weights and never written by kernels"),
        }
    };
    assert!(before == 0 && after == 0, "memory of a tensor is aligned and whole");
    view
}

/// Views bytes as `f16`, for writing weights on load.
///
/// # Panics
/// If the bytes are misaligned or not a whole number of elements.
pub fn f16_mut(bytes: &mut [u8]) -> &mut [f16] {
    // SAFETY: as in `view`.
    let (before, elements, after) = unsafe { bytes.align_to_mut() };
    assert!(before.is_empty() && after.is_empty(), "memory of a tensor is aligned and whole");
    elements
}

/// The elements as bytes, in native byte order.
pub fn bytes_of(view: View<'_>) -> &[u8] {
    if let View::Packed(packed) = view {
        return packed.bytes();
    }
    let (start, len) = crate::view::with_elements!(view, x => (x.as_ptr().cast(), size_of_val(x)));
    // SAFETY: the same memory, for the same lifetime; every byte of a float is initialised.
    unsafe { std::slice::from_raw_parts(start, len) }
}

/// The elements as bytes in the machine's order, to write.
pub fn bytes_of_mut(x: &mut [f32]) -> &mut [u8] {
    // SAFETY: the same memory, for the same lifetime; every pattern of bits is a float.
    unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), size_of_val(x)) }
}

fn whole<'a, T>((before, middle, after): (&'a [u8], &'a [T], &'a [u8])) -> Option<&'a [T]> {
    (before.is_empty() && after.is_empty()).then_some(middle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_zeroed_aligned_and_bounded() {
        let region = Region::new(256).unwrap();
        // SAFETY: nothing else uses the region.
        let bytes = unsafe { region.bytes(64, 64) };
        assert!(bytes.iter().all(|&b| b == 0));
        assert!((bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT));
        // SAFETY: the call panics before it gives anything out.
        let outside = std::panic::catch_unwind(|| unsafe { region.bytes(250, 10).len() });
        assert!(outside.is_err());
    }

    #[test]
    fn more_memory_than_there_is_is_an_error() {
        for len in [1 << 55, usize::MAX] {
            assert_eq!(Region::new(len).err(), Some(DeviceError::out_of_host_memory(len)));
        }
    }

    #[test]
    fn misaligned_bytes_have_no_view() {
        let region = Region::new(64).unwrap();
        // SAFETY: nothing else uses the region.
        let bytes = unsafe { region.bytes(0, 64) };
        assert!(view(&bytes[1..61], DType::F32, (15, 1)).is_none());
        assert!(view(&bytes[0..6], DType::F32, (1, 1)).is_none());
        assert!(view(&bytes[4..12], DType::F32, (3, 1)).is_none());
        assert_eq!(view(&bytes[4..12], DType::F32, (2, 1)).map(|v| v.len()), Some(2));
        assert_eq!(view(&bytes[2..12], DType::Bf16, (5, 1)).map(|v| v.len()), Some(5));
        assert_eq!(view(&bytes[4..32], Storage::INT8, (12, 3)).map(|v| v.len()), Some(12));
        assert!(view(&bytes[4..31], Storage::INT8, (12, 3)).is_none());
        assert!(view(&bytes[2..30], Storage::INT8, (12, 3)).is_none());
    }
}
