//! The page is made from whole, partial and hostile run directories. How it looks is checked by
//! eye: set `HONE_TEST_REPORT` to a path to have the example page written there.

use std::fmt::Write as _;
use std::fs;

use tempfile::TempDir;

use super::*;

const RUN: &str = r#"[model]
path = "models/stories260k"

[data]
train = ["data/train.jsonl", "data/more.jsonl"]

[adapter]
kind = "lora"
rank = 16

[output]
dir = "runs/a"
"#;

const MANIFEST: &str = r#"{
"hone_version": "0.1.0", "created": "2025-03-01 12:00",
"machine": {"cpu": "Example CPU @ 2.0 GHz", "threads": 2, "memory_bytes": 16000000000},
"model": {"path": "models/stories260k", "parameters": 134515008, "trainable_parameters": 4884480},
"inputs": {"model": [{"path": "model.safetensors", "sha256": "0123abcd", "bytes": 1}],
  "train": [{"path": "data/train.jsonl", "sha256": "4567", "bytes": 2}]},
"data": {
  "train": {"files": [{"file": "data/train.jsonl", "format": "messages",
    "rows": 7473}], "rows": 7473, "tokens": 1234567, "target_tokens": 654321, "truncated": 3,
    "skipped": 0},
  "eval": {"files": [], "rows": 1319, "tokens": 200000, "target_tokens": 90000}},
"plan": {"peak_bytes": 1610612736, "arena_bytes": 943718400, "memory": {"weights": 269000000,
  "adapters": 19537920, "gradients": 19537920, "optimizer": 39075840, "activations": 800000000,
  "head": 120000000, "workspace": 60000000}, "flops_per_step": 3.1e12, "step_seconds": 4.1,
  "num_steps": 300, "training_seconds": 1230, "micro_batch_tokens": 4096, "recompute": "block",
  "coverage": [{"kind": "attention", "num_blocks": 30, "modules": [
    {"name": "q_proj", "count": 30, "trained": 30}, {"name": "k_proj", "count": 30, "trained": 1},
    {"name": "o_proj", "count": 30, "trained": 0}], "parameters": 26542080, "trained": 552960}]},
"actual": {"peak_bytes": 1590612736, "arena_bytes": 943718400, "step_seconds": 4.4,
  "total_seconds": 1352}}"#;

/// 300 lines that look like a run.
fn metrics() -> String {
    let mut out = String::new();
    for step in 1..=300 {
        let t = f64::from(step);
        let noise = ((t * 12.9898).sin() * 43758.5453).fract();
        let loss = 0.8 + 1.9 * (-t / 60.0).exp() + 0.12 * noise;
        let rate = 2e-4 * (t / 9.0).min(0.5 + 0.5 * (t / 300.0 * std::f64::consts::PI).cos());
        let norm = 0.4 + 1.5 * (-t / 30.0).exp() + 0.2 * noise.abs();
        let speed = 3700.0 + 150.0 * noise;
        let _ = writeln!(
            out,
            r#"{{"step":{step},"loss":{loss},"learning_rate":{rate},"grad_norm":{norm},
            "tokens":16384,"target_tokens":8000,"tokens_per_second":{speed},"step_seconds":4.4,
            "peak_bytes":{},"phases":{{"data":0.05,"forward":1.3,"backward":2.7,"optimizer":0.2,
            "checkpoint":0.1}}}}"#,
            1_500_000_000 + 300_000 * step
        );
    }
    out.replace(",\n ", ",")
}

const EVAL: &str = r#"{"step":0,"loss":2.71,"perplexity":15.03,"num_target_tokens":90000}
{"step":100,"loss":1.32,"perplexity":3.743,"num_target_tokens":90000}
{"step":200,"loss":1.01,"perplexity":2.746,"num_target_tokens":90000}
{"step":300,"loss":0.93,"perplexity":2.535,"num_target_tokens":90000}
"#;

