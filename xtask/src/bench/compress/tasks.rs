//! What a smaller file keeps of the full model's quality, task by task.

use super::super::json;
use super::models::{Model, Ready};
use super::ours::{RATIOS, compress};
use super::{Bench, remove, size};
use serde_json::{Value, json};
use std::fs;
use std::io::BufRead as _;
use std::path::{Path, PathBuf};

/// Word problems that no one has seen, whose answers are predicted.
const PROBLEMS: usize = 200;

/// Tasks of the full model, and of Hone's files at whole-file ratios to bf16.
pub fn measure(bench: &Bench, ready: &Ready) -> Result<Value, String> {
    let full = of_model(bench, ready, &ready.gguf)?;
    let mut files = Vec::new();
    for ratio in RATIOS {
        let key = format!("{}/tasks-{ratio}", ready.model.name);
        let [gguf, calibration, own, other] = ready.files();
        let inputs = [gguf, calibration, own, other];
        let most = format!("{}B", 2 * ready.parameters / ratio);
        let Model { effort, lambada, .. } = ready.model;
        let how = ready.options().join(" ");
        let words = format!("{most} {effort} {lambada} {} {how}", bench.version);
        files.push(bench.kept.step(&key, (&inputs, &words), || {
            let file = ready.gguf.with_file_name("smaller.gguf");
            let options = ["--target-size", &most, "--effort", ready.model.effort];
            match compress(bench, ready, &options, &file) {
                Ok(_) => (),
                // Rows that no small type takes.
                Err(error) if error.contains(LEAST) => {
                    return Ok(json!({ "ratio": ratio, "refused": last_line(&error) }));
                }
                Err(error) => return Err(error),
            }
            let mut tasks = asked(bench, ready, &file)?;
            tasks["ratio"] = ratio.into();
            tasks["bytes"] = size(&file)?.into();
            remove(&file);
            Ok(tasks)
        })?);
    }
    Ok(json!({ "full": full, "files": files }))
}

/// How Hone refuses a target that its types cannot reach.
const LEAST: &str = "least possible";

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().trim().to_owned()
}

fn of_model(bench: &Bench, ready: &Ready, file: &Path) -> Result<Value, String> {
    let key = format!("{}/tasks-full", ready.model.name);
    let inputs: [&Path; 3] = [file, &ready.own, &ready.other];
    let words = format!("{} {}", ready.model.lambada, bench.version);
    bench.kept.step(&key, (&inputs, &words), || asked(bench, ready, file))
}

/// Same top token as the full model on texts and on answers to word problems, the loss of those,
/// and LAMBADA's words.
fn asked(bench: &Bench, ready: &Ready, file: &Path) -> Result<Value, String> {
    let same_top = |data: &Path, options: &[&str]| -> Result<Value, String> {
        let mut eval = bench.hone("eval");
        eval.arg(file).arg("--against").arg(&ready.gguf).arg("--data").arg(data);
        eval.args(["--compute", "f32", "--json"]).args(options);
        Ok(json(&mut eval)?["same_top"]["value"].clone())
    };
    let text = ["--format", "text", "--max-seq-len", "512", "--context-tokens", "257"];
    let fields = ["--prompt-field", "prompt", "--completion-field", "completion"];
    let sets = bench.place.root.join("../shared/data/eval");
    let mut eval = bench.hone("eval");
    eval.arg(file).args(["--task", "lambada_openai", "--compute", "f32", "--json"]);
    eval.args(["--limit", &ready.model.lambada.to_string()]).arg("--data").arg(sets);
    let lambada = json(&mut eval)?;
    let tasks = lambada["tasks"].as_array().cloned().unwrap_or_default();
    let words =
        tasks.iter().find(|task| task["metric"] == "acc").ok_or("no accuracy of LAMBADA")?;
    let problems = problems(bench)?;
    let mut eval = bench.hone("eval");
    eval.arg(file).arg("--data").arg(&problems).args(["--compute", "f32", "--json"]).args(fields);
    Ok(json!({
        "same_top_own": same_top(&ready.own, &text)?,
        "same_top_other": same_top(&ready.other, &text)?,
        "same_top_answers": same_top(&problems, &fields)?,
        "lambada": words["value"],
        "lambada_stderr": words["stderr"],
        "gsm8k_loss": json(&mut eval)?["loss"],
    }))
}

/// Problems of GSM8K's test part, as they were asked in training.
fn problems(bench: &Bench) -> Result<PathBuf, String> {
    let path = bench.path("gsm8k-test.jsonl");
    if path.is_file() {
        return Ok(path);
    }
    let test = bench.place.root.join("../shared/data/sft/gsm8k/test.jsonl");
    let failed = |error: std::io::Error| format!("{}: {error}", test.display());
    let file = fs::File::open(&test).map_err(failed)?;
    let mut lines = String::new();
    for line in std::io::BufReader::new(file).lines().take(PROBLEMS) {
        let row: Value = serde_json::from_str(&line.map_err(failed)?).map_err(|e| e.to_string())?;
        let (Some(question), Some(answer)) = (row["question"].as_str(), row["answer"].as_str())
        else {
            return Err(format!("{}: a row without question or answer", test.display()));
        };
        let prompt = format!("Question: {question}\nAnswer:");
        let asked = json!({ "prompt": prompt, "completion": format!(" {answer}") });
        lines.push_str(&format!("{asked}\n"));
    }
    fs::write(&path, lines).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(path)
}
