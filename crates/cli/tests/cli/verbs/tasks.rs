//! `hone eval --task`

use crate::sandbox::{Ended, Scene, ended};
use serde_json::Value;

const TASK: &str = "\
task: choice
dataset_path: json
dataset_kwargs:
  data_files: {test: t.jsonl}
test_split: test
output_type: multiple_choice
doc_to_text: \"{{q}}\"
doc_to_choice: c
doc_to_target: g
";
const DATA: &str = "{\"q\": \"w3 w4\", \"c\": [\"w5\", \"w6 w7\"], \"g\": 1}\n\
    {\"q\": \"w8\", \"c\": [\"w5 w9\", \"w6\", \"w4\"], \"g\": 0}\n";

fn eval(scene: &Scene, more: &[&str]) -> Ended {
    ended(&mut scene.hone(&[&["eval", "model", "--threads", "2"], more].concat()))
}

#[test]
fn a_task_has_a_table_json_and_items() {
    let scene = Scene::new();
    scene.write("task.yaml", TASK);
    scene.write("t.jsonl", DATA);
    let table = eval(&scene, &["--task", "task.yaml"]);
    table.says(0, &[]);
    let rows: Vec<&str> = table.stdout.lines().collect();
    assert!(rows[0].trim_start().starts_with("task    metric"), "{}", table.stdout);
    assert!(rows[1].trim_start().starts_with("choice  acc ↑"), "{}", table.stdout);
    assert!(rows[2].trim_start().starts_with("acc_norm ↑"), "{}", table.stdout);
    let files = ["--json", "--output", "out.json", "--items", "items.jsonl", "--limit", "0.5"];
    let found = eval(&scene, &[&["--task", "task.yaml"], &files[..]].concat());
    found.says(0, &[]);
    let object: Value = serde_json::from_str(&found.stdout).unwrap();
    let written = std::fs::read_to_string(scene.path("out.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), object);
    let acc = &object["tasks"][0];
    assert_eq!((&acc["task"], &acc["metric"]), (&"choice".into(), &"acc".into()));
    assert_eq!((&acc["num_items"], &acc["stderr"]), (&1.into(), &Value::Null));
    assert_eq!(acc["interval"].as_array().unwrap().len(), 2);
    assert!(acc["value"].is_number() && object["items_per_second"].as_f64().unwrap() > 0.0);
    let items = std::fs::read_to_string(scene.path("items.jsonl")).unwrap();
    let item: Value = serde_json::from_str(items.trim_end()).unwrap();
    assert_eq!(item["requests"][1]["continuation"], " w6 w7");
    assert_eq!(item["log_likelihoods"].as_array().unwrap().len(), 2);
    assert_eq!(item["target"], 1);
    assert_eq!(item["metrics"]["acc"], acc["value"]);
}

/// Documents are found below the folder of `--data`.
#[test]
fn data_may_be_elsewhere() {
    let scene = Scene::new();
    scene.write("task.yaml", TASK);
    std::fs::create_dir(scene.path("sets")).unwrap();
    scene.write("sets/t.jsonl", DATA);
    eval(&scene, &["--task", "task.yaml"]).says(2, &["task.yaml:4: ", "t.jsonl", "--data names"]);
    eval(&scene, &["--task", "task.yaml", "--data", "sets"]).says(0, &[]);
    eval(&scene, &["--task", "task.yaml", "--data", "task.yaml"]).says(2, &["is no folder"]);
    // A file has its name from whoever wrote it, and a folder of data from the task.
    std::fs::create_dir(scene.path("gsm8k")).unwrap();
    eval(&scene, &["--task", "gsm8k"]).says(2, &["gsm8k/", "--data names"]);
    scene.write("arc_easy", &TASK.replace("task: choice", "task: own"));
    let own = eval(&scene, &["--task", "arc_easy", "--data", "sets"]);
    own.says(0, &[]);
    assert!(own.stdout.contains("own"), "{}", own.stdout);
    eval(&scene, &["--task", "arc_hard"]).says(2, &["tasks that come with Hone are arc_challenge"]);
}

#[test]
fn what_a_task_cannot_have_is_refused() {
    let scene = Scene::new();
    scene.write("task.yaml", &format!("{TASK}process_docs: !function utils.clean\n"));
    scene.write("t.jsonl", DATA);
    let refused = eval(&scene, &["--task", "task.yaml", "--json"]);
    refused.says(2, &["task.yaml:10: process_docs: the Python function `utils.clean`"]);
    let object: Value = serde_json::from_str(&refused.stdout).unwrap();
    assert_eq!(object["error"]["code"], "command_line.invalid");
    scene.write("task.yaml", TASK);
    let task = ["--task", "task.yaml"];
    let with = |more: &[&'static str]| eval(&scene, &[&task[..], more].concat());
    with(&["--apply-chat-template"]).says(2, &["this model has no chat template"]);
    with(&["--num-fewshot", "3"]).says(2, &["3 examples are asked for, and there are 2"]);
    with(&["--max-seq-len", "99"]).says(2, &["--max-seq-len 99 is longer than the model supports"]);
    with(&["--truncate"]).says(2, &["--truncate"]);
    with(&["--limit", "0"]).says(2, &["--limit"]);
    with(&["--output", "nowhere/out.json"]).says(2, &["there is no directory nowhere"]);
    eval(&scene, &["--data", "t.jsonl", "--limit", "3"]).says(2, &["--task"]);
}

/// A file of the same model passes; one that says that all was right fails, and says why.
#[test]
fn a_gate_refuses_what_is_worse() {
    let scene = Scene::new();
    scene.write("task.yaml", TASK);
    // Right, for the model, is the first of two answers in half of the documents.
    let line = |i: usize| {
        format!("{{\"q\": \"w{} w4\", \"c\": [\"w5\", \"w6\"], \"g\": 1}}\n", i % 30 + 3)
    };
    scene.write("t.jsonl", &(0..60).map(line).collect::<String>());
    let task = ["--task", "task.yaml"];
    let with = |more: &[&str]| eval(&scene, &[&task[..], more].concat());
    with(&["--output", "before.json"]).says(0, &[]);
    let same = with(&["--gate", "before.json", "--json"]);
    same.says(0, &[]);
    let object: Value = serde_json::from_str(&same.stdout).unwrap();
    let gate = object["gate"].as_array().unwrap();
    assert_eq!((gate.len(), &gate[0]["is_worse"]), (2, &Value::Bool(false)));
    assert_eq!(gate[0]["before"], gate[0]["after"]);

    let written = std::fs::read_to_string(scene.path("before.json")).unwrap();
    let mut before: Value = serde_json::from_str(&written).unwrap();
    let wrong = before["tasks"][0]["scores"].as_array().unwrap().iter();
    assert!(wrong.filter(|score| **score == 0.0).count() > 5, "{before}");
    before["tasks"][0]["scores"] = vec![1.0; 60].into();
    scene.write("better.json", &before.to_string());
    let worse = with(&["--gate", "better.json"]);
    worse.says(1, &["--gate: choice is worse than before: acc 1.0000 → "]);
    assert!(worse.stdout.contains("gate: choice worse: acc 1.0000"), "{}", worse.stdout);
    assert!(worse.stdout.contains("gate: choice passes: acc_norm"), "{}", worse.stdout);

    // A metric that is not measured any more is seen before the model is asked.
    scene.write("task.yaml", &format!("{TASK}metric_list: [{{metric: acc}}]\n"));
    let fewer = with(&["--gate", "before.json", "--output", "new.json"]);
    fewer.says(2, &["before.json: has `acc_norm` (filter `none`) of `choice`, which is not meas"]);
    assert!(!scene.path("new.json").exists());
    scene.write("task.yaml", TASK);

    for (flag, path) in [
        ("--output", "before.json"),
        ("--output", "./before.json"),
        ("--output", "model/../before.json"),
        ("--items", "./before.json"),
    ] {
        let what = format!("{flag} {path}: names the file of --gate");
        with(&["--gate", "before.json", flag, path]).says(2, &[&what, "choose another"]);
    }
    with(&["--output", "new.json", "--items", "./new.json"])
        .says(2, &["--items ./new.json: names the file of --output"]);
    assert_eq!(std::fs::read_to_string(scene.path("before.json")).unwrap(), written);
    assert!(!scene.path("new.json").exists());
    with(&["--gate", "before.json", "--limit", "9"]).says(2, &["before.json", "other items"]);
    scene.write("named.yaml", &TASK.replace("task: choice", "task: other"));
    eval(&scene, &["--task", "named.yaml", "--gate", "before.json"])
        .says(2, &["has the task `choice`, which is not evaluated; add --task choice"]);
    scene.write("none.json", "{\"loss\": 1.0}");
    with(&["--gate", "none.json"]).says(2, &["none.json: is not what `hone eval --task"]);
}
