//! Adapters and the models that they were trained on: which is which is known by a digest, and what
//! is shipped of both is measured.

use super::compress::{stories, write_text};
use super::{Scene, assert_fields, json, succeeds};
use crate::sandbox::{ended, entries};
use hone_train::checkpoint::sha256_of_file;
use serde_json::Value;

/// A trained adapter, and as `merged` another model of the same shape.
fn scene() -> Scene {
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=4"]));
    succeeds(&mut scene.hone(&["export", "model", "--adapter", "run/adapter", "--out", "merged"]));
    scene
}

fn read(scene: &Scene, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(scene.path(name)).unwrap()).unwrap()
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let scene = scene();
    let says = [
        "run/adapter: was trained on model, whose weights have SHA-256 ",
        "those of merged have ",
        "Give the model that it was trained on; or give --other-base",
    ];
    let adapter = ["merged", "--adapter", "run/adapter"];
    for (verb, more) in [
        ("eval", &["--data", "eval.jsonl"][..]),
        ("generate", &["--prompt", "w5", "--max-new-tokens", "2"]),
        ("export", &["--out", "out"]),
        ("export", &["--out", "out", "--adapter-only"]),
        ("compress", &["--out", "out.gguf", "--type", "f16"]),
    ] {
        let command = [&[verb][..], &adapter, more].concat();
        ended(&mut scene.hone(&command)).says(2, &says);
        assert!(!scene.path("out").exists() && !scene.path("out.gguf").exists());
    }
    let eval = [&["eval"][..], &adapter, &["--data", "eval.jsonl"]].concat();
    let error = json_error(&scene, &eval);
    assert_eq!(error["error"]["code"], "adapter.invalid");
    succeeds(&mut scene.hone(&[&eval[..], &["--other-base"]].concat()));
    ended(&mut scene.hone(&["eval", "model", "--data", "eval.jsonl", "--other-base"]))
        .says(2, &["--adapter"]);
    let further = ["model.path=merged", "output.dir=run2", "adapter.init_from=run/adapter"];
    let says = [
        "adapter.init_from: run/adapter: was trained on model, ",
        "that it was trained on as model.path; or merge it into that (hone export --adapter)",
    ];
    ended(&mut scene.train(&further)).says(2, &says);
    assert!(!scene.path("run2").exists());
    // One bit of a weight is another base, wherever it is.
    let weights = scene.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    std::fs::write(&weights, bytes).unwrap();
    ended(&mut scene.hone(&["eval", "model", "--adapter", "run/adapter", "--data", "eval.jsonl"]))
        .says(2, &["was trained on model, ", "those of model have "]);
    let resumed = ["--resume", "train.max_steps=4"];
    ended(&mut scene.train(&resumed)).says(2, &["model.safetensors", "has changed since"]);
}

