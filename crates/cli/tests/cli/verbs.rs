//! What every verb gives: its fields as JSON, its exit status, nothing but results on standard
//! output, and the right numbers.

mod adapters;
mod against;
pub mod compress;
mod demo;
mod embedding;
mod events;
mod generation;
mod gguf;
mod losses;
mod masked;
mod memory;
mod plans;
mod report;
mod tasks;

use crate::sandbox::{Ended, Scene, ended};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

const VERBS: [&str; 10] = [
    "demo", "plan", "train", "eval", "embed", "generate", "export", "compress", "report", "doctor",
];

/// Runs a command that must succeed and print one JSON object.
fn json(command: &mut Command) -> Value {
    let ended = succeeds(command);
    assert_eq!(ended.stdout.lines().count(), 1, "{}", ended.stdout);
    serde_json::from_str(&ended.stdout).unwrap()
}

fn succeeds(command: &mut Command) -> Ended {
    let ended = ended(command);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    ended
}

fn assert_fields(value: &Value, names: &[&str]) {
    for name in names {
        assert!(value.get(name).is_some_and(|field| !field.is_null()), "no {name} in {value}");
    }
}

#[test]
fn help_comes_with_an_example() {
    let scene = Scene::new();
    let all = succeeds(&mut scene.hone(&["--help"])).stdout;
    for verb in VERBS {
        assert!(all.contains(verb), "{verb} is not in:\n{all}");
        let help = succeeds(&mut scene.hone(&[verb, "--help"])).stdout;
        assert!(help.contains("Example") && help.contains(&format!("hone {verb}")), "{help}");
        assert!(help.contains("--json"), "{help}");
    }
}

const PAGE_HEAD: &str = "# Command line

<!-- Generated from `--help`; do not edit. -->

Results go to standard output, with `--json` as one object; progress to standard error. Exit
status: 0 success, 2 a usage or configuration error, 1 a failure while running, 130 interrupted.
";

