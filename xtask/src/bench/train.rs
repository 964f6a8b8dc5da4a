//! `cargo xtask bench train`: training steps of Hone and of PyTorch with PEFT, in turn, on a Llama
//! of 135 million random weights.
//!
//! Each round lets the peer do its steps, then Hone; the ratio is taken within the round, so that a
//! machine that is slower for a while slows both. The peer's process waits while Hone runs.

use super::model::{
    M135, Precision, gpt2_tokenizer, write_documents, write_model, write_tokenizer,
};
use super::{Place, json, report};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// Steps of Hone in a round; the first only warms up.
const STEPS: u64 = 4;
/// Rows of GSM8K that both train on.
const GSM8K_ROWS: usize = 48;

/// One workload.
struct Case {
    /// Names it on the command line.
    key: &'static str,
    name: &'static str,
    method: &'static str,
    /// Hone's settings on top of [`RUN_FILE`].
    settings: &'static [&'static str],
    peer: Peer,
    threads: usize,
    data: Data,
    /// The least ratio that we ask for.
    target: Option<f64>,
}

/// How PyTorch runs.
struct Peer {
    dtype: &'static str,
    checkpointing: bool,
    /// Adapters and their moments in bf16 too, which Hone does not do.
    bf16_adapters: bool,
}

#[derive(Clone, Copy)]
enum Data {
    /// Full rows of so many tokens, so many of them a step.
    Words { len: usize, rows: usize },
    /// Question and answer, only answers are targets.
    Gsm8k,
}

const BF16: Peer = Peer { dtype: "bf16", checkpointing: false, bf16_adapters: false };
const F32: Peer = Peer { dtype: "f32", ..BF16 };
const SHORT: Data = Data::Words { len: 256, rows: 4 };

const fn lora(key: &'static str, name: &'static str, data: Data, target: Option<f64>) -> Case {
    Case { key, name, method: "lora", settings: &[], peer: BF16, threads: 2, data, target }
}

const fn of_length(key: &'static str, name: &'static str, len: usize, rows: usize) -> Case {
    lora(key, name, Data::Words { len, rows }, None)
}

const CASES: [Case; 14] = [
    lora("bf16", "LoRA, bf16", SHORT, Some(2.5)),
    Case {
        peer: Peer { bf16_adapters: true, ..BF16 },
        ..lora("bf16-adapters", "LoRA, bf16, peer's adapters and moments too", SHORT, None)
    },
    Case {
        settings: &["model.compute=f32", "model.base_precision=f32"],
        peer: F32,
        ..lora("f32", "LoRA, f32", SHORT, None)
    },
    lora("gsm8k", "LoRA, bf16, GSM8K, peer padded", Data::Gsm8k, Some(5.0)),
    Case { method: "full", ..lora("full", "full, bf16 products", SHORT, Some(1.5)) },
    Case { threads: 1, ..lora("1-thread", "LoRA, bf16", SHORT, None) },
    Case {
        settings: &["budget.recompute=block"],
        peer: Peer { checkpointing: true, ..BF16 },
        ..lora("recompute", "LoRA, bf16, blocks recomputed by both", SHORT, None)
    },
    of_length("len-512", "LoRA, bf16", 512, 2),
    of_length("len-1024", "LoRA, bf16", 1024, 1),
    of_length("len-2048", "LoRA, bf16", 2048, 1),
    of_length("len-4096", "LoRA, bf16", 4096, 1),
    Case {
        peer: Peer { checkpointing: true, ..BF16 },
        ..of_length("len-8192", "LoRA, bf16, peer with checkpointing", 8192, 1)
    },
    of_length("batch-4096", "LoRA, bf16", 256, 16),
    Case {
        peer: Peer { checkpointing: true, ..BF16 },
        ..of_length("batch-16384", "LoRA, bf16, peer with checkpointing", 256, 64)
    },
];

