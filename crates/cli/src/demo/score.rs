//! How many of the held-out items a model gets right.

use super::task::Item;
use crate::failure::Failure;
use hone_data::Tokenizer;
use hone_model::generate::{Request, Sampling, generate_all};
use hone_model::{LoadOptions, Pass, adapter};
use hone_tensor::{Compute, Device};
use hone_train::machine;
use hone_train::sample::decode_after;
use std::path::Path;

/// Longer than any right answer.
const MAX_ANSWER_TOKENS: usize = 64;

/// Answers to the held-out items.
pub struct Score {
    /// One for each item.
    pub answers: Vec<String>,
    /// Number of answers that match the completion exactly.
    pub num_right: usize,
}

/// Asks the model in `base`, with the adapter in `tuned` if given, all items.
pub fn score(base: &Path, tuned: Option<&Path>, items: &[Item]) -> Result<Score, Failure> {
    let device = Device::cpu(machine::num_threads());
    let mut model = hone_model::load(base, &device, LoadOptions::INFERENCE)?;
    if let Some(dir) = tuned {
        adapter::load(dir, &mut model, &device, &mut |_| ())?;
    }
    let tokenizer = Tokenizer::from_dir(base)?;
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let answers = answers(pass, &tokenizer, items)?;
    let right = items.iter().zip(&answers).filter(|(item, answer)| item.completion == **answer);
    let num_right = right.count();
    Ok(Score { answers, num_right })
}

/// The answers to all items, generated together.
fn answers(pass: Pass<'_>, tokenizer: &Tokenizer, items: &[Item]) -> Result<Vec<String>, Failure> {
    let stop_ids = pass.model.decoder.config.stop_ids(tokenizer.stop_token_ids());
    let encode = |item: &Item| tokenizer.encode(&item.prompt, true);
    let prompts = items.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
    let requests = prompts.iter().map(|prompt| Request {
        id: 0,
        prompt: prompt.clone(),
        max_new_tokens: MAX_ANSWER_TOKENS,
        sampling: Sampling::GREEDY,
        stop_ids: stop_ids.clone(),
    });
    let generated = generate_all(pass, requests)?;
    let texts = prompts.iter().zip(&generated);
    let texts = texts.map(|(prompt, answer)| decode_after(tokenizer, prompt, &answer.tokens));
    Ok(texts.collect::<Result<_, _>>()?)
}
