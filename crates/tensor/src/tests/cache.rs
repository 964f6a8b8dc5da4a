//! Attention over a cache against attention over the whole sequence.

use super::check_op::{Found, devices, normals, rounded, tensor_of};
use crate::ops::{KvCache, attend_cached, attention};
use crate::{Compute, DType, Device, Heads, Params, Sequence, Tape};
use std::panic::{AssertUnwindSafe, catch_unwind};

const TOKENS: usize = 150;

fn rows(heads: &Heads, dtype: DType, range: std::ops::Range<usize>) -> crate::Tensor {
    let width = heads.qkv_width();
    let values = rounded(&normals(4, TOKENS * width), dtype);
    let values = &values[range.start * width..range.end * width];
    tensor_of(values, dtype, &[range.len(), width])
}

/// What gives activations of that type.
fn compute_in(dtype: DType) -> Compute {
    if dtype == DType::F32 { Compute::F32 } else { Compute::Bf16 }
}

fn whole(device: &Device, heads: &Heads, dtype: DType) -> Vec<f32> {
    let (params, sequences) = (Params::default(), [Sequence::new(0, TOKENS)]);
    let mut tape = Tape::inference(device, &params, compute_in(dtype));
    let qkv = tape.leaf(rows(heads, dtype, 0..TOKENS), false);
    attention(&mut tape, qkv, heads, &sequences).value().view().to_vec_f32()
}

/// The outputs of all pieces, one after another.
fn in_pieces(
    device: &Device,
    heads: &Heads,
    dtype: DType,
    cache: &mut KvCache,
    pieces: &[usize],
) -> Vec<f32> {
    let params = Params::default();
    let mut outputs = Vec::new();
    for &piece in pieces {
        let mut tape = Tape::inference(device, &params, compute_in(dtype));
        let qkv = tape.leaf(rows(heads, dtype, cache.len()..cache.len() + piece), false);
        let y = attend_cached(&mut tape, qkv, heads, cache);
        outputs.extend(Found::new(device, y.value()).values);
    }
    outputs
}

/// Bit by bit: a query walks the keys of its sequence in blocks counted from the first key, and
/// takes from each block only the keys it sees, so that nothing depends on how many follow.
#[test]
fn pieces_of_any_length_give_the_bits_of_the_whole() {
    let grouped = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 10, scale: 0.3, window: None };
    let single = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 7, scale: 1.0, window: None };
    for (heads, dtype) in [(grouped, DType::F32), (grouped, DType::Bf16), (single, DType::F32)] {
        for device in devices() {
            let expected = whole(&device, &heads, dtype);
            let mut cache = KvCache::new(&device, dtype, &heads, TOKENS + 3);
            assert!(cache.is_empty());
            for pieces in [vec![TOKENS], vec![63, 1, 1, 70, 15], vec![1; TOKENS]] {
                let found = in_pieces(&device, &heads, dtype, &mut cache, &pieces);
                assert!(found == expected, "{pieces:?} {}", dtype.name());
                assert_eq!(cache.len(), TOKENS);
                cache.clear();
            }
        }
    }
}

#[test]
fn a_cache_without_room_refuses_and_stays_as_it_was() {
    let heads = Heads { num_heads: 1, num_kv_heads: 1, head_dim: 4, scale: 1.0, window: None };
    for device in [Device::cpu(1), Device::dry()] {
        let mut cache = KvCache::new(&device, DType::F32, &heads, 5);
        let mut append = |piece: usize| {
            let attempt = AssertUnwindSafe(|| {
                in_pieces(&device, &heads, DType::F32, &mut cache, &[piece]);
            });
            (catch_unwind(attempt).is_ok(), cache.len())
        };
        assert_eq!(append(3), (true, 3));
        assert_eq!(append(3), (false, 3));
        assert_eq!(append(2), (true, 5));
        assert_eq!(append(1), (false, 5));
    }
}
