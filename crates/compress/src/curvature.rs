//! The curvature of what the whole model predicts in each matrix: that of its inputs and that of
//! its outputs.
//!
//! The Fisher information of a matrix is `E[(g gᵀ) ⊗ (x xᵀ)]` over tokens, with inputs `x` and
//! gradients `g` of the log-probability of a token that the model itself draws. It is taken to be
//! `E[‖x‖² g gᵀ] ⊗ E[‖g‖² x xᵀ]`, up to a factor: tokens that matter to the prediction count more,
//! and so do directions of outputs (Tseng et al., 2025, arXiv 2505.22988).

use crate::calibrate::Places;
use crate::factor::Factor;
use crate::meter::host;
use hone_model::Decoder;
use hone_tensor::gemm::{Matrix, WeightGradient, add_weight_gradient, weight_workspace_len};
use hone_tensor::{DType, DeviceError, Observer, Projection, Reader, Target, Tensor, View};
use std::cell::RefCell;
use std::collections::HashMap;

/// Sums of products `[n, n]`.
#[derive(Default)]
pub(crate) struct Moment {
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

    /// The curvature of the head's inputs, from what its products take of each window.
    pub(crate) fn of_head(hidden: &[Vec<f32>], width: usize) -> Self {
        let mut moment = Self::default();
        for hidden in hidden {
            let ones = vec![1.0; hidden.len() / width];
            moment.add(hidden, width, (0, width), &ones);
        }
        moment
    }

    pub(crate) fn factor(self) -> Factor {
        Factor::of(host(), &self.sums, self.n)
    }
}

/// The curvature of matrices that read the same input.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) inputs: Moment,
    /// Of each matrix: part of a tensor.
    pub(crate) outputs: Vec<((usize, usize), Moment)>,
}

/// The curvature of matrices of which gradients were seen.
pub(crate) struct Curvature<'a> {
    places: &'a Places,
    /// Whether it is wanted of a matrix; those that read the same input with it count along.
    is_wanted: &'a dyn Fn((usize, usize)) -> bool,
    known: RefCell<HashMap<*const Projection, usize>>,
    found: RefCell<Vec<Group>>,
    failure: RefCell<Option<DeviceError>>,
}

impl<'a> Curvature<'a> {
    pub(crate) fn new(places: &'a Places, is_wanted: &'a dyn Fn((usize, usize)) -> bool) -> Self {
        let (known, found, failure) = Default::default();
        Self { places, is_wanted, known, found, failure }
    }

    /// What was seen since the last time.
    ///
    /// # Errors
    /// If the device failed meanwhile.
    pub(crate) fn take(&self) -> Result<Vec<Group>, DeviceError> {
        self.known.take();
        let found = self.found.take();
        self.failure.take().map_or(Ok(found), Err)
    }
}

/// About the most bytes that the curvature of a block's matrices and its factors take.
pub(crate) fn curvature_bytes(decoder: &Decoder) -> u64 {
    let mut of_blocks: HashMap<String, (u64, u64)> = HashMap::new();
    for (name, projection) in decoder.projections() {
        let block = name.split('.').find(|part| part.parse::<usize>().is_ok()).unwrap_or("");
        let sizes = [projection.in_features(), projection.out_features()];
        let squares = sizes.map(|n| (n * n) as u64);
        let (sum, largest) = of_blocks.entry(block.to_owned()).or_default();
        *sum += squares.iter().sum::<u64>();
        *largest = squares.into_iter().fold(*largest, u64::max);
    }
    // Of the largest there are a copy in f64 and two factors at a time.
    of_blocks.values().map(|(sum, largest)| 4 * sum + 16 * largest).max().unwrap_or(0)
}

impl Observer for Curvature<'_> {
    fn gradient(&self, x: &Tensor, readers: &[Reader<'_>], d_y: &Tensor) {
        let (x_values, d_values) = match (x.try_to_vec_f32(), d_y.try_to_vec_f32()) {
            (Ok(x), Ok(d_y)) => (x, d_y),
            (Err(error), _) | (_, Err(error)) => {
                *self.failure.borrow_mut() = Some(error);
                return;
            }
        };
        let (cols, width) = (x.shape()[1], d_y.shape()[1]);
        let groups = &mut *self.found.borrow_mut();
        for (projections, rows) in readers.iter().filter(|(_, rows)| !rows.is_empty()) {
            let Some(first) = projections.first() else { continue };
            let mut places = projections.iter().filter_map(|of| self.places.get(of));
            if !places.any(self.is_wanted) {
                continue;
            }
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
            let (mut col, mut member, group) = (0, 0, &mut groups[at]);
            for projection in *projections {
                let n = projection.out_features();
                if let Some(place) = self.places.get(projection) {
                    if group.outputs.len() == member {
                        group.outputs.push((place, Moment::default()));
                    }
                    group.outputs[member].1.add(d_y, width, (col, n), &of_inputs);
                    let of_rows = d_y.chunks_exact(width).map(|row| squares(&row[col..col + n]));
                    of_outputs.iter_mut().zip(of_rows).for_each(|(sum, of)| *sum += of);
                    member += 1;
                }
                col += n;
            }
            if member > 0 {
                group.inputs.add(x, cols, (0, cols), &of_outputs);
            }
        }
    }
}
