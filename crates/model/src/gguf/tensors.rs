//! Weights by their roles: names of tensors, and what is undone of what conversion did to them.

use super::GgufModel;
use super::architectures::{Architecture, MLP_NORM_BY_PLACE};
use super::delta::Tiled;
use super::rope::{FACTORS, SHORT_AND_LONG};
use crate::config::{DecoderConfig, LayerConfig};
use crate::weights::{BlockNorm, DeltaPart, ExpertPart, Linear, Role};
use hone_tensor::gguf::GgufFile;
use hone_tensor::{DeviceError, Tensor};

pub(super) const EMBEDDING: &str = "token_embd.weight";

/// Where a weight is: a tensor, or part of a tensor that holds those of all experts.
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) part: Option<Part>,
}

/// The `index`th matrix or bias in a tensor that has `of` of each expert.
#[derive(Clone, Copy)]
pub(crate) struct Part {
    pub(crate) index: usize,
    pub(crate) of: usize,
}

/// `None`: no architecture that is read has it.
fn linear_name(linear: Linear, layer: &LayerConfig) -> Option<&'static str> {
    let is_shared = layer.mlp.experts.is_some();
    Some(match linear {
        Linear::Q => "attn_q",
        Linear::K => "attn_k",
        Linear::V => "attn_v",
        Linear::Qkv => "attn_qkv",
        Linear::O => "attn_output",
        Linear::DeltaQkv => "attn_qkv",
        Linear::DeltaZ => "attn_gate",
        Linear::DeltaB => "ssm_beta",
        Linear::DeltaA => "ssm_alpha",
        Linear::DeltaQkvz
        | Linear::DeltaBa
        | Linear::BlockGate
        | Linear::BlockOut
        | Linear::BlockProjection => return None,
        Linear::DeltaOut => "ssm_out",
        Linear::Gate if is_shared => "ffn_gate_shexp",
        Linear::Up if is_shared => "ffn_up_shexp",
        Linear::Down if is_shared => "ffn_down_shexp",
        Linear::Gate => "ffn_gate",
        // Of both, in this order.
        Linear::GateUp => "ffn_up",
        Linear::Up => "ffn_up",
        Linear::Down => "ffn_down",
        Linear::SharedGate => "ffn_gate_inp_shexp",
        Linear::Router => "ffn_gate_inp",
        Linear::Expert(_, ExpertPart::Gate) => "ffn_gate_exps",
        Linear::Expert(_, ExpertPart::Up) => "ffn_up_exps",
        Linear::Expert(_, ExpertPart::Down) => "ffn_down_exps",
    })
}

/// `None`: no architecture that is read has it.
fn norm_name(norm: BlockNorm) -> Option<&'static str> {
    Some(match norm {
        BlockNorm::AttentionInput => "attn_norm",
        BlockNorm::Q => "attn_q_norm",
        BlockNorm::K => "attn_k_norm",
        BlockNorm::V
        | BlockNorm::SharedOutput
        | BlockNorm::RouterInput
        | BlockNorm::ExpertsInput
        | BlockNorm::ExpertsOutput
        | BlockNorm::BlockOut => return None,
        BlockNorm::Delta => "ssm_norm",
        BlockNorm::AttentionOutput => "post_attention_norm",
        BlockNorm::MlpInput => "ffn_norm",
        BlockNorm::MlpOutput => "post_ffw_norm",
    })
}

/// Whether a tensor is read though it is no weight.
pub(crate) fn is_used(name: &str) -> bool {
    name == FACTORS || SHORT_AND_LONG.contains(&name)
}

impl Architecture {
    /// The tensor that holds a weight, alone or with those of all experts; `None`: no architecture
    /// that is read has such a weight.
    pub(super) fn tensor_of(&self, role: Role, config: &DecoderConfig) -> Option<String> {
        Some(match role {
            Role::EmbedTokens => EMBEDDING.to_owned(),
            Role::FinalNorm => "output_norm.weight".to_owned(),
            Role::LmHead => "output.weight".to_owned(),
            Role::Matrix(layer, linear) => {
                format!("blk.{layer}.{}.weight", linear_name(linear, &config.layers[layer])?)
            }
            Role::Bias(layer, linear) => {
                format!("blk.{layer}.{}.bias", linear_name(linear, &config.layers[layer])?)
            }
            Role::Sinks(layer) => format!("blk.{layer}.attn_sinks.weight"),
            Role::RouterBias(layer) => format!("blk.{layer}.exp_probs_b.bias"),
            // Named by where it stands, and elsewhere by what it is of.
            Role::Norm(layer, BlockNorm::MlpInput) if MLP_NORM_BY_PLACE.contains(&self.name) => {
                format!("blk.{layer}.post_attention_norm.weight")
            }
            Role::Norm(layer, norm) => format!("blk.{layer}.{}.weight", norm_name(norm)?),
            Role::Delta(layer, DeltaPart::Conv) => format!("blk.{layer}.ssm_conv1d.weight"),
            Role::Delta(layer, DeltaPart::ALog) => format!("blk.{layer}.ssm_a"),
            Role::Delta(layer, DeltaPart::DtBias) => format!("blk.{layer}.ssm_dt.bias"),
            Role::Scalar(_)
            | Role::ExpertScales(_)
            | Role::BlockTable
            | Role::BlockTableNorm
            | Role::NormBias(..)
            | Role::Encoder(_) => return None,
        })
    }

