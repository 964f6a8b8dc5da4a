//! LoRA adapters as GGUF files: what [`crate::gguf::adapter`] reads.
//!
//! Files have one `alpha` for all pairs, and llama.cpp multiplies each by `alpha / rank`. What a
//! rank-stabilised scale, or a layer's own, differs from that goes into `B`.

use super::weights::in_file_order;
use super::{GgufExportError, Meta};
use crate::adapter;
use crate::config::DecoderConfig;
use crate::decoder::Part;
use crate::gguf::adapter::{ALPHA, ENDS, TYPE, scale};
use crate::gguf::architectures::{ADAPTER, Architecture};
use crate::gguf::delta::Tiled;
use crate::gguf::tensors::pairs_from_halves;
use crate::load::Model;
use crate::weights::{Linear, Role, WeightSpec};
use hone_tensor::gguf::{GgufFile, GgufPlan, GgufTensor, GgufWriter};
use hone_tensor::{AdapterId, DType, Device, DeviceError, Lora, Tensor};
use std::collections::HashMap;
use std::path::Path;

/// An adapter as a GGUF file holds it.
pub struct GgufAdapter<'a> {
    model: &'a Model,
    architecture: &'static Architecture,
    metadata: Vec<(String, Meta)>,
    alpha: f32,
    pairs: Vec<Pair<'a>>,
}

/// What is added to a matrix, or to those of all experts.
struct Pair<'a> {
    /// The matrix's tensor in the model's file.
    name: String,
    /// `[out_features, in_features]`.
    shape: [usize; 2],
    is_stacked: bool,
    /// Of each expert, or the only one.
    parts: Vec<(Role, Option<&'a Lora>)>,
}

impl Pair<'_> {
    /// That of the part with the highest; the others' matrices end in zeros.
    fn rank(&self) -> usize {
        self.loras().map(|lora| lora.rank).max().unwrap_or(0)
    }

    fn loras(&self) -> impl Iterator<Item = &Lora> {
        self.parts.iter().filter_map(|(_, lora)| *lora)
    }

    /// Shapes of `A` and `B` of one part.
    fn shapes(&self) -> [[usize; 2]; 2] {
        let ([n, k], rank) = (self.shape, self.rank());
        [[rank, k], [n, rank]]
    }
}

impl<'a> GgufAdapter<'a> {
    /// The form of the model's adapter with this number.
    ///
    /// # Errors
    /// If the model's architecture, or a matrix that is adapted, has none.
    pub fn of(model: &'a Model, id: AdapterId) -> Result<Self, GgufExportError> {
        let architecture = model.architecture.ok_or(GgufExportError::NoArchitecture)?;
        let config = &model.decoder.config;
        let (mut pairs, mut places): (Vec<Pair<'a>>, _) = (Vec::new(), HashMap::new());
        for WeightSpec { role, shape, .. } in config.weights() {
            let Role::Matrix(layer, linear) = role else { continue };
            let Some(Part::Matrix(projection)) = model.decoder.part(role) else { continue };
            let lora = projection.adapter(id);
            let name = match architecture.tensor_of(role, config) {
                Some(name) => name,
                None if lora.is_none() => continue,
                None => return Err(GgufExportError::Part(config.module_name(layer, linear))),
            };
            let is_stacked = matches!(linear, Linear::Expert(..));
            let at = *places.entry(name.clone()).or_insert_with(|| {
                let shape = [shape[0], shape[1]];
                pairs.push(Pair { name, shape, is_stacked, parts: Vec::new() });
                pairs.len() - 1
            });
            pairs[at].parts.push((role, lora));
        }
        pairs.retain(|pair| pair.rank() > 0);
        let alpha = alpha(&pairs);
        let mut this = Self { model, architecture, metadata: Vec::new(), alpha, pairs };
        this.set("general.architecture", architecture.name.into());
        this.set("general.type", ADAPTER.into());
        this.set(TYPE, "lora".into());
        this.set(ALPHA, Meta::F32(alpha));
        this.set("general.file_type", Meta::U32(0));
        Ok(this)
    }

    /// Adds a key.
    pub fn set(&mut self, key: &str, value: Meta) {
        self.metadata.push((key.to_owned(), value));
    }

    /// Number of matrices that are adapted; those of all experts of a block are one.
    pub fn num_matrices(&self) -> usize {
        self.pairs.len()
    }

    /// Writes the file, reads it back, and compares every number.
    ///
    /// # Errors
    /// If a value is not finite, or if the device or the system fails.
    pub fn write(&self, device: &Device, path: &Path) -> Result<(), GgufExportError> {
        let io = |source| GgufExportError::Io { path: path.to_owned(), source };
        let tensor = |name: &str, end, shape: [usize; 2], pair: &Pair<'_>| {
            let experts = pair.is_stacked.then_some(pair.parts.len());
            let shape = experts.into_iter().chain(shape).collect();
            GgufTensor { name: format!("{name}{end}"), shape, storage: DType::F32.into() }
        };
        let tensors = self.pairs.iter().flat_map(|pair| {
            let [a, b] = pair.shapes();
            [tensor(&pair.name, ENDS[0], a, pair), tensor(&pair.name, ENDS[1], b, pair)]
        });
        let plan = GgufPlan::new(&self.metadata, tensors.collect())?;
        let mut writer = GgufWriter::create(path, plan).map_err(io)?;
        for (i, pair) in self.pairs.iter().enumerate() {
            let mut at = [0; 2];
            for &(role, lora) in &pair.parts {
                for (which, matrix) in self.matrices(pair, lora)?.into_iter().enumerate() {
                    let matrix = self.in_file_order(role, which == 1, matrix)?;
                    writer.write(2 * i + which, at[which], matrix.bytes()).map_err(io)?;
                    at[which] += matrix.num_bytes() as u64;
                }
            }
        }
        writer.sync().map_err(io)?;
        self.check(device, path)
    }

