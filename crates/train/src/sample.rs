//! Samples: what the model answers to a few prompts, before and after training.

use crate::error::TrainError;
use crate::setup::Setup;
use hone_data::{DataError, Dataset, Row, Tokenizer};
use hone_model::generate::{
    Finish, GenerateError, Limits, Request, Sampling, cache_bytes, generate_all, step_bytes,
};
use hone_model::{DecoderConfig, Pass};
use hone_tensor::{Cost, DeviceError};
use serde::{Deserialize, Serialize};

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
    /// What ends a turn, where the row is a conversation.
    turn_end: Option<u32>,
}

/// Of a row without a prompt of its own, this much is given.
const TEXT_PROMPT_TOKENS: usize = 16;

/// The prompts of a run: from its evaluation data, if it has any.
///
/// # Errors
/// If the tokenizer cannot decode its own tokens.
pub fn prompts_of(setup: &Setup) -> Result<Vec<Prompt>, TrainError> {
    let dataset = setup.eval.as_ref().map_or(&setup.train, |(eval, _)| eval);
    prompts(dataset, &setup.tokenizer, setup.run.report.samples)
}

/// Most bytes that answering `prompts` takes: pages of keys and values, which grow by doubling, and
/// passes, of which those of two sizes may have memory at a time. `pass` may be on a dry device,
/// which does not fail.
///
/// # Errors
/// If the device failed.
pub fn answer_bytes(
    pass: Pass<'_>,
    prompts: &[Prompt],
    max_new_tokens: usize,
) -> Result<u64, DeviceError> {
    if prompts.is_empty() {
        return Ok(0);
    }
    let (config, limits) = (&pass.model.decoder.config, Limits::default());
    let lens = prompts.iter().map(Prompt::num_tokens);
    let longest = lens.clone().max().unwrap_or(0);
    let num_together = prompts.len().min(limits.max_sequences);
    let shortest = lens.clone().min().unwrap_or(0);
    let rows = lens.sum::<usize>().min(limits.max_prompt_rows.max(longest));
    let len = (longest + max_new_tokens).min(config.max_position_embeddings);
    // All may reach the length from which they are computed anew in the same pass.
    let again = if config.changes_angles(shortest, len) { num_together * len } else { 0 };
    let rows = rows.max(again);
    let logits = num_together * config.vocab_size * size_of::<f32>();
    let cache = cache_bytes(config, pass.compute, pass.device.target(), num_together, len);
    let step = step_bytes(pass, rows.max(num_together), num_together)?;
    Ok((2 * cache + 2 * step + logits) as u64)
}

/// What answering prompts once takes of work: a pass over them, and one for each further token.
#[derive(Default)]
pub struct AnswerCosts {
    of_prompts: Vec<Cost>,
    of_token: Vec<Cost>,
    /// As many as the longest answer may have.
    num_further_tokens: usize,
}

impl AnswerCosts {
    /// Seconds of all passes, given those of one.
    pub fn seconds(&self, of_pass: impl Fn(&[Cost]) -> f64) -> f64 {
        of_pass(&self.of_prompts) + self.num_further_tokens as f64 * of_pass(&self.of_token)
    }
}

/// What answering `prompts` takes of work, with as many tokens as answers may have, within the
/// model's context. `pass` is on a dry device.
///
/// # Errors
/// If the device failed.
pub fn answer_costs(
    pass: Pass<'_>,
    prompts: &[Prompt],
    max_new_tokens: usize,
) -> Result<AnswerCosts, DeviceError> {
    let lens = prompts.iter().map(Prompt::num_tokens);
    let Some(shortest) = lens.clone().min() else { return Ok(AnswerCosts::default()) };
    let room = pass.model.decoder.config.max_position_embeddings.saturating_sub(shortest);
    let num_rows = lens.sum();
    pass.device.take_costs();
    step_bytes(pass, num_rows, prompts.len())?;
    let of_prompts = pass.device.take_costs();
    step_bytes(pass, prompts.len(), prompts.len())?;
    let of_token = pass.device.take_costs();
    let num_further_tokens = max_new_tokens.min(room).saturating_sub(1);
    Ok(AnswerCosts { of_prompts, of_token, num_further_tokens })
}

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
    let turn_end = tokenizer.turn_end_id();
    let make = |i: usize| {
        let row = dataset.row(dataset.group(i * all / num).start as usize);
        let first_target = row.is_target.iter().position(|&is| is).unwrap_or(1).max(1);
        let is_text = first_target == 1;
        let cut = if is_text { TEXT_PROMPT_TOKENS.min(row.tokens.len()) } else { first_target };
        let (tokens, rest) = row.tokens.split_at(cut);
        let targets = row.is_target[cut..].iter().take_while(|&&is| is).count();
        // With the marks of a chat template, without which a role is a word in a line of its own.
        // Of some models the mark of a turn is the BOS token too, and then there are more of it.
        let is_bos = |(id, rest): (&u32, &[u32])| {
            tokenizer.bos_token_id() == Some(*id) && !rest.contains(id)
        };
        let skipped = usize::from(tokens.split_first().is_some_and(is_bos));
        let prompt = tokenizer.decode(&tokens[skipped..], false)?;
        let reference = tokenizer.decode(&rest[..targets], true)?;
        let sample = Sample { prompt, reference, before: None, after: None };
        let turn_end = turn_end.filter(|id| rest[..targets].contains(id));
        Ok(Prompt { tokens: tokens.to_vec(), sample, turn_end })
    };
    (0..num).map(make).collect()
}

