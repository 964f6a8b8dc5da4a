//! Gated delta nets of Qwen3.5's files. Their value heads are in tiles, the first of each key head
//! and then the second ones, where Hugging Face's have those of a key head together.

use crate::config::DecoderConfig;
use crate::weights::{DeltaPart, Linear, Role};
use hone_tensor::gguf::GgufFile;
use hone_tensor::ops::DeltaHeads;
use hone_tensor::{DeviceError, Storage, Tensor};

/// What of a weight is a value head's.
pub(super) struct Tiles {
    heads: DeltaHeads,
    part: Part,
}

enum Part {
    /// So many rows, after those of queries and keys if the weight has these too.
    Rows { per_head: usize, after_keys: bool },
    /// Columns.
    Columns,
}

impl Tiles {
    /// Those of a weight whose heads have another order in the file.
    pub(super) fn of(role: Role, config: &DecoderConfig) -> Option<Self> {
        let (Role::Matrix(layer, _) | Role::Delta(layer, _)) = role else { return None };
        let heads = config.layers[layer].delta?.heads;
        let rows = |per_head, after_keys| Part::Rows { per_head, after_keys };
        let part = match role {
            Role::Matrix(_, Linear::DeltaQkv) | Role::Delta(_, DeltaPart::Conv) => {
                rows(heads.value_dim, true)
            }
            Role::Matrix(_, Linear::DeltaZ) => rows(heads.value_dim, false),
            Role::Matrix(_, Linear::DeltaA | Linear::DeltaB) | Role::Delta(..) => rows(1, false),
            Role::Matrix(_, Linear::DeltaOut) => Part::Columns,
            _ => return None,
        };
        (heads.num_key_heads != heads.num_value_heads).then_some(Self { heads, part })
    }

    /// Whether heads are whole blocks, so that they can be put into another order.
    pub(super) fn are_blocks(&self, storage: Storage) -> bool {
        let is_columns = matches!(self.part, Part::Columns);
        !is_columns || storage.checked_num_bytes(&[1, self.heads.value_dim]).is_ok()
    }

    /// A copy of a tensor of the file in Hugging Face's order.
    pub(super) fn undone(&self, tensor: &Tensor) -> Result<Tensor, DeviceError> {
        let num_rows = tensor.shape().first().copied().unwrap_or(1);
        let num_heads = self.heads.num_value_heads;
        match self.part {
            Part::Rows { per_head, after_keys } => {
                let first = if after_keys { num_rows - num_heads * per_head } else { 0 };
                GgufFile::reordered(tensor, num_rows, |row| match row.checked_sub(first) {
                    None => row,
                    Some(row) => first + self.tile(row / per_head) * per_head + row % per_head,
                })
            }
            Part::Columns => GgufFile::reordered(tensor, num_rows * num_heads, |part| {
                part / num_heads * num_heads + self.tile(part % num_heads)
            }),
        }
    }

    /// The place in the file of a head.
    fn tile(&self, head: usize) -> usize {
        let per_key = self.heads.num_value_heads / self.heads.num_key_heads;
        head % per_key * self.heads.num_key_heads + head / per_key
    }
}
