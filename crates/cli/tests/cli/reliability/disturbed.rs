//! Damaged checkpoints, signals, full disks, steps that are not finite.

#[cfg(target_os = "linux")]
use super::second_start::{continued, stopped_at};
use super::trace::{Trace, newest_step, resume, signal, went_on_after};
use crate::sandbox::tiny_model::rows;
use crate::sandbox::{Ended, Scene, SmallDisk, ended, entries};
use hone_tensor::testing::{cases, is_full};
use hone_train::checkpoint::{self, sha256_of_file};
use std::io::Read;
use std::path::Path;
use std::process::Child;

/// A run killed in its eleventh step, with the checkpoints 6 and 9.
fn killed_late() -> Scene {
    let scene = Scene::new();
    let killed = ended(scene.train(&[]).env("HONE_FAILPOINT", "loop.updated:11"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    assert_eq!(entries(&scene.path("run/checkpoints")), ["step-6", "step-9"]);
    scene
}

fn flip_byte(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}

fn truncate(file: &Path) {
    let bytes = std::fs::read(file).unwrap();
    std::fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let expected = Trace::expected();
    let files = ["params.safetensors", "optimizer.safetensors", "state.json", "manifest.json"];
    for (i, file) in files.into_iter().enumerate() {
        let damages = [flip_byte, truncate];
        for damage in cases(&damages, &damages[i % 2..][..1]) {
            let scene = killed_late();
            damage(&scene.path("run/checkpoints/step-9").join(file));
            let resumed = resume(&scene);
            resumed.says(0, &["passed over a damaged checkpoint", "step-9", file]);
            assert_eq!(went_on_after(&resumed), 6);
            expected.assert_same(&scene, file);
        }
    }
}

#[test]
fn without_a_whole_checkpoint_it_begins_anew() {
    let expected = Trace::expected();
    let scene = killed_late();
    for step in [6, 9] {
        flip_byte(&scene.path(&format!("run/checkpoints/step-{step}/params.safetensors")));
    }
    let resumed = resume(&scene);
    resumed.says(0, &["step-9", "step-6", "starting from the beginning"]);
    expected.assert_same(&scene, "both checkpoints damaged");
}

/// A checkpoint that was passed over must not count when old ones are removed.
#[test]
fn a_damaged_checkpoint_pushes_out_no_whole_one() {
    let scene = killed_late();
    flip_byte(&scene.path("run/checkpoints/step-9/params.safetensors"));
    let more = ["--resume", "checkpoint.every_steps=1", "checkpoint.keep=1"];
    let killed = ended(scene.train(&more).env("HONE_FAILPOINT", "loop.updated:2"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    assert_eq!(went_on_after(&resume(&scene)), 7);
}

/// Waits until a run says `awaited`.
fn wait_for(awaited: &str, child: &mut Child) {
    // Byte by byte: what comes after is read by others.
    let (mut said, mut byte) = (Vec::new(), [0]);
    while child.stderr.as_mut().unwrap().read(&mut byte).unwrap() == 1 {
        said.extend(byte);
        if said.ends_with(awaited.as_bytes()) {
            return;
        }
    }
    panic!("{awaited:?} is not in:\n{}", String::from_utf8_lossy(&said));
}

/// The rest of what a process says, and how it ends.
fn rest(mut child: Child) -> Ended {
    let mut stderr = String::new();
    child.stderr.as_mut().unwrap().read_to_string(&mut stderr).unwrap();
    let status = child.wait().unwrap().code();
    Ended { status, stdout: String::new(), stderr }
}

#[test]
fn a_signal_ends_it_with_a_checkpoint() {
    let long = ["train.max_steps=60"];
    let expected = Trace::undisturbed(&Scene::new(), &long);
    for name in ["-TERM", "-INT"] {
        let scene = Scene::new();
        let mut child = scene.train(&long).spawn().unwrap();
        wait_for("checkpoint after step 6", &mut child);
        signal(child.id(), name);
        let stopped = rest(child);
        stopped.says(130, &["stopped after step", "of 60", "--resume"]);
        let newest = newest_step(&scene.path("run/checkpoints"));
        assert!((6..60).contains(&newest), "{}", stopped.stderr);
        assert!(stopped.stderr.contains(&format!("stopped after step {newest} of 60")));
        let resumed = ended(&mut scene.train(&["--resume", long[0]]));
        resumed.says(0, &[]);
        assert_eq!(went_on_after(&resumed), newest);
        expected.assert_same(&scene, name);
    }
}

/// A signal while model and data are read: nothing has begun, and nothing is left of it.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_before_training_leaves_nothing() {
    let scene = Scene::new();
    for more in [&[][..], &["--events", "json"]] {
        let child = stopped_at("run_dir.locked", &mut scene.train(more));
        signal(child.id(), "-INT");
        let stopped = continued(child);
        stopped.says(130, &["stopped before training: run is as it was before"]);
        assert!(!scene.run_dir().exists(), "{:?}", entries(&scene.run_dir()));
        let last = stopped.stdout.lines().last().unwrap_or_default();
        assert_eq!(last.contains("\"code\":\"interrupted\""), !more.is_empty(), "{last}");
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let scene = Scene::new();
    // A step of seconds: four thousand micro-batches.
    scene.write("train.jsonl", &rows(16_000));
    let mut child = scene.train(&["train.batch_tokens=131072"]).spawn().unwrap();
    wait_for("evaluation after step 0", &mut child);
    signal(child.id(), "-INT");
    wait_for("a second signal stops immediately", &mut child);
    signal(child.id(), "-INT");
    let stopped = rest(child);
    assert_eq!(stopped.status, Some(130), "{}", stopped.stderr);
    assert!(!stopped.stderr.contains("stopped after step"), "{}", stopped.stderr);
    assert!(scene.lines("metrics.jsonl").is_empty());
    assert!(entries(&scene.path("run/checkpoints")).is_empty());
}

#[test]
fn a_full_disk_at_any_write_loses_nothing() {
    let expected = Trace::expected();
    let points = [
        "checkpoint.begin:1",
        "checkpoint.begin:2",
        "checkpoint.filled:3",
        "checkpoint.file_synced:4",
        "checkpoint.manifest_written:2",
        "checkpoint.directory_synced:2",
        "file.written:1",
        "file.written:2",
        "file.written:4",
        "file.written:8",
        "file.synced:9",
        "file.written:11",
    ];
    for point in points.into_iter().step_by(if is_full() { 1 } else { 3 }) {
        let scene = Scene::new();
        let full = ended(scene.train(&[]).env("HONE_FAILPOINT", format!("{point}=enospc")));
        full.says(2, &["disk full", "ree ", "--resume"]);
        says_what_is_safe(&scene, &full);
        resume(&scene);
        expected.assert_same(&scene, point);
    }
}

/// The newest checkpoint is whole, and the message names it.
#[track_caller]
fn says_what_is_safe(scene: &Scene, full: &Ended) {
    let root = scene.path("run/checkpoints");
    let (whole, rejected) = checkpoint::newest_whole(&root).unwrap();
    assert!(rejected.is_empty(), "{rejected:?}");
    if let Some(whole) = whole {
        full.says(2, &[&format!("step-{}, is intact", whole.step)]);
    }
}

#[test]
fn a_real_full_disk_loses_nothing() {
    let scene = Scene::new();
    let at = scene.run_dir();
    let Some(disk) = SmallDisk::mount(&at, 8) else { return };
    let expected = Trace::expected();
    let mut failures = 0;
    for kib in (8..2000).step_by(24) {
        disk.grow(kib);
        let run = ended(&mut scene.train(&["--resume"]));
        if run.status == Some(0) {
            break;
        }
        failures += 1;
        run.says(2, &["disk full", "ree ", "--resume"]);
        says_what_is_safe(&scene, &run);
    }
    assert!(failures > 3, "the disk was never full");
    expected.assert_same(&scene, "a full disk");
}

#[test]
fn a_step_that_is_not_finite_stops_the_run() {
    let expected = Trace::expected();
    let scene = Scene::new();
    let injected = ("HONE_FAILPOINT", "loop.nonfinite:5=enospc");
    let stopped = ended(scene.train(&[]).env(injected.0, injected.1));
    stopped.says(1, &["step 5", "the loss is not finite", "was not applied", "on_nonfinite"]);
    assert_eq!(scene.lines("metrics.jsonl").len(), 4);
    assert_eq!(newest_step(&scene.path("run/checkpoints")), 3);
    resume(&scene);
    expected.assert_same(&scene, "went on without the fault");
}

/// Four micro-batches a step.
#[test]
fn memory_that_runs_out_in_a_step_ends_the_run_with_what_is_safe() {
    let expected = Trace::expected();
    for (passage, step, safe) in [(3, "step 1: ", None), (18, "step 5: ", Some(3))] {
        let scene = Scene::new();
        let injected = format!("loop.out_of_memory:{passage}=enospc");
        let ended = ended(scene.train(&[]).env("HONE_FAILPOINT", injected));
        let said =
            safe.map_or("no checkpoint yet".to_owned(), |step| format!("step-{step}, is intact"));
        ended.says(1, &[step, "host memory ran out", &said, "--resume", "budget.memory"]);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert_eq!(went_on_after(&resume(&scene)), safe.unwrap_or(0));
        expected.assert_same(&scene, &format!("memory ran out in {step}"));
    }
}

#[test]
fn a_step_that_is_not_finite_is_skipped_where_wanted() {
    let four_steps = Scene::new();
    ended(&mut four_steps.train(&["checkpoint.every_steps=4", "checkpoint.keep=9"])).says(0, &[]);
    let scene = Scene::new();
    let injected = ("HONE_FAILPOINT", "loop.nonfinite:5=enospc");
    let run = ended(scene.train(&["train.on_nonfinite=skip"]).env(injected.0, injected.1));
    run.says(0, &[]);
    let metrics = scene.lines("metrics.jsonl");
    assert_eq!(metrics.len(), 12);
    for line in metrics {
        let is_bad = line["step"].as_u64().unwrap() >= 5;
        assert_eq!((line["skipped"] == true, line["loss"].is_null()), (is_bad, is_bad), "{line}");
    }
    let digest = |scene: &Scene, file: &str| {
        sha256_of_file(&scene.path("run/checkpoints").join(file)).unwrap()
    };
    for file in ["params.safetensors", "optimizer.safetensors"] {
        let (found, applied) = (format!("step-12/{file}"), format!("step-4/{file}"));
        assert_eq!(digest(&scene, &found), digest(&four_steps, &applied), "{file}");
    }
    let state = std::fs::read_to_string(scene.path("run/checkpoints/step-12/state.json")).unwrap();
    assert!(state.contains("\"num_updates\":4"), "a skipped step is no update: {state}");
}
