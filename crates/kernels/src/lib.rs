//! Slice-level operations: a scalar reference and a CPU implementation of each.
//!
//! One operation, one folder: `reference.rs` is the definition, written for reading and computed
//! in `f64`; `cpu.rs` is what runs. Nothing here knows tensors, devices or gradients' bookkeeping.
//!
//! Shape letters used throughout: `t` tokens, `h` hidden size, `n`/`k` output/input features of a
//! product, `d` head dimension, `q`/`kv` query/key-value heads, `v` vocabulary, `r` adapter rank.
//!
//! Results never depend on the number of threads or on the instruction set: every output element
//! is produced by one task, summed in a fixed order, with fused multiply-adds everywhere.

pub mod adamw;
pub mod attention;
pub mod ceiling;
pub mod cpu;
pub mod dropout;
pub mod element;
pub mod embedding;
pub mod gemm;
pub mod head;
pub mod math;
pub mod memory;
pub mod random;
pub mod rms_norm;
pub mod rope;
pub mod swiglu;
pub mod vector;

pub use cpu::{Cpu, Isa};
pub use element::{DType, Element, Int8Rows, View, ViewMut, bf16, f16};
