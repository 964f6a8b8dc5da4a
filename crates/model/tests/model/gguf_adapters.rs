//! Adapters in GGUF files: written and read, what llama.cpp makes of them, and what is refused.

use crate::fixture::{Golden, load, max_error, range};
use crate::gguf::{CASES, logits_of, set_unsaid};
use crate::gguf_writing::written;
use hone_model::{GgufAdapter, Model, Trained, adapter};
use hone_tensor::gguf::testing::{Meta, Writer};
use hone_tensor::gguf::{self, GgufFile};
use hone_tensor::{AdapterId, DType, Device};
use std::path::Path;

fn adapted(golden: &Golden) -> Model {
    let device = Device::cpu(2);
    let mut model = load(&golden.dir, &device, None, Trained::Nothing);
    adapter::load(&golden.dir.join("adapter"), &mut model, &device, &mut |_| ()).unwrap();
    model
}

fn write_adapter(model: &Model, path: &Path) -> Result<(), String> {
    let form = GgufAdapter::of(model, AdapterId::default()).map_err(|error| error.to_string())?;
    form.write(&Device::cpu(2), path).map_err(|error| error.to_string())
}

fn case_of(golden: &Golden) -> &str {
    golden.dir.file_name().unwrap().to_str().unwrap()
}

/// Read back, adapters of PEFT compute what they did; a scale that has no form is in `B`.
#[test]
fn adapters_are_written_and_read() {
    let device = Device::cpu(2);
    let (mut exact, mut refused) = (Vec::new(), Vec::new());
    for golden in Golden::all() {
        let case = case_of(&golden).to_owned();
        let model = golden.adapted(&device);
        let path = golden.dir.join("adapter.gguf");
        if let Err(message) = write_adapter(&model, &path) {
            refused.push((case, message));
            continue;
        }
        let mut read = golden.base(&device);
        let config = adapter::load(&path, &mut read, &device, &mut |_| ()).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let Some(gguf::Value::Float(alpha)) = file.get("adapter.lora.alpha") else {
            panic!("{case}")
        };
        assert_eq!((config.alpha, config.use_rslora), (alpha, false), "{case}");
        let [found, expected] = [&read, &model].map(|model| logits_of(model, &golden));
        let off = max_error(&found, &expected) / range(&expected);
        assert!(off < 1e-5, "{case}: {off}");
        if off == 0.0 {
            exact.push(case);
        }
    }
    assert!(exact.len() > 15, "{exact:?}");
    assert!(!refused.is_empty());
    for (case, message) in refused {
        let is_known = ["have no architecture of this model", "has no form in GGUF files"];
        assert!(is_known.iter().any(|known| message.contains(known)), "{case}: {message}");
    }
}

/// `W + alpha / rank · B A` of the files' own numbers, as llama.cpp adds them, is what the file of
/// the merged model has.
#[test]
fn adapters_are_what_is_added_to_the_file_of_a_model() {
    let mut num_adapted = 0;
    for (case, unsaid) in CASES {
        let golden = Golden::load(case);
        set_unsaid(case, &golden.dir, unsaid);
        let model = adapted(&golden);
        let [base, merged, adapter] =
            ["base.gguf", "merged.gguf", "adapter.gguf"].map(|name| golden.dir.join(name));
        let f32 = DType::F32.into();
        if written(&model, &golden.dir, f32, &merged).is_err() {
            continue;
        }
        written(&model.without_adapters(), &golden.dir, f32, &base).unwrap();
        write_adapter(&model, &adapter).unwrap_or_else(|error| panic!("{case}: {error}"));
        let [base, merged, adapter] =
            [base, merged, adapter].map(|path| GgufFile::open(&path).unwrap());
        let Some(gguf::Value::Float(alpha)) = adapter.get("adapter.lora.alpha") else { panic!() };
        for name in base.names() {
            let [before, after] = [&base, &merged].map(|file| file.tensor(name).unwrap());
            let (mut before, after) = (before.to_vec_f32(), after.to_vec_f32());
            let of = |end: &str| adapter.tensor(&format!("{name}{end}"));
            if let (Some(a), Some(b)) = (of(".lora_a"), of(".lora_b")) {
                let dims = |shape: &[usize]| [shape[shape.len() - 2], shape[shape.len() - 1]];
                let ([rank, k], [n, _]) = (dims(a.shape()), dims(b.shape()));
                add(&mut before, [n, rank, k], alpha, &a.to_vec_f32(), &b.to_vec_f32());
                num_adapted += 1;
            }
            let off = max_error(&before, &after) / range(&after).max(1e-3);
            assert!(off < 1e-5, "{case} {name}: {off}");
        }
    }
    assert!(num_adapted > 200, "{num_adapted}");
}

