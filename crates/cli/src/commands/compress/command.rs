//! What the result of a command depends on.

use super::super::Described;
use crate::args::CompressArgs;
use crate::failure::Failure;
use clap::ValueEnum;
use hone_train::TrainError;
use hone_train::run_dir::{NUMERICS, model_files};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// All that the bits of a file depend on, by words for it. Files are known by path, size and time
/// of the last change; threads and instruction sets change nothing.
///
/// # Errors
/// If a file is not there.
pub(super) fn facts(
    args: &CompressArgs,
    described: &Described,
    texts: &[PathBuf],
) -> Result<Map<String, Value>, Failure> {
    let backend = &described.backend;
    let name =
        |value: Option<clap::builder::PossibleValue>| value.map(|of| of.get_name().to_owned());
    let mut without: Vec<_> = args.without.iter().map(|of| name(of.to_possible_value())).collect();
    without.sort();
    let adapter = described.adapter.as_deref().map(hone_model::adapter::files).unwrap_or_default();
    let imatrix: Vec<PathBuf> = args.imatrix.iter().cloned().collect();
    let all = json!({
        "the version of Hone": [env!("CARGO_PKG_VERSION"), NUMERICS],
        "--device": [backend.gpu_name(), backend.gpu_libraries()],
        "MODEL": [args.model.model, files(&model_files(&described.dir)?)?],
        "--adapter": [described.adapter, files(&adapter)?],
        "--compute": described.compute.name(),
        "--base-precision": described.options.base_precision.map(hone_tensor::Storage::name),
        "--calibration": files(texts)?,
        "[data] of the run file": args.data,
        "--calibration-tokens": args.calibration_tokens,
        "--imatrix": files(&imatrix)?,
        "--type": args.mix,
        "--target-bpw": args.target_bpw.map(|bits| bits.to_string()),
        "--target-size": args.target_size,
        "--max-kl": args.max_kl.map(|kl| kl.to_string()),
        "--fallback": name(args.fallback.to_possible_value()),
        "--effort": name(args.effort().to_possible_value()),
        "--without": without,
    });
    match all {
        Value::Object(all) => Ok(all),
        _ => unreachable!("an object was written"),
    }
}

/// Path, bytes and time of each file.
fn files(paths: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let of = |path: &PathBuf| -> Result<Value, Failure> { Ok(file(path)?) };
    paths.iter().map(of).collect()
}

fn file(path: &Path) -> Result<Value, TrainError> {
    let about = path.metadata().map_err(TrainError::io(path))?;
    let modified = about.modified().map_err(TrainError::io(path))?;
    // One before 1970 is taken to be of 1970.
    let modified = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(json!([path, about.len(), modified.as_secs(), modified.subsec_nanos()]))
}
