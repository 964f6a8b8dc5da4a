use super::*;
use crate::format::tests::{PackedMatrix, check_on_gpu};

/// Against the `gguf` package (`blocks.py`), to the bit: the whole, and from and to any weight.
#[test]
fn blocks_unpack_as_the_gguf_package_does() {
    let golden = include_bytes!("blocks.golden");
    let mut at = 0;
    for format in [&Q8_0, &Q6_K, &Q5_K, &Q5_0, &Q4_K, &Q4_1, &Q4_0, &MXFP4] {
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
    let readable = "F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q5_K, Q6_K, BF16, MXFP4";
    assert_eq!(message(16), format!("type 16 (IQ2_XXS) is not read; those that are: {readable}"));
    assert!(message(4).starts_with("type 4 (unknown) is not read"));
}
