//! The table and the picture.

use super::super::doctor::Rates;
use super::super::{Place, today};
use super::cases::{Case, Peer};
use super::figures::{Figures, Round, peak};
use super::{Suite, median};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// The columns of the table.
const COLUMNS: &str = "\
| workload | tokens | threads | Hone tok/s | peer tok/s | ratio | asked | Hone peak | peer peak \
| step planned | actual | off by | of the peak | start | instruction set | from registers, GFLOP/s \
| with loads, GFLOP/s | peer's products | measured |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: \
| ---: | ---: | ---: | ---: | ---: | --- | ---: \
| ---: | --- | --- |
";

/// What rows from before instruction sets were told have in their columns.
const UNTOLD: &str = " – | – | – | – |";

fn rate(rounds: &[Round]) -> f64 {
    median(&rounds.iter().map(|round| round.tokens_per_second).collect::<Vec<_>>())
}

/// A line of the table up to what it tells of the machine.
pub fn row(case: &Case, figures: &Figures, asked: &str) -> String {
    let ratios = figures.ratios();
    let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
    let most = ratios.iter().copied().fold(0.0, f64::max);
    format!(
        "| {} | {} | {} | {:.0} | {:.0} | {:.2} ({least:.2}–{most:.2}) | {} | {:.0} MB | \
         {:.0} MB | {} | {} | {} | {} | {} |",
        case.name,
        case.data.tokens(),
        case.threads,
        rate(&figures.hone),
        rate(&figures.peer),
        median(&ratios),
        asked,
        peak(&figures.hone) / 1e6,
        peak(&figures.peer) / 1e6,
        or_none(figures.planned("step_seconds"), |s| format!("{s:.3} s")),
        or_none(median(&figures.step_seconds), |s| format!("{s:.3} s")),
        or_none(100.0 * figures.off_by(), |percent| format!("{percent:+.0} %")),
        or_none(100.0 * figures.of_peak(), |percent| format!("{percent:.0} %")),
        or_none(median(&figures.start_seconds), |s| format!("{s:.2} s")),
    )
}

/// What follows in that line: the instruction set, its rates and what the peer multiplied with.
pub fn of_machine(figures: &Figures) -> String {
    let rate = |of: fn(Rates) -> f64| {
        or_none(median(&figures.rates(of)) / 1e9, |giga| format!("{giga:.0}"))
    };
    format!(
        " {} | {} | {} | {} |",
        figures.machine.first().map_or("–", |machine| &machine.isa),
        rate(|rates| rates.registers),
        rate(|rates| rates.loads),
        figures.kernel.as_ref().map_or("–".to_owned(), |kernel| format!("`{kernel}`")),
    )
}

/// A figure, which workloads without a plan lack.
fn or_none(figure: f64, shown: impl Fn(f64) -> String) -> String {
    if figure.is_nan() { "–".to_owned() } else { shown(figure) }
}

/// What the page shows of each case, kept beside it until the case is run again.
fn kept(place: &Place, suite: &Suite) -> Value {
    let text = std::fs::read_to_string(place.page(&format!("{}.json", suite.name)));
    serde_json::from_str(&text.unwrap_or_default()).unwrap_or_else(|_| json!({}))
}

/// The ratio of the case `llama`, as it was last.
pub fn llama(place: &Place, suite: &Suite) -> f64 {
    kept(place, suite)["llama"]["ratio"].as_f64().unwrap_or(f64::NAN)
}

pub fn keep(
    place: &Place,
    suite: &Suite,
    case: &Case,
    figures: &Figures,
    asked: &str,
) -> Result<(), String> {
    let mut all = kept(place, suite);
    let processor = figures.machine.first().map_or("", |machine| &machine.processor);
    all[case.key] = json!({
        "row": row(case, figures, asked),
        "machine": of_machine(figures),
        "measured": format!("{}, {processor}", today()?),
        "hone": rate(&figures.hone).round(),
        "peer": rate(&figures.peer).round(),
        "ratio": (100.0 * median(&figures.ratios())).round() / 100.0,
    });
    let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
    place.write_page(&format!("{}.json", suite.name), &format!("{text}\n"))
}

/// Writes table and picture of all cases that were run.
pub fn write(place: &Place, suite: &Suite) -> Result<(), String> {
    let kept = kept(place, suite);
    let of = |case: &'static Case| Some((case, kept.get(case.key)?.clone()));
    let shown: Vec<(&Case, Value)> = suite.cases.iter().filter_map(of).collect();
    let mut page = format!("{}{COLUMNS}", suite.head);
    for (_, shown) in &shown {
        let text = |key: &str| shown[key].as_str();
        let (row, measured) = (text("row").unwrap_or_default(), text("measured"));
        let machine = text("machine").unwrap_or(UNTOLD);
        let _ = writeln!(page, "{row}{machine} {} |", measured.unwrap_or_default());
    }
    place.write_page(&format!("{}.md", suite.name), &page)?;
    if suite.has_picture {
        place.write_page(&format!("{}.svg", suite.name), &picture(&shown))?;
    }
    Ok(())
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
