//! `quantization_config`: which quantised weights are read. How each of them is held follows from
//! its tensors, so all else that the key says is left to them.

use crate::raw_config::{ConfigError, RawConfig};

const READ: &str = "fp8 in blocks of 128 × 128 or with one scale, bitsandbytes' nf4 and \
                    mxfp4 are read. Use the unquantised model, or one of these";

/// A kind of quantised weights that is read.
pub(crate) struct Quantised {
    /// `quant_method`.
    method: &'static str,
    /// A key that has to be there, and not false, and what it has to say, as JSON.
    key: Option<(&'static str, &'static str)>,
    /// The same of keys that may be absent.
    settings: &'static [(&'static str, &'static str)],
    /// The weight format of matrices of blocks but for experts; `None`: not quantised.
    pub(crate) matrices: Option<&'static str>,
    /// That of experts.
    pub(crate) experts: &'static str,
}

const FP8: &[(&str, &str)] = &[("fmt", "\"e4m3\""), ("expert_dtype", "\"fp8\"")];
const NF4: &[(&str, &str)] =
    &[("load_in_8bit", "false"), ("_load_in_8bit", "false"), ("bnb_4bit_quant_type", "\"nf4\"")];

/// All kinds; of one method the first whose key is there.
static KINDS: [Quantised; 5] = [
    Quantised {
        method: "fp8",
        key: Some(("weight_block_size", "[128,128]")),
        settings: FP8,
        matrices: Some("fp8_block"),
        experts: "fp8_block",
    },
    Quantised { method: "fp8", key: None, settings: FP8, matrices: Some("fp8"), experts: "fp8" },
    Quantised {
        method: "bitsandbytes",
        key: Some(("bnb_4bit_use_double_quant", "true")),
        settings: NF4,
        matrices: Some("nf4"),
        experts: "nf4",
    },
    Quantised {
        method: "bitsandbytes",
        key: None,
        settings: NF4,
        matrices: Some("nf4_f32"),
        experts: "nf4_f32",
    },
    Quantised { method: "mxfp4", key: None, settings: &[], matrices: None, experts: "mxfp4" },
];

impl Quantised {
    /// How a configuration says that its weights are quantised, if they are.
    ///
    /// # Errors
    /// If it is in a way that is not read.
    pub(crate) fn read(raw: &RawConfig) -> Result<Option<&'static Self>, ConfigError> {
        const METHOD: &str = "quant_method";
        let Some(given) = raw.object("quantization_config")? else { return Ok(None) };
        let Some(method) = given.text(METHOD)? else {
            return Err(given.error(METHOD, format!("is missing: {READ}")));
        };
        let has = |(key, _): (&str, &str)| given.get(key).is_some_and(|value| *value != false);
        let is_of = |kind: &&Self| kind.method == method && kind.key.is_none_or(has);
        let Some(kind) = KINDS.iter().find(is_of) else {
            let problem = format!("is `{method}`, which is not supported: {READ}");
            return Err(given.error(METHOD, problem));
        };
        for (key, read) in kind.key.iter().chain(kind.settings) {
            let Some(found) = given.get(key).map(ToString::to_string) else { continue };
            if found != *read {
                let problem = format!("is {found}, which is not supported: {READ}");
                return Err(given.error(key, problem));
            }
        }
        const LEVELS: &str = "bnb_4bit_quant_type";
        if method == "bitsandbytes" && !given.has(LEVELS) {
            let problem = format!("is missing, which means fp4, and is not supported: {READ}");
            return Err(given.error(LEVELS, problem));
        }
        Ok(Some(kind))
    }
}
