//! Text generation: the KV cache against full recomputation, a reference text, stop conditions.

use crate::fixture::{Golden, devices, load, logits, shared};
use hone_model::generate::{
    Answer, Draw, Finish, GenerateError, Limits, Progress, Request, Sampling, Scheduler,
    cache_bytes, generate, step_bytes,
};
use hone_model::{Batch, LoadOptions, Model, Pass, Trained};
use hone_tensor::{Category, Compute, Device, Storage, Target};
use std::ops::ControlFlow;

fn greedy(prompt: &[u32], max_new_tokens: usize, stop_ids: &[u32]) -> Request {
    let (prompt, stop_ids) = (prompt.to_vec(), stop_ids.to_vec());
    Request { id: 0, prompt, max_new_tokens, sampling: Sampling::GREEDY, stop_ids }
}

fn run(model: &Model, compute: Compute, request: Request) -> (Vec<u32>, Finish) {
    run_on(Pass { device: &Device::cpu(2), model, compute }, request)
}

fn run_on(pass: Pass<'_>, request: Request) -> (Vec<u32>, Finish) {
    let mut heard = Vec::new();
    let answer = generate(pass, request, &mut |token| {
        heard.push(token);
        ControlFlow::Continue(())
    });
    let Answer { tokens, finish } = answer.unwrap();
    assert_eq!(tokens, heard);
    (tokens, finish)
}

/// Greedy tokens, each from a forward pass over all preceding tokens.
fn without_cache(model: &Model, prompt: &[u32], count: usize, compute: Compute) -> Vec<u32> {
    let config = &model.decoder.config;
    let mut all = prompt.to_vec();
    for _ in 0..count {
        let rows = logits(model, &Device::cpu(2), compute, &Batch::from_sequence(config, &all));
        let last = &rows[rows.len() - config.vocab_size..];
        all.push(Sampling::GREEDY.choose(last, Draw { request: 0, position: 0 }).unwrap());
    }
    all.split_off(prompt.len())
}

#[test]
fn cached_equals_recomputed() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let model = golden.adapted(&device);
        if model.decoder.config.looks_ahead().is_some() {
            continue;
        }
        let prompt = golden.samples().remove(0).ids;
        let room = model.decoder.config.max_position_embeddings - prompt.len();
        for compute in [Compute::F32, Compute::Bf16] {
            let count = room.min(30);
            let (tokens, finish) = run(&model, compute, greedy(&prompt, count, &[]));
            assert_eq!(finish, Finish::Length);
            let expected = match model.decoder.config.changes_angles(1, prompt.len() + count) {
                true => without_cache(&model, &prompt, count, compute),
                false => chosen_after(&model, &prompt, &tokens, compute),
            };
            assert_eq!(tokens, expected, "{} {compute:?}", golden.dir.display());
        }
    }
}

/// What is chosen after a prompt and after each of `tokens` but the last, by one pass over all.
fn chosen_after(model: &Model, prompt: &[u32], tokens: &[u32], compute: Compute) -> Vec<u32> {
    let config = &model.decoder.config;
    let all = [prompt, &tokens[..tokens.len() - 1]].concat();
    let rows = logits(model, &Device::cpu(2), compute, &Batch::from_sequence(config, &all));
    let rows = rows.chunks(config.vocab_size).skip(prompt.len() - 1);
    let choose = |row| Sampling::GREEDY.choose(row, Draw { request: 0, position: 0 }).unwrap();
    rows.map(choose).collect()
}

