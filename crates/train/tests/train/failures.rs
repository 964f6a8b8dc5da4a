//! A device that fails in the middle of a step, an evaluation or a generation: an error, told once,
//! and the same bits again where the device can be used again.

use crate::fixture::{LORA, Scene, engine};
use hone_data::{Cursor, MicroBatch};
use hone_model::Recompute;
use hone_model::generate::{GenerateError, Request, Sampling, generate_all};
use hone_tensor::cuda::{Fault, Faults, Gpu};
use hone_tensor::testing::is_full;
use hone_tensor::{Arena, Device, DeviceError, Layout, StepKey, Target, Tensor};
use hone_train::TrainError;
use hone_train::engine::{Engine, StepContext};
use hone_train::loading::{self, Held};
use hone_train::objectives::{Metrics, Objective, RowSpan, Statistics, TokenScores};
use hone_train::scoring::{LabelledBatch, Scorer, log_probs};
use hone_train::setup::Setup;
use std::sync::Arc;

/// An engine on an emulated GPU that fails when it is asked to, and what its passes need.
struct Bench {
    faults: Faults,
    device: Device,
    engine: Engine,
    batch: LabelledBatch,
    layouts: [Arc<Layout>; 2],
    arena: Arena,
    /// Whether the last step failed in its update or later.
    is_half_updated: bool,
}

fn batch(setup: &Setup, target: Target) -> LabelledBatch {
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    let packed = MicroBatch::assemble(&setup.train, &units[..1], setup.max_seq_len);
    LabelledBatch::new(&setup.config, &packed, target)
}

fn forward_backward(engine: &mut Engine, batch: &LabelledBatch) -> f64 {
    let (num_terms, recompute) = (batch.batch.num_targets, Recompute::None);
    let step = StepContext { num_terms, statistics: &Vec::new(), recompute };
    engine.forward_backward(batch, step, StepKey::default(), &mut Metrics::default())
}

/// Where a step and an evaluation have their memory.
fn layouts(setup: &Setup) -> [Arc<Layout>; 2] {
    let (dry, batch) = (Device::dry_as(Target::Cuda), batch(setup, Target::Cuda));
    let mut engine = engine(setup, &dry);
    let step = dry.trace(|| forward_backward(&mut engine, &batch)).1;
    let scored = dry.trace(|| log_probs(engine.pass(), &batch.batch)).1;
    [step, scored].map(|trace| Arc::new(Layout::of(trace)))
}

impl Bench {
    /// `None` without a C++ compiler.
    fn new(setup: &Setup, faults: &Faults) -> Option<Result<Self, TrainError>> {
        let device = Device::cuda(Gpu::for_tests_with(faults)?);
        let new = || {
            let engine = loading::engine(setup, &device, Held::of(setup, 0))?;
            let (layouts, batch) = (layouts(setup), batch(setup, Target::Cuda));
            let most = layouts.iter().map(|layout| layout.bytes()).max().unwrap();
            let arena = Arena::new(&device, most)?;
            let (faults, device) = (faults.clone(), device.clone());
            let is_half_updated = false;
            Ok(Self { faults, device, engine, batch, layouts, arena, is_half_updated })
        };
        Some(new())
    }

    /// One optimizer step: loss, norm and parameters.
    fn step(&mut self) -> Result<Vec<f64>, DeviceError> {
        self.engine.gradients.clear(&self.device);
        let loss = self.device.planned(&mut self.arena, &self.layouts[0], || {
            forward_backward(&mut self.engine, &self.batch)
        })?;
        let norm = self.engine.grad_norm()?.global;
        self.is_half_updated = true;
        self.engine.update(0.01, norm)?;
        let params = self.engine.model.params.iter().flat_map(|(_, _, x)| Tensor::to_vec_f32(x));
        let params: Vec<f64> = params.map(f64::from).collect();
        self.device.settle()?;
        self.is_half_updated = false;
        Ok([vec![loss, norm], params].concat())
    }

    /// Begins anew on the same device after a step that failed in its update or later: a run goes
    /// on from a checkpoint then.
    fn restart_if_half_updated(&mut self, setup: &Setup) {
        if std::mem::take(&mut self.is_half_updated) {
            self.engine = loading::engine(setup, &self.device, Held::of(setup, 0)).unwrap();
        }
    }

    fn evaluation(&mut self) -> Result<Vec<f64>, DeviceError> {
        let layout = &self.layouts[1];
        let reference_layout = None;
        let plan =
            hone_train::scoring::ScoringPlan { arena: &mut self.arena, layout, reference_layout };
        let mut scorer = Scorer { pass: self.engine.pass(), reference: None, plan: Some(plan) };
        Ok(scorer.log_probs(&self.batch.batch)?.into_iter().map(f64::from).collect())
    }

    /// Tokens of two answers that share their passes.
    fn generation(&mut self) -> Result<Vec<f64>, DeviceError> {
        let request = |prompt: &[u32]| Request {
            id: 0,
            prompt: prompt.to_vec(),
            max_new_tokens: 4,
            sampling: Sampling { temperature: 1.0, ..Sampling::GREEDY },
            stop_ids: vec![],
        };
        let answers = generate_all(self.engine.pass(), [request(&[1, 2, 3]), request(&[4])]);
        let answers = answers.map_err(|error| match error {
            GenerateError::Device(error) => error,
            other => panic!("{other}"),
        })?;
        Ok(answers.into_iter().flat_map(|a| a.tokens).map(f64::from).collect())
    }
}

