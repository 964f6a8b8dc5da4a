//! The paged KV cache, and the passes that read it.

use crate::config::DecoderConfig;
use crate::pass::Pass;
use hone_tensor::ops::{self, KvPages, PAGE_ROWS, PagedRows};
use hone_tensor::{Arena, Compute, DeviceError, Layout};
use std::collections::HashMap;
use std::sync::Arc;

/// Size in bytes of the KV cache for `num_sequences` sequences of `len` tokens each.
pub fn cache_bytes(
    config: &DecoderConfig,
    compute: Compute,
    num_sequences: usize,
    len: usize,
) -> usize {
    let num_pages = num_sequences * len.div_ceil(PAGE_ROWS);
    config.heads().map(|heads| KvPages::bytes(compute.dtype(), heads, num_pages)).sum()
}

/// Bytes of step memory of a pass over `num_rows` tokens that computes logits for `num_answers` of
/// them. `pass` may be on a dry device, which does not fail.
///
/// # Errors
/// If the device failed.
pub fn step_bytes(
    pass: Pass<'_>,
    num_rows: usize,
    num_answers: usize,
) -> Result<usize, DeviceError> {
    let mut rows = Rows::default();
    for i in 0..num_answers {
        let len = num_rows / num_answers + usize::from(i < num_rows % num_answers);
        rows.push(&vec![0; len], &vec![0; len.div_ceil(PAGE_ROWS)], 0);
    }
    rows.round_up();
    let mut caches = pages(pass, 1)?;
    let ((), trace) = pass.device.trace(|| drop(logits(pass, &rows, &mut caches)));
    pass.device.settle()?;
    Ok(Layout::of(trace).bytes())
}

/// The tokens of a pass: those of each sequence that are not in the KV cache yet.
#[derive(Default)]
pub(super) struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    /// Bounds of the sequences.
    cu_seqlens: Vec<u32>,
    paged: PagedRows,
    /// The last row of each sequence, for which logits are computed.
    answers: Vec<u32>,
    num_answers: usize,
}

impl Rows {
    /// Adds the tokens that follow the first `old` ones, which are already in `pages`.
    pub(super) fn push(&mut self, tokens: &[u32], pages: &[u32], old: usize) {
        self.paged.push(pages, old, tokens.len());
        self.tokens.extend(tokens);
        self.positions.extend((old..old + tokens.len()).map(|position| position as u32));
        self.answers.push(self.tokens.len() as u32 - 1);
        self.num_answers += 1;
    }

    /// Pads the numbers of rows and answers to one of a few sizes, so that passes share layouts;
    /// returns both.
    fn round_up(&mut self) -> [usize; 2] {
        let ends = self.paged.sequences.iter().map(|s| (s.q_start + s.q_len) as u32);
        self.cu_seqlens = std::iter::once(0).chain(ends).collect();
        let sizes = [self.tokens.len(), self.answers.len()].map(bucket);
        self.tokens.resize(sizes[0], 0);
        self.positions.resize(sizes[0], 0);
        self.answers.resize(sizes[1], 0);
        sizes
    }
}

/// `n`, rounded up to a multiple of an eighth of the next power of two.
fn bucket(n: usize) -> usize {
    n.next_multiple_of((n.next_power_of_two() / 8).max(1))
}

/// The KV cache of all layers, and the memory that passes run in.
pub(super) struct Memory<'a> {
    pass: Pass<'a>,
    caches: Vec<KvPages>,
    /// As large as the largest layout so far.
    arena: Option<Arena>,
    /// Layout of step memory by number of rows and answers.
    layouts: HashMap<[usize; 2], Arc<Layout>>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(pass: Pass<'a>) -> Self {
        Self { pass, caches: Vec::new(), arena: None, layouts: HashMap::new() }
    }

    /// Makes room for `num_pages` pages, doubling the capacity up to `max_pages`.
    ///
    /// # Errors
    /// If there is no memory for them; the existing pages stay.
    pub(super) fn reserve(
        &mut self,
        num_pages: usize,
        max_pages: usize,
    ) -> Result<(), DeviceError> {
        // Where growing failed before, some layers have more than others.
        let capacity = self.caches.iter().map(KvPages::num_pages).min().unwrap_or(0);
        if num_pages <= capacity {
            return Ok(());
        }
        let num_pages = num_pages.max((2 * capacity).min(max_pages));
        if self.caches.is_empty() {
            self.caches = pages(self.pass, num_pages)?;
            return Ok(());
        }
        self.caches.iter_mut().try_for_each(|cache| cache.grow(self.pass.device, num_pages))
    }

    /// Logits `[num_answers, vocab_size]` after the last token of each sequence of `rows`. The
    /// first pass of a size allocates from the system and is traced; later ones run in the arena.
    ///
    /// # Errors
    /// If the device failed.
    pub(super) fn logits(&mut self, mut rows: Rows) -> Result<Vec<f32>, DeviceError> {
        let (pass, sizes) = (self.pass, rows.round_up());
        let Some(layout) = self.layouts.get(&sizes) else {
            let (logits, trace) = pass.device.trace(|| logits(pass, &rows, &mut self.caches));
            pass.device.settle()?;
            self.layouts.insert(sizes, Arc::new(Layout::of(trace)));
            return Ok(logits);
        };
        let arena = match self.arena.take().filter(|arena| layout.bytes() <= arena.bytes()) {
            Some(arena) => arena,
            None => Arena::new(pass.device, layout.bytes())?,
        };
        let arena = self.arena.insert(arena);
        pass.device.planned(arena, layout, || logits(pass, &rows, &mut self.caches))
    }
}

/// `num_pages` empty pages for each layer.
fn pages(pass: Pass<'_>, num_pages: usize) -> Result<Vec<KvPages>, DeviceError> {
    let new = |heads| KvPages::new(pass.device, pass.compute.dtype(), heads, num_pages);
    pass.model.decoder.config.heads().map(new).collect()
}

/// Runs one pass and returns its logits; empty on a dry device.
fn logits(pass: Pass<'_>, rows: &Rows, caches: &mut [KvPages]) -> Vec<f32> {
    let decoder = &pass.model.decoder;
    let angles = decoder.config.angles(&rows.positions, &rows.cu_seqlens);
    let mut tape = pass.inference_tape();
    let hidden = decoder.hidden_paged(&mut tape, &rows.tokens, &angles, &rows.paged, caches);
    let last = ops::take_rows(&mut tape, hidden, &rows.answers);
    let logits = decoder.logits_of(&mut tape, last.value());
    if pass.device.is_dry() {
        return Vec::new();
    }
    let mut logits = logits.try_to_vec_f32().unwrap_or_else(|error| {
        pass.device.fail(error);
        Vec::new()
    });
    logits.truncate(rows.num_answers * decoder.config.vocab_size);
    logits
}
