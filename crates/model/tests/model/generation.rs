//! Text generation: the cache against recomputing everything, a reference text, how texts end.

use crate::fixture::{Golden, devices, load, logits, shared};
use hone_model::generate::{Finish, GenerateOptions, Sampling, generate};
use hone_model::{Batch, Model, Trained};
use hone_tensor::{Compute, Device};
use std::ops::ControlFlow;

fn greedy(max_new_tokens: usize, compute: Compute, stop_ids: &[u32]) -> GenerateOptions {
    let stop_ids = stop_ids.to_vec();
    GenerateOptions { max_new_tokens, sampling: Sampling::GREEDY, stop_ids, compute }
}

fn run(model: &Model, prompt: &[u32], options: &GenerateOptions) -> (Vec<u32>, Finish) {
    run_on(&Device::cpu(2), model, prompt, options)
}

fn run_on(
    device: &Device,
    model: &Model,
    prompt: &[u32],
    options: &GenerateOptions,
) -> (Vec<u32>, Finish) {
    let mut heard = Vec::new();
    let (tokens, finish) = generate(model, device, prompt, options, &mut |token| {
        heard.push(token);
        ControlFlow::Continue(())
    });
    assert_eq!(tokens, heard);
    (tokens, finish)
}

/// The most likely tokens, each from a forward pass over all before it.
fn without_cache(model: &Model, prompt: &[u32], count: usize, compute: Compute) -> Vec<u32> {
    let config = &model.decoder.config;
    let mut all = prompt.to_vec();
    for _ in 0..count {
        let rows = logits(model, &Device::cpu(2), compute, &Batch::of_sequence(config, &all));
        let last = &rows[rows.len() - config.vocab_size..];
        all.push(Sampling::GREEDY.choose(last, 0));
    }
    all.split_off(prompt.len())
}

#[test]
fn cached_equals_recomputed() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let model = golden.adapted(&device);
        let prompt = golden.samples().remove(0).ids;
        let room = model.decoder.config.max_position_embeddings - prompt.len();
        for compute in [Compute::F32, Compute::Bf16] {
            let count = room.min(30);
            let (tokens, finish) = run(&model, &prompt, &greedy(count, compute, &[]));
            assert_eq!(finish, Finish::Length);
            let expected = without_cache(&model, &prompt, count, compute);
            assert_eq!(tokens, expected, "{} {compute:?}", golden.dir.display());
        }
    }
}

#[test]
fn every_device_gives_the_same_tokens() {
    let golden = Golden::load("headdim_llama3");
    let prompt = golden.samples().remove(0).ids;
    let on = |device: &Device| {
        let model = golden.adapted(device);
        run_on(device, &model, &prompt, &greedy(20, Compute::F32, &[]))
    };
    let devices = devices();
    assert!(devices.iter().all(|device| on(device) == on(&devices[0])));
}

#[test]
fn stories260k_tells_the_expected_story() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("models/stories260k");
    let model = load(&dir, &Device::cpu(2), None, Trained::Nothing);
    let tokenizer = tokenizers::Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let prompt = tokenizer.encode("", true).unwrap().get_ids().to_vec();
    let stop_ids = &model.decoder.config.eos_token_ids;
    let (tokens, finish) = run(&model, &prompt, &greedy(200, Compute::F32, stop_ids));
    assert_eq!((tokens.len(), finish), (200, Finish::Length));
    let expected = std::fs::read_to_string(dir.join("expected_greedy_200.txt")).unwrap();
    let text = tokenizer.decode(&tokens, true).unwrap();
    assert_eq!(text, expected);
    assert_eq!(tokens[..50], without_cache(&model, &prompt, 50, Compute::F32));
}

#[test]
fn texts_end_where_they_should() {
    let golden = Golden::load("dynamic");
    let model = golden.base(&Device::cpu(2));
    let prompt = golden.samples().remove(0).ids;
    let (max, len) = (model.decoder.config.max_position_embeddings, prompt.len());
    let (all, finish) = run(&model, &prompt, &greedy(100, Compute::F32, &[]));
    assert_eq!((all.len(), finish), (max - len, Finish::Context));
    // The last token that fits is asked for: that is the wished length, not the context's end.
    assert_eq!(run(&model, &prompt, &greedy(max - len, Compute::F32, &[])).1, Finish::Length);
    assert_eq!(
        run(&model, &prompt, &greedy(2, Compute::F32, &[])),
        (all[..2].into(), Finish::Length)
    );
    assert_eq!(run(&model, &prompt, &greedy(0, Compute::F32, &[])), (vec![], Finish::Length));
    let full = [prompt.clone(), all.clone()].concat();
    assert_eq!(run(&model, &full, &greedy(5, Compute::F32, &[])), (vec![], Finish::Context));
    // A stop token is not given out.
    let stop = all.iter().position(|token| *token == all[2]).unwrap();
    let stopped = run(&model, &prompt, &greedy(100, Compute::F32, &[999, all[2]]));
    assert_eq!(stopped, (all[..stop].into(), Finish::Stop));
    let options = greedy(100, Compute::F32, &[]);
    let broken_off =
        generate(&model, &Device::cpu(2), &prompt, &options, &mut |_| ControlFlow::Break(()));
    assert_eq!(broken_off, (all[..1].into(), Finish::Caller));
}

#[test]
fn a_seed_names_a_text() {
    let golden = Golden::load("headdim_llama3");
    let model = golden.base(&Device::cpu(2));
    let prompt = golden.samples().remove(0).ids;
    let sampled = |seed| {
        let sampling = Sampling { temperature: 1.5, top_k: 0, top_p: 1.0, seed };
        let options = GenerateOptions { sampling, ..greedy(40, Compute::F32, &[]) };
        run(&model, &prompt, &options).0
    };
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
}
