//! `hone eval --task`

use crate::args::EvalArgs;
use crate::commands::{self, Described, check_parent, is_same_file, num_threads};
use crate::failure::Failure;
use crate::output;
use crate::progress;
use hone_data::ChatTemplate;
use hone_eval::task::result::Value;
use hone_eval::task::{
    Gate, Options, Results, RunOptions, TaskError, Verdict, group, prepare, run as ask,
};
use hone_train::TrainError;
use hone_train::checkpoint::write_file_whole;
use serde_json::{Value as Json, json};
use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

/// Evaluates tasks and prints their values.
pub fn run(args: &EvalArgs) -> Result<(), Failure> {
    for (flag, path) in [("--output", &args.output), ("--items", &args.items)] {
        path.as_deref().map_or(Ok(()), |path| check_parent(flag, path))?;
    }
    check_places(args)?;
    let gate = args.gate.as_deref().map(Gate::read).transpose().map_err(failure)?;
    let folder = folder(args)?;
    let options = Options { folder, num_fewshot: args.num_fewshot };
    let (entries, tasks) = group::load(&args.task, &options).map_err(failure)?;
    let described = commands::describe(&args.model, commands::Purpose::Compute)?;
    super::check_predicts(args, &described)?;
    let max_len = args.max_seq_len.map(|_| super::max_seq_len(args, described.config()));
    let max_len = max_len.transpose()?;
    let num_threads = num_threads(args.model.threads);
    let chat = args.apply_chat_template.then(|| template(&described)).transpose()?;
    let options = RunOptions { limit: args.limit, chat, max_len, num_threads };
    let prepared = tasks
        .iter()
        .map(|task| prepare(task, &described.tokenizer, described.config(), options))
        .collect::<Result<Vec<_>, _>>()
        .map_err(failure)?;
    if let Some(gate) = &gate {
        gate.check(&prepared).map_err(failure)?;
    }
    let num_items: usize = prepared.iter().map(|prepared| prepared.num_items()).sum();
    let num_requests = prepared.iter().map(|prepared| prepared.num_requests()).sum();
    let opened = described.load()?;
    let begun = Instant::now();
    let bar = progress::bar(num_requests, "requests");
    let mut results = Vec::new();
    for prepared in prepared {
        let done = &mut |n| bar.inc(n as u64);
        let found = ask(opened.pass(), &opened.tokenizer, prepared, num_threads, done);
        results.push(found.inspect_err(|_| bar.finish_and_clear()).map_err(failure)?);
    }
    bar.finish_and_clear();
    let seconds = begun.elapsed().as_secs_f64();
    let results = Results::new(entries, results);
    refuse_not_finite(&results, opened.compute.name())?;
    let verdicts = gate.map(|gate| gate.verdicts(&results));
    let mut object = results.to_json();
    object["model"] = json!(opened.weighed(&args.model)?);
    object["items_per_second"] = json!(num_items as f64 / seconds);
    report(args, (&results, object), verdicts.as_deref())?;
    let mut failed = verdicts.iter().flatten().filter(|verdict| verdict.is_worse != Some(false));
    match failed.next() {
        Some(verdict) => Err(Failure::Running(format!(
            "--gate: {} {}: {}",
            verdict.name,
            match verdict.is_worse {
                Some(_) => "is worse than before",
                None => "has too few items for an interval, so that nothing is known",
            },
            change(verdict)
        ))),
        None => Ok(()),
    }
}

/// Refuses to write one file over another of the same command.
fn check_places(args: &EvalArgs) -> Result<(), Failure> {
    let [gate, output, items] =
        [("--gate", &args.gate), ("--output", &args.output), ("--items", &args.items)]
            .map(|(flag, path)| path.as_deref().map(|path| (flag, path)));
    for pair in [(output, gate), (items, gate), (items, output)] {
        let (Some((written, path)), Some((flag, other))) = pair else { continue };
        if is_same_file(path, other) {
            let gone = match flag {
                "--gate" => ", which would be gone if a task is worse",
                _ => "",
            };
            return Err(Failure::Usage(format!(
                "{written} {}: names the file of {flag}{gone}; choose another",
                path.display()
            )));
        }
    }
    Ok(())
}

/// The folder with data files, if one is given.
fn folder(args: &EvalArgs) -> Result<Option<&Path>, Failure> {
    match &args.data[..] {
        [] => Ok(None),
        [folder] if Path::new(folder).is_dir() => Ok(Some(Path::new(folder))),
        [folder] => Err(Failure::Usage(format!(
            "--data {folder}: is no folder; with --task it names the folder that the data files of \
             tasks are relative to"
        ))),
        _ => Err(Failure::Usage(
            "--data: with --task it names one folder, that of the data files of all tasks; give it \
             once"
                .to_owned(),
        )),
    }
}

