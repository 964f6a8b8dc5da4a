//! `quantization_config`: which quantised weights are read. How each of them is held follows from
//! its tensors, so all else that the key says is left to them.

use crate::raw_config::{ConfigError, RawConfig};
use serde_json::{Value, json};

const READ: &str = "fp8 in blocks of 128 × 128 or with one scale, bitsandbytes' nf4 and \
                    mxfp4 are read. Use the unquantised model, or one of these";

/// Refuses weights that are quantised in a way that is not read.
///
/// # Errors
/// If the configuration says so.
pub(super) fn check(raw: &RawConfig) -> Result<(), ConfigError> {
    let Some(given) = raw.object("quantization_config")? else { return Ok(()) };
    let settings: Vec<(&str, Value)> = match given.text("quant_method")? {
        Some("fp8") => vec![
            ("fmt", json!("e4m3")),
            ("expert_dtype", json!("fp8")),
            ("weight_block_size", json!([128, 128])),
        ],
        Some("bitsandbytes") => vec![
            ("load_in_8bit", json!(false)),
            ("_load_in_8bit", json!(false)),
            ("bnb_4bit_quant_type", json!("nf4")),
        ],
        Some("mxfp4") => vec![],
        Some(other) => {
            let problem = format!("is `{other}`, which is not supported: {READ}");
            return Err(given.error("quant_method", problem));
        }
        None => return Err(given.error("quant_method", format!("is missing: {READ}"))),
    };
    for (key, read) in settings {
        if let Some(value) = given.get(key).filter(|value| **value != read) {
            let problem = format!("is {value}, which is not supported: {READ}");
            return Err(given.error(key, problem));
        }
    }
    Ok(())
}
