//! The tables, and the raw figures that they are made from.

use super::TIMED;
use super::WARM_UP;
use super::cases::Case;
use crate::bench::median;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

const HEAD: &str = "# Training on a GPU beside PyTorch with PEFT

<!-- Written by `gpu-check` (see `cargo xtask help`); do not edit. -->

Llamas of random weights in bf16; LoRA of rank 16 on all linear layers, adapters and moments in f32;
forward, backward, clipping and AdamW. Both see the same rows; tokens are counted without padding.
They ran one after the other, each alone on the GPU and each variant of PyTorch in a process of its
own, not in turn: what changes with time (clock, heat) does not cancel out. Medians of the steps,
with the least and the greatest. \"Of the ceiling\": of the rate of products that PyTorch reached in
the same run; counted are 4 FLOP per token for every weight of the layers' products, the same for
the head where a token is a target, and attention's six products over the pairs it sees; the same
for all, whatever they compute beside. Memory is what was taken of the GPU's, by the driver and its
context too; \"allocated\" is the most that PyTorch's allocator had given out at once.

PyTorch's f32 products run as TF32. \"Layers compiled\": `torch.compile` on every layer and on the
loss; \"rows end to end\": in one long row, without padding; otherwise padded to a batch's longest.
";

const COLUMNS: &str = "\
| run | tok/s | of the ceiling | step, s | planned, s | memory, MiB | planned, MiB \
| allocated, MiB |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// What is shown of every case, kept beside the page until the case is run again.
pub struct Page {
    out: PathBuf,
    tiny: bool,
    kept: Map<String, Value>,
}

impl Page {
    /// The page in `out` as it last was.
    pub fn open(out: &Path, tiny: bool) -> Result<Self, String> {
        std::fs::create_dir_all(out).map_err(|error| format!("{}: {error}", out.display()))?;
        let text = std::fs::read_to_string(out.join("gpu.json")).unwrap_or_default();
        Ok(Self {
            out: out.to_owned(),
            tiny,
            kept: serde_json::from_str(&text).unwrap_or_default(),
        })
    }

    /// Forgets what a case showed.
    pub fn begin(&mut self, case: &Case, gpu: &Value, flops_per_token: f64) {
        let shown = json!({
            "name": case.name,
            "step": case.step(),
            "gpu": gpu,
            "flops_per_token": flops_per_token,
            "rows": [],
        });
        self.kept.insert(case.key.to_owned(), shown);
    }

    /// What there is of PyTorch: its versions and the ceiling, or why there is none.
    pub fn say_of_peers(&mut self, cases: &[Case], about: &Value) -> Result<(), String> {
        for case in cases {
            self.kept[case.key]["peers"] = about.clone();
        }
        self.write()
    }

    /// Shows and keeps a row.
    pub fn push(&mut self, case: &Case, row: Value) -> Result<(), String> {
        let of_case = &mut self.kept[case.key];
        eprintln!("{}: {}", case.key, line(of_case, &row).trim_end());
        if let Some(rows) = of_case["rows"].as_array_mut() {
            rows.push(row);
        }
        self.write()
    }

    fn write(&self) -> Result<(), String> {
        let figures =
            serde_json::to_string_pretty(&self.kept).map_err(|error| error.to_string())?;
        let all = super::cases::all(self.tiny);
        let files = [("gpu.json", figures + "\n"), ("gpu.md", self.text(&all))];
        files.iter().try_for_each(|(name, text)| {
            let path = self.out.join(name);
            std::fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
        })
    }

    /// The page with these cases, as far as they were run.
    pub fn text(&self, cases: &[Case]) -> String {
        let mut text = String::from(HEAD);
        let _ = writeln!(
            text,
            "{TIMED} steps were timed, after {WARM_UP} or more in which kernels are compiled."
        );
        if self.tiny {
            text.push_str(
                "\nTiny models on a CPU, to try the benchmark: the figures say nothing.\n",
            );
        }
        for of_case in cases.iter().filter_map(|case| self.kept.get(case.key)) {
            text.push_str(&section(of_case));
        }
        text
    }
}