fn template(described: &Described) -> Result<&ChatTemplate, Failure> {
    described.tokenizer.chat_template().ok_or_else(|| {
        Failure::Usage(
            "--apply-chat-template: this model has no chat template; leave it out".to_owned(),
        )
    })
}

fn failure(error: TaskError) -> Failure {
    match error {
        TaskError::Input(message) => Failure::Usage(message),
        TaskError::Data(error) => error.into(),
        TaskError::Generate(error) => error.into(),
        TaskError::Device(error) => error.into(),
    }
}

fn refuse_not_finite(results: &Results, compute: &str) -> Result<(), Failure> {
    let judged = results.tasks.iter().flat_map(|task| &task.judged);
    let mut values = judged.flat_map(|judged| &judged.log_likelihoods);
    match values.any(|value| value.is_nan()) {
        false => Ok(()),
        true => Err(Failure::Running(format!(
            "a log-probability is not a number: a weight of the model or adapter is not finite, or \
             the model overflows with --compute {compute}"
        ))),
    }
}

fn report(
    args: &EvalArgs,
    (results, mut object): (&Results, Json),
    verdicts: Option<&[Verdict]>,
) -> Result<(), Failure> {
    let items_per_second = object["items_per_second"].as_f64().unwrap_or_default();
    if let Some(verdicts) = verdicts {
        object["gate"] = json!(verdicts);
    }
    if let Some(path) = &args.items {
        let mut lines = String::new();
        for item in results.items() {
            let _ = writeln!(lines, "{item}");
        }
        write_file_whole(path, lines.as_bytes()).map_err(TrainError::from)?;
    }
    if let Some(path) = &args.output {
        let text = format!("{object:#}\n");
        write_file_whole(path, text.as_bytes()).map_err(TrainError::from)?;
    }
    match args.json {
        true => output::json(&object),
        false => {
            print(results, items_per_second);
            for verdict in verdicts.into_iter().flatten() {
                let state = match verdict.is_worse {
                    Some(true) => "worse",
                    Some(false) => "passes",
                    None => "not tested",
                };
                output::line(&format!("  gate: {} {state}: {}", verdict.name, change(verdict)));
            }
        }
    }
    Ok(())
}

/// A metric before and after, with the interval of the difference.
fn change(verdict: &Verdict) -> String {
    let Verdict { metric, filter, before, after, difference, .. } = verdict;
    let interval = difference.interval.map_or(String::new(), |[low, high]| {
        format!(" (difference {low:+.4} to {high:+.4}, 95 %)")
    });
    format!("{} {before:.4} → {after:.4}{interval}", named(metric, filter))
}

/// A metric with the pipeline of filters before it, if it has any.
pub(in super::super) fn named(metric: &str, filter: &str) -> String {
    if filter == "none" { metric.to_owned() } else { format!("{metric},{filter}") }
}

/// A table: a row for each metric of each task or group.
fn print(results: &Results, items_per_second: f64) {
    let head = ["task", "metric", "value", "± stderr", "95 % interval", "items", "shots"];
    let mut rows = vec![head.map(str::to_owned)];
    for line in results.lines() {
        let name = format!("{}{}", "  ".repeat(line.depth), line.alias);
        let counts = [
            line.num_items.to_string(),
            line.num_fewshot.map_or(String::new(), |shots| shots.to_string()),
        ];
        if line.values.is_empty() {
            let mut row = [const { String::new() }; 7];
            (row[0], row[5]) = (name.clone(), counts[0].clone());
            rows.push(row);
        }
        for (i, value) in line.values.iter().enumerate() {
            let [task, items, shots] = match i {
                0 => [name.clone(), counts[0].clone(), counts[1].clone()],
                _ => [String::new(), String::new(), String::new()],
            };
            let [metric, number, stderr, interval] = cells(value);
            rows.push([task, metric, number, stderr, interval, items, shots]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &rows {
        let cell = |(column, text): (usize, &String)| {
            let space = " ".repeat(widths[column] - text.chars().count());
            // Numbers end alike, names begin alike.
            if column < 2 { format!("{text}{space}") } else { format!("{space}{text}") }
        };
        let cells: Vec<String> = row.iter().enumerate().map(cell).collect();
        output::line(format!("  {}", cells.join("  ")).trim_end());
    }
    output::line(&format!("  {items_per_second:.2} items per second"));
}

/// Metric, value, standard error and interval.
fn cells(value: &Value) -> [String; 4] {
    let estimate = &value.estimate;
    let metric = named(&value.metric, &value.filter);
    let better = if value.higher_is_better { "↑" } else { "↓" };
    [
        format!("{metric} {better}"),
        format!("{:.4}", estimate.value),
        estimate.stderr.map_or(String::new(), |stderr| format!("{stderr:.4}")),
        estimate.interval.map_or(String::new(), |[low, high]| format!("{low:.4} – {high:.4}")),
    ]
}
