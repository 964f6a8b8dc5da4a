//! Text generation: continuous batching over a paged KV cache.
//!
//! A [`Scheduler`] holds the requests; commands use [`generate`] and [`generate_all`]. An answer is
//! bit-identical whatever other requests share its passes: sums of a row do not depend on other
//! rows, and random numbers are keyed by the request. Two exceptions, both on GPUs: cuBLASLt, which
//! chooses an algorithm by the number of rows, and FP8, which has one scale for all rows of a pass.
//!
//! Prompts are not split: with `dynamic` RoPE scaling, the angles depend on the length of the whole
//! prompt.

mod memory;
mod sampling;
mod scheduler;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use memory::caches;
pub use memory::{cache_bytes, step_bytes};
pub use sampling::{Draw, NotFinite, Sampling};
pub use scheduler::{Limits, Progress, Scheduler};

use crate::pass::Pass;
use hone_tensor::DeviceError;
use std::ops::ControlFlow;

/// A prompt to continue, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Identifies the request; with the seed of `sampling`, also keys its random numbers.
    pub id: u64,
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// Maximum number of tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// Tokens that end the answer; they are not part of it.
    pub stop_ids: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was sampled.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// The model's longest sequence was reached.
    Context,
    /// The caller stopped it.
    Cancelled,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The tokens, without prompt and stop token.
    pub tokens: Vec<u32>,
    /// Why the generation ended.
    pub finish: Finish,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// A logit is not finite.
    #[error(
        "token {} of the answer cannot be sampled: the logit of token {} is {}. A weight of the \
         model or adapter is not finite, or values overflowed in {compute}; restore the files, or \
         compute in f32",
        draw.position + 1, logit.token, logit.logit
    )]
    NotFinite {
        /// The request, and the position in its answer.
        draw: Draw,
        /// The first logit that is not finite.
        logit: NotFinite,
        /// Element type that matmuls were computed in.
        compute: &'static str,
    },
    /// The device failed. Requests are as they were before the pass, which can be tried again.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The model's tokens attend to later ones.
    #[error(
        "the model cannot continue a text: in block {layer} tokens attend to later ones, as in an \
         encoder; generate with a model whose attention is causal"
    )]
    LooksAhead {
        /// The first such block.
        layer: usize,
    },
    /// The request can never fit in the KV cache.
    #[error(
        "a prompt of {prompt_len} tokens with up to {max_new_tokens} new ones needs {needed} pages \
         of the KV cache, which has {max_pages} in total; request fewer tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// New tokens requested.
        max_new_tokens: usize,
        /// Pages needed for both.
        needed: usize,
        /// Pages of the cache.
        max_pages: usize,
    },
}

/// Continues one prompt, calling `on_token` with each token.
///
/// # Errors
/// See [`GenerateError`].
///
/// # Panics
/// As [`Scheduler::submit`].
pub fn generate(
    pass: Pass<'_>,
    request: Request,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Answer, GenerateError> {
    let mut scheduler = Scheduler::new(pass, Limits::default());
    let (id, mut tokens) = (request.id, Vec::new());
    scheduler.submit(request)?;
    loop {
        for progress in scheduler.step()? {
            match progress {
                Progress::Token { token, .. } => {
                    tokens.push(token);
                    if on_token(token).is_break() {
                        scheduler.cancel(id);
                        return Ok(Answer { tokens, finish: Finish::Cancelled });
                    }
                }
                Progress::Finished { finish, .. } => return Ok(Answer { tokens, finish }),
            }
        }
    }
}

/// Continues all prompts together and returns the answers in the order of the requests, whose ids
/// become their indices.
///
/// # Errors
/// See [`GenerateError`].
///
/// # Panics
/// As [`Scheduler::submit`].
pub fn generate_all(
    pass: Pass<'_>,
    requests: impl IntoIterator<Item = Request>,
) -> Result<Vec<Answer>, GenerateError> {
    let mut scheduler = Scheduler::new(pass, Limits::default());
    let mut answers = Vec::new();
    for (id, request) in (0u64..).zip(requests) {
        scheduler.submit(Request { id, ..request })?;
        answers.push(Answer { tokens: Vec::new(), finish: Finish::Cancelled });
    }
    while !scheduler.is_idle() {
        for progress in scheduler.step()? {
            match progress {
                Progress::Token { id, token } => answers[id as usize].tokens.push(token),
                Progress::Finished { id, finish } => answers[id as usize].finish = finish,
            }
        }
    }
    Ok(answers)
}
