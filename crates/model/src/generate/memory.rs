//! The paged KV cache, and the passes that read it.

use crate::cache::LayerCache;
use crate::config::{DecoderConfig, DeltaConfig, LayerConfig};
use crate::pass::Pass;
use hone_tensor::ops::{self, ConvState, DeltaState, KvPages, PAGE_ROWS, PagedRows};
use hone_tensor::{Arena, Compute, DeviceError, Layout, Target};
use std::collections::HashMap;
use std::sync::Arc;

/// Size in bytes of the cache for `num_sequences` sequences of `len` tokens each.
pub fn cache_bytes(
    config: &DecoderConfig,
    compute: Compute,
    target: Target,
    num_sequences: usize,
    len: usize,
) -> usize {
    let num_pages = num_sequences * len.div_ceil(PAGE_ROWS);
    let dtype = compute.dtype();
    let pages = config.kept_heads().map(|heads| KvPages::bytes(dtype, heads, num_pages));
    let pages = pages.sum::<usize>();
    let states = config.deltas().map(|DeltaConfig { heads, conv_width, .. }| {
        let inputs = dtype.num_bytes(&[conv_width - 1, heads.qkv_width()]);
        DeltaState::bytes(target, dtype, heads) + inputs
    });
    pages + num_sequences * states.sum::<usize>()
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
        rows.push(&vec![0; len], (&vec![0; len.div_ceil(PAGE_ROWS)], i as u32), 0);
    }
    rows.round_up();
    let mut caches = caches(pass, 1, num_answers)?;
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
    /// Where the states of each sequence are.
    slots: Vec<u32>,
    /// The last row of each sequence, for which logits are computed.
    answers: Vec<u32>,
    num_answers: usize,
}

impl Rows {
    /// Adds the tokens that follow the first `old` ones, which are already in `pages` and in the
    /// states of `slot`.
    pub(super) fn push(&mut self, tokens: &[u32], (pages, slot): (&[u32], u32), old: usize) {
        self.paged.push(pages, old, tokens.len());
        self.slots.push(slot);
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

/// The cache of all layers, and the memory that passes run in.
pub(super) struct Memory<'a> {
    pass: Pass<'a>,
    caches: Vec<LayerCache>,
    /// As large as the largest layout so far.
    arena: Option<Arena>,
    /// Layout of step memory by number of rows and answers.
    layouts: HashMap<[usize; 2], Arc<Layout>>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(pass: Pass<'a>) -> Self {
        Self { pass, caches: Vec::new(), arena: None, layouts: HashMap::new() }
    }

    /// Makes room for so many pages, up to `max_pages`, and for `num_slots` sequences.
    ///
    /// # Errors
    /// If there is no memory for them; what is there stays.
    pub(super) fn reserve(
        &mut self,
        pages: (usize, usize),
        num_slots: usize,
    ) -> Result<(), DeviceError> {
        if self.caches.is_empty() {
            self.caches = caches(self.pass, pages.0, num_slots)?;
            return Ok(());
        }
        let device = self.pass.device;
        self.caches.iter_mut().try_for_each(|cache| cache.reserve(device, pages, num_slots))
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

/// An empty cache of each layer.
pub(crate) fn caches(
    pass: Pass<'_>,
    num_pages: usize,
    num_slots: usize,
) -> Result<Vec<LayerCache>, DeviceError> {
    let (device, dtype, decoder) = (pass.device, pass.compute.dtype(), &pass.model.decoder);
    let new = |(i, layer): (usize, &LayerConfig)| match (&layer.delta, decoder.conv(i)) {
        (Some(delta), Some(conv)) => Ok(LayerCache::States(
            ConvState::new(device, dtype, conv, num_slots)?,
            DeltaState::new(device, dtype, &delta.heads, num_slots)?,
        )),
        _ if layer.shares_keys() => Ok(LayerCache::Nothing),
        _ => KvPages::new(device, dtype, &layer.attention.heads, num_pages).map(LayerCache::Pages),
    };
    decoder.config.layers.iter().enumerate().map(new).collect()
}

/// Runs one pass and returns its logits; empty on a dry device.
fn logits(pass: Pass<'_>, rows: &Rows, caches: &mut [LayerCache]) -> Vec<f32> {
    let decoder = &pass.model.decoder;
    let angles = decoder.config.angles(&rows.positions, &rows.cu_seqlens);
    let mut tape = pass.inference_tape();
    let hidden =
        decoder.hidden_paged(&mut tape, &rows.tokens, &angles, (&rows.paged, &rows.slots), caches);
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
