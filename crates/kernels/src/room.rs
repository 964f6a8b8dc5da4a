//! Room in the host's memory, which may be refused.

use crate::DeviceError;

/// An empty vector with room for `len` elements, for as many as a file or a device holds.
///
/// # Errors
/// If the system has no more memory.
pub fn with_room<T>(len: usize) -> Result<Vec<T>, DeviceError> {
    let mut vector = Vec::new();
    let refused = |_| DeviceError::out_of_host_memory(len.saturating_mul(size_of::<T>()));
    vector.try_reserve_exact(len).map_err(refused)?;
    Ok(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_room_than_there_is_is_an_error() {
        for len in [1 << 55, usize::MAX] {
            assert_eq!(with_room::<u8>(len).err(), Some(DeviceError::out_of_host_memory(len)));
        }
        assert!(with_room::<u32>(7).is_ok_and(|room| room.is_empty() && room.capacity() >= 7));
    }
}
