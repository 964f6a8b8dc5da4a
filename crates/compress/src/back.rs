//! A model forward and back over windows of text, block by block.
//!
//! Gradients are those of log-probabilities of labels that are drawn from the model's own
//! distribution. All windows go through a block before the next one is read, forward and back, so
//! that a block's weights and what is made of its gradients are in memory, and nothing of others
//! but what they read, which is kept apart.

use crate::meter::{ROWS, host, logits};
use crate::spill::Spill;
use crate::window::Window;
use hone_model::{Batch, Model, Pass, Stream};
use hone_tensor::distribution::draws;
use hone_tensor::{
    Category, DType, Device, DeviceError, Gradients, Observer, Philox, Tape, Tensor,
};
use std::io;
use std::path::{Path, PathBuf};

/// The seed of the labels that are drawn.
const SEED: u64 = 17;

/// What passes over text may take.
#[derive(Clone, Copy, Debug)]
pub struct Room<'a> {
    /// Where what blocks read is kept in a file, if it is much.
    pub folder: &'a Path,
    /// Bytes of memory that are free, if that is known.
    pub memory: Option<u64>,
}

impl Room<'_> {
    /// A quarter of what is free, but no more than `most` bytes.
    pub(crate) fn quarter(self, most: usize) -> usize {
        let quarter = self.memory.map(|free| usize::try_from(free / 4).unwrap_or(usize::MAX));
        quarter.map_or(most, |quarter| quarter.min(most))
    }
}

/// Why a model was not run back.
#[derive(Debug, thiserror::Error)]
pub enum BackError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// What blocks read cannot be kept on disk.
    #[error(
        "what blocks read takes more memory than is kept, and cannot be put into a file in {}: \
         {source}",
        folder.display()
    )]
    Io {
        /// Where the file was to be.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a pass forward and back over windows shows besides what its observer sees.
pub(crate) struct Back {
    /// `[tokens, hidden_size]` of each window, what the head's products take.
    pub(crate) hidden: Vec<Vec<f32>>,
    /// `[tokens, hidden_size]` of each window, gradients of embedded tokens.
    pub(crate) d_embedded: Vec<Vec<f32>>,
}

/// Who looks on while a model is run back.
pub(crate) struct Lookers<'a> {
    /// Told of all linear layers of a block, window by window.
    pub(crate) observer: &'a dyn Observer,
    /// Told of each block once all windows have gone back through it.
    pub(crate) after_block: &'a mut dyn FnMut() -> Result<(), DeviceError>,
    /// Told of each block twice, forward and back.
    pub(crate) done: &'a mut dyn FnMut(),
}

/// Draws labels for windows, and runs the model back from their log-probabilities. What blocks
/// read is kept in a file in `folder` if it is much.
///
/// # Errors
/// If the device failed, or there is no place for the file.
pub(crate) fn run_back(
    pass: Pass<'_>,
    windows: &[Window],
    lookers: Lookers<'_>,
    folder: &Path,
) -> Result<Back, BackError> {
    pass.device.reusing_memory(|| {
        let config = &pass.model.decoder.config;
        let batches: Vec<Batch> = windows.iter().map(|window| window.batch(config)).collect();
        let mut spill = Spill::new(folder);
        let io = |source| BackError::Io { folder: folder.to_owned(), source };
        let mut streams = pass.begin_all(&batches)?;
        let num_blocks = config.num_hidden_layers();
        for i in 0..num_blocks {
            for stream in &streams {
                spill.put(stream.x.try_to_vec_f32()?).map_err(io)?;
            }
            pass.run_all(i, &batches, &mut streams, None)?;
            (lookers.done)();
        }
        let (hidden, mut back) = head_back(pass, windows, &streams, lookers.observer)?;
        for i in (0..num_blocks).rev() {
            for (w, batch) in batches.iter().enumerate() {
                let rows = spill.take(i * batches.len() + w).map_err(io)?;
                streams[w].x = on_device(pass.device, &rows, streams[w].x.shape())?;
                let of = (batch, &streams[w]);
                back[w] = block_back(pass, i, of, back[w].take(), lookers.observer)?;
            }
            pass.model.release_block(i);
            (lookers.after_block)()?;
            (lookers.done)();
        }
        let mut d_embedded = Vec::new();
        for ((batch, stream), gradient) in batches.iter().zip(streams).zip(back) {
            let mut tape = Tape::second_run(pass.device, &pass.model.params, pass.compute);
            tape.set_observer(lookers.observer);
            let mut gradients = Gradients::zeros(pass.device, &pass.model.params)?;
            let gradient = gradient.expect("what went back");
            let of = (batch, stream.x);
            let found = pass.model.decoder.begin_back(tape, of, gradient, &mut gradients);
            d_embedded.push(found.try_to_vec_f32()?);
            pass.device.settle()?;
        }
        pass.model.release_tables();
        Ok(Back { hidden, d_embedded })
    })
}

