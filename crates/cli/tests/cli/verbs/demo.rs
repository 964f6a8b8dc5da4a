//! `hone demo`: the model cannot do the task before, and does it afterwards.

use super::{Scene, assert_fields, json};

#[test]
fn the_task_is_learnt() {
    let scene = Scene::new();
    let result = json(&mut scene.hone(&["demo", "--dir", "demo", "--json"]));
    assert_fields(&result, &["held_out_items", "seconds", "result", "report"]);
    let share = |key: &str| result[key].as_f64().unwrap();
    assert!(share("exact_match_before") <= 0.05, "{result}");
    assert!(share("exact_match_after") >= 0.95, "{result}");
    for file in ["base/config.json", "train.jsonl", "held-out.jsonl", "run.toml"] {
        assert!(scene.path("demo").join(file).is_file(), "{file}");
    }
    for key in ["result", "report"] {
        assert!(scene.path(result[key].as_str().unwrap()).exists(), "{key}: {result}");
    }
}
