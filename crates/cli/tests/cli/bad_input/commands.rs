//! Command lines, and the verbs that need no run file.

use super::{Case, check, command, refused};
use crate::sandbox::{Scene, ended};
use hone_tensor::Isa;
use serde_json::Value;

#[test]
fn mistakes_in_the_command_line() {
    check(&[
        command("unknown verb", &["trian"], &["'trian'", "'train'", "--help"]),
        command("no run file", &["train"], &["<RUN.toml>", "--help"]),
        command("unknown flag", &["train", "run.toml", "--fast"], &["'--fast'", "--help"]),
        command(
            "a number that is none",
            &["generate", "model", "--prompt", "w5", "--max-new-tokens", "many"],
            &["'many'", "--max-new-tokens", "expected a whole number"],
        ),
        command(
            "a negative temperature",
            &["generate", "model", "--prompt", "w5", "--temperature", "-1"],
            &["'-1'", "--temperature", "expected a number of at least 0"],
        ),
        command(
            "a probability of 0",
            &["generate", "model", "--prompt", "w5", "--top-p", "0"],
            &["--top-p", "above 0 and at most 1"],
        ),
        command(
            "no threads",
            &["doctor", "--threads", "0"],
            &["--threads", "expected a whole number from 1 to 4096"],
        ),
        command(
            "an unknown format",
            &["eval", "model", "--data", "eval.jsonl", "--format", "csv"],
            &["'csv'", "prompt_completion", "text"],
        ),
        command("one field of two", PROMPT_FIELD, &["--completion-field"]),
    ]);
}

/// Every instruction set that this machine lacks.
#[test]
fn instruction_sets_that_are_not_here() {
    let scene = Scene::new();
    let is_here = |name: &&str| Isa::available().iter().any(|isa| isa.name() == *name);
    let names = ["none", "", "avx2", "avx512", "avx512bf16", "amx", "neon"];
    for name in names.into_iter().filter(|name| !is_here(name)) {
        let reason = Isa::missing_amx().filter(|_| name == "amx");
        let reason = reason.map_or(String::new(), |reason| format!("{reason}; "));
        let said = format!("HONE_ISA={name}: {reason}this machine has scalar");
        ended(scene.hone(&["doctor"]).env("HONE_ISA", name)).says(2, &[&said]);
    }
}

/// Other arguments are looked through to find out what to print.
#[cfg(unix)]
#[test]
fn arguments_that_are_not_unicode() {
    use std::os::unix::ffi::OsStrExt;
    let scene = Scene::new();
    let mut train = scene.hone(&["train"]);
    train.arg(std::ffi::OsStr::from_bytes(b"\xff.toml")).args(["--nosuch", "--json"]);
    let refused = ended(&mut train);
    refused.says(2, &["'--nosuch'"]);
    let printed: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(printed["error"]["code"], "command_line.invalid", "{printed}");
}

const PROMPT_FIELD: &[&str] = &["eval", "model", "--data", "eval.jsonl", "--prompt-field", "q"];

fn leave_adapter(scene: &Scene) {
    std::fs::create_dir_all(scene.path("run/adapter")).unwrap();
    scene.write("run/adapter/adapter_config.json", "{}");
    scene.write("run/adapter/adapter_model.safetensors", "");
}

fn leave(scene: &Scene, dir: &str, empty_files: &[&str]) {
    std::fs::create_dir(scene.path(dir)).unwrap();
    empty_files.iter().for_each(|name| scene.write(&format!("{dir}/{name}"), ""));
}

