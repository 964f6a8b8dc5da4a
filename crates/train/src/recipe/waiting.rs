//! How long training waits for processors that other programs use.

use crate::machine;
use std::time::Instant;

/// Seconds over which waiting is measured.
const WINDOW: f64 = 10.0;
/// Share of the time from which on it is worth a note.
const SHARE: f64 = 0.2;

/// The window under way.
pub(super) struct Waiting {
    since: Instant,
    /// Seconds waited before; `None` where the system does not tell, or the user was told.
    before: Option<f64>,
}

impl Waiting {
    /// Measures from now on.
    pub fn start() -> Self {
        Self { since: Instant::now(), before: machine::waited_seconds() }
    }

    /// Asked after each step of a run on `num_threads`: what to know, once.
    pub fn note(&mut self, num_threads: usize) -> Option<String> {
        let (before, seconds) = (self.before?, self.since.elapsed().as_secs_f64());
        if seconds < WINDOW {
            return None;
        }
        let share = (machine::waited_seconds()? - before) / seconds;
        *self = Self::start();
        let note = note(share, seconds, num_threads)?;
        self.before = None;
        Some(note)
    }
}

fn note(share: f64, seconds: f64, num_threads: usize) -> Option<String> {
    let fewer = match num_threads {
        1 => String::new(),
        _ => format!(
            ". The {num_threads} threads also wait for each other then: with fewer (run.threads) \
             steps may be faster, and the result is the same"
        ),
    };
    (share > SHARE).then(|| {
        format!(
            "other programs use this machine's processors: training waited for one during {:.0} % \
             of the last {seconds:.0} seconds, and takes longer than planned{fewer}",
            100.0 * share
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_told_once_it_matters() {
        assert_eq!(note(0.1, 10.0, 2), None);
        let two = note(0.5, 61.0, 2).unwrap();
        assert!(
            two.contains("50 % of the last 61 seconds") && two.contains("run.threads"),
            "{two}"
        );
        assert!(!note(0.5, 10.0, 1).unwrap().contains("run.threads"));
    }
}
