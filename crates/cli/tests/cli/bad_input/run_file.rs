//! The run file and its overrides.

use super::{Case, TRAIN, check, command, refused, replace, train};
use crate::sandbox::Scene;
use crate::sandbox::tiny_model::write_model;

#[test]
fn keys() {
    check(&[
        train(
            "misspelt key",
            |s| replace(s, "run.toml", "learning_rate", "lerning_rate"),
            &["run.toml, line ", "train.lerning_rate", "did you mean `train.learning_rate`?"],
        ),
        train(
            "unknown key",
            |s| replace(s, "run.toml", "[report]", "[report]\nflavour = 1"),
            &["report.flavour", "unknown key; the keys of [report] are samples"],
        ),
        train(
            "unknown table",
            |s| replace(s, "run.toml", "[report]", "[repotr]"),
            &["repotr", "did you mean [report]?"],
        ),
        train(
            "missing key",
            |s| replace(s, "run.toml", "path =", "compute = \"f32\" #"),
            &["model.path", "missing", "For example"],
        ),
        train(
            "not TOML",
            |s| s.write("run.toml", "[model\n"),
            &["run.toml, line 1", "this is not TOML"],
        ),
        train(
            "wrong type",
            |s| replace(s, "run.toml", "max_steps = 12", "max_steps = \"many\""),
            &["train.max_steps", "\"many\" (string)", "a whole number, 1 or above"],
        ),
        train(
            "out of range",
            |s| replace(s, "run.toml", "rank = 4", "rank = 0"),
            &["adapter.rank", "found 0", "from 1 to 1024"],
        ),
        train(
            "wrong choice",
            |s| replace(s, "run.toml", "kind = \"lora\"", "kind = \"lorra\""),
            &["adapter.kind", "Did you mean \"lora\"?"],
        ),
        train(
            "a weight of zero",
            |s| s.write("run.toml", "[[data.train]]\npath = \"train.jsonl\"\nweight = 0\n"),
            &["run.toml, line 3", "data.train.weight", "found 0", "above 0, at most 1000"],
        ),
        train(
            "paths among tables",
            |s| replace(s, "run.toml", "\"train.jsonl\"", "[\"train.jsonl\", {path = \"a\"}]"),
            &["data.train", "\"train.jsonl\" (string) among tables", "all as texts"],
        ),
        train(
            "a weight of evaluation data",
            |s| replace(s, "run.toml", "\"eval.jsonl\"", "[{path = \"a\", weight = 2}]"),
            &["data.eval", "expected a text or a list of texts"],
        ),
        train(
            "keys that exclude each other",
            |s| replace(s, "run.toml", "max_steps = 12", "max_steps = 12\nnum_epochs = 1"),
            &["train.num_epochs", "train.max_steps", "remove one of the two"],
        ),
    ]);
}

/// `hone train run.toml` with an override.
macro_rules! overridden {
    ($name:expr, $setting:expr, $says:expr) => {
        command($name, &["train", "run.toml", $setting], $says)
    };
}

#[test]
fn overrides() {
    check(&[
        overridden!("misspelt", "train.sed=1", &["on the command line", "`train.seed`"]),
        overridden!("no value", "train.seed", &["is not an override; write key=value"]),
        overridden!("bad number", "train.learning_rate=fast", &["\"fast\"", "a number above 0"]),
        overridden!("bad size", "budget.memory=lots", &["\"lots\"", "a size such as \"16GiB\""]),
        overridden!(
            "batch shorter than a row",
            "train.batch_tokens=16",
            &["16 is less than max_seq_len = 32", "set train.batch_tokens to 32 or more"]
        ),
        overridden!(
            "micro-batch of broken rows",
            "budget.micro_batch_tokens=40",
            &["40 is not a multiple of max_seq_len = 32", "try 32"]
        ),
        command(
            "rows longer than the model was made for",
            &[
                "train",
                "run.toml",
                "data.max_seq_len=128",
                "train.batch_tokens=128",
                "budget.micro_batch_tokens=128",
            ],
            &["data.max_seq_len = 128", "the model's positions are 64", "at most 64"],
        ),
        overridden!(
            "a target that matches no layer",
            "adapter.target_modules=q_prj",
            &["adapter.target_modules: `q_prj` matches no linear layer", "q_proj, k_proj"]
        ),
        command(
            "f16 on the CPU",
            &["train", "run.toml", "model.compute=f16", "run.device=cpu"],
            &["compute = \"f16\" and \"fp8\" are for GPUs", "\"bf16\""],
        ),
        command(
            "weights beside a GPU that does not compute",
            &["train", "run.toml", "budget.offload=all", "run.device=cpu"],
            &["budget.offload = \"all\" is for GPUs", "leave it out"],
        ),
        overridden!(
            "an adapter to start from that is not there",
            "adapter.init_from=nowhere",
            &["nowhere: there is no such directory", "PEFT layout"]
        ),
    ]);
}

