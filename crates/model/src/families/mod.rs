//! Model families: each translates its `config.json` into a [`DecoderConfig`].
//!
//! A family is a small file over the shared decoder. A new one adds a file here, a line in
//! [`decoder_config`], and whatever block it needs that no family before it needed.

mod llama;

use crate::config::{ConfigError, DecoderConfig, RawConfig};

/// What `model_type` may say.
pub const SUPPORTED: [&str; 1] = ["llama"];

/// The decoder that a `config.json` describes.
///
/// # Errors
/// [`ConfigError`], naming file and key.
pub fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    match raw.text("model_type")? {
        Some("llama") => llama::decoder_config(raw),
        Some(other) => Err(ConfigError::Family {
            path: raw.path().to_owned(),
            model_type: other.to_owned(),
            supported: SUPPORTED.join(", "),
        }),
        None => Err(raw.error("model_type", "is missing; it names the family, such as \"llama\"")),
    }
}
