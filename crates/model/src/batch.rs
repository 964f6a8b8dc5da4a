//! A packed micro-batch as a decoder reads it.

use crate::config::DecoderConfig;
use hone_tensor::Sequence;
use hone_tensor::ops::Angles;

/// Sequences one after another, padded at the end to a fixed number of tokens.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// `[t]` token ids; padding is token 0.
    pub tokens: Vec<u32>,
    /// Angles of the rotary embedding.
    pub angles: Angles,
    /// Where the sequences are.
    pub sequences: Vec<Sequence>,
    /// Rows whose next token is to be predicted.
    pub rows: Vec<u32>,
    /// The token to predict at each of `rows`.
    pub targets: Vec<u32>,
}

impl Batch {
    /// `tokens`, `positions` and `targets` have one entry per token; `targets` holds `ignore` where
    /// nothing is to be predicted. `cu_seqlens` bounds the sequences; what follows is padding.
    pub fn new(
        config: &DecoderConfig,
        tokens: &[u32],
        positions: &[u32],
        cu_seqlens: &[u32],
        (targets, ignore): (&[u32], u32),
    ) -> Self {
        let predicted = (0u32..).zip(targets).filter(|&(_, &target)| target != ignore);
        let (rows, targets) = predicted.unzip();
        Self {
            tokens: tokens.to_vec(),
            angles: config.rope.angles(positions, cu_seqlens),
            sequences: Sequence::packed(cu_seqlens),
            rows,
            targets,
        }
    }

    /// One sequence, every token after the first to be predicted.
    pub fn of_sequence(config: &DecoderConfig, tokens: &[u32]) -> Self {
        let len = tokens.len() as u32;
        let positions: Vec<u32> = (0..len).collect();
        let mut targets: Vec<u32> = tokens.iter().skip(1).copied().collect();
        targets.push(u32::MAX);
        Self::new(config, tokens, &positions, &[0, len], (&targets, u32::MAX))
    }
}
