//! Modules that no gradient reaches.

use crate::wording::and_others;
use hone_tensor::Params;

/// Steps without a gradient after which a module is named. A new adapter's first steps may have
/// none for one of its matrices, never for both.
const STEPS: usize = 20;

/// For how long modules have had no gradient.
pub(super) struct Silence(Vec<Module>);

/// Parameters that are trained for one module: an adapter's two matrices, or a weight.
struct Module {
    name: String,
    params: Vec<usize>,
    /// Steps since its last gradient.
    steps: usize,
    is_named: bool,
}

impl Silence {
    /// Of the modules that `params` are trained for.
    pub(super) fn of(params: &Params) -> Self {
        let mut modules: Vec<Module> = Vec::new();
        for (id, name, _) in params.iter() {
            let name = module_of(name);
            // An adapter's matrices follow each other.
            match modules.last_mut().filter(|last| last.name == name) {
                Some(module) => module.params.push(id.0),
                None => modules.push(Module {
                    name: name.to_owned(),
                    params: vec![id.0],
                    steps: 0,
                    is_named: false,
                }),
            }
        }
        Self(modules)
    }

    /// Told after each step which parameters had a gradient of zero: the modules to name.
    pub(super) fn note(&mut self, is_zero: &[bool]) -> Vec<String> {
        let mut found = Vec::new();
        for module in &mut self.0 {
            let is_silent = module.params.iter().all(|&param| is_zero[param]);
            module.steps = if is_silent { module.steps + 1 } else { 0 };
            if module.steps == STEPS && !std::mem::replace(&mut module.is_named, true) {
                found.push(module.name.clone());
            }
        }
        found
    }
}

/// `model.layers.0.mlp.up_proj` of `base_model.model.model.layers.0.mlp.up_proj.lora_A.weight`.
fn module_of(param: &str) -> &str {
    let of_peft = param.strip_prefix("base_model.model.").unwrap_or(param);
    let module = of_peft.strip_suffix(".weight").unwrap_or(of_peft);
    let matrix = [".lora_A", ".lora_B"].into_iter().find_map(|end| module.strip_suffix(end));
    matrix.unwrap_or(module)
}

/// What to tell the user of these modules.
pub(super) fn note(modules: &[String]) -> Option<String> {
    let (first, more) = (modules.first()?, and_others(modules.len()));
    Some(format!(
        "{first}{more}: the gradient has been zero for {STEPS} steps, so nothing is learnt there. \
         Experts that no token chooses are such; elsewhere the model's weights after it may be \
         zero, as of a damaged file. metrics.jsonl names all of them under no_gradient"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_tensor::Tensor;

    #[test]
    fn a_module_is_named_once_after_twenty_steps_without_a_gradient() {
        let mut params = Params::default();
        for name in ["a.lora_A", "a.lora_B", "b.lora_A", "b.lora_B"] {
            let name = format!("base_model.model.model.layers.3.{name}.weight");
            params.add(name, Tensor::from_f32(&[1.0], &[1]));
        }
        params.add("model.norm.weight".to_owned(), Tensor::from_f32(&[1.0], &[1]));
        let mut silence = Silence::of(&params);
        // One matrix is enough for a module, and one gradient begins anew.
        let step = |i: usize| [true, false, true, true, i != 5];
        let named = |i| silence.note(&step(i));
        let named: Vec<Vec<String>> = (1..60).map(named).collect();
        let at = |step: usize| named[step - 1].clone();
        assert_eq!(at(20), ["model.layers.3.b"]);
        assert_eq!(at(25), ["model.norm"]);
        assert_eq!(named.iter().flatten().count(), 2);
        let text = note(&[at(20), at(25)].concat()).unwrap();
        assert!(text.starts_with("model.layers.3.b and 1 other: the gradient"), "{text}");
        assert_eq!(note(&[]), None);
    }
}
