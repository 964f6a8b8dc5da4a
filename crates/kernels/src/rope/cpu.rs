//! CPU kernel, in place, vectorised along rows.

use super::{Direction, Rotation};
use crate::cpu::{Cpu, Kernel};
use crate::element::Element;
use crate::view::{ViewMut, with_elements};

/// Rotates in place the first heads in each row of `width` elements.
pub fn rotate(cpu: &Cpu, x: ViewMut<'_>, width: usize, rotation: Rotation<'_>) {
    let Rotation { num_heads: heads, head_dim: d, cos, sin, direction } = rotation;
    let (cos, sin, half) = (cos.f32(), sin.f32(), d / 2);
    with_elements!(mut x, x => cpu.rows(x, width, 2 * heads * d, |t, row| {
        let angle = t * half..(t + 1) * half;
        let (cos, sin) = (&cos[angle.clone()], &sin[angle]);
        cpu.isa.run(Rotate { row: &mut row[..heads * d], d, cos, sin, direction });
    }));
}

struct Rotate<'a, T> {
    row: &'a mut [T],
    d: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    direction: Direction,
}

impl<T: Element> Kernel for Rotate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let sign = if self.direction == Direction::Backward { -1.0 } else { 1.0 };
        for head in self.row.chunks_exact_mut(self.d) {
            let (low, high) = head.split_at_mut(self.d / 2);
            for (((low, high), c), s) in low.iter_mut().zip(high).zip(self.cos).zip(self.sin) {
                let (x, y, s) = (low.to_f32(), high.to_f32(), s * sign);
                *low = T::from_f32(x * c - y * s);
                *high = T::from_f32(y * c + x * s);
            }
        }
    }
}
