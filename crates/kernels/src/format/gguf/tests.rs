use super::*;
use crate::format::tests::{PackedMatrix, check_on_gpu};

/// Against the `gguf` package (`blocks.py`), to the bit: the whole, and from and to any weight.
#[test]
fn blocks_unpack_as_the_gguf_package_does() {
    let golden = include_bytes!("blocks.golden");
    let mut at = 0;
    let formats = [
        &Q8_0, &Q6_K, &Q5_K, &Q5_0, &Q4_K, &Q4_1, &Q4_0, &MXFP4, &Q5_1, &Q3_K, &Q2_K, &IQ4_XS,
        &IQ4_NL,
    ];
    for format in formats {
        let cols = if format.block == GROUP { 4 * GROUP } else { 2 * format.block };
        let storage = Storage::Packed(format);
        let len = storage.checked_num_bytes(&[2, cols]).unwrap();
        let held = PackedMatrix::of_bytes(format, &golden[at..at + len], [2, cols]);
        let values = &golden[at + len..][..4 * 2 * cols];
        at += len + values.len();
        let expected: Vec<u32> =
            values.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
        let floats: Vec<f32> = expected.iter().map(|&bits| f32::from_bits(bits)).collect();
        check_on_gpu(&held, &floats);
        let packed = held.view().packed();
        for row in 0..2 {
            for (first, end) in [(0, cols), (1, 31), (5, 40), (31, cols - 1), (64, 65), (9, 9)] {
                let mut out = vec![f32::NAN; end - first];
                packed.unpack(row * cols + first, &mut out);
                let found: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                let expected = &expected[row * cols + first..row * cols + end];
                assert!(found == expected, "{format:?}, row {row}, {first}..{end}");
            }
        }
    }
    assert_eq!(at, golden.len());
}

/// Every byte of whatever floats, on any number of threads.
#[test]
fn blocks_are_packed_as_the_gguf_package_does() {
    let golden = include_bytes!("packed.golden");
    let (cols, len) = (8 * GROUP, 2 * 8 * GROUP);
    let (weights, mut packed) = golden.split_at(4 * len);
    let weights: Vec<f32> =
        weights.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    for format in [&Q8_0, &Q5_1, &Q5_0, &Q4_1, &Q4_0, &MXFP4] {
        let (expected, rest) = packed.split_at((format.num_bytes)([2, cols]));
        packed = rest;
        for isa in Isa::available() {
            let mut found = vec![0; expected.len()];
            let pack = format.pack.expect("a format that packs");
            pack(&Cpu::with_isa(2, isa), Floats::F32(&weights), cols, &mut found);
            let block = expected.len() / 16;
            let differs =
                (0..16).find(|i| found[i * block..][..block] != expected[i * block..][..block]);
            assert_eq!(differs, None, "{format:?}, block, {isa:?}");
        }
    }
    assert!(packed.is_empty());
}

#[test]
fn types_of_files_are_known_by_number_and_name() {
    for (id, name) in [(0, "f32"), (1, "f16"), (30, "bf16"), (8, "q8_0"), (12, "q4_k")] {
        assert_eq!(Storage::from_ggml(id).map(Storage::name), Ok(name));
    }
    for (_, name, storage) in TYPES {
        let Some(storage) = storage else { continue };
        assert_eq!(storage.name(), name.to_lowercase());
    }
    let message = |id| Storage::from_ggml(id).unwrap_err().to_string();
    let readable = "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, \
                    IQ4_NL, IQ4_XS, BF16, MXFP4";
    assert_eq!(message(16), format!("type 16 (IQ2_XXS) is not read; those that are: {readable}"));
    assert!(message(43).starts_with("type 43 (unknown) is not read"));
}

/// What is packed by a search has less error than by plain rounding, whatever counts, and the same
/// bytes on every instruction set.
#[test]
fn searches_find_less_error() {
    let (rows, cols) = (3, 512);
    let weights = crate::format::tests::random(rows * cols, 5);
    let uneven: Vec<f32> = (0..cols).map(|i| 0.01 + (i * i % 97) as f32 / 20.0).collect();
    for format in crate::format::FORMATS.into_iter().filter(|format| format.search.is_some()) {
        let search = format.search.unwrap();
        let packed = |isa, importance: &[f32]| {
            let mut bytes = vec![0; (format.num_bytes)([rows, cols])];
            let cpu = Cpu::with_isa(2, isa);
            search(&cpu, Floats::F32(&weights), cols, importance, &mut bytes);
            bytes
        };
        let error = |bytes: &[u8], importance: &[f32]| {
            let held = PackedMatrix::of_bytes(format, bytes, [rows, cols]).to_vec_f32();
            let off = weights.iter().zip(&held).map(|(x, y)| f64::from((x - y) * (x - y)));
            off.enumerate().map(|(i, e)| e * f64::from(importance[i % cols])).sum::<f64>()
        };
        let ones = vec![1.0; cols];
        let even = packed(Isa::detect(), &[]);
        let minded = packed(Isa::detect(), &uneven);
        for isa in Isa::available() {
            assert!(packed(isa, &uneven) == minded, "{format:?} {isa:?}");
        }
        assert!(packed(Isa::detect(), &ones) == even, "{format:?}");
        assert!(error(&minded, &uneven) < error(&even, &uneven), "{format:?}");
        assert!(error(&even, &ones) < error(&minded, &ones), "{format:?}");
        if let Some(pack) = format.pack {
            let mut plain = vec![0; even.len()];
            pack(&Cpu::new(1), Floats::F32(&weights), cols, &mut plain);
            assert!(error(&even, &ones) <= error(&plain, &ones), "{format:?}");
        }
        // No worse than one in so many of the weights' squares.
        let squares: f64 = weights.iter().map(|x| f64::from(x * x)).sum();
        let bound = match format.name {
            "q6_k" => 0.0006,
            "q5_k" | "q5_1" | "q5_0" => 0.003,
            "q4_k" | "q4_1" | "q4_0" | "iq4_xs" | "iq4_nl" => 0.009,
            "q3_k" => 0.04,
            "q2_k" => 0.12,
            name => panic!("{name}"),
        };
        let relative = error(&even, &ones) / squares;
        assert!(relative < bound, "{format:?}: {relative}");
    }
}

