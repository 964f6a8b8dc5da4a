//! Reports as one HTML page, which is self-contained and fetches nothing. Of a run: curves, plan
//! against reality, samples, data, the run file; it is made from the files of the run directory
//! alone, so it can be made at any time, also of a run that was killed. Of models that were made
//! smaller: see [`comparison`].

pub mod comparison;
mod data;
mod format;
mod plot;
mod sections;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use format::escape;
use sources::{Amounts, Metrics, Sources};

pub use sources::ReportError;

const TEMPLATE: &str = include_str!("template.html");
/// Of all pages.
const STYLE: &str = include_str!("style.css");

/// A number of bytes as people read it: `1.5 GiB`.
pub fn format_bytes(bytes: u64) -> String {
    format::bytes(bytes as f64)
}

/// A duration as people read it: `3 min 20 s`.
pub fn format_seconds(seconds: f64) -> String {
    format::seconds(seconds)
}

/// Tokens per second as people read them: `0.42`, `17.3`, `12,345`.
pub fn format_rate(tokens_per_second: f64) -> String {
    format::three_digits(tokens_per_second)
}

/// Most points of a curve; longer runs are shown as means of several steps.
const MAX_POINTS: usize = 2000;

/// The report of the run in `run_dir`, as HTML. Needs `run.toml`; takes
/// `manifest.json`, `eval.jsonl` and `samples.json` where they are.
///
/// # Errors
/// A needed file is absent, or a file is not what a run writes (with its line).
pub fn build(run_dir: &Path) -> Result<String, ReportError> {
    let run = Sources::read(run_dir)?;
    let (model, data) = sections::names(&run);
    Ok(fill(TEMPLATE, |name| match name {
        "style" => STYLE.to_owned(),
        "title" => escape(&format!("{model} on {data} – Hone")),
        "heading" => format!("{} <i>on</i> {}", escape(&model), escape(&data)),
        "facts" => sections::facts(&run),
        "notice" => sections::notice(&run),
        "figures" => sections::figures(&run),
        "sections" => sections::below_curves(&run),
        "footer" => footer(&run),
        "data" => safe_json(&curves(&run)),
        other => unreachable!("the template asks for {other}"),
    }))
}

/// Replaces each `{{name}}` of the template; what is put in is not looked at again.
fn fill(template: &str, value: impl Fn(&str) -> String) -> String {
    let mut parts = template.split("{{");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("}}").expect("the template closes what it opens");
        out.push_str(&value(name));
        out.push_str(rest);
    }
    out
}

/// JSON that cannot end the script element that it stands in.
fn safe_json(value: &Value) -> String {
    value.to_string().replace('<', "\\u003c")
}

fn footer(run: &Sources) -> String {
    match &run.manifest.hone_version {
        Some(version) => format!("Made by Hone {}", escape(version)),
        None => "Made by Hone".to_owned(),
    }
}

/// Columns for the page's script; `null` where a value is absent or not finite.
fn curves(run: &Sources) -> Value {
    let size = run.metrics.len().div_ceil(MAX_POINTS).max(1);
    let groups: Vec<&[Metrics]> = run.metrics.chunks(size).collect();
    let column = |value: &dyn Fn(&Metrics) -> Option<f64>| -> Vec<Option<f64>> {
        groups.iter().map(|group| mean(group.iter().filter_map(value))).collect()
    };
    let objective = metric_names(run).into_iter().map(|name| {
        let value = |amounts: &Amounts| amounts.get(name).and_then(Value::as_f64);
        let of_evals: Vec<_> = run.evals.iter().map(|eval| value(&eval.metrics)).collect();
        json!({ "name": name, "train": column(&|line| value(&line.metrics)), "eval": of_evals })
    });
    let last_steps: Vec<u64> = groups.iter().filter_map(|group| Some(group.last()?.step)).collect();
    json!({
        "step": last_steps,
        "loss": column(&|line| line.loss),
        "learning_rate": column(&|line| line.learning_rate),
        "grad_norm": column(&|line| line.grad_norm),
        "tokens_per_second": column(&|line| line.tokens_per_second),
        "peak_bytes": column(&|line| line.peak_bytes),
        "objective": objective.collect::<Vec<_>>(),
        "planned_peak_bytes": run.manifest.plan.peak_bytes,
        "eval": {
            "step": run.evals.iter().map(|eval| eval.step).collect::<Vec<_>>(),
            "loss": run.evals.iter().map(|eval| eval.loss).collect::<Vec<_>>(),
        },
    })
}

/// Names of the objective's metrics, of steps and evaluations.
fn metric_names(run: &Sources) -> BTreeSet<&str> {
    let of_steps = run.metrics.iter().map(|line| &line.metrics);
    let all = of_steps.chain(run.evals.iter().map(|eval| &eval.metrics));
    all.flat_map(|amounts| amounts.keys().map(String::as_str)).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}
