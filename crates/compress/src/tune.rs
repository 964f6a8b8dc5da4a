//! Learned roundings: a packed model's weights are trained on the divergence of its predictions
//! from the intended ones, without leaving their types.
//!
//! Each weight has a latent number and takes the level nearest to it; gradients pass through the
//! rounding as if it were none. The floats of blocks and the gains of norms are trained along. What
//! groups have as integers stays. All weights change together, on what the whole model predicts:
//! errors of one matrix make up for those of others, which rounding matrix by matrix cannot see.
//! It is quantisation-aware training (Jacob et al., 2018, arXiv 1712.05877) with the model itself
//! as the teacher (Liu et al., 2023, arXiv 2305.17888).

use crate::meter::{hidden_states, host, logits};
use crate::window::Window;
use hone_model::{Batch, GgufForm, Model, Pass, Recompute, Role};
use hone_tensor::adamw::{Parameter, Update};
use hone_tensor::distribution::divergence_gradients;
use hone_tensor::{
    Category, Coded, Coding, DType, Device, DeviceError, Gradients, ParamId, Projection, Storage,
    Tape, Tensor, ops,
};
use std::collections::HashMap;
use std::time::Instant;

/// How long weights are trained, and on how much.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Updates.
    pub steps: usize,
    /// Tokens of an update, at least one window.
    pub tokens_per_step: usize,
}

impl Schedule {
    /// Windows of an update.
    fn per_step(&self, windows: &[Window]) -> usize {
        let longest = windows.iter().map(Window::num_tokens).max().unwrap_or(1).max(1);
        (self.tokens_per_step / longest).max(1)
    }
}

/// Numbers that another process had learned, by the names that [`Snapshot::numbers`] gives them.
pub struct Begun {
    /// Updates that they had.
    pub step: usize,
    /// In f32.
    pub numbers: HashMap<String, Tensor>,
}

/// Where learning is after an update.
pub struct Snapshot<'a> {
    student: &'a Student<'a>,
    /// Updates so far.
    pub step: usize,
    /// Divergence before the last one, in nats per token.
    pub kl: f64,
}

impl Snapshot<'_> {
    /// All that the updates to come depend on, in f32.
    pub fn numbers(&self) -> Vec<(String, &Tensor)> {
        self.student.learned().flat_map(|(name, of)| of.numbers(&name)).collect()
    }
}

/// How far latents move in an update, in distances of levels, at the start; it falls to nothing
/// along half a cosine.
const LEARNING_RATE: f64 = 0.001;
/// How much less factors of blocks' floats and gains of norms move, which are about 1.
const FACTORS: f64 = 0.2;
/// Decays of moments, of Adam. Runs are short, and gradients change when levels do.
const BETAS: [f64; 2] = [0.8, 0.95];

/// A matrix whose roundings are learned.
struct Rounded {
    role: Role,
    param: ParamId,
    storage: Storage,
    coding: Coding,
    blocks: Coded,
    /// The floats of blocks as they were, which are multiplied by `factors`.
    shared: Vec<[f32; 2]>,
    latents: Learned,
    factors: Learned,
}

/// Numbers that are learned, with their moments.
struct Learned {
    value: Tensor,
    m: Tensor,
    v: Tensor,
}

impl Learned {
    fn new(value: Tensor) -> Result<Self, DeviceError> {
        let zeros = || Tensor::try_zeros(DType::F32, value.shape());
        Ok(Self { m: zeros()?, v: zeros()?, value })
    }

    fn numbers(&self, name: &str) -> [(String, &Tensor); 3] {
        let Self { value, m, v } = self;
        [("value", value), ("m", m), ("v", v)].map(|(of, x)| (format!("{name}.{of}"), x))
    }

