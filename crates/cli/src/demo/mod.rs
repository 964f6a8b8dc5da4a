//! What `hone demo` works with: the small base model (`model`), and a generator of the task
//! (`task`) which it is tuned to and asked (`score`). Words and sentences are in `words`.

pub mod model;
pub mod scene;
pub mod score;
pub mod task;
pub mod words;

#[cfg(test)]
mod tests;
