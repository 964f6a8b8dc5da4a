//! `hone demo`: the path of `hone train` on built-in data.

use crate::args::DemoArgs;
use crate::commands::train::Audience;
use crate::demo::model;
use crate::demo::score::{Score, score};
use crate::demo::task::{Item, task};
use crate::failure::Failure;
use crate::output;
use hone_train::checkpoint::write_file_whole;
use hone_train::recipe::{Finished, Options};
use hone_train::run_file::RunFile;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Seed of the task's rows.
const SEED: u64 = 1;
/// Held-out items shown in full.
const SHOWN: usize = 2;

/// Runs the demo.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    let begun = Instant::now();
    let (train, held_out) = task(SEED);
    let files = Files::write(&args.dir, &train, &held_out)?;
    introduce(args, &held_out);
    let before = score(&files.base, None, &held_out)?;
    let (was, n) = (before.num_right, held_out.len());
    output::note(&format!("\nbefore training: {was} of {n} held-out items right\n"));
    let run = RunFile::load(&files.run_file, &[])?;
    let resume_with = format!("hone train {} --resume", files.run_file.display());
    let (options, mut audience) = (Options::default(), Audience::Person(None));
    let finished = super::train::train(run, options, &mut audience, &resume_with)?;
    let after = score(&files.base, Some(&finished.result), &held_out)?;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        output::json(&summary(&finished, &before, &after, n, seconds));
    } else {
        conclude(&files, &finished, &held_out, (&before, &after), seconds);
    }
    Ok(())
}

/// Paths of the demo's files.
struct Files {
    base: PathBuf,
    train: PathBuf,
    run_file: PathBuf,
}

impl Files {
    fn write(dir: &Path, train: &[Item], held_out: &[Item]) -> Result<Self, Failure> {
        if dir.exists() {
            return Err(Failure::Usage(format!(
                "--dir {} already exists; remove it, or choose another directory",
                dir.display()
            )));
        }
        let base = dir.join("base");
        std::fs::create_dir_all(&base).map_err(|error| {
            let dir = dir.display();
            Failure::Usage(format!("--dir {dir} cannot be created ({error}); choose another"))
        })?;
        for (name, bytes) in model::FILES {
            write_file_whole(&base.join(name), bytes)?;
        }
        let files = Self { base, train: dir.join("train.jsonl"), run_file: dir.join("run.toml") };
        let test = dir.join("held-out.jsonl");
        write_file_whole(&files.train, lines(train).as_bytes())?;
        write_file_whole(&test, lines(held_out).as_bytes())?;
        let run = model::tuning_run_file(&files.base, &files.train, &test, &dir.join("run"));
        write_file_whole(&files.run_file, run.as_bytes())?;
        Ok(files)
    }
}

fn lines(items: &[Item]) -> String {
    let line = |item: &Item| {
        format!("{}\n", json!({ "prompt": item.prompt, "completion": item.completion }))
    };
    items.iter().map(line).collect()
}

fn introduce(args: &DemoArgs, held_out: &[Item]) {
    output::note(&format!(
        "A small language model, trained by Hone on generated text, learns to turn a sentence into \
         a record.\nNone of the people, and no triple of count, colour and item, in the held-out \
         items\noccurs in the training rows.\nEverything is in {}.\n\nThe task: {}\nThe answer:{}",
        args.dir.display(),
        held_out[0].prompt,
        held_out[0].completion
    ));
}

fn conclude(
    files: &Files,
    finished: &Finished,
    held_out: &[Item],
    (before, after): (&Score, &Score),
    seconds: f64,
) {
    let n = held_out.len();
    let (was, is) = (before.num_right, after.num_right);
    output::line(&format!(
        "\nexact match on held-out items: {was} of {n} before, {is} of {n} after"
    ));
    for (i, item) in held_out.iter().enumerate().take(SHOWN) {
        output::line(&format!("\n  {}", item.prompt));
        output::line(&format!("    before {}", shortened(&before.answers[i])));
        output::line(&format!("    after  {}", shortened(&after.answers[i])));
    }
    output::line(&format!("\n{} in total", hone_train::report::format_seconds(seconds)));
    output::table(&[
        ("base model", files.base.display().to_string()),
        ("data", files.train.display().to_string()),
        ("run file", files.run_file.display().to_string()),
        ("adapter", finished.result.display().to_string()),
        ("report", finished.report.display().to_string()),
    ]);
    // The command as it was invoked, since it may not be on the PATH.
    let hone = std::env::args().next().unwrap_or_else(|| "hone".to_owned());
    output::line(&format!(
        "\nTry next:\n  {hone} generate {} --adapter {} --temperature 0 --prompt \"{}\"\n  \
         {hone} plan {} adapter.rank=4\n  Open the report in a browser, and write a run file for \
         your own data: see docs/run-file.md.",
        files.base.display(),
        finished.result.display(),
        held_out[SHOWN].prompt,
        files.run_file.display()
    ));
}

/// The first line of an answer, cut to the width of a terminal.
fn shortened(answer: &str) -> String {
    let line = answer.lines().find(|line| !line.trim().is_empty()).unwrap_or("(nothing)");
    match line.char_indices().nth(88) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line.to_owned(),
    }
}

fn summary(
    finished: &Finished,
    before: &Score,
    after: &Score,
    num_items: usize,
    seconds: f64,
) -> Value {
    json!({
        "held_out_items": num_items,
        "exact_match_before": before.num_right as f64 / num_items as f64,
        "exact_match_after": after.num_right as f64 / num_items as f64,
        "seconds": seconds,
        "result": finished.result,
        "report": finished.report,
    })
}
