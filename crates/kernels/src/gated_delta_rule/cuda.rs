//! Launches: blocks of a state's columns walk along a sequence; in the backward pass, chunks are
//! computed side by side once the states at their borders are known.

use super::{CHUNK, DeltaHeads, Inputs, Kept, Saved, State, check_slots};
use crate::attention::{Sequence, used_rows};
use crate::cuda::{Arg, Gpu, Launch, Slice, Source, args};
use crate::element::Address;

pub(crate) static SOURCE: Source = Source {
    name: "gated_delta_rule",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "delta_forward<float>",
        "delta_forward<bf16>",
        "delta_forward<f16>",
        "delta_states<float>",
        "delta_states<bf16>",
        "delta_states<f16>",
        "delta_backward_states<float>",
        "delta_backward_states<bf16>",
        "delta_backward_states<f16>",
        "delta_backward_chunk<float>",
        "delta_backward_chunk<bf16>",
        "delta_backward_chunk<f16>",
        "delta_backward_keys<float>",
        "delta_backward_keys<bf16>",
        "delta_backward_keys<f16>",
    ],
};

/// Threads of a block, and columns of a state that they hold.
const THREADS: u32 = 128;
const COLUMNS: usize = 32;

/// Threads of a block for a chunk, and bytes that they share: see `Shared` in the source.
const CHUNK_THREADS: u32 = 256;
const CHUNK_SHARED_BYTES: usize =
    8 * CHUNK + 4 * (10 * CHUNK + 2 * 16 * (CHUNK + 1) + 3 * CHUNK * (CHUNK + 1));

/// Largest dimension of keys on a GPU.
pub const MAX_KEY_DIM: usize = 128;

/// States at borders of chunks, however `t` rows are cut into sequences.
fn num_borders(t: usize) -> usize {
    t / CHUNK
}

/// Elements (f32) of workspace of the backward pass: states and their gradients at borders of
/// chunks, gradients of what tokens add, and of queries and keys for each value head.
pub(super) fn workspace_len(heads: &DeltaHeads, t: usize) -> usize {
    2 * num_borders(t) * heads.state_len()
        + t * (heads.out_width() + 2 * heads.num_value_heads * heads.key_dim)
}

/// `Heads` in CUDA.
fn heads_arg(heads: &DeltaHeads) -> Arg {
    assert!(heads.key_dim <= MAX_KEY_DIM, "keys of {} dimensions", heads.key_dim);
    let DeltaHeads { num_key_heads, num_value_heads, key_dim, value_dim } = *heads;
    let pair = |low: usize, high: usize| low as u64 | (high as u64) << 32;
    Arg::pair(pair(num_key_heads, num_value_heads), pair(key_dim, value_dim))
}

/// Sequences on the GPU, of a number that many passes share: surplus ones are empty.
struct Sequences {
    address: Address,
    num: usize,
}

impl Sequences {
    /// The last field of each is its slot.
    fn new(gpu: &Gpu, sequences: &[Sequence], slots: &[u32]) -> Self {
        let fields = |(s, &slot): (&Sequence, &u32)| {
            [s.q_start as u32, s.q_len as u32, (s.k_len - s.q_len) as u32, slot]
        };
        let mut words: Vec<[u32; 4]> = sequences.iter().zip(slots).map(fields).collect();
        let num = sequences.len().next_power_of_two();
        words.resize(num, [0; 4]);
        Self { address: gpu.upload(words.as_flattened()), num }
    }

    /// Blocks of columns of each value head of each sequence.
    fn launch(&self, heads: &DeltaHeads) -> Launch {
        let columns = heads.value_dim.div_ceil(COLUMNS) as u32;
        let grid = [columns, heads.num_value_heads as u32, self.num as u32];
        Launch { grid, threads: THREADS, shared_bytes: 0 }
    }
}

pub(super) fn forward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    heads: &DeltaHeads,
    sequences: &[Sequence],
    (kept, state): (Option<Kept<'_>>, Option<State<'_>>),
    out: Slice<'_>,
) {
    check_slots(sequences, state.as_ref().map(|state| state.slots));
    let (qkv, gates) = (inputs.qkv.cuda(), inputs.gates.cuda().f32());
    check(heads, (qkv, gates), out);
    if used_rows(sequences) * heads.out_width() < out.len() {
        gpu.zero(out);
    }
    let no_slots = vec![0; sequences.len()];
    let slots = state.as_ref().map_or(&no_slots[..], |state| state.slots);
    let on_gpu = Sequences::new(gpu, sequences, slots);
    let states = state.map_or(0, |state| state.states.cuda().f32().address());
    let written = kept.map(|kept| kept.written.cuda());
    assert!(written.is_none_or(|x| x.len() == out.len() && x.dtype() == out.dtype()));
    let written = written.map_or(0, |written| written.address());
    let of_type = |name: &str| format!("{name}<{}>", qkv.type_name());
    let args = args![qkv, gates, heads_arg(heads), on_gpu.address, states, written, out];
    gpu.launch(&SOURCE, &of_type("delta_forward"), on_gpu.launch(heads), args);
}

