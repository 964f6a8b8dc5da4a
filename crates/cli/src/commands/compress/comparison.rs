//! What was written, read back and compared with the model in memory.

use super::super::Opened;
use super::super::export::{gguf, rows};
use super::types::Types;
use super::work::Work;
use crate::args::CompressArgs;
use crate::failure::Failure;
use hone_compress::{Columns, Corpus, Measured, Meter, Window};
use hone_model::{GgufForm, Model};
use hone_tensor::Storage;
use hone_train::{Code, TrainError};
use serde::{Deserialize, Serialize};

/// Refuses a divergence that is none.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    match args.max_kl.filter(|kl| !(kl.is_finite() && *kl > 0.0)) {
        Some(max_kl) => Err(Failure::Usage(format!("--max-kl {max_kl}: must be a number above 0"))),
        None => Ok(()),
    }
}

/// Bits per weight from which on so many nats per token are the most that is taken to be the work
/// of rounding; with fewer it is the last.
const USUAL: [(f64, f64); 5] = [(7.0, 0.05), (5.7, 0.1), (4.7, 0.3), (3.7, 0.7), (2.7, 2.0)];
const MOST: f64 = 4.0;

/// What is usual with so many bits per weight.
pub(super) fn usual(bits: f64) -> f64 {
    USUAL.iter().find(|(from, _)| bits >= *from).map_or(MOST, |(_, kl)| *kl)
}

/// The same of matrices with unlike types, each for its share of the weights.
pub(super) fn usual_of_types(form: &GgufForm<'_>, storages: &[Storage]) -> f64 {
    let matrices = form.tensors().iter().zip(storages).filter(|(of, _)| of.is_matrix());
    let (sum, weights) = matrices.fold((0.0, 0.0), |(sum, weights), (of, storage)| {
        let len = of.shape.iter().product::<usize>() as f64;
        let bits = 8.0 * storage.num_bytes(&of.shape) as f64 / len;
        (sum + len * usual(bits), weights + len)
    });
    sum / weights
}

/// The largest divergence that a file may have.
#[derive(Clone, Copy)]
pub(super) struct Limit {
    kl: f64,
    is_asked: bool,
}

impl Limit {
    /// What is asked for, or else what is usual.
    pub(super) fn of(args: &CompressArgs, usual: f64) -> Self {
        Self { kl: args.max_kl.unwrap_or(usual), is_asked: args.max_kl.is_some() }
    }

    fn words(self) -> String {
        match self.is_asked {
            true => format!("above --max-kl {}", self.kl),
            false => format!(
                "more than rounding to these types does to a model (at most {:.3}, unless \
                 --max-kl says otherwise)",
                self.kl
            ),
        }
    }
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
    let storages = types.storages();
    let of = (&storages[..], columns);
    let worst = gguf::same_weights(opened, [form, written], of, work.partial())?;
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
