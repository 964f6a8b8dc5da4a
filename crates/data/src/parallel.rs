//! A function of many items on several threads. The crate has no pool: what is mapped here takes
//! tenths of a second, and threads are made anew for it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Items that a thread takes at a time: few enough that threads end together.
const RUN: usize = 16;

/// `f` of each item, in the items' order whatever the number of threads.
pub(crate) fn map<T: Sync, R: Send>(
    num_threads: usize,
    items: &[T],
    f: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let runs: Vec<&[T]> = items.chunks(RUN).collect();
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(runs.len())));
    let work = || {
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(run) = runs.get(index)
        {
            let results: Vec<R> = run.iter().map(&f).collect();
            done.lock().expect("no thread panics while it holds the lock").push((index, results));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..num_threads.min(runs.len()) {
            scope.spawn(work);
        }
        work();
    });
    let mut done = done.into_inner().expect("a thread's panic has ended the scope");
    done.sort_unstable_by_key(|(index, _)| *index);
    done.into_iter().flat_map(|(_, results)| results).collect()
}