const RUN_FILE: &str = "\
[model]
path = \"135M\"
compute = \"bf16\"
[data]
train = [\"train.jsonl\"]
[train]
warmup_steps = 0
[report]
samples = 0
[output]
dir = \"run\"
";

/// What one side did in a round.
struct Round {
    tokens_per_second: f64,
    peak_bytes: f64,
}

/// Both sides of a case.
struct Figures {
    hone: Vec<Round>,
    peer: Vec<Round>,
    plan: Value,
    step_seconds: f64,
    /// From the start of the process to the first step.
    start_seconds: f64,
}

/// Runs the cases whose key is among `keys` (all if there are none); the page is written when all
/// were run.
pub fn run(root: &Path, keys: &[&str]) -> ExitCode {
    let place = Place::new(root, "bench-train", None);
    report("train", place.and_then(|place| try_run(&place, keys)))
}

fn try_run(place: &Place, keys: &[&str]) -> Result<bool, String> {
    let python = venv(place)?;
    prepare(place).map_err(|error| format!("{}: {error}", place.dir.display()))?;
    let mut done = Vec::new();
    for case in CASES.iter().filter(|case| keys.is_empty() || keys.contains(&case.key)) {
        if matches!(case.data, Data::Gsm8k) && !gsm8k(place).is_file() {
            println!("skipped: ../shared is absent ({})", case.name);
            continue;
        }
        let figures = measure(place, &python, case)?;
        print!("{}", row(case, &figures));
        done.push((case, figures));
    }
    if keys.is_empty() {
        place.write_page("train.md", &page(place, &done)?)?;
    }
    let reached = |(case, figures): &(&Case, Figures)| {
        case.target.is_none_or(|target| median(&ratios(figures)) >= target)
    };
    Ok(done.iter().all(reached))
}

/// The peers' own environment, made when it is missing (about 5 GB).
fn venv(place: &Place) -> Result<std::path::PathBuf, String> {
    let dir = place.root.join("target/bench-venv");
    let python = dir.join("bin/python");
    if !python.exists() {
        eprintln!("installing PyTorch, transformers and PEFT into {}", dir.display());
        let ok = |command: &mut Command| command.status().is_ok_and(|status| status.success());
        let made = ok(Command::new("python3").args(["-m", "venv"]).arg(&dir))
            && ok(Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args([
                "torch",
                "transformers",
                "peft",
            ]));
        if !made {
            return Err("the peers could not be installed".to_owned());
        }
    }
    Ok(python)
}

fn gsm8k(place: &Place) -> std::path::PathBuf {
    place.root.join("../shared/data/sft/gsm8k/train.jsonl")
}

fn prepare(place: &Place) -> std::io::Result<()> {
    let model = place.dir.join("135M");
    if !model.join("model.safetensors").is_file() {
        write_model(&model, &M135, Precision::Bf16)?;
    }
    let gpt2 = place.root.join("../shared/data/tokenizers/gpt2");
    if gsm8k(place).is_file() && gpt2.is_dir() {
        let other = place.dir.join("135M-gpt2");
        std::fs::create_dir_all(&other)?;
        for name in ["config.json", "model.safetensors"] {
            let _ = std::fs::remove_file(other.join(name));
            std::fs::hard_link(model.join(name), other.join(name))?;
        }
        write_tokenizer(&other, &gpt2_tokenizer(&gpt2, M135.vocab_size)?)?;
    }
    std::fs::write(place.dir.join("run.toml"), RUN_FILE)
}

impl Data {
    fn model(self) -> &'static str {
        match self {
            Data::Words { .. } => "135M",
            Data::Gsm8k => "135M-gpt2",
        }
    }

    fn write(self, place: &Place) -> std::io::Result<()> {
        let path = place.dir.join("train.jsonl");
        match self {
            // The end-of-text token makes each row full.
            Data::Words { len, rows } => write_documents(&path, &vec![len - 1; 2 * rows]),
            Data::Gsm8k => {
                let all = std::fs::read_to_string(gsm8k(place))?;
                let some: Vec<&str> = all.lines().take(GSM8K_ROWS).collect();
                std::fs::write(&path, some.join("\n") + "\n")
            }
        }
    }

    fn rows_per_step(self) -> usize {
        match self {
            Data::Words { rows, .. } => rows,
            Data::Gsm8k => 8,
        }
    }

    fn settings(self) -> Vec<String> {
        match self {
            Data::Words { len, rows } => vec![
                format!("data.max_seq_len={len}"),
                format!("train.batch_tokens={}", len * rows),
            ],
            Data::Gsm8k => [
                "data.max_seq_len=512",
                "train.batch_tokens=1536",
                "data.format=prompt_completion",
                "data.prompt_field=question",
                "data.completion_field=answer",
            ]
            .map(str::to_owned)
            .to_vec(),
        }
    }
}

