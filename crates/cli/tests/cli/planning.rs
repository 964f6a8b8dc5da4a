//! Plans keep to the budget, and where nothing fits they say what would.

use crate::sandbox::tiny_model::rows;
use crate::sandbox::{Ended, Scene, ended};
use serde_json::{Value, json};
use std::path::Path;

/// What the program itself may take more in one start than in another.
const NOISE: u64 = 3 << 20;

/// `hone plan --json`: how it ended, and the plan.
fn plan(scene: &Scene, settings: &[&str]) -> (Ended, Value) {
    let run = ended(&mut scene.hone(&[&["plan", "run.toml", "--json"], settings].concat()));
    let plan = serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{}", run.stderr));
    (run, plan)
}

fn bytes(plan: &Value, key: &str) -> u64 {
    plan[key].as_u64().unwrap()
}

/// Bytes that training takes, whatever preparing the data took before.
fn needed(plan: &Value) -> u64 {
    let memory = plan["memory"].as_object().unwrap();
    let sum: u64 = memory.values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(sum, bytes(plan, "peak_bytes"), "{plan}");
    sum - memory["preparation"].as_u64().unwrap()
}

/// A run whose largest micro-batch takes more than a hundred megabytes.
fn with_large_steps() -> Scene {
    let scene = Scene::full();
    scene.write("train.jsonl", &rows(8_000));
    let text = std::fs::read_to_string(scene.path("run.toml")).unwrap();
    let text = text.replace("micro_batch_tokens = 32\n", "");
    scene.write("run.toml", &text.replace("batch_tokens = 128", "batch_tokens = 65536"));
    scene
}

/// The whole step at once, which need not be the fastest.
const LARGEST: [&str; 2] = ["budget.micro_batch_tokens=65536", "budget.recompute=none"];

#[test]
fn a_smaller_budget_takes_a_leaner_policy() {
    let scene = with_large_steps();
    let mut last = plan(&scene, &LARGEST).1;
    assert!(bytes(&last, "arena_bytes") > 4 * NOISE, "{last}");
    while bytes(&last, "arena_bytes") > 4 * NOISE {
        // Everything stays but half of the step memory.
        let budget = needed(&last) - bytes(&last, "arena_bytes") / 2;
        let (run, leaner) = plan(&scene, &[&format!("budget.memory={budget}")]);
        run.says(0, &[]);
        assert!(leaner["fits"] == true && needed(&leaner) <= budget, "{leaner}");
        assert!(bytes(&leaner, "arena_bytes") < bytes(&last, "arena_bytes"), "{leaner}");
        let smaller = leaner["micro_batch_tokens"].as_u64() < last["micro_batch_tokens"].as_u64();
        let recomputes =
            (&last["recompute"], &leaner["recompute"]) == (&"none".into(), &"block".into());
        assert!(smaller || recomputes, "{leaner}");
        last = leaner;
    }
}

#[test]
fn a_policy_that_the_run_file_pins_is_named_as_the_hindrance() {
    let scene = with_large_steps();
    let (_, large) = plan(&scene, &LARGEST);
    let memory = format!("budget.memory={}", needed(&large) - bytes(&large, "arena_bytes") / 2);
    let (refused, _) = plan(&scene, &[LARGEST[0], LARGEST[1], &memory]);
    refused.says(2, &["does not fit", "leave budget.micro_batch_tokens and budget.recompute out"]);
    plan(&scene, &[&memory]).0.says(0, &[]);
}

