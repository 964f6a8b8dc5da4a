//! How many of the held-out items a model gets right.

use super::task::Item;
use crate::failure::Failure;
use hone_data::Tokenizer;
use hone_model::generate::{GenerateOptions, Sampling, generate};
use hone_model::{LoadOptions, Model, adapter};
use hone_tensor::{Compute, Device};
use hone_train::machine;
use std::ops::ControlFlow;
use std::path::Path;

/// Longer than any right answer.
const MAX_ANSWER_TOKENS: usize = 64;

/// Answers to the held-out items.
pub struct Score {
    /// One for each item.
    pub answers: Vec<String>,
    /// Answers that are the completion, letter by letter.
    pub num_right: usize,
}

/// Asks the model in `base`, with the adapter in `tuned` where there is one, all items.
pub fn score(base: &Path, tuned: Option<&Path>, items: &[Item]) -> Result<Score, Failure> {
    let device = Device::cpu(machine::num_threads());
    let mut model = hone_model::load(base, &device, LoadOptions::INFERENCE)?;
    if let Some(dir) = tuned {
        adapter::load(dir, &mut model, &device, &mut |_| ())?;
    }
    let tokenizer = Tokenizer::from_dir(base)?;
    let answers = items
        .iter()
        .map(|item| answer(&model, &device, &tokenizer, item))
        .collect::<Result<Vec<_>, _>>()?;
    let right = items.iter().zip(&answers).filter(|(item, answer)| item.completion == **answer);
    let num_right = right.count();
    Ok(Score { answers, num_right })
}

fn answer(
    model: &Model,
    device: &Device,
    tokenizer: &Tokenizer,
    item: &Item,
) -> Result<String, Failure> {
    let prompt = tokenizer.encode(&item.prompt, true)?;
    let options = GenerateOptions {
        max_new_tokens: MAX_ANSWER_TOKENS,
        sampling: Sampling::GREEDY,
        stop_ids: model.decoder.config.stop_ids(tokenizer.stop_token_ids()),
        compute: Compute::F32,
    };
    let mut stream = tokenizer.decode_stream(&prompt, true);
    let go_on = &mut |_| ControlFlow::Continue(());
    let (tokens, _) = generate(model, device, &prompt, &options, go_on);
    let mut text = String::new();
    for token in tokens {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    Ok(text)
}
