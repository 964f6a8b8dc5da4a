//! Which projections are multiplied in eight bits, and where operands are brought to them: on the
//! CPU before a product, on a GPU inside it.

use super::quantised;
use crate::tape::Sweep;
use crate::{Compute, DType, Device, Params, Processor, Projection, Tensor, ViewMut};
use hone_kernels::gemm::{self, Fp8, Product, QuantisedType};

/// Which of projections that stand side by side a GPU multiplies in eight bits, inside the
/// operation: those held in bytes, if all are as wide as tensor cores ask for, since one that is
/// not moves its neighbours' outputs.
pub(super) struct InEightBits {
    kind: Option<QuantisedType>,
    which: Vec<bool>,
}

impl InEightBits {
    /// For the forward pass, or the backward pass, whose left operands are gradients.
    pub(super) fn of(
        device: &Device,
        compute: Compute,
        direction: Direction,
        params: &Params,
        projections: &[Projection],
    ) -> Self {
        let fits = |p: &Projection| gemm::fits_quantised([p.out_features(), p.in_features()]);
        let kind = match (compute, direction) {
            (Compute::Int8, _) => Some(QuantisedType::Int8),
            (Compute::Fp8, Direction::Forward) => Some(QuantisedType::Fp8(Fp8::E4m3)),
            (Compute::Fp8, Direction::Backward) => Some(QuantisedType::Fp8(Fp8::E5m2)),
            _ => None,
        };
        let inside = gemm::quantises_operands(device.target());
        let kind = kind.filter(|_| inside && projections.iter().all(fits));
        let is_held_in_bytes = |p: &Projection| params.resolve(&p.weight).storage().is_int8();
        let which = projections.iter().map(|p| kind.is_some() && is_held_in_bytes(p)).collect();
        Self { kind, which }
    }

    /// Those in eight bits, or the others.
    pub(super) fn which<'p>(
        &self,
        are: bool,
        projections: &'p [Projection],
    ) -> impl Iterator<Item = &'p Projection> {
        projections.iter().zip(&self.which).filter(move |(_, is)| **is == are).map(|(p, _)| p)
    }

    /// Their outputs.
    pub(super) fn width(&self, projections: &[Projection]) -> usize {
        self.which(true, projections).map(Projection::out_features).sum()
    }

    /// Bytes inside an operation that multiplies with them, `sizes` of the product with each.
    pub(super) fn bytes(
        &self,
        projections: &[Projection],
        sizes: impl Fn(&Projection) -> [usize; 3],
    ) -> usize {
        let Some(kind) = self.kind else { return 0 };
        self.which(true, projections).map(|p| gemm::quantised_bytes(kind, sizes(p))).sum()
    }

    /// Multiplies.
    pub(super) fn gemm(
        &self,
        on: &Processor,
        compute: DType,
        products: &[Product<'_>],
        out: ViewMut<'_>,
    ) {
        match self.kind {
            Some(kind) => on.gemm_quantised(kind, compute, products, out),
            None => on.gemm(compute, products, out),
        }
    }
}

/// Which way through a layer.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    Forward,
    Backward,
}

/// Whether both passes of a projection are in integers, with operands that are quantised before.
pub(super) fn is_integer_for(
    device: &Device,
    compute: Compute,
    params: &Params,
    projection: &Projection,
) -> bool {
    compute.is_integer_for(device, params.resolve(&projection.weight), projection.weight.shape())
}

/// The gradients of those projections whose products are in integers, in bytes. The scales of a
/// weight's rows are along this contraction, so they enter here.
pub(super) fn quantised_gradients(
    sweep: &Sweep<'_, '_>,
    projections: &[Projection],
    d_y: &Tensor,
) -> Vec<Option<Tensor>> {
    let mut col = 0;
    let of_projection = |projection: &Projection| {
        let (n, weight) = (projection.out_features(), sweep.params.resolve(&projection.weight));
        let columns = (col, n);
        col += n;
        let in_integers = is_integer_for(sweep.device, sweep.compute, sweep.params, projection);
        in_integers.then(|| quantised(sweep.device, d_y, columns, Some(weight)))
    };
    projections.iter().map(of_projection).collect()
}
