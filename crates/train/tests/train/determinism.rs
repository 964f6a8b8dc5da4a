//! The same bits again: with other threads, with recomputation, across an interruption.

use crate::fixture::{LORA, Scene, Trail, train};
use hone_model::Recompute;
use hone_train::checkpoint::sha256_of_file;
use hone_train::recipe::{self, Options, Outcome};
use std::cell::Cell;

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

#[test]
fn recomputation_changes_nothing() {
    for settings in [&LORA[..], &[]] {
        let scene = Scene::new("untied_bias_linear");
        let again = train(&scene.setup(settings), 2, Recompute::Block, 5);
        assert!(reference(&scene, settings) == again);
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
        let settings = [settings, &["train.max_steps = 6"]].concat();
        let (whole, pieces) = (Scene::new("dynamic"), Scene::new("dynamic"));
        let ended =
            recipe::train(&whole.setup(&settings), Options::default(), &mut |_| {}, &|| false);
        assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
        for expected in 1..6 {
            let ended = recipe::train(&pieces.setup(&settings), RESUME, &mut |_| {}, &|| true);
            let Outcome::Interrupted { step } = ended.unwrap() else { panic!("not interrupted") };
            assert_eq!(step, expected);
        }
        let asked = Cell::new(0);
        let stop = || asked.replace(asked.get() + 1) > 0;
        let ended = recipe::train(&pieces.setup(&settings), RESUME, &mut |_| {}, &stop);
        assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
        assert_eq!(digests(&whole, 6), digests(&pieces, 6));
    }
}
