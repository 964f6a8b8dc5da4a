use super::*;
use crate::attention::AttentionBy;
use crate::attention::reference;
use crate::cuda::{Region, Served};
use crate::element::{View, ViewMut, bf16};
use crate::processor::Processor;
use crate::random::Philox;

const HEADS: Heads =
    Heads { num_heads: 4, num_kv_heads: 2, head_dim: 64, scale: 0.125, window: None };

/// The 64-bit numbers in pairs of words.
fn wide(words: &[u32]) -> Vec<u64> {
    words.chunks(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect()
}

#[test]
fn lists_say_where_sequences_are() {
    let sequences = Sequence::packed(&[0, 3, 5, 12]);
    let [packed, out, lse, keys] = row_lens(&HEADS);
    assert_eq!((packed, out, lse, keys), (512, 256, 4, 128));
    assert_eq!(wide(&starts(&sequences, packed, 3)), [0, 3 * 512, 5 * 512, 12 * 512]);
    assert_eq!(lengths(&sequences, 3), [3, 2, 7]);
    // Room for five: two that are empty, after the last.
    assert_eq!(wide(&starts(&sequences, lse, 5)), [0, 12, 20, 48, 48, 48]);
    assert_eq!(lengths(&sequences, 5), [3, 2, 7, 0, 0]);
    // Beyond 32 bits.
    let far = [Sequence::new(0, 1), Sequence::new(1 << 31, 1)];
    assert_eq!(wide(&starts(&far, packed, 2))[1], 1 << 40);
}

#[test]
fn shapes_that_a_library_does_well_at() {
    let of = |cu_seqlens: &[u32], heads: &Heads| {
        shape(Pass::Forward, DType::Bf16, heads, &Sequence::packed(cu_seqlens))
    };
    let one = of(&[0, 300], &HEADS).unwrap();
    assert_eq!((one.num_sequences, one.longest, one.is_windowed), (1, 300, false));
    let windowed = |window| Heads { window: Some(window), ..HEADS };
    assert!(of(&[0, 300], &windowed(299)).unwrap().is_windowed);
    assert!(!of(&[0, 300], &windowed(300)).unwrap().is_windowed);
    assert!(of(&[0, 300, 301], &HEADS).is_some(), "few sequences");
    let many_short: Vec<u32> = (0..64).chain([64 + 4096]).collect();
    assert!(of(&many_short, &HEADS).is_none(), "blocks for tokens that are not there");
    assert!(of(&[0, 127, 254], &HEADS).is_none(), "short ones");
    let cached = Sequence { q_start: 0, q_len: 200, k_start: 0, k_len: 300 };
    assert!(shape(Pass::Forward, DType::Bf16, &HEADS, &[cached]).is_none());
}

#[test]
fn padding_stays_within_bounds() {
    for cu_seqlens in [vec![0, 128], vec![0, 1025], vec![0, 1025, 1030], vec![0, 200, 400]] {
        let sequences = Sequence::packed(&cu_seqlens);
        let shape = shape(Pass::Forward, DType::F16, &HEADS, &sequences).unwrap();
        let rows =
            shape.num_sequences.next_power_of_two().max(8) * shape.longest.next_power_of_two();
        let num_tokens = *cu_seqlens.last().unwrap() as usize;
        assert!(rows <= most_padded(num_tokens));
    }
}

/// Rows of a GPU's memory, of which each element is given.
fn region(gpu: &Gpu, values: &[f64]) -> Region {
    let bytes: Vec<u8> =
        values.iter().flat_map(|&x| bf16::from_f32(x as f32).to_le_bytes()).collect();
    let region = Region::new(gpu, bytes.len());
    region.write(0, &bytes);
    region
}

fn numbers(region: &Region) -> Vec<f64> {
    let mut bytes = vec![0; region.len()];
    region.read(0, &mut bytes);
    let number = |b: &[u8]| f64::from(bf16::from_le_bytes([b[0], b[1]]).to_f32());
    bytes.chunks_exact(2).map(number).collect()
}

/// Numbers that bf16 has.
fn random(len: usize, stream: u64) -> Vec<f64> {
    let random = Philox::new(8, stream);
    let number = |i| f64::from(bf16::from_f32(random.normal(i)).to_f32());
    (0..len as u64).map(number).collect()
}

/// Everything around a library, with one that is plain loops: forward and backward passes over
/// sequences in both layouts of log-sum-exps, with a window, empty ones, and rows of none.
#[test]
fn a_library_serves_both_passes() {
    let heads = Heads { head_dim: 8, window: Some(90), ..HEADS };
    let (sequences, t) = (Sequence::packed(&[0, 130, 130, 280]), 283);
    for lse_layout in [LseLayout::Tokens, LseLayout::Padded] {
        let Some((gpu, calls)) = Served::gpu(lse_layout) else { return };
        gpu.set_attention(AttentionBy::Library);
        let on = Processor::Cuda(gpu.clone());
        let (qkv, d_out) = (random(t * heads.qkv_width(), 1), random(t * heads.out_width(), 2));
        let exact = reference::forward(&qkv, &heads, &sequences);
        let d_exact = reference::backward(&qkv, &heads, &sequences, &d_out);
        let (qkv, d_out) = (region(&gpu, &qkv), region(&gpu, &d_out));
        let stale = |width: usize| region(&gpu, &vec![f64::NAN; t * width]);
        let (out, d_qkv) = (stale(heads.out_width()), stale(heads.qkv_width()));
        let [lse, delta] = [(); 2].map(|()| Region::new(&gpu, 4 * t * heads.num_heads));
        let slice = |region| Region::slice(region, 0, DType::Bf16, (region.len() / 2, 1));
        let floats = |region| Region::slice(region, 0, DType::F32, (region.len() / 4, 1));
        let pass = || {
            on.begin();
            let inputs = Inputs::packed(View::Cuda(slice(&qkv)), &heads);
            let (o, l) = (ViewMut::Cuda(slice(&out)), ViewMut::Cuda(floats(&lse)));
            on.attention(inputs, &heads, &sequences, o, l);
        };
        pass();
        assert_eq!(calls.lock().unwrap().len(), 1, "the library was asked");
        on.begin();
        let saved = (View::Cuda(slice(&out)), View::Cuda(floats(&lse)));
        let (d, w) = (ViewMut::Cuda(slice(&d_qkv)), ViewMut::Cuda(floats(&delta)));
        let d_out = View::Cuda(slice(&d_out));
        on.attention_backward(View::Cuda(slice(&qkv)), &heads, &sequences, saved, d_out, d, w);
        assert_eq!(calls.lock().unwrap().len(), 2, "the library was asked");
        for (found, exact) in [(numbers(&out), exact), (numbers(&d_qkv), d_exact)] {
            let near = |(x, y): (&f64, &f64)| (x - y).abs() < 2e-2 + 2e-2 * y.abs();
            assert!(found.iter().zip(&exact).all(near), "{lse_layout:?}");
        }
        let theirs = gpu.download(floats(&lse).address(), t * heads.num_heads);
        gpu.set_attention(AttentionBy::Own);
        pass();
        assert_eq!(calls.lock().unwrap().len(), 2, "our own kernels were asked");
        let ours = gpu.download(floats(&lse).address(), t * heads.num_heads);
        assert!(ours.iter().zip(&theirs).all(|(x, y)| (x - y).abs() < 1e-4), "{lse_layout:?}");
    }
}