/// Adds `alpha / rank · B A` to each of the matrices `[n, k]` in `weights`.
fn add(weights: &mut [f32], [n, rank, k]: [usize; 3], alpha: f64, a: &[f32], b: &[f32]) {
    for (i, weight) in weights.iter_mut().enumerate() {
        let (matrix, row, col) = (i / (n * k), i / k % n, i % k);
        let (a, b) = (&a[matrix * rank * k..], &b[matrix * n * rank..]);
        let sum: f64 =
            (0..rank).map(|r| f64::from(b[row * rank + r]) * f64::from(a[r * k + col])).sum();
        *weight += (alpha / rank as f64 * sum) as f32;
    }
}

/// One number stands for most scales; those of single layers are in `B`.
#[test]
fn scales_of_single_layers_are_in_their_matrices() {
    let device = Device::cpu(2);
    let golden = Golden::load("tied_gqa");
    let mut model = golden.adapted(&device);
    for (name, lora) in model.decoder.adapters_mut() {
        lora.scale *= if name.contains("v_proj") { 1.7 } else { 1.0 };
    }
    let path = golden.dir.join("adapter.gguf");
    write_adapter(&model, &path).unwrap();
    let mut read = golden.base(&device);
    let config = adapter::load(&path, &mut read, &device, &mut |_| ()).unwrap();
    assert_eq!((config.rank, config.alpha), (4, 8.0));
    let mut changed = 0;
    for ((name, found), (_, expected)) in
        read.decoder.adapters_mut().zip(model.decoder.adapters_mut())
    {
        assert_eq!(found.scale, 2.0, "{name}");
        changed += usize::from(found.scale != expected.scale);
    }
    assert_eq!(changed, 2);
    let [found, expected] = [&read, &model].map(|model| logits_of(model, &golden));
    assert!(max_error(&found, &expected) / range(&expected) < 1e-6);
}

/// A file with an adapter of the first block's value projection in `tied_gqa`, and its shapes.
fn small() -> Writer {
    let golden = Golden::load("tied_gqa");
    let model = golden.base(&Device::cpu(1));
    let (n, k) = model
        .decoder
        .projections()
        .find(|(name, _)| name.ends_with("layers.0.self_attn.v_proj"))
        .map(|(_, of)| (of.out_features(), of.in_features()))
        .unwrap();
    let mut writer = Writer::default();
    writer
        .set("general.architecture", "llama")
        .set("general.type", "adapter")
        .set("adapter.type", "lora")
        .set("adapter.lora.alpha", Meta::F32(3.0))
        .floats("blk.0.attn_v.weight.lora_a", &[2, k], &vec![0.5; 2 * k])
        .floats("blk.0.attn_v.weight.lora_b", &[n, 2], &vec![0.25; 2 * n]);
    writer
}

fn loaded(writer: &Writer) -> Result<(Model, f64), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    let device = Device::cpu(1);
    let mut model = Golden::load("tied_gqa").base(&device);
    let config = adapter::load(&path, &mut model, &device, &mut |_| ());
    let prefix = format!("{}: ", path.display());
    match config {
        Ok(config) => Ok((model, config.alpha)),
        Err(error) => Err(error.to_string().replace(&prefix, "")),
    }
}

/// Without `alpha`, or where it is 0, pairs are added as they are.
#[test]
fn scales_are_those_of_llama_cpp() {
    for (alpha, says, scale) in [(Some(3.0), 3.0, 1.5), (Some(0.0), 2.0, 1.0), (None, 2.0, 1.0)] {
        let mut writer = small();
        match alpha {
            Some(alpha) => set(&mut writer, "adapter.lora.alpha", Meta::F32(alpha)),
            None => writer.keys.retain(|(key, _)| key != "adapter.lora.alpha"),
        }
        let (mut model, found) = loaded(&writer).unwrap();
        let scales: Vec<f32> = model.decoder.adapters_mut().map(|(_, lora)| lora.scale).collect();
        assert_eq!((found, &scales[..]), (says, &[scale][..]));
    }
}

type Change = fn(&mut Writer);

fn set(writer: &mut Writer, key: &str, value: Meta) {
    writer.set(key, value);
}