#[test]
fn every_device_gives_the_same_tokens() {
    let golden = Golden::load("headdim_llama3");
    let prompt = golden.samples().remove(0).ids;
    let on = |device: &Device| {
        let model = golden.adapted(device);
        run_on(Pass { device, model: &model, compute: Compute::F32 }, greedy(&prompt, 20, &[]))
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
    let (tokens, finish) = run(&model, Compute::F32, greedy(&prompt, 200, stop_ids));
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
    let run = |prompt: &[u32], max_new_tokens, stop_ids: &[u32]| {
        run(&model, Compute::F32, greedy(prompt, max_new_tokens, stop_ids))
    };
    let (max, len) = (model.decoder.config.max_position_embeddings, prompt.len());
    let (all, finish) = run(&prompt, 100, &[]);
    assert_eq!((all.len(), finish), (max - len, Finish::Context));
    // The limit is exactly the last token that fits: `Length`, not `Context`.
    assert_eq!(run(&prompt, max - len, &[]).1, Finish::Length);
    assert_eq!(run(&prompt, 2, &[]), (all[..2].into(), Finish::Length));
    assert_eq!(run(&prompt, 0, &[]), (vec![], Finish::Length));
    // The largest possible limit: nothing is allocated for tokens in advance.
    assert_eq!(run(&prompt, usize::MAX, &[]), (all.clone(), Finish::Context));
    let full = [prompt.clone(), all.clone()].concat();
    assert_eq!(run(&full, 5, &[]), (vec![], Finish::Context));
    // A stop token is not part of the answer.
    let stop = all.iter().position(|token| *token == all[2]).unwrap();
    assert_eq!(run(&prompt, 100, &[999, all[2]]), (all[..stop].into(), Finish::Stop));
    let device = Device::cpu(2);
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let broken_off = generate(pass, greedy(&prompt, 100, &[]), &mut |_| ControlFlow::Break(()));
    let expected = Answer { tokens: all[..1].into(), finish: Finish::Cancelled };
    assert_eq!(broken_off, Ok(expected));
}

/// Sixteen requests with different prompts, lengths and sampling settings.
fn sixteen(golden: &Golden, longest: usize) -> Vec<Request> {
    let samples = golden.samples();
    let request = |i: usize| {
        let ids = &samples[i % samples.len()].ids;
        let prompt = ids[..1 + (5 * i) % (ids.len() - 1).min(longest - 1)].to_vec();
        let sampling = match i % 4 {
            0 => Sampling::GREEDY,
            k => Sampling { temperature: 1.3, top_k: 7 * (k - 1), top_p: 0.97, seed: 3 },
        };
        let max_new_tokens = 1 + (7 * i) % 23;
        Request { id: i as u64, prompt, max_new_tokens, sampling, stop_ids: vec![i as u32] }
    };
    (0..16).map(request).collect()
}

/// Runs all requests; the second half is added while the first is running.
fn together(pass: Pass<'_>, limits: Limits, requests: &[Request]) -> Vec<(Vec<u32>, Finish)> {
    let mut scheduler = Scheduler::new(pass, limits);
    let mut answers = vec![(Vec::new(), Finish::Cancelled); requests.len()];
    let (first, later) = requests.split_at(requests.len() / 2);
    first.iter().for_each(|request| scheduler.submit(request.clone()).unwrap());
    let mut num_passes = 0;
    while !scheduler.is_idle() {
        for progress in scheduler.step().unwrap() {
            match progress {
                Progress::Token { id, token } => answers[id as usize].0.push(token),
                Progress::Finished { id, finish } => answers[id as usize].1 = finish,
            }
        }
        num_passes += 1;
        if num_passes == 3 {
            later.iter().for_each(|request| scheduler.submit(request.clone()).unwrap());
        }
    }
    answers
}

#[test]
fn a_batch_has_the_bits_of_its_answers_alone() {
    let cases = [(Compute::F32, "f32"), (Compute::Bf16, "bf16"), (Compute::Int8, "int8")];
    let few = Limits { max_sequences: 5, max_prompt_rows: 9, max_pages: 4 };
    for golden in ["tied_gqa", "yarn"].map(Golden::load) {
        for (device, (compute, held)) in
            devices().iter().flat_map(|device| cases.map(|case| (device, case)))
        {
            let mut model = load(&golden.dir, device, Storage::from_name(held), Trained::Nothing);
            hone_model::adapter::load(&golden.dir.join("adapter"), &mut model, device, &mut |_| {})
                .unwrap();
            let pass = Pass { device, model: &model, compute };
            let longest = model.decoder.config.max_position_embeddings;
            let requests = sixteen(&golden, longest);
            let alone: Vec<_> = requests.iter().map(|r| run_on(pass, r.clone())).collect();
            for limits in [Limits::default(), few] {
                assert_eq!(together(pass, limits, &requests), alone, "{compute:?} {limits:?}");
            }
        }
    }
}

#[test]
fn memory_is_known_beforehand() {
    let golden = Golden::load("tied_gqa");
    let dry = Device::dry();
    let of_dry = hone_model::load(&golden.dir, &dry, LoadOptions::INFERENCE).unwrap();
    let compute = Compute::F32;
    let dry_pass = Pass { device: &dry, model: &of_dry, compute };
    let device = Device::cpu(2);
    let model = hone_model::load(&golden.dir, &device, LoadOptions::INFERENCE).unwrap();
    let pass = Pass { device: &device, model: &model, compute };
    assert!(step_bytes(dry_pass, 8, 2).unwrap() > 0);
    assert_eq!(step_bytes(dry_pass, 8, 2).unwrap(), step_bytes(pass, 8, 2).unwrap());
    let config = &model.decoder.config;
    let one = cache_bytes(config, compute, Target::Cpu, 1, 1);
    assert_eq!(
        (
            cache_bytes(config, compute, Target::Cpu, 3, 97),
            cache_bytes(config, compute, Target::Cpu, 0, 9)
        ),
        (6 * one, 0)
    );
    let before = device.persistent_bytes(Category::Cache);
    let mut scheduler = Scheduler::new(pass, Limits::default());
    scheduler.submit(greedy(&[1, 2], 4, &[])).unwrap();
    scheduler.step().unwrap();
    assert_eq!(device.persistent_bytes(Category::Cache) - before, one as u64);
    drop(scheduler);
    assert_eq!(device.persistent_bytes(Category::Cache), before, "what is released counts no more");
}

#[test]
fn a_model_that_looks_ahead_continues_no_text() {
    let golden = Golden::load("tied_gqa");
    let device = Device::cpu(1);
    let mut model = golden.base(&device);
    let attention = &mut model.decoder.config.layers[1].attention;
    attention.heads = attention.heads.two_sided(Some(3));
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let refused = Scheduler::new(pass, Limits::default()).submit(greedy(&[1, 2], 4, &[]));
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("in block 1 tokens attend to later ones"), "{message}");
}

