//! SIGINT and SIGTERM: the first asks to stop after the present step, the second stops at once.

use crate::output;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Whether the user has asked to stop.
#[derive(Clone)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag raised and ends the process.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
        }
        let raised = Self(Arc::clone(&stop));
        std::thread::spawn(move || raised.acknowledge());
        Ok(Self(stop))
    }

    /// Says that the signal has been heard, since a step may take long.
    fn acknowledge(&self) {
        while !self.is_raised() {
            std::thread::sleep(Duration::from_millis(100));
        }
        output::note("stopping after this step; a second signal stops at once");
    }

    /// Whether a signal has come.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
