//! Which projections are multiplied with 8-bit operands, and where these are quantised: by the
//! caller on the CPU, inside the product on a GPU.

use super::quantised;
use crate::tape::Sweep;
use crate::{Compute, DType, Device, Params, Processor, Projection, Tensor, ViewMut};
use hone_kernels::gemm::{self, Fp8, Product, QuantisedType};

/// Which of the projections of one input a GPU multiplies with quantised operands: those stored as
/// int8, if all have suitable sizes, since one that has not would misalign the others' outputs.
pub(super) struct GpuQuantisation {
    quantised_type: Option<QuantisedType>,
    is_quantised: Vec<bool>,
}

impl GpuQuantisation {
    /// For the forward pass, or the backward pass, whose left operands are gradients.
    pub(super) fn of(
        device: &Device,
        compute: Compute,
        direction: Direction,
        params: &Params,
        projections: &[Projection],
    ) -> Self {
        let fits = |p: &Projection| gemm::fits_quantised([p.out_features(), p.in_features()]);
        let quantised_type = match (compute, direction) {
            (Compute::Int8, _) => Some(QuantisedType::Int8),
            (Compute::Fp8, Direction::Forward) => Some(QuantisedType::Fp8(Fp8::E4m3)),
            (Compute::Fp8, Direction::Backward) => Some(QuantisedType::Fp8(Fp8::E5m2)),
            _ => None,
        };
        let on_gpu = gemm::quantises_operands(device.target());
        let quantised_type = quantised_type.filter(|_| on_gpu && projections.iter().all(fits));
        let is_int8 = |p: &Projection| params.resolve(&p.weight).storage().is_int8();
        let is_quantised = |p| quantised_type.is_some() && is_int8(p);
        let is_quantised = projections.iter().map(is_quantised).collect();
        Self { quantised_type, is_quantised }
    }

    /// The projections with quantised operands.
    fn quantised<'p>(&self, projections: &'p [Projection]) -> impl Iterator<Item = &'p Projection> {
        projections.iter().zip(&self.is_quantised).filter(|(_, is)| **is).map(|(p, _)| p)
    }

    /// The other projections.
    pub(super) fn unquantised<'p>(
        &self,
        projections: &'p [Projection],
    ) -> impl Iterator<Item = &'p Projection> {
        projections.iter().zip(&self.is_quantised).filter(|(_, is)| !**is).map(|(p, _)| p)
    }

    /// Total output features of the projections with quantised operands.
    pub(super) fn width(&self, projections: &[Projection]) -> usize {
        self.quantised(projections).map(Projection::out_features).sum()
    }

    /// Scratch bytes of their products, of the given sizes.
    pub(super) fn scratch_bytes(
        &self,
        projections: &[Projection],
        sizes: impl Fn(&Projection) -> [usize; 3],
    ) -> usize {
        let Some(quantised_type) = self.quantised_type else { return 0 };
        let bytes = |p| gemm::quantised_bytes(quantised_type, sizes(p));
        self.quantised(projections).map(bytes).sum()
    }

    /// Multiplies.
    pub(super) fn gemm(
        &self,
        on: &Processor,
        compute: DType,
        products: &[Product<'_>],
        out: ViewMut<'_>,
    ) {
        match self.quantised_type {
            Some(quantised_type) => on.gemm_quantised(quantised_type, compute, products, out),
            None => on.gemm(compute, products, out),
        }
    }
}

/// Direction of a pass through a layer.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// Whether the products of a projection are in integers, with operands that the caller quantises.
pub(super) fn is_integer_for(
    device: &Device,
    compute: Compute,
    params: &Params,
    projection: &Projection,
) -> bool {
    compute.is_integer_for(device, params.resolve(&projection.weight), projection.weight.shape())
}

/// The quantised gradients of those projections whose products are in integers. The scales of a
/// weight's rows run along this contraction, so they are applied here.
pub(super) fn quantised_gradients(
    sweep: &Sweep<'_, '_>,
    projections: &[Projection],
    d_y: &Tensor,
) -> Vec<Option<Tensor>> {
    let mut col = 0;
    let gradient = |projection: &Projection| {
        let (n, weight) = (projection.out_features(), sweep.params.resolve(&projection.weight));
        let columns = (col, n);
        col += n;
        let in_integers = is_integer_for(sweep.device, sweep.compute, sweep.params, projection);
        in_integers.then(|| quantised(sweep.device, d_y, columns, Some(weight)))
    };
    projections.iter().map(gradient).collect()
}
