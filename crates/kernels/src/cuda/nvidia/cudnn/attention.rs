//! Attention as a graph that cuDNN knows an engine for: operations on scores that are nowhere in
//! memory, in the order that its documentation gives for "fused attention".
//!
//! Axes are sequences, heads, tokens, dimensions. Queries, keys and values are packed rows, so
//! their tokens are a packed row apart; where each sequence starts is read on the device, as is its
//! length. Only nodes of cuDNN 9.10 are used.

use super::graph::{Graph, Layout, Mode, Operands, Pointer, Reduction, Tensor, Type};
use super::library::Library;
use crate::DType;
use crate::cuda::driver::{AttentionArrays, AttentionShape, LseLayout, Pass};

/// Numbers of tensors in calls.
pub(super) mod id {
    pub(crate) const Q: i64 = 1;
    pub(crate) const K: i64 = 2;
    pub(crate) const V: i64 = 3;
    pub(crate) const OUT: i64 = 4;
    pub(crate) const LSE: i64 = 5;
    pub(crate) const Q_STARTS: i64 = 6;
    pub(crate) const K_STARTS: i64 = 7;
    pub(crate) const V_STARTS: i64 = 8;
    pub(crate) const OUT_STARTS: i64 = 9;
    pub(crate) const LSE_STARTS: i64 = 10;
    pub(crate) const Q_LENGTHS: i64 = 11;
    pub(crate) const K_LENGTHS: i64 = 12;
    pub(crate) const SCALE: i64 = 13;
    pub(crate) const WINDOW: i64 = 14;
    /// What unseen scores become: of the padding, of later keys, of keys before the window.
    pub(crate) const UNSEEN: [i64; 3] = [15, 16, 17];
    pub(crate) const D_OUT: i64 = 20;
    pub(crate) const D_Q: i64 = 21;
    pub(crate) const D_K: i64 = 22;
    pub(crate) const D_V: i64 = 23;
    pub(crate) const DELTA: i64 = 24;
    pub(crate) const SUMS: i64 = 25;
    pub(crate) const K_BY_HEAD: i64 = 26;
    pub(crate) const V_BY_HEAD: i64 = 27;
    pub(crate) const D_Q_STARTS: i64 = 28;
    pub(crate) const D_K_STARTS: i64 = 29;
    pub(crate) const D_V_STARTS: i64 = 30;
    pub(crate) const ONE: i64 = 31;
}

/// What a graph is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// With as many sequences, as long, as the plan has room for.
    pub(super) shape: AttentionShape,
    pub(super) lse: LseLayout,
}

/// A graph in the making, with what most operations need.
struct Builder {
    graph: Graph,
    key: Key,
    q_lengths: Tensor,
    k_lengths: Tensor,
    scale: Tensor,
}

/// The graph for a key.
pub(super) fn graph(library: &'static Library, key: &Key) -> Result<Graph, String> {
    let mut graph = Graph::new(library);
    let of_sequences = Layout::from(key.shape.num_sequences as i64);
    let q_lengths = graph.tensor(id::Q_LENGTHS, of_sequences, Type::I32, None)?;
    let k_lengths = graph.tensor(id::K_LENGTHS, of_sequences, Type::I32, None)?;
    let scale = graph.scalar(id::SCALE)?;
    let mut builder = Builder { graph, key: *key, q_lengths, k_lengths, scale };
    match key.shape.pass {
        Pass::Forward => builder.forward()?,
        Pass::Backward => builder.backward()?,
    }
    Ok(builder.graph)
}

impl Builder {
    /// Sequences, query heads, key heads, longest sequence, dimensions.
    fn sizes(&self) -> [i64; 5] {
        let AttentionShape { num_sequences, num_heads, num_kv_heads, longest, head_dim, .. } =
            self.key.shape;
        [num_sequences, num_heads, num_kv_heads, longest, head_dim].map(|size| size as i64)
    }

    fn dtype(&self) -> Type {
        match self.key.shape.dtype {
            DType::Bf16 => Type::BF16,
            _ => Type::F16,
        }
    }

