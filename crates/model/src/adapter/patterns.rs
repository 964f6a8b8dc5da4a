//! Ranks and scales of single layers: PEFT's `rank_pattern` and `alpha_pattern`.
//!
//! Their keys are regular expressions. Hone reads what they are in practice: names, their endings,
//! `.*` for any text, escaped dots and anchors.

use super::LoraConfig;
use super::targets::glob;
use crate::raw_config::{ConfigError, RawConfig};
use serde_json::Value;
use std::collections::BTreeMap;

/// Rank and scale of an adapter's part.
pub(super) type RankAndScale = (usize, f32);

/// What is said of some layers.
#[derive(Default)]
pub(super) struct Patterns {
    ranks: Vec<(Pattern, usize)>,
    alphas: Vec<(Pattern, f64)>,
}

/// A name with `*` for any text.
struct Pattern {
    text: String,
    /// Whether it is of the whole name, rather than also of its ending after a dot.
    is_whole: bool,
}

impl Patterns {
    /// Reads both keys.
    ///
    /// # Errors
    /// If they are not objects of numbers, or a key is an expression of another kind.
    pub(super) fn read(raw: &RawConfig) -> Result<Self, ConfigError> {
        let rank = |value: &Value| value.as_u64().filter(|rank| (1..1 << 31).contains(rank));
        let alpha = |value: &Value| value.as_f64().filter(|alpha| *alpha > 0.0);
        let ranks = entries(raw, "rank_pattern", "a whole number of at least 1", rank)?;
        let alphas = entries(raw, "alpha_pattern", "a positive number", alpha)?;
        Ok(Self {
            ranks: ranks.map(|(key, rank)| (key, rank as usize)).collect(),
            alphas: alphas.collect(),
        })
    }

    /// Rank and scale of a layer that has these names.
    pub(super) fn of(&self, config: &LoraConfig, names: &[String]) -> RankAndScale {
        let rank = self.ranks.iter().find(|(pattern, _)| pattern.matches_any(names));
        let rank = rank.map_or(config.rank, |(_, rank)| *rank);
        (rank, self.scale(config, names, rank))
    }

    /// The scale of a layer whose rank is known otherwise.
    pub(super) fn scale(&self, config: &LoraConfig, names: &[String], rank: usize) -> f32 {
        let alpha = self.alphas.iter().find(|(pattern, _)| pattern.matches_any(names));
        let alpha = alpha.map_or(config.alpha, |(_, alpha)| *alpha);
        LoraConfig { rank, alpha, ..config.clone() }.scale()
    }
}

fn entries<T>(
    raw: &RawConfig,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<impl Iterator<Item = (Pattern, T)>, ConfigError> {
    let Some(value) = raw.get(key) else { return Ok(Vec::new().into_iter()) };
    let object = value.as_object().ok_or_else(|| raw.unexpected(key, "an object", value))?;
    let entry = |(pattern, value): (&String, &Value)| {
        let problem = |what: String| raw.error(key, what);
        let parsed = Pattern::parse(pattern).ok_or_else(|| {
            problem(format!(
                "has `{pattern}`, an expression that is not supported: write names of layers, \
                 their endings, or `.*` for any text"
            ))
        })?;
        let value = read(value)
            .ok_or_else(|| problem(format!("maps `{pattern}` to {value}, expected {expected}")))?;
        Ok((parsed, value))
    };
    let entries: Result<Vec<_>, ConfigError> = object.iter().map(entry).collect();
    Ok(entries?.into_iter())
}

impl Pattern {
    /// Reads the expressions that are names with gaps.
    fn parse(expression: &str) -> Option<Self> {
        let anchored = expression.strip_prefix('^');
        let mut rest = anchored.unwrap_or(expression);
        rest = rest.strip_suffix('$').unwrap_or(rest);
        let (mut text, mut chars) = (String::new(), rest.chars().peekable());
        while let Some(c) = chars.next() {
            match c {
                '.' if chars.next_if_eq(&'*').is_some() => text.push('*'),
                '\\' => text.push(chars.next().filter(char::is_ascii_punctuation)?),
                '.' | '-' | '_' => text.push(c),
                c if c.is_alphanumeric() => text.push(c),
                _ => return None,
            }
        }
        Some(Self { text, is_whole: anchored.is_some() })
    }

    fn matches_any(&self, names: &[String]) -> bool {
        names.iter().any(|name| self.matches(name))
    }

    fn matches(&self, module: &str) -> bool {
        let whole = |text: &str| glob(text.as_bytes(), module.as_bytes());
        whole(&self.text) || !self.is_whole && whole(&format!("*.{}", self.text))
    }
}

/// Both objects, for layers whose rank or scale is not the configuration's.
pub(super) fn to_json(
    config: &LoraConfig,
    layers: impl Iterator<Item = (String, RankAndScale)>,
) -> (BTreeMap<String, usize>, BTreeMap<String, f64>) {
    let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
    for (name, (rank, scale)) in layers {
        if rank != config.rank {
            ranks.insert(name.clone(), rank);
        }
        let by = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        let expected = LoraConfig { rank, ..config.clone() }.scale();
        if scale != expected {
            alphas.insert(name, f64::from(scale) * by);
        }
    }
    (ranks, alphas)
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn expressions_that_are_names() {
        let name = "model.layers.10.mlp.experts.gate_up_proj";
        for expression in [
            r".*\.gate_up_proj",
            "gate_up_proj",
            "experts.gate_up_proj",
            name,
            r"^model\.layers\.1.*gate_up_proj$",
        ] {
            assert!(Pattern::parse(expression).unwrap().matches(name), "{expression}");
        }
        for expression in ["up_proj", "^gate_up_proj", r".*\.10", "layers"] {
            assert!(!Pattern::parse(expression).unwrap().matches(name), "{expression}");
        }
        for expression in ["(q|v)_proj", r"layers\.\d+", "[qv]_proj", "q_proj\\"] {
            assert!(Pattern::parse(expression).is_none(), "{expression}");
        }
    }
}
