//! Directories in Hugging Face layout with quantised matrices, for other engines than llama.cpp's.

use super::super::export::card::Card;
use super::super::export::{is_adapted, refuse_packed, whole};
use super::super::{Described, Opened, Purpose, Weighed, check_parent, describe};
use super::comparison::{self, Limit, usual};
use super::work::Work;
use super::{calibration, refuse_quantised, report};
use crate::args::{CompressArgs, FallbackArg};
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{
    Corpus, Measured, QuantisedMatrix, Scheme, SchemeError, importance_of_roles, importance_steps,
};
use hone_model::{
    ExportOptions, LinearLayer, LoadOptions, Model, Quantised, Role, export_hf, is_gguf,
    linear_layers, written,
};
use hone_tensor::{DType, Device, Tensor};
use hone_train::{Code, TrainError};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// The scheme that `--type` names, with its groups; `None` if it names none of a directory.
pub(super) fn scheme(args: &CompressArgs) -> Result<Option<Scheme>, Failure> {
    let named = args.mix.as_deref().and_then(Scheme::named);
    let Some(group) = args.group_size else { return Ok(named) };
    let of_type = |scheme: Option<Scheme>| scheme.and_then(|scheme| scheme.with_group(group));
    match of_type(named) {
        Some(scheme) => Ok(Some(scheme)),
        None => Err(Failure::Usage(
            "--group-size: only w4a16 and w8a16 have groups that can be chosen; name one of them \
             with --type, or omit it"
                .to_owned(),
        )),
    }
}

/// A matrix that is quantised.
struct Matrix {
    /// Name of its module.
    module: String,
    role: Role,
    stored: QuantisedMatrix,
}

/// Writes the directory, reads it back, compares, and only then gives it its name. Killed and
/// started again, it begins anew.
pub(super) fn run(args: &CompressArgs, scheme: Scheme) -> Result<(), Failure> {
    check(args, scheme)?;
    let work = Work::claim(&args.out)?;
    let made = compress(args, scheme);
    work.finish();
    made
}

fn compress(args: &CompressArgs, scheme: Scheme) -> Result<(), Failure> {
    let opened = describe(&args.model, Purpose::Unchanged)?;
    refuse_quantised(&opened, args)?;
    check_model(&opened, args)?;
    let layers = linear_layers(&opened.model, &opened.dir)?;
    check_layers(&layers, &opened.model, scheme)?;
    let (corpus, _) = calibration::corpus(args, &opened)?;
    let opened = opened.load()?;
    let dtype = opened.model.file_dtype;
    let matrices = matrices(&opened, (&layers, scheme), &corpus, dtype)?;
    let (matrices, quantised) =
        (&matrices, quantised(&opened, (&layers, scheme), &matrices, dtype));
    let card = Card::of(&args.model, &opened, (&args.out, false)).quantised();
    let measured = whole(&args.out, |partial| {
        std::fs::create_dir(partial).map_err(TrainError::io(partial))?;
        let end_of_turn = opened.tokenizer.turn_end_id().filter(|_| is_adapted(&opened.model));
        let (base, quantised) = (&*opened.dir, Some(&quantised));
        let options = ExportOptions { base, dtype, end_of_turn, quantised };
        export_hf(&opened.model, &opened.device, options, partial)?;
        let limit = Limit::of(args, usual(scheme.bits()));
        let measured = compare(&opened, matrices, (&corpus, limit), partial)?;
        let mut figures = vec![("weights", words(scheme, matrices))];
        if scheme == Scheme::Fp8 {
            let activations = "as they are; other engines round them to FP8 too";
            figures.push(("activations", activations.to_owned()));
        }
        figures.extend(report::figures(&measured, !corpus.held_out.is_empty()));
        card.write(partial, &figures)?;
        Ok(measured)
    })?;
    print(args, scheme, (&opened, matrices), (&measured, &corpus))
}

/// Refuses what can be seen to be wrong before anything is read.
fn check(args: &CompressArgs, scheme: Scheme) -> Result<(), Failure> {
    let (out, name) = (args.out.display(), scheme.name());
    let refused = |problem: String| Err(Failure::Usage(problem));
    if args.out.exists() {
        return refused(format!("--out {out} already exists; choose another directory"));
    }
    check_parent("--out", &args.out)?;
    if is_gguf(&args.out) {
        return refused(format!(
            "--out {out}: --type {name} is written as a directory; choose a name without .gguf"
        ));
    }
    let of_gguf = [
        ("--imatrix", args.imatrix.is_some()),
        ("--save-imatrix", args.save_imatrix.is_some()),
        ("--fallback llama.cpp", matches!(args.fallback, FallbackArg::LlamaCpp)),
        ("--effort", args.effort.is_some()),
        ("--without", !args.without.is_empty()),
    ];
    if let Some((flag, _)) = of_gguf.into_iter().find(|(_, is_given)| *is_given) {
        return refused(format!("{flag} is for GGUF files; omit it with --type {name}"));
    }
    comparison::check(args)?;
    calibration::check(args)?;
    refuse_packed(&args.model)
}