#[test]
fn unusable_adapters() {
    const OTHER: &str = "The adapter was trained for another model";
    let cases: [(Change, &str); 10] = [
        (
            |w| set(w, "general.type", "model".into()),
            "`general.type` is not `adapter`, so this file holds none: give the adapter's own file",
        ),
        (
            |w| set(w, "general.architecture", "qwen2".into()),
            "`general.architecture` is `qwen2`, and the model's is llama: the adapter was trained",
        ),
        (|w| set(w, "adapter.type", "ia3".into()), "`adapter.type` is `ia3`; only `lora` is"),
        (
            |w| set(w, "adapter.alora.invocation_tokens", Meta::I32s(vec![1])),
            "`adapter.alora.invocation_tokens` is set, but Hone does not know this key",
        ),
        (
            |w| drop(w.tensors.remove(1)),
            "tensor `blk.0.attn_v.weight.lora_b` is missing, although its counterpart is present",
        ),
        (
            |w| drop(w.tensors.remove(0)),
            "tensor `blk.0.attn_v.weight.lora_a` is missing, although its counterpart is present",
        ),
        (|w| w.tensors.clear(), "it contains no adapter"),
        (|w| w.tensors[1].name = "blk.0.attn_k.weight.lora_b".into(), " is missing, although"),
        (
            |w| {
                w.floats("token_embd.weight.lora_a", &[1], &[0.0]);
            },
            "tensor `token_embd.weight.lora_a`: the adapter changes a head, an embedding or a norm",
        ),
        (
            |w| {
                w.floats("blk.9.attn_v.weight.lora_a", &[1], &[0.0]);
            },
            "tensor `blk.9.attn_v.weight.lora_a` is not part of a LoRA adapter on a linear layer",
        ),
    ];
    for (change, says) in cases {
        let mut writer = small();
        change(&mut writer);
        let found = loaded(&writer).map(|_| ()).expect_err(says);
        assert!(found.contains(says), "{found:?} is not {says:?}");
    }
    let mut writer = small();
    let b = &mut writer.tensors[1];
    b.shape[0] -= 1;
    b.bytes.truncate(b.bytes.len() - 8);
    let found = loaded(&writer).map(|_| ()).unwrap_err();
    assert!(found.starts_with("tensor `blk.0.attn_v.weight.lora_b` has shape ["), "{found}");
    assert!(found.ends_with(OTHER), "{found}");
    assert!(loaded(&small()).is_ok());
}

/// Gate and up in one tensor, as newer files have experts, share an `A`.
#[test]
fn adapters_of_gate_and_up_together() {
    let device = Device::cpu(1);
    let golden = Golden::load("qwen3_moe");
    let mut base = golden.base(&device);
    let config = base.decoder.config.clone();
    let layer = config.layers.iter().position(|layer| layer.mlp.experts.is_some()).unwrap();
    let mlp = &config.layers[layer].mlp;
    let num_experts = mlp.experts.as_ref().unwrap().router.num_experts;
    let (i, h) = (mlp.intermediate_size, config.hidden_size);
    let counted = |len: usize| -> Vec<f32> { (0..len).map(|n| n as f32).collect() };
    let name = format!("blk.{layer}.ffn_gate_up_exps.weight");
    let mut writer = Writer::default();
    writer
        .set("general.architecture", "qwen3moe")
        .set("general.type", "adapter")
        .set("adapter.type", "lora")
        .floats(&format!("{name}.lora_a"), &[num_experts, 2, h], &counted(num_experts * 2 * h))
        .floats(
            &format!("{name}.lora_b"),
            &[num_experts, 2 * i, 2],
            &counted(num_experts * 2 * i * 2),
        );
    let path = golden.dir.join("adapter.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    adapter::load(&path, &mut base, &device, &mut |_| ()).unwrap();
    let loras: Vec<_> = base.decoder.adapters_mut().map(|(n, l)| (n, l.clone())).collect();
    assert_eq!(loras.len(), 2 * num_experts);
    for (name, lora) in loras {
        let parts: Vec<&str> = name.rsplit('.').collect();
        let (expert, is_up): (usize, _) = (parts[1].parse().unwrap(), parts[0] == "up_proj");
        let [a, b] = [lora.a, lora.b].map(|of| base.params.value(of).to_vec_f32());
        assert_eq!((a[0], a.len()), ((expert * 2 * h) as f32, 2 * h), "{name}");
        let first = (2 * expert + usize::from(is_up)) * i * 2;
        assert_eq!((b[0], b.len()), (first as f32, 2 * i), "{name}");
    }
    // More experts than the model has.
    let mut more = Writer { keys: writer.keys.clone(), ..Writer::default() };
    let of = num_experts + 1;
    more.floats(&format!("{name}.lora_a"), &[of, 2, h], &counted(of * 2 * h));
    more.floats(&format!("{name}.lora_b"), &[of, 2 * i, 2], &counted(of * 2 * i * 2));
    std::fs::write(&path, more.bytes()).unwrap();
    let mut base = golden.base(&device);
    let error = adapter::load(&path, &mut base, &device, &mut |_| ()).map(|_| ()).unwrap_err();
    let says = format!("for each of {num_experts} experts. The adapter was trained for another");
    assert!(error.to_string().contains(&says), "{error}");
}
