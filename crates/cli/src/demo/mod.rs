//! What `hone demo` works with: a generator of text (`corpus`) for the small base model, and of the
//! task (`task`) which that model is then tuned to and asked (`score`). Words and sentences are in
//! `words`.

pub mod corpus;
pub mod model;
pub mod pretraining;
pub mod scene;
pub mod score;
pub mod task;
pub mod tokenizer;
pub mod words;

#[cfg(test)]
mod tests;
