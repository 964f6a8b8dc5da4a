//! The page, from the latest figures of each model.

use super::super::Place;
use super::models::{ALL, Model};
use super::ours::{best, bits_per_weight, kl};
use super::picture::picture;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;

const HEAD: &str = "\
# What compression loses, beside llama.cpp

<!-- Written by `cargo xtask bench compress`; do not edit. -->

`cargo xtask bench compress PROGRAMS`, with llama.cpp's programs in the folder PROGRAMS. Two models:
a Llama of 10.5 million weights with rows of 256 and 768, which Hone pre-trains
([recipe](../../bench/compress_second.toml)), and SmolLM2-135M-Instruct, whose rows of 576 take few
K-types. The latter comes from a file of four bits: its norms' gains are folded into the weights
that follow, and drawn factors pass from `v_proj` and `up_proj` to `o_proj` and `down_proj`
([script](../../bench/off_grid.py)); then it is fine-tuned in full
([recipe](../../bench/compress_smollm2.toml)). So its weights are on no grid but for the embedding,
which takes no factors and which only fine-tuning moves.

Texts hold no special tokens, as llama.cpp's programs do not read them in files. *Own* text is of
the kinds that both models learn and that all calibrate on: word problems of GSM8K (half),
TinyStories and WikiText-2, of each a tenth held out. *Other* text is Shakespeare, of which no
training here and no calibration has seen a line. llama-imatrix reads the tokens that Hone
calibrates on and those that Hone holds out of them. Mean KL divergence from the f32 model, in nats
per token, over the second half of windows of 512 tokens, is llama-perplexity's for all files. Bits
per weight and ratios count the whole file.

![KL divergence against size](compress.svg)

";

/// A target, and how far it is reached.
pub struct Verdict {
    what: String,
    /// What was found; none if nothing was measured.
    figure: Option<f64>,
    asked: f64,
    /// Whether the figure is to be at most what is asked, not at least.
    is_most: bool,
}

impl Verdict {
    pub fn reached(&self) -> bool {
        let reaches = |f| if self.is_most { f <= self.asked } else { f >= self.asked };
        self.figure.is_some_and(reaches)
    }

    fn line(&self) -> String {
        let sign = if self.is_most { "≤" } else { "≥" };
        let (figure, verdict) = match self.figure {
            Some(figure) if self.reached() => (format!("{figure:.3}"), "reached"),
            Some(figure) => (format!("{figure:.3}"), "**missed**"),
            None => ("–".to_owned(), "**missed**: not measured"),
        };
        format!("| {} | {figure} | {sign} {} | {verdict} |", self.what, self.asked)
    }
}

/// The figures on the page.
pub fn kept(place: &Place) -> Value {
    let text = std::fs::read_to_string(place.page("compress.json"));
    serde_json::from_str(&text.unwrap_or_default()).unwrap_or_else(|_| json!({}))
}

pub fn keep(place: &Place, model: &Model, measured: &Value) -> Result<(), String> {
    let mut all = kept(place);
    all[model.name] = measured.clone();
    let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
    place.write_page("compress.json", &format!("{text}\n"))
}

pub fn write(place: &Place) -> Result<(), String> {
    let kept = kept(place);
    place.write_page("compress.md", &page(&kept))?;
    place.write_page("compress.svg", &picture(&kept))
}

/// The whole page.
pub fn page(kept: &Value) -> String {
    let mut page = format!("{HEAD}| target | found | asked | |\n| --- | ---: | ---: | --- |\n");
    for verdict in verdicts(kept) {
        let _ = writeln!(page, "{}", verdict.line());
    }
    for model in &ALL {
        if let Some(of_model) = kept.get(model.name) {
            page.push_str(&section(model, of_model));
        }
    }
    page
}

/// All targets.
pub fn verdicts(kept: &Value) -> Vec<Verdict> {
    let mut all = Vec::new();
    for model in &ALL {
        let of_model = &kept[model.name];
        all.extend(against_llama(model, of_model));
        all.extend(against_autoround(model, of_model));
        all.extend(kept_by_tasks(model, of_model));
        all.push(Verdict {
            what: format!(
                "{}: Hone's and llama-perplexity's KL, worst of all files that Hone reads, of what \
                 is allowed",
                model.name
            ),
            figure: worst_disagreement(&[rows(of_model), techniques(of_model)].concat()),
            asked: 1.0,
            is_most: true,
        });
    }
    all
}

fn rows(of_model: &Value) -> &[Value] {
    of_model["rows"].as_array().map_or(&[], Vec::as_slice)
}

fn techniques(of_model: &Value) -> &[Value] {
    of_model["techniques"].as_array().map_or(&[], Vec::as_slice)
}

