//! Tests of the engine: every operation through one check, then what lies around the operations.

mod activations;
mod arena;
mod cache;
mod check_op;
mod embeddings;
mod expert_scales;
mod experts;
mod head;
mod linear;
mod linear_attention;
mod norms;
mod offload;
mod operations;
mod rows;
mod safetensors;
mod tape;
