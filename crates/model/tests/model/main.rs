//! Tests of the public API, one file per part.

mod bad_adapters;
mod bad_models;
mod bf16;
mod coverage;
mod encoders;
mod export;
mod fixture;
mod fused_adapters;
mod generation;
mod gguf;
mod gguf_files;
mod gguf_tokenizers;
mod goldens;
mod int8;
mod live;
mod loading;
mod packing;
mod peft;
mod published;
mod published_encoders;
mod published_mixtures;
mod quantised;
mod random_weights;
mod rope;
mod router_loss;
mod support;