    /// `heads` heads side by side in rows of `stride`.
    fn rows(&self, heads: i64, stride: i64) -> Layout {
        let [b, _, _, s, d] = self.sizes();
        Layout { dims: [b, heads, s, d], strides: [s * stride, d, stride, 1] }
    }

    /// The same in packed rows.
    fn packed(&self, heads: i64) -> Layout {
        let [_, hq, hk, _, d] = self.sizes();
        self.rows(heads, (hq + 2 * hk) * d)
    }

    /// Rows of `out`, or of a gradient of queries.
    fn own_rows(&self, heads: i64) -> Layout {
        let [.., d] = self.sizes();
        self.rows(heads, heads * d)
    }

    fn starts(&mut self, id: i64) -> Result<Option<Tensor>, String> {
        let len = self.key.shape.num_sequences as i64 + 1;
        self.graph.tensor(id, Layout::from(len), Type::I64, None).map(Some)
    }

    /// A number for each query of each head, as the plan has them.
    fn by_query(&mut self, id: i64, starts: Option<Tensor>) -> Result<Tensor, String> {
        let [b, hq, _, s, _] = self.sizes();
        let strides = match self.key.lse {
            LseLayout::Tokens => [hq * s, 1, hq, 1],
            LseLayout::Padded => [hq * s, s, 1, 1],
        };
        let layout = Layout { dims: [b, hq, s, 1], strides };
        self.graph.tensor(id, layout, Type::F32, starts)
    }

    fn lse_starts(&mut self) -> Result<Option<Tensor>, String> {
        match self.key.lse {
            LseLayout::Tokens => self.starts(id::LSE_STARTS),
            LseLayout::Padded => Ok(None),
        }
    }

    /// A number for each query, nowhere in memory.
    fn each_query(&mut self) -> Result<Tensor, String> {
        let [b, hq, _, s, _] = self.sizes();
        self.graph.between(Layout::dense([b, hq, s, 1]), Type::F32)
    }

    /// A number for each query and key, nowhere in memory.
    fn each_pair(&mut self, of: Type) -> Result<Tensor, String> {
        let [b, hq, _, s, _] = self.sizes();
        self.graph.between(Layout::dense([b, hq, s, s]), of)
    }

    /// `q kᵀ scale`, and what it is made of: queries and keys, these transposed.
    fn scores(&mut self) -> Result<[Tensor; 3], String> {
        let ([_, hq, hk, ..], of) = (self.sizes(), self.dtype());
        let q_starts = self.starts(id::Q_STARTS)?;
        let k_starts = self.starts(id::K_STARTS)?;
        let (q, k) = (self.packed(hq), self.packed(hk).transposed());
        let q = self.graph.tensor(id::Q, q, of, q_starts)?;
        let k = self.graph.tensor(id::K, k, of, k_starts)?;
        let products = self.each_pair(Type::F32)?;
        let lengths = [Some(self.q_lengths), Some(self.k_lengths), None];
        self.graph.matmul(q, k, products, lengths)?;
        Ok([self.graph.binary(Mode::MUL, products, self.scale)?, q, k])
    }

    /// -∞ where query and key do not see each other.
    fn masked(&mut self, scores: Tensor) -> Result<Tensor, String> {
        let scores = self.without_padding(scores)?;
        let causal = self.without_later(scores)?;
        match self.key.shape.is_windowed {
            true => self.within_window(causal),
            false => Ok(causal),
        }
    }

    /// Positions of query and key of each score, computed in `precision`.
    fn positions(&mut self, scores: Tensor, precision: Type) -> Result<[Tensor; 2], String> {
        let mut along = |axis| {
            let operands = Operands { axis: Some(axis), ..Operands::default() };
            self.graph.pointwise((Mode::INDEX, precision), scores, operands, Type::I32)
        };
        Ok([along(2)?, along(3)?])
    }

