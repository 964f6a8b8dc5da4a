//! `cargo xtask bench train` and `bench families`: training steps of Hone and of PyTorch with PEFT,
//! in turn, on models of random weights. Some cases compare Hone with Hone, in other settings, on
//! another model or under another instruction set.
//!
//! Each round lets the peer do its steps, then Hone; the ratio is taken within the round, so that a
//! machine that is slower for a while slows both. The peer's process waits while Hone runs.

mod asked;
mod cases;
mod families;
mod figures;
mod models;
mod page;
mod peer;
mod rest;

use super::doctor::Doctor;
use super::peer::venv;
use super::{Place, json, median, report};
use cases::{Case, EMBED, Other, Peer};
use figures::{Figures, Machine, Round};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

const RUN_FILE: &str = "\
[model]
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

/// The cases of a page under `docs/benchmarks`.
pub struct Suite {
    /// Of the page, and of the command: `bench NAME`.
    name: &'static str,
    /// What stands above the table.
    head: &'static str,
    /// With a picture of the cases that have PyTorch as their peer.
    has_picture: bool,
    /// How far a planned step may be off, as a share of the actual one.
    plan_within: Option<f64>,
    cases: &'static [Case],
}

/// `bench train`.
pub const LLAMA: Suite = Suite {
    name: "train",
    head: cases::HEAD,
    has_picture: true,
    plan_within: Some(0.1),
    cases: &cases::CASES,
};
/// `bench families`.
pub const FAMILIES: Suite = Suite {
    name: "families",
    head: families::HEAD,
    has_picture: false,
    plan_within: None,
    cases: &families::CASES,
};

/// Runs the cases whose key is named (all if there are none), with `--hone BINARY` if it is not to
/// be built; the page is written from the latest figures of every case.
pub fn run(root: &Path, suite: &Suite, args: &[&str]) -> ExitCode {
    let (hone, keys) = match args {
        ["--hone", hone, keys @ ..] => (Some(Path::new(hone)), keys),
        keys => (None, keys),
    };
    let place = Place::new(root, "bench-train", hone);
    report(suite.name, place.and_then(|place| try_run(&place, suite, keys)))
}

fn try_run(place: &Place, suite: &Suite, keys: &[&str]) -> Result<bool, String> {
    let unknown = keys.iter().find(|key| suite.cases.iter().all(|case| case.key != **key));
    if let Some(unknown) = unknown {
        let known: Vec<_> = suite.cases.iter().map(|case| case.key).collect();
        return Err(format!("there is no case `{unknown}`; there are {}", known.join(", ")));
    }
    let python = venv(&place.root)?;
    let run_file = std::fs::write(place.dir.join("run.toml"), RUN_FILE);
    run_file.map_err(|error| format!("{}: {error}", place.dir.display()))?;
    let doctor = Doctor::ask(&place.hone, None)?;
    let mut all_reached = true;
    for case in suite.cases.iter().filter(|case| keys.is_empty() || keys.contains(&case.key)) {
        if let Some(missing) = case.missing(place, &doctor) {
            println!("skipped: {missing} ({})", case.name);
            continue;
        }
        let figures = measure(place, &python, case)?;
        let (asked, reached) = asked::asked(suite, case, &figures, page::llama(place, suite));
        println!("{}{}", page::row(case, &figures, &asked), page::of_machine(&figures));
        page::keep(place, suite, case, &figures, &asked)?;
        all_reached &= reached;
        // Case by case, as a run takes an hour.
        page::write(place, suite)?;
    }
    Ok(all_reached)
}

fn measure(place: &Place, python: &Path, case: &Case) -> Result<Figures, String> {
    case.data.write(place).map_err(|error| error.to_string())?;
    let model = models::prepare(place, python, case.model, case.data)?;
    let others = match case.peer {
        Peer::Hone(Other { model: Some(other), .. }) => {
            models::prepare(place, python, other, case.data)?
        }
        _ => model.clone(),
    };
    let (rounds, num_steps) = case.rounds;
    let mut process = peer::start(place, python, case, &model)?;
    let kernel = process.as_ref().and_then(|process| peer::kernel(process.kernels()));
    let mut figures = Figures { kernel, ..Figures::default() };
    for _ in 0..rounds {
        figures.peer.push(match (&mut process, &case.peer) {
            (Some(process), _) => peer::round(process, case)?,
            (None, Peer::Hone(other)) => {
                let mut train = command(place, case, "train", &others);
                train.args(other.settings).arg(format!("run.threads={}", other.threads));
                if let Some(isa) = other.isa {
                    train.env("HONE_ISA", isa);
                }
                hone_round(place, &mut train, num_steps)?.0
            }
            (None, _) => unreachable!("PyTorch has a process"),
        });
        figures.machine.push(Machine::now(place, case)?);
        if case.method == EMBED {
            figures.hone.push(embed_round(place, &model, case)?);
            continue;
        }
        figures.plans.push(json(ours(place, case, "plan", &model).arg("--json"))?);
        let mut train = ours(place, case, "train", &model);
        let (round, step, start) = hone_round(place, &mut train, num_steps)?;
        figures.hone.push(round);
        figures.step_seconds.push(step);
        figures.start_seconds.push(start);
    }
    if case.asked.rest.is_some() {
        figures.rest = Some(rest::measure(place, &mut ours(place, case, "train", &model))?);
    }
    Ok(figures)
}

/// Hone on the case's data, without its settings and threads.
fn command(place: &Place, case: &Case, verb: &str, model: &str) -> Command {
    let mut command = Command::new(&place.hone);
    command.args([verb, "run.toml", &format!("model.path={model}")]).current_dir(&place.dir);
    command.args(case.data.settings());
    if case.method == "lora" {
        command.args(["adapter.kind=lora", "adapter.rank=16"]);
    }
    command
}

/// Hone as the case has it.
fn ours(place: &Place, case: &Case, verb: &str, model: &str) -> Command {
    let mut command = command(place, case, verb, model);
    command.args(case.settings).arg(format!("run.threads={}", case.threads));
    command
}

/// Embeds the texts in the compute type of the peer.
fn embed_round(place: &Place, model: &str, case: &Case) -> Result<Round, String> {
    let mut command = Command::new(&place.hone);
    command.args(["embed", model, "train.jsonl", "--out", "embeddings.npy", "--json"]);
    command.args(["--compute", "bf16", "--threads", &case.threads.to_string()]);
    let said = json(command.current_dir(&place.dir))?;
    let of = |key: &str| said[key].as_f64().unwrap_or(f64::NAN);
    Ok(Round { tokens_per_second: of("tokens") / of("seconds"), peak_bytes: of("peak_bytes") })
}

/// Removes what the last run left.
fn remove_run(place: &Place) -> Result<PathBuf, String> {
    let out = place.dir.join("run");
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    Ok(out)
}

/// Trains; returns what the steps after the first gave, the median of their seconds, and the time
/// before the first.
fn hone_round(
    place: &Place,
    command: &mut Command,
    num_steps: u64,
) -> Result<(Round, f64, f64), String> {
    let out = remove_run(place)?;
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