const SAMPLES: &str = r#"[
{"prompt": "A farmer has 12 cows and buys 5 more. He then sells 3. How many has he?",
 "reference": "12 + 5 = 17, 17 - 3 = 14\n#### 14",
 "before": "The farmer has cows. The farmer has cows. The farmer has cows and he is happy and",
 "after": "He has 12 + 5 = 17 cows.\nThen 17 - 3 = 14 cows.\n#### 14"},
{"prompt": "\n    Once upon a time\n",
 "reference": null, "before": "", "after": "there was a <b>fox</b>"}
]"#;

fn run_dir(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}

fn page(files: &[(&str, &str)]) -> String {
    build(run_dir(files).path()).unwrap()
}

fn whole() -> String {
    page(&[
        ("run.toml", RUN),
        ("manifest.json", MANIFEST),
        ("metrics.jsonl", &metrics()),
        ("eval.jsonl", EVAL),
        ("samples.json", SAMPLES),
    ])
}

/// What the page's script reads.
fn embedded(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

#[test]
fn a_whole_run_shows_everything() {
    let page = whole();
    if let Ok(path) = std::env::var("HONE_TEST_REPORT") {
        fs::write(path, &page).unwrap();
    }
    for part in [
        "<h1>stories260k <i>on</i> train.jsonl and 1 more</h1>",
        "LoRA, rank 16 · 4.88 M of 135 M parameters trained · Example CPU",
        "<small>15.03 →</small> 2.535",
        "<span>Training loss, mean of 30 steps</span><b><small>2.2",
        "<b>22 min 32 s</b>",
        "<td>1.50 GiB</td><td>1.48 GiB</td><td><span class=\"good\">-1.2 %</span></td>",
        "<span class=\"warn\">+7.3 %</span>",
        "activations<b>763 MiB</b>",
        "backward<b>13 min 30 s</b>",
        "there was a &lt;b&gt;fox&lt;/b&gt;",
        "<p class=\"text\">    Once upon a time</p>",
        "<td>rows</td><td>7,473</td><td>1,319</td>",
        "<td>target tokens</td><td>654,321 (53 %)</td><td>90,000 (45 %)</td>",
        "<td>truncated rows</td><td>3</td><td>–</td>",
        "<td>30</td><td>q_proj, k_proj (1 of 30); not o_proj</td><td>552,960</td>",
        "path = &quot;models/stories260k&quot;",
        "0123abcd  model.safetensors",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("Not finished") && !page.contains("{{"));
    let data = embedded(&page);
    assert_eq!(data["step"].as_array().unwrap().len(), 300);
    assert_eq!(data["eval"]["loss"], json!([2.71, 1.32, 1.01, 0.93]));
}

#[test]
fn means_of_steps_say_of_how_many() {
    let line = |step: u32| format!("{{\"step\":{step},\"loss\":2,\"metrics\":{{\"kl\":0.25}}}}\n");
    let lines: String = (1..=20).map(line).collect();
    let page = page(&[("run.toml", RUN), ("metrics.jsonl", &lines)]);
    for label in ["Training loss", "kl"] {
        assert!(page.contains(&format!("<span>{label}, mean of 2 steps</span>")), "{page}");
    }
}

/// One step has come from nowhere.
#[test]
fn a_single_step_is_no_change() {
    let one = r#"{"step":1,"loss":5.671,"metrics":{"kl":0.25}}"#;
    let page = page(&[("run.toml", RUN), ("metrics.jsonl", &format!("{one}\n"))]);
    for part in ["<span>Training loss</span><b>5.671</b>", "<span>kl</span><b>0.250</b>"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn mixtures_and_notes_on_data_are_shown() {
    let run = RUN.replace(
        "train = [\"data/train.jsonl\", \"data/more.jsonl\"]",
        "train = [{path = \"data/train.jsonl\", weight = 0.5}, {path = \"data/more.jsonl\"}]",
    );
    let manifest = r#"{"data": {"train": {"groups_per_epoch": 3757, "files": [
        {"file": "data/train.jsonl", "rows": 7473, "groups": 7473, "weight": 0.5,
         "groups_per_epoch": 3736.5},
        {"file": "data/more.jsonl", "rows": 40, "groups": 20, "weight": 1.0,
         "groups_per_epoch": 20}], "warnings": ["a <b> note"]},
        "eval": {"files": [], "warnings": ["another"]}}}"#;
    let page = page(&[("run.toml", &run), ("manifest.json", manifest), ("metrics.jsonl", "")]);
    for part in [
        "<h1>stories260k <i>on</i> train.jsonl and 1 more</h1>",
        "<td>data/train.jsonl</td><td>7,473</td><td>0.5</td><td>3,736.5</td><td>99.5 %</td>",
        "<td>data/more.jsonl</td><td>20</td><td>1</td><td>20</td><td>0.5 %</td>",
        "<th>pairs</th>",
        "<h3>Notes on the training data</h3><ul><li>a &lt;b&gt; note</li></ul>",
        "<h3>Notes on the evaluation data</h3><ul><li>another</li></ul>",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!whole().contains("Mixture") && !whole().contains("Notes on"));
}

