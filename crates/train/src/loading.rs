//! From what a run's setup names to a base and an engine on a device.

use crate::code::Code;
use crate::engine::{AdapterSet, Base, Engine, EngineOptions};
use crate::error::TrainError;
use crate::objectives;
use crate::optimizer::AdamWOptions;
use crate::run_file::{OptimizerSection, RunFile};
use crate::setup::Setup;
use hone_model::adapter::{LoraConfig, TargetModules};
use hone_model::{LoadOptions, Model, Trained};
use hone_tensor::{Device, Storage};
use std::collections::BTreeSet;
use std::path::Path;

/// What a run may hold otherwise than its run file says, when plans are tried.
#[derive(Clone, Copy, Debug)]
pub struct Held<'a> {
    /// Element type of frozen matrices; `None`: as in the file.
    pub base_precision: Option<Storage>,
    /// Blocks whose projections stay in the CPU's memory: see [`LoadOptions`].
    pub offloaded_blocks: usize,
    /// Adapters; `None`: full fine-tuning.
    pub lora: Option<&'a LoraConfig>,
}

impl<'a> Held<'a> {
    /// As the run file says, with so many blocks in the CPU's memory.
    pub fn of(setup: &'a Setup, offloaded_blocks: usize) -> Self {
        let (base_precision, lora) = (setup.base_precision, setup.lora.as_ref());
        Self { base_precision, offloaded_blocks, lora }
    }
}

/// The engine of a run on `device`, before its first step.
///
/// # Errors
/// If model or adapter cannot be loaded, or do not fit each other.
pub fn engine(setup: &Setup, device: &Device, held: Held<'_>) -> Result<Engine, TrainError> {
    let Held { base_precision, offloaded_blocks, lora } = held;
    let trained = if lora.is_some() { Trained::Nothing } else { Trained::All };
    let options = LoadOptions { base_precision, trained, offloaded_blocks };
    let mut base = Base::load(&setup.model_dir, device, setup.compute, options)?;
    let adapters = match (lora, &setup.init_adapter) {
        (Some(lora), Some(dir)) => continued(&base, lora, dir)?,
        (Some(lora), None) => AdapterSet::new(&base, lora, setup.run.train.seed)?,
        (None, _) => AdapterSet::all_weights(&mut base)?,
    };
    let objective = objectives::of(&setup.run.objective);
    let reference = match objective.needs_reference() {
        true => Some(reference(setup, &base, lora)?),
        false => None,
    };
    let optimizer = optimizer_options(&setup.run);
    let options = EngineOptions { optimizer, objective, reference };
    let mut engine = Engine::new(&base, adapters, options)?;
    engine.mixture.coefficient = setup.run.train.router_aux_loss_coef;
    Ok(engine)
}

/// The model that training begins with: the base, with the adapter that is trained further if there
/// is one; in a full fine-tune a copy that is held in the type of activations.
fn reference(setup: &Setup, base: &Base, lora: Option<&LoraConfig>) -> Result<Model, TrainError> {
    if lora.is_none() {
        let base_precision = Some(setup.compute.dtype().into());
        let options = LoadOptions { base_precision, ..LoadOptions::INFERENCE };
        return Ok(hone_model::load(&setup.model_dir, base.device(), options)?);
    }
    Ok(match &setup.init_adapter {
        Some(dir) => AdapterSet::load(base, dir, 0.0, &mut |_| {})?.model,
        None => base.frozen_model(),
    })
}

/// The optimizer that a run file asks for.
pub fn optimizer_options(run: &RunFile) -> AdamWOptions {
    let OptimizerSection::Adamw(adamw) = &run.optimizer;
    AdamWOptions {
        beta1: adamw.beta1,
        beta2: adamw.beta2,
        epsilon: adamw.epsilon,
        weight_decay: run.train.weight_decay,
        max_grad_norm: run.train.max_grad_norm,
    }
}

/// Loads the adapter to start from; it must have the rank that the run file asks for.
fn continued(base: &Base, wanted: &LoraConfig, dir: &Path) -> Result<AdapterSet, TrainError> {
    // The layers are compared below, which says more than a note.
    let set = AdapterSet::load(base, dir, wanted.dropout, &mut |_| ())?;
    let found = set.lora.as_ref().expect("adapters have settings");
    let same = found.rank == wanted.rank
        && found.alpha == wanted.alpha
        && found.use_rslora == wanted.use_rslora;
    if !same {
        return Err(TrainError::Usage(
            Code::AdapterInvalid,
            format!(
                "adapter.init_from: {} has rank {}, alpha {}, use_rslora {}; the run file asks for \
             rank {}, alpha {}, use_rslora {}. Give the run file the adapter's values",
                dir.display(),
                found.rank,
                found.alpha,
                found.use_rslora,
                wanted.rank,
                wanted.alpha,
                wanted.use_rslora,
            ),
        ));
    }
    let TargetModules::Patterns(adapted) = &found.target_modules else { return Ok(set) };
    if *adapted != wanted.target_modules.resolve(&set.model.decoder)? {
        return Err(TrainError::Usage(
            Code::AdapterInvalid,
            format!(
                "adapter.init_from: {} adapts {}, and adapter.target_modules asks for other \
             layers. Give the run file the layers of the adapter, as a list",
                dir.display(),
                short_names(adapted),
            ),
        ));
    }
    Ok(set)
}

/// The last parts of the names of modules, each once.
fn short_names(modules: &[String]) -> String {
    let last = |name: &String| name.rsplit('.').next().unwrap_or(name).to_owned();
    let names: BTreeSet<String> = modules.iter().map(last).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}
