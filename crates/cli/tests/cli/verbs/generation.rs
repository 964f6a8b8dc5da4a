//! `hone generate`: the promised text, and sampling as asked for.

use super::{Scene, json, succeeds};
use std::path::Path;

const BASE: [&str; 6] = ["generate", "model", "--prompt", "w5 w9", "--max-new-tokens", "24"];

fn text(scene: &Scene, more: &[&str]) -> String {
    succeeds(&mut scene.hone(&[&BASE, more].concat())).stdout
}

#[test]
fn greedy_text_of_a_real_model() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    let Ok(expected) = std::fs::read_to_string(dir.join("expected_greedy_200.txt")) else {
        return hone_tensor::testing::skip("../shared is absent");
    };
    let model = dir.display().to_string();
    let flags = ["--prompt", "", "--max-new-tokens", "200", "--temperature", "0"];
    for threads in ["1", "2"] {
        let more = [&["generate", &model][..], &flags, &["--threads", threads]].concat();
        let end = if expected.ends_with('\n') { "" } else { "\n" };
        let expected = format!("{expected}{end}");
        assert_eq!(succeeds(&mut Scene::new().hone(&more)).stdout, expected);
    }
}

#[test]
fn the_seed_names_the_text() {
    let scene = Scene::new();
    let with = |seed: &str| text(&scene, &["--temperature", "1", "--seed", seed]);
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

#[test]
fn top_k_and_top_p_bound_the_choice() {
    let scene = Scene::new();
    let greedy = text(&scene, &["--temperature", "0"]);
    let hot = ["--temperature", "3", "--seed", "1"];
    let hot_with = |more: &[&str]| text(&scene, &[&hot, more].concat());
    assert_eq!(hot_with(&["--top-k", "1"]), greedy);
    assert_eq!(hot_with(&["--top-p", "0.000001"]), greedy);
    assert_ne!(hot_with(&["--top-p", "1"]), greedy);
    assert_ne!(hot_with(&["--top-p", "1", "--top-k", "50"]), greedy);
}

#[test]
fn the_end_of_the_context_is_an_end() {
    let scene = Scene::new();
    let long = ["generate", "model", "--prompt", "w5 w9", "--max-new-tokens", "500"];
    let more = ["--temperature", "0", "--json"];
    let out = json(&mut scene.hone(&[&long[..], &more].concat()));
    let tokens = out["tokens"].as_u64().unwrap();
    assert!(tokens <= 62, "{out}");
    assert!(["length", "stop"].contains(&out["finish_reason"].as_str().unwrap()), "{out}");
}