    fn truth(&mut self, mode: Mode, x: Tensor, b: Tensor) -> Result<Tensor, String> {
        self.graph.pointwise((mode, Type::BOOL), x, b.into(), Type::BOOL)
    }

    fn select(&mut self, scores: Tensor, seen: Tensor, unseen: i64) -> Result<Tensor, String> {
        let operands = Operands { b: Some(self.graph.scalar(unseen)?), t: Some(seen), axis: None };
        self.graph.pointwise((Mode::SELECT, Type::F32), scores, operands, Type::F32)
    }

    fn without_padding(&mut self, scores: Tensor) -> Result<Tensor, String> {
        let [query, key] = self.positions(scores, Type::I32)?;
        let query_is_there = self.truth(Mode::LESS, query, self.q_lengths)?;
        let key_is_there = self.truth(Mode::LESS, key, self.k_lengths)?;
        let both = self.truth(Mode::AND, query_is_there, key_is_there)?;
        self.select(scores, both, id::UNSEEN[0])
    }

    fn without_later(&mut self, scores: Tensor) -> Result<Tensor, String> {
        let [query, key] = self.positions(scores, Type::F32)?;
        let seen = self.truth(Mode::GREATER_OR_EQUAL, query, key)?;
        self.select(scores, seen, id::UNSEEN[1])
    }

    /// `key + window > query`: as many keys as the window says, the query's own among them.
    fn within_window(&mut self, scores: Tensor) -> Result<Tensor, String> {
        let [query, key] = self.positions(scores, Type::F32)?;
        let window = self.graph.scalar(id::WINDOW)?;
        let after_last = self.graph.binary(Mode::ADD, key, window)?;
        let seen = self.truth(Mode::GREATER, after_last, query)?;
        self.select(scores, seen, id::UNSEEN[2])
    }

    fn forward(&mut self) -> Result<(), String> {
        let ([_, hq, hk, ..], of) = (self.sizes(), self.dtype());
        let [scores, ..] = self.scores()?;
        let scores = self.masked(scores)?;
        let greatest = self.each_query()?;
        self.graph.reduce(Reduction::MAX, scores, greatest)?;
        let below = self.graph.binary(Mode::SUB, scores, greatest)?;
        let exp = (Mode::EXP, Type::F32);
        let weights = self.graph.pointwise(exp, below, Operands::default(), Type::F32)?;
        let sum = self.each_query()?;
        self.graph.reduce(Reduction::ADD, weights, sum)?;
        let log = (Mode::LOG, Type::F32);
        let log = self.graph.pointwise(log, sum, Operands::default(), Type::F32)?;
        let lse_starts = self.lse_starts()?;
        let lse = self.by_query(id::LSE, lse_starts)?;
        self.graph.pointwise_into((Mode::ADD, Type::F32), greatest, log.into(), lse)?;
        let probabilities = self.each_pair(of)?;
        let div = (Mode::DIV, Type::F32);
        self.graph.pointwise_into(div, weights, sum.into(), probabilities)?;
        let v_starts = self.starts(id::V_STARTS)?;
        let v = self.graph.tensor(id::V, self.packed(hk), of, v_starts)?;
        let out_starts = self.starts(id::OUT_STARTS)?;
        let out = self.graph.tensor(id::OUT, self.own_rows(hq), of, out_starts)?;
        let lengths = [Some(self.q_lengths), None, Some(self.k_lengths)];
        self.graph.matmul(probabilities, v, out, lengths)
    }

