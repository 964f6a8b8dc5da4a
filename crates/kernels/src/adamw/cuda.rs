//! Updates all parameters in one launch.

use super::{Factors, Parameter, Update};
use crate::cuda::{Arg, Gpu, MultiTensor, Source};

pub(crate) static SOURCE: Source =
    Source { name: "adamw", texts: &[include_str!("kernel.cu")], kernels: &["adamw_step"] };

pub(super) fn step(gpu: &Gpu, update: &Update, parameters: Vec<Parameter<'_>>) {
    let row =
        |Parameter { value, gradient, m, v }| [value.cuda(), gradient.cuda(), m.cuda(), v.cuda()];
    let rows: Vec<_> = parameters.into_iter().map(row).collect();
    let Factors { b1, rest1, b2, rest2, keep, step_size, root2, epsilon } = update.factors();
    let factors = [update.gradient_scale, b1, rest1, b2, rest2, keep, step_size, root2, epsilon];
    MultiTensor::new(gpu, &rows).launch(gpu, &SOURCE, "adamw_step", &factors.map(Arg::from));
}
