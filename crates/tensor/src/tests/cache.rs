//! Attention over pages of keys and values against attention over whole sequences.

use super::check_op::{Found, devices, normals, rounded, tensor_of};
use crate::ops::{KvPages, PAGE_ROWS, PagedRows, attend_paged, attention_with_sinks};
use crate::{Category, Compute, DType, Device, Heads, Params, Sequence, Tape, Tensor, Weight};
use hone_kernels::cuda::Gpu;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Lengths of the sequences: less than a page, a page, and more.
const LENGTHS: [usize; 3] = [40, PAGE_ROWS, 150];

/// Rows `range` of sequence `i`.
fn rows(heads: &Heads, dtype: DType, i: usize, range: std::ops::Range<usize>) -> Vec<f32> {
    let width = heads.qkv_width();
    let values = rounded(&normals(4 + i as u64, LENGTHS[i] * width), dtype);
    values[range.start * width..range.end * width].to_vec()
}

/// What gives activations of that type.
fn compute_in(dtype: DType) -> Compute {
    if dtype == DType::F32 { Compute::F32 } else { Compute::Bf16 }
}

fn whole(device: &Device, heads: &Heads, dtype: DType, i: usize) -> Vec<f32> {
    let (params, sequences) = (Params::default(), [Sequence::new(0, LENGTHS[i])]);
    let sinks = sinks(device, heads);
    let mut tape = Tape::inference(device, &params, compute_in(dtype));
    let qkv = qkv_of(device, heads, dtype, rows(heads, dtype, i, 0..LENGTHS[i]));
    let qkv = tape.leaf(qkv, false);
    let out = attention_with_sinks(&mut tape, qkv, heads, sinks.as_ref(), &sequences);
    out.value().to_vec_f32()
}

/// Heads with a window have sinks, too.
fn sinks(device: &Device, heads: &Heads) -> Option<Weight> {
    heads.window?;
    let values = tensor_of(&normals(3, heads.num_heads), DType::F32, &[heads.num_heads]);
    Some(Weight::Frozen(device.upload(Category::Weights, &values).unwrap()))
}

fn qkv_of(device: &Device, heads: &Heads, dtype: DType, values: Vec<f32>) -> Tensor {
    let width = heads.qkv_width();
    let values = tensor_of(&values, dtype, &[values.len() / width, width]);
    device.upload(Category::Activations, &values).unwrap()
}

/// One pass over the next `pieces[i]` rows of each sequence, of which `done` say how many went
/// before, and two rows of padding: the outputs of each.
fn pass(
    device: &Device,
    (heads, dtype): (&Heads, DType),
    cache: &mut KvPages,
    (tables, done): (&[Vec<u32>], &[usize]),
    pieces: &[usize],
) -> Vec<Vec<f32>> {
    let (mut paged, mut values) = (PagedRows::default(), Vec::new());
    for (i, &piece) in pieces.iter().enumerate().filter(|(_, piece)| **piece > 0) {
        values.extend(rows(heads, dtype, i, done[i]..done[i] + piece));
        paged.push(&tables[i], done[i], piece);
    }
    values.extend(vec![0.5; 2 * heads.qkv_width()]);
    let params = Params::default();
    let mut tape = Tape::inference(device, &params, compute_in(dtype));
    let qkv = tape.leaf(qkv_of(device, heads, dtype, values), false);
    let sinks = sinks(device, heads);
    let y = attend_paged(&mut tape, qkv, heads, sinks.as_ref(), &paged, cache);
    let mut found = Found::new(device, y.value()).values;
    let outputs = pieces.iter().map(|piece| found.drain(..piece * heads.out_width()).collect());
    let outputs = outputs.collect();
    assert!(found.iter().all(|&x| x == 0.0), "padding gives zeros");
    outputs
}

/// Bit by bit: a query loops over its sequence's keys in blocks aligned to the first key, and uses
/// only the visible keys of each, so that its result depends neither on later keys, nor on their
/// pages, nor on other sequences of the pass.
#[test]
fn pieces_in_pages_give_the_bits_of_the_whole() {
    let grouped = Heads {
        num_heads: 4,
        num_kv_heads: 2,
        head_dim: 10,
        scale: 0.3,
        window: None,
        ahead: 0,
        softcap: None,
    };
    let single = Heads {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 7,
        scale: 1.0,
        window: None,
        ahead: 0,
        softcap: None,
    };
    let windowed = Heads { window: Some(37), ..grouped };
    let cases = [
        (grouped, DType::F32),
        (grouped, DType::Bf16),
        (single, DType::F32),
        (windowed, DType::F32),
        (windowed, DType::Bf16),
    ];
    let devices: Vec<Device> =
        devices().into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect();
    for ((heads, dtype), device) in cases.iter().flat_map(|c| devices.iter().map(move |d| (*c, d)))
    {
        let expected: Vec<_> = (0..3).map(|i| whole(device, &heads, dtype, i)).collect();
        let mut cache = KvPages::new(device, dtype, &heads, 3).unwrap();
        // The last sequence's second page is made in the middle of it.
        let tables = [vec![1], vec![2], vec![0, 4]];
        let steps = [[40, 0, 63], [0, 95, 1], [0, 1, 1], [0, 0, 70], [0, 0, 15]];
        let (mut done, mut found) = ([0; 3], vec![Vec::<f32>::new(); 3]);
        for (step, pieces) in steps.iter().enumerate() {
            if step == 3 {
                cache.grow(device, 5).unwrap();
            }
            let tables: Vec<Vec<u32>> =
                tables.iter().map(|t| t[..t.len().min(1 + step / 3)].to_vec()).collect();
            let of = (&tables[..], &done[..]);
            let outputs = pass(device, (&heads, dtype), &mut cache, of, pieces);
            for i in 0..3 {
                found[i].extend(&outputs[i]);
                done[i] += pieces[i];
            }
        }
        assert!(found == expected, "{heads:?} {}", dtype.name());
    }
}

#[test]
fn rows_without_a_page_are_refused() {
    let heads = Heads {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 4,
        scale: 1.0,
        window: None,
        ahead: 0,
        softcap: None,
    };
    let attempt = |table: Vec<u32>, rows: usize| {
        let device = Device::dry();
        let mut cache = KvPages::new(&device, DType::F32, &heads, 1).unwrap();
        let attempt = AssertUnwindSafe(|| {
            let mut paged = PagedRows::default();
            paged.push(&table, 0, rows);
            let params = Params::default();
            let mut tape = Tape::inference(&device, &params, Compute::F32);
            let qkv = device.alloc(Category::Activations, DType::F32, &[rows, 12]);
            let qkv = tape.leaf(qkv, false);
            attend_paged(&mut tape, qkv, &heads, None, &paged, &mut cache);
        });
        catch_unwind(attempt).is_ok()
    };
    assert!(attempt(vec![0], PAGE_ROWS));
    assert!(!attempt(vec![0], PAGE_ROWS + 1));
    assert!(!attempt(vec![1], 1));
}
