//! Samples: what the model answers to a few prompts, before and after training.

use crate::error::TrainError;
use hone_data::{Dataset, Tokenizer};
use hone_model::Pass;
use hone_model::generate::{GenerateOptions, Sampling, generate};
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;

/// An entry of `samples.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What the model is given.
    pub prompt: String,
    /// What the data has next.
    pub reference: String,
    /// The base model's answer.
    pub before: Option<String>,
    /// The trained model's answer.
    pub after: Option<String>,
}

/// A prompt in tokens, and the text it belongs to.
pub struct Prompt {
    tokens: Vec<u32>,
    sample: Sample,
}

/// Of a row without a prompt of its own, this much is given.
const TEXT_PROMPT_TOKENS: usize = 16;

/// Prompts from `num` groups spread evenly over `dataset`: the first row of each up to its first
/// target.
///
/// # Errors
/// If the tokenizer cannot decode its own tokens.
pub fn prompts(
    dataset: &Dataset,
    tokenizer: &Tokenizer,
    num: usize,
) -> Result<Vec<Prompt>, TrainError> {
    let all = dataset.num_groups();
    let num = num.min(all);
    let make = |i: usize| {
        let row = dataset.row(dataset.group(i * all / num).start as usize);
        let first_target = row.is_target.iter().position(|&is| is).unwrap_or(1).max(1);
        let is_text = first_target == 1;
        let cut = if is_text { TEXT_PROMPT_TOKENS.min(row.tokens.len()) } else { first_target };
        let (tokens, rest) = row.tokens.split_at(cut);
        let targets = row.is_target[cut..].iter().take_while(|&&is| is).count();
        let prompt = tokenizer.decode(tokens, true)?;
        let reference = tokenizer.decode(&rest[..targets], true)?;
        let sample = Sample { prompt, reference, before: None, after: None };
        Ok(Prompt { tokens: tokens.to_vec(), sample })
    };
    (0..num).map(make).collect()
}

impl Prompt {
    /// The sample without answers.
    pub fn sample(&self) -> Sample {
        self.sample.clone()
    }

    /// What the model answers, taking the most likely token each time.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the answer.
    pub fn answer(
        &self,
        Pass { device, model, compute }: Pass<'_>,
        tokenizer: &Tokenizer,
        max_new_tokens: usize,
    ) -> Result<String, TrainError> {
        let options = GenerateOptions {
            max_new_tokens,
            sampling: Sampling::GREEDY,
            stop_ids: model.decoder.config.stop_ids(tokenizer.stop_token_ids()),
            compute,
        };
        let longest = model.decoder.config.max_position_embeddings;
        if self.tokens.len() >= longest {
            return Ok(String::new());
        }
        let go_on = &mut |_| ControlFlow::Continue(());
        let (tokens, _) = generate(model, device, &self.tokens, &options, go_on);
        // Decoded together with the prompt: what a token looks like depends on what it follows.
        let mut stream = tokenizer.decode_stream(&self.tokens, true);
        let mut text = String::new();
        for token in tokens {
            text.push_str(&stream.push(token)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }
}