    /// Where a file has a weight that `has` such tensors; `None`: no architecture that is read has
    /// such a weight.
    pub(super) fn place_of(
        &self,
        role: Role,
        config: &DecoderConfig,
        has: impl Fn(&str) -> bool,
    ) -> Option<Place> {
        let name = self.tensor_of(role, config)?;
        let (Role::Matrix(layer, Linear::Expert(expert, part))
        | Role::Bias(layer, Linear::Expert(expert, part))) = role
        else {
            return Some(Place { name, part: None });
        };
        // Gate above up in one tensor, as newer files have them.
        let which = match part {
            ExpertPart::Gate => Some(0),
            ExpertPart::Up => Some(1),
            ExpertPart::Down => None,
        };
        let kind = if matches!(role, Role::Bias(..)) { "bias" } else { "weight" };
        let of_both = format!("blk.{layer}.ffn_gate_up_exps.{kind}");
        Some(match which.filter(|_| has(&of_both)) {
            Some(which) => {
                Place { name: of_both, part: Some(Part { index: 2 * expert + which, of: 2 }) }
            }
            None => Place { name, part: Some(Part { index: expert, of: 1 }) },
        })
    }

    /// Length of the heads whose rows files have in pairs.
    pub(super) fn turned(&self, role: Role, config: &DecoderConfig) -> Option<usize> {
        let (Role::Matrix(layer, linear) | Role::Bias(layer, linear)) = role else { return None };
        let is_turned = matches!(linear, Linear::Q | Linear::K) && self.turns_neighbours;
        is_turned.then(|| config.layers[layer].attention.heads.head_dim)
    }

    /// Whether files hold a weight plus one: norms, but for that of a gated delta net's heads.
    pub(super) fn has_plus_one(&self, role: Role) -> bool {
        let is_norm = matches!(role, Role::Norm(..) | Role::FinalNorm);
        self.norms_plus_one && is_norm && !matches!(role, Role::Norm(_, BlockNorm::Delta))
    }
}

impl GgufModel {
    /// Where a file has a weight; `None`: no architecture that is read has such a weight.
    pub(crate) fn place_of(&self, role: Role, config: &DecoderConfig) -> Option<Place> {
        self.architecture.place_of(role, config, |name| self.file().shape(name).is_some())
    }

    /// Why the weight in a tensor of the file cannot be [`Self::restored`].
    ///
    /// # Errors
    /// If there is no memory to read it.
    pub(crate) fn obstacle(
        &self,
        role: Role,
        tensor: &Tensor,
    ) -> Result<Option<String>, DeviceError> {
        if !matches!(role, Role::Delta(_, DeltaPart::ALog)) {
            return Ok(None);
        }
        let rates = tensor.try_to_vec_f32()?;
        let wrong = rates.iter().find(|x| !x.is_finite() || **x >= 0.0);
        Ok(wrong.map(|x| {
            format!(
                "it has {x}, and what heads forget at is negative and finite. Fetch the file \
                 again, or another of this model"
            )
        }))
    }

    /// The weight in a tensor of the file: with rows and heads in Hugging Face's order, which takes
    /// a copy unless columns are packed, and norms and rates as they were trained.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn restored(
        &self,
        role: Role,
        config: &DecoderConfig,
        tensor: Tensor,
    ) -> Result<Tensor, DeviceError> {
        if let Some(head_dim) = self.architecture.turned(role, config) {
            let num_rows = tensor.shape()[0];
            return GgufFile::reordered(&tensor, num_rows, |row| halves_from_pairs(row, head_dim));
        }
        let tensor = match Tiled::of(role, config) {
            Some(tiled) => tiled.in_hub_order(tensor)?,
            None => tensor,
        };
        if matches!(role, Role::Delta(_, DeltaPart::ALog)) {
            let logs: Vec<f32> = tensor.try_to_vec_f32()?.iter().map(|x| (-x).ln()).collect();
            return Ok(Tensor::from_f32(&logs, tensor.shape()));
        }
        if self.architecture.has_plus_one(role) {
            let less: Vec<f32> = tensor.try_to_vec_f32()?.iter().map(|x| x - 1.0).collect();
            return Ok(Tensor::from_f32(&less, tensor.shape()));
        }
        Ok(tensor)
    }
}

/// The row of the file for a row of a head in Hugging Face's order: there rows `i` and
/// `i + head_dim / 2` are turned together, in the file rows `2 i` and `2 i + 1`.
pub(super) fn halves_from_pairs(row: usize, head_dim: usize) -> usize {
    let (head, row, half) = (row / head_dim, row % head_dim, head_dim / 2);
    head * head_dim + 2 * (row % half) + row / half
}

/// [`halves_from_pairs`] the other way: the row in Hugging Face's order for a row of the file.
pub(super) fn pairs_from_halves(row: usize, head_dim: usize) -> usize {
    let (head, row) = (row / head_dim, row % head_dim);
    head * head_dim + row % 2 * (head_dim / 2) + row / 2
}
