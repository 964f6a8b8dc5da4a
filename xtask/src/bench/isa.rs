//! `cargo xtask bench isa`: the same runs under every instruction set that this machine has, with
//! one thread and with two, which must compute the same bits; also when a run is killed under one
//! instruction set and resumed under another.
//!
//! Digests stand in `docs/benchmarks/isa.json`, so that machines with other instruction sets
//! compare with them. NEON is tested elsewhere, under an emulator.

mod killed;
mod page;
mod record;

use super::doctor::Doctor;
use super::{Place, report, today};
use crate::bits::digest::{Digests, of_losses_and_evaluations, of_moments};
use record::Record;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// As `HONE_ISA` calls them, slowest first.
const SETS: [&str; 5] = ["scalar", "avx2", "avx512", "avx512bf16", "amx"];
const THREADS: [usize; 2] = [1, 2];

/// One training run.
struct Run {
    /// In `isa.json`, and the name of its directory.
    key: &'static str,
    title: &'static str,
    /// What is trained, as the first of the digests is called.
    result: &'static str,
    settings: &'static [&'static str],
}

const ADAPTER: [&str; 3] = ["adapter.kind=lora", "adapter.rank=6", "adapter.dropout=0.1"];
const RUNS: [Run; 3] = [
    Run {
        key: "lora-bf16",
        title: "LoRA, bf16",
        result: "adapter",
        settings: &[
            "model.base_precision=bf16",
            "model.compute=bf16",
            ADAPTER[0],
            ADAPTER[1],
            ADAPTER[2],
        ],
    },
    Run {
        key: "lora-int8",
        title: "LoRA, `compute = \"int8\"`",
        result: "adapter",
        settings: &["model.compute=int8", ADAPTER[0], ADAPTER[1], ADAPTER[2]],
    },
    Run {
        key: "full-bf16",
        title: "full, bf16 products",
        result: "model",
        settings: &["model.compute=bf16"],
    },
];

/// Contractions of 47 (tokens of attention), 94 (gradients of weights), 172 (`down_proj`), 8
/// (heads) and 6 (adapters), none a multiple of 32; two micro-batches a step. Small, since plain
/// Rust without multiply-adds computes a hundred tokens in a third of a second.
const RUN_FILE: &str = "\
[model]
path = \"model\"
[data]
train = \"train.jsonl\"
eval = \"eval.jsonl\"
max_seq_len = 47
overlong = \"truncate\"
on_error = \"skip\"
[train]
max_steps = 20
batch_tokens = 188
learning_rate = 2e-3
weight_decay = 0.01
eval_every_steps = 10
[checkpoint]
every_steps = 4
[budget]
micro_batch_tokens = 94
recompute = \"none\"
[run]
device = \"cpu\"
[report]
samples = 0
[output]
dir = \"set by each run\"
";

/// Rows that are trained and evaluated on: turns of speakers in Shakespeare's plays.
const NUM_ROWS: (usize, usize) = (64, 6);

/// What a run computed, digested: its result, the moments, and losses with those of evaluations.
type Parts = [String; 3];

/// A run under one instruction set.
struct Cell {
    set: &'static str,
    threads: usize,
    parts: Parts,
}

/// What the command was asked to do.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// Hone's binary; a release build unless given.
    hone: Option<PathBuf>,
    /// Writes `isa.json` anew.
    record: bool,
}

impl Options {
    /// Reads `[--hone BINARY] [--record]`.
    fn parse(args: &[&str]) -> Result<Self, String> {
        let mut options = Self::default();
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--record" => options.record = true,
                "--hone" => {
                    let binary = args.next().ok_or("--hone needs a binary")?;
                    options.hone = Some(PathBuf::from(binary));
                }
                _ => return Err(format!("unknown argument `{arg}`")),
            }
        }
        Ok(options)
    }
}

/// Runs everything and writes the page; fails, naming the first, where digests differ.
pub fn run(root: &Path, args: &[&str]) -> ExitCode {
    report("isa", Options::parse(args).and_then(|options| try_run(root, &options)))
}

fn try_run(root: &Path, options: &Options) -> Result<bool, String> {
    let place = Place::new(root, "bench-isa", options.hone.as_deref())?;
    let shared = root.join("../shared");
    if !shared.is_dir() {
        println!("skipped: ../shared is absent");
        return Ok(true);
    }
    prepare(&place, &shared).map_err(|error| format!("{}: {error}", place.dir.display()))?;
    let doctor = Doctor::ask(&place.hone, None)?;
    let here = doctor.instruction_sets();
    let sets: Vec<&'static str> = SETS.into_iter().filter(|set| here.contains(set)).collect();
    if sets.is_empty() {
        return Err("hone doctor tells of no instruction sets".to_owned());
    }
    keep_profiles(&place, &doctor, &sets)?;
    let rows: Vec<Vec<Cell>> =
        RUNS.iter().map(|run| cells(&place, run, &sets)).collect::<Result<_, _>>()?;
    let table = page::table(&rows);
    print!("{table}");
    record::all_equal(&rows)?;
    let kept = Record::read(&place)?;
    let machine = format!("{}, {}", today()?, doctor.machine()?);
    let found = Record::of(&rows, numerics(&place, sets[0])?, &machine);
    let kept = match kept.filter(|kept| !options.record && kept.numerics == found.numerics) {
        Some(kept) => {
            found.check_against(&kept)?;
            kept
        }
        None => {
            found.write(&place)?;
            found
        }
    };
    let killed = killed::both_ways(&place, &sets, &rows[0][0].parts)?;
    place.write_page("isa.md", &page::page(&table, &killed, &machine, &kept))?;
    Ok(true)
}

