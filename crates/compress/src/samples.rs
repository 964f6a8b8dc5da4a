//! How long a compression takes on this machine: a little of each stage is done with the model
//! itself, and counted as often as the whole has it. Nothing is taken from tables.

use crate::allocate::{Price, allocate};
use crate::back::{BackError, Room};
use crate::calibrate::{MAX_STREAMS, head_of, importance};
use crate::imatrix::Columns;
use crate::meter::{Meter, ROWS};
use crate::packed::{Done, Kept, fed_back, packed};
use crate::plan::{Goal, PlanError, num_choices, num_measurements, types_of};
use crate::sensitivity::{MAX_BYTES, Sensitivity};
use crate::tune::{Schedule, sample};
use crate::window::Window;
use hone_model::{FormTensor, GgufForm, Pass, Role};
use hone_tensor::{Category, DType, DeviceError, Storage, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

/// Weights of which packing is tried at least, where a matrix has so many.
const ENOUGH: usize = 1 << 16;

/// Runs parts of stages, and says how many seconds the whole of each takes.
pub struct Samples<'a> {
    pass: Pass<'a>,
    form: &'a GgufForm<'a>,
    window: &'a Window,
    room: Room<'a>,
    /// Seconds that a window takes forward, and to be compared.
    of_window: [f64; 2],
    /// Seconds that a weight takes to be packed, by type and whether columns are known.
    of_weight: RefCell<HashMap<(&'static str, bool), f64>>,
}

/// Seconds that something takes, and what it gives.
fn timed<T, E>(run: impl FnOnce() -> Result<T, E>) -> Result<(f64, T), E> {
    let clock = Instant::now();
    let found = run()?;
    Ok((clock.elapsed().as_secs_f64(), found))
}

fn weights_of(tensor: &FormTensor) -> f64 {
    tensor.shape.iter().product::<usize>() as f64
}

impl<'a> Samples<'a> {
    /// Tries windows with `window`, which is as long as any.
    ///
    /// # Errors
    /// If the device failed.
    pub fn new(
        pass: Pass<'a>,
        form: &'a GgufForm<'a>,
        (window, room): (&'a Window, Room<'a>),
    ) -> Result<Self, DeviceError> {
        let windows = std::slice::from_ref(window);
        let (forward, meter) = timed(|| Meter::new(pass, windows))?;
        let (measure, _) = timed(|| meter.measure(pass.model))?;
        let of_window = [forward, measure];
        Ok(Self { pass, form, window, room, of_window, of_weight: RefCell::default() })
    }

    fn windows(&self) -> &'a [Window] {
        std::slice::from_ref(self.window)
    }

    /// The importance of columns from so many windows.
    ///
    /// # Errors
    /// If the device failed.
    pub fn importance(&self, windows: usize) -> Result<f64, DeviceError> {
        let text = (self.windows(), Vec::new());
        let (seconds, _) = timed(|| importance(self.pass, self.form, text, &mut || ()))?;
        Ok(windows as f64 * seconds)
    }

    /// A comparison with the model on so many windows, `models` times.
    pub fn comparing(&self, windows: usize, models: usize) -> f64 {
        let [forward, measure] = self.of_window;
        windows as f64 * (forward + models as f64 * measure)
    }

    /// About the most bytes that passes forward over so many windows take besides the model.
    pub fn forward_bytes(&self, windows: usize) -> u64 {
        let config = &self.pass.model.decoder.config;
        let tokens = windows * self.window.num_tokens();
        let streams = (4 * tokens * config.hidden_size).min(MAX_STREAMS);
        (2 * streams + 4 * ROWS * config.vocab_size) as u64
    }

    /// About the most bytes that a search for types takes besides the model, with so many windows
    /// for gradients.
    pub fn types_bytes(&self, windows: usize) -> u64 {
        let tensors = self.form.tensors().iter().filter(|of| of.is_matrix());
        let (mut rows, mut packed, mut largest) = (0, 0, 0);
        for tensor in tensors {
            let cols = tensor.shape.last().copied().unwrap_or(0);
            let weights: usize = tensor.shape.iter().product();
            rows += cols + weights / cols.max(1);
            largest = largest.max(weights);
            let types = types_of(self.pass.model, tensor).into_iter();
            let types = types.filter(|of| of.float().is_none());
            packed += types.map(|of| of.num_bytes(&tensor.shape)).sum::<usize>();
        }
        let pairs = 4 * windows * self.window.num_tokens() * rows;
        let [pairs, packed] = [pairs.min(MAX_BYTES), packed.min(self.room.quarter(4 << 30))];
        (pairs + packed + 8 * largest) as u64 + self.forward_bytes(windows)
    }

    /// The matrices in these types, each weight to the nearest value.
    ///
    /// # Errors
    /// If the device failed.
    pub fn packing(&self, storages: &[Storage], has_importance: bool) -> Result<f64, DeviceError> {
        let mut seconds = 0.0;
        for (tensor, &storage) in self.form.tensors().iter().zip(storages) {
            if tensor.is_matrix() {
                seconds += weights_of(tensor) * self.of_weight(storage, has_importance)?;
            }
        }
        Ok(seconds)
    }

    /// Seconds that a weight takes to be packed.
    fn of_weight(&self, storage: Storage, has_importance: bool) -> Result<f64, DeviceError> {
        let key = (storage.name(), has_importance);
        if let Some(&known) = self.of_weight.borrow().get(&key) {
            return Ok(known);
        }
        // The smallest matrix that has enough, or else the largest.
        let fits = |shape: &[usize]| storage.checked_num_bytes(shape).is_ok();
        let roles = self.form.tensors().iter().filter(|of| of.is_matrix() && fits(&of.shape));
        let matrix = |role: Role| Some((role, self.pass.model.weight(role)?));
        let all = roles.filter_map(|of| matrix(of.roles()[0]));
        let is_better = |(_, of): &(Role, &Tensor)| match of.len() {
            enough @ ENOUGH.. => (0, enough),
            few => (1, usize::MAX - few),
        };
        let Some((role, of)) = all.min_by_key(is_better) else { return Ok(0.0) };
        let columns = vec![1.0; if has_importance { of.shape()[1] } else { 0 }];
        let run = || self.form.matrix(self.pass.device, role, (storage, &columns));
        let seconds = timed(run)?.0 / of.len() as f64;
        self.of_weight.borrow_mut().insert(key, seconds);
        Ok(seconds)
    }

    /// Types that reach a goal, from so many windows for gradients and for measurements, when
    /// `known` of its numbers are there; roundings are tried so often, whose own time is not
    /// counted.
    ///
    /// # Errors
    /// If the device failed, or there is no place for what blocks read.
    pub fn types(
        &self,
        goal: Goal,
        [first, other]: [usize; 2],
        (known, num_trials): (usize, usize),
    ) -> Result<f64, PlanError> {
        let text = (self.windows(), self.room);
        let measure = || Sensitivity::measure(self.pass, self.form, text, &mut || ());
        let (gradients, sensitivity) = timed(measure)?;
        let (of_weight, of_head) = self.costs(&sensitivity)?;
        let (first, mut candidates, mut prices) = (first as f64, Vec::new(), Vec::new());
        let head = head_of(self.form);
        for (i, tensor) in self.form.tensors().iter().enumerate() {
            let mut of_tensor = Vec::new();
            for storage in types_of(self.pass.model, tensor) {
                let seconds = self.of_weight(storage, true)? + first * of_weight;
                let of_head = if head == Some(i) { first * of_head } else { 0.0 };
                candidates.push(weights_of(tensor) * seconds + of_head);
                let bytes = storage.num_bytes(&tensor.shape) as u64;
                of_tensor.push(Price { bytes, kl: 1.0 / bytes as f64 });
            }
            prices.extend(Some(of_tensor).filter(|prices| !prices.is_empty()));
        }
        let of_choice = choosing(&prices);
        let left = &candidates[known.min(candidates.len())..];
        let of_gradients = if left.is_empty() { 0.0 } else { first * gradients };
        let measured = known.saturating_sub(candidates.len());
        let measurements =
            num_measurements(self.form, goal, num_trials).saturating_sub(measured) as f64;
        let choices = num_choices(self.form, goal) as f64;
        let [forward, measure] = self.of_window.map(|seconds| other as f64 * seconds);
        let reached = forward + measurements * measure + choices * of_choice;
        Ok(of_gradients + left.iter().sum::<f64>() + reached)
    }

    /// Seconds that the cost of a type takes to find with the gradients of a window: of a weight,
    /// and of the head besides.
    fn costs(&self, sensitivity: &Sensitivity<'_>) -> Result<(f64, f64), DeviceError> {
        let of = |i: usize| -> Result<f64, DeviceError> {
            let (device, tensor) = (self.pass.device, &self.form.tensors()[i]);
            let role = tensor.roles()[0];
            let packed = self.form.matrix(device, role, (quick(tensor), &[]))?;
            let run = || {
                let own = self.form.matrix(device, role, (DType::F32.into(), &[]))?;
                sensitivity.cost((i, 0), [&own, &packed])
            };
            Ok(timed(run)?.0)
        };
        let head = head_of(self.form);
        let in_block = |i: &usize| {
            let tensor = &self.form.tensors()[*i];
            tensor.is_matrix() && matches!(tensor.roles()[0], Role::Matrix(..))
        };
        let mut blocks: Vec<usize> = (0..self.form.tensors().len()).filter(in_block).collect();
        blocks.sort_by_key(|i| self.form.tensors()[*i].shape.iter().product::<usize>());
        let Some(&middle) = blocks.get(blocks.len() / 2) else { return Ok((0.0, 0.0)) };
        let of_weight = of(middle)? / weights_of(&self.form.tensors()[middle]);
        Ok((of_weight, head.map_or(Ok(0.0), of)?))
    }

    /// Error feedback with the curvature from so many windows, of matrices in these types that are
    /// not kept.
    ///
    /// # Errors
    /// If the device failed, or there is no place for what blocks read.
    pub fn feedback(
        &self,
        storages: &[Storage],
        windows: usize,
        kept: Kept<'_>,
    ) -> Result<f64, BackError> {
        let tensors = || self.form.tensors().iter().enumerate().filter(|(_, of)| of.is_matrix());
        let is_left = |i: usize, of: &FormTensor| {
            let has_coding =
                matches!(storages[i], Storage::Packed(format) if format.coding.is_some());
            has_coding && (0..of.roles().len()).any(|part| kept(i, part).is_none())
        };
        let left: f64 =
            tensors().filter(|(i, of)| is_left(*i, of)).map(|(_, of)| weights_of(of)).sum();
        if left == 0.0 {
            return Ok(0.0);
        }
        // One block of all.
        let num_blocks = self.pass.model.decoder.config.num_hidden_layers();
        let block = num_blocks / 2;
        let is_in = |of: &FormTensor| match of.roles()[0] {
            Role::Matrix(of_block, _) => of_block == block,
            _ => false,
        };
        let (mut matrices, mut weights) = (Vec::new(), 0.0);
        let clock = Instant::now();
        for (i, tensor) in tensors().filter(|(_, of)| is_in(of)) {
            for &role in tensor.roles() {
                let columns = vec![1.0; tensor.shape.last().copied().unwrap_or(0)];
                let of = (storages[i], &columns[..]);
                let matrix = self.form.matrix(self.pass.device, role, of)?;
                matrices.push((role, self.pass.device.upload(Category::Weights, &matrix)?));
            }
            weights += weights_of(tensor);
        }
        let packing = clock.elapsed().as_secs_f64();
        let packed = self.pass.model.with_weights(matrices);
        let (mut clock, mut rounding) = (Instant::now(), 0.0);
        let (mut passes, mut back) = (0.0, Vec::new());
        let mut done = |done: Done<'_>| {
            let seconds = clock.elapsed().as_secs_f64();
            clock = Instant::now();
            match done {
                Done::Forward => passes += seconds,
                Done::Back => back.push(seconds),
                Done::Matrix(..) => rounding += seconds,
            }
        };
        let text = (self.windows(), self.room);
        fed_back(self.pass, self.form, &packed, text, &|_, _| None, &mut done)?;
        passes += clock.elapsed().as_secs_f64() + back.iter().sum::<f64>();
        // Curvature was found of this block alone.
        if let Some(&with) = back.get(num_blocks - 1 - block) {
            back.sort_by(f64::total_cmp);
            passes += (num_blocks - 1) as f64 * (with - back[back.len() / 2]).max(0.0);
        }
        let of_weight = if weights > 0.0 { (packing + rounding) / weights } else { 0.0 };
        Ok(windows as f64 * passes + left * of_weight)
    }

    /// Learning from so many windows, when `begun` updates were done.
    ///
    /// # Errors
    /// If the device failed.
    pub fn learning(
        &self,
        schedule: Schedule,
        windows: usize,
        begun: usize,
    ) -> Result<f64, DeviceError> {
        let storages: Vec<Storage> = self.form.tensors().iter().map(quick).collect();
        let types = (&storages[..], &Columns::default());
        let packed = packed(self.pass, self.form, types, &|_, _| None)?;
        let taken = sample(self.pass, self.form, &packed, self.window)?;
        let per_step = (schedule.tokens_per_step / self.window.num_tokens().max(1)).max(1);
        let steps = schedule.steps.saturating_sub(begun);
        let forward = (steps * per_step).min(windows) as f64 * self.of_window[0];
        let of_step = per_step as f64 * taken.window + taken.update;
        Ok(taken.begin + steps as f64 * of_step + forward)
    }
}