    /// Takes these numbers over; whether they were all there.
    fn take(&mut self, name: &str, from: &HashMap<String, Tensor>) -> bool {
        let Self { value, m, v } = self;
        [("value", value), ("m", m), ("v", v)].into_iter().all(|(of, x)| {
            let kept = from.get(&format!("{name}.{of}"));
            let kept = kept.filter(|kept| kept.storage() == DType::F32 && kept.len() == x.len());
            kept.map(|kept| x.f32_mut().copy_from_slice(kept.f32())).is_some()
        })
    }

    fn update(&mut self, device: &Device, update: &Update, gradient: &Tensor) {
        let Self { value, m, v } = self;
        let of = (value.view_mut(), m.view_mut(), v.view_mut());
        let parameter = Parameter { value: of.0, gradient: gradient.view(), m: of.1, v: of.2 };
        device.processor().expect("a device that computes").adamw(update, vec![parameter]);
    }
}

/// How far from its level a latent begins at most that is nearer to another, in distances of
/// levels.
const INSIDE: f32 = 0.25;

impl Rounded {
    /// The matrix `packed` of the format, which stands for `intended`.
    fn new(
        (role, param): (Role, ParamId),
        coding: Coding,
        packed: &Tensor,
        intended: &Tensor,
    ) -> Result<Self, DeviceError> {
        let blocks = (coding.read)(packed.bytes());
        let mut latents = Tensor::from_f32(&intended.try_to_vec_f32()?, intended.shape());
        let len = coding.group;
        host().rows(latents.f32_mut(), len, 4 * len, |group, latents| {
            let [scale, offset] = blocks.affine(group);
            let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
            for (latent, level) in latents.iter_mut().zip(&blocks.levels[group * len..]) {
                *latent = latent_of(&coding, (*latent + offset) * inverse, f32::from(*level));
            }
        });
        let shared = blocks.shared.clone();
        let ones = Tensor::from_f32(&vec![1.0; 2 * shared.len()], &[shared.len(), 2]);
        Ok(Self {
            role,
            param,
            storage: packed.storage(),
            coding,
            blocks,
            shared,
            latents: Learned::new(latents)?,
            factors: Learned::new(ones)?,
        })
    }

    /// Writes the weights as they are rounded now.
    fn write(&mut self, values: &mut Tensor) {
        let factors = self.factors.value.f32().as_chunks::<2>().0;
        for ((shared, first), by) in self.blocks.shared.iter_mut().zip(&self.shared).zip(factors) {
            *shared = [first[0] * by[0], first[1] * by[1]].map(|x| DType::F16.rounded(x));
        }
        self.coding.values(host(), &self.blocks, self.latents.value.f32(), values.f32_mut());
    }

    fn learn(&mut self, device: &Device, update: &Update, gradient: &mut Tensor) {
        let blocks = self.shared.len();
        let mut d_shared = Tensor::from_f32(&vec![0.0; 2 * blocks], &[blocks, 2]);
        let of = (self.latents.value.f32(), gradient.f32());
        self.coding.shared_gradients(host(), &self.blocks, of, d_shared.f32_mut());
        let d_factors = d_shared.f32_mut().as_chunks_mut::<2>().0;
        for (d, shared) in d_factors.iter_mut().zip(&self.shared) {
            *d = [d[0] * shared[0], d[1] * shared[1]];
        }
        self.coding.latent_gradients(host(), &self.blocks, gradient.f32_mut());
        let rate = update.learning_rate * f64::from(spacing(&self.coding));
        self.latents.update(device, &Update { learning_rate: rate, ..*update }, gradient);
        let rate = update.learning_rate * FACTORS;
        self.factors.update(device, &Update { learning_rate: rate, ..*update }, &d_shared);
    }

    /// The matrix in its format.
    fn packed(mut self) -> Tensor {
        let shape = self.latents.value.shape();
        let levels = self.latents.value.f32().iter();
        self.blocks.levels = levels.map(|x| self.coding.nearest(*x) as i8).collect();
        let mut bytes = vec![0; self.storage.num_bytes(shape)];
        (self.coding.write)(&self.blocks, &mut bytes);
        Tensor::from_bytes(&bytes, self.storage, shape)
    }
}