#[test]
fn the_page_fetches_nothing() {
    let page = whole();
    let page = page.replace("http://www.w3.org/2000/svg", ""); // a name, not an address
    for part in ["http:", "https:", "src=", "href=", "url(", "@import", "fetch("] {
        assert!(!page.contains(part), "{part}");
    }
}

#[test]
fn an_unfinished_run_has_a_report() {
    let lines = metrics();
    let torn: String = lines.lines().take(5).map(|line| format!("{line}\n")).collect();
    let torn = torn + "{\"step\":6,\"lo";
    let sparse = page(&[("run.toml", RUN), ("metrics.jsonl", &torn)]);
    assert_eq!(embedded(&sparse)["step"], json!([1, 2, 3, 4, 5]));
    let known = page(&[("run.toml", RUN), ("metrics.jsonl", &torn), ("manifest.json", MANIFEST)]);
    assert!(known.contains("Not finished: step 5 of 300."));
    assert!(known.contains("<td>Steps</td><td>300</td><td>–</td><td>–</td>"));
    if let Ok(path) = std::env::var("HONE_TEST_REPORT") {
        fs::write(format!("{path}.unfinished.html"), &known).unwrap();
    }
    let empty = page(&[("run.toml", ""), ("metrics.jsonl", ""), ("manifest.json", "{}")]);
    assert!(empty.contains("full fine-tuning"));
    assert_eq!(embedded(&empty)["step"], json!([]));
}

#[test]
fn a_resumed_runs_repeated_steps_count_once() {
    let lines = "{\"step\":1,\"loss\":9}\n{\"step\":2,\"loss\":8}\n{\"step\":2,\"loss\":7}\n\
                 {\"step\":3,\"loss\":null}\n";
    let data = embedded(&page(&[("run.toml", RUN), ("metrics.jsonl", lines)]));
    assert_eq!(data["step"], json!([1, 2, 3]));
    assert_eq!(data["loss"], json!([9.0, 7.0, null]));
}

#[test]
fn long_runs_are_shown_as_means() {
    let lines: String =
        (1..=10_000).map(|step| format!("{{\"step\":{step},\"loss\":{}}}\n", step % 2)).collect();
    let data = embedded(&page(&[("run.toml", RUN), ("metrics.jsonl", &lines)]));
    let steps = data["step"].as_array().unwrap();
    assert!(steps.len() <= MAX_POINTS && steps.last() == Some(&json!(10_000)));
}

#[test]
fn hostile_text_stays_text() {
    let attack = "</script><script>alert(1)</script>\\\"'{{data}}";
    let quoted = serde_json::to_string(attack).unwrap();
    let run = format!("[model]\npath = '''{attack}'''\n[data]\ntrain = '''{attack}'''\n");
    let samples = format!("[{{\"prompt\":{quoted},\"before\":{quoted},\"after\":{quoted}}}]");
    let manifest = format!(
        "{{\"hone_version\":{quoted},\"machine\":{{\"cpu\":{quoted}}},\"plan\":{{\"memory\":\
         {{{quoted}:5}},\"recompute\":{quoted},\"peak_bytes\":1}},\
         \"model\":{{\"path\":{quoted}}},\"inputs\":{{\"model\":[{{\"path\":{quoted}}}]}}}}"
    );
    let metrics = format!("{{\"step\":1,\"loss\":1,\"phases\":{{{quoted}:1}}}}\n");
    let page = page(&[
        ("run.toml", &run),
        ("samples.json", &samples),
        ("manifest.json", &manifest),
        ("metrics.jsonl", &metrics),
    ]);
    assert!(!page.contains("<script>alert") && !page.contains("</script><script>alert"));
    assert_eq!(page.matches("</script>").count(), 2);
    embedded(&page);
    assert_eq!(safe_json(&json!("</script>")), "\"\\u003c/script>\"");
}

