//! What bad tasks, data and requests get: one message that names file, line and key.

use super::scene::{Scene, folder};
use hone_eval::task::{Options, RunOptions};

const TASK: &str = "task: t\ndataset_path: json\ndataset_kwargs:\n  data_files: {test: t.jsonl}\n\
    test_split: test\noutput_type: multiple_choice\ndoc_to_text: \"{{q}}\"\ndoc_to_choice: c\n\
    doc_to_target: g\n";
const DATA: &str = "{\"q\": \"the\", \"c\": [\"a\", \"in\"], \"g\": 1}\n";

/// The message of a task of these files, `t.yaml` first.
fn message(scene: &Scene, files: &[(&str, &str)], options: &Options<'_>) -> String {
    let dir = folder(files);
    let found = scene.results(&[dir.path().join("t.yaml")], options, RunOptions::default());
    match found {
        Ok(_) => "accepted".to_owned(),
        Err(error) => error.to_string().replace(&format!("{}/", dir.path().display()), ""),
    }
}

#[test]
fn messages_name_file_line_and_key() {
    let scene = Scene::new();
    let with = |more: &str| format!("{TASK}{more}\n");
    let without = |key: &str| -> String {
        TASK.lines().filter(|line| !line.starts_with(key)).map(|l| format!("{l}\n")).collect()
    };
    let cases: [(String, &str); 18] = [
        (with(""), "accepted"),
        (with("doc_to_txt: q"), "t.yaml:10: doc_to_txt: an unknown key"),
        (with("process_docs: !function utils.f"), "process_docs: the Python function `utils.f`"),
        (with("use_prompt: x"), "t.yaml:10: use_prompt: is not read here; write the prompt as"),
        (without("task"), "t.yaml: has no `task`, its name"),
        (without("doc_to_choice"), "t.yaml: has no doc_to_choice"),
        (without("test_split"), "has neither test_split nor validation_split"),
        (without("dataset_path"), "t.yaml: has no dataset_path"),
        (TASK.replace("json\n", "org/set\n"), "t.yaml:2: dataset_path: `org/set` is no local file"),
        (TASK.replace("t.jsonl", "u.jsonl"), "u.jsonl: No such file"),
        (TASK.replace("multiple_choice", "choice"), "t.yaml:6: output_type: `choice` is not known"),
        (
            with("metric_list: [{metric: bleu}]"),
            "metric_list.metric: `bleu` is not known for multiple_choice",
        ),
        (
            with("metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc}]"),
            "t.yaml:10: metric_list: `acc` is in the list twice",
        ),
        (with("metric_list: [{metric: acc, k: 1}]"), "t.yaml:10: metric_list.k: an unknown key"),
        (with("filter_list: [{name: x, filter: []}]"), "filters are for generate_until"),
        (with("fewshot_config: {sampler: best}"), "fewshot_config.sampler: `best` is not known"),
        (with("repeats: 3"), "t.yaml:10: repeats: greedy answers are the same"),
        (with("num_fewshot: -1"), "t.yaml:10: num_fewshot: must be at least 0"),
    ];
    for (task, expected) in &cases {
        check(&scene, task, DATA, expected);
    }
}

/// That a task gets a message.
fn check(scene: &Scene, task: &str, data: &str, expected: &str) {
    let files = [("t.yaml", task), ("t.jsonl", data)];
    let found = message(scene, &files, &Options::default());
    assert!(found.contains(expected), "{task}\n{data}\n{found}\nlacks {expected}");
}

#[test]
fn messages_name_the_document() {
    let scene = Scene::new();
    let in_array = format!("[\n{DATA},\n{}]", DATA.replace("\"g\": 1", "\"g\": 2"));
    let cases: [(String, &str, &str); 10] = [
        (TASK.replace("{{q}}", "{{q"), DATA, "t.yaml:7: doc_to_text: not a template"),
        (TASK.replace("{{q}}", "{{r}}"), DATA, "t.jsonl:1: lacks the field `r`"),
        (TASK.to_owned(), "", "t.jsonl: has no records"),
        (TASK.to_owned(), "{\"q\": 1}\n{\"q\"\n", "t.jsonl:2: not JSON"),
        (TASK.to_owned(), "[1]", "t.jsonl: record 1 is no object"),
        (
            TASK.to_owned(),
            &DATA.replace("\"g\": 1", "\"g\": 2"),
            "t.jsonl:1: 2 is none of the 2 choices",
        ),
        (TASK.to_owned(), &DATA.replace("\"c\"", "\"d\""), "t.jsonl:1: expected a list"),
        (
            TASK.to_owned(),
            &format!("{DATA}{}", DATA.replace("\"c\": [\"a\", \"in\"], ", "")),
            "t.jsonl:2: lacks the field `c`",
        ),
        (TASK.to_owned(), &in_array, "t.jsonl: record 2: 2 is none of the 2 choices"),
        (
            TASK.replace("kwargs:\n", "kwargs:\n  field: rows\n"),
            &format!("{{\n\"rows\": {in_array}}}"),
            "t.jsonl: record 2: 2 is none of the 2 choices",
        ),
    ];
    for (task, data, expected) in &cases {
        check(&scene, task, data, expected);
    }
}

#[test]
fn too_few_examples_are_refused() {
    let scene = Scene::new();
    let task = format!("{TASK}fewshot_split: test\n");
    let files = [("t.yaml", task.as_str()), ("t.jsonl", DATA)];
    let options = Options { num_fewshot: Some(1), ..Options::default() };
    let found = message(&scene, &files, &options);
    assert!(found.contains("too few examples for 1"), "{found}");
    let options = Options { num_fewshot: Some(2), ..Options::default() };
    let found = message(&scene, &files, &options);
    assert!(found.contains("2 examples are asked for, and there are 1"), "{found}");
}

#[test]
fn groups_name_what_they_lack() {
    let scene = Scene::new();
    for (group, expected) in [
        ("group: g\ntask: [nowhere]\n", "t.yaml:2: task: `nowhere` is no task, group or tag"),
        ("group: g\ntask: [h]\n", "contains itself"),
        ("group: g\n", "the group g has no task"),
        ("task: [a]\n", "t.yaml:1: task: a list of tasks needs `group`"),
        (
            "group: g\ntask: [u]\naggregate_metric_list: [{metric: acc, aggregation: max}]\n",
            "aggregate_metric_list.aggregation: groups have `mean` only",
        ),
        (
            "group: g\ntask: [u, {task: u, num_fewshot: 1}]\n",
            "u: is asked for twice, with another `num_fewshot`",
        ),
    ] {
        let other = "group: h\ntask: [g]\n";
        let task = TASK.replace("task: t", "task: u");
        let files = [("t.yaml", group), ("h.yaml", other), ("u.yaml", &task), ("t.jsonl", DATA)];
        let found = message(&scene, &files, &Options::default());
        assert!(found.contains(expected), "{group}{found}\nlacks {expected}");
    }
}
