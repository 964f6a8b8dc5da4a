//! Texts that share what they begin with, against each in a pass of its own.

use super::{MIN_SHARED, PAGE_ROWS, Text, Tree, score};
use crate::batch::Batch;
use crate::decoder::Recompute;
use crate::generate::tests::random_weights;
use crate::load::{LoadOptions, Model, load};
use crate::pass::Pass;
use hone_tensor::{Compute, DType, Device, Tape};
use std::path::Path;

/// Every golden decoder: what is computed once for several texts has the bits of each text alone.
#[test]
fn shared_beginnings_change_no_bit() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let goldens = std::fs::read_dir(goldens).unwrap().map(|entry| entry.unwrap().path());
    let device = Device::cpu(2);
    for golden in goldens.filter(|path| path.is_dir()) {
        let dir = tempfile::tempdir().unwrap();
        random_weights::write_checkpoint(&golden, dir.path());
        let options =
            LoadOptions { base_precision: Some(DType::F32.into()), ..LoadOptions::INFERENCE };
        let model = load(dir.path(), &device, options).unwrap();
        let config = &model.decoder.config;
        if config.looks_ahead().is_some() || config.lacks_lm_head {
            continue;
        }
        let texts = texts(config.max_position_embeddings, config.vocab_size);
        for compute in [Compute::F32, Compute::Bf16] {
            let pass = Pass { device: &device, model: &model, compute };
            let found = score(pass, &texts, true, &mut |_| ()).unwrap();
            for (text, found) in texts.iter().zip(found) {
                let (log_probs, greedy) = alone(pass, text);
                assert!(found.log_probs == log_probs, "{} {compute:?}", golden.display());
                assert_eq!(found.is_greedy, Some(greedy), "{}", golden.display());
            }
        }
    }
}

/// Examples, questions and answers, shorter and longer than a page; also texts of which one
/// contains the other, or which differ in the scored part alone.
fn texts(longest: usize, vocab_size: usize) -> Vec<Text> {
    let token = |i: usize| ((i * i + 7 * i + 3) % vocab_size) as u32;
    let many = |from: usize, len: usize| (from..from + len).map(token).collect::<Vec<_>>();
    let examples = many(0, (longest / 2).min(PAGE_ROWS + 5));
    let mut texts = Vec::new();
    for question in 0..3 {
        let question = [&examples[..], &many(100 * question + 31, 9)].concat();
        for answer in 0..3 {
            let tokens = [&question[..], &many(answer, 1 + 2 * answer)].concat();
            texts.push(Text { tokens, first: question.len() });
        }
    }
    texts.push(Text { tokens: examples, first: 1 });
    texts.push(Text { tokens: many(500, 3), first: 2 });
    texts.retain(|text| text.tokens.len() <= longest);
    texts
}

/// Log-probabilities of a text's end, and whether it is the likeliest, by the pass over all of it.
fn alone(pass: Pass<'_>, text: &Text) -> (Vec<f32>, bool) {
    let Model { decoder, params, .. } = pass.model;
    let batch = Batch::from_sequence(&decoder.config, &text.tokens);
    let mut tape = Tape::inference(pass.device, params, pass.compute);
    let all = decoder.log_probs(&mut tape, &batch, Recompute::None).value().to_vec_f32();
    let logits = decoder.logits(&mut tape, &batch).to_vec_f32();
    let mut rows =
        logits.chunks(decoder.config.vocab_size).zip(&text.tokens[1..]).skip(text.first - 1);
    let is_best = |(logits, &token): (&[f32], &u32)| {
        logits.iter().all(|&other| other <= logits[token as usize])
    };
    (all[text.first - 1..text.tokens.len() - 1].to_vec(), rows.all(is_best))
}

/// Twelve texts over two questions take the rows of the questions once.
#[test]
fn a_question_is_one_piece_of_its_answers() {
    let question = |first: u32| (first..first + 40).collect::<Vec<u32>>();
    let text = |first: u32, answer: u32| {
        let tokens = [&question(first)[..], &[answer, answer + 1, 7]].concat();
        Text { tokens, first: 40 }
    };
    let mut texts: Vec<Text> = (0..12).map(|i| text(1000 * (i / 6), 100 + 10 * (i % 6))).collect();
    texts.sort_by(|a, b| a.tokens.cmp(&b.tokens));
    let order: Vec<usize> = (0..texts.len()).collect();
    let tree = Tree::new(&texts, &order);
    let rows: usize = tree.pieces.iter().map(|piece| piece.to - piece.from).sum();
    assert_eq!(rows, 2 * 40 + 12 * 2);
    // The first token of each answer is read off the question's last row.
    let wanted = |piece: &super::Piece| piece.wanted.len();
    assert_eq!(tree.pieces.iter().map(wanted).max(), Some(6));
    assert_eq!(tree.pieces.iter().map(wanted).sum::<usize>(), 12 * 3);
    assert!(tree.pieces.iter().all(|piece| piece.to - piece.from >= 2.min(MIN_SHARED)));
}
