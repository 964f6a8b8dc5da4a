//! Which heads the files of a model hold.

use super::files::{LoadError, WeightFiles};
use crate::config::DecoderConfig;
use crate::encoder::is_buffer;
use crate::heads::{HeadKind, HeadModule, HeadNames, HeadWeight, OF_DECODERS, TaskHead};
use std::collections::BTreeSet;

impl WeightFiles {
    /// The heads for other tasks that the files hold: of a family's heads those whose modules are
    /// all there, but of several that end in the same module the first.
    ///
    /// # Errors
    /// If one has another shape than the configuration says.
    pub(super) fn task_heads(&self, config: &DecoderConfig) -> Result<Vec<TaskHead>, LoadError> {
        let mut found: Vec<TaskHead> = Vec::new();
        let mut lasts = BTreeSet::new();
        for HeadNames { kind, modules } in config.names_of_heads() {
            let stored = |(name, module): &(&str, HeadModule)| {
                let end = |end| self.stored_name(&format!("{name}.{end}")).map(str::to_owned);
                Some((*module, end("weight")?, end("bias")))
            };
            let Some(modules) = modules.iter().map(stored).collect::<Option<Vec<_>>>() else {
                continue;
            };
            let last = modules.last().map(|(_, weight, _)| weight.clone());
            if !lasts.insert(last.clone()) {
                continue;
            }
            let rows = last.and_then(|last| self.raw(&last)?.1.shape.first().copied());
            let labels = match kind {
                HeadKind::Classifier => config.num_labels.or(rows),
                _ => rows,
            };
            let mut weights = Vec::new();
            for (module, weight, bias) in modules {
                let parts = [(Some(weight), false), (bias, true)];
                for (name, is_bias) in parts.into_iter().filter_map(|(n, b)| Some((n?, b))) {
                    let shape = config.head_shape(module, is_bias, labels.unwrap_or(0));
                    self.check_shape(&name, &shape)?;
                    weights.push(HeadWeight { module, is_bias, name, shape });
                }
            }
            found.push(TaskHead { kind: *kind, weights });
        }
        Ok(found)
    }

    fn check_shape(&self, name: &str, expected: &[usize]) -> Result<(), LoadError> {
        let Some((file, raw)) = self.raw(name).filter(|(_, raw)| raw.shape != expected) else {
            return Ok(());
        };
        let (path, name) = (file.path().to_owned(), name.to_owned());
        let (found, expected) = (raw.shape.to_vec(), expected.to_vec());
        Err(LoadError::Shape { path, name, found, expected })
    }

    /// Leaves out the head for tokens if the files have none, as those of classifiers and of models
    /// that were trained to embed.
    pub(super) fn find_head(&self, config: &mut DecoderConfig) {
        let is_left_out = config.class_prefix.is_empty() || !config.heads.is_empty();
        let Some(encoder) = &mut config.encoder else {
            if !config.tie_word_embeddings
                && is_left_out
                && self.stored_name(&config.head_name()).is_none()
                && self.stored_ints(&config.head_name()).is_none()
            {
                (config.tie_word_embeddings, config.lacks_lm_head) = (true, true);
            }
            return;
        };
        let names = encoder.names;
        let has_dense = self.stored_name(&format!("{}.weight", names.head_dense)).is_some();
        let has_bias = self.stored_name(names.logit_bias).is_some();
        // A classifier has the dense layer too, but no bias for each token.
        let has_head = encoder.head.is_some_and(|head| has_dense && (has_bias || !head.logit_bias));
        if !has_head {
            encoder.head = None;
            config.tie_word_embeddings = true;
        }
    }
}

impl DecoderConfig {
    /// Names of the heads that the family's files may hold.
    fn names_of_heads(&self) -> &'static [HeadNames] {
        self.encoder.as_ref().map_or(OF_DECODERS, |encoder| encoder.names.heads)
    }

    /// Whether a tensor of this name is no part of the model, but may be in its files: heads for
    /// other tasks, and tables of numbers in older ones.
    pub(super) fn is_kept(&self, name: &str) -> bool {
        let is_in =
            |module: &str| name.strip_prefix(module).is_some_and(|end| end.starts_with('.'));
        let bare = |module: &'static str| module.strip_prefix(self.own_prefix()).unwrap_or(module);
        let mut modules = self.names_of_heads().iter().flat_map(|head| head.modules);
        modules.any(|(module, _)| is_in(module) || is_in(bare(module)))
            || self.encoder.is_some() && is_buffer(name)
    }

    /// The shape of a weight of a head with this number of labels.
    fn head_shape(&self, module: HeadModule, is_bias: bool, labels: usize) -> Vec<usize> {
        let h = self.hidden_size;
        match (module, is_bias) {
            (HeadModule::Norm, _) | (HeadModule::Dense, true) => vec![h],
            (HeadModule::Dense, false) => vec![h, h],
            (HeadModule::Labels, true) => vec![labels],
            (HeadModule::Labels, false) => vec![labels, h],
        }
    }
}