/// All weights of a wide model do not fit; an adapter does, or an adapter on bf16 weights,
/// or on bytes.
#[test]
fn suggestions_build_on_each_other() {
    let scene = Scene::full();
    widen(&scene.path("model"));
    let adapter = ["adapter.kind=lora", "adapter.rank=16", "model.base_precision=bf16"];
    let full = needed(&plan(&scene, &["model.base_precision=f32"]).1);
    let on_f32 = needed(&plan(&scene, &[adapter[0], adapter[1], "model.base_precision=f32"]).1);
    let on_bf16 = needed(&plan(&scene, &adapter).1);
    let on_bytes = [adapter[0], adapter[1], "model.base_precision=int8"];
    let on_int8 = needed(&plan(&scene, &on_bytes).1);
    assert!(on_int8 + 4 * NOISE < on_bf16 && on_bf16 + 4 * NOISE < on_f32);
    assert!(on_f32 + 4 * NOISE < full);
    let cases = [
        (on_f32, 1, "[adapter]", &adapter[..2]),
        (on_bf16, 2, "\"bf16\"", &adapter),
        (on_int8, 2, "\"int8\"", &on_bytes),
    ];
    for (fitting, num_suggestions, last, changed) in cases {
        let memory = format!("budget.memory={}", fitting + NOISE);
        let (refused, plan_of_it) = plan(&scene, &["model.base_precision=f32", &memory]);
        refused.says(2, &["does not fit", "[adapter]"]);
        let suggestions = plan_of_it["suggestions"].as_array().unwrap();
        assert_eq!(suggestions.len(), num_suggestions, "{suggestions:?}");
        assert!(
            suggestions[num_suggestions - 1].as_str().unwrap().contains(last),
            "{suggestions:?}"
        );
        plan(&scene, &[changed, &[&memory]].concat()).0.says(0, &[]);
    }
}