/// Nothing, one number, a single large one, and numbers of one sign.
#[test]
fn searches_take_any_weights() {
    let cols = 256;
    for format in crate::format::FORMATS.into_iter().filter(|format| format.search.is_some()) {
        let search = format.search.unwrap();
        let alone: Vec<f32> = (0..cols).map(|i| if i == 77 { 3.0 } else { 0.0 }).collect();
        let above: Vec<f32> = (0..cols).map(|i| 1.0 + i as f32 / 256.0).collect();
        let below: Vec<f32> = above.iter().map(|x| -x).collect();
        let tiny = vec![1e-30; cols];
        for (weights, most) in [
            (vec![0.0; cols], 0.0),
            (vec![0.5; cols], 0.02),
            (alone, 0.2),
            (above, 0.3),
            (below, 0.3),
            (tiny, 1e-20),
        ] {
            let mut bytes = vec![0; (format.num_bytes)([1, cols])];
            search(&Cpu::new(1), Floats::F32(&weights), cols, &[], &mut bytes);
            let held = PackedMatrix::of_bytes(format, &bytes, [1, cols]).to_vec_f32();
            for (x, y) in weights.iter().zip(&held) {
                assert!((x - y).abs() <= most, "{format:?}: {x} {y}");
            }
        }
    }
}

/// What is less than half of what levels are apart.
fn off(i: usize) -> f32 {
    (i % 9) as f32 / 10.0 - 0.4
}

/// Gradients against those of `Σ d · weight`, term by term in f64.
fn check_gradients(coding: &crate::format::Coding, coded: &crate::format::Coded, latents: &[f32]) {
    let cpu = Cpu::new(2);
    let d = crate::format::tests::random(latents.len(), 9);
    let mut d_shared = vec![0.0; 2 * coded.shared.len()];
    coding.shared_gradients(&cpu, coded, (latents, &d), &mut d_shared);
    let mut d_latents = d.clone();
    coding.latent_gradients(&cpu, coded, &mut d_latents);
    let (block, per_block) =
        (latents.len() / coded.shared.len(), coded.groups.len() / coded.shared.len());
    for (i, found) in d_shared.as_chunks::<2>().0.iter().enumerate() {
        let mut expected = [0.0f64; 2];
        for (j, d) in d[i * block..][..block].iter().enumerate() {
            let at = i * block + j;
            let [scale, offset] = coded.groups[at / coding.group].map(f64::from);
            expected[0] += f64::from(*d) * scale * f64::from(coded.levels[at]);
            expected[1] -= f64::from(*d) * offset;
        }
        if !coding.has_offsets {
            expected[1] = 0.0;
        }
        for (found, expected) in found.iter().zip(expected) {
            let bound = 1e-4 * (1.0 + expected.abs()) + 1e-6 * 127.0 * 63.0 * block as f64;
            assert!((f64::from(*found) - expected).abs() < bound, "{found} {expected}");
        }
        assert!(per_block * coding.group == block);
    }
    for (at, (found, d)) in d_latents.iter().zip(&d).enumerate() {
        assert_eq!(*found, d * coded.affine(at / coding.group)[0]);
    }
}

/// Taken apart, blocks have the weights that they unpack to, and put together again the same bytes.
#[test]
fn codings_take_blocks_apart() {
    let cols = 512;
    let weights = crate::format::tests::random(3 * cols, 7);
    for format in crate::format::FORMATS {
        let (Some(search), Some(coding)) = (format.search, format.coding) else {
            assert!(format.search.is_none() && format.coding.is_none(), "{format:?}");
            continue;
        };
        let mut bytes = vec![0; (format.num_bytes)([3, cols])];
        search(&Cpu::new(1), Floats::F32(&weights), cols, &[], &mut bytes);
        let coded = (coding.read)(&bytes);
        let held = PackedMatrix::of_bytes(format, &bytes, [3, cols]).to_vec_f32();
        for (i, (level, held)) in coded.levels.iter().zip(&held).enumerate() {
            let [scale, offset] = coded.affine(i / coding.group);
            assert_eq!(scale * f32::from(*level) - offset, *held, "{format:?} {i}");
            // A level is nearest to itself, and to what is a little off.
            for off in [0.0, 0.4, -0.4] {
                let nearest = coding.nearest(f32::from(*level) + off);
                assert_eq!(nearest, f32::from(*level), "{format:?}");
            }
        }
        let latents: Vec<f32> =
            coded.levels.iter().enumerate().map(|(i, of)| f32::from(*of) + off(i)).collect();
        let mut values = vec![0.0; latents.len()];
        coding.values(&Cpu::new(2), &coded, &latents, &mut values);
        assert_eq!(values, held, "{format:?}");
        check_gradients(&coding, &coded, &latents);
        assert!(coding.has_offsets || coded.shared.iter().all(|shared| shared[1] == 0.0));
        let mut again = vec![0; bytes.len()];
        (coding.write)(&coded, &mut again);
        assert!(again == bytes, "{format:?}");
    }
}
