//! The same bits again: with other threads, with recomputation, across an interruption.

use crate::fixture::{LORA, Scene, Trail, carry_out, train, train_with};
use hone_model::{LoadOptions, Recompute};
use hone_tensor::cuda::Gpu;
use hone_tensor::{Compute, Device};
use hone_train::Code;
use hone_train::backend::Backend;
use hone_train::checkpoint::{self, sha256_of_file};
use hone_train::engine::{AdapterSet, Base, Engine, EngineOptions};
use hone_train::loading::{self, Held};
use hone_train::objectives::Likelihood;
use hone_train::recipe::{Event, Options, Outcome};
use hone_train::run_dir::NUMERICS;
use std::cell::Cell;
use std::path::Path;

const RESUME: Options = Options { resume: true, profile: false };

/// Five steps with one thread, everything kept for backward.
fn reference(scene: &Scene, settings: &[&str]) -> Trail {
    let trail = train(&scene.setup(settings), 1, Recompute::None, 5);
    assert!(trail.losses.iter().chain(&trail.norms).all(|x| x.is_finite() && *x > 0.0));
    trail
}

#[test]
fn one_thread_equals_several() {
    for settings in [&LORA[..], &[]] {
        let scene = Scene::new("headdim_llama3");
        let reference = reference(&scene, settings);
        for threads in [2, 3] {
            let other = train(&scene.setup(settings), threads, Recompute::None, 5);
            assert!(reference == other, "{threads} threads give other bits");
        }
    }
}

/// Several adapters over weights that are loaded once, without a run file: each as in a run of its
/// own.
#[test]
fn adapters_over_one_base_do_not_touch_each_other() {
    let (scene, device) = (Scene::new("tied_gqa"), Device::cpu(2));
    let setups =
        [&["adapter.rank = 4"][..], &["adapter.rank = 2", "train.seed = 7"]].map(|settings| {
            scene.setup(&[&LORA[..1], settings, &["train.learning_rate = 0.01"]].concat())
        });
    let model = scene.dir.path().join("model");
    let base = Base::load(&model, &device, Compute::F32, LoadOptions::INFERENCE).unwrap();
    for setup in setups.iter().chain(&setups) {
        let adapters =
            AdapterSet::new(&base, setup.lora.as_ref().unwrap(), setup.run.train.seed).unwrap();
        let optimizer = loading::optimizer_options(&setup.run);
        let objective = Box::new(Likelihood);
        let options = EngineOptions { optimizer, objective, reference: None };
        let engine = Engine::new(&base, adapters, options).unwrap();
        let shared = train_with(setup, engine, Recompute::None, 3);
        assert!(shared == train(setup, 2, Recompute::None, 3));
    }
}

#[test]
fn recomputation_changes_nothing() {
    for settings in [&LORA[..], &[]] {
        let scene = Scene::new("untied_bias_linear");
        let again = train(&scene.setup(settings), 2, Recompute::Block, 5);
        assert!(reference(&scene, settings) == again);
    }
}

/// Blocks that visit a GPU, all or some among others; those with experts too, and one whose
/// projection embeds for all of them, which is needed before the block itself.
#[test]
fn offloading_changes_nothing() {
    let Some(gpu) = Gpu::for_tests() else { return };
    for (case, num_blocks) in [("tied_gqa", 6), ("mixtral", 4), ("gemma4_small", 5)] {
        let scene = Scene::with_blocks(case, num_blocks);
        let (setup, device) = (scene.setup(&LORA), Device::cuda(gpu.clone()));
        let trail = |blocks, recompute| {
            let engine = loading::engine(&setup, &device, Held::of(&setup, blocks)).unwrap();
            train_with(&setup, engine, recompute, 2)
        };
        let kept = trail(0, Recompute::None);
        assert!(kept.losses.iter().all(|loss| loss.is_finite()));
        for (blocks, recompute) in [(3, Recompute::None), (num_blocks, Recompute::Block)] {
            let same = trail(blocks, recompute) == kept;
            assert!(same, "{case}: {blocks} of {num_blocks} blocks, {recompute:?}");
        }
    }
}

