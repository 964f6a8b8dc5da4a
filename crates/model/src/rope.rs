//! Frequencies of rotary embeddings. The scaling methods and their names are those of transformers
//! (`modeling_rope_utils.py`).

use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::ops::{Angles, Rotated};
use serde_json::Value;
use std::f64::consts::PI;

/// How positions become angles.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of wavelengths.
    pub rope_theta: f64,
    /// The dimensions of a head that are rotated.
    pub rotated: Rotated,
    /// Longest sequence that `dynamic` leaves unscaled.
    pub max_position_embeddings: usize,
    /// Method for sequences longer than those in pre-training.
    pub scaling: RopeScaling,
    /// Factor of queries that grows with their position.
    pub query_scale: Option<QueryScale>,
}

/// Queries at position `p` times `1 + beta · ln(1 + ⌊p / original_length⌋)`, as in Llama 4.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How much.
    pub beta: f64,
    /// Positions below have factor 1.
    pub original_length: f64,
}

impl QueryScale {
    fn factor(self, position: u32) -> f32 {
        let times = (f64::from(position) / self.original_length).floor();
        (1.0 + self.beta * times.ln_1p()) as f32
    }
}

/// Methods that extend rotary embeddings to longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Divides all frequencies by `factor`.
    Linear {
        /// Ratio of the extended to the original context length.
        factor: f64,
    },
    /// Increases the base with the length of the sequence (NTK-aware).
    Dynamic {
        /// Ratio of the extended to the original context length.
        factor: f64,
    },
    /// Llama 3.1: divides low frequencies by `factor`, keeps high ones and blends in between.
    Llama3 {
        /// Ratio of the extended to the original context length.
        factor: f64,
        /// Frequencies with fewer rotations over the original length than this are scaled.
        low_freq_factor: f64,
        /// Frequencies with more rotations over the original length than this are kept.
        high_freq_factor: f64,
        /// Context length in pre-training.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al., 2023).
    Yarn {
        /// Ratio of the extended to the original context length.
        factor: f64,
        /// Frequencies with more rotations over the original length than this are kept.
        beta_fast: f64,
        /// Frequencies with fewer rotations over the original length than this are scaled.
        beta_slow: f64,
        /// Multiplier of cosines and sines.
        attention_factor: f64,
        /// Context length in pre-training.
        original_max_position_embeddings: f64,
        /// Whether the bounds of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
    /// The first frequencies of a head are those of all its dimensions, and the others are zero
    /// (Gemma 4).
    Proportional {
        /// The share of frequencies that are not zero.
        fraction: f64,
        /// Divides them.
        factor: f64,
    },
    /// LongRoPE (Ding et al., 2024): each frequency has a divisor of its own, and another in
    /// sequences longer than those in pre-training.
    LongRope {
        /// Divisors in sequences up to the original length, one for each frequency.
        short_factor: Vec<f64>,
        /// Divisors in longer ones.
        long_factor: Vec<f64>,
        /// Multiplier of cosines and sines.
        attention_factor: f64,
        /// Context length in pre-training.
        original_max_position_embeddings: f64,
    },
}

impl RopeConfig {
    /// Reads `rope_theta` with `rope_scaling`, or `rope_parameters` in newer files.
    pub(crate) fn read(
        raw: &RawConfig,
        defaults: RopeDefaults,
        head_dim: usize,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        Self::from_keys(&RopeKeys::of(raw, defaults)?, head_dim, max_position_embeddings)
    }

    pub(crate) fn from_keys(
        keys: &RopeKeys<'_>,
        head_dim: usize,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let object = keys.chosen(max_position_embeddings)?;
        let scaling = match object {
            None => RopeScaling::Default,
            Some(object) => RopeScaling::read(keys, object, max_position_embeddings)?,
        };
        let rope_theta = keys.theta(object)?;
        let rotated = match scaling {
            RopeScaling::Proportional { .. } => Rotated { dim: head_dim, interleaved: false },
            _ => keys.rotated(object, head_dim)?,
        };
        scaling.check_len(object, rotated.dim)?;
        let query_scale = None;
        Ok(Self { rope_theta, rotated, max_position_embeddings, scaling, query_scale })
    }

    /// Angles for tokens at `positions`, in sequences delimited by `cu_seqlens`; tokens after the
    /// last sequence get angle zero. `dynamic` scaling uses each sequence's own length, so packing
    /// does not change a sequence's result.
    pub fn angles(&self, positions: &[u32], cu_seqlens: &[u32]) -> Angles {
        let (half, factor) = (self.rotated.dim / 2, self.attention_factor());
        let fixed = self.inverse_frequencies(0);
        let len = positions.len() * half;
        let mut angles = Angles::new(self.rotated, vec![1.0; len], vec![0.0; len]);
        for bounds in cu_seqlens.windows(2) {
            let tokens = bounds[0] as usize..bounds[1] as usize;
            let len = positions[tokens.clone()].iter().max().map_or(0, |&p| p as usize + 1);
            let of_len = self.depends_on(len).then(|| self.inverse_frequencies(len));
            let frequencies = of_len.as_ref().unwrap_or(&fixed);
            for t in tokens {
                for (i, &frequency) in frequencies.iter().enumerate() {
                    let (sin, cos) = f64::from(positions[t] as f32 * frequency).sin_cos();
                    angles.cos[t * half + i] = (cos * factor) as f32;
                    angles.sin[t * half + i] = (sin * factor) as f32;
                }
            }
        }
        match self.query_scale {
            None => angles,
            Some(scale) => {
                let factors: Vec<f32> = positions.iter().map(|&p| scale.factor(p)).collect();
                angles.with_query_factors(&factors)
            }
        }
    }

    /// Size in bytes of the angles for `num_tokens` tokens.
    pub(crate) fn angle_bytes(&self, num_tokens: usize) -> usize {
        let sets = 1 + usize::from(self.query_scale.is_some());
        sets * size_of::<f32>() * self.rotated.dim * num_tokens
    }

    /// Whether a sequence of `len` tokens has other frequencies than a short one.
    pub(crate) fn depends_on(&self, len: usize) -> bool {
        match self.scaling {
            RopeScaling::Dynamic { .. } => len > self.max_position_embeddings,
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                len as f64 > original_max_position_embeddings
            }
            _ => false,
        }
    }

    /// Multiplier of cosines and sines.
    pub(crate) fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. }
            | RopeScaling::LongRope { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    /// Inverse frequencies, `[rotated.dim / 2]`, for a sequence of `len` tokens.
    pub fn inverse_frequencies(&self, len: usize) -> Vec<f32> {
        let d = self.rotated.dim as f64;
        let unscaled =
            |base: f64| (0..self.rotated.dim / 2).map(move |i| base.powf(-2.0 * i as f64 / d));
        let frequencies: Vec<f64> = match &self.scaling {
            RopeScaling::Default => unscaled(self.rope_theta).collect(),
            RopeScaling::Linear { factor } => {
                unscaled(self.rope_theta).map(|f| f / factor).collect()
            }
            RopeScaling::Dynamic { factor } => {
                let max = self.max_position_embeddings as f64;
                let scale = factor * max.max(len as f64) / max - (factor - 1.0);
                unscaled(self.rope_theta * scale.powf(d / (d - 2.0))).collect()
            }
            RopeScaling::Proportional { fraction, factor } => {
                let kept = (fraction * d / 2.0) as usize;
                let factor = |i| if i < kept { 1.0 / factor } else { 0.0 };
                unscaled(self.rope_theta).enumerate().map(|(i, f)| f * factor(i)).collect()
            }
            RopeScaling::Llama3 { .. } => {
                unscaled(self.rope_theta).map(|f| self.scaling.llama3(f)).collect()
            }
            RopeScaling::Yarn { .. } => {
                let ramp = self.scaling.yarn_ramp(self.rope_theta, d);
                unscaled(self.rope_theta).zip(ramp).map(|(f, scale)| f * scale).collect()
            }
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                let factors = if self.depends_on(len) { long_factor } else { short_factor };
                unscaled(self.rope_theta).zip(factors).map(|(f, factor)| f / factor).collect()
            }
        };
        frequencies.into_iter().map(|f| f as f32).collect()
    }
}