    fn backward(&mut self) -> Result<(), String> {
        let ([_, _, hk, ..], of) = (self.sizes(), self.dtype());
        let lse_starts = self.lse_starts()?;
        let (d_out, delta) = self.delta(lse_starts)?;
        let [scores, q, k] = self.scores()?;
        let lse = self.by_query(id::LSE, lse_starts)?;
        // Log-sum-exps of rows that are not there may be anything: masks come after them.
        let below = self.graph.binary(Mode::SUB, scores, lse)?;
        let below = self.masked(below)?;
        let exp = (Mode::EXP, Type::F32);
        let p = self.graph.pointwise(exp, below, Operands::default(), Type::F32)?;
        let d_v_starts = self.starts(id::D_V_STARTS)?;
        let d_v = self.graph.tensor(id::D_V, self.own_rows(hk), of, d_v_starts)?;
        self.by_keys(p, d_out, (id::V_BY_HEAD, d_v, d_v_starts))?;
        let v_starts = self.starts(id::V_STARTS)?;
        let v = self.graph.tensor(id::V, self.packed(hk).transposed(), of, v_starts)?;
        let d_p = self.each_pair(Type::F32)?;
        self.graph.matmul(d_out, v, d_p, [Some(self.q_lengths), Some(self.k_lengths), None])?;
        let apart = self.graph.binary(Mode::SUB, d_p, delta)?;
        let d_scaled = self.graph.binary(Mode::MUL, apart, p)?;
        let d_scores = self.graph.binary(Mode::MUL, d_scaled, self.scale)?;
        let d_k_starts = self.starts(id::D_K_STARTS)?;
        let d_k = self.graph.tensor(id::D_K, self.own_rows(hk), of, d_k_starts)?;
        self.by_keys(d_scores, q, (id::K_BY_HEAD, d_k, d_k_starts))?;
        self.d_q(d_scores, k)
    }

    /// `d_out`, and `Σ out · d_out` of each query.
    fn delta(&mut self, lse_starts: Option<Tensor>) -> Result<(Tensor, Tensor), String> {
        let ([b, hq, _, s, d], of) = (self.sizes(), self.dtype());
        let out_starts = self.starts(id::OUT_STARTS)?;
        let out = self.graph.tensor(id::OUT, self.own_rows(hq), of, out_starts)?;
        let d_out = self.graph.tensor(id::D_OUT, self.own_rows(hq), of, out_starts)?;
        let layout = Layout { dims: [b, hq, s, d], strides: [hq * s * d, s * d, hq * d, 1] };
        let products = self.graph.between(layout, Type::F32)?;
        self.graph.pointwise_into((Mode::MUL, Type::F32), d_out, out.into(), products)?;
        let sums = self.each_query()?;
        self.graph.reduce(Reduction::ADD, products, sums)?;
        let delta = self.by_query(id::DELTA, lse_starts)?;
        let one = self.graph.scalar(id::ONE)?;
        self.graph.pointwise_into((Mode::MUL, Type::F32), sums, one.into(), delta)?;
        Ok((d_out, delta))
    }

    /// `y = xᵀ rows` for pairs `x`, summed over the query heads of each key head; `id` is where the
    /// summands are kept that have a place of their own.
    fn by_keys(
        &mut self,
        x: Tensor,
        rows: Tensor,
        (id, y, starts): (i64, Tensor, Option<Tensor>),
    ) -> Result<(), String> {
        let ([b, hq, hk, s, d], of) = (self.sizes(), self.dtype());
        let layout = Layout { dims: [b, hq, s, s], strides: [hq * s * s, s * s, 1, s] };
        let turned = self.graph.between(layout, of)?;
        self.graph.reshape(x, turned)?;
        let lengths = [Some(self.k_lengths), None, Some(self.q_lengths)];
        if hq == hk {
            return self.graph.matmul(turned, rows, y, lengths);
        }
        let by_head = match self.key.lse {
            // cuDNN multiplies the starts by the number of query heads of a key head.
            LseLayout::Tokens => self.graph.tensor(id, self.own_rows(hq), of, starts)?,
            LseLayout::Padded => self.graph.between(Layout::dense([b, hq, s, d]), of)?,
        };
        self.graph.matmul(turned, rows, by_head, lengths)?;
        self.graph.reduce(Reduction::ADD, by_head, y)
    }

