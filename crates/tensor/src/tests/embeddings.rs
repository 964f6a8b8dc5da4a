//! Embeddings of tokens and of what else is known of them.

use super::check_op::{Kind, Operands, Operation, check_op};
use crate::ops;
use crate::{DType, Tape, Var, Weight};
use hone_kernels::embedding;

struct Embedding {
    given: Operands,
    table: Weight,
    ids: Vec<u32>,
    scale: f32,
}

impl Operation for Embedding {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.table]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, _: Vec<Var>) -> Var {
        ops::embedding(tape, &self.table, &self.ids, self.scale)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let scale = f64::from(self.scale);
        embedding::reference::forward(&x[0], self.table.shape()[1], &self.ids, scale)
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (v, h) = (self.table.shape()[0], self.table.shape()[1]);
        vec![embedding::reference::backward(v, h, &self.ids, f64::from(self.scale), d_y)]
    }
}

#[test]
fn embedding_passes() {
    // Scales that every compute type holds exactly.
    for (scale, h, ids) in [
        (1.0, 7, vec![3, 0, 3, 10, 3]),
        (5.5, 70, vec![10]),
        (0.25, 100, (0..300).map(|i| i * 7 % 11).collect()),
    ] {
        let mut given = Operands::default();
        let table = given.add(Kind::Trained, &[11, h]);
        let table = given.weight(table);
        let case = format!("embedding of {} tokens, width {h}", ids.len());
        check_op(&case, &mut Embedding { given, table, ids, scale });
    }
}

/// Tokens and positions.
struct Embeddings {
    given: Operands,
    tables: [Weight; 2],
    ids: [Vec<u32>; 2],
}

impl Operation for Embeddings {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        self.tables.iter_mut().collect()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, _: Vec<Var>) -> Var {
        let x = ops::embedding(tape, &self.tables[0], &self.ids[0], 1.0);
        ops::add_embedding(tape, x, &self.tables[1], &self.ids[1])
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let h = self.tables[0].shape()[1];
        let [a, b] = [0, 1].map(|i| embedding::reference::forward(&x[i], h, &self.ids[i], 1.0));
        a.iter().zip(b).map(|(a, b)| a + b).collect()
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let gradient = |i: usize| match self.tables[i].param() {
            Some(_) => {
                let (v, h) = (self.tables[i].shape()[0], self.tables[i].shape()[1]);
                embedding::reference::backward(v, h, &self.ids[i], 1.0, d_y)
            }
            None => vec![],
        };
        (0..x.len()).map(gradient).collect()
    }
}

#[test]
fn sums_of_embeddings_pass() {
    let frozen = Kind::Frozen(DType::Bf16.into());
    for kinds in [[Kind::Trained, Kind::Trained], [Kind::Trained, frozen], [frozen, Kind::Trained]]
    {
        let mut given = Operands::default();
        let tables = [(kinds[0], 11), (kinds[1], 5)].map(|(kind, v)| given.add(kind, &[v, 33]));
        let tables = tables.map(|table| given.weight(table));
        let ids = [vec![3, 0, 3, 10, 3, 7], vec![0, 1, 2, 0, 1, 4]];
        check_op("sum of embeddings", &mut Embeddings { given, tables, ids });
    }
}