/// The parts of a configuration that define a rotary embedding.
pub(crate) struct RopeKeys<'a> {
    /// The enclosing object.
    pub(crate) raw: &'a RawConfig,
    /// Its key for the base, used if neither inner object has `rope_theta`.
    pub(crate) theta_key: &'static str,
    /// `rope_scaling`, the older object, which guides to longer contexts say to add; it wins.
    pub(crate) scaling: Option<RawConfig>,
    /// `rope_parameters`, the newer object.
    pub(crate) parameters: Option<RawConfig>,
    /// The family's.
    pub(crate) defaults: RopeDefaults,
}

/// What differs between families in how they rotate: layout, defaults and names.
#[derive(Clone, Copy)]
pub(crate) struct RopeDefaults {
    /// The base if no key gives it.
    pub(crate) theta: f64,
    /// Fraction of a head's dimensions that is rotated if no key gives it; `None`: always all.
    pub(crate) fraction: Option<f64>,
    /// Whether neighbouring dimensions are pairs.
    pub(crate) interleaved: bool,
    /// Length in pre-training if no key gives it; `None`: the longest sequence.
    pub(crate) original_length: Option<usize>,
    /// Names of [`RopeScaling::LongRope`].
    pub(crate) long_rope: &'static [&'static str],
    /// Whether [`RopeScaling::Proportional`] is known.
    pub(crate) proportional: bool,
    /// Keys that change nothing for texts.
    pub(crate) neutral: &'static [&'static str],
}

