//! Models in GGUF files, trained on where they lie: every verb takes one.

#[path = "../../../../model/tests/model/gguf_files.rs"]
mod gguf_files;

use super::{Scene, json, succeeds};
use crate::sandbox::{ended, entries};
use gguf_files::{from_directory, letters};
use hone_tensor::gguf::{self, GgufFile};
use serde_json::Value;

/// Rows of letters are longer than those of words.
const LONGER: [&str; 2] = ["data.max_seq_len=64", "budget.micro_batch_tokens=64"];

/// `model.gguf` is the scene's model, with a tokenizer of letters.
fn scene() -> Scene {
    let scene = Scene::new();
    let mut writer = from_directory(&scene.path("model"));
    letters(&mut writer, 53);
    std::fs::write(scene.path("model.gguf"), writer.bytes()).unwrap();
    std::fs::remove_dir_all(scene.path("model")).unwrap();
    scene
}

fn loss(scene: &Scene, model: &str, more: &[&str]) -> f64 {
    let eval = ["eval", model, "--data", "eval.jsonl", "--compute", "f32", "--json"];
    json(&mut scene.hone(&[&eval[..], more].concat()))["loss"].as_f64().unwrap()
}

fn losses(scene: &Scene) -> Vec<Value> {
    scene.lines("metrics.jsonl").iter().map(|line| line["loss"].clone()).collect()
}