/// How far levels are apart: 1, or the mean of a table's distances.
fn spacing(coding: &Coding) -> f32 {
    match coding.table {
        None => 1.0,
        Some(table) => (f32::from(table[15]) - f32::from(table[0])) / 15.0,
    }
}

/// The latent of a weight `x` that has this level: itself if that is the nearest one; else what
/// made it another has to hold against a while of training.
fn latent_of(coding: &Coding, x: f32, level: f32) -> f32 {
    if coding.nearest(x) == level {
        return x;
    }
    let inside = INSIDE * spacing(coding);
    level + (x - level).clamp(-inside, inside)
}

/// A packed model in training.
struct Student<'a> {
    pass: Pass<'a>,
    /// With the weights that it has as they are rounded now.
    model: Model,
    matrices: Vec<Rounded>,
    gains: Vec<(Role, ParamId, Learned)>,
}

impl<'a> Student<'a> {
    fn new(pass: Pass<'a>, form: &GgufForm<'_>, packed: &Model) -> Result<Self, DeviceError> {
        let (model, params) = packed.trained(pass.device)?;
        let (mut matrices, mut gains) = (Vec::new(), Vec::new());
        for (role, param) in params {
            let tensor = packed.weight(role).expect("a weight that is trained");
            match (coding_of(tensor), tensor.storage()) {
                (Some(coding), _) => {
                    let intended = form.matrix(pass.device, role, (DType::F32.into(), &[]))?;
                    matrices.push(Rounded::new((role, param), coding, tensor, &intended)?);
                }
                (None, Storage::Float(_)) if matches!(role, Role::Norm(..) | Role::FinalNorm) => {
                    let value = model.params.value(param);
                    let value = Tensor::from_f32(&value.try_to_vec_f32()?, value.shape());
                    gains.push((role, param, Learned::new(value)?));
                }
                _ => {}
            }
        }
        Ok(Self { pass, model, matrices, gains })
    }

    /// All that is learned, by names.
    fn learned(&self) -> impl Iterator<Item = (String, &Learned)> {
        let matrices = self.matrices.iter().enumerate().flat_map(|(i, of)| {
            [(format!("{i}.latents"), &of.latents), (format!("{i}.factors"), &of.factors)]
        });
        let gains = self.gains.iter().enumerate();
        matrices.chain(gains.map(|(i, (.., gain))| (format!("{i}.gains"), gain)))
    }

    /// Goes on from what another process had learned; whether that was whole.
    fn take(&mut self, from: &HashMap<String, Tensor>) -> bool {
        let matrices = self.matrices.iter_mut().enumerate().all(|(i, matrix)| {
            let Rounded { latents, factors, .. } = matrix;
            latents.take(&format!("{i}.latents"), from)
                && factors.take(&format!("{i}.factors"), from)
        });
        let mut gains = self.gains.iter_mut().enumerate();
        matrices && gains.all(|(i, (.., gain))| gain.take(&format!("{i}.gains"), from))
    }

    /// Rounds what was learned so far.
    fn round(&mut self) {
        for matrix in &mut self.matrices {
            matrix.write(self.model.params.value_mut(matrix.param));
        }
        for (_, param, gain) in &self.gains {
            self.model.params.value_mut(*param).copy_from_f32(gain.value.f32());
        }
    }

