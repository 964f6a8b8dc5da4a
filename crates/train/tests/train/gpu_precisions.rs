//! Products in f16, FP8 and 8-bit integers, on a GPU: the same training but for rounding; in f16
//! with a loss that is scaled.

use crate::fixture::{LORA, Scene, carry_out, engine, train, train_with};
use hone_model::{LoadOptions, Recompute, load};
use hone_tensor::cuda::Gpu;
use hone_tensor::{Compute, DType, Device, Storage};
use hone_train::backend::Backend;
use hone_train::recipe::{Options, Outcome};
use hone_train::run_file::{Held, Precision};
use hone_train::setup::{Setup, held_type};
use safetensors::SafeTensors;
use serde_json::Value;
use std::path::Path;

fn in_f16(scene: &Scene, settings: &[&str], gpu: &Gpu) -> Setup {
    let mut setup = scene.setup(settings);
    (setup.compute, setup.backend) = (Compute::F16, Backend::Cuda(gpu.clone()));
    setup
}

#[test]
fn steps_follow_those_in_f32() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let scene = Scene::new("tied_gqa");
    for settings in [&LORA[..], &["train.learning_rate = 0.001"]] {
        let exact = train(&scene.setup(settings), 1, Recompute::None, 4);
        let setup = in_f16(&scene, settings, &gpu);
        let engine = engine(&setup, &Device::cuda(gpu.clone()));
        let found = train_with(&setup, engine, Recompute::None, 4);
        for (what, found, exact, tolerance) in
            [("loss", found.losses, exact.losses, 1e-3), ("norm", found.norms, exact.norms, 1e-2)]
        {
            for (step, (found, exact)) in found.iter().zip(&exact).enumerate() {
                let error = (found / exact - 1.0).abs();
                assert!(error < tolerance, "{what} {step}: {found}, in f32 {exact}");
            }
        }
    }
}

/// Projections in FP8 and in integers, of weights that are held in bytes; in integers as on the
/// CPU, whose head is in integers too.
#[test]
fn steps_in_eight_bits_follow_those_in_f32() {
    let scene = Scene::new("dynamic");
    let exact = train(&scene.setup(&LORA), 1, Recompute::None, 4);
    for (gpu, compute) in
        [(Gpu::for_tests(), Compute::Int8), (Gpu::for_tests_in_fp8(), Compute::Fp8)]
    {
        let Some(gpu) = gpu else { continue };
        let mut setup = in_f16(&scene, &LORA, &gpu);
        (setup.compute, setup.base_precision) = (compute, Some(Storage::INT8));
        let trail = |recompute| {
            let engine = engine(&setup, &Device::cuda(gpu.clone()));
            train_with(&setup, engine, recompute, 4)
        };
        let found = trail(Recompute::None);
        for (step, (found, exact)) in found.losses.iter().zip(&exact.losses).enumerate() {
            let error = (found / exact - 1.0).abs();
            assert!(error < 0.01 && found != exact, "loss {step}: {found}, in f32 {exact}");
        }
        assert!(found == trail(Recompute::Block), "recomputation changes bits");
        if compute == Compute::Int8 {
            let on_cpu = train(&setup, 1, Recompute::None, 4);
            for (step, (found, on_cpu)) in found.losses.iter().zip(&on_cpu.losses).enumerate() {
                let error = (found / on_cpu - 1.0).abs();
                assert!(error < 2e-3, "loss {step}: {found}, on the CPU {on_cpu}");
            }
        }
    }
}

