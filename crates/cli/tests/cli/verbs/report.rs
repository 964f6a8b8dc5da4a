//! `hone report` of several models.

use super::{Scene, json, succeeds};
use std::path::Path;

/// Which word is likelier to end a sentence.
const TASK: &str = "\
task: endings
dataset_path: json
dataset_kwargs:
  data_files: {test: endings.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: q
doc_to_choice: c
doc_to_target: g
metric_list:
  - metric: acc
";

/// What a model, two smaller files of it, and evaluations of them say becomes one page.
#[test]
fn models_are_shown_beside_each_other() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let model = shared.join("models/stories260k");
    if !model.is_dir() {
        hone_tensor::testing::skip("../shared is absent");
        return;
    }
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    let story = "Once upon a time there was a little girl. She had a red ball. ";
    scene.write("story.txt", &story.repeat(20));
    scene.write("endings.yaml", TASK);
    let item = |i: usize| {
        let (word, right) = (["ball", "dog", "tree"][i % 3], i % 2);
        format!("{{\"q\": \"The {word} is\", \"c\": [\" big\", \" red\"], \"g\": {right}}}\n")
    };
    scene.write("endings.jsonl", &(0..30).map(item).collect::<String>());
    let save = |name: &str, arguments: &[&str]| {
        let said = succeeds(&mut scene.hone(arguments)).stdout;
        scene.write(name, &said);
    };
    let mut files = vec!["base.json".to_owned()];
    let task = ["--task", "endings.yaml", "--output"];
    succeeds(&mut scene.hone(&[&["eval", &model][..], &task, &["base.json"]].concat()));
    for mix in ["q8_0", "q4_0"] {
        let [out, made, lost, tasks] =
            [".gguf", ".made.json", ".lost.json", ".tasks.json"].map(|end| format!("{mix}{end}"));
        let compress = ["compress", &model, "--type", mix, "--fallback", "llama.cpp"];
        save(&made, &[&compress[..], &["--out", &out, "--json"]].concat());
        let text = ["--data", "story.txt", "--format", "text", "--max-seq-len", "64", "--json"];
        save(&lost, &[&["eval", &out, "--against", &model][..], &text].concat());
        succeeds(&mut scene.hone(&[&["eval", &out][..], &task, &[&tasks]].concat()));
        files.extend([made, lost, tasks]);
    }
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let report = [&["report"][..], &files, &["--out", "models.html", "--json"]].concat();
    assert_eq!(json(&mut scene.hone(&report))["report"], "models.html");
    let page = std::fs::read_to_string(scene.path("models.html")).unwrap();
    for part in [
        "<h1><i>What was kept of</i> stories260k</h1>",
        "<p class=\"facts\">3 models · 1 text · 1 task</p>",
        "<h2>On story.txt, ",
        "<td>stories260k <span class=\"tag\">base</span></td>",
        ">q8_0</text>",
        "<td>q4_0</td>",
        "<h3>endings: acc ↑</h3><span class=\"legend\">30 items</span>",
        "<h2>Tensors by kind</h2>",
        "<td>ffn_down</td><td><span class=\"types\">5\u{a0}×\u{a0}f16</span></td>",
        "nats of KL divergence per token on four short texts",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    assert_eq!(page.matches("<circle ").count(), 4, "{page}");
    // Of both files there is a difference from the base on the same documents.
    assert_eq!(page.matches(" to +").count() + page.matches(" to -").count(), 2, "{page}");

    // Without evaluations, what compress measured is shown.
    let made = ["report", "q8_0.made.json", "q4_0.made.json", "--out", "made.html"];
    succeeds(&mut scene.hone(&made));
    let page = std::fs::read_to_string(scene.path("made.html")).unwrap();
    assert!(page.contains("<h2>On four short texts, when they were written</h2>"), "{page}");
    assert_eq!(page.matches("<circle ").count(), 4, "{page}");
}

/// Of a task in a group, what the group does not sum up is shown too.
#[test]
fn metrics_that_no_group_sums_up_are_shown() {
    let scene = Scene::new();
    let metric = |metric: &str| {
        serde_json::json!({
            "metric": metric, "filter": "none", "value": 0.5, "stderr": 0.5, "interval": null,
            "aggregation": "mean", "higher_is_better": true, "num_items": 2,
        })
    };
    let with = |mut object: serde_json::Value, more: serde_json::Value| {
        object.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        object
    };
    let task = serde_json::json!({ "task": "t", "items_sha256": "1f", "scores": [1.0, 0.0] });
    let group = serde_json::json!({ "group": "g", "tasks": ["t"] });
    let object = serde_json::json!({
        "model": { "name": "tiny", "bytes": 4e5, "bits_per_weight": 4.0 },
        "tasks": [with(metric("acc"), task.clone()), with(metric("acc_norm"), task)],
        "groups": [with(metric("acc"), group)],
    });
    scene.write("a.json", &object.to_string());
    succeeds(&mut scene.hone(&["report", "a.json", "--out", "page.html"]));
    let page = std::fs::read_to_string(scene.path("page.html")).unwrap();
    let titles = ["<h3>g: acc ↑</h3>", "<h3>t: acc_norm ↑</h3>", "<h3>t: acc ↑</h3>"];
    let has = titles.map(|title| page.contains(title));
    assert_eq!(has, [true, true, false], "{page}");
}

/// A model evaluated twice on the same text, against two others, has two rows, each with its own.
#[test]
fn a_model_has_a_row_for_each_base() {
    let scene = Scene::new();
    let named = |name: &str, bytes: f64| {
        let bits = bytes / 1e5;
        serde_json::json!({ "name": name, "bytes": bytes, "bits_per_weight": bits })
    };
    let share = serde_json::json!({ "value": 0.5, "stderr": null, "interval": null });
    for (file, base, kl) in [("a.json", "large", 0.25), ("b.json", "small", 0.0625)] {
        let object = serde_json::json!({
            "model": named("tiny", 4e5), "against": named(base, 1.6e6), "data": ["text.jsonl"],
            "tokens_sha256": "1f", "num_target_tokens": 90, "rows": 30, "same_top": share,
            "kl": { "mean": kl, "stderr": null, "interval": null, "median": kl, "p99": kl,
                    "p999": kl, "max": kl },
            "loss": 1.0, "loss_against": 1.0, "loss_difference": share,
            "flips": { "lost": 1, "gained": 2, "p_value": 1.0 },
        });
        scene.write(file, &object.to_string());
    }
    succeeds(&mut scene.hone(&["report", "a.json", "b.json", "--out", "page.html"]));
    let page = std::fs::read_to_string(scene.path("page.html")).unwrap();
    let [large, small] = ["large", "small"].map(|base| {
        let at = page.find(&format!("<h2>On text.jsonl, 90 tokens, against {base}</h2>"));
        &page[at.unwrap_or_else(|| panic!("{base}\n{page}"))..]
    });
    let large = &large[..large.len() - small.len()];
    assert!(large.contains("0.250") && !large.contains("0.0625"), "{large}");
    assert!(small.contains("0.0625") && !small.contains("0.250"), "{small}");
    assert!(page.contains("<h1>Models compared</h1>") && page.contains("unlike bases"), "{page}");
}