#[test]
fn what_can_never_fit_is_refused_and_what_is_cancelled_leaves() {
    let golden = Golden::load("tied_gqa");
    let device = Device::cpu(1);
    let model = golden.base(&device);
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let mut scheduler = Scheduler::new(pass, Limits { max_pages: 0, ..Limits::default() });
    let refused = scheduler.submit(greedy(&[1, 2], 4, &[])).unwrap_err();
    assert!(matches!(refused, GenerateError::TooLong { needed: 1, max_pages: 0, .. }), "{refused}");
    let mut scheduler = Scheduler::new(pass, Limits { max_pages: 1, ..Limits::default() });
    for id in [0, 1] {
        scheduler.submit(Request { id, ..greedy(&[1, 2], 4, &[]) }).unwrap();
    }
    let of = |id, progress: &[Progress]| {
        let is_of = |p: &&Progress| matches!(p, Progress::Token { id: found, .. } if *found == id);
        progress.iter().filter(is_of).count()
    };
    let first = scheduler.step().unwrap();
    assert_eq!((of(0, &first), of(1, &first)), (1, 0), "there is one page");
    scheduler.cancel(0);
    let second = scheduler.step().unwrap();
    assert_eq!((of(0, &second), of(1, &second)), (0, 1));
    scheduler.cancel(1);
    assert!(scheduler.is_idle());
}

#[test]
fn a_seed_names_a_text() {
    let golden = Golden::load("headdim_llama3");
    let model = golden.base(&Device::cpu(2));
    let prompt = golden.samples().remove(0).ids;
    let sampled = |id, seed| {
        let sampling = Sampling { temperature: 1.5, top_k: 0, top_p: 1.0, seed };
        run(&model, Compute::F32, Request { id, sampling, ..greedy(&prompt, 40, &[]) }).0
    };
    assert_eq!(sampled(0, 1), sampled(0, 1));
    assert_ne!(sampled(0, 1), sampled(0, 2));
    assert_ne!(sampled(0, 1), sampled(1, 1));
}
