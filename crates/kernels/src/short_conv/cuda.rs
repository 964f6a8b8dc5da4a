//! Launches with a thread per channel and row; gradients of weights by groups of columns.

use super::{Gradients, Inputs, Row, State};
use crate::attention::Sequence;
use crate::cuda::{Arg, Gpu, Launch, Slice, Source, args};
use crate::element::Address;
use crate::view::ViewMut;

pub(crate) static SOURCE: Source = Source {
    name: "short_conv",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "short_conv_forward<float>",
        "short_conv_forward<bf16>",
        "short_conv_forward<f16>",
        "short_conv_keep<float>",
        "short_conv_keep<bf16>",
        "short_conv_keep<f16>",
        "short_conv_backward<float>",
        "short_conv_backward<bf16>",
        "short_conv_backward<f16>",
        "short_conv_backward_weight<float>",
        "short_conv_backward_weight<bf16>",
        "short_conv_backward_weight<f16>",
        "short_conv_backward_bias<float>",
        "short_conv_backward_bias<bf16>",
        "short_conv_backward_bias<f16>",
    ],
};

/// Threads per block, a channel each.
const THREADS: usize = 128;

/// A block for each group of channels of each row.
fn by_rows(channels: usize, rows: usize) -> Launch {
    let grid = [rows as u32, channels.div_ceil(THREADS) as u32, 1];
    Launch { grid, threads: THREADS as u32, shared_bytes: 0 }
}

fn upload(gpu: &Gpu, rows: &[Row]) -> Address {
    let words: Vec<u32> = rows.iter().flat_map(|row| [row.index, row.done, row.slot]).collect();
    gpu.upload(&words)
}

/// The arguments that all but one of the kernels begin with.
fn arguments(inputs: &Inputs<'_>, rows: Address) -> Vec<Arg> {
    let x = inputs.x.x.cuda();
    assert!(inputs.x.col + inputs.channels <= inputs.x.width);
    let first = x.part(inputs.x.col, 0);
    let bias = inputs.bias.map_or(0, |bias| bias.cuda().f32().address());
    let (stride, channels, width) =
        (inputs.x.width as u32, inputs.channels as u32, inputs.width() as u32);
    args![first, stride, inputs.weight.cuda().f32(), bias, channels, width, rows].to_vec()
}

pub(super) fn forward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    sequences: &[Sequence],
    state: Option<State<'_>>,
    y: Slice<'_>,
) {
    let (n, width, x) = (inputs.channels, inputs.width(), inputs.x.x.cuda());
    let t = y.len() / n;
    assert!(y.dtype() == x.dtype() && x.len() >= t * inputs.x.width);
    let rows = Row::all(sequences, state.as_ref().map(|state| state.slots), t);
    let rows = upload(gpu, &rows);
    let kept = state.map(|State { values, .. }| values.cuda());
    assert!(kept.is_none_or(|kept| kept.dtype() == x.dtype()));
    let at = |name: &str| format!("short_conv_{name}<{}>", x.type_name());
    let mut args = arguments(&inputs, rows);
    args.extend([Arg::from(kept.map_or(0, |kept| kept.address())), y.into()]);
    gpu.launch(&SOURCE, &at("forward"), by_rows(n, t), &args);
    let Some(kept) = kept else { return };
    let of_sequence = |s: &Sequence| {
        let last = s.q_len.saturating_sub(width - 1)..s.q_len;
        last.map(|index| (s.q_start + index) as u32).collect::<Vec<_>>()
    };
    let mut last: Vec<u32> = sequences.iter().flat_map(of_sequence).collect();
    // As many whatever the sequences, so that one graph serves many passes.
    last.resize(t.max(last.len()), Row::NONE.index);
    let (stride, channels) = (inputs.x.width as u32, n as u32);
    let (first, last_rows) = (x.part(inputs.x.col, 0), gpu.upload(&last));
    let args = args![first, stride, channels, width as u32, rows, last_rows, kept];
    gpu.launch(&SOURCE, &at("keep"), by_rows(n, last.len()), args);
}

pub(super) fn backward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    sequences: &[Sequence],
    d_y: Slice<'_>,
    gradients: Gradients<'_>,
) {
    let (n, width, x) = (inputs.channels, inputs.width(), inputs.x.x.cuda());
    let t = d_y.len() / n;
    assert!(d_y.dtype() == x.dtype() && x.len() >= t * inputs.x.width);
    let rows = upload(gpu, &Row::all(sequences, None, t));
    let at = |name: &str| format!("short_conv_{name}<{}>", x.type_name());
    if let Some(d_x) = gradients.d_x.map(ViewMut::cuda) {
        assert!(d_x.dtype() == x.dtype() && d_x.len() == x.len());
        let mut args = arguments(&inputs, rows);
        let first = d_x.part(inputs.x.col, 0);
        args.extend([Arg::from(t as u32), d_y.into(), first.into()]);
        gpu.launch(&SOURCE, &at("backward"), by_rows(n, t), &args);
    }
    for (name, sums, len) in
        [("backward_weight", gradients.d_weight, n * width), ("backward_bias", gradients.d_bias, n)]
    {
        let Some(sums) = sums.map(|sums| sums.cuda().f32()) else { continue };
        assert_eq!(sums.len(), len);
        let mut args = arguments(&inputs, rows);
        args.extend([Arg::from(t), d_y.into(), sums.into()]);
        gpu.launch(&SOURCE, &at(name), Launch::columns(len), &args);
    }
}