/// A run on the file is the run on the directory that it is exported to, bit for bit. The file
/// stays as it was, is what the run's inputs name, and what is exported computes what was trained.
#[test]
fn a_file_is_trained_on_and_exported() {
    let scene = scene();
    let before = std::fs::read(scene.path("model.gguf")).unwrap();
    let plan =
        json(&mut scene.hone(
            &[&["plan", "run.toml", "model.path=model.gguf", "--json"][..], &LONGER].concat(),
        ));
    assert_eq!(plan["fits"], true);
    succeeds(&mut scene.train(&[&["model.path=model.gguf"][..], &LONGER].concat()));
    assert_eq!(std::fs::read(scene.path("model.gguf")).unwrap(), before);
    let manifest = std::fs::read(scene.path("run/manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let inputs = manifest["inputs"]["model"].as_array().unwrap();
    let inputs: Vec<&str> = inputs.iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(inputs, ["model.gguf"]);
    let losses_on_file = losses(&scene);
    let of_file = loss(&scene, "model.gguf", &[]);
    let tuned = loss(&scene, "model.gguf", &["--adapter", "run/adapter"]);
    assert!(tuned < of_file, "{tuned} {of_file}");

    succeeds(&mut scene.hone(&["export", "model.gguf", "--out", "same"]));
    let files = [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(entries(&scene.path("same")), files);
    assert_eq!(loss(&scene, "same", &[]), of_file);
    let export = ["export", "model.gguf", "--adapter", "run/adapter", "--out", "merged"];
    succeeds(&mut scene.hone(&export));
    assert!((loss(&scene, "merged", &[]) - tuned).abs() < 1e-5);
    let answers = ["model.gguf", "same"].map(|model| {
        let generate = ["generate", model, "--prompt", "w4 w", "--max-new-tokens", "6", "--json"];
        json(&mut scene.hone(&generate))["text"].clone()
    });
    assert_eq!(answers[0], answers[1]);

    std::fs::remove_dir_all(scene.run_dir()).unwrap();
    succeeds(&mut scene.train(&[&["model.path=same"][..], &LONGER].concat()));
    assert_eq!(losses(&scene), losses_on_file);
}

/// What is written as a GGUF file answers as the model does, from wherever it came, and is trained
/// on like any other; an adapter is merged.
#[test]
fn models_are_written_as_files() {
    let scene = scene();
    let before = loss(&scene, "model.gguf", &[]);
    succeeds(&mut scene.hone(&["export", "model.gguf", "--out", "model"]));
    for (from, to) in [("model.gguf", "a.gguf"), ("model", "b.gguf")] {
        succeeds(&mut scene.hone(&["export", from, "--format", "gguf", "--out", to]));
        assert_eq!(loss(&scene, to, &[]), before);
    }
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| std::fs::read(scene.path(name)).unwrap());
    assert!(a == b, "the same file from the file and from the directory");

    succeeds(&mut scene.train(&[&["model.path=a.gguf"][..], &LONGER].concat()));
    let tuned = loss(&scene, "a.gguf", &["--adapter", "run/adapter"]);
    let export = ["export", "a.gguf", "--adapter", "run/adapter", "--format=gguf", "--out=c.gguf"];
    succeeds(&mut scene.hone(&export));
    assert!((loss(&scene, "c.gguf", &[]) - tuned).abs() < 1e-5);
    assert!(entries(&scene.path(".")).iter().all(|name| !name.contains("partial")));
}

/// Further templates go along by their names, and files of their own count.
#[test]
fn all_templates_are_written() {
    let scene = scene();
    succeeds(&mut scene.hone(&["export", "model.gguf", "--out", "model"]));
    scene.write("model/chat_template.jinja", "{{ messages[0]['content'] }}");
    std::fs::create_dir(scene.path("model/additional_chat_templates")).unwrap();
    let tool_use = "{{ tools | length }} {{ messages[0]['content'] }}";
    scene.write("model/additional_chat_templates/tool_use.jinja", tool_use);
    scene.write(
        "model/README.md",
        "---\nlicense: apache-2.0\nbase_model: org/name\n---\n`a`, written by Hone 1.\n",
    );
    succeeds(&mut scene.hone(&["export", "model", "--format", "gguf", "--out", "a.gguf"]));
    let file = GgufFile::open(&scene.path("a.gguf")).unwrap();
    let text = |key: &str| match file.get(key) {
        Some(gguf::Value::Text(text)) => text.to_owned(),
        other => panic!("{key}: {other:?}"),
    };
    assert_eq!(text("tokenizer.chat_template"), "{{ messages[0]['content'] }}");
    assert_eq!(text("tokenizer.chat_template.tool_use"), tool_use);
    let Some(gguf::Value::Array(names)) = file.get("tokenizer.chat_templates") else { panic!() };
    assert!(names.iter().eq([Ok(gguf::Value::Text("tool_use"))]));
    assert_eq!(text("general.license"), "apache-2.0");
    assert_eq!(text("general.base_model.0.organization"), "org");
    let card = std::fs::read_to_string(scene.path("a.md")).unwrap();
    let says = "---\nbase_model: org/name\nbase_model_relation: quantized\nlicense: apache-2.0\n";
    assert!(card.starts_with(says), "{card}");
    succeeds(&mut scene.hone(&["export", "a.gguf", "--out", "again"]));
    let card = std::fs::read_to_string(scene.path("again/README.md")).unwrap();
    assert!(card.starts_with("---\nbase_model: org/name\nlicense: apache-2.0\n"), "{card}");
}

/// An adapter by itself, as a file and as PEFT has it, is taken wherever one is named; it computes
/// what it did. A model card says where it comes from.
#[test]
fn adapters_are_written_by_themselves() {
    let scene = scene();
    succeeds(&mut scene.train(&[&["model.path=model.gguf"][..], &LONGER].concat()));
    let tuned = loss(&scene, "model.gguf", &["--adapter", "run/adapter"]);
    let export = |more: &[&str]| -> Vec<String> {
        let all = ["export", "model.gguf", "--adapter-only"];
        all.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    };
    let hone = |arguments: Vec<String>| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        scene.hone(&arguments)
    };
    let of_run = ["--adapter", "run/adapter"];
    let to_file = ["--format", "gguf", "--out", "adapter.gguf"];
    let written = json(&mut hone(export(&[&of_run[..], &to_file, &["--json"]].concat())));
    assert_eq!((&written["logits_error"], &written["dtype"]), (&0.0.into(), &"f32".into()));
    let of_file = ["--adapter", "adapter.gguf"];
    assert_eq!(loss(&scene, "model.gguf", &of_file), tuned);
    succeeds(&mut hone(export(&[&of_file[..], &["--out", "adapter"]].concat())));
    assert_eq!(
        entries(&scene.path("adapter")),
        ["README.md", "adapter_config.json", "adapter_model.safetensors", "base.json"]
    );
    assert_eq!(loss(&scene, "model.gguf", &["--adapter", "adapter"]), tuned);
    // The digest went through the file, and is of the weights and not of the layout.
    let [own, through] =
        ["run/adapter", "adapter"].map(|dir| std::fs::read(scene.path(dir).join("base.json")));
    assert!(own.unwrap() == through.unwrap());
    succeeds(&mut scene.hone(&["export", "model.gguf", "--out", "same"]));
    assert_eq!(loss(&scene, "same", &of_file), tuned);
    let merge = ["export", "same", "--adapter", "adapter.gguf", "--out", "merged"];
    succeeds(&mut scene.hone(&merge));
    let other = ["eval", "merged", "--adapter", "adapter.gguf", "--data", "eval.jsonl"];
    ended(&mut scene.hone(&other)).says(2, &["adapter.gguf: was trained on model.gguf, "]);
    let card = std::fs::read_to_string(scene.path("adapter.md")).unwrap();
    for says in ["library_name: gguf", "# adapter\n", "| Trained on | train.jsonl, SHA-256 `", "KL"]
    {
        assert!(card.contains(says), "{says:?} is not in:\n{card}");
    }
    let again = ["model.path=model.gguf", "output.dir=run2", "adapter.init_from=adapter.gguf"];
    succeeds(&mut scene.train(&[&again[..], &LONGER].concat()));
    let untuned = loss(&scene, "model.gguf", &[]);
    assert!(loss(&scene, "model.gguf", &["--adapter", "run2/adapter"]) < untuned);

    ended(&mut hone(export(&["--out", "a.gguf", "--format", "gguf"])))
        .says(2, &["--adapter-only: there is no adapter; name one with --adapter"]);
    ended(&mut hone(export(&[&of_run[..], &["--dtype", "bf16", "--out", "x"]].concat())))
        .says(2, &["--dtype bf16: adapters are written in f32"]);
    ended(&mut hone(export(&[&of_run[..], &to_file].concat())))
        .says(2, &["--out adapter.gguf already exists"]);
    std::fs::remove_file(scene.path("adapter.gguf")).unwrap();
    ended(&mut hone(export(&[&of_run[..], &to_file].concat())))
        .says(2, &["--out adapter.gguf: its model card would be adapter.md, which already exists"]);
    std::fs::rename(scene.path("adapter.md"), scene.path("other.md")).unwrap();
    succeeds(&mut hone(export(&[&of_run[..], &to_file].concat())));
    ended(&mut scene.hone(&["eval", "adapter.gguf", "--data", "eval.jsonl"]))
        .says(2, &["adapter.gguf", "`general.type` is `adapter`", "with --adapter"]);
    ended(&mut scene.hone(&[
        "eval",
        "model.gguf",
        "--data",
        "eval.jsonl",
        "--adapter",
        "model.gguf",
    ]))
    .says(2, &["model.gguf", "`general.type` is not `adapter`"]);
}

/// All weights of a file can be trained; what is written is a directory.
#[test]
fn all_weights_of_a_file_are_trained() {
    let scene = scene();
    let all = Scene::full();
    for name in ["model.gguf", "train.jsonl", "eval.jsonl"] {
        std::fs::copy(scene.path(name), all.path(name)).unwrap();
    }
    succeeds(
        &mut all.train(&[&["model.path=model.gguf", "train.max_steps=4"][..], &LONGER].concat()),
    );
    assert!(loss(&all, "run/model", &[]) < loss(&all, "model.gguf", &[]));
}

#[test]
fn files_that_cannot_be_used_are_refused_by_name() {
    let scene = scene();
    let mute = from_directory(Scene::new().path("model").as_path());
    std::fs::write(scene.path("mute.gguf"), mute.bytes()).unwrap();
    let train = |model: &str| ended(&mut scene.train(&[&format!("model.path={model}")]));
    train("mute.gguf").says(2, &["mute.gguf: holds no tokenizer", "converted with its tokenizer"]);
    train("gone.gguf").says(2, &["model file `gone.gguf` does not exist"]);
    let bytes = std::fs::read(scene.path("model.gguf")).unwrap();
    std::fs::write(scene.path("short.gguf"), &bytes[..bytes.len() - 99]).unwrap();
    train("short.gguf").says(2, &["short.gguf: not a whole GGUF file", "fetch it again"]);
}

/// A path that looks like a hub's name, and is gone since, is not said to be there.
#[test]
fn a_path_is_no_name_of_the_hub() {
    let scene = Scene::new();
    std::fs::create_dir(scene.path("models")).unwrap();
    std::fs::rename(scene.path("model"), scene.path("models/mine")).unwrap();
    succeeds(&mut scene.train(&["model.path=models/mine", "train.max_steps=1"]));
    std::fs::rename(scene.path("models"), scene.path("moved")).unwrap();
    let export = ["export", "moved/mine", "--adapter", "run/adapter", "--out", "merged"];
    succeeds(&mut scene.hone(&export));
    let card = std::fs::read_to_string(scene.path("merged/README.md")).unwrap();
    assert!(card.contains("| Base | moved/mine |") && !card.contains("base_model"), "{card}");
}
