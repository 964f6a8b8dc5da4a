//! CPU kernel, in place, vectorised along rows.

use super::{Direction, Rotated, Rotation};
use crate::cpu::{Cpu, Kernel};
use crate::element::Element;
use crate::view::{ViewMut, with_elements};

/// Rotates in place adjacent heads in each row of `width` elements.
pub fn rotate(cpu: &Cpu, x: ViewMut<'_>, width: usize, rotation: Rotation<'_>) {
    let Rotation { first_head, num_heads: heads, head_dim: d, rotated, cos, sin, direction } =
        rotation;
    let (cos, sin, half) = (cos.f32(), sin.f32(), rotated.dim / 2);
    let heads_at = first_head * d..(first_head + heads) * d;
    with_elements!(mut x, x => cpu.rows(x, width, 2 * heads * d, |t, row| {
        let angle = t * half..(t + 1) * half;
        let (cos, sin) = (&cos[angle.clone()], &sin[angle]);
        cpu.isa.run(Rotate { row: &mut row[heads_at.clone()], d, rotated, cos, sin, direction });
    }));
}

struct Rotate<'a, T> {
    row: &'a mut [T],
    d: usize,
    rotated: Rotated,
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
            let head = &mut head[..self.rotated.dim];
            let angles = self.cos.iter().zip(self.sin);
            if self.rotated.interleaved {
                for ([low, high], (c, s)) in head.as_chunks_mut().0.iter_mut().zip(angles) {
                    rotate_pair(low, high, *c, s * sign);
                }
            } else {
                let (low, high) = head.split_at_mut(self.rotated.dim / 2);
                for ((low, high), (c, s)) in low.iter_mut().zip(high).zip(angles) {
                    rotate_pair(low, high, *c, s * sign);
                }
            }
        }
    }
}

#[inline(always)]
fn rotate_pair<T: Element>(low: &mut T, high: &mut T, c: f32, s: f32) {
    let (x, y) = (low.to_f32(), high.to_f32());
    *low = T::from_f32(x * c - y * s);
    *high = T::from_f32(y * c + x * s);
}
