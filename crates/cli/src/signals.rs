//! SIGINT and SIGTERM: the first asks to stop after the current step, or before training where no
//! step has begun; the second stops immediately.

use crate::output;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Whether the user has asked to stop.
#[derive(Clone)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Installs the signal handlers; they are per process, so all callers share one flag.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn listen() -> std::io::Result<Self> {
        static LISTENING: Mutex<Option<StopFlag>> = Mutex::new(None);
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        let flag = match &*listening {
            Some(flag) => flag.clone(),
            None => Self::register()?,
        };
        *listening = Some(flag.clone());
        Ok(flag)
    }

    fn register() -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order, the second signal finds the flag raised and ends the process.
            flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
            flag::register(signal, Arc::clone(&stop))?;
        }
        let raised = Self(Arc::clone(&stop));
        std::thread::spawn(move || raised.acknowledge());
        Ok(Self(stop))
    }

    /// Acknowledges the signal, since a step may take long.
    fn acknowledge(&self) {
        while !self.is_raised() {
            std::thread::sleep(Duration::from_millis(100));
        }
        output::note(
            "stopping once this step, or getting ready, is done; a second signal stops immediately",
        );
    }

    /// Whether a signal has been received.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_registered_once() {
        let [first, second] = [StopFlag::listen().unwrap(), StopFlag::listen().unwrap()];
        assert!(Arc::ptr_eq(&first.0, &second.0));
        assert!(!first.is_raised());
    }
}
