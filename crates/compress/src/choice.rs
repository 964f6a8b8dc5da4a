//! The type of each tensor, and what is done where its rows cannot take the one that is wanted.

use crate::mix::{Facts, Mix, Stored};
use hone_tensor::{ShapeError, Storage};

/// A tensor's type.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// What is written.
    pub storage: Storage,
    /// What the mix says, if that is something else.
    pub instead_of: Option<Storage>,
}

/// What is done where rows are not whole blocks of the wanted type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// It is an error.
    Refuse,
    /// The type that llama.cpp takes then, which is larger.
    LlamaCpp,
}

/// Why a model is not written in a mix.
#[derive(Debug, thiserror::Error)]
pub enum CompressError {
    /// Rows that are no whole blocks.
    #[error(
        "{mix}: {count} of {all} matrices have rows that are not whole blocks of their type, such \
         as {tensor} with rows of {cols} in {wanted}. Give --fallback llama.cpp to store them as \
         llama.cpp does, in larger types, or one of the types that all rows can take: {}",
        .possible.join(", ")
    )]
    Ragged {
        /// Name of the mix.
        mix: &'static str,
        /// Matrices with such rows.
        count: usize,
        /// Matrices.
        all: usize,
        /// The first of them.
        tensor: String,
        /// Length of its rows.
        cols: usize,
        /// Its type.
        wanted: &'static str,
        /// Mixes without such matrices.
        possible: Vec<&'static str>,
    },
}

/// The type of each tensor in a mix.
///
/// # Errors
/// If rows cannot take their type, and may not take another.
pub fn choose(
    mix: Mix,
    facts: &Facts,
    tensors: &[Stored<'_>],
    fallback: Fallback,
) -> Result<Vec<Choice>, CompressError> {
    let types = |mix: Mix| mix.types(facts, tensors);
    let wanted = types(mix);
    let ragged: Vec<usize> =
        (0..tensors.len()).filter(|&i| is_ragged(&tensors[i], wanted[i])).collect();
    if let (Some(&first), Fallback::Refuse) = (ragged.first(), fallback) {
        let fits = |mix: &Mix| {
            tensors.iter().zip(types(*mix)).all(|(tensor, storage)| !is_ragged(tensor, storage))
        };
        let possible = Mix::names().filter_map(Mix::named).filter(fits).map(|mix| mix.name);
        return Err(CompressError::Ragged {
            mix: mix.name,
            count: ragged.len(),
            all: tensors.iter().filter(|tensor| tensor.is_matrix).count(),
            tensor: tensors[first].name.to_owned(),
            cols: tensors[first].shape.last().copied().unwrap_or(0),
            wanted: wanted[first].name(),
            possible: possible.collect(),
        });
    }
    let choice = |(tensor, &wanted): (&Stored<'_>, &Storage)| {
        let mut storage = wanted;
        while is_ragged(tensor, storage) {
            storage = larger(storage);
        }
        Choice { storage, instead_of: (storage != wanted).then_some(wanted) }
    };
    Ok(tensors.iter().zip(&wanted).map(choice).collect())
}

fn is_ragged(tensor: &Stored<'_>, storage: Storage) -> bool {
    let checked = storage.checked_num_bytes(tensor.shape);
    tensor.is_matrix && matches!(checked, Err(ShapeError::Ragged { .. }))
}

/// The type that llama.cpp takes where rows are no whole blocks.
fn larger(storage: Storage) -> Storage {
    let name = match storage.name() {
        "q2_k" | "q3_k" => "q4_0",
        "iq4_xs" => "iq4_nl",
        "q4_k" => "q5_0",
        "q5_k" => "q5_1",
        "q6_k" => "q8_0",
        _ => "f16",
    };
    Storage::from_name(name).expect("the name of a type")
}
