//! Adapters merged into the weights they adapt.

use crate::{Category, DType, Device, Params, Projection, Tensor};
use hone_kernels::gemm::{Epilogue, Matrix, Product, Target, Term, gemm};

/// The weight of `projection` with its adapter merged: `W + scale · B A`, in f32 where there is an
/// adapter and as it is held otherwise.
///
/// # Panics
/// On the dry device.
pub fn merge(device: &Device, params: &Params, projection: &Projection) -> Tensor {
    let weight = params.resolve(&projection.weight);
    let Some(lora) = &projection.lora else { return weight.clone() };
    let cpu = device.as_cpu().expect("merging needs a device that computes");
    let (n, k, rank) = (projection.out_features(), projection.in_features(), lora.rank);
    let mut merged = device.alloc(Category::Workspace, DType::F32, &[n, k]);
    hone_kernels::vector::convert(cpu, weight.view(), merged.view_mut());
    let b = Matrix::rows(params.value(lora.b).view(), rank);
    let a = Matrix::rows(params.value(lora.a).view(), k);
    let epilogue = Epilogue { scale: lora.scale, accumulate: true, ..Epilogue::default() };
    let terms = [Term { a: b, b: a, k: rank }];
    let product = Product { terms: &terms, epilogue, target: Target::whole(n, k) };
    gemm(cpu, DType::F32, &[product], merged.view_mut());
    merged
}
