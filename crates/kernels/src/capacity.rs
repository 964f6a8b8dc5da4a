//! Fallible allocation of host memory.

use crate::DeviceError;

/// An empty vector with capacity for `len` elements. For lengths that grow with a model or a file:
/// a machine may have too little memory for them.
///
/// # Errors
/// If the system has no more memory.
pub fn try_with_capacity<T>(len: usize) -> Result<Vec<T>, DeviceError> {
    let mut vector = Vec::new();
    let refused = |_| DeviceError::out_of_host_memory(len.saturating_mul(size_of::<T>()));
    vector.try_reserve_exact(len).map_err(refused)?;
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_a_capacity_is_an_error() {
        for len in [1 << 55, usize::MAX] {
            assert_eq!(
                try_with_capacity::<u8>(len).err(),
                Some(DeviceError::out_of_host_memory(len))
            );
        }
        assert!(try_with_capacity::<u32>(7).is_ok_and(|vec| vec.is_empty() && vec.capacity() >= 7));
    }
}
