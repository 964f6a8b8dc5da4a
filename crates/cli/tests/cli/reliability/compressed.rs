//! `hone compress` that is killed: the same command goes on, and ends with the same file.

use super::kills::instants;
use crate::sandbox::{Scene, ended, entries};
use crate::verbs::compress::{stories, write_text};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// All that takes long: importance, types, feedback, roundings.
const LONG: [&str; 6] =
    ["--calibration", "text.jsonl", "--calibration-tokens", "2048", "--target-bpw", "10"];
/// What does not.
const SHORT: [&str; 4] = ["--type", "q4_0", "--fallback", "llama.cpp"];

/// A text, and a model if there is one.
fn scene() -> Option<(Scene, String)> {
    let (scene, model) = (Scene::new(), stories()?);
    write_text(&scene, 30_000);
    Some((scene, model.to_string_lossy().into_owned()))
}

fn compress(scene: &Scene, model: &str, out: &str, flags: &[&str]) -> Command {
    scene.hone(&[&["compress", model, "--out", out][..], flags].concat())
}

fn started(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Kills it after `delay`; whether it was still running.
fn killed_after(mut child: Child, delay: Duration) -> bool {
    std::thread::sleep(delay);
    child.kill().unwrap();
    child.wait().unwrap().code().is_none()
}

/// What there is of a name, and nothing else.
#[track_caller]
fn assert_left(scene: &Scene, name: &str, expected: &[&str]) {
    let all = entries(scene.path(name).parent().unwrap());
    let left: Vec<&String> = all.iter().filter(|entry| entry.contains(name)).collect();
    assert_eq!(left, expected);
}

#[test]
fn at_random_instants() {
    let Some((scene, model)) = scene() else { return };
    let begun = Instant::now();
    ended(&mut compress(&scene, &model, "whole.gguf", &LONG)).says(0, &[]);
    let duration = begun.elapsed();
    let mut kills = 0;
    for instant in instants().take(4) {
        let delay = duration.mul_f64(0.1 + 0.4 * instant);
        kills += u32::from(killed_after(started(compress(&scene, &model, "a.gguf", &LONG)), delay));
    }
    assert!(kills > 0);
    if !scene.path("a.gguf").exists() || scene.path("a.gguf.work").exists() {
        let has_kept = scene.path("a.gguf.work/importance.gguf").exists();
        let says: &[&str] = if has_kept { &["note: going on from a.gguf.work: "] } else { &[] };
        ended(&mut compress(&scene, &model, "a.gguf", &LONG)).says(0, says);
    }
    let [whole, killed] = ["whole.gguf", "a.gguf"].map(|at| std::fs::read(scene.path(at)).unwrap());
    assert!(whole == killed, "after {kills} kills");
    assert_left(&scene, "a.gguf", &["a.gguf"]);
}

/// What another command had done is of no use.
#[test]
fn and_started_with_other_flags() {
    let Some((scene, model)) = scene() else { return };
    let first = started(compress(&scene, &model, "a.gguf", &LONG));
    let kept = scene.path("a.gguf.work/importance.gguf");
    let begun = Instant::now();
    while !kept.exists() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(5));
    }
    // Meanwhile nobody else may work on it.
    let second = ended(&mut compress(&scene, &model, "a.gguf", &SHORT));
    let id = format!("--out a.gguf: another process ({}) is writing it", first.id());
    second.says(2, &[&id, "another name"]);
    assert!(killed_after(first, Duration::ZERO));
    // A mistake costs nothing of it.
    ended(&mut compress(&scene, &model, "a.gguf", &["--type", "q9"])).says(2, &["is not known"]);
    assert!(kept.exists());
    // Nor what is wrong with the same command by now.
    scene.write("i.gguf", "");
    let saved = [&LONG[..], &["--save-imatrix", "i.gguf"]].concat();
    let refused = ended(&mut compress(&scene, &model, "a.gguf", &saved));
    refused.says(2, &["going on from a.gguf.work", "--save-imatrix i.gguf already exists"]);
    assert!(kept.exists());
    let other = ended(&mut compress(&scene, &model, "a.gguf", &SHORT));
    other.says(0, &["a.gguf.work was made by another command (--calibration differs)"]);
    ended(&mut compress(&scene, &model, "b.gguf", &SHORT)).says(0, &[]);
    let [found, expected] = ["a.gguf", "b.gguf"].map(|at| std::fs::read(scene.path(at)).unwrap());
    assert!(found == expected);
    assert_left(&scene, "a.gguf", &["a.gguf"]);
}

/// What is not ours is not touched.
#[test]
fn beside_other_files() {
    let Some((scene, model)) = scene() else { return };
    std::fs::create_dir(scene.path("a.gguf.work")).unwrap();
    scene.write("a.gguf.work/thesis.txt", "");
    ended(&mut compress(&scene, &model, "a.gguf", &SHORT))
        .says(2, &["a.gguf.work, which is something else", "choose another name"]);
    assert_left(&scene, "a.gguf", &["a.gguf.work"]);
    assert!(scene.path("a.gguf.work/thesis.txt").exists());
}
