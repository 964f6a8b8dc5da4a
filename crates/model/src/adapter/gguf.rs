//! Adapters in GGUF files, as llama.cpp and Hone's export write them.

use super::lora::{Matrix, add};
use super::{AdapterError, LoraConfig, TargetModules};
use crate::config::DecoderConfig;
use crate::gguf::{AdapterFile, Place};
use crate::load::Model;
use crate::weights::{Role, WeightSpec};
use hone_tensor::safetensors::load_as;
use hone_tensor::{Category, DType, Device};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A matrix of the model that is adapted.
struct Adapted {
    role: Role,
    /// Of `A` and `B`.
    places: [Place; 2],
    rank: usize,
    /// How many are stacked.
    num_experts: Option<usize>,
}

/// Attaches the adapter in the file to `model`.
pub(super) fn load(
    path: &Path,
    model: &mut Model,
    device: &Device,
) -> Result<LoraConfig, AdapterError> {
    let file = AdapterFile::open(path, model.architecture)?;
    let config = model.decoder.config.clone();
    let mismatch = |problem| AdapterError::Mismatch { path: file.path().to_owned(), problem };
    let adapted = adapted(&file, &config)?;
    let Some(first) = adapted.values().next() else {
        return Err(mismatch("it contains no adapter".to_owned()));
    };
    let alpha = if file.alpha() == 0.0 { first.rank as f64 } else { file.alpha() };
    let modules: Vec<String> = config.module_names().collect();
    let is_target = |module: &&String| adapted.contains_key(*module);
    let targets: Vec<String> = modules.iter().filter(is_target).cloned().collect();
    let mut lora = LoraConfig {
        rank: first.rank,
        alpha,
        dropout: 0.0,
        target_modules: TargetModules::AllLinear,
        use_rslora: false,
        share_experts: false,
    };
    let size = |module: &str| {
        let rank = adapted[module].rank;
        (rank, file.scale(rank))
    };
    add(model, &targets, &lora, size, |index, which, shape| {
        let Adapted { role, places, num_experts, .. } = &adapted[&modules[index]];
        let place = &places[usize::from(which == Matrix::B)];
        let found = file.shape(&place.name);
        if found.is_empty() {
            return Err(mismatch(format!(
                "tensor `{}` is missing, although its counterpart is present: the file is \
                 incomplete, write the adapter again",
                place.name
            )));
        }
        let tensor = file.tensor(place)?;
        let is_whole = num_experts.is_none_or(|of| found[0] == of);
        let tensor = tensor.filter(|tensor| is_whole && tensor.shape() == shape);
        let tensor = tensor.ok_or_else(|| {
            let of_each =
                num_experts.map_or(String::new(), |n| format!(" for each of {n} experts"));
            mismatch(format!(
                "tensor `{}` has shape {found:?}, expected {shape:?}{of_each}. The adapter was \
                 trained for another model",
                place.name
            ))
        })?;
        let tensor = match device.is_dry() {
            true => tensor,
            false => file.restored(*role, &config, which == Matrix::B, &tensor)?,
        };
        Ok(load_as(device, Category::Parameters, &tensor, DType::F32)?)
    })?;
    device.settle()?;
    lora.target_modules = TargetModules::Patterns(targets);
    Ok(lora)
}

/// The modules that the file adapts, by name.
fn adapted(
    file: &AdapterFile,
    config: &DecoderConfig,
) -> Result<BTreeMap<String, Adapted>, AdapterError> {
    let mut stray: BTreeSet<&str> = file.names().collect();
    let mut adapted = BTreeMap::new();
    for WeightSpec { role, .. } in config.weights() {
        let Role::Matrix(layer, linear) = role else { continue };
        let Some(places) = file.places(role, config) else { continue };
        for place in &places {
            stray.remove(place.name.as_str());
        }
        let a = file.tensor(&places[0])?;
        let rank = a.map_or(0, |a| a.shape().first().copied().unwrap_or(0));
        let mixture = config.layers[layer].mlp.experts.as_ref();
        let is_expert = places[0].part.is_some();
        let num_experts = mixture.filter(|_| is_expert).map(|of| of.router.num_experts);
        let of_module = Adapted { role, places, rank, num_experts };
        adapted.insert(config.module_name(layer, linear), of_module);
    }
    match stray.first() {
        Some(stray) => {
            let (path, problem) = (file.path().to_owned(), why_stray(stray));
            Err(AdapterError::Mismatch { path, problem })
        }
        None => Ok(adapted),
    }
}

/// Why a tensor does not belong to an adapter of a linear layer.
fn why_stray(name: &str) -> String {
    let is_table = ["token_embd.", "output."].iter().any(|table| name.starts_with(table));
    if is_table || name.contains("_norm.") {
        return format!(
            "tensor `{name}`: the adapter changes a head, an embedding or a norm, which is not \
             supported yet: merge it into its base with the program that made it"
        );
    }
    format!(
        "tensor `{name}` is not part of a LoRA adapter on a linear layer of this model. The \
         adapter was trained for another model"
    )
}
