//! A second process in one run directory is refused, in whatever instant it comes, and the first
//! never notices.

use super::trace::{Trace, resume, signal};
use crate::sandbox::{Ended, Scene, ended, entries};
use std::process::{Child, Command};
use std::sync::Barrier;
use std::time::{Duration, Instant};

const REFUSED: [&str; 3] = ["another process (", ") is training in run", "another directory"];

/// Starts a process that stops itself at `point`, and waits until it has.
#[cfg(target_os = "linux")]
pub fn stopped_at(point: &str, command: &mut Command) -> Child {
    let child = command.env("HONE_FAILPOINT", format!("{point}=stop")).spawn().unwrap();
    let stat = format!("/proc/{}/stat", child.id());
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(&stat).unwrap();
        let state = text.rsplit_once(") ").unwrap().1.chars().next();
        match state {
            Some('T') => return child,
            Some('Z') => panic!("{point} is never passed"),
            _ => assert!(begun.elapsed() < Duration::from_secs(120), "{point}: {state:?}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets it go on to its end.
pub fn continued(child: Child) -> Ended {
    signal(child.id(), "-CONT");
    Ended::from(child.wait_with_output().unwrap())
}

/// The first process is halted where it has nothing but the lock, where it has written half of a
/// beginning, while it trains and while it writes a checkpoint.
#[cfg(target_os = "linux")]
#[test]
fn at_every_stage_of_the_first() {
    let expected = Trace::undisturbed(&Scene::new(), &[]);
    let stages = [
        "run_dir.locked",
        "file.written",
        "file.renamed",
        "file.synced:2",
        "file.renamed:2",
        "loop.updated:2",
        "checkpoint.manifest_written",
    ];
    for stage in stages {
        let scene = Scene::new();
        let first = stopped_at(stage, &mut scene.train(&[]));
        let before = entries(&scene.run_dir());
        for more in [&[][..], &["--resume"]] {
            let second = ended(&mut scene.train(more));
            second.says(2, &REFUSED).says(2, &[&format!("({})", first.id())]);
            assert!(!second.stderr.contains("settings"), "{}", second.stderr);
            assert_eq!(entries(&scene.run_dir()), before, "{stage} {more:?}");
        }
        continued(first).says(0, &[]);
        expected.assert_same(&scene, stage);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn while_the_first_resumes() {
    let scene = Scene::new();
    let expected = Trace::undisturbed(&Scene::new(), &[]);
    let killed = ended(scene.train(&[]).env("HONE_FAILPOINT", "loop.updated:8"));
    assert_eq!(killed.status, None, "{}", killed.stderr);
    let first = stopped_at("run_dir.locked", &mut scene.train(&["--resume"]));
    ended(&mut scene.train(&["--resume"])).says(2, &REFUSED);
    continued(first).says(0, &[]);
    expected.assert_same(&scene, "resumed");
}

/// What a first process leaves that cannot begin is nothing, and nothing of it is in the next
/// one's way.
#[cfg(target_os = "linux")]
#[test]
fn after_a_beginning_that_failed() {
    let scene = Scene::new();
    let too_large = ["budget.memory=1MiB"];
    let first = stopped_at("run_dir.locked", &mut scene.train(&too_large));
    ended(&mut scene.train(&[])).says(2, &REFUSED);
    continued(first).says(2, &["this run needs"]);
    assert!(!scene.run_dir().exists(), "{:?}", entries(&scene.run_dir()));
    resume(&scene);
}

/// Many starts in the same instant: one trains, the others are refused.
#[test]
fn in_the_same_instant() {
    const STARTS: usize = 3;
    let expected = Trace::undisturbed(&Scene::new(), &[]);
    for more in [&[][..], &["--resume"], &[]] {
        let (scene, barrier) = (Scene::new(), Barrier::new(STARTS));
        let start = || {
            let mut command = scene.train(more);
            barrier.wait();
            ended(&mut command)
        };
        let all: Vec<Ended> = std::thread::scope(|threads| {
            let starts: Vec<_> = (0..STARTS).map(|_| threads.spawn(start)).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = all.iter().partition(|end| end.status == Some(0));
        assert!(!won.is_empty(), "{}", lost[0].stderr);
        // One that came when the first had ended may have found a run to write the result of.
        assert!(won.len() == 1 || !more.is_empty());
        for second in lost {
            let holds_run = second.stderr.contains("already holds a run");
            second.says(2, if holds_run { &["--resume"] } else { &REFUSED });
        }
        expected.assert_same(&scene, "the one that came first");
    }
}
