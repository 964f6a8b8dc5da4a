//! What the tests share: a run on a tiny model, golden tensors, and steps taken by hand.

use crate::tiny_model::{golden_dir, rows, write_model};
use hone_data::{Cursor, IGNORE, MicroBatch, Unit};
use hone_model::{Batch, Recompute};
use hone_tensor::cuda::Gpu;
use hone_tensor::safetensors::write;
use hone_tensor::{Device, Gradients, StepKey, Tensor};
use hone_train::TrainError;
use hone_train::engine::{Engine, StepContext};
use hone_train::loading::{self, Held};
use hone_train::objectives::Metrics;
use hone_train::recipe::{self, Event, Options, Outcome};
use hone_train::run_dir::RunDir;
use hone_train::run_file::RunFile;
use hone_train::schedule::Schedule;
use hone_train::scoring::{LabelledBatch, Scorer};
use hone_train::setup::{Setup, SetupOptions};
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A model, data, and the directory of a run that is not begun yet.
pub struct Scene {
    pub dir: TempDir,
}

impl Scene {
    pub fn new(case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(case, &dir.path().join("model"));
        std::fs::write(dir.path().join("train.jsonl"), rows(60)).unwrap();
        std::fs::write(dir.path().join("eval.jsonl"), rows(7)).unwrap();
        Self { dir }
    }