/// A type that a tensor can have, and that nothing is searched for in.
fn quick(tensor: &FormTensor) -> Storage {
    let kinds = ["q4_0", "q8_0"].map(|name| Storage::from_name(name).expect("the name of a type"));
    let fits = |kind: &Storage| kind.checked_num_bytes(&tensor.shape).is_ok();
    kinds.into_iter().find(fits).unwrap_or(DType::F16.into())
}

/// The type of each tensor of those that it may have that comes nearest to so many bits, and in
/// which errors can be fed back, which takes longer than what has no such type.
pub fn near(pass: Pass<'_>, form: &GgufForm<'_>, bits: f64) -> Vec<Storage> {
    let of_tensor = |tensor: &FormTensor| {
        let away = |of: &Storage| {
            let found = 8.0 * of.num_bytes(&tensor.shape) as f64 / weights_of(tensor);
            (found - bits).abs()
        };
        let all = types_of(pass.model, tensor);
        let has_coding =
            |of: &&Storage| matches!(of, Storage::Packed(format) if format.coding.is_some());
        let nearest = |a: &&Storage, b: &&Storage| away(a).total_cmp(&away(b));
        let found = all.iter().filter(has_coding).min_by(nearest);
        found.or_else(|| all.iter().min_by(nearest)).copied().unwrap_or(DType::F32.into())
    };
    form.tensors().iter().map(of_tensor).collect()
}

/// Seconds that it takes to choose among these prices.
fn choosing(prices: &[Vec<Price>]) -> f64 {
    let bytes = prices.iter().map(|prices| prices.iter().map(|price| price.bytes));
    let least: u64 = bytes.clone().filter_map(Iterator::min).sum();
    let most: u64 = bytes.filter_map(Iterator::max).sum();
    let clock = Instant::now();
    let _ = allocate(prices, least + (most - least) / 3);
    clock.elapsed().as_secs_f64()
}
