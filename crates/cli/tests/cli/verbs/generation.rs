//! `hone generate`: the promised text, and sampling as asked for.

use super::{Scene, json, succeeds};
use serde_json::json as value;
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

/// A tokenizer that ends texts by itself: what is asked to go on is not at its end.
#[test]
fn a_prompt_does_not_end_the_text() {
    let scene = Scene::new();
    let greedy = ["--temperature", "0"];
    let plain = text(&scene, &greedy);
    let config = value!({"eos_token": "</s>", "add_eos_token": true});
    scene.write("model/tokenizer_config.json", &config.to_string());
    assert_eq!(text(&scene, &greedy), plain);
}

/// What ends a turn in the chat template ends an answer, though it is no stop token of the model.
#[test]
fn the_end_of_a_turn_ends_an_answer() {
    let scene = Scene::new();
    let template = |end: &str| {
        let template = format!(
            "{{% for m in messages %}}{{{{ m.content }}}} {{% if m.role == 'assistant' %}}{end}\
             {{% endif %}}{{% endfor %}}"
        );
        let config = value!({"eos_token": "</s>", "chat_template": template});
        scene.write("model/tokenizer_config.json", &config.to_string());
    };
    let ask = || {
        let chat = ["--chat", "--temperature", "0", "--json"];
        json(&mut scene.hone(&[&BASE, &chat[..]].concat()))
    };
    template("");
    let endless = ask();
    assert_eq!(endless["finish_reason"], "length", "{endless}");
    let end = endless["text"].as_str().unwrap().split_whitespace().next().unwrap();
    // The word becomes a special token, and the end of a turn.
    let path = "model/tokenizer.json";
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(scene.path(path)).unwrap()).unwrap();
    let token = value!({"id": end[1..].parse::<u32>().unwrap(), "content": end, "special": true,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    scene.write(path, &tokenizer.to_string());
    template(end);
    let ended = ask();
    assert_eq!((&ended["finish_reason"], &ended["tokens"]), (&"stop".into(), &0.into()), "{ended}");
}

#[test]
fn prompts_may_begin_with_a_hyphen_or_come_from_elsewhere() {
    let scene = Scene::new();
    let ask = |prompt: &[&str]| {
        let more = ["--max-new-tokens", "4", "--temperature", "0"];
        succeeds(&mut scene.hone(&[&["generate", "model"], prompt, &more].concat())).stdout
    };
    ask(&["--prompt", "- milk"]);
    let plain = ask(&["--prompt", "w5 w9"]);
    scene.write("prompt.txt", "w5 w9\n");
    assert_eq!(ask(&["--prompt-file", "prompt.txt"]), plain);
    let both = ["generate", "model", "--prompt", "w5", "--prompt-file", "prompt.txt"];
    crate::sandbox::ended(&mut scene.hone(&both)).says(2, &["--prompt-file"]);
}

/// Samples that end at `report.max_new_tokens` say so.
#[test]
fn samples_that_are_cut_off_end_with_dots() {
    let scene = Scene::new();
    let short = ["train.max_steps=1", "report.samples=2", "report.max_new_tokens=2"];
    succeeds(&mut scene.train(&short));
    let samples = std::fs::read_to_string(scene.path("run/samples.json")).unwrap();
    let samples: serde_json::Value = serde_json::from_str(&samples).unwrap();
    for sample in samples.as_array().unwrap() {
        let after = sample["after"].as_str().unwrap();
        let words = after.trim_end_matches('…').split_whitespace().count();
        assert_eq!(after.ends_with('…'), words == 2, "{after:?}");
    }
    assert!(samples.to_string().contains('…'), "{samples}");
}
