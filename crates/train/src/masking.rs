//! Masked tokens (Devlin et al., 2019): some of a row's tokens are hidden and predicted where they
//! are, from both sides.
//!
//! Which ones follows from seed, step, row and place alone: neither company nor micro-batch matter,
//! and a run that is resumed draws the same.

use crate::code::Code;
use crate::error::TrainError;
use crate::run_file::{ObjectiveSection, RunFile};
use hone_data::{IGNORE, MicroBatch, Tokenizer};
use hone_model::heads::{NO_LM_HEAD, TaskHead};
use hone_model::{DecoderConfig, EncoderConfig};
use hone_tensor::Philox;
use std::collections::HashSet;

/// Share of chosen tokens that are replaced by the mask token, and share of the others by any.
const MASKED: f64 = 0.8;
const REPLACED: f64 = 0.1;

/// Told apart from other random numbers of the same seed.
const STREAM: u64 = 0x6d61_736b_0000_0000;

/// The step of evaluations, whose masks are always the same.
pub const EVALUATION: u64 = u32::MAX as u64;

/// How tokens are masked.
#[derive(Clone, Debug)]
pub struct Masking {
    seed: u64,
    /// Share of tokens that are predicted.
    ratio: f64,
    mask_token: u32,
    vocab_size: u32,
    /// Tokens that are never masked.
    special: HashSet<u32>,
}

