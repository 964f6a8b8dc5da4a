//! Numbers of lm-evaluation-harness, by `scripts/goldens_eval.py`.

use super::scene::{Scene, goldens};
use hone_eval::task::result::Value;
use hone_eval::task::{Options, Results, RunOptions};
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Each run of the script: the same requests, log-probabilities within 1e-3, and the same answers,
/// metrics of each document, values and standard errors, to the digits that are printed.
#[test]
fn everything_is_as_the_harness_has_it() {
    let text = std::fs::read_to_string(goldens().join("golden.json")).unwrap();
    let golden: Json = serde_json::from_str(&text).unwrap();
    let scene = Scene::new();
    let all =
        ["choice", "drawn", "numbers", "winogrande", "copa", "words", "empty", "pages", "sums"];
    let all = [&all[..], &["several", "prefixed"]].concat();
    let chat = scene.tokenizer.chat_template();
    let plain = RunOptions { num_threads: 2, ..RunOptions::default() };
    let runs: [(&str, &[&str], Option<usize>, RunOptions<'_>); 4] = [
        ("plain", &all, None, plain),
        ("group", &["both"], None, plain),
        ("limited", &["choice", "drawn"], Some(3), RunOptions { limit: Some(5.0), ..plain }),
        ("chat", &["choice", "drawn", "sums", "prefixed"], None, RunOptions { chat, ..plain }),
    ];
    for (name, tasks, num_fewshot, run_options) in runs {
        let file = |task: &&str| goldens().join("tasks").join(format!("{task}.yaml"));
        let files: Vec<PathBuf> = tasks.iter().map(file).collect();
        let options = Options { folder: None, num_fewshot };
        let found = scene.results(&files, &options, run_options).unwrap();
        let golden = &golden[name];
        assert_eq!(found.tasks.len(), golden["tasks"].as_object().unwrap().len(), "{name}");
        for task in &found.tasks {
            let place = format!("{name}, {}", task.name);
            let golden = &golden["tasks"][&task.name];
            same_values(&place, &task.values, &golden["values"]);
        }
        same_items(name, &found, &golden["tasks"]);
        for group in &found.groups {
            let place = format!("{name}, {}", group.name);
            same_values(&place, &group.values, &golden["groups"][&group.name]);
        }
    }
}

/// Whether both are printed alike, to four digits; huge perplexities, which a random model has, are
/// as near as log-likelihoods must be.
fn is_same(found: Option<f64>, expected: Option<f64>) -> bool {
    match (found, expected) {
        (Some(a), Some(b)) if b > 1e4 => (a / b).ln().abs() < 1e-3,
        (a, b) => a.map(|a| format!("{a:.4}")) == b.map(|b| format!("{b:.4}")),
    }
}

fn same_values(place: &str, found: &[Value], golden: &Json) {
    let mut numbers = BTreeMap::new();
    for Value { metric, filter, estimate, .. } in found {
        numbers.insert(format!("{metric},{filter}"), Some(estimate.value));
        numbers.insert(format!("{metric}_stderr,{filter}"), estimate.stderr);
    }
    let golden = golden.as_object().unwrap_or_else(|| panic!("{place}: no such golden"));
    let names = |golden: &serde_json::Map<String, Json>| golden.keys().cloned().collect::<Vec<_>>();
    let mut expected = names(golden);
    expected.sort();
    assert_eq!(numbers.keys().cloned().collect::<Vec<_>>(), expected, "{place}");
    for (key, found) in numbers {
        let expected = golden[&key].as_f64();
        assert!(is_same(found, expected), "{place}: {key} {found:?}, not {expected:?}");
    }
}

fn same_items(run: &str, found: &Results, golden: &Json) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for item in found.items() {
        let task = item["task"].as_str().unwrap();
        let golden = &golden[task]["items"];
        // Of several pipelines, the golden has an entry for each of the same document.
        let filters: std::collections::BTreeSet<_> = golden
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["filter"].as_str().unwrap())
            .collect();
        let number = seen.entry(task.to_owned()).or_default();
        for (i, filter) in filters.iter().enumerate() {
            let place = format!("{run}, {task}, item {number}, {filter}");
            let golden = &golden[*number * filters.len() + i];
            assert_eq!(golden["filter"], **filter, "{place}");
            same_item(&place, &item, golden, (*filter, filters.len()));
        }
        *number += 1;
    }
}

fn same_item(place: &str, item: &Json, golden: &Json, (filter, num_filters): (&str, usize)) {
    let texts = |request: &Json| -> Vec<Json> {
        let request = request.as_object().unwrap();
        request.values().cloned().collect()
    };
    let requests: Vec<_> = item["requests"].as_array().unwrap().iter().map(texts).collect();
    assert_eq!(Json::from(requests), golden["requests"], "{place}");
    if let Some(answer) = golden.get("answer") {
        assert_eq!(item["answer"], *answer, "{place}");
        assert_eq!(item["prediction"][filter], golden["prediction"], "{place}");
    } else {
        let numbers = |of: &Json| -> Vec<f64> {
            of["log_likelihoods"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        for (ours, theirs) in numbers(item).iter().zip(numbers(golden)) {
            assert!((ours - theirs).abs() < 1e-3, "{place}: {ours} and {theirs}");
        }
        assert_eq!(numbers(item).len(), numbers(golden).len(), "{place}");
    }
    for (metric, expected) in golden["metrics"].as_object().unwrap() {
        let name = if num_filters == 1 { metric.clone() } else { format!("{metric},{filter}") };
        let (found, expected) = (item["metrics"][&name].as_f64(), expected.as_f64().unwrap());
        assert!((found.unwrap() - expected).abs() < 1e-3, "{place}: {name} {found:?} {expected}");
    }
}
