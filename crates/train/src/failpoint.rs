//! Named points at which a test kills the process or fills the disk. In a release build without
//! the feature `failpoints` they are empty.
//!
//! `HONE_FAILPOINT="name[:n][=kill|stop|enospc]"` acts at the n-th passage (1 if absent) of that
//! point by this process; `kill` (the default) is SIGKILL, `stop` is SIGSTOP, after which the test
//! lets the process continue, and `enospc` makes [`hit_io`] fail from then on as on a full disk.

use std::io;

/// Every point there is.
pub const ALL: &[&str] = &[
    "run_dir.locked",
    "run_dir.half_written",
    "checkpoint.begin",
    "checkpoint.filled",
    "checkpoint.file_synced",
    "checkpoint.manifest_written",
    "checkpoint.directory_synced",
    "checkpoint.renamed",
    "checkpoint.parent_synced",
    "checkpoint.trashed",
    "checkpoint.pruned",
    "loop.out_of_memory",
    "loop.micro_batch_done",
    "loop.nonfinite",
    "loop.before_update",
    "loop.updated",
    "loop.step_done",
    "loop.result_written",
    "file.written",
    "file.synced",
    "file.renamed",
];

/// Passes the point `name`: returns, or kills the process.
#[inline]
pub fn hit(name: &'static str) {
    let _ = hit_io(name);
}

/// Passes the point `name`.
///
/// # Errors
/// "No space left on device" when so configured.
#[inline]
pub fn hit_io(name: &'static str) -> io::Result<()> {
    #[cfg(any(debug_assertions, feature = "failpoints"))]
    armed::pass(name)?;
    let _ = name;
    Ok(())
}

#[cfg(any(debug_assertions, feature = "failpoints"))]
mod armed {
    use std::io;
    use std::process::Command;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The number of "no space left on device" on Linux, the BSDs and macOS.
    const ENOSPC: i32 = 28;

    #[derive(Clone, Copy)]
    enum Action {
        Kill,
        Stop,
        DiskFull,
    }

    struct Armed {
        name: String,
        nth: u64,
        action: Action,
        num_passed: AtomicU64,
    }

    pub(super) fn pass(name: &'static str) -> io::Result<()> {
        static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
        assert!(super::ALL.contains(&name), "failpoint {name} is not in failpoint::ALL");
        let armed = ARMED.get_or_init(|| std::env::var("HONE_FAILPOINT").ok().map(|s| parse(&s)));
        let Some(armed) = armed.as_ref().filter(|armed| armed.name == name) else { return Ok(()) };
        let passage = armed.num_passed.fetch_add(1, Ordering::SeqCst) + 1;
        match armed.action {
            Action::Kill if passage == armed.nth => kill_this_process(),
            Action::Stop if passage == armed.nth => {
                signal_this_process("-STOP");
                Ok(())
            }
            Action::DiskFull if passage >= armed.nth => Err(io::Error::from_raw_os_error(ENOSPC)),
            _ => Ok(()),
        }
    }

    /// Reads `name[:n][=kill|stop|enospc]`; a mistake in a test's own setting is a panic.
    fn parse(setting: &str) -> Armed {
        let (point, action) = setting.split_once('=').unwrap_or((setting, "kill"));
        let (name, nth) = point.split_once(':').unwrap_or((point, "1"));
        assert!(super::ALL.contains(&name), "HONE_FAILPOINT: {name} is none of {:?}", super::ALL);
        let action = match action {
            "kill" => Action::Kill,
            "stop" => Action::Stop,
            "enospc" => Action::DiskFull,
            other => panic!("HONE_FAILPOINT: unknown action {other}"),
        };
        let nth = nth.parse().expect("HONE_FAILPOINT: the number after `:`");
        let num_passed = AtomicU64::new(0);
        Armed { name: name.to_owned(), nth, action, num_passed }
    }

    /// Signals are sent by the `kill` program, without unsafe code; waits for this one to arrive.
    fn kill_this_process() -> ! {
        signal_this_process("-KILL");
        loop {
            std::thread::park();
        }
    }

    fn signal_this_process(signal: &str) {
        let id = std::process::id().to_string();
        let _ = Command::new("kill").args([signal, &id]).status();
    }
}