/// A run under every instruction set of `sets`.
fn cells(place: &Place, run: &Run, sets: &[&'static str]) -> Result<Vec<Cell>, String> {
    let all = sets.iter().flat_map(|&set| THREADS.map(|threads| (set, threads)));
    all.map(|(set, threads)| {
        eprintln!("{}, {set}, threads: {threads}", run.key);
        let dir = dir_of(run, set, threads);
        remove(&place.dir.join(&dir))?;
        ended(&mut train(place, run, set, threads, &dir))?;
        Ok(Cell { set, threads, parts: parts(&place.dir.join(dir))? })
    })
    .collect()
}

fn dir_of(run: &Run, set: &str, threads: usize) -> String {
    format!("{}-{set}-{threads}", run.key)
}

/// Trains into `dir` of this benchmark's folder.
fn train(place: &Place, run: &Run, set: &str, threads: usize, dir: &str) -> Command {
    let mut command = Command::new(&place.hone);
    command.args(["train", "run.toml"]).args(run.settings).current_dir(&place.dir);
    command.args([format!("run.threads={threads}"), format!("output.dir={dir}")]);
    command.env("HONE_ISA", set).env("XDG_CACHE_HOME", cache(place, set));
    command
}

/// Runs a command to its end; what it said on standard error.
fn ended(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(said) } else { Err(format!("{command:?}:\n{said}")) }
}

fn remove(dir: &Path) -> Result<(), String> {
    match dir.exists() {
        true => fs::remove_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display())),
        false => Ok(()),
    }
}

/// The digests of a finished run.
fn parts(dir: &Path) -> Result<Parts, String> {
    Ok([Digests::of_run(dir)?.weights, of_moments(dir)?, of_losses_and_evaluations(dir)?])
}

/// The version of Hone's rounding, which every run's manifest holds.
fn numerics(place: &Place, set: &str) -> Result<u64, String> {
    let name = format!("{}/manifest.json", dir_of(&RUNS[0], set, THREADS[0]));
    let text = fs::read(place.dir.join(&name)).map_err(|error| format!("{name}: {error}"))?;
    let manifest: Value = serde_json::from_slice(&text).map_err(|e| format!("{name}: {e}"))?;
    manifest["numerics"].as_u64().ok_or_else(|| format!("{name} has no `numerics`"))
}

fn cache(place: &Place, set: &str) -> PathBuf {
    place.dir.join(format!("cache-{set}"))
}

/// Gives every instruction set a profile of this machine, so that no run measures its own, which
/// takes minutes in plain Rust. These runs leave nothing to the planner that depends on rates.
fn keep_profiles(place: &Place, doctor: &Doctor, sets: &[&str]) -> Result<(), String> {
    for (set, threads) in sets.iter().flat_map(|set| THREADS.map(|threads| (set, threads))) {
        let mut profile = doctor.profile().clone();
        profile["isa"] = json!(set);
        profile["threads"] = json!(threads);
        let dir = cache(place, set).join("hone");
        let file = dir.join(format!("profile-{threads}-threads.json"));
        fs::create_dir_all(&dir)
            .and_then(|()| fs::write(&file, profile.to_string()))
            .map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(())
}

/// Model, data and run file.
fn prepare(place: &Place, shared: &Path) -> std::io::Result<()> {
    let (model, dir) = (place.dir.join("model"), &place.dir);
    if !model.exists() {
        std::os::unix::fs::symlink(shared.canonicalize()?.join("models/stories260k"), model)?;
    }
    fs::write(dir.join("run.toml"), RUN_FILE)?;
    let text = fs::read_to_string(shared.join("data/text/tinyshakespeare.txt"))?;
    let turns = text.split("\n\n").filter_map(|turn| turn.split_once('\n'));
    let row = |(speaker, words): (&str, &str)| {
        json!({ "prompt": format!("{speaker}\n"), "completion": words }).to_string() + "\n"
    };
    let rows: Vec<String> = turns.take(NUM_ROWS.0 + NUM_ROWS.1).map(row).collect();
    let (train, eval) = rows.split_at(NUM_ROWS.0.min(rows.len()));
    fs::write(dir.join("train.jsonl"), train.concat())?;
    fs::write(dir.join("eval.jsonl"), eval.concat())
}

#[cfg(test)]
mod tests;
