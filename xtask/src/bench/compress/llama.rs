//! llama.cpp's programs: files of every mix with and without an importance matrix, and what
//! `llama-perplexity` says of a file.

use super::super::json;
use super::models::Ready;
use super::{Bench, remove, said, size};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mix of `llama-quantize`, and whether it is made of types that Hone reads.
type Mix = (&'static str, bool);

/// All of two bits and more.
const MIXES: [Mix; 25] = [
    ("Q8_0", true),
    ("Q6_K", true),
    ("Q5_K_M", true),
    ("Q5_K_S", true),
    ("Q5_1", true),
    ("Q5_0", true),
    ("Q4_K_M", true),
    ("Q4_K_S", true),
    ("Q4_1", true),
    ("Q4_0", true),
    ("IQ4_NL", true),
    ("IQ4_XS", true),
    ("Q3_K_L", true),
    ("Q3_K_M", true),
    ("Q3_K_S", true),
    ("IQ3_M", false),
    ("IQ3_S", false),
    ("IQ3_XS", false),
    ("IQ3_XXS", false),
    ("Q2_K", true),
    ("Q2_K_S", true),
    ("IQ2_M", false),
    ("IQ2_S", false),
    ("IQ2_XS", false),
    ("IQ2_XXS", false),
];

/// What `llama-quantize` says of types that it does not make without an importance matrix.
const NEEDS_IMATRIX: &str = "requires an imatrix";

/// The folder of `llama-quantize`, `llama-imatrix` and `llama-perplexity`.
pub struct Programs {
    dir: PathBuf,
}

/// What files are compared with: the logits of the f32 model on both texts.
pub struct Base {
    own: PathBuf,
    other: PathBuf,
}

impl Programs {
    pub fn new(dir: &Path) -> Result<Self, String> {
        let dir = std::path::absolute(dir).map_err(|error| error.to_string())?;
        let needed = ["llama-quantize", "llama-imatrix", "llama-perplexity"];
        match needed.iter().find(|name| !dir.join(name).is_file()) {
            Some(missing) => Err(format!("there is no {missing} in {}", dir.display())),
            None => Ok(Self { dir }),
        }
    }

    fn command(&self, name: &str) -> Command {
        Command::new(self.dir.join(name))
    }

    /// Commit and compiler of the programs, as they say it.
    pub fn version(&self) -> Result<String, String> {
        let text = said(self.command("llama-perplexity").arg("--version"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("version:"));
        Ok(line.unwrap_or_default().trim().to_owned())
    }

    /// `llama-perplexity` with a cache in f32, on windows of 512 tokens.
    fn perplexity(&self, file: &Path) -> Command {
        let mut command = self.command("llama-perplexity");
        command.arg("-m").arg(file).args(["-c", "512", "-ngl", "0", "-t", "2", "-fa", "off"]);
        command.args(["-ctk", "f32", "-ctv", "f32"]);
        command
    }

    /// Has llama.cpp write the f32 model's logits.
    pub fn base(&self, bench: &Bench, ready: &Ready) -> Result<Base, String> {
        let of = |text: &Path| {
            let inputs: [&Path; 2] = [&ready.gguf, text];
            let inputs = (&inputs[..], &*self.version()?);
            bench.made(text.with_extension("logits"), inputs, |file| {
                let mut perplexity = self.perplexity(&ready.gguf);
                perplexity.arg("-f").arg(text).arg("--kl-divergence-base").arg(file);
                said(&mut perplexity).map(drop)
            })
        };
        Ok(Base { own: of(&ready.own)?, other: of(&ready.other)? })
    }

    /// The importance matrix of llama.cpp's own program.
    fn imatrix(&self, bench: &Bench, ready: &Ready) -> Result<PathBuf, String> {
        let inputs: [&Path; 2] = [&ready.gguf, &ready.calibration];
        let inputs = (&inputs[..], &*self.version()?);
        bench.made(ready.calibration.with_file_name("imatrix.gguf"), inputs, |file| {
            let mut imatrix = self.command("llama-imatrix");
            imatrix.arg("-m").arg(&ready.gguf).arg("-f").arg(&ready.calibration);
            imatrix.args(["-c", "512", "-ngl", "0", "-t", "2", "--no-ppl", "-o"]).arg(file);
            said(&mut imatrix).map(drop)
        })
    }

    /// Rows of all mixes.
    pub fn rows(&self, bench: &Bench, ready: &Ready, base: &Base) -> Result<Vec<Value>, String> {
        let imatrix = self.imatrix(bench, ready)?;
        let mut rows = Vec::new();
        for mix in MIXES {
            for imatrix in [None, Some(&*imatrix)] {
                rows.push(self.row(bench, ready, base, (mix, imatrix))?);
            }
        }
        rows.retain(|row| !row.is_null());
        Ok(rows)
    }

    /// Nothing where llama.cpp does not make the mix without an importance matrix.
    fn row(
        &self,
        bench: &Bench,
        ready: &Ready,
        base: &Base,
        ((mix, is_ours), imatrix): (Mix, Option<&Path>),
    ) -> Result<Value, String> {
        let end = if imatrix.is_some() { "-imatrix" } else { "" };
        let key = format!("{}/llama-{mix}{end}", ready.model.name);
        let file = ready.gguf.with_file_name("llama.gguf");
        let [gguf, calibration, own, other] = ready.files();
        let inputs = [gguf, calibration, own, other];
        // A run that was ended may have left that of another mix.
        remove(&file);
        let mut row = bench.kept.step(&key, (&inputs, &self.version()?), || {
            if !self.quantize(ready, (mix, imatrix), &file)? {
                return Ok(Value::Null);
            }
            let mut row = self.of_file(base, &file)?;
            row["maker"] = "llama.cpp".into();
            row["name"] = mix.into();
            row["imatrix"] = imatrix.is_some().into();
            Ok(row)
        })?;
        if is_ours && !row.is_null() {
            let inputs = [gguf, calibration, own];
            let key = format!("{key}-by-hone");
            row["by_hone"] = bench.kept.step(&key, (&inputs, &bench.version), || {
                if !file.is_file() {
                    self.quantize(ready, (mix, imatrix), &file)?;
                }
                by_hone(bench, ready, &file)
            })?;
        }
        remove(&file);
        Ok(row)
    }

    /// Writes a file in the mix; false if that takes an importance matrix, and there is none.
    fn quantize(
        &self,
        ready: &Ready,
        (mix, imatrix): (&str, Option<&Path>),
        file: &Path,
    ) -> Result<bool, String> {
        remove(file);
        let mut quantize = self.command("llama-quantize");
        if let Some(imatrix) = imatrix {
            quantize.arg("--imatrix").arg(imatrix);
        }
        quantize.arg(&ready.gguf).arg(file).args([mix, "2"]);
        match said(&mut quantize) {
            Ok(_) => Ok(true),
            Err(error) if imatrix.is_none() && error.contains(NEEDS_IMATRIX) => {
                remove(file);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Size and divergence of a file.
    pub fn of_file(&self, base: &Base, file: &Path) -> Result<Value, String> {
        let of = |logits: &Path| {
            let mut perplexity = self.perplexity(file);
            perplexity.args(["--kl-divergence", "--kl-divergence-base"]).arg(logits);
            // It now and then ends before its last lines are out, which a thread of its own writes.
            (0..9).fold(divergence(&said(&mut perplexity)?), |found, _| match found {
                Ok(found) => Ok(found),
                Err(_) => divergence(&said(&mut perplexity)?),
            })
        };
        Ok(json!({
            "bytes": size(file)?,
            "own": of(&base.own)?,
            "other": of(&base.other)?,
        }))
    }
}

/// What `hone eval` says of the file on the text of the learnt kind.
pub fn by_hone(bench: &Bench, ready: &Ready, file: &Path) -> Result<Value, String> {
    let mut eval = bench.hone("eval");
    eval.arg(file).arg("--against").arg(&ready.gguf).arg("--data").arg(&ready.own);
    eval.args(["--format", "text", "--compute", "f32", "--json"]);
    eval.args(["--max-seq-len", "512", "--context-tokens", "257"]);
    let found = json(&mut eval)?;
    Ok(json!({ "kl": found["kl"]["mean"], "same_top": found["same_top"]["value"] }))
}

/// The figures in the text of `llama-perplexity --kl-divergence`.
pub fn divergence(text: &str) -> Result<Value, String> {
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
        let number = line.and_then(|line| line.split(':').nth(1)?.split_whitespace().next());
        let number = number.and_then(|number| number.parse::<f64>().ok());
        number.ok_or_else(|| format!("llama-perplexity does not say its `{name}`:\n{text}"))
    };
    Ok(json!({
        "kl": figure("Mean    KLD")?,
        "kl_p999": figure("99.9%   KLD")?,
        "same_top": figure("Same top p")? / 100.0,
    }))
}

/// AutoRound's files, if its environment is there, which `bench/compress_autoround.py` says how to
/// make.
pub fn autoround(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
) -> Result<Vec<Value>, String> {
    let python = bench.place.root.join("target/autoround-venv/bin/python");
    if !python.is_file() {
        return Ok(Vec::new());
    }
    let mut rows = Vec::new();
    for (scheme, iterations) in AUTOROUND {
        let name = format!("{scheme}, {iterations} iterations");
        let key = format!("{}/autoround-{scheme}-{iterations}", ready.model.name);
        let [gguf, calibration, own, other] = ready.files();
        let inputs = [gguf, calibration, own, other];
        rows.push(bench.kept.step(&key, (&inputs, &programs.version()?), || {
            let file = ready.gguf.with_file_name("autoround.gguf");
            remove(&file);
            let mut script = Command::new(&python);
            script.arg(bench.place.root.join("bench/compress_autoround.py"));
            script.arg(&ready.folder).arg(&ready.calibration).args([scheme, iterations]);
            said(script.arg(&file).current_dir(&bench.place.dir))?;
            let mut row = programs.of_file(base, &file)?;
            row["maker"] = "AutoRound".into();
            row["name"] = name.as_str().into();
            row["imatrix"] = true.into();
            let _ = fs::remove_file(&file);
            Ok(row)
        })?);
    }
    Ok(rows)
}

/// Its mixes, and how often it improves the roundings of a block.
const AUTOROUND: [(&str, &str); 4] =
    [("Q4_K_M", "0"), ("Q4_K_M", "200"), ("Q2_K_S", "0"), ("Q2_K_S", "200")];