/// Rows of the residual stream in the device's memory of this pass.
fn on_device(device: &Device, rows: &[f32], shape: &[usize]) -> Result<Tensor, DeviceError> {
    let mut tensor = device.alloc(Category::Activations, DType::F32, shape);
    tensor.copy_from_f32(rows);
    device.settle().map(|()| tensor)
}

/// Hidden states after the last norm, and gradients of what the last block gives.
type FromHead = (Vec<Vec<f32>>, Vec<Option<Stream>>);

/// Draws labels, and runs the head back from their log-probabilities.
fn head_back(
    pass: Pass<'_>,
    windows: &[Window],
    streams: &[Stream],
    observer: &dyn Observer,
) -> Result<FromHead, DeviceError> {
    let Pass { device, model, compute } = pass;
    let (mut all, mut back) = (Vec::new(), Vec::new());
    for (i, (window, stream)) in windows.iter().zip(streams).enumerate() {
        let hidden = {
            let mut tape = pass.inference_tape();
            let x = tape.leaf(stream.x.clone(), false);
            model.decoder.end(&mut tape, &x).value().try_to_vec_f32()?
        };
        let labels = drawn(device, model, &hidden, i as u64)?;
        let batch = window.labelled(&model.decoder.config, &labels);
        let mut tape = Tape::training(device, &model.params, compute, None);
        tape.set_observer(observer);
        let x = tape.leaf(stream.x.clone(), true);
        let log_probs = model.decoder.log_probs_of(&mut tape, &x, &batch);
        let shape = log_probs.value().shape();
        let mut d_log_probs = device.alloc(Category::Activations, DType::F32, shape);
        d_log_probs.copy_from_f32(&vec![1.0; log_probs.value().len()]);
        let mut gradients = Gradients::zeros(device, &model.params)?;
        let of_leaves = tape.backward(log_probs, d_log_probs, &mut gradients);
        device.settle()?;
        back.push(of_leaves.get(&x).cloned().map(Stream::gradient));
        all.push(hidden);
    }
    model.release_tables();
    Ok((all, back))
}

/// Takes the gradient of a window back through block `i`.
fn block_back(
    pass: Pass<'_>,
    i: usize,
    of: (&Batch, &Stream),
    gradient: Option<Stream>,
    observer: &dyn Observer,
) -> Result<Option<Stream>, DeviceError> {
    let Pass { device, model, compute } = pass;
    let Some(gradient) = gradient else { return Ok(None) };
    let mut tape = Tape::second_run(device, &model.params, compute);
    tape.set_observer(observer);
    let mut gradients = Gradients::zeros(device, &model.params)?;
    let back = model.decoder.run_block_back(tape, i, of, gradient, &mut gradients);
    device.settle().map(|()| Some(back))
}

/// A next token for each row of hidden states, from the model's own distribution.
fn drawn(
    device: &Device,
    model: &Model,
    hidden: &[f32],
    stream: u64,
) -> Result<Vec<u32>, DeviceError> {
    let (host, random) = (host(), Philox::new(SEED, stream));
    let width = model.decoder.config.hidden_size;
    let mut labels = Vec::new();
    for (i, rows) in hidden.chunks(ROWS * width).enumerate() {
        let logits = logits(device, model, rows)?;
        let count = rows.len() / width;
        let at = |row: usize| random.uniform((i * ROWS + row) as u64);
        let uniform: Vec<f32> = (0..count).map(at).collect();
        labels.extend(draws(host, &logits, logits.len() / count, &uniform));
    }
    Ok(labels)
}