impl Prompt {
    /// The sample without answers.
    pub fn sample(&self) -> Sample {
        self.sample.clone()
    }

    /// Tokens that the model is given.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// What is asked of a model; `None` where it has no room for an answer.
    fn request(
        &self,
        config: &DecoderConfig,
        tokenizer: &Tokenizer,
        max_new_tokens: usize,
    ) -> Option<Request> {
        let mut stop_ids = config.stop_ids(tokenizer.stop_token_ids());
        stop_ids.extend(self.turn_end);
        let (prompt, sampling) = (self.tokens.clone(), Sampling::GREEDY);
        let has_room = prompt.len() < config.max_position_embeddings;
        has_room.then_some(Request { id: 0, prompt, max_new_tokens, sampling, stop_ids })
    }
}

/// What a model answers to each prompt, taking the most likely token each time. Answers that are
/// cut off end with "…"; where the model computes no numbers the answer says so.
///
/// # Errors
/// If the tokenizer cannot decode an answer, or memory runs out.
pub fn answers(
    pass: Pass<'_>,
    tokenizer: &Tokenizer,
    prompts: &[Prompt],
    max_new_tokens: usize,
) -> Result<Vec<String>, TrainError> {
    let config = &pass.model.decoder.config;
    let request = |prompt: &Prompt| prompt.request(config, tokenizer, max_new_tokens);
    let requests: Vec<Option<Request>> = prompts.iter().map(request).collect();
    let generated = match generate_all(pass, requests.iter().flatten().cloned()) {
        // Training itself stops at such numbers, and a run that ends must get its report.
        Err(error @ GenerateError::NotFinite { .. }) => {
            return Ok(vec![format!("(no answer: {error})"); prompts.len()]);
        }
        generated => generated?,
    };
    let mut generated = generated.into_iter();
    let mut text = |(prompt, request): (&Prompt, &Option<Request>)| {
        let answer = request.as_ref().and_then(|_| generated.next());
        let Some(answer) = answer else { return Ok(String::new()) };
        let text = decode_after(tokenizer, &prompt.tokens, &answer.tokens)?;
        Ok(if answer.finish == Finish::Stop { text } else { text + "…" })
    };
    prompts.iter().zip(&requests).map(&mut text).collect()
}

/// The text of `tokens` that follow a prompt: what a token looks like depends on what it follows.
///
/// # Errors
/// If the tokenizer cannot decode them.
pub fn decode_after(
    tokenizer: &Tokenizer,
    prompt: &[u32],
    tokens: &[u32],
) -> Result<String, DataError> {
    let mut stream = tokenizer.decode_stream(prompt, true);
    let mut text = String::new();
    for &token in tokens {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    Ok(text)
}

/// A note for who trains on conversations whose turns end with a token at which the model does not
/// stop by itself.
pub fn turn_end_note(
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
    dataset: &Dataset,
) -> Option<String> {
    let id = tokenizer.turn_end_id()?;
    if config.stop_ids(tokenizer.stop_token_ids()).contains(&id) {
        return None;
    }
    let is_learnt = |row: Row<'_>| {
        row.tokens.iter().zip(row.is_target).any(|(&token, &is_target)| is_target && token == id)
    };
    // All rows of a kind show it, so a few will do.
    if !(0..dataset.len().min(16)).any(|i| is_learnt(dataset.row(i))) {
        return None;
    }
    let token = tokenizer.decode(&[id], false).unwrap_or_default();
    Some(format!(
        "turns end with {token}, at which this model does not stop by itself: `hone generate \
         --chat` stops there; elsewhere add {id} to eos_token_id in generation_config.json"
    ))
}
