//! Adapters merged into the weights they adapt.

use crate::{Category, Cost, DType, Device, Params, Projection, Tensor, Work};
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};

/// The weight of `projection` with its adapter merged: `W + scale · B A`, in f32 if there is an
/// adapter, otherwise as it is stored. On the dry device it has no elements.
///
/// # Panics
/// If there are several adapters.
pub fn merge(device: &Device, params: &Params, projection: &Projection) -> Tensor {
    let weight = params.resolve(&projection.weight);
    let lora = match &projection.adapters[..] {
        [] => return weight.clone(),
        [lora] => lora,
        _ => panic!("only one adapter can be merged"),
    };
    let (n, k, rank) = (projection.out_features(), projection.in_features(), lora.rank);
    let mut merged = device.alloc(Category::Workspace, DType::F32, &[n, k]);
    let cost = Cost::memory_bound("merge", weight.num_bytes() + 2 * merged.num_bytes())
        .with(Work::Product, 2 * n * k * rank);
    let Some(on) = device.begin(cost) else { return merged };
    on.convert(weight.view(), merged.view_mut());
    let b = Matrix::rows(params.value(lora.b).view(), rank);
    let a = Matrix::rows(params.value(lora.a).view(), k);
    let epilogue = Epilogue { scale: lora.scale, accumulate: true, ..Epilogue::default() };
    let terms = [Term::new(b, a, rank)];
    let product = Product { terms: &terms, epilogue, output: OutputRegion::whole(n, k) };
    on.gemm(DType::F32, &[product], merged.view_mut());
    merged
}