#[test]
fn dropout_is_on_and_depends_on_the_step() {
    let scene = Scene::new("tied_gqa");
    let with = reference(&scene, &LORA);
    let without = reference(&scene, &[LORA[0], LORA[1], LORA[3]]);
    assert_ne!(with.norms, without.norms);
    assert_ne!(with.params, without.params);
}

/// Parameters and moments of a step's checkpoint.
fn digests(scene: &Scene, step: u64) -> [String; 2] {
    let dir = scene.run_dir().join(format!("checkpoints/step-{step}"));
    ["params.safetensors", "optimizer.safetensors"]
        .map(|name| sha256_of_file(&dir.join(name)).unwrap())
}

#[test]
fn a_run_interrupted_after_every_step_ends_as_if_it_was_not() {
    for settings in [&LORA[..], &["train.learning_rate = 0.001"]] {
        check_interruptions(
            &Backend::Cpu { threads: 1 },
            &[settings, &["train.max_steps = 6"]].concat(),
        );
    }
    if let Some(gpu) = Gpu::for_tests() {
        check_interruptions(&Backend::Cuda(gpu), &[&LORA[..], &["train.max_steps = 3"]].concat());
    }
}

fn check_interruptions(backend: &Backend, settings: &[&str]) {
    let (whole, pieces) = (Scene::new("dynamic"), Scene::new("dynamic"));
    let setup = |scene: &Scene| {
        let mut setup = scene.setup(settings);
        setup.backend = backend.clone();
        setup
    };
    let steps = setup(&whole).num_steps;
    let ended = carry_out(&setup(&whole), Options::default(), &mut |_| {}, &|| false);
    assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
    for expected in 1..steps {
        let ended = carry_out(&setup(&pieces), RESUME, &mut |_| {}, &|| true);
        let Outcome::Interrupted { step } = ended.unwrap() else { panic!("not interrupted") };
        assert_eq!(step, expected);
    }
    let asked = Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 0;
    let ended = carry_out(&setup(&pieces), RESUME, &mut |_| {}, &stop);
    assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
    assert_eq!(digests(&whole, steps), digests(&pieces, steps));
}

/// Passes that a GPU launches as a whole: of batches that differ in their sequences and targets,
/// several a step or one, recomputed or not, of adapters with dropout and of the whole model, and
/// evaluations.
#[test]
fn graphs_change_nothing() {
    let several = ["budget.micro_batch_tokens = 32", "budget.recompute = \"block\""];
    for (compute, settings) in [
        (Compute::F32, [&LORA[..], &["train.max_steps = 8"]].concat()),
        (Compute::Bf16, [&LORA[..], &several, &["train.max_steps = 4"]].concat()),
        (Compute::F32, vec!["train.learning_rate = 0.001", "train.max_steps = 8"]),
    ] {
        let run = |graphs| {
            let gpu = Gpu::for_tests()?;
            let scene = Scene::new("dynamic");
            let settings = [&settings[..], &["train.eval_every_steps = 3", graphs]].concat();
            let mut setup = scene.setup(&settings);
            (setup.compute, setup.backend) = (compute, Backend::Cuda(gpu.clone()));
            let ended = carry_out(&setup, Options::default(), &mut |_| {}, &|| false);
            let Outcome::Finished(finished) = ended.unwrap() else { panic!("not finished") };
            let losses: Vec<_> = finished.evaluations.iter().map(|record| record.loss).collect();
            Some(((digests(&scene, setup.num_steps), losses), gpu.num_replays()))
        };
        let Some((with, replays)) = run("run.cuda_graphs = true") else { return };
        assert!(replays > 4, "{replays} replays in {settings:?}");
        assert_eq!(run("run.cuda_graphs = false"), Some((with, 0)), "{settings:?}");
    }
}

/// A GPU rounds otherwise than the CPU, whatever `run.device` says in both files.
#[test]
fn a_run_does_not_go_on_on_another_processor() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (scene, settings) = (Scene::new("dynamic"), [&LORA[..], &["train.max_steps = 2"]].concat());
    let begun = carry_out(&scene.setup(&settings), Options::default(), &mut |_| {}, &|| true);
    assert!(matches!(begun.unwrap(), Outcome::Interrupted { step: 1 }));
    let mut setup = scene.setup(&settings);
    setup.backend = Backend::Cuda(gpu);
    let Err(error) = carry_out(&setup, RESUME, &mut |_| {}, &|| false) else { panic!() };
    let message = error.to_string();
    assert!(
        message.contains("was begun on the CPU") && message.contains("run.device"),
        "{message}"
    );
}

