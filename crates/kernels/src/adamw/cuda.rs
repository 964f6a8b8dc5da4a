//! Element by element.

use super::{Factors, Update};
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source =
    Source { name: "adamw", texts: &[include_str!("kernel.cu")], kernels: &["adamw_step"] };

pub(super) fn step(
    gpu: &Gpu,
    update: &Update,
    p: Slice<'_>,
    g: Slice<'_>,
    (m, v): (Slice<'_>, Slice<'_>),
) {
    let n = p.len();
    assert!(g.len() == n && m.len() == n && v.len() == n);
    let Factors { b1, rest1, b2, rest2, keep, step_size, root2, epsilon } = update.factors();
    let scale = update.gradient_scale;
    let args = args![p, g, m, v, n, scale, b1, rest1, b2, rest2, keep, step_size, root2, epsilon];
    gpu.launch(&SOURCE, "adamw_step", Launch::elements(n.div_ceil(4)), args);
}