/// `HONE_WRITE_DOCS=1 cargo test` writes the page instead.
#[test]
fn the_command_line_page_is_fresh() {
    let scene = Scene::new();
    let mut fresh = PAGE_HEAD.to_owned();
    for verb in VERBS {
        let help = succeeds(scene.hone(&[verb, "--help"]).env_remove("COLUMNS")).stdout;
        fresh.push_str(&format!("\n## hone {verb}\n\n```text\n{}\n```\n", help.trim_end()));
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/command-line.md");
    if std::env::var_os("HONE_WRITE_DOCS").is_some() {
        std::fs::write(&page, &fresh).unwrap();
    }
    let committed = std::fs::read_to_string(&page).unwrap_or_default();
    let fix = "docs/command-line.md is stale; write it with HONE_WRITE_DOCS=1 cargo test";
    assert!(committed == fresh, "{fix}");
}

#[test]
fn every_verb_prints_its_fields_as_json() {
    let scene = Scene::new();
    let plan = json(&mut scene.hone(&["plan", "run.toml", "--json"]));
    let fields = ["peak_bytes", "arena_bytes", "memory", "flops_per_step", "step_seconds"];
    assert_fields(&plan, &fields);
    assert_fields(&plan, &["num_steps", "total_seconds", "fits"]);
    let train = scene.train(&["train.max_steps=2", "--json"]);
    assert_fields(&json(&mut { train }), &["result", "report", "evaluations", "samples"]);
    let eval = ["eval", "model", "--adapter", "run/adapter", "--data", "eval.jsonl", "--json"];
    assert_fields(&json(&mut scene.hone(&eval)), &["loss", "perplexity", "num_target_tokens"]);
    let generate = ["generate", "model", "--prompt", "w5", "--max-new-tokens", "3", "--json"];
    assert_fields(&json(&mut scene.hone(&generate)), &["text", "tokens", "tokens_per_second"]);
    let export = ["export", "model", "--adapter", "run/adapter", "--out", "merged", "--json"];
    assert_fields(
        &json(&mut scene.hone(&export)),
        &["out", "dtype", "logits_error", "effect_lost", "kl", "top1_agreement"],
    );
    let report = json(&mut scene.hone(&["report", "run", "--json"]));
    assert_eq!(report["report"], "run/report.html");
    let doctor = json(&mut scene.hone(&["doctor", "--threads", "1", "--json"]));
    assert_fields(&doctor, &["version", "profile", "hub_cache"]);
}

#[test]
fn each_step_leaves_its_fields() {
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=2"]));
    let metrics = scene.lines("metrics.jsonl");
    assert_eq!(metrics.len(), 2);
    let fields = ["step", "loss", "learning_rate", "grad_norm", "tokens", "target_tokens"];
    assert_fields(&metrics[1], &fields);
    assert_fields(&metrics[1], &["tokens_per_second", "step_seconds", "phases"]);
    #[cfg(target_os = "linux")]
    assert_fields(&metrics[1], &["peak_bytes"]);
}

#[test]
fn progress_goes_to_standard_error() {
    let scene = Scene::new();
    let train = succeeds(&mut scene.train(&["train.max_steps=2"]));
    for doing in ["step 2/2", "answering 1 sample\n", "evaluating on 9 rows\n"] {
        assert!(train.stderr.contains(doing), "{}", train.stderr);
    }
    assert!(train.stderr.contains("settings run/run.toml"), "{}", train.stderr);
    let effective = std::fs::read_to_string(scene.path("run/run.toml")).unwrap();
    assert!(effective.contains("max_steps = 2"), "{effective}");
    assert!(!train.stdout.contains("step"), "{}", train.stdout);
    assert!(train.stdout.contains("run/adapter"), "{}", train.stdout);
    let greedy = ["generate", "model", "--prompt", "w5", "--temperature", "0"];
    let text = succeeds(&mut scene.hone(&greedy));
    assert!(text.stderr.contains("tokens/s") && !text.stdout.contains("tokens/s"));
}

/// What a sample's prompt shows of a conversation are its template's marks, not roles as words. A
/// BOS token is left out, unless it is the mark of every turn.
#[test]
fn samples_show_the_marks_of_a_conversation() {
    let scene = Scene::new();
    let template = "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s> ' }}{% endfor %}\
                    {% if add_generation_prompt %}{{ '<s> ' }}{% endif %}";
    let config = serde_json::json!({ "eos_token": "</s>", "chat_template": template });
    scene.write("model/tokenizer_config.json", &config.to_string());
    let (asked, told) = (r#"{"role":"user","content":"w5 w6"}"#, r#""content":"w7 w8"}"#);
    let row = format!("{{\"messages\":[{asked},{{\"role\":\"assistant\",{told}]}}\n");
    scene.write("chat.jsonl", &row.repeat(9));
    succeeds(&mut scene.train(&["data.train=chat.jsonl", "data.eval=[]", "train.max_steps=1"]));
    let samples = std::fs::read(scene.path("run/samples.json")).unwrap();
    let samples: Value = serde_json::from_slice(&samples).unwrap();
    assert_eq!(samples[0]["prompt"], "<s> w5 w6 </s> <s>", "{samples}");
}

#[test]
fn a_failure_while_running_ends_with_status_1() {
    let scene = Scene::new();
    let mut train = scene.train(&[]);
    let ended = ended(train.env("HONE_FAILPOINT", "loop.nonfinite:2=enospc"));
    ended.says(1, &["step 2: the loss is not finite", "was not applied"]);
}

#[test]
fn an_unfinished_run_has_a_report() {
    let scene = Scene::new();
    let mut train = scene.train(&[]);
    let killed = ended(train.env("HONE_FAILPOINT", "loop.step_done:2=kill"));
    assert_eq!(killed.status, None, "ended by a signal: {}", killed.stderr);
    succeeds(&mut scene.hone(&["report", "run"]));
    let page = std::fs::read_to_string(scene.path("run/report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") || page.starts_with("<!DOCTYPE html>"));
    std::fs::remove_file(scene.path("run/metrics.jsonl")).unwrap();
    succeeds(&mut scene.hone(&["report", "run"]));
}

/// `hone … | head` and the like end without noise, and a run goes on when nobody reads its log.
#[test]
fn readers_may_go_away() {
    let scene = Scene::new();
    let mut plan = scene.hone(&["plan", "run.toml"]).spawn().unwrap();
    drop(plan.stdout.take());
    let output = plan.wait_with_output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    assert_eq!(output.status.code(), Some(0));
    let mut train = scene.train(&["train.max_steps=2"]).spawn().unwrap();
    drop(train.stderr.take());
    assert_eq!(train.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
#[cfg(target_os = "linux")]
fn a_result_that_cannot_be_written_is_no_success() {
    let scene = Scene::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut plan = scene.hone(&["plan", "run.toml"]);
    ended(plan.stdout(full)).says(1, &["cannot write to standard output", "o space left"]);
}

/// A weight that is not a number is an error wherever its results would be shown or written.
#[test]
fn what_is_not_finite_is_an_error() {
    let scene = Scene::new();
    let weights = scene.path("model/model.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, bytes).unwrap();
    for arguments in [
        &["eval", "model", "--data", "eval.jsonl", "--json"][..],
        &["generate", "model", "--prompt", "w3 w4 w5", "--max-new-tokens", "3", "--json"],
        &["export", "model", "--out", "exported"],
    ] {
        let ended = ended(&mut scene.hone(arguments));
        assert!(ended.status != Some(0) && ended.stderr.contains("finite"), "{}", ended.stderr);
    }
    assert!(!scene.path("exported").exists());
}

/// What was written is as readable as any other new file.
#[test]
#[cfg(unix)]
fn weights_are_as_readable_as_other_files() {
    use std::os::unix::fs::PermissionsExt;
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=2"]));
    let mode = |name: &str| {
        let path = scene.path("run/adapter").join(name);
        std::fs::metadata(path).unwrap().permissions().mode()
    };
    assert_eq!(mode("adapter_model.safetensors"), mode("adapter_config.json"));
}