impl RopeDefaults {
    /// Llama's.
    pub(crate) const LLAMA: Self = Self {
        theta: 10_000.0,
        fraction: None,
        interleaved: false,
        original_length: None,
        long_rope: &["longrope"],
        proportional: false,
        neutral: &[],
    };
}

impl<'a> RopeKeys<'a> {
    /// The usual ones.
    pub(crate) fn of(raw: &'a RawConfig, defaults: RopeDefaults) -> Result<Self, ConfigError> {
        Ok(Self {
            raw,
            theta_key: "rope_theta",
            scaling: raw.object("rope_scaling")?,
            parameters: raw.object("rope_parameters")?,
            defaults,
        })
    }

    /// The dimensions of a head that are rotated: `partial_rotary_factor` of them.
    fn rotated(&self, object: Option<&RawConfig>, d: usize) -> Result<Rotated, ConfigError> {
        const KEY: &str = "partial_rotary_factor";
        let RopeDefaults { fraction, interleaved, .. } = self.defaults;
        let inner = object.map(|o| o.optional_number(KEY)).transpose()?.flatten();
        let outer = self.raw.optional_number(KEY)?;
        let Some(fraction) = fraction else {
            if let Some((object, fraction)) = object.zip(inner.filter(|x| *x != 1.0))
                && self.defaults.proportional
            {
                let problem = format!("must be `proportional` where {KEY} is {fraction}");
                return Err(object.ruled_out("rope_type", problem));
            }
            object.into_iter().chain([self.raw]).try_for_each(|o| o.expect_neutral(KEY, 1.0))?;
            return Ok(Rotated { dim: d, interleaved });
        };
        let fraction = inner.or(outer).unwrap_or(fraction);
        let dim = (d as f64 * fraction) as usize;
        if dim == 0 || dim > d || !dim.is_multiple_of(2) {
            let problem = format!(
                "must leave an even number of a head's dimensions (head_dim, {d}) to rotate, \
                 found {fraction}, which is {dim}"
            );
            let place = object.filter(|_| inner.is_some()).unwrap_or(self.raw);
            return Err(place.ruled_out(KEY, problem));
        }
        Ok(Rotated { dim, interleaved })
    }

    /// The object that takes effect, as in transformers. Both may be present if they agree or if
    /// one of them asks for no scaling.
    fn chosen(&self, max_position_embeddings: usize) -> Result<Option<&RawConfig>, ConfigError> {
        let (scaling, parameters) = (self.scaling.as_ref(), self.parameters.as_ref());
        let (Some(scaling), Some(parameters)) = (scaling.filter(|o| !o.is_empty()), parameters)
        else {
            return Ok(scaling.filter(|o| !o.is_empty()).or(parameters));
        };
        let read = |object| RopeScaling::read(self, object, max_position_embeddings);
        let (winner, loser) = (read(scaling)?, read(parameters)?);
        if loser != RopeScaling::Default && winner != RopeScaling::Default && winner != loser {
            let problem =
                "contradicts `rope_parameters`, which is also present: remove one of them";
            return Err(self.raw.error("rope_scaling", problem));
        }
        let base = parameters.optional_number("rope_theta")?;
        if base.is_some() && base != Some(self.theta(Some(scaling))?) {
            let problem = "is ignored because `rope_scaling` is also present and takes precedence, \
                           and it differs from the base outside: move it next to `rope_scaling`";
            return Err(parameters.error("rope_theta", problem));
        }
        Ok(Some(scaling))
    }

