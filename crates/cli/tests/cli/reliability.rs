//! What a run survives: kills at every point, damaged checkpoints, signals, full disks, steps that
//! are not finite, and a second start. Afterwards it must hold the very bits of a run that nothing
//! happened to.

mod compressed;
mod disturbed;
mod kills;
mod resumed;
mod second_start;
mod trace;