fn task_files(tasks: &Value) -> &[Value] {
    tasks["files"].as_array().map_or(&[], Vec::as_slice)
}

fn parameters(of_model: &Value) -> u64 {
    of_model["parameters"].as_u64().unwrap_or(0)
}

fn against_llama(model: &Model, of_model: &Value) -> Vec<Verdict> {
    let rows = rows(of_model);
    let mut all = Vec::new();
    for &(bits, asked) in model.limits {
        let theirs = best(rows, parameters(of_model), bits);
        let efforts = [model.effort, "best"];
        for effort in &efforts[..if bits == model.best_at { 2 } else { 1 }] {
            let ours = rows.iter().find(|row| row["limit"] == bits && row["effort"] == *effort);
            for text in ["own", "other"] {
                let share = |(theirs, ours): (&Value, &Value)| kl(ours, text) / kl(theirs, text);
                let what = format!(
                    "{}: KL on {text} text with effort `{effort}` as a share of llama.cpp's best \
                     at ≤ {bits:.1} bits per weight",
                    model.name
                );
                let figure = theirs.zip(ours).map(share);
                all.push(Verdict { what, figure, asked, is_most: true });
            }
        }
    }
    all
}

/// Hone's best file of no more bytes against each of AutoRound's; the worst ratio.
fn against_autoround(model: &Model, of_model: &Value) -> Vec<Verdict> {
    let rows = rows(of_model);
    let theirs = rows.iter().filter(|row| row["maker"] == "AutoRound");
    let ratio = |theirs: &Value| {
        let most = theirs["bytes"].as_u64();
        let fits = |row: &&Value| row["maker"] == "Hone" && row["bytes"].as_u64() <= most;
        let ours = rows.iter().filter(fits).map(|row| kl(row, "own"));
        ours.min_by(f64::total_cmp).unwrap_or(f64::INFINITY) / kl(theirs, "own")
    };
    vec![Verdict {
        what: format!("{}: KL on own text as a share of AutoRound's, worst size", model.name),
        figure: theirs.map(ratio).max_by(f64::total_cmp),
        asked: 0.8,
        is_most: true,
    }]
}

/// What is asked to be kept at each ratio to bf16.
const KEPT: [(u64, f64); 2] = [(4, 0.97), (5, 0.95)];

fn kept_by_tasks(model: &Model, of_model: &Value) -> Vec<Verdict> {
    let files = task_files(&of_model["tasks"]);
    let full = &of_model["tasks"]["full"];
    let verdict = |(ratio, asked)| {
        let file = files.iter().find(|file| file["ratio"] == ratio && file["refused"].is_null());
        let shares = file.map(|file| shares(full, file));
        Verdict {
            what: format!("{}: quality kept at a ratio of {ratio} to bf16, mean", model.name),
            figure: shares.map(|all| all.iter().map(|(_, s)| s).sum::<f64>() / all.len() as f64),
            asked,
            is_most: false,
        }
    };
    KEPT.map(verdict).into()
}

/// What a file keeps of each task that the full model is better than chance at, at most all.
pub fn shares(full: &Value, file: &Value) -> Vec<(&'static str, f64)> {
    let of = |from: &Value, key: &str| from[key].as_f64().unwrap_or(f64::NAN);
    let mut all = vec![
        ("same top token, own text", of(file, "same_top_own")),
        ("same top token, other text", of(file, "same_top_other")),
        ("same top token, GSM8K's answers", of(file, "same_top_answers")),
    ];
    // Chance is next to nothing among all words: two standard errors are more than that.
    if of(full, "lambada") > 2.0 * of(full, "lambada_stderr") {
        all.push(("LAMBADA's words", (of(file, "lambada") / of(full, "lambada")).min(1.0)));
    }
    all
}

/// The most that Hone's mean KL is off llama-perplexity's, as a share of what is allowed: 5 %, or
/// 0.001 if that is more.
pub fn worst_disagreement(rows: &[Value]) -> Option<f64> {
    let of_row = |row: &Value| {
        let (hone, theirs) = (row["by_hone"]["kl"].as_f64()?, kl(row, "own"));
        Some((hone - theirs).abs() / (0.05 * theirs).max(0.001))
    };
    rows.iter().filter_map(of_row).max_by(f64::total_cmp)
}

/// When and where figures were measured, each only once.
fn measured(of_model: &Value) -> String {
    let tasks = task_files(&of_model["tasks"]);
    let of = rows(of_model).iter().chain(techniques(of_model)).chain(tasks);
    let all: BTreeSet<&str> = of.filter_map(|row| row["measured"].as_str()).collect();
    Vec::from_iter(all).join("; ")
}

