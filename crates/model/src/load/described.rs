//! Weights of which only the configuration is at hand: sizes for a plan, without elements.

use super::files::{LoadError, Taken, find_pickled};
use crate::families::Quantised;
use crate::raw_config::{ConfigError, RawConfig};
use crate::weights::{Linear, Role, WeightSpec};
use hone_tensor::{Category, DType, Device, FORMATS, Storage, Tensor};
use std::path::{Path, PathBuf};

/// What a configuration says of its weights.
pub(super) struct Described {
    dir: PathBuf,
    dtype: DType,
    /// How the matrices of blocks are held, if not in `dtype`.
    matrices: Option<Storage>,
    /// How those of experts are held.
    experts: Option<Storage>,
}

impl Described {
    /// Reads `dtype` and `quantization_config`. Files that say nothing are taken to be in bf16, as
    /// nearly all are.
    pub(super) fn read(dir: &Path) -> Result<Self, ConfigError> {
        let raw = RawConfig::read(&dir.join("config.json"))?;
        let text = raw.object("text_config")?;
        let inner = text.as_ref().unwrap_or(&raw);
        let keys = ["dtype", "torch_dtype"];
        let given = [inner, &raw].into_iter().flat_map(|of| keys.map(|key| of.text(key)));
        let given = given.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().next();
        let dtype = match given {
            Some("float32" | "float64") => DType::F32,
            Some("float16") => DType::F16,
            _ => DType::Bf16,
        };
        let quantised = Quantised::of_files(&raw)?;
        let named = |name: &str| FORMATS.into_iter().find(|format| format.name == name);
        let quantised = quantised.as_ref();
        let names = [quantised.and_then(|kind| kind.matrices), quantised.map(|kind| kind.experts)];
        let [matrices, experts] = names.map(|name| named(name?).map(Storage::Packed));
        Ok(Self { dir: dir.to_owned(), dtype, matrices, experts })
    }

    /// Why there is nothing to compute with.
    pub(super) fn missing(&self) -> LoadError {
        LoadError::NoWeights { dir: self.dir.clone(), pickled: find_pickled(&self.dir) }
    }

    /// A tensor as large as the weight.
    pub(super) fn take(&self, spec: &WeightSpec, taken: &mut Taken) -> Result<Tensor, LoadError> {
        let packed = match spec.role {
            Role::Matrix(_, Linear::Expert(..)) => self.experts,
            Role::Matrix(_, linear) if !linear.is_router() => self.matrices,
            _ => None,
        };
        let storage = packed.unwrap_or(self.dtype.into());
        // Counted where it is uploaded to, and not here.
        let tensor = Device::dry().persistent(Category::Weights, storage, &spec.shape)?;
        taken.note_dtype(&tensor);
        Ok(tensor)
    }
}
