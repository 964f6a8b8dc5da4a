//! The plan is what the run takes. What fits a budget is tested with the binary, since it depends
//! on what the process occupies.

use crate::fixture::{LORA, Scene};
use hone_data::{Cursor, MicroBatch};
use hone_model::Recompute;
use hone_tensor::{Device, Layout, StepKey};
use hone_train::engine::Engine;
use hone_train::evaluate::{log_likelihood, to_batch};
use hone_train::planner::{self, Plan, Policy};
use hone_train::profile::DeviceProfile;
use hone_train::setup::Setup;

/// A machine with round figures, so that no test depends on this one's speed.
fn profile() -> DeviceProfile {
    DeviceProfile {
        cpu: String::new(),
        threads: 1,
        isa: String::new(),
        version: String::new(),
        measured: "in a test".to_owned(),
        product_f32: 1e11,
        product_bf16: 2e11,
        product_int8: 4e11,
        ceiling_f32: 2e11,
        ceiling_bf16: 4e11,
        ceiling_int8: 8e11,
        product_over_tokens: 1e11,
        product_thin: 1e11,
        attention: 5e10,
        elementwise: 5e10,
        memory: 1e10,
        overhead: 1e-6,
    }
}

fn plan(setup: &Setup) -> Plan {
    planner::plan(setup, &profile()).unwrap().plan
}

#[test]
fn the_arena_is_what_a_step_uses() {
    let scene = Scene::new("tied_gqa");
    for settings in [&LORA[..], &[]] {
        let setup = scene.setup(settings);
        for recompute in [Recompute::None, Recompute::Block] {
            let policy = Policy { units: 2, recompute };
            let planned = planner::plan_with(&setup, &profile(), policy).unwrap();
            let (train, eval) = (used_by_training(&setup, policy), used_by_eval(&setup, policy));
            assert_eq!(planned.train_layout.bytes(), train.bytes());
            assert_eq!(planned.train_layout.num_allocations(), train.num_allocations());
            assert_eq!(planned.eval_layout.bytes(), eval.bytes());
            assert_eq!(planned.plan.arena_bytes as usize, train.bytes().max(eval.bytes()));
        }
    }
}

/// What the second micro-batch of the first step really allocates.
fn used_by_training(setup: &Setup, policy: Policy) -> Layout {
    let device = Device::cpu(1);
    let mut engine = Engine::new(setup, &device).unwrap();
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(&setup.train, &units[policy.units..2 * policy.units], slots);
    let batch = to_batch(&setup.config, &packed);
    let step = || engine.forward_backward(&batch, 9, StepKey::default(), policy.recompute);
    Layout::of(device.trace(step).1)
}

fn used_by_eval(setup: &Setup, policy: Policy) -> Layout {
    let device = Device::cpu(1);
    let engine = Engine::new(setup, &device).unwrap();
    let (dataset, units) = setup.eval.as_ref().unwrap();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(dataset, &units[..1], slots);
    let batch = to_batch(&setup.config, &packed);
    Layout::of(device.trace(|| log_likelihood(&device, &engine.model, engine.compute, &batch)).1)
}

#[test]
fn a_pinned_policy_is_kept() {
    let scene = Scene::new("tied_gqa");
    for (recompute, tokens) in [("none", 64), ("block", 64), ("block", 128), ("none", 32)] {
        let pinned = [
            format!("budget.micro_batch_tokens = {tokens}"),
            format!("budget.recompute = {recompute}"),
        ];
        let planned = plan(&scene.setup(&[&pinned[0], &pinned[1]]));
        assert_eq!((planned.recompute, planned.micro_batch_tokens), (recompute, tokens));
        assert_eq!(planned.micro_batches_per_step, 128 / tokens);
    }
}
