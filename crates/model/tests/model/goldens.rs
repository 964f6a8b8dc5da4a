//! Logits, losses and gradients against transformers and PEFT, in f32.

use crate::fixture::{
    Golden, Outcome, devices, forward_backward, load, logits, max_error, pack, range,
    relative_error,
};
use hone_model::{Batch, Model, Recompute, Trained};
use hone_tensor::{Compute, Device};

/// Relative to the range of the logits.
const LOGITS: f32 = 1e-4;
/// Relative L2.
const GRADIENTS: f64 = 1e-3;
const LOSS: f64 = 1e-5;
/// What rounding leaves of a gradient that is zero.
const NO_GRADIENT: f32 = 1e-6;

#[test]
fn logits_of_the_base_and_with_the_adapter() {
    for device in devices() {
        for golden in Golden::all() {
            check_logits(&golden, &golden.base(&device), &device, "logits");
            check_logits(&golden, &golden.adapted(&device), &device, "logits_lora");
        }
    }
}

/// Each sequence alone, and all in one batch with trailing padding.
pub fn check_logits(golden: &Golden, model: &Model, device: &Device, name: &str) {
    let (config, samples) = (&model.decoder.config, golden.samples());
    let expected = golden.of_sequences(name);
    let check = |batch: &Batch, expected: &[f32], what: &str| {
        let found = logits(model, device, Compute::F32, batch);
        let error = max_error(&found[..expected.len()], expected) / range(expected);
        assert!(error <= LOGITS, "{} {name} {what}: {error:e}", golden.dir.display());
    };
    for (sample, expected) in samples.iter().zip(&expected) {
        check(&Batch::from_sequence(config, &sample.ids), expected, "alone");
    }
    check(&pack(config, &samples, 5), &expected.concat(), "packed");
}

#[test]
fn loss_and_adapter_gradients() {
    for device in devices() {
        for golden in Golden::all() {
            check_gradients(&golden, &golden.adapted(&device), &device, "loss", "grad.");
        }
    }
}

#[test]
fn loss_and_gradients_of_all_weights() {
    for device in devices() {
        let with_full = Golden::all().filter(|golden| golden.has("full_loss_curve"));
        let checked = with_full.map(|golden| {
            let model = load(&golden.dir, &device, None, Trained::All);
            check_gradients(&golden, &model, &device, "full_loss", "full_grad.");
        });
        assert!(checked.count() >= 2);
    }
}

/// Kept and recomputed activations must give the same bits.
pub fn check_gradients(golden: &Golden, model: &Model, device: &Device, loss: &str, prefix: &str) {
    let batch = pack(&model.decoder.config, &golden.samples(), 3);
    let num_targets = golden.number("num_target_tokens");
    assert_eq!(batch.rows.len() as f64, num_targets);
    let run = |recompute| -> Outcome {
        forward_backward(model, device, (Compute::F32, recompute), &batch, num_targets, None)
    };
    let outcome = run(Recompute::None);
    assert_eq!(outcome, run(Recompute::Block), "{}", golden.dir.display());
    let (found, expected) = (outcome.loss_sum() / num_targets, golden.number(loss));
    assert!((found / expected - 1.0).abs() <= LOSS, "{loss}: {found}, expected {expected}");
    for ((_, name, _), gradient) in model.params.iter().zip(&outcome.gradients) {
        let exact = golden.f32s(&format!("{prefix}{name}"));
        // Softmaxes do not feel it where keys are not rotated: nothing but rounding is left.
        if ["self.key.bias", "attention.k_lin.bias"].iter().any(|end| name.ends_with(end)) {
            assert!(gradient.iter().chain(&exact).all(|d| d.abs() <= NO_GRADIENT), "{name}");
            continue;
        }
        let error = relative_error(gradient, &exact);
        assert!(error <= GRADIENTS, "{} {name}: {error:e}", golden.dir.display());
    }
}
