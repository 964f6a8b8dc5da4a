//! The curvature of what the whole model predicts in each matrix: that of its inputs and that of
//! its outputs.
//!
//! The Fisher information of a matrix is `E[(g gᵀ) ⊗ (x xᵀ)]` over tokens, with inputs `x` and
//! gradients `g` of the log-probability of a token that the model itself draws. It is taken to be
//! `E[‖x‖² g gᵀ] ⊗ E[‖g‖² x xᵀ]`, up to a factor: tokens that matter to the prediction count more,
//! and so do directions of outputs (Tseng et al., 2025, arXiv 2505.22988).

use crate::calibrate::{Places, head_of};
use crate::factor::Factor;
use crate::meter::host;
use crate::sensitivity::run_back;
use crate::window::Window;
use hone_model::{GgufForm, Pass};
use hone_tensor::gemm::{Matrix, WeightGradient, add_weight_gradient, weight_workspace_len};
use hone_tensor::{DType, DeviceError, Observer, Projection, Reader, Target, Tensor, View};
use std::cell::RefCell;
use std::collections::HashMap;

/// Sums of products `[n, n]`.
#[derive(Default)]
struct Moment {
    n: usize,
    sums: Vec<f32>,
}

impl Moment {
    /// Adds `Σ weight · row rowᵀ` over rows of `x [_, width]`, of columns `first..first + n`.
    fn add(&mut self, x: &[f32], width: usize, (first, n): (usize, usize), weights: &[f32]) {
        self.n = n;
        self.sums.resize(n * n, 0.0);
        let t = weights.len();
        let mut weighted = vec![0.0; t * n];
        host().rows(&mut weighted, n, n, |row, to| {
            let from = &x[row * width + first..][..n];
            to.iter_mut().zip(from).for_each(|(to, x)| *to = weights[row] * x);
        });
        let d_y = Matrix::rows(View::F32(&weighted), n);
        let x = Matrix { offset: first, ..Matrix::rows(View::F32(x), width) };
        let gradient = WeightGradient { t, m: n, n, d_y, x };
        let mut workspace = vec![0.0; weight_workspace_len(Target::Cpu, t, n)];
        add_weight_gradient(host(), DType::F32, gradient, &mut workspace, &mut self.sums);
    }

    fn factor(&self) -> Factor {
        Factor::of(host(), &self.sums, self.n)
    }
}

/// Matrices that read the same input.
#[derive(Default)]
struct Group {
    inputs: Moment,
    outputs: Vec<Moment>,
}

/// The group that a tensor's part is in, and which member of it that is.
type Members = HashMap<(usize, usize), (usize, usize)>;

/// The curvature of all matrices.
pub(crate) struct Curvature {
    /// The factor of a group's inputs, which all its matrices share, and their outputs.
    groups: Vec<(Factor, Vec<Moment>)>,
    of_part: Members,
    /// Of the head's inputs.
    head: (Option<usize>, Factor),
}

struct Watch<'a> {
    places: &'a Places,
    known: RefCell<HashMap<*const Projection, usize>>,
    found: RefCell<(Vec<Group>, Members)>,
    failure: RefCell<Option<DeviceError>>,
}

impl Observer for Watch<'_> {
    fn gradient(&self, x: &Tensor, readers: &[Reader<'_>], d_y: &Tensor) {
        let (x_values, d_values) = match (x.try_to_vec_f32(), d_y.try_to_vec_f32()) {
            (Ok(x), Ok(d_y)) => (x, d_y),
            (Err(error), _) | (_, Err(error)) => {
                *self.failure.borrow_mut() = Some(error);
                return;
            }
        };
        let (cols, width) = (x.shape()[1], d_y.shape()[1]);
        let (groups, of_part) = &mut *self.found.borrow_mut();
        for (projections, rows) in readers.iter().filter(|(_, rows)| !rows.is_empty()) {
            let Some(first) = projections.first() else { continue };
            let at =
                *self.known.borrow_mut().entry(std::ptr::from_ref(first)).or_insert_with(|| {
                    groups.push(Group::default());
                    groups.len() - 1
                });
            let x = &x_values[rows.start * cols..rows.end * cols];
            let d_y = &d_values[rows.start * width..rows.end * width];
            let squares = |of: &[f32]| of.iter().map(|x| x * x).sum::<f32>();
            let of_inputs: Vec<f32> = x.chunks_exact(cols).map(squares).collect();
            let mut of_outputs = vec![0.0; of_inputs.len()];
            let (mut col, mut member) = (0, 0);
            for projection in *projections {
                let n = projection.out_features();
                if let Some(place) = self.places.get(projection) {
                    of_part.insert(place, (at, member));
                    let group = &mut groups[at];
                    group.outputs.resize_with(group.outputs.len().max(member + 1), Moment::default);
                    group.outputs[member].add(d_y, width, (col, n), &of_inputs);
                    let of_rows = d_y.chunks_exact(width).map(|row| squares(&row[col..col + n]));
                    of_outputs.iter_mut().zip(of_rows).for_each(|(sum, of)| *sum += of);
                    member += 1;
                }
                col += n;
            }
            if member > 0 {
                groups[at].inputs.add(x, cols, (0, cols), &of_outputs);
            }
        }
    }
}

impl Curvature {
    /// Runs the model forward and back on windows. `done` is told of each.
    ///
    /// # Errors
    /// If the device failed.
    pub(crate) fn measure(
        pass: Pass<'_>,
        form: &GgufForm<'_>,
        windows: &[Window],
        done: &mut dyn FnMut(),
    ) -> Result<Self, DeviceError> {
        let places = Places::of(pass, form);
        let (known, found, failure) = Default::default();
        let watch = Watch { places: &places, known, found, failure };
        let (mut moment, width) = (Moment::default(), pass.model.decoder.config.hidden_size);
        for (i, window) in windows.iter().enumerate() {
            let run = || run_back(pass, i as u64, window, &watch);
            let back = pass.device.reusing_memory(run)?;
            let ones = vec![1.0; back.hidden.len() / width];
            moment.add(&back.hidden, width, (0, width), &ones);
            done();
        }
        if let Some(error) = watch.failure.into_inner() {
            return Err(error);
        }
        let (groups, of_part) = watch.found.into_inner();
        let factored = |Group { inputs, outputs }: Group| (inputs.factor(), outputs);
        let groups = groups.into_iter().map(factored).collect();
        Ok(Self { groups, of_part, head: (head_of(form), moment.factor()) })
    }

    /// Factors of inputs, for the matrices that read them: those of which part of which tensor, and
    /// with which factor of outputs.
    pub(crate) fn of(&self, tensor: usize, part: usize) -> Option<(&Factor, Option<Factor>)> {
        if self.head.0 == Some(tensor) {
            return Some((&self.head.1, None));
        }
        let (group, member) = *self.of_part.get(&(tensor, part))?;
        let (inputs, outputs) = &self.groups[group];
        Some((inputs, Some(outputs[member].factor())))
    }
}