    /// Adds the gradients of `share` times the sum of divergences from what `hidden` states of the
    /// intended model predict; that sum.
    fn add_gradients(
        &self,
        batch: &Batch,
        (hidden, share): (&[f32], f32),
        gradients: &mut Gradients,
    ) -> Result<f64, DeviceError> {
        let Pass { device, model: intended, compute } = self.pass;
        let model = &self.model;
        let p = logits(device, intended, hidden)?;
        let head =
            [Projection { weight: model.decoder.head().clone(), bias: None, adapters: Vec::new() }];
        let mut tape = Tape::training(device, &model.params, compute, None);
        let hidden = model.decoder.hidden(&mut tape, batch, recompute(model, batch));
        let root = ops::linear_in_f32(&mut tape, hidden, &head);
        let mut d_root = device.alloc(Category::Head, DType::F32, root.value().shape());
        let mut q = root.value().try_to_vec_f32()?;
        let width = model.decoder.config.vocab_size;
        let found = divergence_gradients(host(), &p, &mut q, width, share);
        d_root.copy_from_f32(&q);
        tape.backward(root, d_root, gradients);
        device.settle()?;
        Ok(found.iter().map(|row| f64::from(row.kl)).sum())
    }

    /// Takes a step against the gradients.
    fn update(&mut self, update: &Update, gradients: &mut Gradients) {
        let device = self.pass.device;
        for matrix in &mut self.matrices {
            matrix.learn(device, update, gradients.get_mut(matrix.param));
        }
        let update = Update { learning_rate: update.learning_rate * FACTORS, ..*update };
        for (_, param, gain) in &mut self.gains {
            gain.update(device, &update, gradients.get(*param));
        }
    }

    /// What was learned, in the types of `packed`.
    fn finish(mut self, packed: &Model) -> Result<Model, DeviceError> {
        self.round();
        let Self { pass, matrices, gains, .. } = self;
        let matrices = matrices.into_iter().map(|matrix| (matrix.role, matrix.packed()));
        let weights = matrices.chain(gains.into_iter().map(|(role, _, gain)| (role, gain.value)));
        let upload = |(role, tensor)| {
            pass.device.upload(Category::Weights, &tensor).map(|tensor| (role, tensor))
        };
        Ok(packed.with_weights(weights.map(upload).collect::<Result<Vec<_>, _>>()?))
    }
}

/// About the bytes that [`tune`] takes besides the models: of each weight its latent, two moments,
/// what it is rounded to and the gradient of that, in f32, and what blocks consist of; activations
/// of a window; logits of both models with their gradients; hidden states that are learned from
/// again.
pub fn learning_bytes(model: &Model, windows: &[Window], schedule: Schedule) -> u64 {
    const OF_WEIGHT: usize = 5 * 4 + 2;
    let config = &model.decoder.config;
    let longest = windows.iter().map(Window::num_tokens).max().unwrap_or(0);
    let activations = activation_bytes(model, longest).min(MAX_ACTIVATIONS);
    let logits = 4 * 4 * longest * config.vocab_size;
    let is_repeated = schedule.steps * schedule.per_step(windows) > windows.len();
    let known = if is_repeated { 4 * windows.len() * longest * config.hidden_size } else { 0 };
    (OF_WEIGHT * config.num_parameters() + activations + logits + known) as u64
}

/// The coding of a packed matrix whose roundings can be learned.
pub(crate) fn coding_of(tensor: &Tensor) -> Option<Coding> {
    match tensor.storage() {
        Storage::Packed(format) if format.tiles.is_none() => format.coding,
        _ => None,
    }
}

/// Whether blocks are run twice: if all their activations would take too much memory.
fn recompute(model: &Model, batch: &Batch) -> Recompute {
    match activation_bytes(model, batch.tokens.len()) > MAX_ACTIVATIONS {
        true => Recompute::Block,
        false => Recompute::None,
    }
}

/// About the bytes of all blocks' activations.
fn activation_bytes(model: &Model, num_tokens: usize) -> usize {
    let config = &model.decoder.config;
    let outputs: usize = model.decoder.projections().map(|(_, p)| p.out_features()).sum();
    4 * num_tokens * (2 * outputs + 8 * config.hidden_size * config.layers.len())
}

/// Bytes that activations of all blocks may take.
const MAX_ACTIVATIONS: usize = 2 << 30;

