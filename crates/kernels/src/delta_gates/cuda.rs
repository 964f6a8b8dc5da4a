//! Launches with a thread per number; gradients of weights by groups of heads.

use super::{Gradients, Inputs};
use crate::cuda::{Arg, Gpu, Launch, Slice, Source, args};
use crate::view::ViewMut;

pub(crate) static SOURCE: Source = Source {
    name: "delta_gates",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "delta_gates_forward<float>",
        "delta_gates_forward<bf16>",
        "delta_gates_forward<f16>",
        "delta_gates_backward<float>",
        "delta_gates_backward<bf16>",
        "delta_gates_backward<f16>",
        "delta_gates_backward_weight<float>",
        "delta_gates_backward_weight<bf16>",
        "delta_gates_backward_weight<f16>",
    ],
};

/// The arguments that all kernels begin with, for `gates` numbers.
fn arguments(inputs: &Inputs<'_>, gates: usize) -> Vec<Arg> {
    let (heads, x) = (inputs.heads(), inputs.b_a.x.cuda());
    let t = gates / (2 * heads);
    assert!(x.len() >= t * inputs.b_a.width && gates == t * 2 * heads);
    let (first, stride) = (x.part(inputs.b_a.col, 0), inputs.b_a.width);
    let (a_log, dt_bias) = (inputs.a_log.cuda().f32(), inputs.dt_bias.cuda().f32());
    args![first, stride, a_log, dt_bias, heads, t].to_vec()
}

pub(super) fn forward(gpu: &Gpu, inputs: Inputs<'_>, gates: Slice<'_>) {
    let mut args = arguments(&inputs, gates.len());
    args.push(gates.into());
    let kernel = format!("delta_gates_forward<{}>", inputs.b_a.x.cuda().type_name());
    gpu.launch(&SOURCE, &kernel, Launch::elements(gates.len()), &args);
}

pub(super) fn backward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    d_gates: Slice<'_>,
    gradients: Gradients<'_>,
) {
    let Gradients { d_b_a, d_a_log, d_dt_bias } = gradients;
    let (x, heads) = (inputs.b_a.x.cuda(), inputs.heads());
    if let Some(d) = d_b_a.map(ViewMut::cuda) {
        assert!(d.dtype() == x.dtype() && d.len() == x.len());
        let mut args = arguments(&inputs, d_gates.len());
        args.extend([Arg::from(d_gates), d.part(inputs.b_a.col, 0).into()]);
        let kernel = format!("delta_gates_backward<{}>", x.type_name());
        gpu.launch(&SOURCE, &kernel, Launch::elements(d_gates.len()), &args);
    }
    for (of_a_log, d) in [(1u32, d_a_log), (0, d_dt_bias)] {
        let Some(d) = d.map(|d| d.cuda().f32()) else { continue };
        assert_eq!(d.len(), heads);
        let mut args = arguments(&inputs, d_gates.len());
        args.extend([Arg::from(d_gates), of_a_log.into(), d.into()]);
        let kernel = format!("delta_gates_backward_weight<{}>", x.type_name());
        gpu.launch(&SOURCE, &kernel, Launch::columns(heads), &args);
    }
}
