//! The parts of the page that are drawn here: heading, key figures, tables, bars, samples. The
//! curves are drawn by the page's own script.

use std::fmt::Write as _;

use hone_model::adapter::Coverage;

use super::data;
use super::format::{bytes, count, escape, number, seconds, short_count, three_digits};
use super::sources::{Amounts, InputFile, Sample, Sources};

/// What was trained on what, as plain text parts: model, data.
pub(super) fn names(run: &Sources) -> (String, String) {
    let model = run.manifest.model.path.as_deref();
    let model = model.or_else(|| run.run_value("model", "path")?.as_str()).unwrap_or("model");
    let path = |files: &toml::Value| -> Option<String> {
        Some(base_name(files.as_str().or_else(|| files.get("path")?.as_str())?).to_owned())
    };
    let data = match run.run_value("data", "train") {
        Some(toml::Value::Array(files)) => match files.as_slice() {
            [] => "data".to_owned(),
            [one] => path(one).unwrap_or("data".to_owned()),
            [one, rest @ ..] => {
                format!("{} and {} more", path(one).unwrap_or("data".to_owned()), rest.len())
            }
        },
        Some(toml::Value::String(file)) => base_name(file).to_owned(),
        _ => "data".to_owned(),
    };
    (base_name(model).to_owned(), data)
}

/// One line: method, parameters, machine, date.
pub(super) fn facts(run: &Sources) -> String {
    let manifest = &run.manifest;
    let method = match run.run_value("adapter", "rank") {
        Some(rank) => format!("LoRA, rank {rank}"),
        None => "full fine-tuning".to_owned(),
    };
    let model = &manifest.model;
    let parameters = model.parameters.map(|all| match model.trainable_parameters {
        Some(some) if some < all => {
            format!("{} of {} parameters trained", short_count(some), short_count(all))
        }
        _ => format!("{} parameters", short_count(all)),
    });
    let machine = manifest.plan.gpu.clone().or(manifest.machine.cpu.clone());
    let threads = manifest.machine.threads.filter(|_| manifest.plan.gpu.is_none());
    let threads = threads.map(|n| match n {
        1.0 => "1 thread".to_owned(),
        n => format!("{} threads", count(n)),
    });
    let parts = [Some(method), parameters, machine, threads, manifest.created.clone()];
    escape(&parts.into_iter().flatten().collect::<Vec<_>>().join(" · "))
}

/// Boxes that say so when the run is not finished, and where its logs are damaged.
pub(super) fn notice(run: &Sources) -> String {
    let unfinished = unfinished(run)
        .map(|(done, steps)| format!("Not finished: step {} of {}.", count(done), count(steps)));
    let damage = run.damage.iter().map(|damage| format!("{damage}."));
    let boxed = |text: String| format!("<p class=\"notice\">{}</p>", escape(&text));
    unfinished.into_iter().chain(damage).map(boxed).collect()
}

/// Steps done and planned, if fewer are done than planned.
fn unfinished(run: &Sources) -> Option<(f64, f64)> {
    let done = run.metrics.last().map_or(0, |line| line.step) as f64;
    let planned = run.manifest.plan.num_steps.filter(|steps| done < *steps)?;
    Some((done, planned))
}

/// The row of key figures.
pub(super) fn figures(run: &Sources) -> String {
    let (first_eval, last_eval) = (run.evals.first(), run.evals.last());
    let before = first_eval.filter(|first| first.step == 0 && run.evals.len() > 1);
    let losses: Vec<f64> = run.metrics.iter().filter_map(|line| line.loss).collect();
    let eval_loss = last_eval.and_then(|eval| eval.loss);
    let perplexity = last_eval.and_then(|eval| eval.perplexity);
    [
        figure_of_steps("Training loss", &losses),
        figure("Evaluation loss", change(before.and_then(|eval| eval.loss), eval_loss)),
        figure("Perplexity", change(before.and_then(|eval| eval.perplexity), perplexity)),
        objective_figures(run),
        figure("Tokens per second", throughput(run).map(three_digits)),
        figure("Peak memory", actual_peak(run).map(bytes)),
        figure("Time of all steps", total_seconds(run).map(seconds)),
    ]
    .concat()
}

