//! Training through the crate's public interface, on models of a few thousand parameters.

mod accumulation;
mod curves;
mod determinism;
mod failures;
mod families;
mod fixture;
mod gguf;
mod gpu_precisions;
mod live_llama;
mod mixtures;
mod planning;
mod preference;
mod silence;
mod tiny_model;
