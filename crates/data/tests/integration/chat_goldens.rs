//! Renderings of real templates against `transformers` (`scripts/goldens_chat.py`).

use crate::fixture::words;
use hone_data::chat::{Conversation, TemplateTokens};
use hone_data::{ChatTemplate, RecordFault, RecordSpec, Tokenizer, load};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const LENIENT: &str = "iterating over none raises in Jinja; in minijinja it does nothing";

/// What minijinja does not do as Jinja does: start of the template's name, whether in conversations
/// with tools, reason.
const EXCEPTIONS: [(&str, bool, &str); 4] = [
    ("chat-templates/CohereForAI-c4ai-command-r-plus-tool_use.jinja", false, LENIENT),
    ("chat-templates/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja", false, LENIENT),
    ("chat-templates/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja", false, LENIENT),
    ("chat-templates/llama-cpp-deepseek-r1.jinja", true, "a lazy sequence can be made JSON"),
];

pub fn goldens() -> Value {
    serde_json::from_str(include_str!("../goldens/chat.json")).unwrap()
}

pub fn tokens(goldens: &Value, added: Vec<String>) -> TemplateTokens {
    let special = goldens["special_tokens"].as_object().unwrap().clone();
    TemplateTokens { special, added, stop: vec!["</s>".to_owned()] }
}

pub fn conversation(value: &Value) -> Conversation {
    Conversation {
        messages: value["messages"].as_array().unwrap().clone(),
        tools: value.get("tools").cloned(),
    }
}

fn outcome(rendered: Result<String, RecordFault>) -> (Value, String) {
    match rendered {
        Ok(text) => {
            let digest = Sha256::digest(text.as_bytes());
            let hex = digest[..8].iter().map(|b| format!("{b:02x}")).collect::<String>();
            (serde_json::json!([text.len(), hex]), text)
        }
        Err(e) => (Value::from("raises"), e.message(words)),
    }
}

#[test]
fn renders_as_transformers_does() {
    let Some(shared) = crate::shared() else { return };
    let at = |file: &str| (!file.starts_with(FETCHED)).then(|| shared.join("data").join(file));
    assert_eq!(compare(at), (2490, 74));
}

/// Templates that `cargo xtask models templates` fetches.
#[test]
fn renders_fetched_templates_as_transformers_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("target/models/chat-templates");
    if !folder.is_dir() {
        return crate::skip("no chat-templates in target/models");
    }
    let at = |file: &str| Some(folder.join(file.strip_prefix(FETCHED)?));
    assert_eq!(compare(at), (240, 0));
}

/// What names of fetched templates begin with.
const FETCHED: &str = "fetched/";

/// Compares the renderings of templates that lie somewhere; how many there are, and how many differ
/// for a known reason.
fn compare(at: impl Fn(&str) -> Option<PathBuf>) -> (usize, usize) {
    let goldens = goldens();
    let mut wrong = Vec::new();
    let (mut compared, mut num_known) = (0, 0);
    for (file, expected) in goldens["templates"].as_object().unwrap() {
        let Some(path) = at(file) else { continue };
        let source = std::fs::read_to_string(&path).unwrap_or_else(|error| {
            let fix = "remove target/models/chat-templates and fetch it with cargo xtask models";
            panic!("{}: {error}; {fix} templates", path.display())
        });
        let mut template = match ChatTemplate::new(&source, None, tokens(&goldens, Vec::new())) {
            Ok(template) => template,
            Err(e) => {
                wrong.push(format!("{file}: {e}"));
                continue;
            }
        };
        template.set_now(goldens["now"].as_i64().unwrap());
        for (case, want) in expected.as_object().unwrap() {
            let name = case.trim_end_matches("+prompt");
            let conversation = conversation(&goldens["conversations"][name]);
            let (got, text) = outcome(template.render(&conversation, case != name));
            compared += 1;
            let known = EXCEPTIONS.iter().any(|(known, tools, _)| {
                file.starts_with(known) && *tools == conversation.tools.is_some()
            });
            if got == *want {
                continue;
            }
            // A known exception need not concern every conversation.
            num_known += usize::from(known);
            if !known {
                wrong.push(format!("{file} {case}: expected {want}, got {got}: {text:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared}:\n{}", wrong.len(), wrong.join("\n"));
    (compared, num_known)
}

/// Token ids and assistant masks of a whole row, by way of a file.
#[test]
fn tokens_and_masks_as_transformers_has_them() {
    let Some(shared) = crate::shared() else { return };
    let goldens = goldens();
    let tok = Tokenizer::from_dir(&shared.join("models/stories260k")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, want) in goldens["stories260k"].as_object().unwrap() {
        let path = dir.path().join("row.jsonl").display().to_string();
        std::fs::write(&path, goldens["conversations"][name].to_string()).unwrap();
        let set = load(&[path], &RecordSpec::default(), &tok, 1).unwrap();
        let row = set.row(0);
        let ids = row.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
        let mask = row.is_target.iter().map(|is| if *is { '1' } else { '0' });
        assert_eq!(want["ids"], ids, "{name}");
        assert_eq!(want["mask"], mask.collect::<String>(), "{name}");
    }
}
