//! SIGKILL at every named point and at random instants.

use super::trace::{INTERVAL, Trace, resume, went_on_after};
use crate::sandbox::{Scene, ended};
use hone_tensor::testing::{cases, is_full};
use hone_train::{checkpoint, failpoint};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Which passages of a point kill; points are passed up to a hundred times.
const PASSAGES: [u64; 5] = [1, 2, 4, 9, 23];
const FEW_PASSAGES: [u64; 2] = [1, 4];

/// Starts or resumes, to be killed at `point`; whether it was.
fn killed_at(scene: &Scene, point: &str) -> bool {
    let run = ended(scene.train(&["--resume"]).env("HONE_FAILPOINT", point));
    assert!(run.status.is_none() || run.status == Some(0), "{point}: {}", run.stderr);
    run.status.is_none()
}

/// The step that a killed run can go on from: at most one interval before the last one logged.
#[track_caller]
fn safe_step(scene: &Scene, what: &str) -> u64 {
    let logged =
        scene.lines("metrics.jsonl").last().map_or(0, |line| line["step"].as_u64().unwrap());
    let (whole, rejected) = checkpoint::newest_whole(&scene.path("run/checkpoints")).unwrap();
    assert!(rejected.is_empty(), "{what}: {rejected:?}");
    let safe = whole.map_or(0, |whole| whole.step);
    assert!(logged.saturating_sub(safe) <= INTERVAL, "{what}: {logged} → {safe}");
    safe
}

/// Resumes a killed run to its end, which must be that of one which nothing happened to.
#[track_caller]
fn assert_nothing_lost(expected: &Trace, scene: &Scene, what: &str) {
    let safe = safe_step(scene, what);
    assert_eq!(went_on_after(&resume(scene)), safe, "{what}");
    expected.assert_same(scene, what);
}

#[test]
fn at_every_point() {
    let expected = Trace::expected();
    let mut second = failpoint::ALL.iter().cycle();
    for name in failpoint::ALL {
        for &nth in cases(&PASSAGES, &FEW_PASSAGES) {
            let scene = Scene::new();
            let point = format!("{name}:{nth}");
            if !killed_at(&scene, &point) {
                assert!(nth > 1, "{name} is never passed");
                break;
            }
            let mut what = format!("killed at {point}");
            // Every other time the resumed run is killed as well.
            if nth.is_multiple_of(2) {
                let again = second.next().unwrap();
                let was_killed = killed_at(&scene, again);
                what = format!("{what}, then at {again} ({was_killed})");
            }
            assert_nothing_lost(expected, &scene, &what);
        }
    }
}

#[test]
fn at_some_points_with_all_weights_trained() {
    let expected = Trace::undisturbed(&Scene::full(), &[]);
    let points = [
        "file.renamed:2",
        "loop.micro_batch_done:17",
        "loop.updated:8",
        "checkpoint.file_synced:5",
        "checkpoint.renamed:3",
        "checkpoint.trashed:2",
        "loop.result_written",
    ];
    for &point in cases(&points, &points[..3]) {
        let scene = Scene::full();
        assert!(killed_at(&scene, point), "{point}");
        assert_nothing_lost(&expected, &scene, point);
    }
}

/// How many kills there are in all; `HONE_TEST_KILLS` may ask for another number.
fn num_kills() -> u32 {
    let usual = if is_full() { 50 } else { 10 };
    std::env::var("HONE_TEST_KILLS").map_or(usual, |number| number.parse().unwrap())
}

/// Numbers in 0..1, of a multiplicative generator.
pub fn instants() -> impl Iterator<Item = f64> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 11) as f64 / (1u64 << 53) as f64
    })
}

/// Starts or resumes, and kills after `delay`; whether it was still running.
fn killed_after(scene: &Scene, delay: Duration) -> bool {
    let mut command = scene.train(&["--resume"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(delay);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(status.code().is_none_or(|code| code == 0), "{status}");
    status.code().is_none()
}

#[test]
fn at_random_instants() {
    let expected = Trace::expected();
    let begun = Instant::now();
    resume(&Scene::new());
    let duration = begun.elapsed();
    let (mut instants, mut kills) = (instants(), 0);
    while kills < num_kills() {
        let scene = Scene::new();
        // Each run is killed a few times before it may end.
        for _ in 0..5.min(num_kills() - kills) {
            let delay = duration.mul_f64(instants.next().unwrap());
            kills += u32::from(killed_after(&scene, delay));
            safe_step(&scene, &format!("after {kills} kills"));
        }
        assert_nothing_lost(expected, &scene, &format!("after {kills} kills"));
    }
}
