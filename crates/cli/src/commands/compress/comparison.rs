//! What was written, read back and compared with the model in memory.

use super::super::Opened;
use super::super::export::rows;
use super::types::Types;
use super::work::Work;
use crate::args::CompressArgs;
use crate::failure::Failure;
use hone_compress::{Columns, Corpus, Measured, Meter, ReadBack, Window, read_back};
use hone_model::{FormTensor, GgufForm, LoadOptions, Model};
use hone_tensor::{DType, Storage};
use hone_train::{Code, TrainError};
use serde::{Deserialize, Serialize};

/// Refuses a divergence that is none.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    match args.max_kl.filter(|kl| !(kl.is_finite() && *kl > 0.0)) {
        Some(max_kl) => Err(Failure::Usage(format!("--max-kl {max_kl}: must be a number above 0"))),
        None => Ok(()),
    }
}

/// Bits of a type from which on so many nats per token are the most that is taken to be the work of
/// rounding; with fewer it is the last.
const USUAL: [(f64, f64); 5] = [(7.0, 0.1), (5.7, 0.3), (4.7, 0.6), (3.7, 1.0), (2.7, 2.0)];
const MOST: f64 = 4.0;

/// The largest divergence that a file may have.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    kl: f64,
    /// The type that it follows from, if it was not asked for.
    of: Option<&'static str>,
}

impl Limit {
    /// What is asked for, or else what is usual with weights of a type of so many bits.
    pub(super) fn of(args: &CompressArgs, (name, bits): (&'static str, f64)) -> Self {
        let usual = USUAL.iter().find(|(from, _)| bits >= *from).map_or(MOST, |(_, kl)| *kl);
        match args.max_kl {
            Some(kl) => Self { kl, of: None },
            None => Self { kl: usual, of: Some(name) },
        }
    }

    fn words(self) -> String {
        match self.of {
            None => format!("above --max-kl {}", self.kl),
            Some(name) => format!(
                "more than rounding to {name} does to a model (at most {}, unless --max-kl says \
                 otherwise)",
                self.kl
            ),
        }
    }
}

/// The type of fewest bits that a matrix of the file has, and its bits.
pub(super) fn smallest(form: &GgufForm<'_>, storages: &[Storage]) -> (&'static str, f64) {
    let of = |(tensor, storage): (&FormTensor, &Storage)| {
        let weights: usize = tensor.shape.iter().product();
        (storage.name(), 8.0 * storage.num_bytes(&tensor.shape) as f64 / weights as f64)
    };
    let matrices = form.tensors().iter().zip(storages).filter(|(of, _)| of.is_matrix());
    let least = matrices.map(of).min_by(|a, b| a.1.total_cmp(&b.1));
    least.unwrap_or((DType::F32.name(), 32.0))
}

/// The tensor of which most is lost, its type, and how much, of its squares.
#[derive(Serialize, Deserialize)]
pub(super) struct Worst {
    tensor: String,
    storage: String,
    error: f64,
}

impl Worst {
    /// What helps against a divergence that is too large.
    pub(super) fn advice(worst: Option<Option<Self>>) -> String {
        match worst.flatten() {
            Some(Self { tensor, storage, error }) => format!(
                "Most is lost of `{tensor}` ({storage}), {:.2} % of its squares. Choose a larger \
                 type",
                100.0 * error
            ),
            None => "Choose a larger type".to_owned(),
        }
    }
}

/// Reads the file that was written of `written` back, and refuses it if a tensor is not what was
/// meant; the one that is furthest from the model's.
pub(super) fn same_weights(
    opened: &Opened,
    [form, written]: [&GgufForm<'_>; 2],
    types: &Types,
    columns: &Columns,
    work: &Work,
) -> Result<Option<Worst>, Failure> {
    let found = hone_model::load(work.partial(), &opened.device, LoadOptions::INFERENCE)?;
    let (storages, found) = (types.storages(), form.with_model(&found));
    let forms = [form, written, &found];
    let ReadBack { differs, worst } = read_back(&opened.device, forms, (&storages, columns))?;
    if let Some(tensor) = differs {
        return Err(failed(format!(
            "`{tensor}` is not read back as it was quantised, so nothing was written; please \
             report this as a bug in Hone"
        )));
    }
    let named = |(tensor, error): (String, f64)| {
        let at = form.tensors().iter().position(|of| of.name == tensor);
        let storage = at.map_or_else(String::new, |at| storages[at].name().to_owned());
        Worst { tensor, storage, error }
    };
    Ok(worst.map(named))
}

/// Held-out text, or built-in texts if there is none.
pub(super) fn windows(opened: &Opened, corpus: &Corpus) -> Result<Vec<Window>, Failure> {
    let built_in = |row| Window { rows: vec![row] };
    match corpus.held_out.is_empty() {
        true => Ok(rows(opened)?.into_iter().map(built_in).collect()),
        false => Ok(corpus.held_out.clone()),
    }
}

/// Compares predictions: on held-out text, or on built-in texts if there is none. `advice` is for a
/// divergence that is too large.
pub(super) fn measured(
    opened: &Opened,
    (corpus, limit): (&Corpus, Limit),
    found: &Model,
    advice: &str,
) -> Result<Measured, Failure> {
    let windows = windows(opened, corpus)?;
    let measured = Meter::new(opened.pass(), &windows)?.measure(found)?;
    if !measured.kl.is_finite() {
        return Err(failed(
            "the model, or the file written of it, computes values that are not finite; nothing \
             was written. A weight must be far too large, or not a number"
                .to_owned(),
        ));
    }
    match measured.kl > limit.kl {
        true => Err(failed(format!(
            "the mean KL divergence from the model is {:.4} nats per token, {}; nothing was \
             written. {advice}",
            measured.kl,
            limit.words()
        ))),
        false => Ok(measured),
    }
}

fn failed(message: String) -> Failure {
    TrainError::Usage(Code::ExportFailed, message).into()
}
