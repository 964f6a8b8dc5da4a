//! Tensors, devices, the memory arena, the coarse tape, safetensors and GGUF files.
//!
//! Model code uses this crate only: it builds a [`Tape`] of coarse operations ([`ops`]) and does
//! not know which [`Device`] runs them. The same operations on [`Device::dry`] only count memory
//! and work, which is how a run is planned.

#![allow(unsafe_code)]

#[cfg(feature = "testing")]
pub mod allocation;
mod device;
pub mod gguf;
mod mapped;
mod merge;
pub mod ops;
mod params;
pub mod safetensors;
mod tape;
mod tensor;
mod weight;

pub use device::arena::{Arena, Event, Layout, Trace};
pub use device::{
    Category, Cost, Device, OFFLOAD_SLOTS, Offloaded, Span, Target, Transfer, Work, offload,
};
pub use hone_kernels::attention::{Heads, Sequence, max_head_dim};
pub use hone_kernels::format::{Coded, Coding, FORMATS, ShapeError, Tiles, WeightFormat};
pub use hone_kernels::memory::release_free_memory;
pub use hone_kernels::random::Philox;
#[cfg(feature = "testing")]
pub use hone_kernels::testing;
pub use hone_kernels::{
    Cpu, DType, DeviceError, Isa, MissingAmx, PAGE_LOCKED, Processor, Storage, View, ViewMut,
    Wanted, adamw, ceiling, cuda, distribution, gemm, lock,
};
pub use mapped::Mapped;
pub use merge::merge;
pub use params::{Gradients, ParamId, Params};
pub use tape::{Compute, Observer, Reader, StepKey, Tape, Var};
pub use tensor::{Place, Tensor};
pub use weight::{AdapterId, AdapterRows, Lora, Projection, Weight};

#[cfg(test)]
mod tests;
