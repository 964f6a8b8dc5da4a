//! The two models and their texts, made when they are first needed.

use super::super::json;
use super::ours::{OUR_FEW_MIXES, OUR_MIXES};
use super::{Bench, said};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// One model of the benchmark.
pub struct Model {
    /// Names it on the command line, and its folder.
    pub name: &'static str,
    pub title: &'static str,
    /// Windows of 512 tokens of each text that is evaluated on.
    eval_windows: usize,
    /// Windows that Hone calibrates on; an eighth as many more are held out by it, and given to
    /// llama-imatrix too.
    calibration_windows: usize,
    /// Hone's mixes that are measured, weighed by importance.
    pub our_mixes: &'static [&'static str],
    /// Bits per weight at which Hone is compared with llama.cpp, and the most that its KL may be as
    /// a share of llama.cpp's.
    pub limits: &'static [(f64, f64)],
    /// The one of them at which the effort `best` is measured, which takes long.
    pub best_at: f64,
    /// Bits per weight of the mix to which techniques are compared; `None`: that is told of another
    /// model alone, as it takes two hours.
    pub techniques_at: Option<f64>,
    /// Effort of the files of techniques and tasks.
    pub effort: &'static str,
    /// Precision of Hone's passes.
    pub compute: &'static str,
    /// Documents of LAMBADA.
    pub lambada: usize,
}

pub const ALL: [Model; 2] = [
    Model {
        name: "second",
        title: "Llama of 10.5 million, pre-trained by Hone",
        eval_windows: 40,
        calibration_windows: 256,
        our_mixes: &OUR_MIXES,
        limits: &[(5.0, 0.7), (3.6, 0.6), (3.0, 0.5)],
        best_at: 3.0,
        techniques_at: Some(3.6),
        effort: "default",
        compute: "f32",
        lambada: 500,
    },
    Model {
        name: "smollm2",
        title: "SmolLM2-135M, off its grid and fine-tuned",
        eval_windows: 8,
        calibration_windows: 64,
        our_mixes: &OUR_FEW_MIXES,
        // No useful file of llama.cpp has fewer than 5.4: the embedding and rows of 576 take 8.5
        // and 4.5.
        limits: &[(5.5, 0.7), (5.0, 0.7)],
        best_at: 5.0,
        techniques_at: None,
        effort: "default",
        compute: "bf16",
        lambada: 200,
    },
];

/// A model with all that is measured on it.
pub struct Ready {
    pub model: &'static Model,
    /// Folder in Hugging Face layout, f32.
    pub folder: PathBuf,
    /// The same as a GGUF file.
    pub gguf: PathBuf,
    /// Text of the kind that was learnt, text of another, and what all calibrate on.
    pub own: PathBuf,
    pub other: PathBuf,
    pub calibration: PathBuf,
    pub parameters: u64,
}

impl Ready {
    /// What all files' figures depend on: the model, what is calibrated on, and both texts.
    pub fn files(&self) -> [&Path; 4] {
        [&self.gguf, &self.calibration, &self.own, &self.other]
    }

    /// Options of `hone compress` that are the same for all files. Hone's held-out part is not of
    /// the tokens.
    pub fn options(&self) -> [String; 4] {
        let tokens = (512 * self.model.calibration_windows).to_string();
        ["--compute", self.model.compute, "--calibration-tokens", &tokens].map(str::to_owned)
    }
}

/// Makes what is missing.
pub fn prepare(bench: &Bench, model: &'static Model) -> Result<Ready, String> {
    texts(bench)?;
    let folder = match model.name {
        "second" => second(bench)?,
        _ => smollm2(bench)?,
    };
    let dir = bench.path(model.name);
    fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let weights = folder.join("model.safetensors");
    let inputs = (&[&*weights][..], &*bench.version);
    let gguf = bench.made(dir.join("f32.gguf"), inputs, |file| {
        let mut export = bench.hone("export");
        export.arg(&folder).args(["--format", "gguf", "--dtype", "f32", "--out"]).arg(file);
        said(&mut export).map(drop)
    })?;
    let held_out = model.calibration_windows / 8;
    let cut = |text: &str, windows: usize| {
        let (whole, tokenizer) = (bench.path(text), folder.join("tokenizer.json"));
        let (from, windows) = (folder.to_string_lossy(), windows.to_string());
        bench.made(dir.join(text), (&[&whole, &tokenizer], &windows), |file| {
            bench.script(TEXTS, &["cut", &from, text, &windows, &file.to_string_lossy()])
        })
    };
    Ok(Ready {
        model,
        own: cut("own.txt", model.eval_windows)?,
        other: cut("other.txt", model.eval_windows)?,
        calibration: cut("calibration.txt", model.calibration_windows + held_out)?,
        parameters: parameters(&weights)?,
        folder,
        gguf,
    })
}

