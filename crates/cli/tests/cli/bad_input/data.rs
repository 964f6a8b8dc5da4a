//! Records, documents and chat templates.

use super::{Case, check, command, train};
use crate::sandbox::Scene;
use serde_json::json;

const CHAT: &str = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' </s> ' }}\
                    {% endfor %}{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}";
const ROW: &str = r#"{"messages": [{"role": "user", "content": "w5"},
                      {"role": "assistant", "content": "w6"}]}"#;

/// Gives the model a chat template and the run one conversation.
fn chat(scene: &Scene, template: &str, rows: &str) {
    let config = json!({"eos_token": "</s>", "chat_template": template});
    scene.write("model/tokenizer_config.json", &config.to_string());
    scene.write("train.jsonl", &rows.replace('\n', " ").replace("}] }", "}]}"));
}

#[test]
fn records() {
    check(&[
        train(
            "empty file",
            |s| s.write("train.jsonl", ""),
            &["train.jsonl: the file is empty", "give a file that holds records"],
        ),
        train(
            "bad JSON",
            |s| s.write("train.jsonl", "{\"prompt\": \"w3\", \"completion\": \" w4\"}\n{\"a\":\n"),
            &["train.jsonl:2: bad JSON at column", "each line"],
        ),
        train(
            "a record that is no object",
            |s| s.write("train.jsonl", "[1, 2]\n"),
            &["train.jsonl:1: a record must be a JSON object, found an array"],
        ),
        train(
            "a record of no known format",
            |s| s.write("train.jsonl", "{\"question\": \"w3\"}\n"),
            &["train.jsonl:1: no known format has the keys \"question\"", "data.prompt_field"],
        ),
        train(
            "invalid UTF-8",
            |s| std::fs::write(s.path("train.jsonl"), b"{\"text\": \"\xff\"}\n").unwrap(),
            &["train.jsonl: not valid UTF-8 at byte 10", "iconv"],
        ),
        train(
            "a document that is empty",
            |s| s.write("train.jsonl", "{\"text\": \"w3 w4\"}\n{\"text\": \"\"}\n"),
            &["train.jsonl:2: the document is empty", "data.on_error = \"skip\""],
        ),
        train(
            "a row longer than max_seq_len",
            |s| s.write("train.jsonl", &long_row()),
            &["train.jsonl:1: the row has 42 tokens", "data.overlong = \"truncate\""],
        ),
        train(
            "a row of which nothing to learn is left",
            |s| {
                s.write("train.jsonl", &long_row());
                super::replace(s, "run.toml", "[data]", "[data]\noverlong = \"truncate\"");
            },
            &["train.jsonl:1: nothing to learn is left", "remove the record"],
        ),
        command(
            "the wrong format",
            &["train", "run.toml", "data.format=alpaca"],
            &["train.jsonl:1: the record has no \"instruction\"", "the right data.format"],
        ),
        Case {
            name: "a kind of file that is not read",
            spoil: |s| s.write("train.csv", "a,b\n"),
            arguments: &["train", "run.toml", "data.train=train.csv"],
            says: &["train.csv", "\"csv\" are not supported", ".jsonl"],
        },
        train(
            "bad evaluation data",
            |s| s.write("eval.jsonl", "nonsense\n"),
            &["eval.jsonl:1: bad JSON"],
        ),
    ]);
}

/// Forty tokens of prompt, one of completion, and the end-of-text token.
fn long_row() -> String {
    let row = json!({"prompt": "w5 ".repeat(40).trim(), "completion": " w6"});
    format!("{row}\n")
}

#[test]
fn conversations() {
    check(&[
        train(
            "unknown role",
            |s| chat(s, CHAT, &ROW.replace("user", "robot")),
            &["train.jsonl:1: message 1: unknown role \"robot\"", "known ones are system"],
        ),
        train(
            "no assistant turn",
            |s| chat(s, CHAT, &ROW.replace("assistant", "user")),
            &["train.jsonl:1: the conversation has no assistant turn"],
        ),
        train(
            "no messages",
            |s| chat(s, CHAT, "{\"messages\": []}"),
            &["train.jsonl:1: \"messages\" is an empty conversation"],
        ),
        train(
            "no template",
            |s| s.write("train.jsonl", &ROW.replace('\n', " ")),
            &["conversations need a chat template", "chat_template.jinja"],
        ),
    ]);
}

#[test]
fn templates() {
    check(&[
        train(
            "a template that raises",
            |s| chat(s, "{{ raise_exception('roles must alternate') }}", ROW),
            &["train.jsonl:1: the chat template raises: roles must alternate", "make the"],
        ),
        train(
            "a template that fails",
            |s| chat(s, "{{ messages[0].x.y }}", ROW),
            &["train.jsonl:1: the chat template fails"],
        ),
        train(
            "a template that is not one",
            |s| chat(s, "{% for %}", ROW),
            &["model: the chat template cannot be used", "syntax error", "correct chat_template"],
        ),
        train(
            "a template that never ends",
            |s| {
                let endless = "{% for a in range(99999) %}{% for b in range(99999) %}\
                               {% endfor %}{% endfor %}";
                chat(s, endless, ROW);
            },
            &["train.jsonl:1: the chat template"],
        ),
        train(
            "a template that leaves the answer out",
            |s| chat(s, "{{ messages[0]['content'] }}", ROW),
            &["train.jsonl:1: the chat template"],
        ),
    ]);
}
