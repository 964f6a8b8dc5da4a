//! `cargo xtask bench int8`: what holding weights as int8, and multiplying in int8, does to the
//! loss of a real model after fine-tuning on real text.

use super::{Place, report};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

const SEEDS: [u64; 3] = [1, 2, 3];

/// Name, and settings on top of [`RUN_FILE`].
const WAYS: [(&str, &[&str]); 3] = [
    ("weights f32 as in the file, products in bf16", &[]),
    ("weights held as int8, products in bf16", &["model.base_precision=int8"]),
    ("weights held as int8, products in int8", &["model.compute=int8"]),
];

const RUN_FILE: &str = "\
[model]
path = \"model\"
compute = \"bf16\"
[data]
train = [\"train\"]
eval = [\"test\"]
max_seq_len = 512
overlong = \"truncate\"
on_error = \"skip\"
[adapter]
kind = \"lora\"
rank = 16
[train]
batch_tokens = 4096
max_steps = 150
learning_rate = 2e-3
[run]
device = \"cpu\"
[report]
samples = 0
[output]
dir = \"run\"
";

/// One data set: its name, the names of its two files, and how it is read.
struct Data {
    name: &'static str,
    files: [&'static str; 2],
    settings: &'static [&'static str],
}

const DATA: [Data; 2] = [
    Data {
        name: "tinyshakespeare",
        files: ["shakespeare-train.txt", "shakespeare-test.txt"],
        settings: &["data.format=text", "objective.kind=pretrain"],
    },
    Data {
        name: "GSM8K",
        files: ["gsm8k-train.jsonl", "gsm8k-test.jsonl"],
        settings: &["data.prompt_field=question", "data.completion_field=answer"],
    },
];

/// Held-out rows of GSM8K.
const TEST_ROWS: usize = 200;

/// Trains with every combination and writes the page.
pub fn run(root: &Path) -> ExitCode {
    let place = Place::new(root, "bench-int8", None);
    report("int8", place.and_then(|place| try_run(&place)))
}

fn try_run(place: &Place) -> Result<bool, String> {
    let shared = place.root.join("../shared");
    if !shared.is_dir() {
        println!("skipped: ../shared is absent");
        return Ok(true);
    }
    prepare(place, &shared).map_err(|error| format!("{}: {error}", place.dir.display()))?;
    let mut page = HEAD.to_owned();
    for data in &DATA {
        let mut of_bf16 = None;
        for (name, settings) in WAYS {
            let mut losses = Vec::new();
            for seed in SEEDS {
                losses.push(final_losses(place, data, settings, seed)?);
                eprintln!("{}, {name}, seed {seed}: {:?}", data.name, losses.last());
            }
            let (before, after) = (mean(&losses, |l| l.0), mean(&losses, |l| l.1));
            let least = losses.iter().map(|l| l.1).fold(f64::INFINITY, f64::min);
            let greatest = losses.iter().map(|l| l.1).fold(0.0, f64::max);
            let change = after / *of_bf16.get_or_insert(after) - 1.0;
            let _ = writeln!(
                page,
                "| {} | {name} | {before:.4} | {after:.4} ({least:.4}–{greatest:.4}) | {:+.2} % |",
                data.name,
                100.0 * change
            );
        }
    }
    print!("{page}");
    place.write_page("int8.md", &format!("{page}\nMachine: {}.\n", place.machine()?))?;
    Ok(true)
}

const HEAD: &str = "\
# What int8 does to the loss

<!-- Written by `cargo xtask bench int8`; do not edit. -->

stories260k (a real model of 260,000 parameters, rows of 64 and 172), LoRA rank 16 on all linear
layers, 150 steps of 4,096 tokens, three seeds. Loss on held-out text before and after: mean of the
seeds, least and greatest in brackets; the last column compares the mean with that of the first row.
Not shown by so small a model: features far greater than the others, which large models have and
which make rows of activations harder to quantise (Dettmers et al., LLM.int8(), 2022).

| data | how | before | after | change |
| --- | --- | --- | --- | --- |
";

fn mean(losses: &[(f64, f64)], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    losses.iter().map(of).sum::<f64>() / losses.len() as f64
}

/// Held-out loss before and after a run.
fn final_losses(
    place: &Place,
    data: &Data,
    settings: &[&str],
    seed: u64,
) -> Result<(f64, f64), String> {
    let run = place.dir.join("run");
    let _ = fs::remove_dir_all(&run);
    let [train, test] = data.files;
    let mut command = Command::new(&place.hone);
    command.args(["train", "run.toml"]).args(settings).args(data.settings).current_dir(&place.dir);
    command.arg(format!("data.train=[\"{train}\"]")).arg(format!("data.eval=[\"{test}\"]"));
    let output = command.arg(format!("train.seed={seed}")).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let lines = fs::read_to_string(run.join("eval.jsonl")).map_err(|e| e.to_string())?;
    let loss = |line: &str| {
        let record: serde_json::Value = serde_json::from_str(line).ok()?;
        record["loss"].as_f64()
    };
    let losses: Option<Vec<f64>> = lines.lines().map(loss).collect();
    match losses.as_deref() {
        Some([before, .., after]) => Ok((*before, *after)),
        _ => Err(format!("eval.jsonl holds no two losses:\n{lines}")),
    }
}

/// Model and data as the run file names them.
fn prepare(place: &Place, shared: &Path) -> std::io::Result<()> {
    let shared = shared.canonicalize()?;
    let (model, dir) = (place.dir.join("model"), &place.dir);
    if !model.exists() {
        std::os::unix::fs::symlink(shared.join("models/stories260k"), model)?;
    }
    fs::write(dir.join("run.toml"), RUN_FILE)?;
    let text = fs::read_to_string(shared.join("data/text/tinyshakespeare.txt"))?;
    let middle = text[..text.len() / 10 * 9].rfind("\n\n").unwrap_or(0);
    fs::write(dir.join(DATA[0].files[0]), &text[..middle])?;
    fs::write(dir.join(DATA[0].files[1]), &text[middle..])?;
    let gsm8k = shared.join("data/sft/gsm8k");
    fs::copy(gsm8k.join("train.jsonl"), dir.join(DATA[1].files[0]))?;
    let test = fs::read_to_string(gsm8k.join("test.jsonl"))?;
    let rows: Vec<&str> = test.lines().take(TEST_ROWS).collect();
    fs::write(dir.join(DATA[1].files[1]), rows.join("\n"))
}