#[test]
fn generate() {
    let long: &'static str = Box::leak("w5 ".repeat(70).into_boxed_str());
    let arguments: &'static [&'static str] =
        Box::leak(Box::new(["generate", "model", "--prompt", long]));
    check(&[
        command(
            "an empty prompt",
            &["generate", "model", "--prompt", ""],
            &["--prompt is empty", "give some text"],
        ),
        command(
            "a prompt that is too long",
            arguments,
            &["--prompt has 70 tokens", "supports only 64 in total", "shorten it"],
        ),
        Case {
            name: "an adapter instead of a model",
            spoil: leave_adapter,
            arguments: &["generate", "run/adapter", "--prompt", "w5"],
            says: &["run/adapter: this is an adapter", "--adapter"],
        },
        Case {
            name: "a run instead of its adapter",
            spoil: leave_adapter,
            arguments: &["generate", "model", "--adapter", "run", "--prompt", "w5"],
            says: &["run: the adapter is in run/adapter"],
        },
        command(
            "no template",
            &["generate", "model", "--prompt", "w5", "--chat"],
            &["--chat: this model has no chat template", "omit --chat"],
        ),
        command(
            "no model",
            &["generate", "nowhere", "--prompt", "w5"],
            &["model directory `nowhere` does not exist"],
        ),
        command(
            "no adapter",
            &["generate", "model", "--prompt", "w5", "--adapter", "nowhere"],
            &["nowhere: there is no such directory", "adapter_config.json"],
        ),
        Case {
            name: "a run that has not finished",
            spoil: |s| leave(s, "run", &["run.toml", "manifest.json"]),
            arguments: &["generate", "model", "--adapter", "run", "--prompt", "w5"],
            says: &["run: this run of `hone train` has not finished", "--resume"],
        },
        Case {
            name: "a checkpoint",
            spoil: |s| leave(s, "step-4", &["manifest.json"]),
            arguments: &["generate", "model", "--adapter", "step-4", "--prompt", "w5"],
            says: &["step-4: this is a checkpoint of `hone train`"],
        },
        Case {
            name: "an empty directory",
            spoil: |s| leave(s, "empty", &[]),
            arguments: &["generate", "model", "--adapter", "empty", "--prompt", "w5"],
            says: &["empty: adapter_config.json is missing"],
        },
    ]);
}

#[test]
fn a_template_that_raises() {
    let scene = Scene::new();
    let config = serde_json::json!({"chat_template": "{{ raise_exception('not now') }}"});
    scene.write("model/tokenizer_config.json", &config.to_string());
    let generate = &["generate", "model", "--prompt", "w5", "--chat"];
    let says = &["--chat: the chat template raises: not now"];
    refused("raises", &scene, &mut scene.hone(generate), says);
}

#[test]
fn eval() {
    check(&[
        command(
            "no data",
            &["eval", "model", "--data", "nowhere.txt"],
            &["nowhere.txt: no such file; check --data"],
        ),
        Case {
            name: "a file of an unknown kind",
            spoil: |s| s.write("book.csv", "a,b\n"),
            arguments: &["eval", "model", "--data", "book.csv"],
            says: &["book.csv", "\"csv\" are not supported", "--format text"],
        },
        Case {
            name: "a record of an unknown format",
            spoil: |s| s.write("book.jsonl", "{\"question\": \"w3\"}\n"),
            arguments: &["eval", "model", "--data", "book.jsonl"],
            says: &["book.jsonl:1", "--prompt-field"],
        },
        Case {
            name: "an empty file",
            spoil: |s| s.write("book.txt", ""),
            arguments: &["eval", "model", "--data", "book.txt"],
            says: &["book.txt: the file is empty"],
        },
        command(
            "rows that are too long",
            &["eval", "model", "--data", "eval.jsonl", "--max-seq-len", "3"],
            &["eval.jsonl:", "at most 3 are taken", "raise --max-seq-len", "--truncate"],
        ),
        command(
            "longer than the model supports",
            &["eval", "model", "--data", "eval.jsonl", "--max-seq-len", "65"],
            &["--max-seq-len 65", "the model's positions are 64"],
        ),
        command(
            "logits to nowhere",
            &["eval", "model", "--data", "eval.jsonl", "--logits", "nowhere/logits.safetensors"],
            &["--logits nowhere/logits.safetensors: there is no directory nowhere"],
        ),
    ]);
}

