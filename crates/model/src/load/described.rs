//! Weights of which only the configuration is at hand: sizes for a plan, without elements.

use super::files::{LoadError, Taken, find_pickled};
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
        let quantised = [inner, &raw].map(|of| of.object("quantization_config"));
        let quantised = quantised.into_iter().collect::<Result<Vec<_>, _>>()?;
        let quantised = quantised.into_iter().flatten().next();
        let method = quantised.as_ref().map(|of| of.text("quant_method")).transpose()?.flatten();
        let has_blocks = quantised.as_ref().is_some_and(|of| of.has("weight_block_size"));
        let double = quantised.as_ref().map(|of| of.flag("bnb_4bit_use_double_quant", false));
        let is_double = double.transpose()?.unwrap_or(false);
        let (matrices, experts) = match method {
            Some("bitsandbytes") if is_double => (Some("nf4"), Some("nf4")),
            Some("bitsandbytes") => (Some("nf4_f32"), Some("nf4_f32")),
            Some("fp8") if has_blocks => (Some("fp8_block"), Some("fp8_block")),
            Some("fp8") => (Some("fp8"), Some("fp8")),
            Some("mxfp4") => (None, Some("mxfp4")),
            _ => (None, None),
        };
        let named = |name: &str| FORMATS.into_iter().find(|format| format.name == name);
        let [matrices, experts] = [matrices, experts].map(|name| named(name?).map(Storage::Packed));
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
        taken.note(&spec.name, &tensor);
        Ok(tensor)
    }
}
