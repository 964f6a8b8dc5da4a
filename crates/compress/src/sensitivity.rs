//! What an error of a matrix does to the model's distribution of next tokens.
//!
//! To second order the KL divergence that small errors of weights cause is `½ E[(∂ log p(y))²]`,
//! with `y` drawn from the model's own distribution: the Fisher information. A token at which a
//! matrix reads `x` and gives what `log p` has the gradient `g` with respect to contributes
//! `½ (gᵀ ΔW x)²`. So one backward pass over drawn labels says what any error of any matrix costs,
//! without a second-moment matrix: pairs of `x` and `g` are kept for some thousand tokens. Tokens
//! are taken to contribute independently of each other; [`crate::Planner`] corrects by what is
//! measured for how far they are not.
//!
//! The head's part is measured: the divergence of its logits on the same hidden states.

use crate::back::{BackError, Lookers, Room, run_back};
use crate::calibrate::{Places, head_of};
use crate::meter::{ROWS, compared};
use crate::window::Window;
use hone_model::{GgufForm, Pass, Role};
use hone_tensor::ops;
use hone_tensor::safetensors::load_as;
use hone_tensor::{
    Category, Compute, DType, Device, DeviceError, Observer, Params, Projection, Reader, Tape,
    Tensor, Weight,
};
use std::cell::RefCell;
use std::collections::HashMap;

/// Bytes that pairs of inputs and gradients may take: of more tokens some are left out.
pub(crate) const MAX_BYTES: usize = 512 << 20;
/// Rows of hidden states that the head's errors are measured on.
const HEAD_ROWS: usize = 512;

/// A matrix of a reader: tensor, part of it, first column of the gradient, and how many.
type Member = ((usize, usize), usize, usize);

/// Matrices that read the same input, with pairs of inputs and gradients.
#[derive(Default)]
struct Pairs {
    members: Vec<Member>,
    /// `[kept, cols]`
    x: Vec<f32>,
    cols: usize,
    /// `[kept, width]`
    d_y: Vec<f32>,
    width: usize,
    kept: usize,
    /// Rows that there were.
    seen: usize,
}

/// Pairs of all matrices, hidden states, and the gradients of embedded tokens.
pub struct Sensitivity<'a> {
    pass: Pass<'a>,
    pairs: Vec<Pairs>,
    /// Where the pairs of a tensor's part are, and which member it is.
    of_part: HashMap<(usize, usize), (usize, usize)>,
    head: Option<usize>,
    embedding: Option<usize>,
    /// `[_, hidden_size]`, what the head's products take.
    hidden: Vec<f32>,
    tokens: Vec<u32>,
    /// `[tokens, hidden_size]`
    d_embedded: Vec<f32>,
}

struct Watch<'a> {
    places: &'a Places,
    every: usize,
    found: RefCell<(Vec<Pairs>, HashMap<*const Projection, usize>)>,
    failure: RefCell<Option<DeviceError>>,
}

impl Observer for Watch<'_> {
    fn gradient(&self, x: &Tensor, readers: &[Reader<'_>], d_y: &Tensor) {
        let [x_values, d_values] = [x, d_y].map(Tensor::try_to_vec_f32);
        let (x_values, d_values) = match (x_values, d_values) {
            (Ok(x), Ok(d_y)) => (x, d_y),
            (Err(error), _) | (_, Err(error)) => {
                *self.failure.borrow_mut() = Some(error);
                return;
            }
        };
        let (cols, width) = (x.shape()[1], d_y.shape()[1]);
        let (pairs, known) = &mut *self.found.borrow_mut();
        for (projections, rows) in readers {
            let Some(first) = projections.first() else { continue };
            let at = *known.entry(std::ptr::from_ref(first)).or_insert_with(|| {
                let mut col = 0;
                let mut members = Vec::new();
                for projection in *projections {
                    let n = projection.out_features();
                    members.extend(self.places.get(projection).map(|place| (place, col, n)));
                    col += n;
                }
                pairs.push(Pairs { members, cols, width, ..Pairs::default() });
                pairs.len() - 1
            });
            let pairs = &mut pairs[at];
            if pairs.members.is_empty() {
                continue;
            }
            for row in rows.clone() {
                if pairs.seen % self.every == 0 {
                    pairs.x.extend(&x_values[row * cols..][..cols]);
                    pairs.d_y.extend(&d_values[row * width..][..width]);
                    pairs.kept += 1;
                }
                pairs.seen += 1;
            }
        }
    }
}

