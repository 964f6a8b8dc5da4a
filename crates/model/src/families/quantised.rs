//! `quantization_config`: which quantised weights are read. How each of them is held follows from
//! its tensors, so all else that the key says is left to them.

use crate::raw_config::{ConfigError, RawConfig};

const READ: &str = "fp8 (with a scale for each 128 × 128 weights, each row or the matrix), \
                    compressed-tensors' pack-quantized weights without zero points, bitsandbytes' \
                    nf4 and mxfp4 are read. Use the unquantised model, or one of these";

/// How weights are quantised.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quantised {
    /// The weight format of matrices of blocks but for experts; `None`: not quantised.
    pub(crate) matrices: Option<&'static str>,
    /// That of experts.
    pub(crate) experts: &'static str,
    /// Bits of the integers that are packed into words.
    pub(crate) int_bits: Vec<u32>,
}

/// A kind of quantised weights that is read.
struct Kind {
    /// `quant_method`.
    method: &'static str,
    /// A key that has to be there, and not false, and what it has to say, as JSON.
    key: Option<(&'static str, &'static str)>,
    /// The same of keys that may be absent.
    settings: &'static [(&'static str, &'static str)],
    /// As in [`Quantised`].
    matrices: Option<&'static str>,
    experts: &'static str,
}

const FP8: &[(&str, &str)] = &[("fmt", "\"e4m3\""), ("expert_dtype", "\"fp8\"")];
const NF4: &[(&str, &str)] =
    &[("load_in_8bit", "false"), ("_load_in_8bit", "false"), ("bnb_4bit_quant_type", "\"nf4\"")];

/// All kinds; of one method the first whose key is there.
static KINDS: [Kind; 5] = [
    Kind {
        method: "fp8",
        key: Some(("weight_block_size", "[128,128]")),
        settings: FP8,
        matrices: Some("fp8_block"),
        experts: "fp8_block",
    },
    Kind { method: "fp8", key: None, settings: FP8, matrices: Some("fp8"), experts: "fp8" },
    Kind {
        method: "bitsandbytes",
        key: Some(("bnb_4bit_use_double_quant", "true")),
        settings: NF4,
        matrices: Some("nf4"),
        experts: "nf4",
    },
    Kind {
        method: "bitsandbytes",
        key: None,
        settings: NF4,
        matrices: Some("nf4_f32"),
        experts: "nf4_f32",
    },
    Kind { method: "mxfp4", key: None, settings: &[], matrices: None, experts: "mxfp4" },
];

impl Quantised {
    /// How a model's configuration, or that of its text part, says that weights are quantised.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub(crate) fn of_files(raw: &RawConfig) -> Result<Option<Self>, ConfigError> {
        let inner = raw.object("text_config")?;
        let inner = inner.as_ref().map(Self::read).transpose()?.flatten();
        inner.map_or_else(|| Self::read(raw), |inner| Ok(Some(inner)))
    }

    /// How a configuration says that its weights are quantised, if they are.
    ///
    /// # Errors
    /// If it is in a way that is not read.
    pub(crate) fn read(raw: &RawConfig) -> Result<Option<Self>, ConfigError> {
        const METHOD: &str = "quant_method";
        let Some(given) = raw.object("quantization_config")? else { return Ok(None) };
        let Some(method) = given.text(METHOD)? else {
            return Err(given.error(METHOD, format!("is missing: {READ}")));
        };
        if method == "compressed-tensors" {
            return compressed_tensors(&given).map(Some);
        }
        let has = |(key, _): (&str, &str)| given.get(key).is_some_and(|value| *value != false);
        let is_of = |kind: &&Kind| kind.method == method && kind.key.is_none_or(has);
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
        let &Kind { matrices, experts, .. } = kind;
        Ok(Some(Self { matrices, experts, int_bits: Vec::new() }))
    }
}

/// How groups of layers are quantised, all of which must be read. Which layers belong to which is
/// left to their tensors.
fn compressed_tensors(given: &RawConfig) -> Result<Quantised, ConfigError> {
    const GROUPS: &str = "config_groups";
    // Each changes what is computed.
    for key in ["transform_config", "sparsity_config", "kv_cache_scheme"] {
        if let Some(found) = given.get(key).filter(|found| *found != &serde_json::json!({})) {
            return Err(given.error(key, format!("is {found}, which is not supported: {READ}")));
        }
    }
    let of_all = given.object(GROUPS)?.ok_or_else(|| given.missing(GROUPS))?;
    let names = of_all.keys();
    let mut quantised: Option<Quantised> = None;
    for name in names {
        let group = of_all.object(&name)?.ok_or_else(|| of_all.missing(&name))?;
        let format = match group.text("format")? {
            Some(format) => Some(format),
            None => given.text("format")?,
        };
        let (held, bits) = held(&group, format.unwrap_or_default())?;
        let all = quantised.get_or_insert(Quantised {
            matrices: Some(held),
            experts: held,
            int_bits: Vec::new(),
        });
        if let Some(bits) = bits.filter(|bits| !all.int_bits.contains(bits)) {
            all.int_bits.push(bits);
        }
    }
    quantised.ok_or_else(|| given.error(GROUPS, format!("is empty: {READ}")))
}

/// The weight format of a group's matrices, and the bits of integers.
fn held(group: &RawConfig, format: &str) -> Result<(&'static str, Option<u32>), ConfigError> {
    let weights = group.object("weights")?.ok_or_else(|| group.missing("weights"))?;
    let refused = |of: &RawConfig, key: &str, found: &str| {
        Err(of.error(key, format!("is {found}, which is not supported: {READ}")))
    };
    if !weights.flag("symmetric", true)? {
        return refused(&weights, "symmetric", "false");
    }
    let order = weights.get("actorder").map(ToString::to_string);
    // Whatever the order in which columns were quantised, they are stored in their own.
    if let Some(order) = order.filter(|o| !["false", "\"weight\"", "\"static\""].contains(&&**o)) {
        return refused(&weights, "actorder", &order);
    }
    let bits = weights.size("num_bits")?;
    let strategy = match weights.text("strategy")? {
        Some(strategy) => strategy,
        None => match weights.get("group_size").map(|size| size.as_i64()) {
            None => "tensor",
            Some(Some(-1)) => "channel",
            Some(_) => "group",
        },
    };
    let kind = weights.text("type")?.unwrap_or("int");
    let blocks = weights.get("block_structure").map(ToString::to_string);
    match (format, kind, strategy, bits) {
        ("pack-quantized", "int", "tensor" | "channel" | "group", 2..=8) => {
            if let Some(found) = group.get("input_activations") {
                return refused(group, "input_activations", &found.to_string());
            }
            let held = match (bits, strategy) {
                (4, _) => "q4_0",
                (_, "group") => "q8_0",
                _ => "int8",
            };
            Ok((held, Some(bits as u32)))
        }
        // Activations are computed with as they are.
        ("float-quantized" | "naive-quantized", "float", "tensor", 8) => Ok(("fp8", None)),
        ("float-quantized" | "naive-quantized", "float", "channel", 8) => Ok(("fp8_rows", None)),
        ("float-quantized" | "naive-quantized", "float", "block", 8)
            if blocks.as_deref() == Some("[128,128]") =>
        {
            Ok(("fp8_block", None))
        }
        ("pack-quantized" | "float-quantized" | "naive-quantized", ..) => {
            let found = format!("{bits} bits of type {kind} with a scale for each {strategy}");
            refused(group, "weights", &found)
        }
        _ => refused(group, "format", &format!("`{format}`")),
    }
}
