//! However the rows of a step are cut into micro-batches, the gradient is the same.

use crate::fixture::{LORA, Scene, accumulate, engine, flat, relative_error};
use hone_data::{Cursor, MicroBatch, Unit};
use hone_model::Recompute;
use hone_tensor::Device;
use hone_train::engine::Engine;
use hone_train::setup::Setup;

/// Relative, in L2: sums in another order, in f32.
const TOLERANCE: f64 = 2e-6;

/// Loss and gradient of the units of a step, without dropout, whose mask depends on the slot.
fn gradient(setup: &Setup, units: &[Unit], units_per_batch: usize) -> (f64, Vec<f32>) {
    let mut engine = engine(setup, &Device::cpu(1));
    if setup.lora.is_some() {
        engine = after_an_update(setup, engine);
    }
    let loss = accumulate((setup, &mut engine), units, units_per_batch, (1, Recompute::None));
    (loss, flat(&engine.gradients))
}

/// New adapters have gradients in one of their two matrices only.
fn after_an_update(setup: &Setup, mut engine: Engine) -> Engine {
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    accumulate((setup, &mut engine), &units, 4, (0, Recompute::None));
    engine.update(0.01, 1.0).unwrap();
    engine
}

fn setups(scene: &Scene) -> [Setup; 2] {
    let no_dropout = [LORA[0], LORA[1], LORA[3]];
    [scene.setup(&no_dropout), scene.setup(&[])]
}

#[test]
fn four_micro_batches_equal_one_large_batch() {
    let scene = Scene::new("tied_gqa");
    for setup in setups(&scene) {
        let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
        let targets = |unit: &Unit| {
            let unit = std::slice::from_ref(unit);
            MicroBatch::assemble(&setup.train, unit, setup.max_seq_len).num_target_tokens
        };
        let targets: Vec<usize> = units.iter().map(targets).collect();
        assert_eq!(units.len(), 4);
        assert!(targets.iter().any(|&n| n != targets[0]), "a wrong denominator must show");
        let (loss, one_batch) = gradient(&setup, &units, 4);
        for units_per_batch in [1, 2, 3] {
            let (accumulated_loss, accumulated) = gradient(&setup, &units, units_per_batch);
            let error = relative_error(&accumulated, &one_batch);
            assert!(error <= TOLERANCE, "{units_per_batch} units at a time: {error:e}");
            assert!((accumulated_loss / loss - 1.0).abs() <= TOLERANCE);
        }
    }
}

/// The auxiliary loss of routers is that of the step's tokens together, which is no mean of those
/// of micro-batches.
#[test]
fn the_load_is_balanced_over_the_whole_step() {
    let scene = Scene::new("qwen3_moe");
    let with = |coefficient| {
        let coefficient = format!("train.router_aux_loss_coef = {coefficient}");
        let targets = "adapter.target_modules = [\"router\", \"experts\"]";
        scene.setup(&[LORA[0], LORA[1], LORA[3], targets, &coefficient])
    };
    let setup = with("1.0");
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    let (_, at_once) = gradient(&setup, &units, 4);
    let (_, without) = gradient(&with("0.0"), &units, 4);
    assert!(relative_error(&without, &at_once) > 0.01, "the auxiliary loss must show");
    for units_per_batch in [1, 2] {
        let (_, cut) = gradient(&setup, &units, units_per_batch);
        let error = relative_error(&cut, &at_once);
        assert!(error <= TOLERANCE, "{units_per_batch} units at a time: {error:e}");
    }
}

#[test]
fn packed_rows_equal_rows_alone() {
    let scene = Scene::new("yarn");
    for setup in setups(&scene) {
        let packed = setup.order().unwrap().step(&Cursor::default()).to_vec();
        let rows = packed.iter().flat_map(|unit| &unit.rows);
        let alone = rows
            .map(|&row| Unit { rows: vec![row], num_tokens: setup.train.row_len(row as usize) });
        let alone: Vec<Unit> = alone.collect();
        assert!(alone.len() > 2 * packed.len(), "units hold several rows");
        let (packed_loss, packed) = gradient(&setup, &packed, 4);
        let (loss, alone) = gradient(&setup, &alone, 1);
        let error = relative_error(&packed, &alone);
        assert!(error <= TOLERANCE, "{error:e}");
        assert!((packed_loss / loss - 1.0).abs() <= TOLERANCE);
    }
}