#[test]
fn flags_that_an_evaluation_would_not_read() {
    check(&[
        command(
            "fields of pairs",
            &[
                "eval",
                "model",
                "--data",
                "eval.jsonl",
                "--format",
                "pairs",
                "--prompt-field",
                "q",
                "--completion-field",
                "a",
            ],
            &[
                "--prompt-field and --completion-field are for --format prompt_completion",
                "not for pairs; remove them, or change --format",
            ],
        ),
        command(
            "an end of text of answers",
            &["eval", "model", "--data", "eval.jsonl", "--format", "rated", "--append-eos"],
            &["--append-eos is for --format text, not for rated", "remove it, or change --format"],
        ),
        command(
            "rewards of texts",
            &["eval", "model", "--data", "eval.jsonl", "--beta", "0.2"],
            &["--beta is for --format pairs or rated, not for auto"],
        ),
        command(
            "rewards without a base",
            &["eval", "model", "--data", "eval.jsonl", "--format", "pairs", "--beta", "0.2"],
            &["--beta is for rewards", "give --adapter, or leave it out"],
        ),
    ]);
}

#[test]
fn demo() {
    check(&[
        command(
            "a directory that exists",
            &["demo", "--dir", "model"],
            &["--dir model already exists", "choose another directory"],
        ),
        command(
            "a place below a file",
            &["demo", "--dir", "run.toml/demo"],
            &["--dir run.toml/demo cannot be created", "choose another"],
        ),
    ]);
}

#[test]
fn report() {
    check(&[
        command(
            "no run",
            &["report", "nowhere"],
            &["nowhere: no run is here", "manifest.json", "output.dir"],
        ),
        Case {
            name: "damaged samples",
            spoil: |s| {
                std::fs::create_dir(s.path("run")).unwrap();
                s.write("run/run.toml", "");
                s.write("run/manifest.json", "{}");
                s.write("run/samples.json", "[\n{]");
            },
            arguments: &["report", "run"],
            says: &["run/samples.json, line 2", "the file is damaged"],
        },
        command(
            "a file, and no page to write",
            &["report", "eval.jsonl"],
            &["--out is missing", "such as --out models.html"],
        ),
        command(
            "the page in place of a file",
            &["report", "eval.jsonl", "--out", "./eval.jsonl"],
            &["--out ./eval.jsonl is one of the files to read", "choose another"],
        ),
        command(
            "a directory among files",
            &["report", "eval.jsonl", "model", "--out", "page.html"],
            &["model: is a directory", "one run alone"],
        ),
        command(
            "a file that is not there",
            &["report", "eval.jsonl", "gone.json", "--out", "page.html"],
            &["eval.jsonl: is no file of one JSON object", "--json"],
        ),
        command(
            "a place that is not there",
            &["report", "eval.jsonl", "--out", "nowhere/page.html"],
            &["there is no directory nowhere"],
        ),
    ]);
}

/// Files that are not what commands write.
#[test]
fn figures_that_are_none() {
    let deep = "[".repeat(1000);
    let failed = "{\"error\": {\"code\": \"failed\", \"message\": \"no room\"}}";
    let cases: [(&str, &str, &[&str]); 6] = [
        ("another object", "{\"loss\": 1.5}", &["a.json: is not what `hone compress", "--task"]),
        ("a failure", failed, &["a.json: holds the error of a command that failed: no room"]),
        ("no figures", "{\"kl\": 0.5, \"tensors\": []}", &["a.json: is not", "`out`", "anew"]),
        ("no model", "{\"tasks\": []}", &["a.json: is not", "`model`", "hone eval --task"]),
        ("no object", "[1, 2]", &["a.json: is not what"]),
        ("nesting", &deep, &["a.json: is no file of one JSON object"]),
    ];
    for (name, text, says) in cases {
        let scene = Scene::new();
        scene.write("a.json", text);
        let report = ["report", "a.json", "--out", "page.html"];
        refused(name, &scene, &mut scene.hone(&report), says);
    }
}
