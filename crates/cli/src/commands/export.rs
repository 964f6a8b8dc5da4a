//! `hone export`

use super::{Opened, check_parent};
use crate::args::{ExportArgs, ExportFormat, PrecisionArg};
use crate::failure::Failure;
use crate::output;
use hone_model::{LoadOptions, export_hf, logits_error, logits_tolerance};
use hone_tensor::DType;
use hone_train::TrainError;
use hone_train::checkpoint::publish;
use serde_json::json;
use std::path::Path;

/// Writes the model, reads it back, compares, and only then gives it its name.
pub fn run(args: &ExportArgs) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(Failure::Usage(format!(
            "--out {} exists already; name another directory",
            args.out.display()
        )));
    }
    check_parent("--out", &args.out)?;
    let held = args.model.base_precision;
    let packed = match args.model.compute {
        PrecisionArg::Int8 => Some("--compute int8".to_owned()),
        PrecisionArg::Fp8 => Some("--compute fp8".to_owned()),
        _ => held.is_packed().then(|| format!("--base-precision {}", <&str>::from(held))),
    };
    if let Some(flag) = packed {
        return Err(Failure::Usage(format!(
            "{flag}: an export computes nothing, and packed weights would be written as they \
             were rounded; leave it out"
        )));
    }
    let opened = super::open(&args.model, super::Purpose::Export)?;
    let dtype = args.dtype.map_or(opened.model.file_dtype, DType::from);
    let name = args.out.file_name().unwrap_or_default().to_string_lossy();
    let partial = args.out.with_file_name(format!(".{name}.partial"));
    if partial.exists() {
        // What a killed export left.
        std::fs::remove_dir_all(&partial).map_err(TrainError::io(&partial))?;
    }
    std::fs::create_dir(&partial).map_err(|error| {
        let out = args.out.display();
        Failure::Usage(format!("--out {out} cannot be made ({error}); name another place"))
    })?;
    let error = match args.format {
        ExportFormat::Hf => write_and_compare(&opened, dtype, &partial),
    };
    let error = match error {
        Ok(error) => error,
        Err(failure) => {
            // Nothing half-written is left; that removing it fails too would add nothing.
            let _ = std::fs::remove_dir_all(&partial);
            return Err(failure);
        }
    };
    publish(&partial, &args.out)?;
    if args.json {
        output::json(&json!({ "out": args.out, "dtype": dtype.name(), "logits_error": error }));
        return Ok(());
    }
    output::table(&[
        ("written", args.out.display().to_string()),
        ("weights", dtype.name().to_owned()),
        ("logits", format!("within {error:.1e} of their range when read back")),
    ]);
    Ok(())
}

fn write_and_compare(opened: &Opened, dtype: DType, out: &Path) -> Result<f64, Failure> {
    let Opened { device, model, compute, .. } = opened;
    export_hf(model, device, &opened.dir, dtype, out)?;
    let reloaded = hone_model::load(out, device, LoadOptions::INFERENCE)?;
    let tokens: Vec<u32> = (0..model.decoder.config.vocab_size.min(64) as u32).collect();
    let error = logits_error((device, *compute), model, &reloaded, &tokens);
    if error > logits_tolerance(dtype) {
        let path = out.to_owned();
        return Err(TrainError::NotWhatWasTrained { path, error }.into());
    }
    Ok(error)
}
