//! What of a model is trained, kind of layer by kind of layer.

use crate::config::DecoderConfig;
use crate::decoder::Part as Weights;
use crate::kinds::{LayerKind, Part};
use crate::load::Model;
use crate::weights::{Linear, Role, WeightSpec};
use hone_tensor::{ParamId, Params, Projection, Weight};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// What of the layers of one kind is trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The kind, or what belongs to none.
    pub kind: String,
    /// Blocks that have it.
    pub num_blocks: usize,
    /// Its linear layers by name, in model order.
    pub modules: Vec<CoveredModules>,
    /// Numbers that it is made of.
    pub parameters: u64,
    /// Numbers that are trained, those of adapters included.
    pub trained: u64,
}

/// The linear layers of one name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoveredModules {
    /// The last part of their names.
    pub name: String,
    /// How many there are.
    pub count: usize,
    /// How many of them are trained.
    pub trained: usize,
}

impl Coverage {
    /// The line of embedding, norms and head.
    const REST: &str = "embedding, norms, head";

    fn new(kind: String, num_blocks: usize) -> Self {
        Self { kind, num_blocks, modules: Vec::new(), parameters: 0, trained: 0 }
    }

    /// Which linear layers are trained and which are not, such as "q_proj, v_proj; not k_proj"; of
    /// a name that only some layers have trained, how many.
    pub fn reach(&self) -> String {
        let part = |is_trained: bool| {
            let of_part = self.modules.iter().filter(move |of| (of.trained > 0) == is_trained);
            let name = |of: &CoveredModules| match of.trained {
                some if some > 0 && some < of.count => {
                    format!("{} ({some} of {})", of.name, of.count)
                }
                _ => of.name.clone(),
            };
            of_part.map(name).collect::<Vec<_>>().join(", ")
        };
        match (part(true), part(false)) {
            (trained, frozen) if frozen.is_empty() => trained,
            (trained, frozen) if trained.is_empty() => format!("none of {frozen}"),
            (trained, frozen) => format!("{trained}; not {frozen}"),
        }
    }

    /// Adds a linear layer.
    fn add_module(&mut self, weight: &WeightSpec, is_trained: bool) {
        let module = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
        let name = module.rsplit('.').next().unwrap_or(module);
        let place = self.modules.iter().position(|module| module.name == name);
        let place = place.unwrap_or_else(|| {
            self.modules.push(CoveredModules { name: name.to_owned(), count: 0, trained: 0 });
            self.modules.len() - 1
        });
        let modules = &mut self.modules[place];
        modules.count += 1;
        modules.trained += usize::from(is_trained);
    }
}

/// What of `model` is trained: a line for each kind of layer in it, in model order, and one for
/// what belongs to none.
pub fn coverage(model: &Model) -> Vec<Coverage> {
    let config = &model.decoder.config;
    let mut kinds: Vec<LayerKind> = Vec::new();
    let mut lines: Vec<Coverage> = Vec::new();
    for kind in config.layers.iter().flat_map(|layer| layer.kinds()) {
        match kinds.iter().position(|known| *known == kind) {
            Some(line) => lines[line].num_blocks += 1,
            None => {
                lines.push(Coverage::new(kind.to_string(), 1));
                kinds.push(kind);
            }
        }
    }
    lines.push(Coverage::new(Coverage::REST.to_owned(), 0));
    let mut counted = HashSet::new();
    for weight in config.weights() {
        let of_kind = kind_of(config, weight.role);
        let line = kinds.iter().position(|kind| of_kind.as_ref() == Some(kind));
        let line = &mut lines[line.unwrap_or(kinds.len())];
        line.parameters += weight.shape.iter().product::<usize>() as u64;
        match model.decoder.part(weight.role).expect("every weight") {
            Weights::Plain(plain) => line.trained += own_numbers(plain, &model.params),
            Weights::Matrix(projection) => {
                let trained = trained_numbers(projection, &model.params, &mut counted);
                line.add_module(&weight, projection.is_trained());
                line.trained += trained;
            }
        }
    }
    lines
}

/// The kind of layer that a weight belongs to; `None`: a norm, or outside all blocks.
fn kind_of(config: &DecoderConfig, role: Role) -> Option<LayerKind> {
    let of_part = |part| Some(LayerKind { part, traits: Vec::new() });
    match role {
        Role::Matrix(layer, linear) | Role::Bias(layer, linear) => {
            Some(config.layers[layer].kind_of(linear))
        }
        Role::Sinks(layer) => Some(config.layers[layer].kind_of(Linear::Q)),
        Role::RouterBias(_) | Role::ExpertScales(_) => of_part(Part::Router),
        Role::Delta(..) => of_part(Part::LinearAttention),
        Role::EmbedTokens
        | Role::Norm(..)
        | Role::NormBias(..)
        | Role::FinalNorm
        | Role::BlockTable
        | Role::BlockTableNorm
        | Role::Scalar(_)
        | Role::LmHead
        | Role::Encoder(_) => None,
    }
}

/// Numbers of a weight that are trained themselves.
fn own_numbers(weight: &Weight, params: &Params) -> u64 {
    weight.param().map_or(0, |param| params.value(param).len() as u64)
}

/// Numbers that are trained for a matrix: its own, or its adapters' but for those `counted`, which
/// it shares.
fn trained_numbers(
    projection: &Projection,
    params: &Params,
    counted: &mut HashSet<ParamId>,
) -> u64 {
    let of_adapters = projection.adapters.iter().flat_map(|lora| [lora.a, lora.b]);
    let of_adapters = of_adapters.filter(|&param| counted.insert(param));
    let of_adapters: usize = of_adapters.map(|param| params.value(param).len()).sum();
    own_numbers(&projection.weight, params) + of_adapters as u64
}
