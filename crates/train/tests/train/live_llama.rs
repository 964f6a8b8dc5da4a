//! For `cargo xtask live llama`: what Hone makes of texts and conversations with the tokenizer and
//! the template of a file, to be compared with llama.cpp's.

use hone_data::chat::Conversation;
use hone_train::setup::tokenizer_of;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Answers `questions.json`, a list of `{model, texts, conversations}`, with `answers.json`.
#[test]
#[ignore = "`cargo xtask live llama` asks the questions"]
fn answers_for_llama_cpp() {
    let folder: PathBuf = std::env::var_os("HONE_LIVE_LLAMA").expect("HONE_LIVE_LLAMA").into();
    let questions = std::fs::read(folder.join("questions.json")).unwrap();
    let questions: Value = serde_json::from_slice(&questions).unwrap();
    let answer = |question: &Value| {
        let tokenizer = tokenizer_of(Path::new(question["model"].as_str().unwrap())).unwrap();
        let ids = |text: &Value| tokenizer.encode(text.as_str().unwrap(), false).unwrap();
        let rendered = |messages: &Value| {
            let messages = messages.as_array().unwrap().clone();
            let conversation = Conversation { messages, tools: None };
            let template = tokenizer.chat_template().expect("a chat template");
            template.render(&conversation, true).ok()
        };
        let ids: Vec<Vec<u32>> = list(question, "texts").iter().map(ids).collect();
        let rendered: Vec<_> = list(question, "conversations").iter().map(rendered).collect();
        json!({"ids": ids, "rendered": rendered})
    };
    let answers: Vec<Value> = questions.as_array().unwrap().iter().map(answer).collect();
    let answers = serde_json::to_vec(&answers).unwrap();
    std::fs::write(folder.join("answers.json"), answers).unwrap();
}
