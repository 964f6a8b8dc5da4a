//! A small static thread pool.
//!
//! A training step runs thousands of tasks of some tens of microseconds. Workers therefore spin for
//! a while before they sleep: a spinning worker starts in about 0.1 µs, a sleeping one in about
//! 20 µs. Any thread may run a task; results must not depend on which.

use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SPIN: Duration = Duration::from_micros(60);

thread_local! {
    /// Whether this thread is running a task: a nested job would deadlock.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

#[derive(Clone, Copy)]
struct Job {
    task: Task<'static>,
    num_tasks: usize,
}

struct Shared {
    /// Number of jobs posted so far; a change signals a new `job` to the workers.
    posted: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    next_task: AtomicUsize,
    /// Workers that have left the current job.
    finished: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `job` is written only by `Pool::run` while no worker reads it: before `posted` is
// incremented (Release), and after every worker has incremented `finished` for the previous job.
unsafe impl Sync for Shared {}

/// A fixed set of threads that run the tasks of one job at a time.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs, to serialise callers.
    running: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads, including the caller: with one, everything runs on the caller.
    /// If the system refuses to start a thread, there are fewer.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            posted: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            next_task: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .map_while(|i| {
                let shared = Arc::clone(&shared);
                std::thread::Builder::new()
                    .name(format!("hone-{i}"))
                    .spawn(move || work(&shared))
                    .ok()
            })
            .collect();
        Self { shared, workers, running: Mutex::new(()) }
    }

    /// Number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `task(0) … task(num_tasks - 1)`, each once, and returns when all are done. A call from
    /// inside a task runs everything on that task's thread.
    ///
    /// # Panics
    /// If a task panics.
    pub fn run(&self, num_tasks: usize, task: Task<'_>) {
        if self.workers.is_empty() || num_tasks <= 1 || IN_TASK.get() {
            (0..num_tasks).for_each(task);
            return;
        }
        let _running = self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: only the lifetime changes, and this function returns (or unwinds) only after
        // every worker has reported that it no longer uses the closure.
        let task = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(task) };
        self.post(Job { task, num_tasks });
        let mine = catch_unwind(AssertUnwindSafe(|| self.shared.drain(Job { task, num_tasks })));
        while self.shared.finished.load(Ordering::Acquire) < self.workers.len() {
            std::hint::spin_loop();
        }
        let theirs = self.shared.panicked.swap(false, Ordering::Relaxed);
        if let Err(panic) = mine {
            std::panic::resume_unwind(panic);
        }
        assert!(!theirs, "a task of the pool panicked; its message is above");
    }

    fn post(&self, job: Job) {
        self.shared.next_task.store(0, Ordering::Relaxed);
        self.shared.finished.store(0, Ordering::Relaxed);
        // SAFETY: all workers have finished the previous job, so none reads.
        unsafe { *self.shared.job.get() = Some(job) };
        let sleepers = self.shared.sleepers.lock().expect("no panic while counting sleepers");
        self.shared.posted.fetch_add(1, Ordering::Release);
        if *sleepers > 0 {
            self.shared.wake.notify_all();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        {
            let _sleepers = self.shared.sleepers.lock();
            self.shared.posted.fetch_add(1, Ordering::Release);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn drain(&self, job: Job) {
        /// Resets the flag even if a task panics.
        struct InTask;
        impl Drop for InTask {
            fn drop(&mut self) {
                IN_TASK.set(false);
            }
        }
        IN_TASK.set(true);
        let _in_task = InTask;
        loop {
            let i = self.next_task.fetch_add(1, Ordering::Relaxed);
            if i >= job.num_tasks {
                return;
            }
            (job.task)(i);
        }
    }

    /// Waits until `posted` differs from `seen` and returns it.
    fn wait_for_job(&self, seen: usize) -> usize {
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..64 {
                let posted = self.posted.load(Ordering::Acquire);
                if posted != seen {
                    return posted;
                }
                std::hint::spin_loop();
            }
        }
        let mut sleepers = self.sleepers.lock().expect("no panic while counting sleepers");
        *sleepers += 1;
        while self.posted.load(Ordering::Acquire) == seen {
            sleepers = self.wake.wait(sleepers).expect("no panic while counting sleepers");
        }
        *sleepers -= 1;
        self.posted.load(Ordering::Acquire)
    }
}

fn work(shared: &Shared) {
    let mut seen = 0;
    loop {
        seen = shared.wait_for_job(seen);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: `posted` was incremented after `job` was written, and `job` is not written again
        // before this worker increments `finished`.
        let job = unsafe { *shared.job.get() }.expect("a job was posted");
        if catch_unwind(AssertUnwindSafe(|| shared.drain(job))).is_err() {
            shared.panicked.store(true, Ordering::Relaxed);
        }
        shared.finished.fetch_add(1, Ordering::Release);
    }
}
