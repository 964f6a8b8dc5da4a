use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_task_runs_once() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads);
        for num_tasks in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(num_tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn a_panicking_task_is_reported_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.run(100, &|i| assert_ne!(i, 50, "deliberate"));
    }));
    assert!(outcome.is_err());
    let sum = AtomicUsize::new(0);
    pool.run(10, &|i| {
        sum.fetch_add(i, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), 45);
}

#[test]
fn a_job_inside_a_task_runs_on_its_thread() {
    let (pool, other) = (Pool::new(3), Pool::new(2));
    for inner in [&pool, &other] {
        let sum = AtomicUsize::new(0);
        pool.run(10, &|i| {
            inner.run(10, &|j| {
                sum.fetch_add(10 * i + j, Ordering::Relaxed);
            });
        });
        assert_eq!(sum.into_inner(), (0..100).sum());
    }
}

#[test]
fn sleeping_workers_wake() {
    let pool = Pool::new(2);
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(2));
        let count = AtomicUsize::new(0);
        pool.run(64, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }
}

#[test]
fn rows_are_visited_once_each() {
    let cpu = Cpu::new(2);
    let mut out = vec![0u32; 7 * 1000];
    cpu.rows(&mut out, 7, 500, |row, out| out.iter_mut().for_each(|x| *x += row as u32 + 1));
    assert!(out.chunks(7).enumerate().all(|(row, x)| x.iter().all(|&v| v == row as u32 + 1)));
}
