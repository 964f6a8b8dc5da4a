//! The table and the picture.

use super::cases::{Case, Peer};
use super::{Figures, Round, median, ratios};
use std::fmt::Write as _;

const HEAD: &str = "# Training steps against PyTorch with PEFT

<!-- Written by `cargo xtask bench train`; do not edit. -->

A Llama of 135 million random weights (576/1536, 30 layers, 9 heads, 3 key-value heads, 49,152
tokens, tied embeddings); LoRA of rank 16 on all linear layers; forward, backward, clipping and
AdamW. Both train in turn, five rounds (two where a step holds more than 4,096 tokens); the ratio is
the median of the rounds' ratios, with the least and the greatest. Tokens are counted without
padding; on GSM8K both take the same rows, the peer eight at a time. Peaks are those of the whole
process. \"Of the peak\" is the share of the machine's own rate of multiply-adds in the compute
type that the step reaches, all of its time counted. Plans are made with rates measured just before
each case.

![Tokens per second](train.svg)

| workload | tokens | threads | Hone tok/s | peer tok/s | ratio | asked | Hone peak | peer peak \
| step planned | actual | off by | of the peak | start |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
| ---: | ---: | ---: | ---: | ---: |
";

fn rate(rounds: &[Round]) -> f64 {
    median(&rounds.iter().map(|round| round.tokens_per_second).collect::<Vec<_>>())
}

pub fn row(case: &Case, figures: &Figures) -> String {
    let peak = |rounds: &[Round]| rounds.iter().map(|round| round.peak_bytes).fold(0.0, f64::max);
    let ratios = ratios(figures);
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    let planned = figures.plan["step_seconds"].as_f64().unwrap_or(f64::NAN);
    let flops = figures.plan["flops_per_step"].as_f64().unwrap_or(f64::NAN);
    let ceiling = figures.plan["ceiling_flops"].as_f64().unwrap_or(f64::NAN);
    format!(
        "| {} | {} | {} | {:.0} | {:.0} | {:.2} ({least:.2}–{most:.2}) | {} | {:.0} MB | \
         {:.0} MB | {planned:.3} s | {:.3} s | {:+.0} % | {:.0} % | {:.2} s |\n",
        case.name,
        case.data.tokens(),
        case.threads,
        rate(&figures.hone),
        rate(&figures.peer),
        median(&ratios),
        case.target.map_or_else(String::new, |target| target.to_string()),
        peak(&figures.hone) / 1e6,
        peak(&figures.peer) / 1e6,
        figures.step_seconds,
        100.0 * (planned / figures.step_seconds - 1.0),
        100.0 * flops / figures.step_seconds / ceiling,
        figures.start_seconds,
    )
}

pub fn page(done: &[(&Case, Figures)], machine: &str) -> String {
    let mut page = String::from(HEAD);
    for (case, figures) in done {
        page.push_str(&row(case, figures));
    }
    let _ = writeln!(page, "\n{machine}");
    page
}

/// Height of a case's two bars with the gap after them.
const STEP: usize = 34;
/// Where bars begin, and how far they reach.
const LEFT: usize = 360;
const LENGTH: f64 = 420.0;

/// Two bars for each case that has PyTorch as its peer: Hone's tokens per second above PyTorch's.
pub fn picture(done: &[(&Case, Figures)]) -> String {
    let against_peft = |(case, _): &&(&Case, Figures)| matches!(case.peer, Peer::Peft { .. });
    let shown: Vec<_> = done.iter().filter(against_peft).collect();
    let rates = shown.iter().flat_map(|(_, figures)| [rate(&figures.hone), rate(&figures.peer)]);
    let greatest = rates.fold(1.0, f64::max);
    let (width, height) = (LEFT + LENGTH as usize + 120, 40 + STEP * shown.len());
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\"><tspan fill=\"#1f6f8b\">■</tspan> Hone  \
         <tspan fill=\"#b8b8b8\">■</tspan> PyTorch with PEFT, tokens per second</text>\n"
    );
    for (i, (case, figures)) in shown.iter().enumerate() {
        let y = 34 + STEP * i;
        let threads = if case.threads == 1 { ", 1 thread" } else { "" };
        let label = format!("{}, {}{threads}", case.name, case.data.tokens());
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" font-size=\"11\">{label}</text>",
            LEFT - 8,
            y + 17
        );
        let ratio = format!(", {:.1} ×", median(&ratios(figures)));
        let bars =
            [(rate(&figures.hone), "#1f6f8b", &*ratio), (rate(&figures.peer), "#b8b8b8", "")];
        for (bar, (rate, colour, note)) in bars.into_iter().enumerate() {
            let (y, length) = (y + 13 * bar, LENGTH * rate / greatest);
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
