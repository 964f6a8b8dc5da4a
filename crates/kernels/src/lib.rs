//! Slice-level operations: a scalar reference, a CPU implementation, and CUDA kernels of each.
//!
//! One operation, one folder: `reference.rs` is the definition, written for clarity and computed
//! in `f64`; `cpu.rs` is the CPU implementation; `kernel.cu` is the GPU implementation, launched by
//! `cuda.rs`. [`Processor`] has a method for each operation and dispatches. Nothing here knows
//! tensors, devices or the bookkeeping of gradients.
//!
//! Shape letters used throughout: `t` tokens, `h` hidden size, `n`/`k` output/input features of a
//! matmul, `d` head dimension, `q`/`kv` query/key-value heads, `v` vocabulary, `r` adapter rank.
//!
//! On the CPU, results never depend on the number of threads or on the instruction set: every
//! output element is produced by one task, summed in a fixed order, which `ARCHITECTURE.md` writes
//! down. On a GPU sums have a fixed order too, so that the same GPU gives the same bits.

#![allow(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod attention;
mod capacity;
pub mod ceiling;
pub mod columns;
pub mod combine;
pub mod cpu;
pub mod cuda;
pub mod delta_columns;
pub mod delta_gates;
pub mod distribution;
pub mod dropout;
pub mod element;
pub mod embedding;
mod failure;
pub mod format;
pub mod gated_delta_rule;
pub mod gated_rms_norm;
pub mod gemm;
pub mod glu;
pub mod head;
pub mod layer_norm;
pub mod math;
pub mod memory;
pub mod output_gate;
mod processor;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod router;
pub mod short_conv;
#[cfg(any(test, feature = "emulator"))]
pub mod testing;
pub mod vector;
pub mod view;

pub use capacity::try_with_capacity;
pub use cpu::{Cpu, Isa, MissingAmx};
pub use element::{DType, Element, bf16, f16};
pub use failure::{DeviceError, Failures, PAGE_LOCKED, Wanted, lock};
pub use format::Storage;
pub use processor::{Processor, Target};
pub use view::{View, ViewMut};
