//! `hone demo`: the path of `hone train` on built-in data.

use crate::args::DemoArgs;
use crate::demo::task::{Item, task};
use crate::demo::{model, pretraining};
use crate::failure::Failure;
use crate::output;
use hone_data::Tokenizer;
use hone_model::generate::{GenerateOptions, Sampling, generate};
use hone_model::{LoadOptions, Model, adapter};
use hone_tensor::{DType, Device};
use hone_train::TrainError;
use hone_train::checkpoint::write_file_whole;
use hone_train::machine;
use hone_train::recipe::Finished;
use hone_train::run_file::RunFile;
use hone_train::setup::Setup;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Seed of the task's rows.
const SEED: u64 = 1;
/// Longer than any right answer.
const MAX_ANSWER_TOKENS: usize = 64;
/// Held-out items shown in full.
const SHOWN: usize = 2;

/// Answers to the held-out items.
struct Score {
    answers: Vec<String>,
    num_right: usize,
}

/// Runs the demo, or writes the recipe of its base model.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    if let Some(dir) = &args.make_base {
        pretraining::write_base_recipe(dir)
            .map_err(|error| Failure::Running(format!("{error:#}")))?;
        println!("hone train {}", dir.join("run.toml").display());
        return Ok(());
    }
    let begun = Instant::now();
    let (train, held_out) = task(SEED);
    let files = Files::write(&args.dir, &train, &held_out)?;
    introduce(args, &held_out);
    let before = score(&files.base, None, &held_out)?;
    eprintln!("\nbefore training: {}\n", before.line(held_out.len()));
    let run = RunFile::load(&files.run_file, &[])?;
    let setup = Setup::new(run, &mut |note| eprintln!("note: {note}"))?;
    let finished = super::train::train(&setup, false)?;
    let after = score(&files.base, Some(&finished.result), &held_out)?;
    let seconds = begun.elapsed().as_secs_f64();
    if args.json {
        output::json(&summary(&finished, &before, &after, held_out.len(), seconds));
    } else {
        conclude(&files, &finished, &held_out, (&before, &after), seconds);
    }
    Ok(())
}

/// Where the demo put things.
struct Files {
    base: PathBuf,
    train: PathBuf,
    run_file: PathBuf,
}

impl Files {
    fn write(dir: &Path, train: &[Item], held_out: &[Item]) -> Result<Self, Failure> {
        if dir.exists() {
            return Err(Failure::Usage(format!(
                "{} exists already; remove it, or name another directory with --dir",
                dir.display()
            )));
        }
        let base = dir.join("base");
        std::fs::create_dir_all(&base).map_err(TrainError::io(&base))?;
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

/// Asks a model all held-out items; an answer is right if it is the completion, letter by letter.
fn score(base: &Path, tuned: Option<&Path>, items: &[Item]) -> Result<Score, Failure> {
    let device = Device::cpu(machine::num_threads());
    let mut model = hone_model::load(base, &device, LoadOptions::INFERENCE)?;
    if let Some(dir) = tuned {
        adapter::load(dir, &mut model, &device)?;
    }
    let tokenizer = Tokenizer::from_dir(base)?;
    let answers = items
        .iter()
        .map(|item| answer(&model, &device, &tokenizer, item))
        .collect::<Result<Vec<_>, _>>()?;
    let right = items.iter().zip(&answers).filter(|(item, answer)| item.completion == **answer);
    let num_right = right.count();
    Ok(Score { answers, num_right })
}

fn answer(
    model: &Model,
    device: &Device,
    tokenizer: &Tokenizer,
    item: &Item,
) -> Result<String, Failure> {
    let prompt = tokenizer.encode(&item.prompt, true)?;
    let options = GenerateOptions {
        max_new_tokens: MAX_ANSWER_TOKENS,
        sampling: Sampling::GREEDY,
        stop_ids: tokenizer.stop_token_ids().to_vec(),
        compute: DType::F32,
    };
    let mut stream = tokenizer.decode_stream(&prompt, true);
    let go_on = &mut |_| ControlFlow::Continue(());
    let (tokens, _) = generate(model, device, &prompt, &options, go_on);
    let mut text = String::new();
    for token in tokens {
        text.push_str(&stream.push(token)?);
    }
    text.push_str(&stream.finish()?);
    Ok(text)
}

impl Score {
    fn line(&self, num_items: usize) -> String {
        format!("{} of {num_items} held-out items right", self.num_right)
    }
}

fn introduce(args: &DemoArgs, held_out: &[Item]) {
    eprintln!(
        "A small language model, trained by Hone on generated text, learns to turn a sentence into \
         a record.\nNo person, and no triple of count, colour and item, of the held-out items \
         occurs in the rows\nit is tuned on.\nEverything is in {}.\n\nThe task: {}\nThe answer:{}",
        args.dir.display(),
        held_out[0].prompt,
        held_out[0].completion
    );
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
    println!("\nexact match on held-out items: {was} of {n} before, {is} of {n} after");
    for (i, item) in held_out.iter().enumerate().take(SHOWN) {
        println!("\n  {}", item.prompt);
        println!("    before {}", shortened(&before.answers[i]));
        println!("    after  {}", shortened(&after.answers[i]));
    }
    println!("\n{} in all", hone_train::report::format_seconds(seconds));
    output::table(&[
        ("base model", files.base.display().to_string()),
        ("data", files.train.display().to_string()),
        ("run file", files.run_file.display().to_string()),
        ("adapter", finished.result.display().to_string()),
        ("report", finished.report.display().to_string()),
    ]);
    println!(
        "\nTry next:\n  hone generate {} --adapter {} --temperature 0 --prompt \"{}\"\n  \
         hone plan {} adapter.rank=4\n  Open the report in a browser, and write a run file for \
         your own data: see docs/run-file.md.",
        files.base.display(),
        finished.result.display(),
        held_out[SHOWN].prompt,
        files.run_file.display()
    );
}

/// The first line of an answer, at most as long as a line on a terminal.
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
