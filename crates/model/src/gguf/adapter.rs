//! LoRA adapters in GGUF files, as llama.cpp applies them: for a matrix `W` of the model's file the
//! tensors `W.lora_a [rank, in_features]` and `W.lora_b [out_features, rank]`, in the file's order
//! of rows, and one number for all of them: `y += alpha / rank · B (A x)`. Experts' are stacked as
//! their matrices are. What adapts an embedding, a head or a norm is not read.

use super::architectures::{ADAPTER, Architecture};
use super::delta::Tiled;
use super::metadata::Metadata;
use super::tensors::{Part, Place, halves_from_pairs};
use crate::config::DecoderConfig;
use crate::raw_config::ConfigError;
use crate::weights::Role;
use hone_tensor::gguf::GgufFile;
use hone_tensor::{DeviceError, Tensor};
use std::path::Path;

/// What is said of the whole adapter.
pub(super) const ALPHA: &str = "adapter.lora.alpha";
pub(super) const TYPE: &str = "adapter.type";

/// Ends of the names of a pair's tensors, `A` and `B`.
pub(super) const ENDS: [&str; 2] = [".lora_a", ".lora_b"];

/// An open GGUF file that holds an adapter.
pub(crate) struct AdapterFile {
    file: GgufFile,
    architecture: &'static Architecture,
    alpha: f64,
}

impl AdapterFile {
    /// Reads the header of an adapter for a model of `architecture`.
    ///
    /// # Errors
    /// If the file is damaged, holds something else or another kind of adapter, or one of a model
    /// of another architecture.
    pub(crate) fn open(
        path: &Path,
        architecture: Option<&'static Architecture>,
    ) -> Result<Self, ConfigError> {
        let file = GgufFile::open(path)?;
        let metadata = Metadata::new(&file);
        let key = "general.type";
        if metadata.text(key)? != Some(ADAPTER) {
            let problem = "is not `adapter`, so this file holds none: give the adapter's own file, \
                           and a model's as the model";
            return Err(metadata.error(key, problem));
        }
        let key = "general.architecture";
        let found = metadata.text(key)?.unwrap_or("missing");
        let Some(architecture) = architecture.filter(|own| own.name == found) else {
            let own = architecture.map_or("one that GGUF files do not have", |own| own.name);
            let problem = format!(
                "is `{found}`, and the model's is {own}: the adapter was trained for another model"
            );
            return Err(metadata.error(key, problem));
        };
        let kind = metadata.text(TYPE)?.unwrap_or("missing");
        if kind != "lora" {
            let problem = format!("is `{kind}`; only `lora` is supported");
            return Err(metadata.error(TYPE, problem));
        }
        let alpha = metadata.number(ALPHA)?.unwrap_or(0.0);
        // The name of a task is for people.
        let known = [TYPE, ALPHA, "adapter.lora.task_name"];
        let is_unknown = |key: &&str| key.starts_with("adapter.") && !known.contains(key);
        let unknown = file.keys().find(is_unknown);
        if let Some(unknown) = unknown {
            let problem = "is set, but Hone does not know this key, which may change what the \
                           adapter computes: merge it into its base with the program that made it";
            return Err(metadata.error(unknown, problem));
        }
        Ok(Self { file, architecture, alpha })
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Names of its tensors.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.file.names()
    }

    /// Lengths of a tensor's dimensions, slowest first.
    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        self.file.shape(name).unwrap_or_default()
    }

    /// `alpha` of all pairs; 0: they are added as they are.
    pub(crate) fn alpha(&self) -> f64 {
        self.alpha
    }

    /// What a pair of this rank is multiplied by, in the numbers that llama.cpp has.
    pub(crate) fn scale(&self, rank: usize) -> f32 {
        scale(self.alpha as f32, rank)
    }

    /// Where the file has the pair of a matrix, whether or not it has both; `None`: it has neither.
    pub(crate) fn places(&self, role: Role, config: &DecoderConfig) -> Option<[Place; 2]> {
        let has =
            |name: &str| ENDS.iter().any(|end| self.file.shape(&format!("{name}{end}")).is_some());
        let Place { name, part } = self.architecture.place_of(role, config, has)?;
        let is_there = has(&name);
        // Gate and up of one tensor have an `A` together.
        let of_a = part.map(|Part { index, of }| Part { index: index / of, of: 1 });
        let place = |end, part| Place { name: format!("{name}{end}"), part };
        is_there.then(|| [place(ENDS[0], of_a), place(ENDS[1], part)])
    }

    /// A matrix, in the file's order and type; `None`: there is none, or no such part of it.
    ///
    /// # Errors
    /// If there is no memory for a copy.
    pub(crate) fn tensor(&self, place: &Place) -> Result<Option<Tensor>, DeviceError> {
        match place.part {
            // One row may be a vector there.
            None => Ok(self.file.tensor(&place.name).map(|tensor| match *tensor.shape() {
                [cols] => tensor.with_shape(&[1, cols]),
                _ => tensor,
            })),
            Some(Part { index, of }) => self.file.part(&place.name, index, of),
        }
    }

    /// `A` or `B` of a pair in Hugging Face's order, in f32.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub(crate) fn restored(
        &self,
        role: Role,
        config: &DecoderConfig,
        is_b: bool,
        tensor: &Tensor,
    ) -> Result<Tensor, DeviceError> {
        let tensor = Tensor::from_f32(&tensor.try_to_vec_f32()?, tensor.shape());
        if let Some(head_dim) = self.architecture.turned(role, config).filter(|_| is_b) {
            let num_rows = tensor.shape()[0];
            return GgufFile::reordered(&tensor, num_rows, |row| halves_from_pairs(row, head_dim));
        }
        match Tiled::of(role, config).filter(|tiled| tiled.is_of_rows() == is_b) {
            Some(tiled) => tiled.in_hub_order(tensor),
            None => Ok(tensor),
        }
    }
}

/// What llama.cpp multiplies a pair by.
pub(super) fn scale(alpha: f32, rank: usize) -> f32 {
    if alpha == 0.0 { 1.0 } else { alpha / rank as f32 }
}
