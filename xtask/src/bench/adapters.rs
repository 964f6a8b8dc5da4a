//! `cargo xtask bench adapters`: the same LoRA trained on a base in bf16 and on the file of 4 bits
//! that ships, and what is left of each when it is merged and quantised.
//!
//! Models, data, runs and figures live in `target/adapters`; what is there is not made again.

use super::compress::kept::Kept;
use super::compress::{base_of, remove, said, size};
use super::{Place, json, report, today};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

/// The most that the loss on 4 bits may be, as a multiple of that on bf16.
const LIMIT: f64 = 1.01;

/// A base, what it learns, and its 4 bits.
struct Model {
    /// As `bench compress` calls it.
    name: &'static str,
    title: &'static str,
    /// Rows to train on, which are calibrated on too, and rows to evaluate on.
    data: [&'static str; 2],
    settings: &'static [&'static str],
    bits: &'static [&'static str],
}

const ALL: [Model; 3] = [
    Model {
        name: "stories",
        title: "stories260k, Q4_0 but for rows of 172, on Shakespeare",
        data: ["train.txt", "test.txt"],
        settings: &["data.format=text", "objective.kind=pretrain"],
        bits: &["--type", "q4_0", "--fallback", "llama.cpp"],
    },
    Model {
        name: "second",
        title: "Llama of 10.5 million, Q4_K_M, on Shakespeare",
        data: ["train.txt", "test.txt"],
        settings: &["data.format=text", "objective.kind=pretrain"],
        bits: &["--type", "q4_k_m"],
    },
    Model {
        name: "smollm2",
        title: "SmolLM2-135M-Instruct, IQ4_NL, on GSM8K",
        data: ["train.jsonl", "test.jsonl"],
        settings: &["data.format=prompt_completion"],
        // Rows of 576 have no whole blocks of K-types.
        bits: &["--type", "iq4_nl", "--fallback", "llama.cpp"],
    },
];

/// Of GSM8K's and Shakespeare's held-out part, what is evaluated on.
const NUM_TEST_ROWS: usize = 128;
const NUM_TEST_BYTES: usize = 50_000;

const BASES: [&str; 2] = ["base", "base-4bit.gguf"];
const ADAPTERS: [&str; 2] = ["runs/bf16/adapter", "runs/4bit/adapter"];
const MERGED: [&str; 2] = ["merged-bf16.gguf", "merged-4bit.gguf"];

/// What could be shipped.
struct Way {
    name: &'static str,
    model: &'static str,
    adapter: Option<&'static str>,
}

const fn way(name: &'static str, model: &'static str, adapter: Option<&'static str>) -> Way {
    Way { name, model, adapter }
}

const WAYS: [Way; 7] = [
    way("bf16, untrained", BASES[0], None),
    way("4 bits, untrained", BASES[1], None),
    way("bf16 with the adapter trained on it", BASES[0], Some(ADAPTERS[0])),
    way("4 bits with the adapter trained on them", BASES[1], Some(ADAPTERS[1])),
    way("4 bits with the adapter trained on bf16", BASES[1], Some(ADAPTERS[0])),
    way("bf16 with its adapter merged, in 4 bits", MERGED[0], None),
    way("4 bits with their adapter merged, in 4 bits again", MERGED[1], None),
];
/// Places in [`WAYS`]: what the others are compared with, and what is trained on 4 bits.
const REFERENCE: usize = 2;
const TRAINED: usize = 3;

/// Trains, merges and evaluates the models that are named, or all; with `--hone BINARY` if it is
/// not to be built. Writes the page.
pub fn run(root: &Path, args: &[&str]) -> ExitCode {
    report("adapters", try_run(root, args))
}

fn try_run(root: &Path, args: &[&str]) -> Result<bool, String> {
    let (hone, names) = match args {
        ["--hone", hone, names @ ..] => (Some(Path::new(hone)), names),
        names => (None, names),
    };
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|of| of.name != **name)) {
        let known = ALL.map(|model| model.name).join(", ");
        return Err(format!("there is no model `{unknown}`; there are {known}"));
    }
    let place = Place::new(root, "adapters", hone)?;
    for model in ALL.iter().filter(|of| names.is_empty() || names.contains(&of.name)) {
        let found = measured(root, &place, model)?;
        let mut all = kept(&place);
        all[model.name] = json!({
            "ways": found,
            "measured": format!("{}, {}", today()?, place.machine()?),
        });
        let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
        place.write_page("adapters.json", &format!("{text}\n"))?;
    }
    let (page, is_reached) = page(&kept(&place))?;
    print!("{page}");
    place.write_page("adapters.md", &page)?;
    Ok(is_reached)
}

/// The figures on the page.
fn kept(place: &Place) -> Value {
    let text = fs::read_to_string(place.page("adapters.json"));
    serde_json::from_str(&text.unwrap_or_default()).unwrap_or_else(|_| json!({}))
}

