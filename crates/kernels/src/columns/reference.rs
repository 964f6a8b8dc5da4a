//! The definition.

use super::Span;

/// See [`crate::Processor::copy_columns`].
pub fn copy(span: Span, x: &[f64], adds: bool, y: &mut [f64]) {
    let Span { from: [width, from], to: [y_width, to], count } = span;
    for (x, y) in x.chunks(width).zip(y.chunks_mut(y_width)) {
        for (x, y) in x[from..from + count].iter().zip(&mut y[to..to + count]) {
            *y = if adds { *y + x } else { *x };
        }
    }
}