/// The script of texts and of the second model's beginning.
const TEXTS: &str = "compress_texts.py";

pub fn texts(bench: &Bench) -> Result<(), String> {
    let data = bench.place.root.join("../shared/data");
    if bench.path("other.txt").is_file() {
        return Ok(());
    }
    if !data.is_dir() {
        return Err("../shared/data is absent, which holds the texts".to_owned());
    }
    bench.script(TEXTS, &["texts", &data.to_string_lossy(), "."])
}

pub fn second(bench: &Bench) -> Result<PathBuf, String> {
    let begin = bench.path("second-init/model.safetensors");
    if !begin.is_file() {
        bench.script(TEXTS, &["second", "."])?;
    }
    train(bench, "second", &begin)
}

fn smollm2(bench: &Bench) -> Result<PathBuf, String> {
    train(bench, "smollm2", &folded(bench)?.join("model.safetensors"))
}

/// SmolLM2 off the grid of the file that it comes from.
pub fn folded(bench: &Bench) -> Result<PathBuf, String> {
    let folded = bench.path("smollm2-folded");
    if !folded.join("model.safetensors").is_file() {
        let source = crate::models::SMOLLM2.path(&bench.place.root);
        if !source.is_file() {
            return Err("SmolLM2 is absent; `cargo xtask models` fetches it".to_owned());
        }
        let plain = bench.path("smollm2-hf");
        let _ = fs::remove_dir_all(&plain);
        let mut export = bench.hone("export");
        export.arg(source).args(["--dtype", "f32", "--out"]).arg(&plain);
        said(&mut export)?;
        bench.script("off_grid.py", &["smollm2-hf", "smollm2-folded"])?;
    }
    Ok(folded)
}

/// Runs `bench/compress_NAME.toml` from weights that are in it, or goes on with it.
fn train(bench: &Bench, name: &str, begin: &Path) -> Result<PathBuf, String> {
    let run = bench.path(&format!("runs/{name}"));
    let (model, weights) = (run.join("model"), run.join("model/model.safetensors"));
    let recipe = bench.place.root.join(format!("bench/compress_{name}.toml"));
    let key = format!("runs/{name}");
    bench.unless_there(&weights, &key, (&[&recipe, begin], &bench.version), || {
        if weights.is_file() {
            // Made by another recipe, or from another model.
            fs::remove_dir_all(&run).map_err(|error| format!("{}: {error}", run.display()))?;
        }
        said(bench.hone("train").arg(&recipe).arg("--resume")).map(|_| Value::Null)
    })?;
    Ok(model)
}

/// Weights in a safetensors file.
fn parameters(file: &Path) -> Result<u64, String> {
    let failed = |error: String| format!("{}: {error}", file.display());
    let mut open = File::open(file).map_err(|error| failed(error.to_string()))?;
    let mut length = [0; 8];
    open.read_exact(&mut length).map_err(|error| failed(error.to_string()))?;
    let mut header = Vec::new();
    let mut part = open.take(u64::from_le_bytes(length));
    part.read_to_end(&mut header).map_err(|error| failed(error.to_string()))?;
    let header: Value = serde_json::from_slice(&header).map_err(|e| failed(e.to_string()))?;
    let of_tensor = |tensor: &Value| -> u64 {
        let shape = tensor["shape"].as_array();
        shape.map_or(0, |shape| shape.iter().filter_map(Value::as_u64).product())
    };
    let tensors = header.as_object().ok_or_else(|| failed("no header".to_owned()))?;
    Ok(tensors.values().map(of_tensor).sum())
}

/// How good the model is: its loss on both texts, in nats per token.
pub fn losses(bench: &Bench, ready: &Ready) -> Result<Value, String> {
    let of = |text: &Path| -> Result<Value, String> {
        let mut eval = bench.hone("eval");
        eval.arg(&ready.folder).arg("--data").arg(text).args(["--format", "text", "--json"]);
        Ok(json(eval.args(["--max-seq-len", "512"]))?["loss"].clone())
    };
    let weights = ready.folder.join("model.safetensors");
    let inputs: [&Path; 3] = [&weights, &ready.own, &ready.other];
    bench.kept.step(&format!("{}/losses", ready.model.name), (&inputs, &bench.version), || {
        Ok(json!({ "own": of(&ready.own)?, "other": of(&ready.other)? }))
    })
}