/// Figures of single steps differ by their rows more than by what is learnt meanwhile: where there
/// are enough of them, means of the first and the last ones are shown, a tenth or fifty at most.
fn figure_of_steps(label: &str, values: &[f64]) -> String {
    let (before, after) = ends(values);
    let label = match steps_of_an_end(values) {
        1 => label.to_owned(),
        steps => format!("{label}, mean of {steps} steps"),
    };
    figure(&label, change(before, after))
}

fn steps_of_an_end(values: &[f64]) -> usize {
    (values.len() / 10).clamp(1, 50)
}

/// How values begin and end; of one alone, only how they end.
fn ends(values: &[f64]) -> (Option<f64>, Option<f64>) {
    let steps = steps_of_an_end(values);
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (first, last) = (values.first_chunk::<2>(), values.last());
    (first.map(|_| mean(&values[..steps])), last.map(|_| mean(&values[values.len() - steps..])))
}

/// The objective's metrics from first to last: of evaluations if there are any, else of steps.
fn objective_figures(run: &Sources) -> String {
    let value = |amounts: &Amounts, name: &str| amounts.get(name).and_then(|x| x.as_f64());
    let of_steps = run.metrics.last().map(|line| &line.metrics);
    let last = run.evals.last().map(|eval| &eval.metrics).or(of_steps);
    let names = last.into_iter().flat_map(Amounts::keys);
    let shown = |name: &String| {
        let label = escape(name);
        let (before, after) = match run.evals.as_slice() {
            [] => {
                let of_steps = run.metrics.iter().filter_map(|line| value(&line.metrics, name));
                return figure_of_steps(&label, &of_steps.collect::<Vec<_>>());
            }
            [only] => (None, value(&only.metrics, name)),
            [first, .., last] => (value(&first.metrics, name), value(&last.metrics, name)),
        };
        figure(&label, change(before, after))
    };
    names.map(shown).collect()
}

fn figure(label: &str, value: Option<String>) -> String {
    let Some(value) = value else { return String::new() };
    format!("<div class=\"card figure\"><span>{label}</span><b>{value}</b></div>")
}

/// "before → after", or only what there is.
fn change(before: Option<f64>, after: Option<f64>) -> Option<String> {
    let after = number(after?);
    Some(match before {
        Some(before) => format!("<small>{} →</small> {after}", number(before)),
        None => after,
    })
}

/// Tokens per second over all steps recorded.
fn throughput(run: &Sources) -> Option<f64> {
    let timed = run.metrics.iter().filter_map(|line| {
        let seconds = line.step_seconds?;
        Some((line.tokens_per_second? * seconds, seconds))
    });
    let (tokens, seconds) = timed.fold((0.0, 0.0), |sum, line| (sum.0 + line.0, sum.1 + line.1));
    (seconds > 0.0).then(|| tokens / seconds)
}

fn actual_peak(run: &Sources) -> Option<f64> {
    let recorded = run.metrics.iter().filter_map(|line| line.peak_bytes).reduce(f64::max);
    run.manifest.actual.peak_bytes.or(recorded)
}

fn step_seconds(run: &Sources) -> Vec<f64> {
    run.metrics.iter().filter_map(|line| line.step_seconds).collect()
}

fn mean_step_seconds(run: &Sources) -> Option<f64> {
    let times = step_seconds(run);
    let mean = (!times.is_empty()).then(|| times.iter().sum::<f64>() / times.len() as f64);
    run.manifest.actual.step_seconds.or(mean)
}

fn total_seconds(run: &Sources) -> Option<f64> {
    let sum: f64 = step_seconds(run).iter().sum();
    run.manifest.actual.total_seconds.or((sum > 0.0).then_some(sum))
}

