//! Text generation with a cache of keys and values.

mod sampling;

pub use sampling::Sampling;

use crate::load::Model;
use hone_tensor::ops::{self, KvCache};
use hone_tensor::{Compute, Device, Tape};
use std::ops::ControlFlow;

/// When to stop, and how to choose.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the text; they are not given out.
    pub stop_ids: Vec<u32>,
    /// What products are computed in.
    pub compute: Compute,
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

/// Continues `prompt`, calling `on_token` with each token. Returns the tokens and why they end.
///
/// # Panics
/// If the prompt is empty or longer than the model's `max_position_embeddings`; callers check both
/// to say it in their own words.
pub fn generate(
    model: &Model,
    device: &Device,
    prompt: &[u32],
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> (Vec<u32>, Finish) {
    let config = &model.decoder.config;
    let room =
        config.max_position_embeddings.checked_sub(prompt.len()).expect("a prompt that fits");
    assert!(!prompt.is_empty());
    let limit = options.max_new_tokens.min(room);
    let new_cache = |heads| {
        let dtype = options.compute.dtype();
        KvCache::new(device, dtype, heads, prompt.len() + limit)
    };
    let mut caches: Vec<KvCache> = config.heads().map(new_cache).collect();
    let mut tokens = Vec::new();
    let mut pending = prompt.to_vec();
    while tokens.len() < limit {
        let logits = next_logits(model, device, options.compute, &pending, &mut caches);
        let token = options.sampling.choose(&logits, tokens.len() as u64);
        if options.stop_ids.contains(&token) {
            return (tokens, Finish::Stop);
        }
        tokens.push(token);
        if on_token(token).is_break() {
            return (tokens, Finish::Caller);
        }
        pending = vec![token];
    }
    (tokens, if limit < options.max_new_tokens { Finish::Context } else { Finish::Length })
}

/// Logits after `tokens`, which follow what the caches hold.
fn next_logits(
    model: &Model,
    device: &Device,
    compute: Compute,
    tokens: &[u32],
    caches: &mut [KvCache],
) -> Vec<f32> {
    let past = caches.first().map_or(0, KvCache::len) as u32;
    let positions: Vec<u32> = (past..past + tokens.len() as u32).collect();
    let angles = model.decoder.config.angles(&positions, &[0, tokens.len() as u32]);
    let mut tape = Tape::inference(device, &model.params, compute);
    let hidden = model.decoder.hidden_cached(&mut tape, tokens, &angles, caches);
    let last = ops::last_row(&mut tape, hidden);
    ops::logits(&mut tape, last.value(), model.decoder.head()).to_vec_f32()
}