fn measure(place: &Place, python: &Path, case: &Case) -> Result<Figures, String> {
    case.data.write(place).map_err(|error| error.to_string())?;
    let model = format!("model.path={}", case.data.model());
    let command = |verb: &str| {
        let mut command = Command::new(&place.hone);
        command.args([verb, "run.toml", &model, &format!("run.threads={}", case.threads)]);
        command.args(case.data.settings()).args(case.settings).current_dir(&place.dir);
        if case.method == "lora" {
            command.args(["adapter.method=lora", "adapter.rank=16"]);
        }
        command
    };
    // The first plan on a machine measures its speed.
    json(command("plan").arg("--json"))?;
    let plan = json(command("plan").arg("--json"))?;
    let mut peer = PeerProcess::start(place, python, case)?;
    let (mut hone, mut peers, mut steps, mut starts) = (vec![], vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        peers.push(peer.round(case)?);
        let (round, step, start) = hone_round(place, &mut command("train"))?;
        hone.push(round);
        steps.push(step);
        starts.push(start);
    }
    let (step_seconds, start_seconds) = (median(&steps), median(&starts));
    Ok(Figures { hone, peer: peers, plan, step_seconds, start_seconds })
}

/// Trains; returns what the steps after the first gave, the median of their seconds, and the time
/// before the first.
fn hone_round(place: &Place, command: &mut Command) -> Result<(Round, f64, f64), String> {
    let out = place.dir.join("run");
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    let begun = Instant::now();
    command.arg(format!("train.max_steps={STEPS}")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let metrics = out.join("metrics.jsonl");
    let first = loop {
        let text = std::fs::read_to_string(&metrics).unwrap_or_default();
        if text.contains('\n') || child.try_wait().is_ok_and(|status| status.is_some()) {
            break begun.elapsed();
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = std::fs::read_to_string(&metrics).map_err(|error| error.to_string())?;
    let steps: Vec<Value> = text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
    let of = |step: &Value, key: &str| step[key].as_f64().unwrap_or(f64::NAN);
    let sum = |key: &str| steps[1..].iter().map(|step| of(step, key)).sum::<f64>();
    let manifest = std::fs::read(out.join("manifest.json")).map_err(|error| error.to_string())?;
    let manifest: Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
    let round = Round {
        tokens_per_second: sum("tokens") / sum("step_seconds"),
        peak_bytes: of(&manifest["actual"], "peak_bytes"),
    };
    let seconds: Vec<f64> = steps[1..].iter().map(|step| of(step, "step_seconds")).collect();
    let start = first.as_secs_f64() - of(&steps[0], "step_seconds");
    Ok((round, median(&seconds), start))
}

/// PyTorch, waiting for its turn.
struct PeerProcess {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl PeerProcess {
    fn start(place: &Place, python: &Path, case: &Case) -> Result<Self, String> {
        let settings = json!({
            "model": place.dir.join(case.data.model()),
            "data": place.dir.join("train.jsonl"),
            "rows_per_step": case.data.rows_per_step(),
            "method": case.method,
            "dtype": case.peer.dtype,
            "checkpointing": case.peer.checkpointing,
            "bf16_adapters": case.peer.bf16_adapters,
            "threads": case.threads,
        });
        let path = place.dir.join("peer.json");
        std::fs::write(&path, settings.to_string()).map_err(|error| error.to_string())?;
        let errors = std::fs::File::create(place.dir.join("peer.log"));
        let mut child = Command::new(python)
            .arg(place.root.join("bench/peft_steps.py"))
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors.map_err(|error| error.to_string())?)
            .spawn()
            .map_err(|error| error.to_string())?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err("the peer has no pipes".to_owned());
        };
        let mut peer = Self { child, input, output: BufReader::new(output) };
        peer.answer()?;
        Ok(peer)
    }

    fn answer(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        let read = self.output.read_line(&mut line).map_err(|error| error.to_string())?;
        match read {
            0 => Err("the peer ended; see target/bench-train/peer.log".to_owned()),
            _ => serde_json::from_str(&line).map_err(|error| format!("{line}: {error}")),
        }
    }

    fn round(&mut self, case: &Case) -> Result<Round, String> {
        // As many rows of GSM8K as Hone sees, since their lengths differ.
        let steps = if matches!(case.data, Data::Gsm8k) { GSM8K_ROWS / 8 } else { 1 };
        writeln!(self.input, "{steps}").map_err(|error| error.to_string())?;
        let answer = self.answer()?;
        let of = |key: &str| answer[key].as_f64().unwrap_or(f64::NAN);
        let tokens_per_second = of("tokens") / of("seconds");
        Ok(Round { tokens_per_second, peak_bytes: of("peak_bytes") })
    }
}

impl Drop for PeerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn ratios(figures: &Figures) -> Vec<f64> {
    let both = figures.hone.iter().zip(&figures.peer);
    both.map(|(hone, peer)| hone.tokens_per_second / peer.tokens_per_second).collect()
}

const HEAD: &str = "# Training steps against PyTorch with PEFT

<!-- Written by `cargo xtask bench train`; do not edit. -->

A Llama of 135 million random weights (576/1536, 30 layers, 9 heads, 3 key-value heads, 49,152
tokens, tied embeddings); LoRA of rank 16 on all linear layers; forward, backward, clipping and
AdamW. Both train in turn, five rounds; the ratio is the median of the rounds' ratios, with the
least and the greatest. Tokens are counted without padding. Peaks are those of the whole process.
\"Of the peak\" is the share of the machine's own rate of multiply-adds that the step reaches, all
of its time counted.

| workload | tokens | threads | Hone tok/s | PEFT tok/s | ratio | asked | Hone peak | PEFT peak \
| step planned | actual | off by | of the peak | start |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
| ---: | ---: | ---: | ---: | ---: |
";

fn row(case: &Case, figures: &Figures) -> String {
    let rate = |rounds: &[Round]| {
        median(&rounds.iter().map(|round| round.tokens_per_second).collect::<Vec<_>>())
    };
    let peak = |rounds: &[Round]| rounds.iter().map(|round| round.peak_bytes).fold(0.0, f64::max);
    let ratios = ratios(figures);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let planned = figures.plan["step_seconds"].as_f64().unwrap_or(f64::NAN);
    let flops = figures.plan["flops_per_step"].as_f64().unwrap_or(f64::NAN);
    let ceiling = figures.plan["ceiling_flops"].as_f64().unwrap_or(f64::NAN);
    let tokens = match case.data {
        Data::Words { len, rows } => format!("{rows} × {len}"),
        Data::Gsm8k => "1536 packed".to_owned(),
    };
    format!(
        "| {} | {tokens} | {} | {:.0} | {:.0} | {:.2} ({least:.2}–{most:.2}) | {} | {:.0} MB | \
         {:.0} MB | {planned:.3} s | {:.3} s | {:+.0} % | {:.0} % | {:.2} s |\n",
        case.name,
        case.threads,
        rate(&figures.hone),
        rate(&figures.peer),
        median(&ratios),
        case.target.map_or_else(String::new, |target| format!("{target:.1}")),
        peak(&figures.hone) / 1e6,
        peak(&figures.peer) / 1e6,
        figures.step_seconds,
        100.0 * (planned / figures.step_seconds - 1.0),
        100.0 * flops / figures.step_seconds / ceiling,
        figures.start_seconds,
    )
}

fn page(place: &Place, done: &[(&Case, Figures)]) -> Result<String, String> {
    let mut page = String::from(HEAD);
    for (case, figures) in done {
        page.push_str(&row(case, figures));
    }
    let _ = writeln!(page, "\n{}", place.machine()?);
    Ok(page)
}
