//! The readers: which file of a directory is mutated, from which seeds, and how it is read.

use hone_data::{OnError, RecordSpec, Tokenizer};
use hone_model::{DecoderConfig, LoadOptions};
use hone_tensor::Device;
use hone_tensor::gguf::{GgufFile, Value};
use hone_tensor::safetensors::SafeTensorsFile;
use hone_train::run_file::RunFile;
use std::path::{Path, PathBuf};

/// One reader.
pub struct Target {
    pub name: &'static str,
    /// What is mutated, below a copy of the corpus's folder `base`.
    pub file: &'static str,
    /// Reads the mutated file in that copy: whether it was accepted, or why not.
    pub read: fn(&Path) -> Result<(), String>,
}

const TARGETS: [Target; 14] = [
    Target { name: "safetensors", file: "model/model.safetensors", read: safetensors },
    Target { name: "gguf", file: "model.gguf", read: gguf },
    Target { name: "gguf_model", file: "model.gguf", read: gguf_model },
    Target { name: "weights", file: "model/model.safetensors", read: model },
    Target { name: "configuration", file: "model/config.json", read: model },
    Target { name: "description", file: "described/config.json", read: description },
    Target { name: "tokenizer", file: "model/tokenizer.json", read: tokenizer },
    Target { name: "template", file: "model/chat_template.jinja", read: chat },
    Target { name: "records", file: "records.jsonl", read: records },
    Target { name: "task", file: "tasks/task.yaml", read: task },
    Target { name: "task_csv", file: "tasks/records.csv", read: task_csv },
    Target { name: "run_file", file: "run.toml", read: run_file },
    Target { name: "adapter", file: "adapter/adapter_config.json", read: adapter },
    Target { name: "adapter_weights", file: "adapter/adapter_model.safetensors", read: adapter },
];

/// The target of that name, or all.
pub fn named(name: &str) -> Vec<&'static Target> {
    TARGETS.iter().filter(|target| name == "all" || target.name == name).collect()
}

/// The names of all targets.
pub fn names() -> Vec<&'static str> {
    TARGETS.iter().map(|target| target.name).collect()
}

impl Target {
    /// What is mutated: the file of `base`, and those in the corpus's folder of the target's name.
    pub fn seeds(&self) -> std::io::Result<Vec<Vec<u8>>> {
        let mut seeds = vec![std::fs::read(corpus().join("base").join(self.file))?];
        let more = corpus().join(self.name);
        if more.is_dir() {
            let entries = std::fs::read_dir(more)?.collect::<Result<Vec<_>, _>>()?;
            let mut paths: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).collect();
            paths.sort();
            for path in paths {
                seeds.push(std::fs::read(path)?);
            }
        }
        Ok(seeds)
    }
}

/// The committed files.
pub fn corpus() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn data_text(error: hone_data::DataError) -> String {
    error.message(hone_train::run_file::words)
}

fn safetensors(dir: &Path) -> Result<(), String> {
    let file = SafeTensorsFile::open(&dir.join("model/model.safetensors")).map_err(text)?;
    for name in file.names() {
        let tensor = file.tensor(&name).map_err(text)?;
        let _ = tensor.map(|tensor| tensor.view().to_vec_f32());
    }
    Ok(())
}

fn gguf(dir: &Path) -> Result<(), String> {
    let file = GgufFile::open(&dir.join("model.gguf")).map_err(text)?;
    for key in file.keys() {
        if let Some(Value::Array(array)) = file.get(key) {
            array.iter().try_for_each(|element| element.map(drop))?;
        }
    }
    for name in file.names() {
        let _ = file.tensor(name).map(|tensor| tensor.view().to_vec_f32());
    }
    Ok(())
}

fn model(dir: &Path) -> Result<(), String> {
    load_model(&dir.join("model"))
}

/// A configuration of any family, without weights: what it describes.
fn description(dir: &Path) -> Result<(), String> {
    let dir = dir.join("described");
    let config = DecoderConfig::load(&dir).map_err(text)?;
    let _ = config.num_parameters();
    hone_model::load(&dir, &Device::dry(), LoadOptions::INFERENCE).map(drop).map_err(text)
}

/// All that a GGUF file says.
fn gguf_model(dir: &Path) -> Result<(), String> {
    let file = dir.join("model.gguf");
    load_model(&file)?;
    let tokenizer = hone_train::setup::tokenizer_of(&file).map_err(text)?;
    encode_samples(&tokenizer)
}

/// Configuration and weights, as `hone eval` loads them.
fn load_model(path: &Path) -> Result<(), String> {
    DecoderConfig::load(path).map_err(text)?;
    // First where nothing is allocated, as a plan does: sizes may be absurd.
    hone_model::load(path, &Device::dry(), LoadOptions::INFERENCE).map_err(text)?;
    hone_model::load(path, &Device::cpu(1), LoadOptions::INFERENCE).map(drop).map_err(text)
}

fn adapter(dir: &Path) -> Result<(), String> {
    let device = Device::cpu(1);
    let mut model =
        hone_model::load(&dir.join("model"), &device, LoadOptions::INFERENCE).map_err(text)?;
    hone_model::adapter::load(&dir.join("adapter"), &mut model, &device, &mut |_| ())
        .map(drop)
        .map_err(text)
}

fn tokenizer(dir: &Path) -> Result<(), String> {
    encode_samples(&Tokenizer::from_dir(&dir.join("model")).map_err(data_text)?)
}

fn encode_samples(tokenizer: &Tokenizer) -> Result<(), String> {
    for sample in ["", "Once upon a time", "w1 w2  w3\n", "é<s> 漢字 \u{1f600}\u{0}"] {
        let ids = tokenizer.encode(sample, true).map_err(data_text)?;
        tokenizer.decode(&ids, false).map_err(data_text)?;
    }
    Ok(())
}

fn chat(dir: &Path) -> Result<(), String> {
    load_rows(dir, "chat.jsonl")
}

fn records(dir: &Path) -> Result<(), String> {
    load_rows(dir, "records.jsonl")
}

fn load_rows(dir: &Path, file: &str) -> Result<(), String> {
    let tokenizer = Tokenizer::from_dir(&dir.join("model")).map_err(data_text)?;
    let spec = RecordSpec { max_seq_len: 512, on_error: OnError::Skip, ..RecordSpec::default() };
    let path = dir.join(file).display().to_string();
    hone_data::load(&[path], &spec, &tokenizer, 2).map(drop).map_err(data_text)
}

fn task(dir: &Path) -> Result<(), String> {
    load_task(dir, "task.yaml")
}

fn task_csv(dir: &Path) -> Result<(), String> {
    load_task(dir, "csv.yaml")
}

/// A task or group, with its prompts.
fn load_task(dir: &Path, file: &str) -> Result<(), String> {
    let options = hone_eval::task::Options { folder: None, num_fewshot: None };
    let (_, tasks) =
        hone_eval::task::group::load(&[dir.join("tasks").join(file)], &options).map_err(text)?;
    tasks.iter().try_for_each(|task| {
        hone_eval::task::prompt::items(task, usize::MAX, None).map(drop).map_err(text)
    })
}

fn run_file(dir: &Path) -> Result<(), String> {
    let run = RunFile::load(&dir.join("run.toml"), &[]).map_err(text)?;
    // What is accepted is written into the run's directory and read back by --resume.
    RunFile::from_str(&run.to_toml(), &[])
        .map(drop)
        .map_err(|error| panic!("an accepted run file is refused when it is written out: {error}"))
}
