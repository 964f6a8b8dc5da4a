//! How rotary embeddings are scaled: from the metadata, or from the tensor that Llama 3.1's files
//! have instead.

use super::metadata::Metadata;
use crate::raw_config::ConfigError;
use crate::rope::{RopeConfig, RopeScaling};
use hone_tensor::gguf::{Value, shortest};
use serde_json::{Map, json};

/// Divisors of the frequencies, `[head_dim / 2]`.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// The same of sequences that are no longer than in pre-training, and of longer ones.
pub(super) const SHORT_AND_LONG: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

/// What `rope_scaling` says in a configuration; empty if frequencies are not scaled. `unscaled` are
/// theirs without.
pub(super) fn scaling(
    metadata: &Metadata<'_>,
    architecture: &str,
    unscaled: &RopeConfig,
) -> Result<Map<String, serde_json::Value>, ConfigError> {
    let mut scaling = Map::new();
    let key = format!("{architecture}.rope.scaling.type");
    let has_long = SHORT_AND_LONG.iter().any(|name| metadata.file.shape(name).is_some());
    let factor = metadata.number(&format!("{architecture}.rope.scaling.factor"))?;
    match metadata.text(&key)? {
        // What llama.cpp makes of a factor alone.
        None if !has_long && factor.is_some_and(|factor| factor != 0.0 && factor != 1.0) => {
            scaling.insert("rope_type".into(), "linear".into());
        }
        None | Some("none") => {}
        Some(kind @ ("linear" | "yarn")) => drop(scaling.insert("rope_type".into(), kind.into())),
        Some("longrope") if metadata.file.shape(SHORT_AND_LONG[0]).is_some() => {}
        Some(other) => {
            let problem =
                format!("is `{other}`, which is not supported; supported: none, linear, yarn");
            return Err(metadata.error(&key, problem));
        }
    }
    let keys = [
        ("factor", "factor"),
        ("original_context_length", "original_max_position_embeddings"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
        ("finetuned", "finetuned"),
    ];
    let is_scaled = !scaling.is_empty();
    for (from, to) in keys {
        let from = format!("{architecture}.rope.scaling.{from}");
        let value = match metadata.get(&from) {
            None => continue,
            Some(Value::Integer(n)) if i64::try_from(n).is_ok() => json!(n as i64),
            Some(Value::Float(x)) if x.is_finite() => json!(x),
            Some(Value::Bool(flag)) => json!(flag),
            Some(other) => return Err(metadata.unexpected(&from, "a number", other)),
        };
        if is_scaled || has_long {
            scaling.insert(to.to_owned(), value);
        }
    }
    if has_long {
        return long_rope(metadata, scaling, &key, unscaled);
    }
    if !is_scaled {
        return llama3(metadata, unscaled);
    }
    if let Some(factor) = attention_factor(metadata, architecture, &scaling)? {
        scaling.insert("attention_factor".into(), json!(factor));
    }
    if metadata.file.shape(FACTORS).is_some() {
        let problem = format!("contradicts the tensor `{FACTORS}`, which scales frequencies too");
        return Err(metadata.error(&key, problem));
    }
    Ok(scaling)
}

/// What YaRN multiplies cosines and sines by, where that does not follow from the factor alone.
fn attention_factor(
    metadata: &Metadata<'_>,
    architecture: &str,
    scaling: &Map<String, serde_json::Value>,
) -> Result<Option<f64>, ConfigError> {
    let key = |key: &str| format!("{architecture}.rope.scaling.{key}");
    let refused = |name: &str, problem: &str| {
        let instead = "give the model's directory in Hugging Face layout instead";
        Err(metadata.error(&key(name), format!("{problem}: {instead}")))
    };
    let given = |name: &str, neutral: f64| -> Result<Option<f64>, ConfigError> {
        Ok(metadata.number(&key(name))?.filter(|value| *value != neutral))
    };
    if let Some(ramp) = given("yarn_ext_factor", 1.0)? {
        return refused("yarn_ext_factor", &format!("is {ramp}, and only 1 is supported"));
    }
    let multiplier = given("attn_factor", 1.0)?;
    let own = metadata.number(&key("yarn_attn_factor"))?;
    if (own.is_some() || multiplier.is_some()) && scaling["rope_type"] != "yarn" {
        let name = if own.is_some() { "yarn_attn_factor" } else { "attn_factor" };
        return refused(name, "is not supported without yarn");
    }
    let Some(multiplier) = multiplier else { return Ok(own) };
    if own.is_some() {
        return refused("attn_factor", "contradicts `yarn_attn_factor`");
    }
    let factor = scaling.get("factor").and_then(serde_json::Value::as_f64).unwrap_or(1.0);
    let implied = 0.1 * factor.ln() + 1.0;
    if architecture != "olmo2" {
        // Of what follows from the factor. The file has it in 32 bits.
        return Ok(Some(shortest((multiplier * implied) as f32)));
    }
    // OLMo 3's files of 2025 have here what the configuration says, and all that were published say
    // what follows from the factor.
    if (multiplier - implied).abs() < 1e-6 {
        return Ok(None);
    }
    let problem = format!(
        "is {multiplier}, which older files mean as it is and llama.cpp takes times {implied}"
    );
    refused("attn_factor", &problem)
}

/// Settings of Phi's models for long texts.
fn long_rope(
    metadata: &Metadata<'_>,
    mut scaling: Map<String, serde_json::Value>,
    key: &str,
    unscaled: &RopeConfig,
) -> Result<Map<String, serde_json::Value>, ConfigError> {
    if scaling.contains_key("rope_type") {
        let problem =
            format!("contradicts the tensors `{}` and `{}`", SHORT_AND_LONG[0], SHORT_AND_LONG[1]);
        return Err(metadata.error(key, problem));
    }
    for (name, to) in SHORT_AND_LONG.into_iter().zip(["short_factor", "long_factor"]) {
        let factors = metadata.file.tensor(name).filter(|factors| {
            factors.shape() == [unscaled.rotated.dim / 2] && factors.storage().float().is_some()
        });
        let Some(factors) = factors else {
            let problem = "must be a tensor of as many floats as half a head's rotated part has";
            return Err(metadata.error(name, problem));
        };
        let factors: Vec<f64> = factors.to_vec_f32().into_iter().map(shortest).collect();
        scaling.insert(to.to_owned(), json!(factors));
    }
    let key = key.replace("scaling.type", "scaling.attn_factor");
    let original = scaling.get("original_max_position_embeddings");
    let original = original.and_then(serde_json::Value::as_f64).unwrap_or(f64::NAN);
    // What follows from the lengths; the file has it in 32 bits.
    let factor = unscaled.max_position_embeddings as f64 / original;
    let implied = (1.0 + factor.ln() / original.ln()).sqrt() as f32;
    let given = metadata.number(&key)?.map(|multiplier| multiplier as f32);
    if let Some(given) = given.filter(|given| *given != implied) {
        scaling.insert("attention_factor".to_owned(), json!(shortest(given)));
    }
    scaling.insert("rope_type".to_owned(), json!("longrope"));
    Ok(scaling)
}

/// The settings from which Llama 3's divisors follow.
fn llama3(
    metadata: &Metadata<'_>,
    unscaled: &RopeConfig,
) -> Result<Map<String, serde_json::Value>, ConfigError> {
    let refused = |problem: &str| Err(metadata.error(FACTORS, problem));
    let Some(divisors) = metadata.file.tensor(FACTORS) else { return Ok(Map::new()) };
    if divisors.shape() != [unscaled.rotated.dim / 2] {
        return refused("is a tensor that does not have half as many elements as a head");
    }
    let divisors = divisors.to_vec_f32();
    if divisors.iter().all(|divisor| *divisor == 1.0) {
        return Ok(Map::new());
    }
    let (factor, low, high) = (divisors.iter().copied().fold(1.0, f32::max), 1.0, 4.0);
    // What all Llama 3 have but the length in pre-training.
    let original = (4..24).map(|log| 1u32 << log).find(|original| {
        let scaled = RopeConfig {
            scaling: RopeScaling::Llama3 {
                factor: factor.into(),
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: f64::from(*original),
            },
            ..unscaled.clone()
        };
        let (unscaled, scaled) = (unscaled.inverse_frequencies(0), scaled.inverse_frequencies(0));
        let expected = unscaled.iter().zip(scaled).map(|(unscaled, scaled)| unscaled / scaled);
        expected.zip(&divisors).all(|(expected, found)| (expected / found - 1.0).abs() < 1e-3)
    });
    let Some(original) = original else {
        return refused(
            "is a tensor that scales frequencies otherwise than Llama 3 does, which is not \
             supported: give the model's directory in Hugging Face layout",
        );
    };
    let settings = [
        ("rope_type", json!("llama3")),
        ("factor", json!(factor)),
        ("low_freq_factor", json!(low)),
        ("high_freq_factor", json!(high)),
        ("original_max_position_embeddings", json!(original)),
    ];
    Ok(settings.map(|(key, value)| (key.to_owned(), value)).into_iter().collect())
}