pub(super) fn backward(
    gpu: &Gpu,
    (inputs, saved): (Inputs<'_>, Saved<'_>),
    heads: &DeltaHeads,
    sequences: &[Sequence],
    d_out: Slice<'_>,
    (d_qkv, d_gates): (Slice<'_>, Slice<'_>),
    workspace: Slice<'_>,
) {
    check_slots(sequences, None);
    let (qkv, gates) = (inputs.qkv.cuda(), inputs.gates.cuda().f32());
    let (written, t) = (saved.written.cuda(), qkv.len() / heads.qkv_width());
    check(heads, (qkv, gates), d_out);
    assert!(written.len() == d_out.len() && written.dtype() == qkv.dtype());
    assert!(d_qkv.len() == qkv.len() && d_qkv.dtype() == qkv.dtype());
    assert!(d_gates.len() == gates.len() && workspace.len() >= workspace_len(heads, t));
    let used = used_rows(sequences);
    if used < t {
        gpu.zero(d_qkv);
        gpu.zero(d_gates);
    }
    let mut first = 0;
    let mut part = |len: usize| {
        let part = workspace.part(first, len);
        first += len;
        part
    };
    let borders = part(num_borders(t) * heads.state_len());
    let d_borders = part(borders.len());
    let d_r = part(t * heads.out_width());
    let d_q = part(t * heads.num_value_heads * heads.key_dim);
    let d_k = part(d_q.len());

    let of_type = |name: &str| format!("{name}<{}>", qkv.type_name());
    let (first_borders, chunks) = chunks(sequences, t);
    let on_gpu = Sequences::new(gpu, sequences, &first_borders);
    let (list, heads_arg) = (on_gpu.address, heads_arg(heads));
    let args = args![qkv, gates, heads_arg, list, written, borders];
    gpu.launch(&SOURCE, &of_type("delta_states"), on_gpu.launch(heads), args);
    let args = args![qkv, gates, heads_arg, list, d_out, d_borders, d_r, d_qkv];
    gpu.launch(&SOURCE, &of_type("delta_backward_states"), on_gpu.launch(heads), args);

    let grid = [chunks.len() as u32, heads.num_value_heads as u32, 1];
    let shared_bytes = CHUNK_SHARED_BYTES as u32;
    let at = Launch { grid, threads: CHUNK_THREADS, shared_bytes };
    let list = gpu.upload(chunks.as_flattened());
    let args = args![
        qkv, gates, heads_arg, list, written, d_out, d_r, borders, d_borders, d_gates, d_q, d_k
    ];
    gpu.launch(&SOURCE, &of_type("delta_backward_chunk"), at, args);
    let warps = THREADS as usize / 32;
    let grid = [t as u32, (2 * heads.num_key_heads).div_ceil(warps) as u32, 1];
    let at = Launch { grid, threads: THREADS, shared_bytes: 0 };
    // Not an argument, so that one graph serves batches with other padding.
    let used = gpu.upload(&[used as u32]);
    let args = args![qkv, heads_arg, used, d_q, d_k, d_qkv];
    gpu.launch(&SOURCE, &of_type("delta_backward_keys"), at, args);
}

/// The number of the first border of each sequence, and all chunks as `DeltaChunk` in CUDA: as many
/// whatever the sequences, so that one graph serves many batches.
fn chunks(sequences: &[Sequence], t: usize) -> (Vec<u32>, Vec<[u32; 4]>) {
    let (mut first_borders, mut chunks, mut border) = (Vec::new(), Vec::new(), 0);
    for s in sequences {
        first_borders.push(border);
        let mut before = u32::MAX;
        for first in (0..s.q_len).step_by(CHUNK) {
            let len = CHUNK.min(s.q_len - first);
            let after = if first + len < s.q_len { border } else { u32::MAX };
            border += u32::from(after != u32::MAX);
            chunks.push([(s.q_start + first) as u32, len as u32, before, after]);
            before = after;
        }
    }
    let num = t.div_ceil(CHUNK) + sequences.len().next_power_of_two() - 1;
    assert!(chunks.len() <= num);
    chunks.resize(num, [0; 4]);
    (first_borders, chunks)
}

fn check(heads: &DeltaHeads, (qkv, gates): (Slice<'_>, Slice<'_>), out: Slice<'_>) {
    let t = out.len() / heads.out_width();
    assert!(qkv.len() == t * heads.qkv_width() && qkv.dtype() == out.dtype());
    assert!(gates.len() == t * 2 * heads.num_value_heads);
}
