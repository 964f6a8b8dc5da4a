//! The table and the picture.

use super::super::Place;
use super::cases::{CASES, Case, Peer};
use super::{Figures, Round, median, ratios};
use serde_json::{Map, Value, json};
use std::fmt::Write as _;
use std::process::Command;

const HEAD: &str = "# Training steps against PyTorch with PEFT

<!-- Written by `cargo xtask bench train`; do not edit. -->

A Llama of 135 million random weights (576/1536, 30 layers, 9 heads, 3 key-value heads, 49,152
tokens, tied embeddings); LoRA of rank 16 on all linear layers; forward, backward, clipping and
AdamW. Both train in turn, five rounds (two where a step holds more than 4,096 tokens); the ratio is
the median of the rounds' ratios, with the least and the greatest. Tokens are counted without
padding; on GSM8K both take the same rows, the peer eight at a time. Peaks are those of the whole
process. \"Of the peak\" is the share of the machine's own rate of multiply-adds in the compute
type that the step reaches, all of its time counted. In each round a plan is made with rates
measured just before the step; \"off by\" is the median of the rounds. Rows of different days may
come from different machines: their ratios compare, their rates do not. In the picture the peer's
bars have one length.

![Tokens per second](train.svg)

| workload | tokens | threads | Hone tok/s | peer tok/s | ratio | asked | Hone peak | peer peak \
| step planned | actual | off by | of the peak | start | measured |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
| ---: | ---: | ---: | ---: | ---: | --- |
";

fn rate(rounds: &[Round]) -> f64 {
    median(&rounds.iter().map(|round| round.tokens_per_second).collect::<Vec<_>>())
}

/// A line of the table without its last column, the day.
pub fn row(case: &Case, figures: &Figures) -> String {
    let peak = |rounds: &[Round]| rounds.iter().map(|round| round.peak_bytes).fold(0.0, f64::max);
    let ratios = ratios(figures);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let planned = |key: &str| -> Vec<f64> {
        figures.plans.iter().map(|plan| plan[key].as_f64().unwrap_or(f64::NAN)).collect()
    };
    let (seconds, actual) = (planned("step_seconds"), &figures.step_seconds);
    let deviations: Vec<f64> = seconds.iter().zip(actual).map(|(p, a)| p / a - 1.0).collect();
    let rates = planned("flops_per_step").into_iter().zip(actual).map(|(flops, s)| flops / s);
    let of_peak = rates.zip(planned("ceiling_flops")).map(|(rate, most)| rate / most);
    let of_peak: Vec<f64> = of_peak.collect();
    format!(
        "| {} | {} | {} | {:.0} | {:.0} | {:.2} ({least:.2}–{most:.2}) | {} | {:.0} MB | \
         {:.0} MB | {:.3} s | {:.3} s | {:+.0} % | {:.0} % | {:.2} s |",
        case.name,
        case.data.tokens(),
        case.threads,
        rate(&figures.hone),
        rate(&figures.peer),
        median(&ratios),
        case.target.map_or_else(String::new, |target| target.to_string()),
        peak(&figures.hone) / 1e6,
        peak(&figures.peer) / 1e6,
        median(&seconds),
        median(actual),
        100.0 * median(&deviations),
        100.0 * median(&of_peak),
        figures.start_seconds,
    )
}

/// What the page shows of each case, kept beside it until the case is run again.
const KEPT: &str = "train.json";

fn kept(place: &Place) -> Map<String, Value> {
    let text = std::fs::read_to_string(place.page(KEPT)).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

pub fn keep(place: &Place, case: &Case, figures: &Figures) -> Result<(), String> {
    let mut all = kept(place);
    let shown = json!({
        "row": row(case, figures),
        "measured": format!("{}, {}", today()?, place.machine()?),
        "hone": rate(&figures.hone).round(),
        "peer": rate(&figures.peer).round(),
        "ratio": (100.0 * median(&ratios(figures))).round() / 100.0,
    });
    all.insert(case.key.to_owned(), shown);
    let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
    place.write_page(KEPT, &format!("{text}\n"))
}

/// The date as `2026-01-31`.
fn today() -> Result<String, String> {
    let output = Command::new("date").arg("+%F").output();
    let output = output.map_err(|error| format!("date: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Writes table and picture of all cases that were run.
pub fn write(place: &Place) -> Result<(), String> {
    let kept = kept(place);
    let of = |case: &'static Case| Some((case, kept.get(case.key)?.clone()));
    let shown: Vec<(&Case, Value)> = CASES.iter().filter_map(of).collect();
    let mut page = String::from(HEAD);
    for (_, shown) in &shown {
        let text = |key: &str| shown[key].as_str().unwrap_or_default();
        let _ = writeln!(page, "{} {} |", text("row"), text("measured"));
    }
    place.write_page("train.md", &page)?;
    place.write_page("train.svg", &picture(&shown))
}

/// Height of a case's two bars with the gap after them.
const STEP: usize = 34;
/// Where bars begin, and how far they reach.
const LEFT: usize = 360;
const LENGTH: f64 = 420.0;

/// Two bars for each case that has PyTorch as its peer, Hone's above PyTorch's, which all have one
/// length: cases may come from different machines.
fn picture(shown: &[(&Case, Value)]) -> String {
    let against_peft = |(case, _): &&(&Case, Value)| matches!(case.peer, Peer::Peft { .. });
    let shown: Vec<_> = shown.iter().filter(against_peft).collect();
    let figure = |shown: &Value, key: &str| shown[key].as_f64().unwrap_or(0.0);
    let max_ratio = shown.iter().map(|(_, s)| figure(s, "ratio")).fold(1.0, f64::max);
    let (width, height) = (LEFT + LENGTH as usize + 120, 40 + STEP * shown.len());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\"><tspan fill=\"#1f6f8b\">■</tspan> Hone  \
         <tspan fill=\"#b8b8b8\">■</tspan> PyTorch with PEFT, tokens per second</text>\n"
    );
    for (i, (case, of_case)) in shown.iter().enumerate() {
        let y = 34 + STEP * i;
        let threads = if case.threads == 1 { ", 1 thread" } else { "" };
        let label = format!("{}, {}{threads}", case.name, case.data.tokens());
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"11\">{label}</text>",
            LEFT - 8,
            y + 17
        );
        let ratio = figure(of_case, "ratio");
        let note = format!(", {ratio:.1} ×");
        let (hone, peer) = (figure(of_case, "hone"), figure(of_case, "peer"));
        let bars = [(hone, ratio, "#1f6f8b", &*note), (peer, 1.0, "#b8b8b8", "")];
        for (bar, (rate, relative, colour, note)) in bars.into_iter().enumerate() {
            let (y, length) = (y + 13 * bar, LENGTH * relative / max_ratio);
            let end = LEFT as f64 + length + 5.0;
            let _ = writeln!(
                svg,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"12\" \
                 fill=\"{colour}\"/>\n<text x=\"{end:.1}\" y=\"{}\">{rate:.0}{note}</text>",
                y + 10
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}
