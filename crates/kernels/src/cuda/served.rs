//! An emulated GPU with a library for attention, which is plain loops over what it is told: a test
//! of everything around such a library.

use super::driver::*;
use super::emulator::Emulator;
use super::{Arc, Arg, Gpu, Mutex, Source};
use crate::element::bf16;

/// What the library was asked for.
pub(crate) type Calls = Arc<Mutex<Vec<AttentionShape>>>;

pub(crate) struct Served {
    emulator: Emulator,
    lse: LseLayout,
    calls: Calls,
}

impl Served {
    /// With a library that has log-sum-exps so; `None` without a C++ compiler.
    pub(crate) fn gpu(lse: LseLayout) -> Option<(Gpu, Calls)> {
        let (emulator, calls) = (Emulator::new()?, Calls::default());
        let served = Self { emulator, lse, calls: Arc::clone(&calls) };
        Some((Gpu::of(Box::new(served)), calls))
    }
}

/// The number at `index` of an array.
fn get<T: Copy>(array: Address, index: usize) -> T {
    // SAFETY: the tests give arrays that are long enough.
    unsafe { *(array as *const T).add(index) }
}

fn put<T>(array: Address, index: usize, value: T) {
    // SAFETY: the tests give arrays that are long enough.
    unsafe { (array as *mut T).add(index).write(value) };
}

/// Rows of heads of one sequence.
#[derive(Clone, Copy)]
struct Rows {
    array: Address,
    first: usize,
    stride: usize,
    d: usize,
}

impl Rows {
    fn row(self, i: usize, head: usize) -> Vec<f32> {
        let at = self.first + i * self.stride + head * self.d;
        (0..self.d).map(|c| get::<bf16>(self.array, at + c).to_f32()).collect()
    }

    fn put(self, i: usize, head: usize, row: &[f32]) {
        let at = self.first + i * self.stride + head * self.d;
        row.iter().enumerate().for_each(|(c, &x)| put(self.array, at + c, bf16::from_f32(x)));
    }
}