/// Samples are answered before the step memory is there and after it is gone: only what they take
/// beyond it counts.
#[test]
fn samples_are_planned() {
    let scene = Scene::new();
    widen(&scene.path("model"));
    let of = |plan: &Value| plan["memory"]["samples"].as_u64().unwrap_or(0);
    let with = |samples| plan(&scene, &["budget.recompute=block", samples]).1;
    let [none, few, many] = ["report.samples=0", "report.samples=4", "report.samples=9"].map(with);
    assert!(of(&none) == 0 && of(&few) > 0, "{none}, {few}");
    assert!(of(&many) > of(&few) + NOISE, "{few}, {many}");
    let grown = needed(&many).abs_diff(needed(&none) + of(&many));
    assert!(grown < NOISE, "{many}, without samples {none}");
    // Where they alone are too much, leaving them out is what is suggested.
    let memory = format!("budget.memory={}", needed(&none) + NOISE);
    let (refused, plan_of_it) = plan(&scene, &["report.samples=9", &memory]);
    refused.says(2, &["report.samples = 0 (needs "]);
    assert_eq!(plan_of_it["suggestions"].as_array().unwrap().len(), 1, "{plan_of_it}");
    plan(&scene, &["report.samples=0", &memory]).0.says(0, &[]);
    // A resumed run too may leave them out.
    let begun = ["budget.recompute=block", "report.samples=0"];
    let killed = ended(scene.train(&begun).env("HONE_FAILPOINT", "file.renamed:2"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let resumed = ended(&mut scene.train(&[begun[0], "report.samples=9", &memory, "--resume"]));
    resumed.says(2, &["report.samples = 0 (needs ", "a resumed run keeps its micro-batches"]);
}

/// What is suggested to a run of few steps can be done, whatever else the run file asks for.
#[test]
fn a_suggested_batch_is_accepted() {
    let scene = Scene::new();
    let text = std::fs::read_to_string(scene.path("run.toml")).unwrap();
    let text = text.replace("micro_batch_tokens = 32\n", "").replace("max_seq_len = 32\n", "");
    scene.write("run.toml", &text);
    let rated = r#"{"prompt": "a b c d e", "completion": "f", "label": true}"#;
    scene.write("rated.jsonl", &format!("{rated}\n").repeat(60));
    let settings = ["train.num_epochs=1", "train.batch_tokens=4096"];
    let rated = ["data.train=rated.jsonl", "data.eval=[]", "data.max_seq_len=64"];
    for (more, suggestion) in [
        (&["data.max_seq_len=64", "budget.micro_batch_tokens=128"][..], "Set it to 128 for "),
        (&["data.max_seq_len=64"], "Set it to 16 and data.max_seq_len to 16 for "),
        (&[], "Set it to 16 for "),
        (&rated, "Set it to 8 and data.max_seq_len to 8 for "),
        // Where a prompt meets the answer of another row.
        (
            &[&rated[..], &["objective.kind=kto"]].concat(),
            "Set it to 16 and data.max_seq_len to 16 for ",
        ),
    ] {
        let few = plan(&scene, &[more, &settings].concat()).0;
        few.says(0, &[suggestion]);
        let promised = few.stderr.split(suggestion).nth(1).unwrap().split(' ').next().unwrap();
        let number = |after: &str| {
            let text = suggestion.split(after).nth(1)?;
            text.split(' ').next().map(str::to_owned)
        };
        let batch = format!("train.batch_tokens={}", number("Set it to ").unwrap());
        let len = number("max_seq_len to ").map(|len| format!("data.max_seq_len={len}"));
        let is_kept = |setting: &&str| len.is_none() || !setting.starts_with("data.max_seq_len");
        let changed = [settings[0], &batch].into_iter().chain(len.as_deref());
        let changed: Vec<&str> = more.iter().copied().filter(is_kept).chain(changed).collect();
        let (changed, plan) = plan(&scene, &changed);
        changed.says(0, &[]);
        assert_eq!(plan["num_steps"].to_string(), promised, "{suggestion}");
    }
    // A smaller batch would make as many steps.
    scene.write("train.jsonl", &rows(4));
    let few = plan(&scene, &["train.num_epochs=1", "train.batch_tokens=17"]).0;
    few.says(0, &["only 3 steps", "is 17. Raise train.num_epochs"]);
}

/// All that a run does is in its time, and the short step at an epoch's end is no full one.
#[test]
fn time_is_of_all_that_a_run_does() {
    let scene = Scene::new();
    let with = |settings: &[&str]| plan(&scene, settings).1;
    let seconds = |plan: &Value, part: &str| plan[part].as_f64().unwrap();
    let parts = ["training_seconds", "evaluation_seconds", "sample_seconds"];
    // Four evaluations: before, after, and after steps 4 and 8.
    for (settings, evaluations, is_there) in [
        (&[][..], 4, [true, true, true]),
        (&["train.eval_every_steps=0"], 2, [true, true, true]),
        (&["data.eval=[]"], 0, [true, false, true]),
        (&["report.samples=0"], 4, [true, true, false]),
    ] {
        let plan = with(settings);
        let sum: f64 = parts.iter().map(|part| seconds(&plan, part)).sum();
        assert!((sum - seconds(&plan, "total_seconds")).abs() < 1e-9, "{plan}");
        assert_eq!(parts.map(|part| seconds(&plan, part) > 0.0), is_there, "{settings:?}: {plan}");
        assert_eq!(plan["num_evaluations"], evaluations, "{settings:?}");
    }
    let full_steps = |max_steps: &str| {
        let plan = with(&[max_steps]);
        seconds(&plan, "training_seconds") / seconds(&plan, "step_seconds")
    };
    assert!((full_steps("train.max_steps=4") - 4.0).abs() < 1e-9);
    let epoch = full_steps("train.max_steps=5");
    assert!(epoch > 4.0 && epoch < 5.0, "{epoch}");
    let shown = ended(&mut scene.hone(&["plan", "run.toml"])).stdout;
    let line = shown.lines().find(|line| line.starts_with("time ")).unwrap();
    for part in [": 12 steps ", ", 4 evaluations ", ", samples "] {
        assert!(line.contains(part), "{line}");
    }
    let reaches_all = |line: &str| {
        line.starts_with("targets  attention (2 blocks) ")
            && line.ends_with("  q_proj, k_proj, v_proj, o_proj")
    };
    assert!(shown.lines().any(reaches_all), "{shown}");
    let some = ["plan", "run.toml", "adapter.target_modules=['v_proj', '*.0.mlp.up_proj']"];
    let shown = ended(&mut scene.hone(&some)).stdout;
    for reach in
        ["v_proj; not q_proj, k_proj, o_proj\n", "up_proj (1 of 2); not gate_proj, down_proj\n"]
    {
        assert!(shown.contains(reach), "{shown}");
    }
}

#[test]
fn a_warm_up_of_few_steps_is_noted() {
    let scene = Scene::new();
    let note = "the first of 3 steps is warm-up: its learning rate is 0";
    for (settings, is_noted) in [
        (&["train.max_steps=3"][..], true),
        (&["train.max_steps=3", "train.warmup_steps=0"], false),
        (&["train.max_steps=3", "train.warmup_steps=1"], false),
        (&[], false),
    ] {
        let plan = ended(&mut scene.hone(&[&["plan", "run.toml"], settings].concat()));
        assert_eq!(plan.stderr.contains(note), is_noted, "{settings:?}: {}", plan.stderr);
        assert_eq!(plan.stderr.contains("train.warmup_steps = 0"), is_noted, "{}", plan.stderr);
    }
}

/// Settings that change nothing with this data are noted, and only there.
#[test]
fn settings_without_effect_are_noted() {
    let scene = Scene::new();
    scene.write("book.txt", "w3 w4 w5 w6 w7");
    let append_eos = "note: data.append_eos = false changes nothing";
    let documents = "data.train=book.txt";
    let eval_every = "note: train.eval_every_steps changes nothing";
    for (settings, note, is_noted) in [
        (&["data.append_eos=false"][..], append_eos, true),
        (&["data.append_eos=false", documents], append_eos, false),
        (&["data.append_eos=false", "data.eval=book.txt"], append_eos, false),
        (&[documents], append_eos, false),
        (&["data.eval=[]"], eval_every, true),
        (&["data.eval=[]", "train.eval_every_steps=0"], eval_every, false),
        (&[], eval_every, false),
    ] {
        let plan = ended(&mut scene.hone(&[&["plan", "run.toml"], settings].concat()));
        plan.says(0, &[]);
        assert_eq!(plan.stderr.contains(note), is_noted, "{settings:?}: {}", plan.stderr);
    }
    let note = "note: --append-eos changes nothing";
    for (file, flags, is_noted) in [
        ("eval.jsonl", &["--append-eos"][..], true),
        ("book.txt", &["--append-eos"], false),
        ("eval.jsonl", &[], false),
    ] {
        let eval = ["eval", "model", "--data", file];
        let eval = ended(&mut scene.hone(&[&eval[..], flags].concat()));
        eval.says(0, &[]);
        assert_eq!(eval.stderr.contains(note), is_noted, "{file} {flags:?}: {}", eval.stderr);
    }
}

/// Gives the model hidden states of 1024; its weights are zeros that take no disk.
fn widen(model: &Path) {
    let wide = |n: u64| match n {
        24 => 1024,
        12 => 512,
        11 => 2048,
        n => n,
    };
    let config = model.join("config.json");
    let mut facts: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    for key in ["hidden_size", "intermediate_size"] {
        facts[key] = wide(facts[key].as_u64().unwrap()).into();
    }
    std::fs::write(config, facts.to_string()).unwrap();
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut offset = 0;
    for (_, tensor) in header.as_object_mut().unwrap().iter_mut().filter(|t| t.0 != "__metadata__")
    {
        let shape = tensor["shape"].as_array().unwrap().iter().map(|n| wide(n.as_u64().unwrap()));
        let shape: Vec<u64> = shape.collect();
        let end = offset + 4 * shape.iter().product::<u64>();
        *tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        offset = end;
    }
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    std::fs::write(&file, &bytes).unwrap();
    let sparse = std::fs::File::options().write(true).open(&file).unwrap();
    sparse.set_len(bytes.len() as u64 + offset).unwrap();
}

/// What a GPU that is not here cannot do, or has too little budget for, is said with what to
/// choose.
#[test]
fn plans_for_a_gpu_say_what_to_change() {
    let scene = Scene::new();
    let on = |device: &str, settings: &[&str]| {
        let plan = ["plan", "run.toml", "--device", device];
        ended(&mut scene.hone(&[&plan[..], settings].concat()))
    };
    on("h100", &[]).says(2, &["no such GPU", "did you mean h100-80g?"]);
    on("t4", &["model.compute=bf16"]).says(2, &["no products in bf16", "\"f16\" or \"f32\""]);
    on("a100-40g", &["model.compute=fp8"]).says(2, &["no products in fp8", "needed: 8.9"]);
    on("t4", &["model.compute=int8"]).says(2, &["activations in bf16", "needed: 8.0"]);
    on("a100-40g", &["model.compute=int8"]).says(0, &[]);
    let tight = on("l4", &["budget.memory=1MiB"]);
    tight.says(2, &["budget.memory = \"", "or more", "are the GPU's to use"]);
}