/// An encoder's positions are rows of a table, of which RoBERTa leaves some out. Where the run file
/// allows longer rows, no data is looked for.
#[test]
fn rows_longer_than_learned_positions() {
    let scene = Scene::new();
    write_model("roberta", &scene.path("model"));
    let tokens = "{\"mask_token\": \"<unk>\", \"eos_token\": \"</s>\"}";
    scene.write("model/tokenizer_config.json", tokens);
    let (generation, masked) = ("[report]\nsamples = 1\nmax_new_tokens = 4", "kind = \"masked\"");
    replace(&scene, "run.toml", generation, &format!("[objective]\n{masked}"));
    let row = format!("{{\"prompt\": \"w5{}\", \"completion\": \" w6\"}}\n", " w5".repeat(16));
    scene.write("train.jsonl", &row);
    let short = ["data.max_seq_len=15", "train.batch_tokens=120", "budget.micro_batch_tokens=15"];
    let says =
        ["train.jsonl:1: the row has 19 tokens", "at most 15", "data.overlong = \"truncate\""];
    refused("a long row", &scene, &mut scene.train(&short), &says);
    std::fs::remove_file(scene.path("train.jsonl")).unwrap();
    let says = ["data.max_seq_len = 32", "the model's positions are 15", "at most 15"];
    refused("long rows allowed", &scene, &mut scene.train(&[]), &says);
}

#[test]
fn memory_that_cannot_fit() {
    check(&[overridden!(
        "a budget below the program itself",
        "budget.memory=1MB",
        &["needs", "977 KiB may be taken", "What would make it fit", "budget.memory = \""]
    )]);
    // `plan` prints the plan all the same, and ends with status 2.
    let scene = Scene::new();
    let plan = &["plan", "run.toml", "budget.memory=1MB", "--json"];
    let ended = crate::sandbox::ended(&mut scene.hone(plan));
    ended.says(2, &["What would make it fit", "budget.memory = \""]);
    let plan: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(plan["fits"], false);
}

/// An adapter to start from keeps its layers, which the run file must not contradict.
#[test]
fn layers_of_another_adapter() {
    let scene = Scene::new();
    let short = ["train.max_steps=1", "report.samples=0", "output.dir=first"];
    crate::sandbox::ended(&mut scene.train(&short)).says(0, &[]);
    let init = ["adapter.init_from=first/adapter", "adapter.target_modules=q_proj"];
    let says = ["adapter.init_from: first/adapter adapts", "adapter.target_modules asks for other"];
    refused("other layers", &scene, &mut scene.train(&init), &says);
}

#[test]
fn files_that_are_not_there() {
    const NOWHERE: &[&str] = &["train", "nowhere.toml"];
    check(&[
        Case {
            name: "no run file",
            spoil: |_| {},
            arguments: NOWHERE,
            says: &["cannot read the run file nowhere.toml", "no such file"],
        },
        Case {
            name: "data for a run file",
            spoil: |_| {},
            arguments: &["train", "train.jsonl"],
            says: &["train.jsonl: this is data, and a run file is needed", "data.train"],
        },
        Case {
            name: "the run file is a directory",
            spoil: |s| {
                std::fs::remove_file(s.path("run.toml")).unwrap();
                std::fs::create_dir(s.path("run.toml")).unwrap();
            },
            arguments: TRAIN,
            says: &["cannot read the run file run.toml"],
        },
        overridden!(
            "no data",
            "data.train=nowhere.jsonl",
            &["nowhere.jsonl: no such file", "data.train"]
        ),
        overridden!(
            "a pattern without a match",
            "data.train=*.csv",
            &["*.csv: the glob matches no file", "correct the pattern"]
        ),
        overridden!(
            "no model",
            "model.path=nowhere",
            &["model directory `nowhere` does not exist", "config.json"]
        ),
    ]);
}
