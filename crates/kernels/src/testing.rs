//! Shared by the tests of all crates: which tier runs, and how a test reports that it is skipped.
//!
//! `cargo xtask test` runs every kind of check with few cases of the costly ones; with `--full`, it
//! sets `HONE_TEST_FULL` and all cases run. It counts the lines that [`skip`] writes.

use crate::element::f16;
use crate::format::WeightFormat;
use crate::random::Philox;
use std::fmt::Display;
use std::io::Write as _;

/// Whether to run all cases instead of a sample of the costly ones.
pub fn is_full() -> bool {
    std::env::var_os("HONE_TEST_FULL").is_some_and(|value| value == "1")
}

/// `all` cases in the full tier, `few` otherwise.
pub fn cases<'a, T>(all: &'a [T], few: &'a [T]) -> &'a [T] {
    if is_full() { all } else { few }
}

/// Whether the case with this number runs: all in the full tier, every `step`-th otherwise.
pub fn is_sampled(number: usize, step: usize) -> bool {
    is_full() || number.is_multiple_of(step)
}

/// Reports that the current test, or a part of it, is skipped on this machine, and why.
pub fn skip(reason: impl Display) {
    let thread = std::thread::current();
    // The test harness names each test's thread after the test.
    let test = thread.name().unwrap_or("unknown");
    // Not `eprintln!`, which the harness would capture.
    let _ = writeln!(std::io::stderr(), "skipped test {test}: {reason}");
}

/// Whether files have a format, whose bytes tests make up, rather than pack.
pub fn is_of_files(format: &WeightFormat) -> bool {
    format.pack.is_none() || format.block > 1
}

/// A matrix in a format of files: random weights of about 1, as a file might have them.
///
/// # Panics
/// If the format is unknown here.
pub fn weights_of_file(format: &WeightFormat, shape: [usize; 2], stream: u64) -> Vec<u8> {
    let random = Philox::new(8, stream);
    let mut bytes: Vec<u8> =
        (0..(format.num_bytes)(shape) as u64).map(|i| (256.0 * random.uniform(i)) as u8).collect();
    let num_weights = shape[0] * shape[1];
    // Of formats whose scales are before the weights: bytes of these, and a scale.
    let scaled = match format.name {
        "nf4_f32" => Some((num_weights.div_ceil(2), 0.25)),
        name if name.starts_with("fp8") => Some((num_weights, 1.0)),
        _ => None,
    };
    if let Some((len, least)) = scaled {
        let start = bytes.len() - len;
        let (scales, values) = bytes.split_at_mut(start);
        for (i, scale) in scales.chunks_exact_mut(4).enumerate() {
            scale.copy_from_slice(&(least * (1.0 + 0.1 * (i % 16) as f32)).to_le_bytes());
        }
        if len == num_weights {
            // Below 2, and no NaN.
            values.iter_mut().for_each(|value| *value &= 0xbf);
        }
        return bytes;
    }
    let block_bytes = (format.num_bytes)([1, format.block]);
    // Where a block has its scale, and one that makes the weights about 1.
    let (at, scale) = match format.name {
        "q8_0" => (&[0][..], 0.01),
        "q5_1" => (&[0, 2][..], 0.05),
        "q5_0" => (&[0][..], 0.06),
        "q4_1" => (&[0, 2][..], 0.1),
        "q4_0" => (&[0][..], 0.12),
        "q6_k" => (&[208][..], 0.0003),
        "q5_k" => (&[0, 2][..], 0.001),
        "q4_k" => (&[0, 2][..], 0.002),
        "q3_k" => (&[108][..], 0.02),
        "q2_k" => (&[80, 82][..], 0.06),
        "iq4_xs" => (&[0][..], 0.0008),
        "iq4_nl" => (&[0][..], 0.01),
        "mxfp4" => (&[][..], 0.0),
        name => panic!("what a file has of {name} is not known"),
    };
    for (i, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
        for &at in at {
            let scale = f16::from_f32(scale * (1.0 + (i % 7) as f32 / 7.0));
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if format.name == "mxfp4" {
            block[0] = 124 + (i % 3) as u8;
        }
    }
    bytes
}
