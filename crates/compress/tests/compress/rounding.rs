//! Roundings that look at more than one weight.

use crate::calibration::{room, stories, windows};
use hone_compress::{Begun, Columns, Done, Meter, Schedule, Snapshot, fed_back, packed, tune};
use hone_model::{GgufForm, Model, Pass};
use hone_tensor::{Compute, DType, Device, Storage, Tensor};
use std::collections::HashMap;

/// The bytes of all matrices, in types of three or four bits where rows can take them.
fn bytes(model: &Model, form: &GgufForm<'_>) -> Vec<u8> {
    let roles = form.tensors().iter().flat_map(|tensor| tensor.roles());
    let weights = roles.filter_map(|role| model.weight(*role));
    weights.flat_map(|weight| weight.bytes().to_vec()).collect()
}

pub fn storages(form: &GgufForm<'_>, names: [&str; 2]) -> Vec<Storage> {
    let kinds = names.map(|name| Storage::from_name(name).unwrap());
    let of = |(i, tensor): (usize, &hone_model::FormTensor)| {
        let kind = kinds[i % 2];
        let fits = tensor.is_matrix() && kind.checked_num_bytes(&tensor.shape).is_ok();
        if fits { kind } else { DType::F32.into() }
    };
    form.tensors().iter().enumerate().map(of).collect()
}

/// Both lose less than the nearest values do, on text that neither has seen, in the same types and
/// with the same bits whatever the threads.
#[test]
fn feedback_and_learning_lose_less() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let (seen, other) = (windows(pass, 48, 0), windows(pass, 16, 500));
    let meter = Meter::new(pass, &other).unwrap();
    let kl = |model: &Model| meter.measure(model).unwrap().kl;
    let schedule = Schedule { steps: 24, tokens_per_step: 320 };
    let storages = storages(&form, ["q4_0", "iq4_nl"]);
    let of = (&storages[..], &Columns::default());
    let nearest = packed(pass, &form, of, &|_, _| None).unwrap();
    let mut kept = HashMap::new();
    let mut keep = |done: Done<'_>| {
        if let Done::Matrix(place, matrix) = done {
            kept.insert(place, matrix.bytes().to_vec());
        }
    };
    let text = (&seen[..], room());
    let fed = fed_back(pass, &form, &nearest, text, &|_, _| None, &mut keep).unwrap();
    let (mut losses, mut begun) = (Vec::new(), None);
    let mut done = |snapshot: Snapshot<'_>| {
        losses.push(snapshot.kl);
        if snapshot.step == 10 {
            let numbers = snapshot.numbers().into_iter();
            let copy = |of: &Tensor| Tensor::from_f32(of.f32(), of.shape());
            let numbers = numbers.map(|(name, of)| (name, copy(of))).collect();
            begun = Some(Begun { step: 10, numbers });
        }
    };
    let tuned = tune(pass, &form, &fed, (&seen, schedule), None, &mut done).unwrap();
    // What goes on from what another process had done ends with the same bits.
    let half = |i: usize, part: usize| kept.get(&(i, part)).filter(|_| i.is_multiple_of(2));
    let half = &|i: usize, part: usize| half(i, part).map(Vec::as_slice);
    let again = packed(pass, &form, of, half).unwrap();
    let mut count = 0;
    let again = fed_back(pass, &form, &again, text, half, &mut |done| {
        count += usize::from(matches!(done, Done::Matrix(..)));
    });
    let again = again.unwrap();
    let others = kept.keys().filter(|(i, _)| i % 2 == 1).count();
    assert_eq!((count, bytes(&again, &form)), (others, bytes(&fed, &form)));
    let mut rest = 0;
    let again = tune(pass, &form, &again, (&seen, schedule), begun, &mut |_| rest += 1).unwrap();
    assert_eq!((rest, bytes(&again, &form)), (14, bytes(&tuned, &form)));
    let found = [&nearest, &fed, &tuned].map(kl);
    let shares = [found[1] / found[0], found[2] / found[0]];
    assert!(shares[0] < 0.9 && shares[1] < 0.8, "{found:?}");
    assert_eq!(losses.len(), schedule.steps);
    for (tensor, storage) in form.tensors().iter().zip(&storages) {
        let held = |model: &Model| model.weight(tensor.roles()[0]).map(Tensor::storage);
        assert!([&fed, &tuned].iter().all(|model| held(model) == held(&nearest)));
        assert!(!tensor.is_matrix() || held(&tuned) == Some(*storage), "{}", tensor.name);
    }
    // Less of both is enough to see whether threads matter.
    let (seen, schedule) = (&seen[..4], Schedule { steps: 2, tokens_per_step: 80 });
    let both = [1, 2].map(|threads| {
        let device = Device::cpu(threads);
        let pass = Pass { device: &device, ..pass };
        let fed =
            fed_back(pass, &form, &nearest, (seen, room()), &|_, _| None, &mut |_| ()).unwrap();
        let tuned = tune(pass, &form, &fed, (seen, schedule), None, &mut |_| ()).unwrap();
        (bytes(&fed, &form), bytes(&tuned, &form))
    });
    assert!(both[0] == both[1] && both[0].0 != both[0].1);
}
