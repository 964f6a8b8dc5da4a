//! Which type each tensor gets if a size, or a divergence, is what is wanted.
//!
//! Each type that a tensor's rows can take has a predicted part of the KL divergence
//! ([`crate::sensitivity`]). Parts are corrected by factors: one for each kind of matrix, such as
//! all `ffn_down`, and one for each block. These are first measured, with nothing quantised but
//! such a group, and then searched: factors are moved, [`allocate`] finds the types that they lead
//! to, and a move stays if the whole model's divergence is smaller with them, at the same bytes.

mod search;

pub use search::{Goal, TRIALS, Trial};
pub(crate) use search::{num_choices, num_measurements};

use crate::allocate::{Price, allocate};
use crate::back::{BackError, Room};
use crate::imatrix::Columns;
use crate::ledger::Ledger;
use crate::sensitivity::Sensitivity;
use hone_model::{FormTensor, GgufExportError, GgufForm, Model, Pass, Role};
use hone_tensor::{DType, DeviceError, FORMATS, Storage, Tensor};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

/// Bytes of packed matrices that are kept, if they are a quarter of what is free; others are packed
/// again when they are wanted.
const MAX_CACHED: usize = 4 << 30;

/// A type that a tensor may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The type.
    pub storage: Storage,
    /// Bytes in the file, with what aligns the next tensor.
    pub bytes: u64,
    /// Predicted part of the KL divergence, in nats per token.
    pub kl: f64,
}

/// Types for all tensors of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Allocation {
    /// Of each tensor.
    pub storages: Vec<Storage>,
    /// Each tensor's predicted share of the divergence; shares add up to 1.
    pub shares: Vec<f64>,
}

/// All that a choice is made of.
pub struct Planner<'a> {
    pass: Pass<'a>,
    form: &'a GgufForm<'a>,
    columns: &'a Columns,
    /// Of each tensor; none of those that have no choice.
    candidates: Vec<Vec<Candidate>>,
    /// Kind and block of each tensor, as numbers of groups.
    groups: Vec<[usize; 2]>,
    /// The group of tensors outside of blocks, which is none to measure.
    no_block: Option<usize>,
    factors: Vec<f64>,
    max_cached: usize,
    /// Bytes that are kept, and what they hold.
    cache: RefCell<(usize, Kept)>,
}

/// Matrices with which a model is put together, by tensor and name of the type.
type Kept = HashMap<(usize, &'static str), Vec<Tensor>>;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What blocks read cannot be kept.
    #[error(transparent)]
    Back(#[from] BackError),
    /// The file has no form.
    #[error(transparent)]
    Form(#[from] GgufExportError),
    /// The smallest types are too large.
    #[error(
        "{asked} bytes are fewer than the types of GGUF files reach with this model, whose rows \
         only take some of them: the least possible is {least} bytes, {bits:.3} bits per weight"
    )]
    TooSmall {
        /// What was asked for.
        asked: u64,
        /// The smallest file.
        least: u64,
        /// Its bits per weight.
        bits: f64,
    },
    /// A divergence that no types reach.
    #[error(
        "a mean KL divergence of {asked} nats per token is less than types of 8 bits are sure to \
         reach ({least:.6}); allow more, or export the model in floats (hone export --format gguf)"
    )]
    TooExact {
        /// What was asked for.
        asked: f64,
        /// The least that they are sure to reach on other text.
        least: f64,
    },
    /// The model computes values that are not finite.
    #[error("the model computes values that are not finite: a weight must be too large, or none")]
    NotFinite,
}

