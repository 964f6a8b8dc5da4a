//! Training on the GPU beside PyTorch with PEFT: models of random weights, Hone first and then
//! PyTorch's variants, each alone on the GPU since none leaves room for another.
//!
//! Page and figures are written after every row, so that little is lost where time runs out.

mod cases;
mod hone;
mod page;
mod peers;
#[cfg(test)]
mod tests;

use super::options::Options;
use crate::bench::json;
pub use cases::keys;
use cases::{Case, Row};
use page::Page;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Steps before any is timed: kernels are compiled and memory is taken in them.
const WARM_UP: usize = 2;
/// Steps that are timed.
const TIMED: usize = 5;
const NUM_STEPS: usize = WARM_UP + TIMED;

/// What is run, where, and where the benchmark finds things.
pub struct Bench<'a> {
    root: &'a Path,
    hone: PathBuf,
    /// Models, rows and runs.
    work: PathBuf,
    options: &'a Options,
    /// The GPU's name; null without one.
    gpu: Value,
    cases: Vec<Case>,
}

impl<'a> Bench<'a> {
    /// Chooses the cases that are asked for and fit the GPU. Hone's binary is beside this program,
    /// or was packed or built.
    pub fn new(root: &'a Path, dir: &Path, options: &'a Options) -> Result<Self, String> {
        let places = [dir, &root.join("target/gpu-check"), &root.join("target/release")];
        let hone = places.iter().map(|place| place.join("hone")).find(|hone| hone.is_file());
        let hone = hone.ok_or("there is no binary of Hone beside this one, nor in target/")?;
        let work = if options.tiny { "target/gpu-check/tiny" } else { "target/gpu-check/models" };
        let doctor = json(Command::new(&hone).args(["doctor", "--json"]))?;
        let gpu = &doctor["gpus"][options.device.parse::<usize>().unwrap_or(0)];
        let memory = gpu["memory_bytes"].as_u64().unwrap_or(0);
        let asked = cases::all(options.tiny).into_iter().filter(|case| options.wants(case.key));
        let (cases, others): (Vec<_>, Vec<_>) = asked.partition(|case| case.wants_bytes <= memory);
        for case in others {
            let wants = case.wants_bytes >> 30;
            println!("{}: skipped, it wants {wants} GiB of a GPU's memory", case.name);
        }
        if cases.is_empty() {
            let problem = doctor["gpu_problem"].as_str().unwrap_or("no GPU has room for any model");
            return Err(format!("nothing was trained: {problem}"));
        }
        let (work, gpu) = (root.join(work), gpu["name"].clone());
        Ok(Self { root, hone, work, options, gpu, cases })
    }

    /// The device as Hone and PyTorch name it.
    fn device(&self) -> String {
        match self.options.tiny {
            true => "cpu".to_owned(),
            false => format!("cuda:{}", self.options.device),
        }
    }

    /// Rows and runs of a case.
    fn place(&self, case: &Case) -> PathBuf {
        self.work.join(case.key)
    }

    /// Writes the models of all cases that are not there.
    pub fn write_models(&self) -> std::io::Result<()> {
        self.cases.iter().try_for_each(|case| hone::write_model_once(self, case))
    }
}

/// Trains all cases; whether Hone trained all of them.
pub fn run(bench: &Bench<'_>) -> Result<bool, String> {
    let Bench { root, work, options, cases, .. } = bench;
    let pages = if options.tiny { work.clone() } else { root.join("docs/benchmarks") };
    let mut page = Page::open(options.out.as_ref().unwrap_or(&pages), options.tiny)?;
    let mut all_trained = true;
    for case in cases {
        let rows = case.rows(NUM_STEPS);
        page.begin(case, &bench.gpu, flops_per_token(case, &rows));
        prepare(bench, case, &rows)?;
        for variant in case.hone {
            let row = hone::row(bench, case, variant);
            all_trained &= row.get("error").is_none();
            page.push(case, row)?;
        }
    }
    if let Err(reason) = peers::run(bench, &mut page) {
        println!("PyTorch was not found: {reason}");
        page.say_of_peers(cases, &json!({"missing": reason}))?;
    }
    println!("\n{}", page.text(cases));
    Ok(all_trained)
}

/// The model, and the rows for both sides.
fn prepare(bench: &Bench<'_>, case: &Case, rows: &[Row]) -> Result<(), String> {
    let place = bench.place(case);
    let prepared = std::fs::create_dir_all(&place)
        .and_then(|()| hone::write_model_once(bench, case))
        .and_then(|()| cases::write_for_hone(&place.join("train.jsonl"), rows))
        .and_then(|()| cases::write_for_peer(&place.join("rows.jsonl"), rows));
    prepared.map_err(|error| format!("{}: {error}", place.display()))
}

/// What a token of these rows takes on average; see [`crate::bench::model::Shape::lora_flops`].
fn flops_per_token(case: &Case, rows: &[Row]) -> f64 {
    let num_tokens: usize = rows.iter().map(|row| row.ids.len()).sum();
    let of_row = |row: &Row| {
        let len = row.ids.len();
        case.shape.lora_flops(len, len - row.first_target.max(1))
    };
    rows.iter().map(of_row).sum::<f64>() / num_tokens as f64
}
