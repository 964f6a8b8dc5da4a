//! Which linear layers get an adapter.

use super::AdapterError;
use crate::config::{DecoderConfig, LayerConfig};
use crate::decoder::Decoder;
use crate::kinds::{LayerKind, Part};
use std::collections::{BTreeMap, BTreeSet};

/// Layers to adapt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetModules {
    /// Every linear layer inside the blocks, those of experts included; not routers, nor the head.
    AllLinear,
    /// Names as in PEFT (`q_proj` matches every layer of that name, longer names suffixes),
    /// patterns with `*` over the full name, or what layers do: see [`ROLES`].
    Patterns(Vec<String>),
}

/// Targets by what layers do. Gates of shared experts are routers, shared experts are no experts.
pub const ROLES: [(&str, Part); 3] = [
    ("experts", Part::Experts),
    ("router", Part::Router),
    ("linear-attention", Part::LinearAttention),
];

impl TargetModules {
    /// Full names of the matching layers, in model order.
    ///
    /// # Errors
    /// If one of the patterns matches nothing, or only some of what it names.
    pub fn resolve(&self, decoder: &Decoder) -> Result<Vec<String>, AdapterError> {
        let modules = modules(&decoder.config);
        let Self::Patterns(patterns) = self else {
            let adapted = modules.into_iter().filter(|module| module.kind.part != Part::Router);
            return Ok(adapted.map(|module| module.name).collect());
        };
        if patterns.is_empty() {
            return Err(AdapterError::NoTargets);
        }
        let is_target = |module: &Module| patterns.iter().any(|pattern| module.is_in(pattern));
        for pattern in patterns {
            if !modules.iter().any(|module| module.is_in(pattern)) {
                return Err(no_match(pattern, &decoder.config));
            }
            let is_left_out = |module: &&Module| module.is_named_by(pattern) && !is_target(module);
            let left_out: Vec<&Module> = modules.iter().filter(is_left_out).collect();
            if !left_out.is_empty() {
                let covered = modules.iter().filter(|module| module.is_in(pattern));
                return Err(partial(pattern, covered, left_out));
            }
        }
        Ok(modules.into_iter().filter(is_target).map(|module| module.name).collect())
    }
}

/// A linear layer inside a block.
struct Module {
    name: String,
    kind: LayerKind,
    block: usize,
}

fn modules(config: &DecoderConfig) -> Vec<Module> {
    let of_block = |(block, layer): (usize, &LayerConfig)| {
        let kinds: Vec<_> = layer.linears().map(|linear| (block, layer.kind_of(linear))).collect();
        kinds
    };
    let kinds = config.layers.iter().enumerate().flat_map(of_block);
    let module = |(name, (block, kind))| Module { name, kind, block };
    config.module_names().zip(kinds).map(module).collect()
}

impl Module {
    /// Whether a target means it.
    fn is_in(&self, target: &str) -> bool {
        let role = ROLES.iter().find(|(role, _)| *role == target);
        role.is_some_and(|(_, part)| self.kind.part == *part) || matches(target, &self.name)
    }

    /// Whether a name, which is no pattern, speaks of it: its parts are among the layer's in their
    /// order, the last one last.
    fn is_named_by(&self, target: &str) -> bool {
        let mut parts = self.name.rsplit('.');
        let mut wanted = target.rsplit('.');
        !target.contains('*')
            && parts.next() == wanted.next()
            && wanted.all(|wanted| parts.any(|part| part == wanted))
    }
}

fn no_match(target: &str, config: &DecoderConfig) -> AdapterError {
    let mut seen = BTreeSet::new();
    let last = |name: String| name.rsplit('.').next().unwrap_or(&name).to_owned();
    let mut available: Vec<String> =
        config.module_names().map(last).filter(|name| seen.insert(name.clone())).collect();
    let parts: BTreeSet<Part> = config.layers.iter().flat_map(parts).collect();
    let roles = ROLES.iter().filter(|(_, part)| parts.contains(part));
    available.extend(roles.map(|(role, _)| format!("`{role}` by what they do")));
    AdapterError::NoMatch {
        target: target.to_owned(),
        available: available.join(", "),
        num_layers: config.num_hidden_layers(),
    }
}

/// The parts of a block that have linear layers.
fn parts(layer: &LayerConfig) -> impl Iterator<Item = Part> {
    layer.kinds().into_iter().map(|kind| kind.part)
}

fn partial<'a>(
    target: &str,
    covered: impl Iterator<Item = &'a Module>,
    left_out: impl IntoIterator<Item = &'a Module>,
) -> AdapterError {
    AdapterError::Partial {
        target: target.to_owned(),
        covered: of_kinds(covered),
        left_out: of_kinds(left_out.into_iter()),
        all: target.rsplit('.').next().unwrap_or(target).to_owned(),
    }
}

/// Kinds of layers, each with the number of blocks: "MLP of 1 block and experts of 45 blocks".
fn of_kinds<'a>(modules: impl Iterator<Item = &'a Module>) -> String {
    let mut blocks: BTreeMap<&LayerKind, BTreeSet<usize>> = BTreeMap::new();
    for module in modules {
        blocks.entry(&module.kind).or_default().insert(module.block);
    }
    let of_kind = |(kind, blocks): (&LayerKind, BTreeSet<usize>)| match blocks.len() {
        1 => format!("{kind} of 1 block"),
        n => format!("{kind} of {n} blocks"),
    };
    blocks.into_iter().map(of_kind).collect::<Vec<_>>().join(" and ")
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