/// Everything below the curves.
pub(super) fn below_curves(run: &Sources) -> String {
    let memory = shares("Planned memory by category", &run.manifest.plan.memory, bytes);
    let phases = shares("Time by phase", &phase_seconds(run), seconds);
    let mut out = section("Plan against reality", &(plan_table(run) + &memory + &phases));
    let samples: String = run.samples.iter().map(sample).collect();
    if !samples.is_empty() {
        let _ = write!(out, "<h2>Samples before and after</h2>{samples}");
    } else if run.run_value("objective", "kind").is_some_and(|kind| kind.as_str() == Some("masked"))
    {
        let none = "<p>None: an encoder generates no texts.</p>";
        out.push_str(&section("Samples before and after", none));
    }
    out.push_str(&section("What is trained", &coverage_table(run)));
    out.push_str(&section("Data", &data::section(run)));
    let _ = write!(
        out,
        "<h2>Inputs</h2><details><summary>Run file, with all defaults</summary><pre>{}</pre>\
         </details>{}",
        escape(&run.run_text),
        digests(run)
    );
    out
}

fn section(title: &str, body: &str) -> String {
    if body.is_empty() { String::new() } else { format!("<h2>{title}</h2>{body}") }
}

fn plan_table(run: &Sources) -> String {
    let (plan, actual) = (&run.manifest.plan, &run.manifest.actual);
    let finished = unfinished(run).is_none(); // totals of half a run compare with nothing
    let done = run.metrics.last().map(|line| line.step as f64).filter(|_| finished);
    let total = total_seconds(run).filter(|_| finished);
    let rows: String = [
        plan_row("Peak memory of the process", plan.peak_bytes, actual_peak(run), bytes),
        plan_row("Arena", plan.arena_bytes, actual.arena_bytes, bytes),
        plan_row("Time per step", plan.step_seconds, mean_step_seconds(run), seconds),
        plan_row("Steps", plan.num_steps, done, count),
        plan_row("Time of all steps", plan.training_seconds, total, seconds),
    ]
    .concat();
    let rates = plan.flops_per_step.zip(mean_step_seconds(run)).map(|(flops, seconds)| {
        format!("{} FLOP per step, {} GFLOP/s", short_flops(flops), number(flops / seconds / 1e9))
    });
    let micro = plan.micro_batch_tokens.map(|n| format!("micro-batches of {} tokens", count(n)));
    let recompute = plan.recompute.as_ref().map(|value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("recompute: {text}")
    });
    let notes: Vec<String> = [rates, micro, recompute].into_iter().flatten().collect();
    let notes = escape(&notes.join(" · "));
    match rows.is_empty() {
        true => String::new(),
        false => format!(
            "<div class=\"card scroll\"><table><tr><th></th><th>plan</th><th>actual</th>\
             <th>deviation</th></tr>{rows}</table><p class=\"facts\">{notes}</p></div>"
        ),
    }
}

/// What adapters reach, kind of layer by kind of layer; nothing where all weights are trained.
fn coverage_table(run: &Sources) -> String {
    if run.run_value("adapter", "kind").is_none() {
        return String::new();
    }
    let row = |line: &Coverage| {
        let blocks = if line.num_blocks == 0 { String::new() } else { line.num_blocks.to_string() };
        let (kind, reach) = (escape(&line.kind), escape(&line.reach()));
        let (trained, all) = (count(line.trained as f64), count(line.parameters as f64));
        format!(
            "<tr><td>{kind}</td><td>{blocks}</td><td>{reach}</td><td>{trained}</td><td>{all}</td>\
             </tr>"
        )
    };
    let rows: String = run.manifest.plan.coverage.iter().map(row).collect();
    match rows.is_empty() {
        true => rows,
        false => format!(
            "<div class=\"card scroll\"><table><tr><th></th><th>blocks</th><th>with an adapter</th>\
             <th>trained</th><th>parameters</th></tr>{rows}</table></div>"
        ),
    }
}

fn short_flops(flops: f64) -> String {
    match flops {
        f if f >= 1e12 => format!("{} T", number(f / 1e12)),
        f => format!("{} G", number(f / 1e9)),
    }
}

fn plan_row(name: &str, plan: Option<f64>, actual: Option<f64>, show: fn(f64) -> String) -> String {
    if plan.is_none() {
        return String::new();
    }
    let deviation = plan.zip(actual).filter(|(plan, _)| *plan > 0.0).map(|(plan, actual)| {
        let percent = 100.0 * (actual - plan) / plan;
        let class = if percent.abs() <= 5.0 { "good" } else { "warn" };
        format!("<span class=\"{class}\">{percent:+.1} %</span>")
    });
    let cell = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), show);
    let deviation = deviation.unwrap_or_else(|| "–".to_owned());
    let (plan, actual) = (cell(plan), cell(actual));
    format!("<tr><td>{name}</td><td>{plan}</td><td>{actual}</td><td>{deviation}</td></tr>")
}