impl<'a> Sensitivity<'a> {
    /// Runs the model forward and back on windows. `done` is told of each block, forward and back.
    ///
    /// # Errors
    /// If the device failed, or there is no place for what blocks read.
    pub fn measure(
        pass: Pass<'a>,
        form: &GgufForm<'_>,
        (windows, room): (&[Window], Room<'_>),
        done: &mut dyn FnMut(),
    ) -> Result<Self, BackError> {
        let places = Places::of(pass, form);
        let num_tokens: usize = windows.iter().map(Window::num_tokens).sum();
        let projections = pass.model.decoder.projections();
        let of_token: usize = projections
            .filter(|(_, p)| places.get(p).is_some())
            .map(|(_, p)| 4 * (p.in_features() + p.out_features()))
            .sum();
        let every = (num_tokens * of_token).div_ceil(MAX_BYTES).max(1);
        let (found, failure) = Default::default();
        let watch = Watch { places: &places, every, found, failure };
        let is = |wanted| form.tensors().iter().position(|of| of.roles() == [wanted]);
        let mut sensitivity = Self {
            pass,
            pairs: Vec::new(),
            of_part: HashMap::new(),
            head: head_of(form),
            embedding: is(Role::EmbedTokens),
            hidden: Vec::new(),
            tokens: Vec::new(),
            d_embedded: Vec::new(),
        };
        let after_block = &mut || watch.failure.take().map_or(Ok(()), Err);
        let lookers = Lookers { observer: &watch, after_block, done };
        let back = run_back(pass, windows, lookers, room.folder)?;
        for (window, hidden) in windows.iter().zip(&back.hidden) {
            sensitivity.keep(window, hidden);
        }
        sensitivity.d_embedded = back.d_embedded.concat();
        sensitivity.pairs = watch.found.into_inner().0;
        for (at, pairs) in sensitivity.pairs.iter().enumerate() {
            let places = pairs.members.iter().enumerate();
            sensitivity.of_part.extend(places.map(|(member, (place, ..))| (*place, (at, member))));
        }
        Ok(sensitivity)
    }

    /// Keeps some of what the head's products take of a window.
    fn keep(&mut self, window: &Window, hidden: &[f32]) {
        let width = self.pass.model.decoder.config.hidden_size;
        // A pass over hidden states from all windows alike.
        let wanted = HEAD_ROWS.saturating_sub(self.hidden.len() / width);
        let every = (window.num_tokens() / wanted.max(1)).max(8);
        let rows = hidden.chunks(width).step_by(every).take(wanted);
        self.hidden.extend(rows.flatten());
        self.tokens.extend(window.rows.iter().flatten());
    }

    /// What `packed`, with the shape and the order of rows of the model's own matrix, costs in
    /// nats per token if it takes the place of that, which is part `part` of a tensor.
    ///
    /// # Errors
    /// If the device failed.
    pub fn cost(
        &self,
        (tensor, part): (usize, usize),
        [own, packed]: [&Tensor; 2],
    ) -> Result<f64, DeviceError> {
        let mut cost = 0.0;
        if self.head == Some(tensor) {
            cost += self.head_cost(packed)?;
        }
        if self.embedding == Some(tensor) {
            cost += self.embedding_cost(own, packed)?;
        }
        if let Some((at, member)) = self.of_part.get(&(tensor, part)) {
            cost += self.matrix_cost(&self.pairs[*at], *member, error(own, packed)?)?;
        }
        Ok(cost)
    }

    /// `½ Σ (gᵀ ΔW x)²` over rows, per token.
    fn matrix_cost(&self, pairs: &Pairs, member: usize, error: Tensor) -> Result<f64, DeviceError> {
        let (_, col, n) = pairs.members[member];
        if pairs.kept == 0 {
            return Ok(0.0);
        }
        let device = self.pass.device;
        let moved = device.reusing_memory(|| -> Result<_, DeviceError> {
            let x = Tensor::from_f32(&pairs.x, &[pairs.kept, pairs.cols]);
            let x = device.upload(Category::Workspace, &x)?;
            let weight = Weight::Frozen(device.upload(Category::Workspace, &error)?);
            let layer = [Projection { weight, bias: None, adapters: Vec::new() }];
            let params = Params::default();
            let mut tape = Tape::inference(device, &params, Compute::F32);
            let x = tape.leaf(x, false);
            let moved = ops::linear(&mut tape, x, &layer, None).value().try_to_vec_f32()?;
            device.settle().map(|()| moved)
        })?;
        let rows = moved.chunks_exact(n).zip(pairs.d_y.chunks_exact(pairs.width));
        let of_row = |(moved, d_y): (&[f32], &[f32])| {
            let change = moved.iter().zip(&d_y[col..col + n]);
            let change: f64 = change.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            change * change
        };
        let sum: f64 = rows.map(of_row).sum();
        let share = pairs.seen as f64 / pairs.kept as f64;
        Ok(0.5 * sum * share / self.tokens.len().max(1) as f64)
    }

    /// The divergence of logits on the hidden states.
    fn head_cost(&self, packed: &Tensor) -> Result<f64, DeviceError> {
        let Pass { device, model, .. } = self.pass;
        let role = match model.decoder.config.tie_word_embeddings {
            true => Role::EmbedTokens,
            false => Role::LmHead,
        };
        let other = model.with_weights([(role, device.upload(Category::Weights, packed)?)]);
        let width = model.decoder.config.hidden_size;
        let mut sum = 0.0;
        for rows in self.hidden.chunks(ROWS * width) {
            let found = compared(device, [(model, rows), (&other, rows)])?;
            sum += found.iter().map(|row| row.kl).sum::<f64>();
        }
        Ok(sum / (self.hidden.len() / width).max(1) as f64)
    }

    /// `½ Σ (gᵀ Δe)²` over the embeddings of tokens, per token.
    fn embedding_cost(&self, own: &Tensor, packed: &Tensor) -> Result<f64, DeviceError> {
        let config = &self.pass.model.decoder.config;
        let scale = config.embedding_scale.factor(DType::F32);
        let error = error(own, packed)?;
        let (error, width) = (error.f32(), config.hidden_size);
        let gradients = self.d_embedded.chunks_exact(width);
        let of_token = |(token, gradient): (&u32, &[f32])| {
            let error = &error[*token as usize * width..][..width];
            let change = gradient.iter().zip(error);
            let change: f64 = change.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            (change * f64::from(scale)).powi(2)
        };
        let sum: f64 = self.tokens.iter().zip(gradients).map(of_token).sum();
        Ok(0.5 * sum / self.tokens.len().max(1) as f64)
    }
}

/// The values of `packed` less those of `own`, both in the host's memory.
fn error(own: &Tensor, packed: &Tensor) -> Result<Tensor, DeviceError> {
    let mut error = load_as(Device::host(), Category::Workspace, packed, DType::F32)?;
    error.f32_mut().iter_mut().zip(own.f32()).for_each(|(to, own)| *to -= own);
    Ok(error)
}
