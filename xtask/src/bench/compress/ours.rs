//! Files that Hone makes.

use super::super::json;
use super::llama::{Base, Programs, by_hone};
use super::models::Ready;
use super::{Bench, remove};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// Mixes with the types of llama.cpp's, with the effort `plain`: columns weighed by importance.
pub const OUR_MIXES: [&str; 5] = ["q8_0", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k"];
/// Some of them, for a model whose files take minutes.
pub const OUR_FEW_MIXES: [&str; 4] = ["q5_0", "q4_k_m", "q4_0", "iq4_nl"];
const EFFORTS: [&str; 3] = ["plain", "default", "best"];
/// Whole-file ratios to bf16 at which tasks are asked.
pub const RATIOS: [u64; 3] = [3, 4, 5];

/// The best file with an importance matrix among those of at most so many bits per weight: that of
/// the least divergence on text of the learnt kind.
pub fn best<'a>(rows: &'a [Value], parameters: u64, bits: f64) -> Option<&'a Value> {
    let fits = |row: &&'a Value| {
        row["maker"] == "llama.cpp"
            && row["imatrix"] == true
            && bits_per_weight(row, parameters) <= bits
    };
    rows.iter().filter(fits).min_by(|a, b| kl(a, "own").total_cmp(&kl(b, "own")))
}

/// Of the whole file.
pub fn bits_per_weight(row: &Value, parameters: u64) -> f64 {
    8.0 * row["bytes"].as_f64().unwrap_or(f64::NAN) / parameters as f64
}

/// Mean KL divergence on text of the learnt kind, `own`, or of another, `other`.
pub fn kl(row: &Value, text: &str) -> f64 {
    row[text]["kl"].as_f64().unwrap_or(f64::NAN)
}

/// Options of `hone compress` with which columns count alike.
const PLAIN: [&str; 4] = ["--effort", "plain", "--without", "importance"];

/// Rows of mixes, and of the sizes of llama.cpp's best files.
pub fn rows(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
    theirs: &[Value],
) -> Result<Vec<Value>, String> {
    let mut rows = Vec::new();
    for &mix in ready.model.our_mixes {
        let options = [&of_mix(mix)[..], &["--effort", "plain"]].concat();
        rows.push(row(bench, programs, ready, base, (mix, &options))?);
    }
    // What takes longest last: a run may be ended.
    for effort in EFFORTS {
        for &(bits, _) in ready.model.limits {
            let Some(theirs) = best(theirs, ready.parameters, bits) else { continue };
            if effort == "best" && bits != ready.model.best_at {
                continue;
            }
            let mut row = chosen(bench, programs, ready, base, (&theirs["bytes"], effort))?;
            row["limit"] = bits.into();
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Rows of the sizes of AutoRound's files.
pub fn of_no_more_bytes(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
    theirs: &[Value],
) -> Result<Vec<Value>, String> {
    let sizes: BTreeSet<u64> = theirs.iter().filter_map(|row| row["bytes"].as_u64()).collect();
    let of_size =
        |size: u64| chosen(bench, programs, ready, base, (&size.into(), ready.model.effort));
    sizes.into_iter().map(of_size).collect()
}

/// A row of types that are chosen, in no more bytes.
fn chosen(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
    (bytes, effort): (&Value, &str),
) -> Result<Value, String> {
    let bytes = format!("{bytes}B");
    let options = ["--target-size", &bytes, "--effort", effort];
    let name = format!("chosen types, {effort}");
    let mut row = row(bench, programs, ready, base, (&name, &options))?;
    row["effort"] = effort.into();
    Ok(row)
}

/// What each technique gives: to the mix that loses least within the model's limit, and to chosen
/// types of no more bytes.
pub fn techniques(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
    rows: &[Value],
) -> Result<Vec<Value>, String> {
    let Some(most) = ready.model.techniques_at else { return Ok(Vec::new()) };
    let effort = ready.model.effort;
    let is_mix = |row: &&Value| row["maker"] == "Hone" && row["effort"].is_null();
    let fits = |row: &&Value| bits_per_weight(row, ready.parameters) <= most;
    let mixes = rows.iter().filter(is_mix).filter(fits);
    let mix = mixes.min_by(|a, b| kl(a, "own").total_cmp(&kl(b, "own")));
    let Some((mix, row_of_mix)) = mix.and_then(|row| Some((row["name"].as_str()?, row))) else {
        return Ok(Vec::new());
    };
    let bytes = format!("{}B", row_of_mix["bytes"]);
    let mut found = Vec::new();
    let mut step = |name: &str, options: &[&str]| {
        found.push(row(bench, programs, ready, base, (name, options))?);
        Ok::<_, String>(())
    };
    let with = |options: &[&'static str]| [&of_mix(mix)[..], options].concat();
    step(&format!("`{mix}`"), &with(&PLAIN))?;
    step(&format!("`{mix}`, importance"), &with(&["--effort", "plain"]))?;
    step(&format!("`{mix}`, importance, feedback, learning"), &with(&["--effort", effort]))?;
    let with = |options: &[&'static str]| [&["--target-size", &bytes], options].concat();
    step("chosen, importance", &with(&["--effort", "plain"]))?;
    let feedback = ["--effort", effort, "--without", "learning"];
    step("chosen, importance, feedback", &with(&feedback))?;
    let learning = ["--effort", effort, "--without", "feedback"];
    step("chosen, importance, learning", &with(&learning))?;
    step("chosen, importance, feedback, learning", &with(&["--effort", effort]))?;
    Ok(found)
}

fn of_mix(mix: &str) -> [&str; 4] {
    ["--type", mix, "--fallback", "llama.cpp"]
}

/// Compresses by the recipe and measures the file, once for rows of the same recipe.
fn row(
    bench: &Bench,
    programs: &Programs,
    ready: &Ready,
    base: &Base,
    (name, options): (&str, &[&str]),
) -> Result<Value, String> {
    let of_options = options.join("-").replace("--", "");
    let key = format!("{}/hone-{of_options}", ready.model.name);
    let [gguf, calibration, own, other] = ready.files();
    let inputs = [gguf, calibration, own, other];
    let how = ready.options().join(" ");
    let words = format!("{} {} {how}", bench.version, programs.version()?);
    let mut row = bench.kept.step(&key, (&inputs, &words), || {
        let file = ready.gguf.with_file_name("hone.gguf");
        let (seconds, said) = compress(bench, ready, options, &file)?;
        let mut row = programs.of_file(base, &file)?;
        row["by_hone"] = by_hone(bench, ready, &file)?;
        row["maker"] = "Hone".into();
        row["imatrix"] = (!options.contains(&"importance")).into();
        row["seconds"] = seconds.into();
        row["estimated"] = said["estimate"]["seconds"].clone();
        row["held_out"] = said["kl"].clone();
        remove(&file);
        Ok(row)
    })?;
    row["name"] = name.into();
    Ok(row)
}

/// Writes the file; how long it took, and what Hone says of it.
pub fn compress(
    bench: &Bench,
    ready: &Ready,
    options: &[&str],
    file: &Path,
) -> Result<(f64, Value), String> {
    remove(file);
    let mut compress = bench.hone("compress");
    compress.arg(&ready.folder).args(options).arg("--calibration").arg(&ready.calibration);
    compress.args(ready.options()).args(["--json", "--out"]).arg(file);
    let begun = Instant::now();
    let said = json(&mut compress)?;
    Ok((begun.elapsed().as_secs_f64(), said))
}
