//! `cargo xtask bench plan`: what `hone plan` says against what `hone train` then takes, for a few
//! runs that differ in everything that memory depends on. Speed has its own benchmarks.
//!
//! Models and data are generated; `stories260k` joins where `../shared` has it.

use super::model::{Precision, SMALL, write_data, write_model};
use super::{Place, json, report};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, ExitCode};

/// One run to compare.
struct Run {
    name: &'static str,
    model: &'static str,
    /// Settings on top of [`RUN_FILE`].
    settings: &'static [&'static str],
}

const LORA: &str = "adapter.kind=lora";
const RUNS: [Run; 6] = [
    Run {
        name: "LoRA, f32, rows of 256, one micro-batch, nothing recomputed",
        model: "stories260k",
        settings: &[LORA, "data.max_seq_len=256", "train.batch_tokens=8192"],
    },
    Run {
        name: "full, f32, rows of 512, 4 micro-batches",
        model: "stories260k",
        settings: &[
            "data.max_seq_len=512",
            "train.batch_tokens=16384",
            "budget.micro_batch_tokens=4096",
            "budget.recompute=none",
        ],
    },
    Run {
        name: "LoRA, f32, rows of 256, one micro-batch, nothing recomputed",
        model: "22M-f32",
        settings: &[
            LORA,
            "data.max_seq_len=256",
            "train.batch_tokens=1024",
            "budget.micro_batch_tokens=1024",
            "budget.recompute=none",
        ],
    },
    Run {
        name: "LoRA, bf16, rows of 1024, blocks recomputed",
        model: "22M-bf16",
        settings: &[
            LORA,
            "data.max_seq_len=1024",
            "train.batch_tokens=2048",
            "budget.micro_batch_tokens=2048",
            "budget.recompute=block",
        ],
    },
    Run {
        name: "full, f32, rows of 128, 8 micro-batches, blocks recomputed",
        model: "22M-f32",
        settings: &[
            "data.max_seq_len=128",
            "train.batch_tokens=1024",
            "budget.micro_batch_tokens=128",
            "budget.recompute=block",
        ],
    },
    Run {
        name: "full, bf16 products, rows of 256, the planner's choice",
        model: "22M-bf16",
        settings: &["data.max_seq_len=256", "train.batch_tokens=1024"],
    },
];

const RUN_FILE: &str = "\
[model]
path = \"set by each run\"
[data]
train = [\"train.jsonl\"]
[train]
max_steps = 5
[run]
device = \"cpu\"
[report]
samples = 0
[output]
dir = \"run\"
";

/// Planned and actual figures of a run.
struct Figures {
    arena: [f64; 2],
    peak: [f64; 2],
    step_seconds: [f64; 2],
}

/// Runs all, writes the page, and fails where an arena differs or a peak is off by 5 % or more.
pub fn run(root: &Path, hone: Option<&Path>) -> ExitCode {
    report("plan", Place::new(root, "bench-plan", hone).and_then(|place| try_run(&place)))
}

fn try_run(place: &Place) -> Result<bool, String> {
    let dir = &place.dir;
    prepare(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut page = String::from(HEAD);
    let mut all_true = true;
    let stories = place.root.join("../shared/models/stories260k");
    for run in &RUNS {
        let model = if run.model == "stories260k" { &stories } else { &dir.join(run.model) };
        if !model.is_dir() {
            println!("skipped: ../shared is absent ({}: {})", run.model, run.name);
            continue;
        }
        let figures = compare(&place.hone, dir, model, run)?;
        let row = figures.row(run);
        print!("{row}");
        page.push_str(&row);
        all_true &= figures.came_true();
    }
    let _ = writeln!(page, "\nMachine: {}.", place.machine()?);
    place.write_page("plan.md", &page)?;
    Ok(all_true)
}

const HEAD: &str = "# Plan against reality

<!-- Written by `cargo xtask bench plan`; do not edit. -->

`hone plan` in one process, `hone train` in another; figures in MiB and seconds. The peak is that of
the whole process. Step times are medians; another load on the machine shows in them, and not in
memory. The models named 22M have 22 million random weights.

| model | run | arena planned | actual | peak planned | actual | off by | step planned | actual |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

fn prepare(dir: &Path) -> std::io::Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::create_dir_all(dir)?;
    write_model(&dir.join("22M-f32"), &SMALL, Precision::F32)?;
    write_model(&dir.join("22M-bf16"), &SMALL, Precision::Bf16)?;
    write_data(&dir.join("train.jsonl"))?;
    std::fs::write(dir.join("run.toml"), RUN_FILE)
}

/// Plans, trains, and reads what the run noted in its manifest.
fn compare(hone: &Path, dir: &Path, model: &Path, run: &Run) -> Result<Figures, String> {
    let out = dir.join("run");
    if out.exists() {
        std::fs::remove_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    }
    let model = format!("model.path={}", model.display());
    let command = |verb: &str| {
        let mut command = Command::new(hone);
        command.args([verb, "run.toml", &model, "--json"]).args(run.settings).current_dir(dir);
        command
    };
    // The first plan on a machine measures its speed, which takes memory of its own.
    json(&mut command("plan"))?;
    let plan = json(&mut command("plan"))?;
    json(&mut command("train"))?;
    let manifest = std::fs::read(out.join("manifest.json")).map_err(|error| error.to_string())?;
    let manifest: Value = serde_json::from_slice(&manifest).map_err(|error| error.to_string())?;
    let actual = &manifest["actual"];
    let both = |key: &str| [&plan, actual].map(|of| of[key].as_f64().unwrap_or(f64::NAN));
    Ok(Figures {
        arena: both("arena_bytes"),
        peak: both("peak_bytes"),
        step_seconds: both("step_seconds"),
    })
}

impl Figures {
    /// Share by which the planned peak is off.
    fn deviation(&self) -> f64 {
        self.peak[0] / self.peak[1] - 1.0
    }

    fn came_true(&self) -> bool {
        self.arena[0] == self.arena[1] && self.deviation().abs() < 0.05
    }

    fn row(&self, run: &Run) -> String {
        let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
        format!(
            "| {} | {} | {} | {} | {} | {} | {:+.1} % | {:.3} | {:.3} |\n",
            run.model,
            run.name,
            mib(self.arena[0]),
            mib(self.arena[1]),
            mib(self.peak[0]),
            mib(self.peak[1]),
            100.0 * self.deviation(),
            self.step_seconds[0],
            self.step_seconds[1],
        )
    }
}
