//! A step of cached decoding against the pass over the whole text.

use super::memory::{Memory, Rows};
use crate::adapter;
use crate::batch::Batch;
use crate::load::{LoadOptions, Model, load};
use crate::pass::Pass;
use hone_tensor::ops::PAGE_ROWS;
use hone_tensor::{Compute, DType, Device, Tape};
use std::path::Path;

#[path = "../../tests/model/random_weights.rs"]
pub(crate) mod random_weights;

/// Tokens of the text, some more than a chunk of linear attention; and those after its prompt.
const TEXT: usize = 70;
const STEPS: usize = 9;

/// Every golden model, its adapter attached: steps of one token after a prompt give the logits of
/// the whole pass, bit for bit.
#[test]
fn a_cached_step_has_the_bits_of_the_whole_pass() {
    let device = Device::cpu(2);
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let goldens = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path());
    for golden in goldens.filter(|path| path.is_dir()) {
        let dir = tempfile::tempdir().unwrap();
        random_weights::write_checkpoint(&golden, dir.path());
        random_weights::write_checkpoint(&golden.join("adapter"), &dir.path().join("adapter"));
        let options =
            LoadOptions { base_precision: Some(DType::F32.into()), ..LoadOptions::INFERENCE };
        let mut model = load(dir.path(), &device, options).unwrap();
        adapter::load(&dir.path().join("adapter"), &mut model, &device, &mut |_| ()).unwrap();
        let config = &model.decoder.config;
        let text = TEXT.min(config.max_position_embeddings);
        // Angles of dynamic scaling are those of the text so far: no step is a part of a pass.
        if config.looks_ahead().is_some() || config.changes_angles(text - 1, text) {
            continue;
        }
        let tokens = (0..text).map(|i| ((i * i + 7 * i + 3) % config.vocab_size) as u32);
        let tokens: Vec<u32> = tokens.collect();
        for compute in [Compute::F32, Compute::Bf16] {
            let pass = Pass { device: &device, model: &model, compute };
            let prompt = text.saturating_sub(STEPS).max(1);
            let whole = whole(pass, &tokens);
            let expected = &whole[(prompt - 1) * config.vocab_size..];
            let found = step_by_step(pass, &tokens, prompt);
            assert!(found == expected, "{} {compute:?}", golden.display());
        }
    }
}

/// Logits after every token.
fn whole(pass: Pass<'_>, tokens: &[u32]) -> Vec<f32> {
    let Model { decoder, params, .. } = pass.model;
    let batch = Batch::from_sequence(&decoder.config, tokens);
    let mut tape = Tape::inference(pass.device, params, pass.compute);
    decoder.logits(&mut tape, &batch).to_vec_f32()
}

/// Logits after a prompt, and after each token that follows it.
fn step_by_step(pass: Pass<'_>, tokens: &[u32], prompt: usize) -> Vec<f32> {
    let pages: Vec<u32> = (0..tokens.len().div_ceil(PAGE_ROWS) as u32).collect();
    let mut memory = Memory::new(pass);
    memory.reserve((pages.len(), pages.len()), 1).unwrap();
    let mut logits = Vec::new();
    let mut old = 0;
    for end in prompt..=tokens.len() {
        let mut rows = Rows::default();
        rows.push(&tokens[old..end], (&pages, 0), old);
        logits.extend(memory.logits(rows).unwrap());
        old = end;
    }
    logits
}