    fn theta(&self, object: Option<&RawConfig>) -> Result<f64, ConfigError> {
        let inner = object.map(|o| o.optional_number("rope_theta")).transpose()?.flatten();
        let outer = self.raw.optional_number(self.theta_key)?;
        let theta = inner.or(outer).unwrap_or(self.defaults.theta);
        if theta > 1.0 {
            return Ok(theta);
        }
        let problem = format!("must be greater than 1 (often 10000), found {theta}");
        Err(match object.filter(|_| inner.is_some()) {
            Some(object) => object.ruled_out("rope_theta", problem),
            None => self.raw.ruled_out(self.theta_key, problem),
        })
    }
}

/// Keys of all methods; transformers ignores keys of methods other than the chosen one.
const ROPE_KEYS: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "finetuned",
    "high_freq_factor",
    "long_factor",
    "long_mscale",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "rope_theta",
    "rope_type",
    "short_factor",
    "short_mscale",
    "truncate",
    "type",
];

impl RopeScaling {
    fn read(
        keys: &RopeKeys<'_>,
        raw: &RawConfig,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        // Read with the dimensions that are rotated.
        let _ = raw.get("partial_rotary_factor");
        let scaling = Self::read_kind(keys, raw, max_position_embeddings)?;
        raw.refuse_unread(&[ROPE_KEYS, keys.defaults.neutral].concat())?;
        Ok(scaling)
    }

    fn read_kind(
        keys: &RopeKeys<'_>,
        raw: &RawConfig,
        max_position_embeddings: usize,
    ) -> Result<Self, ConfigError> {
        let original = || -> Result<f64, ConfigError> {
            const KEY: &str = "original_max_position_embeddings";
            // Phi's files have it beside the object, which then counts.
            let (inner, outer) = (raw.optional_size(KEY)?, keys.raw.optional_size(KEY)?);
            let length = outer.or(inner).or(keys.defaults.original_length);
            Ok(length.unwrap_or(max_position_embeddings) as f64)
        };
        let key = if raw.get("rope_type").is_some() { "rope_type" } else { "type" };
        match raw.text(key)?.unwrap_or("default") {
            "default" => Ok(Self::Default),
            name if keys.defaults.long_rope.contains(&name) => {
                Self::read_long_rope(raw, original()?, max_position_embeddings)
            }
            "proportional" if keys.defaults.proportional => Self::read_proportional(raw),
            "linear" => Ok(Self::Linear { factor: scaling_factor(raw)? }),
            "dynamic" => Ok(Self::Dynamic { factor: scaling_factor(raw)? }),
            "llama3" => Self::read_llama3(raw, original()?),
            "yarn" => Self::read_yarn(raw, original()?, max_position_embeddings),
            other => {
                let supported = ["default", "linear", "dynamic", "llama3", "yarn"];
                let proportional: &[&str] =
                    if keys.defaults.proportional { &["proportional"] } else { &[] };
                let own = keys.defaults.long_rope.iter().filter(|name| !supported.contains(name));
                let own: Vec<&str> = own.copied().collect();
                let supported = [&supported, &own[..], proportional].concat();
                let supported = supported.join(", ");
                let problem = format!(
                    "is `{other}`, which is not supported; supported: {supported}. Use a \
                     checkpoint with one of these"
                );
                Err(raw.error(key, problem))
            }
        }
    }

    fn read_llama3(raw: &RawConfig, original: f64) -> Result<Self, ConfigError> {
        let (low, high) = (raw.number("low_freq_factor")?, raw.number("high_freq_factor")?);
        if low >= high {
            let problem = format!("must be greater than low_freq_factor ({low}), found {high}");
            return Err(raw.ruled_out("high_freq_factor", problem));
        }
        Ok(Self::Llama3 {
            factor: scaling_factor(raw)?,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position_embeddings: original,
        })
    }

    fn read_proportional(raw: &RawConfig) -> Result<Self, ConfigError> {
        const KEY: &str = "partial_rotary_factor";
        let fraction = raw.optional_number(KEY)?.unwrap_or(1.0);
        if fraction > 1.0 {
            return Err(raw.ruled_out(KEY, format!("must be at most 1, found {fraction}")));
        }
        let factor = raw.optional_number("factor")?.unwrap_or(1.0);
        Ok(Self::Proportional { fraction, factor })
    }

