//! Text generation: several sequences in one pass, over pages of keys and values.
//!
//! A [`Scheduler`] holds the requests; [`generate`] and [`generate_all`] are what commands use. A
//! request's answer has the same bits whoever shares its passes: sums of a row do not depend on the
//! other rows, and its random numbers are named by the request. Two things are excepted, both on a
//! GPU: products by cuBLASLt, which chooses an algorithm by the number of rows, and FP8, which has
//! one scale for all rows of a pass.
//!
//! Prompts are not split. With `dynamic` scaling of positions the angles of a prompt depend on its
//! length, so that its parts would be another prompt.

mod memory;
mod sampling;
mod scheduler;

pub use memory::{cache_bytes, step_bytes};
pub use sampling::{Draw, NotFinite, Sampling};
pub use scheduler::{Limits, Progress, Scheduler};

use crate::pass::Pass;
use std::ops::ControlFlow;

/// What is to be continued, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Names the request to its caller, and its random numbers together with the sampling's seed.
    pub id: u64,
    /// The tokens to continue.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not given out.
    pub stop_ids: Vec<u32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was chosen.
    Stop,
    /// `max_new_tokens` were generated.
    Length,
    /// The longest sequence the model was made for is reached.
    Context,
    /// The caller broke off.
    Caller,
}

/// A finished generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The tokens, without the prompt and without a stop token.
    pub tokens: Vec<u32>,
    /// Why they end.
    pub finish: Finish,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// The model computed no probabilities.
    #[error(
        "token {} of the answer cannot be chosen: the model gives token {} the logit {}. A weight \
         of the model or adapter is not finite, or numbers grew too large for {compute}; restore \
         the files, or compute in f32",
        draw.position + 1, logit.token, logit.logit
    )]
    NotFinite {
        /// Where in which answer.
        draw: Draw,
        /// The first logit that is not finite.
        logit: NotFinite,
        /// What products were computed in.
        compute: &'static str,
    },
    /// A request that the memory for keys and values can never hold.
    #[error(
        "a prompt of {prompt_len} tokens with up to {max_new_tokens} new ones needs {needed} pages \
         of keys and values, and there are {max_pages} in all; ask for fewer tokens"
    )]
    TooLong {
        /// Tokens of the prompt.
        prompt_len: usize,
        /// Tokens asked for.
        max_new_tokens: usize,
        /// Pages for both.
        needed: usize,
        /// Pages that there may be.
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
                        return Ok(Answer { tokens, finish: Finish::Caller });
                    }
                }
                Progress::Finished { finish, .. } => return Ok(Answer { tokens, finish }),
            }
        }
    }
}

/// Continues all prompts together: the answers in the order of the requests, whose ids are their
/// numbers.
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
        answers.push(Answer { tokens: Vec::new(), finish: Finish::Caller });
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