/// Refuses models whose predictions cannot be compared.
fn check_model(opened: &Described, args: &CompressArgs) -> Result<(), Failure> {
    match opened.config().encoder {
        Some(_) => Err(Failure::Usage(format!(
            "{}: is an encoder, and what is lost is measured on predictions of next tokens; \
             write it in 16 bits (hone export --dtype bf16)",
            args.model.model
        ))),
        None => opened.predicts_tokens(&args.model),
    }
}

/// Refuses models with matrices that the scheme does not take.
fn check_layers(layers: &[LinearLayer], model: &Model, scheme: Scheme) -> Result<(), Failure> {
    let name = scheme.name();
    if let Some(layer) = layers.iter().find(|layer| layer.is_together) {
        return Err(Failure::Usage(format!(
            "--type {name}: `{}` is written in one tensor with those of other experts, of which \
             there is no such form; write a GGUF file, such as --type q4_k_m",
            layer.module
        )));
    }
    let has_experts = model.decoder.config.layers.iter().any(|layer| layer.mlp.experts.is_some());
    if has_experts && !scheme.takes_experts() {
        return Err(Failure::Usage(format!(
            "--type {name}: bitsandbytes does not quantise experts, which are most of the model; \
             choose w4a16, or a GGUF file, such as --type q4_k_m"
        )));
    }
    let cols: BTreeMap<Role, usize> = model
        .decoder
        .config
        .weights()
        .map(|spec| (spec.role, spec.shape[spec.shape.len() - 1]))
        .collect();
    let matrix = |layer: &LinearLayer| {
        let role = layer.role.filter(is_quantised)?;
        Some((layer.module.clone(), cols[&role]))
    };
    let matrices: Vec<(String, usize)> = layers.iter().filter_map(matrix).collect();
    scheme.check(&matrices).map_err(|error| match error {
        SchemeError::Ragged { .. } => {
            Failure::Usage(format!("--type {name}: {error} (--group-size)"))
        }
        other => failure(other),
    })
}

/// Whether a matrix of a block is quantised; a rounded router would choose other experts.
fn is_quantised(role: &Role) -> bool {
    matches!(role, Role::Matrix(_, linear) if !linear.is_router())
}

/// The matrices of blocks, quantised.
fn matrices(
    opened: &Opened,
    (layers, scheme): (&[LinearLayer], Scheme),
    corpus: &Corpus,
    dtype: DType,
) -> Result<Vec<Matrix>, Failure> {
    let named = |layer: &LinearLayer| {
        layer.role.filter(is_quantised).map(|role| (layer.module.clone(), role))
    };
    let named: Vec<(String, Role)> = layers.iter().filter_map(named).collect();
    let roles: Vec<Role> = named.iter().map(|(_, role)| *role).collect();
    let mut importance = vec![Vec::new(); roles.len()];
    if scheme.is_searched() && !corpus.calibration.is_empty() {
        let windows = corpus.some(calibration::IMPORTANCE_WINDOWS);
        let steps = importance_steps(&opened.model.decoder.config, &windows);
        let bar = progress::bar(steps, "blocks calibrated");
        importance = importance_of_roles(opened.pass(), &roles, &windows, &mut || bar.inc(1))?;
        bar.finish_and_clear();
    }
    let bar = progress::bar(roles.len(), "matrices quantised");
    let cpu = opened.device.as_cpu().or_else(|| Device::host().as_cpu()).expect("a CPU");
    let mut matrices = Vec::new();
    for ((module, role), importance) in named.into_iter().zip(importance) {
        let weight = written(&opened.model, &opened.device, role, DType::F32)?.to_host()?;
        release(&opened.model, role);
        let of = (&*format!("{module}.weight"), &weight);
        let stored = scheme.quantised(cpu, of, &importance, dtype).map_err(failure)?;
        matrices.push(Matrix { module, role, stored });
        bar.inc(1);
    }
    opened.device.settle()?;
    bar.finish_and_clear();
    Ok(matrices)
}

