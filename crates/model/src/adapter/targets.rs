//! Which linear layers get an adapter.

use super::AdapterError;
use crate::config::DecoderConfig;
use crate::decoder::Decoder;
use crate::weights::Linear;
use std::collections::BTreeSet;

/// Layers to adapt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer inside the blocks, those of experts included; not routers, nor the head.
    AllLinear,
    /// Names as in PEFT (`q_proj` matches every layer of that name, longer names suffixes),
    /// patterns with `*` over the full name, or what layers do: `experts`, `router`.
    Patterns(Vec<String>),
}

/// Every linear layer of every expert, but not of a shared one.
const EXPERTS: &str = "experts";
/// Routers.
const ROUTER: &str = "router";

impl TargetModules {
    /// Full names of the matching layers, in model order.
    ///
    /// # Errors
    /// If one of the patterns matches nothing.
    pub fn resolve(&self, decoder: &Decoder) -> Result<Vec<String>, AdapterError> {
        let modules: Vec<(String, Linear)> = decoder.config.modules().collect();
        let Self::Patterns(patterns) = self else {
            let adapted = modules.into_iter().filter(|(_, linear)| !linear.is_router());
            return Ok(adapted.map(|(name, _)| name).collect());
        };
        if patterns.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        for pattern in patterns {
            if !modules.iter().any(|module| selects(pattern, module)) {
                return Err(no_match(pattern, &decoder.config));
            }
        }
        let is_target = |module: &(String, Linear)| patterns.iter().any(|p| selects(p, module));
        Ok(modules.into_iter().filter(is_target).map(|(name, _)| name).collect())
    }
}

/// Whether a target means a layer.
fn selects(target: &str, (name, linear): &(String, Linear)) -> bool {
    match (target, linear) {
        (EXPERTS, Linear::Expert(..)) | (ROUTER, Linear::Router) => true,
        _ => matches(target, name),
    }
}

fn no_match(target: &str, config: &DecoderConfig) -> AdapterError {
    let mut seen = BTreeSet::new();
    let last = |name: String| name.rsplit('.').next().unwrap_or(&name).to_owned();
    let mut available: Vec<String> =
        config.module_names().map(last).filter(|name| seen.insert(name.clone())).collect();
    if config.layers.iter().any(|layer| layer.mlp.experts.is_some()) {
        available.extend([EXPERTS, ROUTER].map(|role| format!("`{role}` by what they do")));
    }
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
pub(super) fn glob(pattern: &[u8], name: &[u8]) -> bool {
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
