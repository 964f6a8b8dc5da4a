//! Gated delta nets of Qwen3.5's files. Their value heads are in tiles, the first of each key head
//! and then the second ones, where Hugging Face's have those of a key head together.

use crate::config::DecoderConfig;
use crate::weights::{DeltaPart, Linear, Role};
use hone_tensor::gguf::GgufFile;
use hone_tensor::{DeviceError, Storage, Tensor, Tiles};

/// What of a weight is value heads', which have another order in the file.
pub(super) enum Tiled {
    /// Rows, after those of queries and keys if the weight has these too.
    Rows { tiles: Tiles, after_keys: bool },
    /// Columns.
    Columns(Tiles),
}

impl Tiled {
    /// That of a weight, if it has any.
    pub(super) fn of(role: Role, config: &DecoderConfig) -> Option<Self> {
        let (Role::Matrix(layer, _) | Role::Delta(layer, _)) = role else { return None };
        let heads = config.layers[layer].delta?.heads;
        if heads.num_key_heads == heads.num_value_heads {
            return None;
        }
        let tiles = |len| Tiles { groups: heads.num_key_heads, per_group: heads.group(), len };
        let rows = |len, after_keys| Some(Self::Rows { tiles: tiles(len), after_keys });
        match role {
            Role::Matrix(_, Linear::DeltaQkv) | Role::Delta(_, DeltaPart::Conv) => {
                rows(heads.value_dim, true)
            }
            Role::Matrix(_, Linear::DeltaZ) => rows(heads.value_dim, false),
            Role::Matrix(_, Linear::DeltaA | Linear::DeltaB) | Role::Delta(..) => rows(1, false),
            Role::Matrix(_, Linear::DeltaOut) => Some(Self::Columns(tiles(heads.value_dim))),
            _ => None,
        }
    }

    /// Whether they are rows.
    pub(super) fn is_of_rows(&self) -> bool {
        matches!(self, Self::Rows { .. })
    }

    /// A tensor of the file in Hugging Face's order: a copy, unless columns are packed, whose
    /// blocks may belong to two heads.
    pub(super) fn in_hub_order(&self, tensor: Tensor) -> Result<Tensor, DeviceError> {
        let num_rows = tensor.shape().first().copied().unwrap_or(1);
        match *self {
            Self::Rows { tiles, after_keys } => {
                let num_tiled = tiles.groups * tiles.per_group * tiles.len;
                let first = if after_keys { num_rows - num_tiled } else { 0 };
                GgufFile::reordered(&tensor, num_rows, |row| match row.checked_sub(first) {
                    None => row,
                    Some(row) => first + tiles.at(row),
                })
            }
            Self::Columns(tiles) => match tensor.storage() {
                Storage::Packed(_) => Ok(tensor.with_tiles(tiles)),
                Storage::Float(_) => {
                    let (heads, num_heads) =
                        (Tiles { len: 1, ..tiles }, tiles.groups * tiles.per_group);
                    GgufFile::reordered(&tensor, num_rows * num_heads, |part| {
                        part / num_heads * num_heads + heads.at(part % num_heads)
                    })
                }
            },
        }
    }
}