#[test]
fn what_is_wrong_is_named() {
    let message = |files: &[(&str, &str)]| build(run_dir(files).path()).unwrap_err().to_string();
    assert!(message(&[]).contains("run.toml"));
    let bad = message(&[("run.toml", "a = \n"), ("metrics.jsonl", "")]);
    assert!(bad.contains("run.toml, line 1"), "{bad}");
    let files = [("run.toml", RUN), ("metrics.jsonl", ""), ("samples.json", "[\n{]")];
    assert!(message(&files).contains("samples.json, line 2"));
}

#[test]
fn damaged_lines_are_counted() {
    let metrics = "{\"step\":1}\nnonsense\n\n{\"step\":2,\"loss\":\u{0}\n{\"step\":3}\n{\"st";
    let page = page(&[("run.toml", RUN), ("metrics.jsonl", metrics), ("eval.jsonl", "7\n")]);
    assert_eq!(embedded(&page)["step"], json!([1, 3]));
    assert!(page.contains("metrics.jsonl: 2 lines are damaged"), "{page}");
    assert!(page.contains("eval.jsonl: 1 line is damaged"), "{page}");
}

#[test]
fn an_objectives_metrics_have_curves() {
    let metrics = "{\"step\":1,\"metrics\":{\"kl\":0.5}}\n\
                   {\"step\":2,\"metrics\":{\"kl\":0.25,\"rewards/margins\":2}}\n";
    let eval = "{\"step\":2,\"metrics\":{\"rewards/margins\":1.5}}\n";
    let page = page(&[("run.toml", RUN), ("metrics.jsonl", metrics), ("eval.jsonl", eval)]);
    let expected = json!([
        {"name": "kl", "train": [0.5, 0.25], "eval": [null]},
        {"name": "rewards/margins", "train": [null, 2.0], "eval": [1.5]},
    ]);
    assert_eq!(embedded(&page)["objective"], expected);
    assert_eq!(embedded(&whole())["objective"], json!([]));
}

#[test]
fn numbers_read_well() {
    let shown = [0.0, 0.5, 2.34567, 15.0, 123.456, 12345.6, 1e-5].map(format::number);
    assert_eq!(shown, ["0.000", "0.500", "2.346", "15.00", "123.5", "12,346", "1.00e-5"]);
    let shown = [0.0, 0.01234, 0.0001, 1.234e-5, 12.34].map(|x| format::significant(x, 3));
    assert_eq!(shown, ["0", "0.0123", "0.000100", "1.23e-5", "12.3"]);
    let shown = [999.0, 12_345.0, 80.44e6, 1.346e9].map(format::bytes_decimal);
    assert_eq!(shown, ["999 B", "12.3 kB", "80.4 MB", "1.35 GB"]);
    let shown = [0.25, 59.9, 61.0, 3700.0, 90000.0].map(format::seconds);
    assert_eq!(shown, ["250 ms", "1 min 0 s", "1 min 1 s", "1 h 1 min", "1 d 1 h"]);
    let shown = [0.416, 3.0, 17.34, 12_345.6].map(super::format_rate);
    assert_eq!(shown, ["0.42", "3.00", "17.3", "12,346"]);
    let shown = [12.0, 2048.0, 1.5e9].map(format::bytes);
    assert_eq!(shown, ["12 B", "2.00 KiB", "1.40 GiB"]);
    let shown = [999.0, 12_345.0, 1.5e6, 1.24e9].map(format::short_count);
    assert_eq!(shown, ["999", "12.3 k", "1.50 M", "1.24 B"]);
}
