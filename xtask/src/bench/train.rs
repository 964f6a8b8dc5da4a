//! `cargo xtask bench train`: training steps of Hone and of PyTorch with PEFT, in turn, on a Llama
//! of 135 million random weights. Some cases compare Hone with Hone in other settings.
//!
//! Each round lets the peer do its steps, then Hone; the ratio is taken within the round, so that a
//! machine that is slower for a while slows both. The peer's process waits while Hone runs.

mod cases;
mod page;
mod peer;

use super::model::{M135, Precision, write_model};
use super::{Place, json, median, report};
use cases::{CASES, Case, Data, Peer, gsm8k, prepare_gsm8k};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const RUN_FILE: &str = "\
[model]
path = \"135M\"
compute = \"bf16\"
[data]
train = [\"train.jsonl\"]
[train]
warmup_steps = 0
[run]
device = \"cpu\"
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
    /// Made just before each round of Hone's, with rates measured then.
    plans: Vec<Value>,
    /// Medians of each round.
    step_seconds: Vec<f64>,
    /// From the start of the process to the first step.
    start_seconds: f64,
}

/// Runs the cases whose key is among `keys` (all if there are none); the page is written from the
/// latest figures of every case.
pub fn run(root: &Path, keys: &[&str]) -> ExitCode {
    let place = Place::new(root, "bench-train", None);
    report("train", place.and_then(|place| try_run(&place, keys)))
}

fn try_run(place: &Place, keys: &[&str]) -> Result<bool, String> {
    let unknown = keys.iter().find(|key| CASES.iter().all(|case| case.key != **key));
    if let Some(unknown) = unknown {
        let known: Vec<_> = CASES.iter().map(|case| case.key).collect();
        return Err(format!("there is no case `{unknown}`; there are {}", known.join(", ")));
    }
    let python = peer::venv(place)?;
    prepare(place).map_err(|error| format!("{}: {error}", place.dir.display()))?;
    let mut all_reached = true;
    for case in CASES.iter().filter(|case| keys.is_empty() || keys.contains(&case.key)) {
        if matches!(case.data, Data::Gsm8k) && !gsm8k(place).is_file() {
            println!("skipped: ../shared is absent ({})", case.name);
            continue;
        }
        let figures = measure(place, &python, case)?;
        print!("{}", page::row(case, &figures));
        page::keep(place, case, &figures)?;
        all_reached &= case.target.is_none_or(|target| median(&ratios(&figures)) >= target);
    }
    page::write(place)?;
    Ok(all_reached)
}

fn prepare(place: &Place) -> std::io::Result<()> {
    let model = place.dir.join("135M");
    if !model.join("model.safetensors").is_file() {
        write_model(&model, &M135, Precision::Bf16)?;
    }
    prepare_gsm8k(place)?;
    std::fs::write(place.dir.join("run.toml"), RUN_FILE)
}

fn measure(place: &Place, python: &Path, case: &Case) -> Result<Figures, String> {
    case.data.write(place).map_err(|error| error.to_string())?;
    let command = |verb: &str, settings: &[&str], threads: usize| {
        let mut command = Command::new(&place.hone);
        command.args([verb, "run.toml", &format!("model.path={}", case.data.model())]);
        command.arg(format!("run.threads={threads}")).current_dir(&place.dir);
        command.args(case.data.settings()).args(settings);
        if case.method == "lora" {
            command.args(["adapter.kind=lora", "adapter.rank=16"]);
        }
        command
    };
    let (rounds, num_steps) = case.rounds();
    let threads = case.threads.to_string();
    let mut process = peer::start(place, python, case)?;
    let (mut hone, mut peers, mut starts) = (vec![], vec![], vec![]);
    let (mut plans, mut step_seconds) = (vec![], vec![]);
    for _ in 0..rounds {
        peers.push(match (&mut process, &case.peer) {
            (Some(process), _) => peer::round(process, case)?,
            (None, Peer::Hone { settings, threads }) => {
                hone_round(place, &mut command("train", settings, *threads), num_steps)?.0
            }
            (None, Peer::Peft { .. }) => unreachable!("PyTorch has a process"),
        });
        json(Command::new(&place.hone).args(["doctor", "--json", "--threads", &threads]))?;
        plans.push(json(command("plan", case.settings, case.threads).arg("--json"))?);
        let mut train = command("train", case.settings, case.threads);
        let (round, step, start) = hone_round(place, &mut train, num_steps)?;
        hone.push(round);
        step_seconds.push(step);
        starts.push(start);
    }
    Ok(Figures { hone, peer: peers, plans, step_seconds, start_seconds: median(&starts) })
}

/// Trains; returns what the steps after the first gave, the median of their seconds, and the time
/// before the first.
fn hone_round(
    place: &Place,
    command: &mut Command,
    num_steps: u64,
) -> Result<(Round, f64, f64), String> {
    let out = place.dir.join("run");
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    let begun = Instant::now();
    command
        .arg(format!("train.max_steps={num_steps}"))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
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

fn ratios(figures: &Figures) -> Vec<f64> {
    let both = figures.hone.iter().zip(&figures.peer);
    both.map(|(hone, peer)| hone.tokens_per_second / peer.tokens_per_second).collect()
}
