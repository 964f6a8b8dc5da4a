//! Tasks from file to result.

mod bad_tasks;
mod goldens;
mod own_tasks;
mod scene;