/// Trains what `packed` rounds, a model of the same weights as that of `pass` in packed types, and
/// returns what it has then, in the same types. `begun` is what another process had learned of the
/// same. `done` is told of each update.
///
/// # Errors
/// If the device failed.
pub fn tune(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    packed: &Model,
    (windows, schedule): (&[Window], Schedule),
    begun: Option<Begun>,
    done: &mut dyn FnMut(Snapshot<'_>),
) -> Result<Model, DeviceError> {
    let mut student = Student::new(pass, form, packed)?;
    let mut first = 0;
    if let Some(begun) = begun {
        match student.take(&begun.numbers) {
            true => first = begun.step,
            false => student = Student::new(pass, form, packed)?,
        }
    }
    let per_step = schedule.per_step(windows);
    // Hidden states of the intended model, of windows that are learned from again.
    let mut known = HashMap::new();
    for step in first..schedule.steps {
        student.round();
        let chosen = step * per_step..(step + 1) * per_step;
        let of = |i: usize| &windows[i % windows.len()];
        let num_tokens: usize = chosen.clone().map(|i| of(i).num_tokens()).sum();
        let mut gradients = Gradients::zeros(pass.device, &student.model.params)?;
        let mut sum = 0.0;
        for i in chosen {
            let batch = of(i).batch(&pass.model.decoder.config);
            let hidden = match known.remove(&(i % windows.len())) {
                Some(hidden) => hidden,
                None => hidden_states(pass, std::slice::from_ref(&batch))?.remove(0),
            };
            let with = (&hidden[..], 1.0 / num_tokens as f32);
            let run = || student.add_gradients(&batch, with, &mut gradients);
            sum += pass.device.reusing_memory(run)?;
            if i + windows.len() < schedule.steps * per_step {
                known.insert(i % windows.len(), hidden);
            }
        }
        student.update(&update_of(step, schedule.steps), &mut gradients);
        done(Snapshot { student: &student, step: step + 1, kl: sum / num_tokens as f64 });
    }
    student.finish(packed)
}

/// How far numbers move in an update.
fn update_of(step: usize, steps: usize) -> Update {
    let progress = step as f64 / steps as f64;
    Update {
        learning_rate: LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        beta1: BETAS[0],
        beta2: BETAS[1],
        // Gradients of latents are tiny; what counts is their sign and how steady it is.
        epsilon: 1e-12,
        weight_decay: 0.0,
        step: step as u64 + 1,
        gradient_scale: 1.0,
    }
}

/// Seconds of what learning consists of.
pub(crate) struct Taken {
    /// Getting ready.
    pub(crate) begin: f64,
    /// A window forward and back.
    pub(crate) window: f64,
    /// The rest of an update.
    pub(crate) update: f64,
}

/// How long learning takes, from one update with a window.
///
/// # Errors
/// If the device failed.
pub(crate) fn sample(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    packed: &Model,
    window: &Window,
) -> Result<Taken, DeviceError> {
    let clock = Instant::now();
    let mut student = Student::new(pass, form, packed)?;
    let begin = clock.elapsed().as_secs_f64();
    let batch = window.batch(&pass.model.decoder.config);
    let hidden = hidden_states(pass, std::slice::from_ref(&batch))?.remove(0);
    let with = (&hidden[..], 1.0 / window.num_tokens() as f32);
    let mut taken = Taken { begin, window: f64::INFINITY, update: f64::INFINITY };
    // The first time, memory is new.
    for _ in 0..2 {
        let clock = Instant::now();
        student.round();
        let mut gradients = Gradients::zeros(pass.device, &student.model.params)?;
        let rounded = clock.elapsed();
        let clock = Instant::now();
        let run = || student.add_gradients(&batch, with, &mut gradients);
        pass.device.reusing_memory(run)?;
        taken.window = taken.window.min(clock.elapsed().as_secs_f64());
        let clock = Instant::now();
        student.update(&update_of(0, 1), &mut gradients);
        taken.update = taken.update.min((rounded + clock.elapsed()).as_secs_f64());
    }
    Ok(taken)
}