fn dot(x: &[f32], y: &[f32]) -> f32 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add(to: &mut [f32], factor: f32, x: &[f32]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

/// One sequence of a plan.
struct Sequence {
    len: usize,
    group: usize,
    num_heads: usize,
    num_kv_heads: usize,
    window: usize,
    scale: f32,
    q: Rows,
    k: Rows,
    v: Rows,
    out: Rows,
}

impl Sequence {
    fn new(s: usize, shape: &AttentionShape, arrays: &AttentionArrays) -> Self {
        let AttentionShape { num_heads, num_kv_heads, head_dim: d, is_windowed, .. } = *shape;
        let start = |of: usize| get::<i64>(arrays.starts[of], s) as usize;
        let packed = |head: usize| {
            let stride = (num_heads + 2 * num_kv_heads) * d;
            Rows { array: arrays.qkv, first: start(0) + head * d, stride, d }
        };
        Self {
            len: get::<i32>(arrays.lengths, s) as usize,
            group: num_heads / num_kv_heads,
            num_heads,
            num_kv_heads,
            window: if is_windowed { arrays.window as usize } else { usize::MAX },
            scale: arrays.scale,
            q: packed(0),
            k: packed(num_heads),
            v: packed(num_heads + num_kv_heads),
            out: Rows { array: arrays.out, first: start(1), stride: num_heads * d, d },
        }
    }

    /// Keys that a query sees, with their scores.
    fn scores(&self, i: usize, head: usize) -> Vec<(usize, f32)> {
        let q = self.q.row(i, head);
        let seen = (0..self.len).filter(|&j| j <= i && i - j < self.window);
        let score = |j| (j, dot(&q, &self.k.row(j, head / self.group)) * self.scale);
        seen.map(score).collect()
    }

    /// The output of a query, and its log-sum-exp.
    fn attend(&self, i: usize, head: usize) -> f32 {
        let scores = self.scores(i, head);
        let lse = scores.iter().map(|(_, score)| score.exp()).sum::<f32>().ln();
        let mut out = vec![0.0; self.out.d];
        for (j, score) in scores {
            add(&mut out, (score - lse).exp(), &self.v.row(j, head / self.group));
        }
        self.out.put(i, head, &out);
        lse
    }

    /// Gradients of a head of keys and values and of the queries that read it.
    fn differentiate(
        &self,
        kv_head: usize,
        d_out: Rows,
        [d_q, d_k, d_v]: [Rows; 3],
        lse: impl Fn(usize, usize) -> f32,
    ) {
        let zeros = || vec![vec![0.0; self.q.d]; self.len];
        let (mut of_k, mut of_v) = (zeros(), zeros());
        for head in kv_head * self.group..(kv_head + 1) * self.group {
            for i in 0..self.len {
                let (q, d, mut of_q) =
                    (self.q.row(i, head), d_out.row(i, head), vec![0.0; self.q.d]);
                let delta = dot(&d, &self.out.row(i, head));
                for (j, score) in self.scores(i, head) {
                    let p = (score - lse(i, head)).exp();
                    let d_score = p * (dot(&d, &self.v.row(j, kv_head)) - delta) * self.scale;
                    add(&mut of_v[j], p, &d);
                    add(&mut of_k[j], d_score, &q);
                    add(&mut of_q, d_score, &self.k.row(j, kv_head));
                }
                d_q.put(i, head, &of_q);
            }
        }
        for j in 0..self.len {
            d_k.put(j, kv_head, &of_k[j]);
            d_v.put(j, kv_head, &of_v[j]);
        }
    }
}

impl Driver for Served {
    /// With room for one sequence more than there are, but where that takes memory.
    fn attention_plan(&self, shape: &AttentionShape) -> Option<AttentionPlan> {
        Some(AttentionPlan {
            num_sequences: shape.num_sequences + usize::from(self.lse == LseLayout::Tokens),
            longest: shape.longest.next_multiple_of(16),
            lse: self.lse,
            workspace_bytes: 1,
        })
    }

    fn attention(&self, shape: &AttentionShape, arrays: &AttentionArrays) {
        self.calls.lock().unwrap().push(*shape);
        let plan = self.attention_plan(shape).unwrap();
        for s in 0..plan.num_sequences {
            let sequence = Sequence::new(s, shape, arrays);
            let lse_at = |i: usize, head: usize| match self.lse {
                LseLayout::Padded => (s * shape.num_heads + head) * plan.longest + i,
                LseLayout::Tokens => {
                    get::<i64>(arrays.starts[2], s) as usize + i * shape.num_heads + head
                }
            };
            let Some(gradients) = arrays.gradients else {
                for (i, head) in (0..sequence.len)
                    .flat_map(|i| (0..sequence.num_heads).map(move |head| (i, head)))
                {
                    put(arrays.lse, lse_at(i, head), sequence.attend(i, head));
                }
                continue;
            };
            let rows = |array, starts: usize, heads| {
                let (first, d) = (get::<i64>(arrays.starts[starts], s) as usize, shape.head_dim);
                Rows { array, first, stride: heads * d, d }
            };
            let AttentionGradients { d_out, d_q, d_k, d_v, .. } = gradients;
            let [d_out, d_q] = [d_out, d_q].map(|array| rows(array, 1, shape.num_heads));
            let [d_k, d_v] = [d_k, d_v].map(|array| rows(array, 3, shape.num_kv_heads));
            let lse = |i, head| get::<f32>(arrays.lse, lse_at(i, head));
            for kv_head in 0..sequence.num_kv_heads {
                sequence.differentiate(kv_head, d_out, [d_q, d_k, d_v], lse);
            }
        }
    }

    fn info(&self) -> &Info {
        self.emulator.info()
    }
    fn free_bytes(&self) -> u64 {
        self.emulator.free_bytes()
    }
    fn alloc(&self, bytes: usize) -> Option<Address> {
        self.emulator.alloc(bytes)
    }
    fn free(&self, address: Address) {
        self.emulator.free(address);
    }
    fn write(&self, address: Address, bytes: &[u8]) {
        self.emulator.write(address, bytes);
    }
    fn read(&self, address: Address, bytes: &mut [u8]) {
        self.emulator.read(address, bytes);
    }
    fn fill(&self, address: Address, byte: u8, bytes: usize) {
        self.emulator.fill(address, byte, bytes);
    }
    fn launch(&self, source: &'static Source, kernel: usize, at: Launch, args: &[Arg]) {
        self.emulator.launch(source, kernel, at, args);
    }
    fn matmul(&self, matmul: &Matmul) {
        self.emulator.matmul(matmul);
    }
    fn alloc_host(&self, bytes: usize) -> Option<HostAddress> {
        self.emulator.alloc_host(bytes)
    }
    fn free_host(&self, address: HostAddress) {
        self.emulator.free_host(address);
    }
    fn prefetch(&self, to: Address, from: HostAddress, bytes: usize) {
        self.emulator.prefetch(to, from, bytes);
    }
    fn await_prefetches(&self) {
        self.emulator.await_prefetches();
    }
    fn synchronize(&self) {
        self.emulator.synchronize();
    }
}
