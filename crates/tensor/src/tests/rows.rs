//! Operations that copy or scale rows.

use super::check_op::{Kind, Operands, Operation, check_op};
use crate::{Heads, Tape, Var, ops};
use hone_kernels::keys_as_values::{self, KeyedRows};

struct KeysAsValues {
    given: Operands,
    heads: Heads,
}

impl KeysAsValues {
    fn rows(&self) -> KeyedRows {
        let keys = self.heads.num_kv_heads * self.heads.head_dim;
        KeyedRows { queries: self.heads.out_width(), keys }
    }
}

impl Operation for KeysAsValues {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::keys_as_values(tape, leaves.remove(0), &self.heads)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        keys_as_values::reference::forward(self.rows(), &x[0])
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        vec![keys_as_values::reference::backward(self.rows(), d_y)]
    }
}

#[test]
fn keys_as_values_pass() {
    for (t, num_heads, num_kv_heads, head_dim) in [(1, 1, 1, 2), (9, 4, 2, 18)] {
        let (scale, window, ahead, softcap) = (1.0, None, 0, None);
        let heads = Heads { num_heads, num_kv_heads, head_dim, scale, window, ahead, softcap };
        let mut given = Operands::default();
        given.add(Kind::Activation, &[t, (num_heads + num_kv_heads) * head_dim]);
        check_op(&format!("values of {heads:?}, {t} tokens"), &mut KeysAsValues { given, heads });
    }
    let rows = KeyedRows { queries: 1, keys: 2 };
    assert_eq!(keys_as_values::reference::forward(rows, &[1.0, 2.0, 3.0]), [1., 2., 3., 2., 3.]);
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