/// What is written instead of floats.
fn quantised<'a>(
    opened: &Opened,
    (layers, scheme): (&[LinearLayer], Scheme),
    matrices: &'a [Matrix],
    dtype: DType,
) -> Quantised<'a> {
    let left = layers.iter().filter(|layer| !layer.role.as_ref().is_some_and(is_quantised));
    let ignored: Vec<String> = left.map(|layer| layer.module.clone()).collect();
    let has_parts = opened.model.decoder.config.is_part;
    let tensors = matrices.iter().map(|matrix| (matrix.role, &matrix.stored.tensors[..]));
    Quantised {
        config: scheme.quantization_config(dtype, &ignored, has_parts),
        matrices: tensors.collect(),
    }
}

/// Reads the directory back: every weight must be the one that was meant, and predictions are
/// compared.
fn compare(
    opened: &Opened,
    matrices: &[Matrix],
    (corpus, limit): (&Corpus, Limit),
    path: &Path,
) -> Result<Measured, Failure> {
    let Opened { device, model, .. } = opened;
    let found = hone_model::load(path, device, LoadOptions::INFERENCE)?;
    let quantised: BTreeMap<Role, &Matrix> =
        matrices.iter().map(|matrix| (matrix.role, matrix)).collect();
    for spec in model.decoder.config.weights() {
        let expected = match quantised.get(&spec.role) {
            Some(matrix) => matrix.stored.held()?,
            None => written(model, device, spec.role, model.file_dtype)?.to_host()?,
        };
        let held = found.weight(spec.role).map(Tensor::to_host).transpose()?;
        if !held.is_some_and(|held| is_same(&held, &expected)) {
            return Err(failure(SchemeError::Differs { tensor: spec.name }));
        }
        [model, &found].into_iter().for_each(|model| release(model, spec.role));
    }
    device.settle()?;
    let worst = matrices.iter().max_by(|a, b| a.stored.error.total_cmp(&b.stored.error));
    let advice = worst.map_or_else(String::new, |worst| {
        format!(
            "Most is lost of `{}`, {:.2} % of its squares. Choose smaller groups (--group-size 32) \
             or more bits (--type w8a16)",
            worst.module,
            100.0 * worst.stored.error
        )
    });
    comparison::measured(opened, (corpus, limit), &found, &advice)
}

/// Lets go of the pages of a mapped file that have a weight.
fn release(model: &Model, role: Role) {
    if let Some(weight) = model.weight(role) {
        weight.release_file();
    }
}

/// Whether weights are held alike, or, where norms are held in f32, have the same values.
fn is_same(found: &Tensor, expected: &Tensor) -> bool {
    match found.storage() == expected.storage() {
        true => found.bytes() == expected.bytes(),
        false => match (found.try_to_vec_f32(), expected.try_to_vec_f32()) {
            (Ok(found), Ok(expected)) => found == expected,
            _ => false,
        },
    }
}

/// What is in which form.
fn words(scheme: Scheme, matrices: &[Matrix]) -> String {
    let bytes: usize = matrices.iter().map(|matrix| matrix.stored.num_bytes()).sum();
    let size = report::megabytes(bytes as f64);
    format!("{} matrices as {} ({size})", matrices.len(), scheme.name())
}

fn print(
    args: &CompressArgs,
    scheme: Scheme,
    (opened, matrices): (&Opened, &[Matrix]),
    (measured, corpus): (&Measured, &Corpus),
) -> Result<(), Failure> {
    let written = hone_model::load(&args.out, &Device::dry(), LoadOptions::INFERENCE)?;
    let name = args.out.display().to_string();
    let written = Weighed::of((&name, None), &args.out, &written)?;
    let (bytes, bits) = (written.bytes, written.bits_per_weight);
    if args.json {
        let tensor = |matrix: &Matrix| {
            json!({
                "name": matrix.module, "type": scheme.name(), "bytes": matrix.stored.num_bytes(),
                "error": matrix.stored.error,
            })
        };
        output::json(&json!({
            "out": args.out,
            "base": opened.weighed(&args.model)?,
            "calibration": args.calibration,
            "bytes": bytes,
            "bits_per_weight": bits,
            "kl": measured.kl,
            "same_top": measured.same_top,
            "num_tokens": measured.num_tokens,
            "is_held_out": !corpus.held_out.is_empty(),
            "tensors": matrices.iter().map(tensor).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    output::table(&[
        ("written", args.out.display().to_string()),
        ("size", report::size(bytes, bits)),
        ("weights", words(scheme, matrices)),
        ("compared", report::compared(measured, !corpus.held_out.is_empty())),
    ]);
    Ok(())
}

fn failure(error: SchemeError) -> Failure {
    match error {
        SchemeError::Device(error) => error.into(),
        error => TrainError::Usage(Code::ExportFailed, error.to_string()).into(),
    }
}