    /// `A` and `B` of a part, with the pair's rank and what its scale differs by.
    fn matrices(
        &self,
        pair: &Pair<'_>,
        lora: Option<&Lora>,
    ) -> Result<[Tensor; 2], GgufExportError> {
        let shapes @ [_, [_, rank]] = pair.shapes();
        let mut matrices = [
            Tensor::try_zeros(DType::F32, &shapes[0])?,
            Tensor::try_zeros(DType::F32, &shapes[1])?,
        ];
        let Some(lora) = lora else { return Ok(matrices) };
        let params = &self.model.params;
        let [a, b] = [lora.a, lora.b].map(|of| params.value(of).try_to_vec_f32());
        let (a, b) = (a?, b?);
        let factor = match scale(self.alpha, rank) {
            own if own == lora.scale => 1.0,
            own => f64::from(lora.scale) / f64::from(own),
        };
        let [to_a, to_b] = &mut matrices;
        to_a.f32_mut()[..a.len()].copy_from_slice(&a);
        let rows = to_b.f32_mut().chunks_exact_mut(rank).zip(b.chunks_exact(lora.rank));
        for (to, from) in rows {
            to.iter_mut().zip(from).for_each(|(to, b)| *to = (f64::from(*b) * factor) as f32);
        }
        let mut all = matrices.iter().flat_map(|matrix| matrix.f32());
        match all.all(|x| x.is_finite()) {
            true => Ok(matrices),
            false => Err(GgufExportError::NotFinite(pair.name.clone())),
        }
    }

    /// As the model's file has the rows and columns of its matrix.
    fn in_file_order(&self, role: Role, is_b: bool, matrix: Tensor) -> Result<Tensor, DeviceError> {
        let config: &DecoderConfig = &self.model.decoder.config;
        if let Some(head_dim) = self.architecture.turned(role, config).filter(|_| is_b) {
            let num_rows = matrix.shape()[0];
            return GgufFile::reordered(&matrix, num_rows, |row| pairs_from_halves(row, head_dim));
        }
        match Tiled::of(role, config).filter(|tiled| tiled.is_of_rows() == is_b) {
            Some(tiled) => in_file_order(&tiled, matrix),
            None => Ok(matrix),
        }
    }

    /// Reads the file as an adapter of the same base, which must be this one to the bit.
    fn check(&self, device: &Device, path: &Path) -> Result<(), GgufExportError> {
        let mut read = self.model.without_adapters();
        adapter::load(path, &mut read, device, &mut |_| ()).map_err(Box::new)?;
        for pair in &self.pairs {
            for &(role, lora) in &pair.parts {
                let Some(Part::Matrix(projection)) = read.decoder.part(role) else { continue };
                let found = projection.adapters.first();
                let is_scaled =
                    found.is_some_and(|lora| lora.scale == scale(self.alpha, lora.rank));
                let values = found.map(|lora| [lora.a, lora.b].map(|of| read.params.value(of)));
                let Some(found) = values.filter(|_| is_scaled) else {
                    return Err(GgufExportError::Differs(pair.name.clone()));
                };
                for (found, expected) in found.into_iter().zip(self.matrices(pair, lora)?) {
                    let bits = |values: &[f32]| -> Vec<u32> {
                        values.iter().map(|x| x.to_bits()).collect()
                    };
                    if bits(&found.try_to_vec_f32()?) != bits(expected.f32()) {
                        return Err(GgufExportError::Differs(pair.name.clone()));
                    }
                }
            }
        }
        Ok(device.settle()?)
    }
}

/// The `alpha` with which the most pairs need no change: usually that which they were trained with.
fn alpha(pairs: &[Pair<'_>]) -> f32 {
    let sizes = || pairs.iter().flat_map(|pair| pair.loras().map(|lora| (pair.rank(), lora.scale)));
    let exact = |alpha: f32| sizes().filter(|&(rank, own)| scale(alpha, rank) == own).count();
    let candidates = sizes().take(MAX_CANDIDATES).flat_map(|(rank, scale)| {
        let alpha = scale * rank as f32;
        [alpha.round(), alpha]
    });
    let usable = candidates.filter(|alpha| alpha.is_finite() && *alpha != 0.0);
    // The first of those that are as good.
    let best = usable.map(|alpha| (exact(alpha), alpha));
    best.reduce(|best, next| if next.0 > best.0 { next } else { best }).map_or(1.0, |(_, a)| a)
}

/// Layers that are asked for an `alpha`: with experts there are tens of thousands.
const MAX_CANDIDATES: usize = 256;