impl Masking {
    /// What the run file asks for; `None`: nothing is masked.
    ///
    /// # Errors
    /// If objective and model do not fit each other, or the tokenizer has no mask token.
    pub fn of(
        run: &RunFile,
        config: &DecoderConfig,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>, TrainError> {
        let invalid = |text: String| Err(TrainError::Usage(Code::RunFileInvalidValue, text));
        if config.lacks_lm_head {
            return invalid(format!("model.path: {NO_LM_HEAD}"));
        }
        let ObjectiveSection::Masked(section) = &run.objective else {
            return match config.looks_ahead() {
                None => Ok(None),
                Some(_) => invalid(format!(
                    "objective.kind = \"{}\" predicts tokens from those before them, but in this \
                     model, an encoder, tokens see later ones too: set objective.kind = \"masked\"",
                    run.objective.kind()
                )),
            };
        };
        if config.looks_ahead().is_none() {
            return invalid(
                "objective.kind = \"masked\" is for encoders, but in this model tokens see only \
                 those before them: set objective.kind = \"pretrain\""
                    .to_owned(),
            );
        }
        let Some(mask_token) = tokenizer.mask_token_id() else {
            return invalid(
                "objective.kind = \"masked\" needs a mask token, and the model's tokenizer has \
                 none: name one of its tokens as mask_token in its tokenizer_config.json"
                    .to_owned(),
            );
        };
        if mask_token as usize >= config.vocab_size {
            return Err(TrainError::unknown_token("the mask token", mask_token, config));
        }
        let special = tokenizer.special_token_ids().into_iter().chain([mask_token]);
        Ok(Some(Self {
            seed: run.train.seed,
            ratio: section.ratio,
            mask_token,
            vocab_size: tokenizer.vocab_size().min(config.vocab_size) as u32,
            special: special.collect(),
        }))
    }

    /// Share of tokens that are predicted.
    pub fn ratio(&self) -> f64 {
        self.ratio
    }

    /// The micro-batch with tokens masked, for a step. A row in which chance chooses no token has
    /// one all the same, so that each is learnt from.
    pub fn apply(&self, step: u64, mut batch: MicroBatch) -> MicroBatch {
        batch.targets.fill(IGNORE);
        let bounds = batch.cu_seqlens.windows(2).map(|bound| [bound[0], bound[1]]);
        let bounds: Vec<[u32; 2]> = bounds.collect();
        for (row, [start, end]) in batch.rows.clone().into_iter().zip(bounds) {
            self.mask_row(step, row, start as usize..end as usize, &mut batch);
        }
        batch.num_target_tokens = batch.targets.iter().filter(|&&target| target != IGNORE).count();
        batch
    }

    fn mask_row(&self, step: u64, row: u32, slots: std::ops::Range<usize>, batch: &mut MicroBatch) {
        let random = Philox::new(self.seed, STREAM ^ step);
        let words = |place: usize| random.words(u64::from(row) << 32 | place as u64);
        let start = slots.start;
        let may: Vec<usize> =
            slots.filter(|&slot| !self.special.contains(&batch.tokens[slot])).collect();
        let is_chosen = |slot: &usize| unit(words(slot - start)[0]) < self.ratio;
        let mut chosen: Vec<usize> = may.iter().copied().filter(is_chosen).collect();
        if chosen.is_empty() && !may.is_empty() {
            chosen.push(may[words(u32::MAX as usize)[0] as usize % may.len()]);
        }
        for slot in chosen {
            let [_, how, other, _] = words(slot - start);
            batch.targets[slot] = batch.tokens[slot];
            let (how, other) = (unit(how), other % self.vocab_size);
            if how < MASKED || (how < MASKED + REPLACED && self.special.contains(&other)) {
                batch.tokens[slot] = self.mask_token;
            } else if how < MASKED + REPLACED {
                batch.tokens[slot] = other;
            }
        }
    }
}

/// What to know of a model's heads before they are trained, or not.
pub fn notes_of_heads(config: &DecoderConfig, masking: Option<&Masking>) -> Vec<String> {
    let is_untrained = |encoder: &EncoderConfig| encoder.head.is_none();
    let lacks_head = masking.is_some() && config.encoder.as_ref().is_some_and(is_untrained);
    let untrained = lacks_head.then(|| {
        "the model's files hold no head for masked tokens: the embedding is used in its place, \
         untrained for this, so the loss starts high"
            .to_owned()
    });
    let kept: Vec<String> =
        config.heads.iter().flat_map(TaskHead::modules).map(|name| format!("`{name}`")).collect();
    let kept = (!kept.is_empty()).then(|| {
        format!(
            "{} of the model's files stay as they are: no objective trains heads for other tasks",
            kept.join(", ")
        )
    });
    untrained.into_iter().chain(kept).collect()
}

/// A micro-batch of a step, masked where a run masks.
pub fn masked(masking: Option<&Masking>, step: u64, batch: MicroBatch) -> MicroBatch {
    match masking {
        Some(masking) => masking.apply(step, batch),
        None => batch,
    }
}

/// A number from 0 to 1, without 1.
fn unit(word: u32) -> f64 {
    f64::from(word) / 4_294_967_296.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masking() -> Masking {
        let special = [0, 1, 2, 4].into_iter().collect();
        Masking { seed: 7, ratio: 0.15, mask_token: 4, vocab_size: 500, special }
    }

    /// Rows `ids` of 40 tokens and one of two special tokens around another.
    fn batch(ids: &[u32]) -> MicroBatch {
        let (mut tokens, mut bounds) = (Vec::new(), vec![0]);
        for &id in ids {
            let words = (0..38).map(|i| 5 + (i * 7 + id) % 490);
            tokens.extend([1].into_iter().chain(words).chain([2]));
            bounds.push(tokens.len() as u32);
        }
        tokens.extend([1, 9, 2]);
        bounds.push(tokens.len() as u32);
        tokens.extend([0; 5]);
        MicroBatch {
            targets: tokens.clone(),
            positions: vec![0; tokens.len()],
            labels: Vec::new(),
            rows: ids.iter().copied().chain([9999]).collect(),
            cu_seqlens: bounds,
            num_target_tokens: 0,
            tokens,
        }
    }

    #[test]
    fn shares_are_those_of_bert() {
        let ids: Vec<u32> = (0..400).collect();
        let (before, after) = (batch(&ids), masking().apply(3, batch(&ids)));
        let chosen: Vec<usize> =
            (0..after.targets.len()).filter(|&slot| after.targets[slot] != IGNORE).collect();
        assert_eq!(chosen.len(), after.num_target_tokens);
        assert!(chosen.iter().all(|&slot| after.targets[slot] == before.tokens[slot]));
        assert!(chosen.iter().all(|&slot| ![0, 1, 2, 4].contains(&before.tokens[slot])));
        let others = (0..after.targets.len()).filter(|slot| !chosen.contains(slot));
        assert!(others.into_iter().all(|slot| after.tokens[slot] == before.tokens[slot]));
        let share = |n: usize, of: usize| n as f64 / of as f64;
        let ratio = share(chosen.len(), 400 * 38);
        assert!((ratio - 0.15).abs() < 0.01, "{ratio}");
        let is_masked = |slot: &&usize| after.tokens[**slot] == 4;
        let masked = share(chosen.iter().filter(is_masked).count(), chosen.len());
        let is_kept = |slot: &&usize| after.tokens[**slot] == before.tokens[**slot];
        let kept = share(chosen.iter().filter(is_kept).count(), chosen.len());
        assert!((masked - 0.8).abs() < 0.03 && (kept - 0.1).abs() < 0.03, "{masked}, {kept}");
        // A row of one word has it chosen.
        assert_eq!(after.targets[400 * 40..][..3], [IGNORE, 9, IGNORE]);
    }

    /// Company and place in a batch do not matter; the step does.
    #[test]
    fn masks_follow_seed_step_and_row() {
        let together = masking().apply(3, batch(&[5, 6, 7]));
        let alone = masking().apply(3, batch(&[6]));
        assert_eq!(together.tokens[40..80], alone.tokens[..40]);
        assert_eq!(together.targets[40..80], alone.targets[..40]);
        assert!(masking().apply(4, batch(&[6])).targets != alone.targets);
        let other = Masking { seed: 8, ..masking() };
        assert!(other.apply(3, batch(&[6])).targets != alone.targets);
    }
}
