//! What shapes a storage can have: the check at the boundary, before memory is asked for.

use super::Storage;

/// A shape that a storage cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// Rows are not whole blocks.
    #[error("rows of {cols} weights are not whole blocks of {block}, as {format} has them")]
    Ragged {
        /// Name of the format.
        format: &'static str,
        /// Length of a row.
        cols: usize,
        /// Weights of a block.
        block: usize,
    },
    /// More bytes than can be addressed.
    #[error("a tensor of shape {0:?} is larger than any memory")]
    TooLarge(Vec<usize>),
}

impl Storage {
    /// Size in bytes of an array of this shape, with rows along its last dimension.
    ///
    /// # Errors
    /// If its rows are not whole blocks, or if there can be no such array.
    pub fn checked_num_bytes(self, shape: &[usize]) -> Result<usize, ShapeError> {
        let len = shape.iter().try_fold(1, |len: usize, &size| len.checked_mul(size));
        // No format takes more bytes for a weight, and none more than a few for none.
        let fits = len.is_some_and(|len| len <= isize::MAX as usize / 16);
        if !fits {
            return Err(ShapeError::TooLarge(shape.to_vec()));
        }
        match self {
            Self::Packed(format) => {
                let (cols, block) = (shape.last().copied().unwrap_or(1), format.block);
                match cols.is_multiple_of(block) {
                    true => Ok(self.num_bytes(shape)),
                    false => Err(ShapeError::Ragged { format: format.name, cols, block }),
                }
            }
            Self::Float(_) => Ok(self.num_bytes(shape)),
        }
    }
}