/// Seconds by phase over all steps.
fn phase_seconds(run: &Sources) -> Amounts {
    let mut sums = Amounts::new();
    for (name, value) in run.metrics.iter().flat_map(|line| &line.phases) {
        let sum = sums.get(name).and_then(|sum| sum.as_f64()).unwrap_or(0.0);
        sums.insert(name.clone(), (sum + value.as_f64().unwrap_or(0.0)).into());
    }
    sums
}

/// A bar of parts of a whole, with a legend.
fn shares(title: &str, amounts: &Amounts, show: fn(f64) -> String) -> String {
    let parts = amounts.iter().filter_map(|(name, value)| Some((name, value.as_f64()?)));
    let parts: Vec<_> = parts.filter(|(_, amount)| *amount > 0.0).collect();
    let total: f64 = parts.iter().map(|(_, amount)| amount).sum();
    if parts.is_empty() {
        return String::new();
    }
    let (mut bar, mut legend) = (String::new(), String::new());
    for (i, (name, amount)) in parts.iter().enumerate() {
        let (color, percent) = (i % 10, 100.0 * amount / total);
        let (name, amount) = (escape(&name.replace('_', " ")), show(*amount));
        let _ = write!(
            bar,
            "<div style=\"flex:{percent:.3} 1 0;background:var(--c{color})\" \
             title=\"{name}: {amount}\"></div>"
        );
        let _ = write!(
            legend,
            "<div><span class=\"key\" style=\"background:var(--c{color})\"></span>{name}\
             <b>{amount}</b><small>{percent:.1} %</small></div>"
        );
    }
    format!(
        "<div class=\"card\" style=\"margin-top:14px\"><h3>{title}</h3>\
         <div class=\"bar\">{bar}</div><div class=\"shares\">{legend}</div></div>"
    )
}

fn sample(sample: &Sample) -> String {
    let part = |class: &str, label: &str, text: Option<&str>| {
        let Some(text) = text else { return String::new() };
        let body = match text.trim().is_empty() {
            true => "<p class=\"text empty\">(empty)</p>".to_owned(),
            // Spaces are part of a text; line ends around it only take room.
            false => format!("<p class=\"text\">{}</p>", escape(text.trim_matches(['\r', '\n']))),
        };
        format!("<div class=\"{class}\"><h3>{label}</h3>{body}</div>")
    };
    let before = part("box", "Before training", sample.before.as_deref());
    let after = part("box after", "After training", sample.after.as_deref());
    let reference = part("box wide", "Reference", sample.reference.as_deref());
    let prompt = part("", "Prompt", Some(&sample.prompt));
    format!(
        "<div class=\"card sample\">{prompt}<div class=\"grid\">{before}{after}{reference}</div>\
         </div>"
    )
}

/// SHA-256 of every input file.
fn digests(run: &Sources) -> String {
    let (inputs, data) = (&run.manifest.inputs, &run.manifest.data);
    let line = |file: &InputFile, more: &str| {
        let line = format!("{}  {}  {more}", file.sha256, file.path);
        escape(line.trim_end()) + "\n"
    };
    let mut lines: String = inputs.model.iter().map(|file| line(file, "")).collect();
    for (files, set) in [(&inputs.train, &data.train), (&inputs.eval, &data.eval)] {
        let mut records = set.iter().flat_map(|set| &set.files);
        for file in files {
            let more = records.next().map_or(String::new(), |records| {
                let rows = records.rows.map(|rows| format!("{} rows", count(rows)));
                format!("{}  {}", records.format, rows.unwrap_or_default())
            });
            lines += &line(file, &more);
        }
    }
    if lines.is_empty() {
        return lines;
    }
    format!("<details><summary>SHA-256 of every input file</summary><pre>{lines}</pre></details>")
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}
