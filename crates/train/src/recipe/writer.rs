//! Checkpoints written behind: a thread writes one while a GPU goes on.

use super::Event;
use super::state::Snapshot;
use crate::error::TrainError;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Writes at most one checkpoint at a time. Whoever drops it waits for that one.
#[derive(Default)]
pub(super) struct Writer(Option<(u64, JoinHandle<Result<(), TrainError>>)>);

impl Writer {
    /// Begins to write; none may be under way.
    pub(super) fn begin(&mut self, snapshot: Snapshot, root: PathBuf, keep: usize) {
        assert!(self.0.is_none(), "one checkpoint at a time");
        let step = snapshot.step();
        self.0 = Some((step, std::thread::spawn(move || snapshot.write(&root, keep))));
    }

    /// Tells of a checkpoint that is on disk by now; with `wait`, of one that is under way.
    ///
    /// # Errors
    /// What went wrong in writing it.
    pub(super) fn settle(
        &mut self,
        wait: bool,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let is_over = |(_, thread): &mut (u64, JoinHandle<_>)| wait || thread.is_finished();
        if let Some((step, thread)) = self.0.take_if(is_over) {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            event(Event::Checkpoint { step });
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some((_, thread)) = self.0.take() {
            // After another error; the checkpoint is whole or absent.
            let _ = thread.join();
        }
    }
}