fn json_error(scene: &Scene, command: &[&str]) -> Value {
    let ended = ended(&mut scene.hone(&[command, &["--json"]].concat()));
    assert_eq!(ended.status, Some(2), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap()
}

/// The digest goes along with the adapter in either form, and an adapter that has none is taken.
#[test]
fn an_adapter_says_what_it_was_trained_on() {
    let scene = scene();
    let base = read(&scene, "run/adapter/base.json");
    let sha256 = sha256_of_file(&scene.path("model/model.safetensors")).unwrap();
    assert_eq!(base["name"], "model");
    assert_eq!(base["files"], serde_json::json!([format!("{sha256}  model.safetensors")]));
    let digest = base["weights_sha256"].as_str().unwrap();
    assert!(digest.len() == 64 && digest != sha256, "{base}");
    let export = ["export", "model", "--adapter", "run/adapter", "--adapter-only", "--out", "peft"];
    succeeds(&mut scene.hone(&export));
    assert_eq!(read(&scene, "peft/base.json"), base);
    let card = std::fs::read_to_string(scene.path("peft/README.md")).unwrap();
    for says in [
        format!("| Base's weights | SHA-256 `{digest}` |"),
        format!("| Base's files | model.safetensors, SHA-256 `{sha256}` |"),
    ] {
        assert!(card.contains(&says), "{card}");
    }
    // The same weights elsewhere are the same base.
    std::fs::rename(scene.path("model"), scene.path("moved")).unwrap();
    let eval = |model: &str| {
        ended(&mut scene.hone(&["eval", model, "--adapter", "peft", "--data", "eval.jsonl"]))
    };
    assert_eq!(eval("moved").status, Some(0));
    eval("merged").says(2, &["peft: was trained on model, "]);
    scene.write("peft/base.json", "{\"name\": \"model\"}");
    eval("moved").says(2, &["peft/base.json: does not say which model", "weights_sha256"]);
    std::fs::remove_file(scene.path("peft/base.json")).unwrap();
    assert_eq!(eval("merged").status, Some(0));
    let again = ["export", "merged", "--adapter", "peft", "--adapter-only", "--out", "again"];
    succeeds(&mut scene.hone(&again));
    assert!(!entries(&scene.path("again")).contains(&"base.json".to_owned()));
}

/// An adapter of a quantised file is shipped beside it or merged and quantised again: what is lost
/// either way is measured, and one page shows both.
#[test]
fn both_ways_to_ship_are_measured() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    write_text(&scene, 150_000);
    let four_bits = ["--type", "q4_0", "--fallback", "llama.cpp"];
    let base = ["compress", &model, "--out", "base.gguf"];
    succeeds(&mut scene.hone(&[&base[..], &four_bits].concat()));
    let before = std::fs::read(scene.path("base.gguf")).unwrap();
    let learns = ["model.path=base.gguf", "data.train=text.jsonl", "objective.kind=pretrain"];
    let short = ["data.eval=[]", "train.eval_every_steps=0", "train.max_steps=6"];
    succeeds(&mut scene.train(&[&learns[..], &short, &["report.samples=0"]].concat()));
    assert!(std::fs::read(scene.path("base.gguf")).unwrap() == before);

    let merge = ["compress", "base.gguf", "--adapter", "run/adapter", "--out", "merged.gguf"];
    let merge = [&merge[..], &four_bits].concat();
    ended(&mut scene.hone(&merge)).says(
        2,
        &[
            "base.gguf: the model is quantised already (weights in q4_0)",
            "with the adapter beside it (hone export --adapter-only), or merge run/adapter with \
             --requantise",
        ],
    );
    let text = ["--calibration", "text.jsonl", "--effort", "plain"];
    let again = [&merge[..], &["--requantise"], &text].concat();
    let made = json(&mut scene.hone(&[&again[..], &["--json"]].concat()));
    let ways = &made["adapter"];
    assert_fields(ways, &["loss", "loss_merged", "difference", "interval"]);
    let number = |value: &Value| value.as_f64().unwrap();
    let [beside, merged] = ["loss", "loss_merged"].map(|key| number(&ways[key]));
    assert!((1.0..5.0).contains(&beside) && (merged - beside).abs() < 0.5, "{ways}");
    assert!((number(&ways["difference"]) - (merged - beside)).abs() < 1e-9, "{ways}");
    let [low, high] = [0, 1].map(|i| number(&ways["interval"][i]));
    let better = match (low > 0.0, high < 0.0) {
        (true, _) => "adapter".into(),
        (_, true) => "merged".into(),
        _ => Value::Null,
    };
    assert_eq!(ways["better"], better);
    // The file and the adapter, or one file.
    let bytes = |name: &str| std::fs::metadata(scene.path(name)).unwrap().len();
    let adapter = ["adapter_config.json", "adapter_model.safetensors"];
    let adapter: u64 = adapter.iter().map(|name| bytes(&format!("run/adapter/{name}"))).sum();
    assert_eq!(made["base"]["bytes"], bytes("base.gguf") + adapter);
    std::fs::remove_file(scene.path("merged.gguf")).unwrap();
    std::fs::remove_file(scene.path("merged.md")).unwrap();
    let told = succeeds(&mut scene.hone(&again)).stdout;
    assert!(told.contains(&format!("{beside:.4} nats per token beside the model (")), "{told}");

    scene.write("made.json", &made.to_string());
    let mut losses = vec![beside, merged];
    let data = ["--data", "text.jsonl", "--max-seq-len", "64", "--json"];
    for (name, of) in [
        ("beside.json", &["base.gguf", "--adapter", "run/adapter"][..]),
        ("merged.json", &["merged.gguf"]),
    ] {
        let found = json(&mut scene.hone(&[&["eval"][..], of, &data].concat()));
        assert_fields(&found, &["model", "data", "tokens_sha256"]);
        losses.push(number(&found["loss"]));
        scene.write(name, &found.to_string());
    }
    let report = ["report", "made.json", "beside.json", "merged.json", "--out", "both.html"];
    succeeds(&mut scene.hone(&report));
    let page = std::fs::read_to_string(scene.path("both.html")).unwrap();
    for part in ["<td>base + run/adapter", "<td>merged</td>", "<th>loss</th>", "On text.jsonl, "] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    for loss in losses {
        assert!(page.contains(&format!("<td>{loss:.4}</td>")), "{loss}\n{page}");
    }
}