/// Bytes and loss of all ways.
fn measured(root: &Path, all: &Place, model: &Model) -> Result<Vec<Value>, String> {
    let dir = all.dir.join(model.name);
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let place = &Place { root: root.to_owned(), hone: all.hone.clone(), dir };
    data(place, model)?;
    if !place.dir.join(BASES[0]).join("model.safetensors").is_file() {
        let base = base_of(root, &all.hone, model.name)?;
        let _ = fs::remove_dir_all(place.dir.join(BASES[0]));
        let mut export = hone_in(place, "export");
        said(export.arg(base).args(["--dtype", "bf16", "--out", BASES[0]]))?;
    }
    made(place, model, (BASES[1], &[BASES[0]]))?;
    for (base, adapter) in BASES.into_iter().zip(ADAPTERS) {
        train(place, model, (base, adapter))?;
    }
    let merge = [BASES[0], "--adapter", ADAPTERS[0]];
    made(place, model, (MERGED[0], &merge))?;
    let merge = [BASES[1], "--adapter", ADAPTERS[1], "--requantise"];
    made(place, model, (MERGED[1], &merge))?;
    let kept = Kept::new(&place.dir.join("kept"));
    let found = WAYS.iter().map(|way| evaluated(place, &kept, (model, way)));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let mut show = hone_in(place, "report");
    show.args((0..WAYS.len()).map(|i| format!("{i}.json"))).args(["--out", "ways.html"]);
    for (i, found) in found.iter().enumerate() {
        let file = place.dir.join(format!("{i}.json"));
        fs::write(&file, found.to_string()).map_err(|error| error.to_string())?;
    }
    said(&mut show)?;
    let figures = |found: &Value| {
        json!({ "loss": found["loss"], "bytes": found["model"]["bytes"],
                "num_target_tokens": found["num_target_tokens"] })
    };
    Ok(found.iter().map(figures).collect())
}

/// Hone, where models and data live.
fn hone_in(place: &Place, verb: &str) -> Command {
    let mut command = Command::new(&place.hone);
    command.arg(verb).current_dir(&place.dir);
    command
}

/// Rows of GSM8K, or Shakespeare's text.
fn data(place: &Place, model: &Model) -> Result<(), String> {
    let shared = place.root.join("../shared/data");
    let read = |file: &str| {
        let file = shared.join(file);
        fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))
    };
    let [train, test] = match model.data[0].ends_with(".txt") {
        true => {
            let text = read("text/tinyshakespeare.txt")?;
            let middle = text[..text.len() / 10 * 9].rfind("\n\n").unwrap_or(0);
            let end = text[..middle + NUM_TEST_BYTES].rfind("\n\n").unwrap_or(text.len());
            [text[..middle].to_owned(), text[middle..end].to_owned()]
        }
        false => [
            rows(&read("sft/gsm8k/train.jsonl")?, usize::MAX)?,
            rows(&read("sft/gsm8k/test.jsonl")?, NUM_TEST_ROWS)?,
        ],
    };
    for (name, text) in model.data.into_iter().zip([train, test]) {
        let to = place.dir.join(name);
        if !fs::read_to_string(&to).is_ok_and(|known| known == text) {
            fs::write(&to, text).map_err(|error| format!("{}: {error}", to.display()))?;
        }
    }
    Ok(())
}

/// The first rows of GSM8K, as prompts and completions.
fn rows(text: &str, most: usize) -> Result<String, String> {
    let mut rows = String::new();
    for line in text.lines().take(most) {
        let row: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
        let question = row["question"].as_str().unwrap_or_default();
        let row = json!({ "prompt": format!("{question}\n"), "completion": row["answer"] });
        let _ = writeln!(rows, "{row}");
    }
    Ok(rows)
}

/// A file of 4 bits, made of a model and perhaps an adapter.
fn made(place: &Place, model: &Model, (name, of): (&str, &[&str])) -> Result<(), String> {
    let (file, part) = (place.dir.join(name), place.dir.join(format!("part-{name}")));
    if file.is_file() {
        return Ok(());
    }
    eprintln!("{}: {name}", model.name);
    remove(&part);
    let mut compress = hone_in(place, "compress");
    compress.args(of).args(model.bits).args(["--effort", "plain"]);
    compress.args(["--calibration", model.data[0], "--calibration-tokens", "16384"]);
    said(compress.arg("--out").arg(&part))?;
    fs::rename(&part, &file).map_err(|error| format!("{}: {error}", file.display()))
}

/// Runs `bench/adapters.toml` on a base, or goes on with it.
fn train(place: &Place, model: &Model, (base, adapter): (&str, &str)) -> Result<(), String> {
    if place.dir.join(adapter).is_dir() {
        return Ok(());
    }
    eprintln!("{}: {adapter}", model.name);
    let dir = adapter.trim_end_matches("/adapter");
    let train = format!("data.train=[\"{}\"]", model.data[0]);
    let settings = [format!("model.path={base}"), train, format!("output.dir={dir}")];
    let mut command = hone_in(place, "train");
    command.arg(place.root.join("bench/adapters.toml")).arg("--resume");
    said(command.args(settings).args(model.settings)).map(drop)
}

