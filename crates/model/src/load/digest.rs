//! A digest of a model's weights, whatever files they are in.

use super::{LoadError, ModelFiles, Source, Taken};
use crate::weights::WeightSpec;
use hone_tensor::{DType, Device, DeviceError, Storage, Tensor};
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Elements that are converted at once.
const CHUNK: usize = 1 << 16;

impl ModelFiles {
    /// SHA-256 of all weights, in lower-case hexadecimal: of each, in the order of their names, its
    /// name and a digest of its shape and elements in Hugging Face's order. Weights in few bits
    /// count by the blocks that the file has, floats by their values. So files in other parts, or
    /// a GGUF file that was written in floats that lose nothing, have the same digest, and a change
    /// of a single bit gives another. All weights are read, by as many threads as there are cores.
    ///
    /// # Errors
    /// [`LoadError`], naming file and tensor; without weight files too.
    pub fn weights_sha256(&self) -> Result<String, LoadError> {
        if let Source::Described(described) = &self.files {
            return Err(described.missing());
        }
        let mut specs: Vec<WeightSpec> = self.config.weights().collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut found, mut taken) = (Vec::new(), Taken::default());
            while let Some((i, spec)) = {
                let i = next.fetch_add(1, Ordering::Relaxed);
                specs.get(i).map(|spec| (i, spec))
            } {
                let tensor = self.files.take(spec, &self.config, Device::host(), &mut taken)?;
                found.push((i, of_weight(&tensor, &spec.shape)?));
                tensor.release_file();
            }
            Ok::<_, LoadError>(found)
        };
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let found: Result<Vec<_>, LoadError> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let mut digests = found?.concat();
        Device::host().settle()?;
        digests.sort_unstable();
        let mut all = Sha256::new();
        for (spec, (_, digest)) in specs.iter().zip(digests) {
            all.update(&spec.name);
            all.update([0]);
            all.update(digest);
        }
        Ok(format!("{:x}", all.finalize()))
    }
}

/// The digest of one weight.
fn of_weight(tensor: &Tensor, shape: &[usize]) -> Result<[u8; 32], DeviceError> {
    let mut sha = Sha256::new();
    for len in shape {
        sha.update((*len as u64).to_le_bytes());
    }
    match tensor.storage() {
        // What other files have in these columns, no block says.
        Storage::Packed(format) if format.tiles.is_some() => {
            let values = Tensor::from_f32(&tensor.try_to_vec_f32()?, tensor.shape());
            floats(&mut sha, &values)?;
        }
        Storage::Packed(format) => {
            sha.update(format.name);
            sha.update([0]);
            sha.update(tensor.bytes());
        }
        Storage::Float(_) => floats(&mut sha, tensor)?,
    }
    Ok(sha.finalize().into())
}

/// Values as bf16 where each is one, otherwise as f32: files of either have the same numbers.
fn floats(sha: &mut Sha256, tensor: &Tensor) -> Result<(), DeviceError> {
    let chunks = || {
        let starts = (0..tensor.len()).step_by(CHUNK);
        starts.map(|start| {
            let len = CHUNK.min(tensor.len() - start);
            tensor.view().part(start, len).try_to_vec_f32()
        })
    };
    let mut is_bf16 = true;
    if tensor.dtype() != DType::Bf16 {
        for values in chunks() {
            is_bf16 = values?.iter().all(|value| value.to_bits() & 0xffff == 0);
            if !is_bf16 {
                break;
            }
        }
    }
    sha.update(if is_bf16 { DType::Bf16.name() } else { DType::F32.name() });
    sha.update([0]);
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for values in chunks() {
        bytes.clear();
        for value in values? {
            let value = value.to_bits().to_le_bytes();
            bytes.extend_from_slice(if is_bf16 { &value[2..] } else { &value });
        }
        sha.update(&bytes);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other digests by shape, by any bit and by the blocks; not by the type of the same numbers.
    #[test]
    fn numbers_count_and_not_their_type() {
        let of = |tensor: &Tensor| of_weight(tensor, tensor.shape()).unwrap();
        let mut values: Vec<f32> = (0..2 * CHUNK + 64).map(|i| (i % 251) as f32 - 7.0).collect();
        let floats = |values: &[f32]| Tensor::from_f32(values, &[values.len() / 64, 64]);
        let first = floats(&values);
        let short = |value: &f32| value.to_bits().to_le_bytes()[2..].to_vec();
        let short: Vec<u8> = values.iter().flat_map(short).collect();
        assert_eq!(of(&Tensor::from_bytes(&short, DType::Bf16, first.shape())), of(&first));
        assert_ne!(of_weight(&first, &[64, values.len() / 64]).unwrap(), of(&first));
        let last = values.len() - 1;
        values[last] = f32::from_bits(values[last].to_bits() + 1);
        assert_ne!(of(&floats(&values)), of(&first));
        let packed = [7; 36];
        let [q4, q8] = ["q4_0", "int8"].map(|name| Storage::from_name(name).unwrap());
        let q4 = of(&Tensor::from_bytes(&packed, q4, &[1, 64]));
        assert_ne!(q4, of(&Tensor::from_bytes(&packed, q8, &[1, 32])));
        let mut other = packed;
        other[35] = 8;
        let name = Storage::from_name("q4_0").unwrap();
        assert_ne!(q4, of(&Tensor::from_bytes(&other, name, &[1, 64])));
    }
}
