//! A packed micro-batch as a model reads it.

use crate::config::DecoderConfig;
use hone_tensor::Sequence;
use hone_tensor::ops::Angles;
use std::ops::Range;

/// Sequences one after another, padded at the end to a fixed number of tokens.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[t]` token ids; padding is token 0.
    pub tokens: Vec<u32>,
    /// `[t]` types of tokens, all 0; empty if the model has no table of them.
    pub token_types: Vec<u32>,
    /// `[t]` rows of the table of learned positions; empty if the model has none.
    pub positions: Vec<u32>,
    /// Angles of each of the model's rotary embeddings.
    pub angles: Vec<Angles>,
    /// Where the sequences are.
    pub sequences: Vec<Sequence>,
    /// Rows at which a token is predicted, in ascending order, followed by rows that only pad.
    pub rows: Vec<u32>,
    /// The token to predict at each of `rows`.
    pub targets: Vec<u32>,
    /// How many of `rows` are not padding.
    pub num_targets: usize,
    /// The range of `rows` that belongs to each sequence.
    pub target_ranges: Vec<Range<usize>>,
}

impl Batch {
    /// `tokens`, `positions` and `targets` have one entry per token; `targets` holds `ignore_index`
    /// where nothing is predicted. `cu_seqlens` delimits the sequences; what follows is padding.
    pub fn new(
        config: &DecoderConfig,
        tokens: &[u32],
        positions: &[u32],
        cu_seqlens: &[u32],
        targets: &[u32],
        ignore_index: u32,
    ) -> Self {
        let predicted = (0u32..).zip(targets).filter(|&(_, &target)| target != ignore_index);
        let (rows, targets): (Vec<u32>, Vec<u32>) = predicted.unzip();
        let bounds: Vec<usize> =
            cu_seqlens.iter().map(|&end| rows.partition_point(|&row| row < end)).collect();
        Self {
            num_targets: rows.len(),
            target_ranges: bounds.windows(2).map(|bound| bound[0]..bound[1]).collect(),
            tokens: tokens.to_vec(),
            token_types: match &config.encoder {
                Some(encoder) if encoder.num_token_types > 0 => vec![0; tokens.len()],
                _ => Vec::new(),
            },
            positions: config.learned_positions(positions),
            angles: config.angles(positions, cu_seqlens),
            sequences: Sequence::packed(cu_seqlens),
            rows,
            targets,
        }
    }

    /// Number of tokens before the padding.
    pub fn num_tokens(&self) -> usize {
        self.sequences.last().map_or(0, |last| last.q_start + last.q_len)
    }

    /// Pads `rows` with rows that predict nothing, up to a multiple of a sixteenth of the tokens
    /// (itself rounded up to 64): a GPU plans matmuls and captures a graph for every distinct size,
    /// so batches should have few.
    pub fn with_rows_rounded(mut self) -> Self {
        let num_tokens = self.tokens.len();
        let step = (num_tokens / 16).next_multiple_of(64).max(64);
        let wanted = self.num_targets.next_multiple_of(step).min(num_tokens);
        let mut is_idle = vec![true; num_tokens];
        self.rows.iter().for_each(|&row| is_idle[row as usize] = false);
        let idle = (0u32..).zip(is_idle).filter(|&(_, is_idle)| is_idle).map(|(row, _)| row);
        self.rows.extend(idle.take(wanted - self.num_targets));
        self.targets.resize(wanted, 0);
        self
    }

    /// One sequence in which every token after the first is predicted.
    pub fn from_sequence(config: &DecoderConfig, tokens: &[u32]) -> Self {
        let len = tokens.len() as u32;
        let positions: Vec<u32> = (0..len).collect();
        let mut targets: Vec<u32> = tokens.iter().skip(1).copied().collect();
        targets.push(u32::MAX);
        Self::new(config, tokens, &positions, &[0, len], &targets, u32::MAX)
    }
}
