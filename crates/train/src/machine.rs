//! What this machine has, and what this process takes of it.

use std::fs;

/// Logical processors that this process may use.
pub fn num_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// Name of the processor.
pub fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    field("model name")
        .or_else(|| field("Hardware"))
        .unwrap_or_else(|| format!("{} processor", std::env::consts::ARCH))
}

/// Seconds for which this thread was ready and waited for a processor.
pub fn waited_seconds() -> Option<f64> {
    // Linux: Documentation/scheduler/sched-stats.rst; nanoseconds on a processor, and waiting.
    let text = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().nth(1)?.parse::<u64>().ok().map(|nanoseconds| nanoseconds as f64 * 1e-9)
}

/// Bytes of memory in the machine, or that the container may use.
pub fn total_memory() -> Option<u64> {
    let installed = kilobytes("/proc/meminfo", "MemTotal:");
    [installed, cgroup_limit()].into_iter().flatten().min()
}

/// Bytes of memory that can still be taken without pushing anything out.
pub fn available_memory() -> Option<u64> {
    let free = kilobytes("/proc/meminfo", "MemAvailable:");
    let left = cgroup_limit().zip(cgroup("memory.current"));
    let left = left.map(|(limit, used)| limit.saturating_sub(used));
    [free, left].into_iter().flatten().min()
}

/// Bytes of memory this process occupies now.
pub fn resident_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmRSS:")
}

/// Most bytes of memory this process has occupied so far.
pub fn peak_resident_bytes() -> Option<u64> {
    kilobytes("/proc/self/status", "VmHWM:")
}

/// Lets [`peak_resident_bytes`] count from now on, where the system can.
pub fn reset_peak_resident_bytes() {
    // Linux: proc_pid_clear_refs(5), "reset the peak resident set size".
    let _ = fs::write("/proc/self/clear_refs", "5");
}

fn kilobytes(file: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What the container may use, where there is one with a limit.
fn cgroup_limit() -> Option<u64> {
    cgroup("memory.max")
}

fn cgroup(file: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?;
    text.trim().parse().ok()
}