    fn read_yarn(raw: &RawConfig, original: f64, max: usize) -> Result<Self, ConfigError> {
        let factor = match raw.get("factor") {
            Some(_) => scaling_factor(raw)?,
            None => max as f64 / original,
        };
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        let scale = |key| match raw.get(key).and_then(Value::as_f64) {
            // As in transformers, where zero counts as absent.
            Some(0.0) => Ok(None),
            _ => raw.optional_number(key),
        };
        let scales = (scale("mscale")?, scale("mscale_all_dim")?);
        let attention_factor = match (raw.optional_number("attention_factor")?, scales) {
            (Some(given), _) => given,
            (None, (Some(m), Some(all))) => mscale(m) / mscale(all),
            _ => mscale(1.0),
        };
        Ok(Self::Yarn {
            factor,
            beta_fast: raw.optional_number("beta_fast")?.unwrap_or(32.0),
            beta_slow: raw.optional_number("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            original_max_position_embeddings: original,
            truncate: raw.flag("truncate", true)?,
        })
    }

    fn read_long_rope(raw: &RawConfig, original: f64, max: usize) -> Result<Self, ConfigError> {
        if original < 2.0 {
            let problem = format!("must be at least 2, found {original}");
            return Err(raw.ruled_out("original_max_position_embeddings", problem));
        }
        let factor = raw.optional_number("factor")?.unwrap_or(max as f64 / original);
        let attention_factor = match raw.optional_number("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(Self::LongRope {
            short_factor: divisors(raw, "short_factor")?,
            long_factor: divisors(raw, "long_factor")?,
            attention_factor,
            original_max_position_embeddings: original,
        })
    }

    /// Refuses divisors that are not one for each frequency.
    fn check_len(&self, raw: Option<&RawConfig>, rotated: usize) -> Result<(), ConfigError> {
        let (Self::LongRope { short_factor, long_factor, .. }, Some(raw)) = (self, raw) else {
            return Ok(());
        };
        for (key, factors) in [("short_factor", short_factor), ("long_factor", long_factor)] {
            if factors.len() != rotated / 2 {
                let (half, found) = (rotated / 2, factors.len());
                let problem = format!(
                    "must have {half} numbers, half of the {rotated} dimensions of a head that \
                     are rotated (by partial_rotary_factor), found {found}"
                );
                return Err(raw.ruled_out(key, problem));
            }
        }
        Ok(())
    }

    fn llama3(&self, frequency: f64) -> f64 {
        let &Self::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } = self
        else {
            return frequency;
        };
        let rotations = original_max_position_embeddings * frequency / (2.0 * PI);
        let kept = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
        let kept = kept.clamp(0.0, 1.0);
        (1.0 - kept) * frequency / factor + kept * frequency
    }

    /// The multiplier of each unscaled frequency.
    fn yarn_ramp(&self, base: f64, d: f64) -> Vec<f64> {
        let &Self::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_position_embeddings,
            truncate,
            ..
        } = self
        else {
            return Vec::new();
        };
        let dimension = |rotations: f64| {
            let wavelength = original_max_position_embeddings / (rotations * 2.0 * PI);
            d * wavelength.ln() / (2.0 * base.ln())
        };
        let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let scaled = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (0..d as usize / 2).map(|i| scaled(i) / factor + (1.0 - scaled(i))).collect()
    }
}

/// A list of positive numbers.
fn divisors(raw: &RawConfig, key: &str) -> Result<Vec<f64>, ConfigError> {
    let value = raw.get(key).ok_or_else(|| raw.missing(key))?;
    let number = |x: &Value| x.as_f64().filter(|x| x.is_finite() && *x > 0.0);
    let numbers = value.as_array().and_then(|all| all.iter().map(number).collect());
    numbers.ok_or_else(|| raw.unexpected(key, "a list of positive numbers", value))
}

/// The key `factor`, which must not shorten the context.
fn scaling_factor(raw: &RawConfig) -> Result<f64, ConfigError> {
    let factor = raw.number("factor")?;
    if factor < 1.0 {
        return Err(raw.ruled_out("factor", format!("must be at least 1, found {factor}")));
    }
    Ok(factor)
}
