//! What is taken of a generated answer.

use super::scene::{Scene, folder, goldens};
use hone_data::Tokenizer;
use hone_eval::task::{Options, RunOptions};

/// A special token ends an answer where `until` names it, although texts do not show it.
#[test]
fn special_tokens_end_answers() {
    let mut scene = Scene::new();
    let answer = |scene: &Scene, until: &str| {
        let task = format!(
            "task: t\ndataset_path: json\ndataset_kwargs:\n  data_files: {{test: t.jsonl}}\n\
             test_split: test\noutput_type: generate_until\ndoc_to_text: the\ndoc_to_target: x\n\
             generation_kwargs: {{until: [{until:?}], max_gen_toks: 6}}\n"
        );
        let dir = folder(&[("t.yaml", &task), ("t.jsonl", "{}\n")]);
        let files = [dir.path().join("t.yaml")];
        let found = scene.results(&files, &Options::default(), RunOptions::default()).unwrap();
        found.tasks[0].judged[0].answer.clone().unwrap()
    };
    let whole = answer(&scene, "nowhere in it");
    let ids = scene.tokenizer.encode(&whole, false).unwrap();
    // The second of its tokens becomes a special one.
    let (first, second) = (ids[0], ids[1]);
    assert_ne!(first, second, "{whole:?}");
    let token = scene.tokenizer.decode(&[second], true).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(goldens().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut special = json["added_tokens"][0].clone();
    special["id"] = second.into();
    special["content"] = token.as_str().into();
    json["added_tokens"].as_array_mut().unwrap().push(special);
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let names = "tokenizer_config.json";
    std::fs::copy(goldens().join(names), dir.path().join(names)).unwrap();
    scene.tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
    let begin = scene.tokenizer.decode(&[first], true).unwrap();
    assert_eq!(answer(&scene, &token), begin);
    assert!(answer(&scene, "nowhere in it").len() > begin.len(), "{whole:?}");
}