    /// Gradients of queries, summed in f32 in no fixed order.
    fn d_q(&mut self, d_scores: Tensor, k: Tensor) -> Result<(), String> {
        let ([b, hq, hk, s, d], of) = (self.sizes(), self.dtype());
        let k_starts = self.graph.starts(k);
        let rows = self.packed(hk);
        let k_rows = self.graph.between_sequences(rows, Type::F32, k_starts)?;
        self.graph.reshape(k, k_rows)?;
        let starts = self.starts(id::D_Q_STARTS)?;
        let sums = match self.key.lse {
            LseLayout::Tokens => {
                self.graph.tensor(id::SUMS, self.own_rows(hq), Type::F32, starts)?
            }
            LseLayout::Padded => {
                let layout = Layout::dense([b, hq, s, d]);
                self.graph.tensor(id::SUMS, layout, Type::F32, None)?
            }
        };
        let lengths = [Some(self.q_lengths), None, Some(self.k_lengths)];
        self.graph.matmul(d_scores, k_rows, sums, lengths)?;
        let d_q = self.graph.tensor(id::D_Q, self.own_rows(hq), of, starts)?;
        let same = (Mode::IDENTITY, Type::F32);
        self.graph.pointwise_into(same, sums, Operands::default(), d_q)
    }
}

/// Numbers of the host that a graph reads.
pub(super) struct Scalars {
    scale: f32,
    window: f32,
    unseen: f32,
    one: f32,
}

impl Scalars {
    pub(super) fn of(arrays: &AttentionArrays) -> Self {
        let AttentionArrays { scale, window, .. } = *arrays;
        Self { scale, window, unseen: f32::NEG_INFINITY, one: 1.0 }
    }
}

/// Where each tensor of a key's graph is, with its number; valid as long as `scalars` stay where
/// they are.
pub(super) fn pointers(
    key: &Key,
    arrays: &AttentionArrays,
    scalars: &Scalars,
) -> Vec<(i64, Pointer)> {
    let AttentionShape { num_heads, num_kv_heads, head_dim, dtype, .. } = key.shape;
    let heads = |num: usize| arrays.qkv + (num * head_dim * dtype.size()) as u64;
    let [packed, out, lse, keys] = arrays.starts;
    let host = |number: &f32| (&raw const *number) as u64;
    let mut all = vec![
        (id::Q, heads(0)),
        (id::K, heads(num_heads)),
        (id::V, heads(num_heads + num_kv_heads)),
        (id::OUT, arrays.out),
        (id::LSE, arrays.lse),
        (id::Q_STARTS, packed),
        (id::K_STARTS, packed),
        (id::V_STARTS, packed),
        (id::OUT_STARTS, out),
        (id::Q_LENGTHS, arrays.lengths),
        (id::K_LENGTHS, arrays.lengths),
        (id::SCALE, host(&scalars.scale)),
        (id::UNSEEN[0], host(&scalars.unseen)),
        (id::UNSEEN[1], host(&scalars.unseen)),
    ];
    if key.lse == LseLayout::Tokens {
        all.push((id::LSE_STARTS, lse));
    }
    if key.shape.is_windowed {
        all.push((id::WINDOW, host(&scalars.window)));
        all.push((id::UNSEEN[2], host(&scalars.unseen)));
    }
    if let Some(gradients) = &arrays.gradients {
        let by_head = key.lse == LseLayout::Tokens && num_heads > num_kv_heads;
        all.extend([
            (id::D_OUT, gradients.d_out),
            (id::D_Q, gradients.d_q),
            (id::D_K, gradients.d_k),
            (id::D_V, gradients.d_v),
            (id::DELTA, gradients.delta),
            (id::SUMS, gradients.sums),
            (id::D_Q_STARTS, out),
            (id::D_K_STARTS, keys),
            (id::D_V_STARTS, keys),
            (id::ONE, host(&scalars.one)),
        ]);
        if by_head {
            let [of_keys, of_values] = gradients.by_head;
            all.extend([(id::K_BY_HEAD, of_keys), (id::V_BY_HEAD, of_values)]);
        }
    }
    all.into_iter().map(|(id, address)| (id, Pointer(address))).collect()
}