/// A step that overflows is done again, and what it was done with is kept for `--resume`.
#[test]
fn overflows_are_repeated_and_remembered() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let settings = [&LORA[..], &["train.max_steps = 3"]].concat();
    let scene = || {
        let scene = Scene::new("tied_gqa");
        amplify(&scene);
        scene
    };
    let (whole, pieces) = (scene(), scene());
    let run = |scene: &Scene, resume, stop: bool| {
        let options = Options { resume, profile: false };
        let setup = in_f16(scene, &settings, &gpu);
        carry_out(&setup, options, &mut |_| {}, &|| stop).unwrap()
    };
    let kept = |scene: &Scene| -> Value {
        let path = scene.run_dir().join("checkpoints/step-3/state.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    assert!(matches!(run(&whole, false, false), Outcome::Finished(_)));
    for step in 1..3 {
        assert!(matches!(run(&pieces, step > 1, true), Outcome::Interrupted { .. }));
    }
    assert!(matches!(run(&pieces, true, false), Outcome::Finished(_)));
    assert_eq!(kept(&whole), kept(&pieces));
    let scale = &kept(&whole)["loss_scale"];
    assert!((1..16).contains(&scale["log2"].as_u64().unwrap()), "{scale}");
}

/// Makes what comes back through the last norm too large for f16 with the first factor.
fn amplify(scene: &Scene) {
    let path = scene.dir.path().join("model/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, end) = metadata.info("model.norm.weight").unwrap().data_offsets;
    for number in bytes[8 + header..][start..end].chunks_exact_mut(4) {
        let larger = 300.0 * f32::from_le_bytes((&*number).try_into().unwrap());
        number.copy_from_slice(&larger.to_le_bytes());
    }
    std::fs::write(&path, bytes).unwrap();
}

const CPU: Backend = Backend::Cpu { threads: 1 };

/// Attention that no kernel of a GPU serves is refused before anything runs.
#[test]
fn heads_may_be_too_wide_for_a_gpu() {
    let h100 = Backend::catalogued("h100-80g").unwrap();
    assert!(h100.check_heads(512, 128).is_ok() && CPU.check_heads(1024, 256).is_ok());
    let refused = h100.check_heads(1024, 0).unwrap_err().to_string();
    assert!(refused.contains("1024") && refused.contains("512") && refused.contains("CPU"));
    let refused = h100.check_heads(128, 192).unwrap_err().to_string();
    assert!(refused.contains("delta nets have 192") && refused.contains("up to 128"), "{refused}");
}

/// What is computed in follows from the file and from what the hardware can.
#[test]
fn f16_is_for_gpus_without_bf16() {
    let [t4, l4] = ["t4", "l4"].map(|name| Backend::catalogued(name).unwrap());
    let (t4, l4, cpu) = (&t4, &l4, &CPU);
    for (on, asked, file, expected) in [
        (cpu, Precision::Auto, DType::F32, Some(Compute::F32)),
        (cpu, Precision::Auto, DType::F16, Some(Compute::Bf16)),
        (cpu, Precision::F16, DType::F16, None),
        (cpu, Precision::Int8, DType::F16, Some(Compute::Int8)),
        (t4, Precision::Auto, DType::F32, Some(Compute::F32)),
        (t4, Precision::Auto, DType::Bf16, Some(Compute::F16)),
        (t4, Precision::Bf16, DType::Bf16, None),
        (t4, Precision::F32, DType::Bf16, Some(Compute::F32)),
        (l4, Precision::Auto, DType::F16, Some(Compute::Bf16)),
        (l4, Precision::F16, DType::Bf16, Some(Compute::F16)),
        (l4, Precision::Int8, DType::Bf16, Some(Compute::Int8)),
        (t4, Precision::Int8, DType::Bf16, None),
        (l4, Precision::Fp8, DType::Bf16, Some(Compute::Fp8)),
        (t4, Precision::Fp8, DType::Bf16, None),
        (cpu, Precision::Fp8, DType::Bf16, None),
    ] {
        let chosen = on.compute_for(asked, file);
        assert_eq!(chosen.as_ref().ok(), expected.as_ref(), "{asked:?}, {file:?}: {chosen:?}");
    }
}

/// Where bf16 is missing floats are converted once; blocks stay as they are.
#[test]
fn blocks_stay_where_floats_become_f16() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../xtask/tools/corpus");
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(corpus.join(from), dir.path().join(to)).unwrap();
    };
    copy("base/model/config.json", "config.json");
    for (weights, held, expected) in [
        ("base/model/model.safetensors", "f32", Some(DType::F16.into())),
        ("weights/bf16.safetensors", "bf16", Some(DType::F16.into())),
        ("weights/fp8.safetensors", "fp8", None),
        ("weights/nf4.safetensors", "nf4", None),
    ] {
        copy(weights, "model.safetensors");
        let file = load(dir.path(), &Device::dry(), LoadOptions::INFERENCE).unwrap();
        let found: Vec<&str> = file.storages().iter().map(|storage| storage.name()).collect();
        assert_eq!(found, [held]);
        assert_eq!(held_type(Held::Auto, Compute::F16, &file), expected, "{weights}");
        assert_eq!(held_type(Held::Auto, Compute::Bf16, &file), None, "{weights}");
    }
}