/// A checkpoint of another arithmetic is whole, and still refused.
#[test]
fn a_checkpoint_of_other_numerics_is_refused() {
    let (scene, settings) = (Scene::new("dynamic"), [&LORA[..], &["train.max_steps = 2"]].concat());
    let begun = carry_out(&scene.setup(&settings), Options::default(), &mut |_| {}, &|| true);
    assert!(matches!(begun.unwrap(), Outcome::Interrupted { step: 1 }));
    let (root, aside) = (scene.run_dir().join("checkpoints"), scene.dir.path().join("aside"));
    std::fs::rename(root.join("step-1"), &aside).unwrap();
    let fill = |dir: &Path| -> std::io::Result<()> {
        for name in ["params.safetensors", "optimizer.safetensors"] {
            std::fs::copy(aside.join(name), dir.join(name))?;
        }
        let state = std::fs::read_to_string(aside.join("state.json"))?;
        let now = format!("\"numerics\":{NUMERICS}");
        assert!(state.contains(&now), "{state}");
        let version = format!("\"hone_version\":\"{}\"", env!("CARGO_PKG_VERSION"));
        let state = state.replace(&now, "\"numerics\":99");
        std::fs::write(
            dir.join("state.json"),
            state.replace(&version, "\"hone_version\":\"8.7.6\""),
        )
    };
    checkpoint::write(&root, 1, fill).unwrap();
    let resumed = carry_out(&scene.setup(&settings), RESUME, &mut |_| {}, &|| false);
    let error = resumed.err().unwrap();
    assert_eq!(error.code(), Code::ResumeOtherVersion);
    let message = error.to_string();
    assert!(
        message.contains("Hone 8.7.6 (numerics 99)") && message.contains("step-1"),
        "{message}"
    );
}

/// A GPU's checkpoints are written behind the steps: each is told of once, in order, when it is on
/// disk, and one that cannot be written ends the run.
#[test]
fn checkpoints_are_written_behind_a_gpu() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let scene = Scene::new("dynamic");
    let settings = ["train.max_steps = 4", "checkpoint.every_steps = 1", "checkpoint.keep = 9"];
    let mut setup = scene.setup(&[&LORA[..], &settings].concat());
    let backend = Backend::Cuda(gpu);
    setup.backend = backend.clone();
    let checkpoints = scene.run_dir().join("checkpoints");
    let mut told = Vec::new();
    let ended = carry_out(
        &setup,
        Options::default(),
        &mut |event| {
            if let Event::Checkpoint { step } = event {
                told.push(step);
                let manifest = checkpoints.join(format!("step-{step}/manifest.json"));
                assert!(manifest.is_file(), "{}", manifest.display());
            }
        },
        &|| false,
    );
    assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
    assert_eq!(told, [1, 2, 3, 4]);
    // What was written while the next step ran is what a run that stops after each step writes.
    let pieces = Scene::new("dynamic");
    for step in 1..=4 {
        let mut setup = pieces.setup(&[&LORA[..], &settings].concat());
        setup.backend = backend.clone();
        carry_out(&setup, RESUME, &mut |_| {}, &|| true).unwrap();
        assert_eq!(digests(&scene, step), digests(&pieces, step), "step {step}");
    }
    // Where the directory was, there is a file.
    setup.run.output.dir = scene.dir.path().join("disturbed");
    let checkpoints = setup.run.output.dir.join("checkpoints");
    let ended = carry_out(
        &setup,
        Options::default(),
        &mut |event| {
            if let Event::Step(record) = event
                && record.step == 1
            {
                std::fs::remove_dir(&checkpoints).unwrap();
                std::fs::write(&checkpoints, "").unwrap();
            }
        },
        &|| false,
    );
    assert!(ended.err().unwrap().to_string().contains("checkpoints"));
}