    /// The same with so many blocks, made from those that the model has.
    pub fn with_blocks(case: &str, num_blocks: usize) -> Self {
        let scene = Self::new(case);
        deepen(&scene.dir.path().join("model"), num_blocks);
        scene
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A run in f32 with 4 units of 32 tokens in a step; `settings` are lines `table.key = value`.
    pub fn setup(&self, settings: &[&str]) -> Setup {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let text = format!(
            "model.path = {:?}\nmodel.base_precision = \"f32\"\nmodel.compute = \"f32\"\n\
             data.train = {:?}\ndata.eval = {:?}\ndata.max_seq_len = 32\n\
             train.batch_tokens = 128\noutput.dir = {:?}\nrun.threads = 1\n",
            path("model"),
            path("train.jsonl"),
            path("eval.jsonl"),
            path("run"),
        );
        let settings: Vec<String> = settings.iter().map(|s| s.replacen(" = ", "=", 1)).collect();
        let run = RunFile::from_str(&text, &settings).unwrap();
        let begun_at = RunDir::new(&run.output.dir).begun_at();
        let options = SetupOptions { begun_at, planned_for: None };
        Setup::new(run, options, &mut |_| {}).unwrap()
    }
}

/// Sets a tensor of a file to zero.
pub fn clear(file: &Path, tensor: &str) {
    let mut bytes = std::fs::read(file).unwrap();
    let data =
        SafeTensors::deserialize(&bytes).unwrap().tensor(tensor).unwrap().data().as_ptr_range();
    let at = |end: *const u8| end as usize - bytes.as_ptr() as usize;
    let range = at(data.start)..at(data.end);
    bytes[range].fill(0);
    std::fs::write(file, bytes).unwrap();
}

/// Begins or resumes the run that `setup` describes.
pub fn carry_out(
    setup: &Setup,
    options: Options,
    event: &mut dyn FnMut(Event<'_>),
    stop: &dyn Fn() -> bool,
) -> Result<Outcome, TrainError> {
    let claim = RunDir::new(&setup.run.output.dir).claim(options.resume)?;
    recipe::train(claim, setup, options, event, stop)
}

/// Gives the model in `dir`, whose numbers are f32, so many blocks.
fn deepen(dir: &Path, num_blocks: usize) {
    let (config, weights) = (dir.join("config.json"), dir.join("model.safetensors"));
    let text = std::fs::read(&config).unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let had = value["num_hidden_layers"].as_u64().unwrap() as usize;
    value["num_hidden_layers"] = num_blocks.into();
    std::fs::write(&config, value.to_string()).unwrap();
    let bytes = std::fs::read(&weights).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        let numbers: Vec<f32> = view
            .data()
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
            .collect();
        let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((i, rest)) = block else {
            tensors.push((name, Tensor::from_f32(&numbers, view.shape())));
            continue;
        };
        for i in (i.parse::<usize>().unwrap()..num_blocks).step_by(had) {
            // No block is like another.
            let own: Vec<f32> = numbers.iter().map(|x| x * (1.0 + i as f32 / 64.0)).collect();
            tensors
                .push((format!("model.layers.{i}.{rest}"), Tensor::from_f32(&own, view.shape())));
        }
    }
    write(&weights, tensors.iter().map(|(name, tensor)| (name.clone(), tensor.into()))).unwrap();
}

/// Settings of an adapter with dropout.
pub const LORA: [&str; 4] = [
    "adapter.kind = lora",
    "adapter.rank = 4",
    "adapter.dropout = 0.1",
    "train.learning_rate = 0.01",
];

/// The course of the learning rate that a run of `setup` has.
pub fn schedule(setup: &Setup) -> Schedule {
    let train = &setup.run.train;
    Schedule {
        kind: setup.run.schedule.clone(),
        peak: train.learning_rate,
        warmup_steps: train.num_warmup_steps(setup.num_steps),
        num_steps: setup.num_steps,
    }
}

/// Clips, updates, and gives the gradient's norm and the learning rate; `step` counts from 0.
pub fn update(engine: &mut Engine, schedule: &Schedule, step: u64) -> (f64, f64) {
    let (norm, learning_rate) = (engine.grad_norm().unwrap().global, schedule.learning_rate(step));
    engine.update(learning_rate, norm).unwrap();
    (norm, learning_rate)
}

/// Gradients and loss of `units` in micro-batches of `units_per_batch`; the gradients replace
/// those of `engine`.
pub fn accumulate(
    (setup, engine): (&Setup, &mut Engine),
    units: &[Unit],
    units_per_batch: usize,
    (step, recompute): (u64, Recompute),
) -> f64 {
    let assemble = |units: &[Unit]| {
        MicroBatch::assemble(&setup.train, units, units_per_batch * setup.max_seq_len)
    };
    let micro_batches: Vec<MicroBatch> = units.chunks(units_per_batch).map(assemble).collect();
    let num_terms = micro_batches.iter().map(|b| b.num_target_tokens).sum();
    let labelled = |micro_batch, engine: &Engine| {
        LabelledBatch::new(&setup.config, micro_batch, engine.device.target())
    };
    if engine.mixture.coefficient > 0.0 {
        let batches: Vec<_> = micro_batches.iter().map(|of| labelled(of, engine)).collect();
        let mut scorer = Scorer { pass: engine.pass(), reference: None, plan: None };
        let loads = scorer.router_loads(&batches).unwrap();
        engine.mixture.balance(&loads);
    }
    let step_context = StepContext { num_terms, statistics: &Vec::new(), recompute };
    engine.gradients.clear(&engine.device.clone());
    let mut loss = 0.0;
    for (i, micro_batch) in micro_batches.iter().enumerate() {
        let key = StepKey { seed: 42, step, micro_batch: i as u32 };
        let batch = labelled(micro_batch, engine);
        loss += engine.forward_backward(&batch, step_context, key, &mut Metrics::default());
    }
    loss
}

/// What a few steps leave behind, bit for bit.
#[derive(Debug, PartialEq)]
pub struct Trail {
    pub losses: Vec<f64>,
    pub norms: Vec<f64>,
    pub params: Vec<Vec<f32>>,
    pub moments: Vec<Vec<f32>>,
}

/// The engine of a run on `device`.
pub fn engine(setup: &Setup, device: &Device) -> Engine {
    loading::engine(setup, device, Held::of(setup, 0)).unwrap()
}

/// The first `num_steps` steps of a run.
pub fn train(setup: &Setup, threads: usize, recompute: Recompute, num_steps: u64) -> Trail {
    let engine = engine(setup, &Device::cpu(threads));
    train_with(setup, engine, recompute, num_steps)
}

/// The same with an engine that is there.
pub fn train_with(
    setup: &Setup,
    mut engine: Engine,
    recompute: Recompute,
    num_steps: u64,
) -> Trail {
    let (mut order, mut cursor) = (setup.order().unwrap(), Cursor::default());
    let (mut losses, mut norms) = (vec![], vec![]);
    for step in 0..num_steps {
        let units = order.step(&cursor).to_vec();
        losses.push(accumulate((setup, &mut engine), &units, 2, (step, recompute)));
        norms.push(update(&mut engine, &schedule(setup), step).0);
        order.advance(&mut cursor);
    }
    let values = |tensors: &[Tensor]| tensors.iter().map(Tensor::to_vec_f32).collect::<Vec<_>>();
    let params = engine.model.params.iter().map(|(_, _, value)| value.to_vec_f32()).collect();
    let moments = [values(&engine.optimizer.m), values(&engine.optimizer.v)].concat();
    Trail { losses, norms, params, moments }
}

/// The CPU, and a GPU or its emulation.
pub fn devices() -> Vec<Device> {
    [Device::cpu(2)].into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect()
}

/// All gradients in one row.
pub fn flat(gradients: &Gradients) -> Vec<f32> {
    gradients.iter().flat_map(|g| g.to_vec_f32()).collect()
}

/// `|found - exact| / |exact|` in L2.
pub fn relative_error(found: &[f32], exact: &[f32]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let error = norm(&mut found.iter().zip(exact).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    error / norm(&mut exact.iter().map(|&x| f64::from(x)))
}

/// What PyTorch made of a golden model.
pub struct Golden {
    bytes: Vec<u8>,
    pub facts: serde_json::Value,
}

impl Golden {
    pub fn load(case: &str) -> Self {
        let read = |name: &str| std::fs::read(golden_dir(case).join(name)).unwrap();
        let facts = serde_json::from_slice(&read("golden.json")).unwrap();
        Self { bytes: read("golden.safetensors"), facts }
    }

    /// A curve; `None` where the case has none.
    pub fn curve(&self, name: &str) -> Option<Vec<f64>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let value = |b: &[u8]| f64::from(f32::from_le_bytes(b.try_into().unwrap()));
        Some(file.tensor(name).ok()?.data().chunks_exact(4).map(value).collect())
    }

    /// All sequences in one batch, and the number of tokens to predict.
    pub fn batch(&self, setup: &Setup) -> (Batch, usize) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let (mut tokens, mut positions, mut targets, mut bounds) =
            (vec![], vec![], vec![], vec![0]);
        for i in 0..self.facts["num_sequences"].as_u64().unwrap() {
            let ids = file.tensor(&format!("ids_{i}")).unwrap();
            let id = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap()) as u32;
            let ids: Vec<u32> = ids.data().chunks_exact(8).map(id).collect();
            let mask = file.tensor(&format!("mask_{i}")).unwrap().data();
            let next = ids.iter().zip(mask).skip(1);
            targets.extend(next.map(|(&id, &is)| if is == 1 { id } else { IGNORE }));
            targets.push(IGNORE);
            positions.extend(0..ids.len() as u32);
            tokens.extend(ids);
            bounds.push(tokens.len() as u32);
        }
        let batch = Batch::new(&setup.config, &tokens, &positions, &bounds, &targets, IGNORE);
        let num_targets = batch.rows.len();
        (batch, num_targets)
    }
}
