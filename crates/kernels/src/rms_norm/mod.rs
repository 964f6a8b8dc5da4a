//! Root-mean-square normalisation (Zhang & Sennrich, 2019): `y = x · rstd · w`,
//! `rstd = 1 / sqrt(mean(x²) + eps)`, over the last dimension.

mod cpu;
pub(crate) mod cuda;
pub mod reference;

pub use cpu::{backward, backward_weight, forward};

use crate::element::{View, ViewMut};
use crate::processor::Processor;

impl Processor {
    /// `x [t, h]` f32, `w [h]` f32 → `y [t, h]`, `rstd [t]` f32.
    pub fn rms_norm(&self, x: View<'_>, w: View<'_>, eps: f32, y: ViewMut<'_>, rstd: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, x.f32(), w.f32(), eps, y, rstd.f32()),
            Self::Cuda(gpu) => {
                cuda::forward(
                    gpu,
                    x.cuda().f32(),
                    w.cuda().f32(),
                    eps,
                    y.cuda(),
                    rstd.cuda().f32(),
                );
            }
        }
    }

    /// `d_x [t, h]` f32 for `d_y [t, h]`, from `(x, w, rstd)` of the forward pass; added to what
    /// `d_x` holds if it `adds`.
    pub fn rms_norm_backward(
        &self,
        (x, w, rstd): (View<'_>, View<'_>, View<'_>),
        d_y: View<'_>,
        adds: bool,
        d_x: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => {
                backward(cpu, (x.f32(), w.f32(), rstd.f32()), d_y, adds, d_x.f32());
            }
            Self::Cuda(gpu) => {
                let saved = (x.cuda().f32(), w.cuda().f32(), rstd.cuda().f32());
                cuda::backward(gpu, saved, d_y.cuda(), adds, d_x.cuda().f32());
            }
        }
    }

    /// `d_w [h] += Σ_t d_y · x · rstd`, f32.
    pub fn rms_norm_backward_weight(
        &self,
        x: View<'_>,
        rstd: View<'_>,
        d_y: View<'_>,
        d_w: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => backward_weight(cpu, x.f32(), rstd.f32(), d_y, d_w.f32()),
            Self::Cuda(gpu) => {
                cuda::backward_weight(
                    gpu,
                    x.cuda().f32(),
                    rstd.cuda().f32(),
                    d_y.cuda(),
                    d_w.cuda().f32(),
                );
            }
        }
    }
}
