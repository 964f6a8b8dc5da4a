//! Which linear layers get an adapter.

use super::AdapterError;
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use std::collections::BTreeSet;

/// Layers to adapt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer inside the blocks; not the head.
    AllLinear,
    /// Names as in PEFT (`q_proj` matches every layer of that name, longer names suffixes), or
    /// patterns with `*` over the full name.
    Patterns(Vec<String>),
}

impl TargetModules {
    /// Full names of the matching layers, in model order.
    ///
    /// # Errors
    /// If one of the patterns matches nothing.
    pub fn resolve(&self, decoder: &Decoder) -> Result<Vec<String>, AdapterError> {
        let names: Vec<String> = decoder.config.module_names().collect();
        let Self::Patterns(patterns) = self else { return Ok(names) };
        if patterns.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        for pattern in patterns {
            if !names.iter().any(|name| matches(pattern, name)) {
                return Err(no_match(pattern, &decoder.config));
            }
        }
        let is_target = |name: &String| patterns.iter().any(|pattern| matches(pattern, name));
        Ok(names.into_iter().filter(is_target).collect())
    }
}

fn no_match(target: &str, config: &DecoderConfig) -> AdapterError {
    let mut seen = BTreeSet::new();
    let last = |name: String| name.rsplit('.').next().unwrap_or(&name).to_owned();
    let available: Vec<String> =
        config.module_names().map(last).filter(|name| seen.insert(name.clone())).collect();
    AdapterError::NoMatch {
        target: target.to_owned(),
        available: available.join(", "),
        num_layers: config.num_hidden_layers(),
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    if pattern.contains('*') {
        return glob(pattern.as_bytes(), name.as_bytes());
    }
    name == pattern || name.ends_with(&format!(".{pattern}"))
}

/// Whether `pattern`, in which `*` matches any text, matches all of `name`.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    // Where to resume after the last `*` if what follows it does not match.
    let mut retry = None;
    while n < name.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, n + 1));
        } else if pattern.get(p) == Some(&name[n]) {
            (p, n) = (p + 1, n + 1);
        } else if let Some((after_star, next)) = retry {
            (p, n) = (after_star, next);
            retry = Some((after_star, next + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn names_endings_and_patterns() {
        let name = "model.layers.10.self_attn.q_proj";
        for pattern in ["q_proj", "self_attn.q_proj", name, "*", "*.q_proj", "model.layers.1*q*j"] {
            assert!(matches(pattern, name), "{pattern}");
        }
        for pattern in ["proj", "k_proj", "layers.1*", "*.1.*", "", "*q_pro"] {
            assert!(!matches(pattern, name), "{pattern}");
        }
    }
}
