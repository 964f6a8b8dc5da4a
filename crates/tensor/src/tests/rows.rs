//! Operations that copy or scale rows.

use super::check_op::{Kind, Operands, Operation, check_op};
use crate::ops::Part;
use crate::{Tape, Var, ops};
use hone_kernels::columns::{self, Span};

/// Parts of operands: which, their first column, and their number of columns.
struct Joined {
    given: Operands,
    widths: Vec<usize>,
    parts: Vec<[usize; 3]>,
}

impl Joined {
    fn spans(&self) -> Vec<(usize, Span)> {
        let width = self.parts.iter().map(|part| part[2]).sum();
        let mut to = 0;
        let span = |&[of, first, count]: &[usize; 3]| {
            to += count;
            let from = [self.widths[of], first];
            (of, Span { from, to: [width, to - count], count })
        };
        self.parts.iter().map(span).collect()
    }
}

impl Operation for Joined {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, leaves: Vec<Var>) -> Var {
        let part = |&[of, first, count]: &[usize; 3]| Part { of: leaves[of].clone(), first, count };
        ops::joined(tape, self.parts.iter().map(part).collect())
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let spans = self.spans();
        let mut y = vec![0.0; x[0].len() / self.widths[0] * spans[0].1.to[0]];
        spans.iter().for_each(|(of, span)| columns::reference::copy(*span, &x[*of], false, &mut y));
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let mut d_x: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        for (of, span) in self.spans() {
            columns::reference::copy(span.reversed(), d_y, true, &mut d_x[of]);
        }
        d_x
    }
}

/// Name, tokens, widths of operands, parts.
type Case = (&'static str, usize, &'static [usize], &'static [[usize; 3]]);

#[test]
fn joined_passes() {
    // Keys that are values too; another's columns after all of one's own; one column of each.
    let cases: [Case; 3] = [
        ("keys as values", 9, &[14], &[[0, 0, 14], [0, 8, 6]]),
        ("another's", 7, &[10, 18], &[[0, 0, 10], [1, 6, 12]]),
        ("a column of each", 1, &[3, 2], &[[1, 1, 1], [0, 0, 1]]),
    ];
    for (case, t, widths, parts) in cases {
        let mut given = Operands::default();
        for &width in widths {
            given.add(Kind::Activation, &[t, width]);
        }
        let mut joined = Joined { given, widths: widths.into(), parts: parts.into() };
        check_op(&format!("joined, {case}"), &mut joined);
    }
    let span = Span { from: [3, 1], to: [2, 0], count: 2 };
    let mut y = [1.0, 1.0];
    columns::reference::copy(span, &[1.0, 2.0, 3.0], true, &mut y);
    assert_eq!(y, [3.0, 4.0]);
}

struct Scaled {
    given: Operands,
    by: f32,
}

impl Operation for Scaled {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::scaled(tape, leaves.remove(0), self.by)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        x[0].iter().map(|x| x * f64::from(self.by)).collect()
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        vec![d_y.iter().map(|d| d * f64::from(self.by)).collect()]
    }
}

#[test]
fn scaled_passes() {
    for (t, h) in [(1, 3), (40, 18)] {
        let mut given = Operands::default();
        given.add(Kind::Stream, &[t, h]);
        check_op(&format!("scaled [{t}, {h}]"), &mut Scaled { given, by: 0.7 });
    }
}
