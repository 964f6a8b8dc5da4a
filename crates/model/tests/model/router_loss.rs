//! The auxiliary loss of routers against transformers: of all sequences and blocks together.

use crate::fixture::{Golden, devices, load, pack, relative_error};
use hone_model::{Batch, Model, Recompute, Trained};
use hone_tensor::ops::{RouterLoad, Routers};
use hone_tensor::{Category, Compute, Device, Gradients, Tape, Tensor, lock};
use std::sync::{Arc, Mutex};

/// What the routers do with a batch, and the gradients that `balance` alone gives.
fn pass(
    model: &Model,
    device: &Device,
    batch: &Batch,
    balance: Option<&[f32]>,
) -> (Vec<RouterLoad>, Gradients) {
    let Model { decoder, params, .. } = model;
    let loads = Arc::new(Mutex::new(Vec::new()));
    let mut tape = Tape::training(device, params, Compute::F32, None);
    tape.set_routers(Routers {
        num_rows: Some(batch.num_tokens()),
        balance: balance.map(Into::into),
        loads: Some(Arc::clone(&loads)),
        sums_probabilities: true,
    });
    let log_probs = decoder.log_probs(&mut tape, batch, Recompute::Block);
    let shape = log_probs.value().shape().to_vec();
    let zeros = Tensor::from_f32(&vec![0.0; shape.iter().product()], &shape);
    let zeros = device.upload(Category::Activations, &zeros).unwrap();
    let mut gradients = Gradients::zeros(device, params).unwrap();
    tape.backward(log_probs, zeros, &mut gradients);
    let loads = lock(&loads).clone();
    (loads, gradients)
}

#[test]
fn loss_and_gradients() {
    for device in devices() {
        let with_routers = Golden::all().filter(|golden| golden.facts["router_aux_loss"].is_f64());
        let checked = with_routers.map(|golden| {
            let model = load(&golden.dir, &device, None, Trained::All);
            let batch = pack(&model.decoder.config, &golden.samples(), 3);
            let (loads, _) = pass(&model, &device, &batch, None);
            let mut all = RouterLoad::default();
            loads.iter().for_each(|load| all.add(load));
            let (found, expected) = (all.balancing_loss(), golden.number("router_aux_loss"));
            assert!((found / expected - 1.0).abs() < 1e-5, "{found}, expected {expected}");
            // Recomputed blocks note nothing a second time.
            let sparse = model.decoder.config.layers.iter();
            let sparse = sparse.filter(|layer| layer.mlp.experts.is_some()).count();
            assert_eq!(loads.len(), sparse);
            let (_, gradients) = pass(&model, &device, &batch, Some(&all.balancing_gradient()));
            for (id, name, _) in model.params.iter() {
                let key = format!("aux_grad.{name}");
                if golden.has(&key) {
                    let found = gradients.get(id).to_vec_f32();
                    let error = relative_error(&found, &golden.f32s(&key));
                    assert!(error < 1e-4, "{name}: {error:e}");
                }
            }
        });
        assert!(checked.count() >= 1);
    }
}
