//! CPU kernels, a row a task.

use super::Span;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::view::{View, ViewMut};

/// See [`crate::Processor::copy_columns`].
pub(super) fn copy(cpu: &Cpu, span: Span, x: View<'_>, adds: bool, y: ViewMut<'_>) {
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => copy_typed(cpu, span, x, adds, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => copy_typed(cpu, span, x, adds, y),
        _ => panic!("x and y have the same element type"),
    }
}

fn copy_typed<T: Element>(cpu: &Cpu, span: Span, x: &[T], adds: bool, y: &mut [T]) {
    let Span { from: [width, from], to: [y_width, to], count } = span;
    cpu.rows(y, y_width, 2 * count, |t, y| {
        let (x, y) = (&x[t * width + from..][..count], &mut y[to..to + count]);
        if adds {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = T::from_f32(y.to_f32() + x.to_f32()));
        } else {
            y.copy_from_slice(x);
        }
    });
}
