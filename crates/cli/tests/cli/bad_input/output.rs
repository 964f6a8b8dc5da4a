//! Places to write to: taken, impossible, full; and runs that are not those to go on with.

use super::{Case, check, command, refused, replace, train};
use crate::sandbox::{Scene, SmallDisk, ended};

#[test]
fn directories() {
    check(&[
        train(
            "other files",
            |s| {
                std::fs::create_dir(s.path("run")).unwrap();
                s.write("run/thesis.tex", "dear");
            },
            &["output.dir: ", "run holds other files", "an empty or a new directory"],
        ),
        train(
            "a file",
            |s| s.write("run", "dear"),
            &["output.dir: ", "run is a file", "an empty or a new directory"],
        ),
        command(
            "a directory with somebody's run.toml",
            &["train", "run.toml", "output.dir=."],
            &["output.dir: . holds other files"],
        ),
        command(
            "a place below a file",
            &["train", "run.toml", "output.dir=run.toml/x"],
            &["output.dir: run.toml/x cannot be created or written", "that you may write to"],
        ),
        #[cfg(target_os = "linux")]
        command(
            "a place where nobody may write",
            &["train", "run.toml", "output.dir=/proc/hone"],
            &["output.dir: /proc/hone cannot be created or written", "that you may write to"],
        ),
    ]);
}

#[test]
fn runs() {
    let scene = Scene::new();
    assert_eq!(ended(&mut scene.train(&["train.max_steps=2"])).status, Some(0));
    let again = |name, more: &[&str], says: &[&str]| {
        refused(name, &scene, &mut scene.train(more), says);
    };
    again("a run", &[], &["already holds a run", "--resume", "another directory"]);
    let changed = &["--resume", "train.max_steps=3", "train.learning_rate=0.5"];
    let says = &["--resume", "train.max_steps: 2 → 3", "train.learning_rate: 0.01 → 0.5"];
    again("changed settings", changed, says);
    let same = &["--resume", "train.max_steps=2"];
    replace(&scene, "train.jsonl", "w", " w");
    again("changed data", same, &["--resume", "has changed", "train.jsonl", "another output.dir"]);
    replace(&scene, "train.jsonl", " w", "w");
    replace(&scene, "run/manifest.json", "\"numerics\": 3", "\"numerics\": 2");
    let says = &["manifest.json: written by Hone", "numerics 2", "Go on with that version"];
    again("another version's run", same, says);
    scene.write("run/manifest.json", "{");
    again("a damaged manifest", same, &["manifest.json: damaged", "another output.dir"]);
}

#[test]
fn exports() {
    check(&[
        command(
            "a directory that exists",
            &["export", "model", "--out", "model"],
            &["--out model already exists", "another"],
        ),
        command(
            "a file that exists",
            &["export", "model", "--out", "run.toml"],
            &["--out run.toml already exists"],
        ),
        command(
            "below nothing",
            &["export", "model", "--out", "nowhere/merged"],
            &["--out nowhere/merged: there is no directory nowhere", "create it"],
        ),
        command(
            "a file without its extension",
            &["export", "model", "--format", "gguf", "--out", "merged"],
            &["--out merged: end the name of a GGUF file in .gguf"],
        ),
        command(
            "a directory with it",
            &["export", "model", "--out", "merged.gguf"],
            &["--out merged.gguf: add --format gguf"],
        ),
        command(
            "quantised by the way",
            &["export", "model", "--compute", "int8", "--out", "merged"],
            &["--compute int8: an export needs no compute precision", "omit it"],
        ),
        command(
            "quantised after all",
            &["export", "model", "--base-precision", "int8", "--out", "merged"],
            &["--base-precision int8: an export needs no compute precision", "omit it"],
        ),
        command(
            "integers times floats",
            &["eval", "model", "--compute=int8", "--base-precision=bf16", "--data=train.jsonl"],
            &["--compute \"int8\" multiplies", "leave --base-precision out"],
        ),
        Case {
            name: "a bad model",
            spoil: |s| s.write("model/config.json", "{"),
            arguments: &["export", "model", "--out", "merged"],
            says: &["model/config.json"],
        },
    ]);
}

#[test]
fn a_full_disk_at_the_very_beginning_leaves_nothing() {
    for at in ["file.written=enospc", "file.synced:2=enospc"] {
        let scene = Scene::new();
        let mut train = scene.train(&[]);
        refused(at, &scene, train.env("HONE_FAILPOINT", at), &["disk full", "free "]);
    }
}

#[test]
fn a_disk_that_is_really_full() {
    let scene = Scene::new();
    let at = scene.path("small");
    let Some(_disk) = SmallDisk::mount(&at, 16) else { return };
    let export = &["export", "model", "--out", "small/merged"];
    refused("export", &scene, &mut scene.hone(export), &["small/", "o space left", "free some"]);
    let ended = ended(&mut scene.train(&["output.dir=small/run"]));
    ended.says(2, &["disk full", "small/", "ree "]);
}
