//! What programs read: the events of a run, and the codes of errors.

use super::{Scene, json as output_of, succeeds};
use crate::sandbox::tiny_model::{rows, write_model};
use crate::sandbox::{Ended, ended};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};

fn events(ended: &Ended) -> Vec<Value> {
    ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn names(events: &[Value]) -> Vec<&str> {
    let names = events.iter().map(|event| event["event"].as_str().unwrap());
    // Progress depends on the machine.
    names.filter(|name| !["note", "evaluation_progress"].contains(name)).collect()
}

#[test]
fn a_run_is_a_stream_of_events() {
    let scene = Scene::new();
    let run = succeeds(&mut scene.train(&["--events", "json", "train.max_steps=3"]));
    let heard = events(&run);
    let expected = [
        "started",
        "plan",
        "begun",
        "sampling",
        "sampled",
        "evaluating",
        "eval",
        "step",
        "step",
        "step",
        "checkpoint",
        "evaluating",
        "eval",
        "sampling",
        "sampled",
        "finished",
    ];
    assert_eq!(names(&heard), expected);
    let of = |name: &str| -> Vec<Value> {
        let named = heard.iter().filter(|event| event["event"] == name).cloned();
        named
            .map(|mut event| {
                event.as_object_mut().unwrap().remove("event");
                event
            })
            .collect()
    };
    assert_eq!(of("step"), scene.lines("metrics.jsonl"), "all that a step records");
    assert_eq!(of("eval"), scene.lines("eval.jsonl"));
    assert_eq!(
        (&of("started")[0]["num_steps"], &of("started")[0]["output_dir"]),
        (&json!(3), &json!("run"))
    );
    assert_eq!(of("checkpoint"), [json!({ "step": 3 })]);
    assert!(of("plan")[0]["peak_bytes"].as_u64() > Some(0));
    assert_eq!(of("finished")[0]["result"], "run/adapter");
    assert!(!run.stderr.contains("step 3/3"), "{}", run.stderr);
}

/// An evaluation of seconds tells how far it is.
#[test]
fn a_long_evaluation_shows_its_progress() {
    let scene = Scene::new();
    // The first progress is enough; more rows where the machine evaluates these too fast for it.
    for num_rows in [20_000, 100_000, 500_000] {
        scene.write("eval.jsonl", &rows(num_rows));
        let dir = format!("output.dir={num_rows}");
        let settings = ["--events", "json", "train.max_steps=1", "report.samples=0", &dir];
        let mut child = scene.train(&settings).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut heard = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        let ends = [json!("evaluation_progress"), json!("eval")];
        let event = heard.find(|event| ends.contains(&event["event"])).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        if event["event"] == "evaluation_progress" {
            assert_eq!(event["rows"], num_rows, "{event}");
            assert!((1..=num_rows).contains(&event["rows_done"].as_u64().unwrap()), "{event}");
            return;
        }
    }
    panic!("an evaluation of 500000 rows tells no progress");
}

#[test]
fn the_stream_ends_with_the_error() {
    let scene = Scene::new();
    let flag = ended(&mut scene.train(&["--events", "json", "--resum"]));
    assert_eq!((flag.status, names(&events(&flag))), (Some(2), vec!["failed"]));
    assert_eq!(events(&flag)[0]["code"], "command_line.invalid");
    let bad = ended(&mut scene.train(&["--events", "json", "train.learning_rte=1"]));
    bad.says(2, &["train.learning_rte"]);
    let heard = events(&bad);
    assert_eq!(names(&heard), ["failed"]);
    assert_eq!(heard[0]["code"], "run_file.unknown_key");
    assert!(bad.stderr.contains(heard[0]["message"].as_str().unwrap()));
    let mut train = scene.train(&["--events", "json", "train.max_steps=4"]);
    let nan = ended(train.env("HONE_FAILPOINT", "loop.nonfinite:2=enospc"));
    let heard = events(&nan);
    assert_eq!(nan.status, Some(1), "{}", nan.stderr);
    assert_eq!(names(&heard)[7..], ["step", "failed"]);
    assert_eq!(heard.last().unwrap()["code"], "train.not_finite");
    let resumed = succeeds(&mut scene.train(&["--events=json", "--resume", "train.max_steps=4"]));
    assert_eq!(names(&events(&resumed)).last(), Some(&"finished"));
}

#[test]
fn errors_have_codes() {
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=2"]));
    write_model("tied_gqa", &scene.path("broken"));
    scene.write("broken/tokenizer.json", "{");
    let turns = json!([{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]);
    scene.write("chat.jsonl", &json!({ "messages": turns }).to_string());
    for (arguments, code) in [
        (&["train", "nowhere.toml"][..], "run_file.unreadable"),
        (&["train", "run.toml", "train.max_steps=0"], "run_file.invalid_value"),
        (&["train", "run.toml", "train.max_steps"], "run_file.syntax"),
        (&["train", "run.toml"], "run_dir.taken"),
        (&["train", "run.toml", "output.dir=a", "data.train=nowhere.jsonl"], "data.file"),
        (&["train", "run.toml", "output.dir=a", "data.train=chat.jsonl"], "data.setup"),
        (&["train", "run.toml", "output.dir=a", "run.device=tpu"], "device.unknown"),
        (&["train", "run.toml", "output.dir=a", "budget.memory=1MiB"], "memory.does_not_fit"),
        (
            &["train", "run.toml", "--resume", "train.max_steps=2", "train.seed=7"],
            "resume.settings_changed",
        ),
        (&["train", "run.toml", "--resume", "train.max_steps=5"], "resume.not_extendable"),
        (&["train", "run.toml", "output.dir=a", "model.path=broken"], "model.invalid"),
        (&["report", "nowhere"], "command_line.invalid"),
        (&["report", "run", "--nosuch"], "command_line.invalid"),
        (&["train", "--resume"], "command_line.invalid"),
        (&["plan", "run.toml", "--device", "z80"], "device.unknown"),
    ] {
        let failed = ended(&mut scene.hone(&[arguments, &["--json"]].concat()));
        assert_ne!(failed.status, Some(0), "{arguments:?}");
        let error = &serde_json::from_str::<Value>(&failed.stdout).unwrap()["error"];
        assert_eq!(error["code"], code, "{arguments:?}: {error}");
        assert!(failed.stderr.contains(error["message"].as_str().unwrap()), "{error}");
    }
    let mut far = scene.hone(&["plan", "run.toml", "model.path=org/name", "--json"]);
    let far = ended(far.env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_HUB_OFFLINE"));
    assert!(far.stdout.contains("\"hub.unreachable\""), "{}", far.stdout);
    let fits = output_of(&mut scene.hone(&["plan", "run.toml", "--json"]));
    assert!(fits.get("error").is_none(), "{fits}");
}
