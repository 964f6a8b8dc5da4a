//! Weights of the golden models, drawn as `scripts/random_weights.py` draws them, so that none is
//! committed. The tests of other crates read this file as well.

use hone_tensor::safetensors::{Lazy, write};
use hone_tensor::{DType, Philox, Tensor};
use serde_json::Value;
use std::path::Path;

/// Makes `to` the checkpoint that the folder `from` stands for: copies of its files, and the
/// weights that its `weights.json` describes.
pub fn write_checkpoint(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_file() && name != "weights.json" && !name.starts_with("golden.") {
            std::fs::write(to.join(name), std::fs::read(&path).unwrap()).unwrap();
        }
    }
    let description = std::fs::read(from.join("weights.json")).unwrap();
    let description: Value = serde_json::from_slice(&description).unwrap();
    let seed = description["seed"].as_u64().unwrap();
    let dtype = match description["dtype"].as_str() {
        Some("float32") => DType::F32,
        Some("float16") => DType::F16,
        Some("bfloat16") => DType::Bf16,
        other => panic!("a type of tensors: {other:?}"),
    };
    for (file, entries) in description["files"].as_object().unwrap() {
        let tensors = entries
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, entry)| (name.clone(), Lazy::Ready(draw(seed, name, entry, dtype))));
        write(&to.join(file), tensors).unwrap();
    }
}

/// A tensor from its shape, mean and scale.
fn draw(seed: u64, name: &str, entry: &Value, dtype: DType) -> Tensor {
    let sizes = entry[0].as_array().unwrap().iter();
    let shape: Vec<usize> = sizes.map(|size| size.as_u64().unwrap() as usize).collect();
    let [mean, scale] = [1, 2].map(|i| entry[i].as_f64().unwrap() as f32);
    let random = Philox::new(seed, fnv_1a(name.as_bytes(), FNV_OFFSET));
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count as u64).map(|i| mean + scale * normal(&random, i)).collect();
    let mut tensor = Tensor::from_bytes(&vec![0; count * dtype.size()], dtype, &shape);
    tensor.copy_from_f32(&values);
    tensor
}

/// An almost standard normal number: the sum of four uniform ones (Irwin–Hall), which needs no
/// function that Python might round differently.
fn normal(random: &Philox, position: u64) -> f32 {
    let sum: u32 = random.words(position).iter().map(|word| word >> 10).sum();
    (sum as i32 - (1 << 23)) as f32 * (3f32.sqrt() / (1 << 22) as f32)
}

/// The hash of nothing.
pub const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// The hash FNV-1a of bytes, gone on with from `hash`.
pub fn fnv_1a(bytes: &[u8], hash: u64) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