/// A case's table, and what comes of it.
pub fn section(of_case: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = &of_case["peers"];
    let about = match (&peers["missing"], peers["ceiling_flops"].as_f64()) {
        (Value::String(reason), _) => format!("PyTorch was not found: {reason}"),
        (_, Some(flops)) => {
            let tera = flops / 1e12;
            format!("{}; the ceiling is {tera:.1} TFLOP/s", word(&peers["versions"]))
        }
        _ => "PyTorch did not run".to_owned(),
    };
    let (name, step, gpu) = (&of_case["name"], &of_case["step"], &of_case["gpu"]);
    let gpu = gpu.as_str().unwrap_or("No GPU");
    let mut text = format!("\n## {}\n\n{}. {gpu}; {about}.\n\n", word(name), word(step));
    text.push_str(COLUMNS);
    let no_rows = Vec::new();
    let rows = of_case["rows"].as_array().unwrap_or(&no_rows);
    rows.iter().for_each(|row| text.push_str(&line(of_case, row)));
    let _ = writeln!(text, "\n{}", ratio(rows));
    text
}

fn numbers(row: &Value, key: &str) -> Vec<f64> {
    let all = row[key].as_array().into_iter().flatten();
    all.map(|x| x.as_f64().unwrap_or(f64::NAN)).collect()
}

/// Tokens per second of every step.
fn rates(row: &Value) -> Vec<f64> {
    let (seconds, tokens) = (numbers(row, "step_seconds"), numbers(row, "step_tokens"));
    tokens.into_iter().zip(seconds).map(|(tokens, seconds)| tokens / seconds).collect()
}

fn line(of_case: &Value, row: &Value) -> String {
    let name = row["name"].as_str().unwrap_or_default();
    if let Some(error) = row["error"].as_str() {
        return format!("| {name} | {} | | | | | | |\n", error.replace('|', "/"));
    }
    let rates = rates(row);
    let rate = median(&rates);
    let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rates.iter().copied().fold(0.0, f64::max);
    let shown = |value: Option<f64>, decimals: usize| {
        value.map_or_else(String::new, |value| format!("{value:.decimals$}"))
    };
    let mib = |key: &str| shown(row[key].as_f64().map(|bytes| bytes / f64::from(1 << 20)), 0);
    let ceiling = of_case["peers"]["ceiling_flops"].as_f64();
    let needed = of_case["flops_per_token"].as_f64().unwrap_or(f64::NAN);
    let of_ceiling = ceiling.map(|ceiling| 100.0 * rate * needed / ceiling);
    format!(
        "| {name} | {rate:.0} ({least:.0}–{most:.0}) | {} | {:.3} | {} | {} | {} | {} |\n",
        of_ceiling.map_or_else(String::new, |percent| format!("{percent:.0} %")),
        median(&numbers(row, "step_seconds")),
        shown(row["planned_seconds"].as_f64(), 3),
        mib("peak_bytes"),
        mib("planned_bytes"),
        mib("allocated_bytes"),
    )
}

/// Hone against the fastest of PyTorch's variants.
fn ratio(rows: &[Value]) -> String {
    let ran = |row: &&Value| row["error"].is_null();
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    let is_hone = |row: &&Value| name(row).starts_with("Hone");
    let rate = |row: &Value| median(&rates(row));
    let hone = rows.iter().filter(ran).find(|row| name(row) == "Hone");
    let best = rows.iter().filter(ran).filter(|row| !is_hone(row));
    let best = best.max_by(|a, b| rate(a).total_cmp(&rate(b)));
    match (hone, best) {
        (Some(hone), Some(best)) => {
            let ratio = rate(hone) / rate(best);
            format!("Hone / best of PyTorch ({}): {ratio:.2}", name(best))
        }
        (None, _) => "Hone did not run.".to_owned(),
        (_, None) => "No variant of PyTorch ran.".to_owned(),
    }
}