/// What `hone eval` says of the rows that nothing was trained on.
fn evaluated(place: &Place, kept: &Kept, (model, way): (&Model, &Way)) -> Result<Value, String> {
    let test = model.data[1];
    let weights = match way.model.ends_with(".gguf") {
        true => place.dir.join(way.model),
        false => place.dir.join(way.model).join("model.safetensors"),
    };
    let mut files = vec![weights, place.dir.join(test)];
    let mut eval = hone_in(place, "eval");
    eval.args([way.model, "--data", test, "--max-seq-len", "512", "--truncate", "--json"]);
    if let Some(adapter) = way.adapter {
        files.push(place.dir.join(adapter).join("adapter_model.safetensors"));
        eval.args(["--adapter", adapter]);
        let is_own = BASES.into_iter().zip(ADAPTERS).any(|of| of == (way.model, adapter));
        eval.args((!is_own).then_some("--other-base"));
    }
    let paths: Vec<&Path> = files.iter().map(|file| file.as_path()).collect();
    let key = way.name.replace([' ', ','], "-");
    let bytes = size(&files[0])? + files.get(2).map_or(Ok(0), |file| size(file))?;
    let mut found = kept.step(&key, (&paths, ""), || json(&mut eval))?;
    found["model"]["bytes"] = bytes.into();
    Ok(found)
}

/// The page, and whether training on 4 bits cost no more than it may, wherever it was measured.
fn page(kept: &Value) -> Result<(String, bool), String> {
    let (mut page, mut is_reached) = (HEAD.to_owned(), true);
    for model in ALL {
        let found = &kept[model.name];
        let Some(ways) = found["ways"].as_array() else { continue };
        let loss = |i: usize| {
            let loss = ways.get(i).and_then(|way| way["loss"].as_f64());
            loss.ok_or_else(|| format!("{}: no loss of `{}`", model.name, WAYS[i].name))
        };
        let reference = loss(REFERENCE)?;
        let tokens = &ways[REFERENCE]["num_target_tokens"];
        let _ = writeln!(page, "\n## {}\n", model.title);
        page.push_str("| what ships | MB | loss | share |\n| --- | ---: | ---: | ---: |\n");
        for (i, way) in WAYS.iter().enumerate() {
            let megabytes = ways[i]["bytes"].as_f64().unwrap_or(f64::NAN) / 1e6;
            let (loss, share) = (loss(i)?, loss(i)? / reference);
            let _ = writeln!(page, "| {} | {megabytes:.1} | {loss:.4} | {share:.4} |", way.name);
        }
        let share = loss(TRAINED)? / reference;
        is_reached &= share <= LIMIT;
        let verdict = if share <= LIMIT { "reached" } else { "**missed**" };
        let measured = found["measured"].as_str().unwrap_or("unknown");
        let _ = writeln!(
            page,
            "\nTrained on 4 bits, the loss is {share:.4} of that of the adapter trained on bf16 \
             (at most {LIMIT}: {verdict}). {tokens} tokens. {measured}.",
        );
    }
    Ok((page, is_reached))
}

const HEAD: &str = "\
# Adapters on what ships

<!-- Written by `cargo xtask bench adapters`; do not edit. -->

A base in bf16, and the file of 4 bits that `hone compress --effort plain` wrote of it. LoRA of rank
16 on all linear layers, 100 steps of 1,024 tokens ([recipe](../../bench/adapters.toml)), the same
rows in the same order on both. Losses are those of held-out text, in nats per token (of GSM8K those
of answers); the last column is the loss as a share of that of bf16 with its adapter. Megabytes are
those of the model, and of the adapter, which is in f32, where it ships too. Of the bases, the last
two are those of `cargo xtask bench compress`, SmolLM2 off the grid of the file that it comes from
but not yet fine-tuned.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_compares_with_the_adapter_on_bf16() {
        let kept = |trained| {
            let of = |loss: f64| json!({ "loss": loss, "bytes": 5_250_000 });
            let ways = [2.0, 2.1, 1.0, trained, 1.05, 1.03, 1.04].map(of);
            json!({ "second": { "ways": ways, "measured": "today" } })
        };
        let (reached, is_reached) = page(&kept(1.009)).unwrap();
        assert!(is_reached && reached.contains("is 1.0090 of that"), "{reached}");
        assert!(reached.contains("| bf16, untrained | 5.2 | 2.0000 | 2.0000 |"), "{reached}");
        assert!(!reached.contains("SmolLM2-135M-Instruct, IQ4_NL"), "{reached}");
        let (missed, is_reached) = page(&kept(1.011)).unwrap();
        assert!(!is_reached && missed.contains("**missed**"), "{missed}");
        let mut without = kept(1.0);
        without["second"]["ways"][6]["loss"] = Value::Null;
        let error = page(&without).unwrap_err();
        assert!(error.contains("second: no loss of `4 bits with their adapter merged"), "{error}");
    }
}
