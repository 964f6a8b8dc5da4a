//! Tasks from file to result.

mod answers;
mod bad_tasks;
mod goldens;
mod own_tasks;
mod scene;