type Work = fn(&mut Bench) -> Result<Vec<f64>, DeviceError>;

const WORKS: [Work; 3] = [Bench::step, Bench::evaluation, Bench::generation];

/// Some of the numbers from 1 to `last`.
fn numbers(last: u64) -> impl Iterator<Item = u64> {
    let count = if is_full() { 150 } else { 8 };
    (1..=last).step_by((last as usize / count).max(1))
}

#[test]
fn a_call_that_fails_ends_its_pass_and_the_next_one_has_the_same_bits() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&LORA);
    let (faults, none) = (Faults::default(), Faults::default());
    let Some(bench) = Bench::new(&setup, &faults) else { return };
    let (mut bench, mut other) = (bench.unwrap(), Bench::new(&setup, &none).unwrap().unwrap());
    for work in WORKS {
        // Memory inside operations is taken the first time, and graphs are made the third.
        let mut num_calls = 0;
        for _ in 0..4 {
            let before = faults.num_calls();
            assert!(work(&mut bench).unwrap() == work(&mut other).unwrap());
            num_calls = faults.num_calls() - before;
        }
        for nth in numbers(num_calls) {
            faults.start(nth, Fault::Driver);
            let failed = work(&mut bench);
            if failed.is_ok() {
                // Some calls less than before, since no graph was made.
                assert!(nth + 8 > num_calls, "call {nth} of {num_calls}");
                assert!(failed == Ok(work(&mut other).unwrap()), "call {nth} of {num_calls}");
                faults.stop();
                continue;
            }
            assert!(matches!(failed, Err(DeviceError::Driver { .. })), "call {nth}");
            assert_eq!(bench.device.settle(), Ok(()), "call {nth} is told once");
            faults.stop();
            if bench.is_half_updated {
                other.is_half_updated = true;
                bench.restart_if_half_updated(&setup);
                other.restart_if_half_updated(&setup);
                // Until the calls are as many as before again.
                for _ in 0..3 {
                    assert!(work(&mut bench) == Ok(work(&mut other).unwrap()), "after {nth}");
                }
            }
            assert!(work(&mut bench) == Ok(work(&mut other).unwrap()), "after call {nth}");
        }
    }
}

/// Whose log-probabilities are not computed.
struct NeverAsked;

impl Objective for NeverAsked {
    fn num_terms(&self, _: &[RowSpan]) -> usize {
        1
    }
    fn loss(&self, _: &TokenScores<'_>, _: &Statistics, _: &mut [f32], _: &mut Metrics) -> f64 {
        panic!("the pass has failed");
    }
}

/// In an arena there is what the step before left.
#[test]
fn an_objective_is_not_asked_about_a_pass_that_failed() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&LORA);
    let device = Device::cpu(1);
    let (mut engine, batch) = (engine(&setup, &device), batch(&setup, Target::Cpu));
    let trace = device.trace(|| forward_backward(&mut engine, &batch)).1;
    let (layout, error) = (Arc::new(Layout::of(trace)), DeviceError::out_of_host_memory(7));
    let mut arena = Arena::new(&device, layout.bytes()).unwrap();
    device.planned(&mut arena, &layout, || forward_backward(&mut engine, &batch)).unwrap();
    engine.objective = Box::new(NeverAsked);
    let failed = device.planned(&mut arena, &layout, || {
        device.fail(error.clone());
        forward_backward(&mut engine, &batch)
    });
    assert_eq!(failed, Err(error));
}

#[test]
fn memory_that_runs_out_ends_loading_or_a_pass_and_there_is_some_again() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&LORA);
    let faults = Faults::default();
    let Some(bench) = Bench::new(&setup, &faults) else { return };
    let mut bench = bench.unwrap();
    let expected = WORKS.map(|work| work(&mut bench).unwrap());
    let all = faults.num_calls();
    drop(bench);
    let mut num_failed = 0;
    for nth in numbers(all) {
        faults.start(nth, Fault::OutOfMemory);
        let mut bench = match Bench::new(&setup, &faults).unwrap() {
            Ok(bench) => bench,
            Err(error) => {
                assert!(error.to_string().contains("the GPU's memory ran out"), "{error}");
                num_failed += 1;
                faults.stop();
                Bench::new(&setup, &faults).unwrap().unwrap()
            }
        };
        for (work, expected) in WORKS.into_iter().zip(&expected) {
            let found = work(&mut bench).or_else(|error| {
                assert!(error.is_out_of_memory(), "{error}");
                assert_eq!(bench.device.settle(), Ok(()), "call {nth} is told once");
                num_failed += 1;
                bench.faults.stop();
                bench.restart_if_half_updated(&setup);
                work(&mut bench)
            });
            assert!(found.as_ref() == Ok(expected), "after call {nth}");
        }
        faults.stop();
    }
    assert!(num_failed > 3, "{num_failed} of {all}");
}

#[test]
fn a_device_that_is_lost_says_so_each_time() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&LORA);
    let faults = Faults::default();
    let Some(bench) = Bench::new(&setup, &faults) else { return };
    let mut bench = bench.unwrap();
    faults.start(20, Fault::Lost);
    let first = bench.step().unwrap_err();
    assert!(first.is_lost() && first.to_string().contains("cannot use the GPU any more"));
    faults.stop();
    for work in WORKS {
        assert_eq!(work(&mut bench), Err(first.clone()));
    }
}
