//! Parts of `hone demo`: the small base model (`model`), a generator of the task (`task`) that it
//! is tuned for, and its evaluation (`score`). Words and sentences are in `words`.

pub mod model;
pub mod scene;
pub mod score;
pub mod task;
pub mod words;

#[cfg(test)]
mod tests;