impl<'a> Planner<'a> {
    /// Packs every matrix in every type that it can have, where the ledger does not know what that
    /// costs. `measure` is asked for the sensitivity that it takes to know. `done` is told of each
    /// tensor.
    ///
    /// # Errors
    /// If the device failed, or a cost is not finite.
    pub fn new(
        (pass, form): (Pass<'a>, &'a GgufForm<'a>),
        (columns, room): (&'a Columns, Room<'_>),
        measure: &mut dyn FnMut() -> Result<Sensitivity<'a>, BackError>,
        ledger: &mut Ledger<'_>,
        done: &mut dyn FnMut(),
    ) -> Result<Self, PlanError> {
        let mut sensitivity = None;
        let (groups, names) = groups(form);
        let mut planner = Self {
            pass,
            form,
            columns,
            candidates: Vec::new(),
            groups,
            no_block: names.get(NO_BLOCK).copied(),
            factors: vec![1.0; names.len()],
            max_cached: room.quarter(MAX_CACHED),
            cache: RefCell::default(),
        };
        for (i, tensor) in form.tensors().iter().enumerate() {
            let mut candidates = Vec::new();
            for storage in types_of(pass.model, tensor) {
                let bytes = storage.num_bytes(&tensor.shape) as u64;
                let bytes = bytes.next_multiple_of(ALIGNMENT);
                if ledger.is_unknown() && sensitivity.is_none() {
                    sensitivity = Some(measure()?);
                }
                let kl = ledger.next(|| match &sensitivity {
                    Some(sensitivity) => planner.cost(sensitivity, i, storage),
                    None => unreachable!("it was measured"),
                })?;
                candidates.push(Candidate { storage, bytes, kl });
            }
            planner.candidates.push(candidates);
            done();
        }
        Ok(planner)
    }

    /// What a tensor in a type costs, in nats per token.
    fn cost(
        &self,
        sensitivity: &Sensitivity<'_>,
        tensor: usize,
        storage: Storage,
    ) -> Result<f64, PlanError> {
        let packed = self.packed(tensor, storage)?;
        let roles = self.form.tensors()[tensor].roles();
        let mut kl = 0.0;
        for (part, (role, packed)) in roles.iter().zip(&packed).enumerate() {
            let own = self.form.matrix(self.pass.device, *role, (DType::F32.into(), &[]))?;
            kl += sensitivity.cost((tensor, part), [&own, packed])?;
        }
        if kl.is_finite() { Ok(kl) } else { Err(PlanError::NotFinite) }
    }

    /// The matrices of a tensor in a type, in the model's order.
    fn packed(&self, tensor: usize, storage: Storage) -> Result<Vec<Tensor>, DeviceError> {
        let key = (tensor, storage.name());
        if let Some(known) = self.cache.borrow().1.get(&key) {
            return Ok(known.clone());
        }
        let pack = |(part, role): (usize, &Role)| {
            let columns = self.columns.of(tensor, part);
            self.form.matrix(self.pass.device, *role, (storage, columns))
        };
        let roles = self.form.tensors()[tensor].roles().iter().enumerate();
        let packed: Vec<Tensor> = roles.map(pack).collect::<Result<_, _>>()?;
        let (used, cache) = &mut *self.cache.borrow_mut();
        let bytes: usize = packed.iter().map(Tensor::num_bytes).sum();
        if *used + bytes <= self.max_cached && storage.float().is_none() {
            *used += bytes;
            cache.insert(key, packed.clone());
        }
        Ok(packed)
    }

    /// The model with tensors in the chosen types, those without a choice as they are.
    fn model(&self, chosen: &[Option<usize>]) -> Result<Model, DeviceError> {
        let mut matrices = Vec::new();
        for (i, (tensor, choice)) in self.form.tensors().iter().zip(chosen).enumerate() {
            let is_matrix =
                |role: &&Role| matches!(role, Role::Matrix(..) | Role::EmbedTokens | Role::LmHead);
            let roles = tensor.roles().iter().filter(is_matrix);
            let packed = match choice {
                Some(choice) => self.packed(i, self.candidates[i][*choice].storage)?,
                // With its adapter, if it has one.
                None => roles
                    .clone()
                    .map(|role| self.form.matrix(self.pass.device, *role, self.as_it_is(*role)))
                    .collect::<Result<_, _>>()?,
            };
            for (role, packed) in roles.zip(packed) {
                let category = hone_tensor::Category::Weights;
                matrices.push((*role, self.pass.device.upload(category, &packed)?));
            }
        }
        Ok(self.pass.model.with_weights(matrices))
    }

    /// The model with tensors in these types.
    ///
    /// # Errors
    /// If the device failed.
    ///
    /// # Panics
    /// If a tensor has no such candidate.
    pub fn as_allocated(&self, allocation: &Allocation) -> Result<Model, DeviceError> {
        let choice = |(candidates, storage): (&Vec<Candidate>, &Storage)| {
            let at = candidates.iter().position(|of| of.storage == *storage);
            assert!(at.is_some() || candidates.is_empty(), "a type that was a candidate");
            at
        };
        let chosen = self.candidates.iter().zip(&allocation.storages).map(choice);
        self.model(&chosen.collect::<Vec<_>>())
    }

    /// The type in which a weight is held, if it need not be merged.
    fn as_it_is(&self, role: Role) -> (Storage, &'static [f32]) {
        let projection = self.pass.model.decoder.projection(role);
        let storage = projection
            .filter(|p| p.adapters.is_empty())
            .map(|projection| self.pass.model.params.resolve(&projection.weight).storage());
        (storage.unwrap_or(DType::F32.into()), &[])
    }

    /// What a tensor's candidates cost with the present factors.
    fn prices(&self) -> Vec<Vec<Price>> {
        let of_tensor = |(candidates, groups): (&Vec<Candidate>, &[usize; 2])| {
            let factor: f64 = groups.iter().map(|group| self.factors[*group]).product();
            let price = |of: &Candidate| Price { bytes: of.bytes, kl: of.kl * factor };
            candidates.iter().map(price).collect()
        };
        self.candidates.iter().zip(&self.groups).map(of_tensor).collect()
    }

    /// The best choice of at most `budget` bytes, those of tensors with a choice; `None` if there
    /// is none.
    fn choose(&self, budget: u64) -> Option<Vec<Option<usize>>> {
        let (at, prices): (Vec<usize>, Vec<Vec<Price>>) =
            self.prices().into_iter().enumerate().filter(|(_, of)| !of.is_empty()).unzip();
        let found = allocate(&prices, budget)?;
        let mut chosen = vec![None; self.candidates.len()];
        at.into_iter().zip(found).for_each(|(at, choice)| chosen[at] = Some(choice));
        Some(chosen)
    }

    /// The allocation that is a choice.
    fn allocation(&self, chosen: &[Option<usize>]) -> Allocation {
        let prices = self.prices();
        let kl = |(i, choice): (usize, &Option<usize>)| choice.map_or(0.0, |of| prices[i][of].kl);
        let kls: Vec<f64> = chosen.iter().enumerate().map(kl).collect();
        let sum: f64 = kls.iter().sum::<f64>().max(f64::MIN_POSITIVE);
        let storage = |(i, choice): (usize, &Option<usize>)| match choice {
            Some(choice) => self.candidates[i][*choice].storage,
            None => search::WITHOUT_CHOICE,
        };
        Allocation {
            storages: chosen.iter().enumerate().map(storage).collect(),
            shares: kls.into_iter().map(|kl| kl / sum).collect(),
        }
    }

    /// Bytes of the smallest choice.
    fn least(&self) -> u64 {
        let least = |of: &Vec<Candidate>| of.iter().map(|of| of.bytes).min().unwrap_or(0);
        self.candidates.iter().map(least).sum()
    }
}

/// The types that a tensor may have: those that its rows can take, and a float.
pub(crate) fn types_of(model: &Model, tensor: &FormTensor) -> Vec<Storage> {
    if !tensor.is_matrix() {
        return Vec::new();
    }
    let float = match model.file_dtype {
        DType::Bf16 => DType::Bf16,
        _ => DType::F16,
    };
    let packed = FORMATS.into_iter().filter(|format| format.pack.is_some());
    let all = packed.map(Storage::Packed).chain([Storage::Float(float)]);
    let fits = |storage: &Storage| {
        storage.to_ggml().is_some() && storage.checked_num_bytes(&tensor.shape).is_ok()
    };
    all.filter(fits).collect()
}

/// Bytes that tensors of a file are aligned to.
const ALIGNMENT: u64 = 32;

/// Two groups of each tensor: its kind, which is its name without the block's number, and its
/// block; and the groups' names.
fn groups(form: &GgufForm<'_>) -> (Vec<[usize; 2]>, BTreeMap<String, usize>) {
    let mut names = BTreeMap::new();
    let mut group = |name: String| {
        let next = names.len();
        *names.entry(name).or_insert(next)
    };
    let of_tensor = |tensor: &FormTensor| {
        let mut parts = tensor.name.splitn(3, '.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("blk"), Some(block), Some(kind)) => {
                [group(format!("kind {kind}")), group(format!("block {block}"))]
            }
            _ => [group(tensor.name.clone()), group(NO_BLOCK.to_owned())],
        }
    };
    let groups = form.tensors().iter().map(of_tensor).collect();
    (groups, names)
}

const NO_BLOCK: &str = "no block";