fn section(model: &Model, of_model: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let loss = &of_model["loss"];
    let mut text = format!(
        "\n## {}\n\n{} weights, {:.1} MB in bf16; loss {:.3} on own text, {:.3} on other. Measured \
         {}; llama.cpp {}.\n\n",
        model.title,
        of_model["parameters"],
        number(&of_model["bf16_bytes"]) / 1e6,
        number(&loss["own"]),
        number(&loss["other"]),
        measured(of_model),
        of_model["llama_cpp"].as_str().unwrap_or_default(),
    );
    text.push_str(ROWS);
    let mut sorted: Vec<&Value> = rows(of_model).iter().collect();
    sorted.sort_by_key(|row| std::cmp::Reverse(row["bytes"].as_u64()));
    for row in sorted {
        let _ = writeln!(text, "{}", line(row, parameters(of_model)));
    }
    if !rows(of_model).iter().any(|row| row["maker"] == "AutoRound") {
        text.push_str(NO_AUTOROUND);
    }
    let has_techniques = !techniques(of_model).is_empty();
    if let Some(bits) = model.techniques_at.filter(|_| has_techniques) {
        let _ = write!(
            text,
            "\nTechniques on and off. Types are those of the mix that loses least within {:.1} \
             bits per weight, or chosen for each tensor by how much the model loses, with no more \
             bytes; importance weighs columns by their inputs; with feedback weights make up for \
             the errors of others by the curvature of the model's KL; with learning roundings are \
             learned from its predictions.\n\n{ROWS}",
            bits
        );
        for row in techniques(of_model) {
            let _ = writeln!(text, "{}", line(row, parameters(of_model)));
        }
    }
    text.push_str(&tasks(model, &of_model["tasks"]));
    text
}

const ROWS: &str = "\
| made by | types | imatrix or calibration | bytes | bits per weight | KL own | KL other \
| 99.9 % own | same top own | other | KL own by Hone | seconds | estimated |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

const NO_AUTOROUND: &str = "\nAutoRound was not measured: `target/autoround-venv` is absent.\n";

fn line(row: &Value, parameters: u64) -> String {
    let text = |key: &str| row[key].as_str().unwrap_or_default();
    let of = |value: &Value, digits: usize| match value.as_f64() {
        Some(number) => format!("{number:.digits$}"),
        None => "–".to_owned(),
    };
    let percent = |value: &Value| of(&(100.0 * value.as_f64().unwrap_or(f64::NAN)).into(), 2);
    format!(
        "| {} | {} | {} | {} | {:.3} | {} | {} | {} | {} % | {} % | {} | {} | {} |",
        text("maker"),
        text("name"),
        if row["imatrix"] == true { "yes" } else { "no" },
        row["bytes"],
        bits_per_weight(row, parameters),
        of(&row["own"]["kl"], 5),
        of(&row["other"]["kl"], 5),
        of(&row["own"]["kl_p999"], 3),
        percent(&row["own"]["same_top"]),
        percent(&row["other"]["same_top"]),
        of(&row["by_hone"]["kl"], 5),
        of(&row["seconds"], 0),
        of(&row["estimated"], 0),
    )
}

fn tasks(model: &Model, tasks: &Value) -> String {
    let full = &tasks["full"];
    let files = task_files(tasks);
    if files.is_empty() {
        return String::new();
    }
    let of = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let loss = |file: &Value| Some((file["ratio"].as_u64()?, file["gsm8k_loss"].as_f64()?));
    let losses: String = files
        .iter()
        .filter_map(loss)
        .map(|(ratio, loss)| format!(", at a ratio of {ratio} it is {loss:.4}"))
        .collect();
    let mut text = format!(
        "\nQuality kept by Hone's files (effort `{}`). The full model finds {:.1} % (± {:.1}) of \
         {} words of LAMBADA; its loss on 200 answers of GSM8K's test part is {:.4} nats per \
         token{losses}.\n\n\
         | ratio to bf16 | bytes | task | kept |\n| ---: | ---: | --- | ---: |\n",
        model.effort,
        100.0 * of(&full["lambada"]),
        100.0 * of(&full["lambada_stderr"]),
        model.lambada,
        of(&full["gsm8k_loss"]),
    );
    for file in files {
        if let Some(refused) = file["refused"].as_str() {
            let _ = writeln!(text, "| {} | – | refused: {refused} | – |", file["ratio"]);
            continue;
        }
        for (task, share) in shares(full, file) {
            let _ = writeln!(
                text,
                "| {} | {} | {task} | {:.1} % |",
                file["ratio"],
                file["bytes"],
                100.0 * share
            );
        }
    }
    text
}
