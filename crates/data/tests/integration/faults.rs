//! Situations that other trainers' users reported, and their relatives: what is read, refused or
//! told.

use crate::fixture::{BOS, CHATML, EOS, Fixture, words};
use hone_data::{Dataset, Format, OnError, RecordSpec, Tokenizer, load};
use serde_json::{Value, json};

fn load_lines(fixture: &Fixture, lines: &[Value], spec: &RecordSpec) -> Result<Dataset, String> {
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    fixture.load("a.jsonl", text, spec).map_err(|error| error.message(words))
}

fn one(fixture: &Fixture, record: Value) -> Result<Dataset, String> {
    load_lines(fixture, &[record], &RecordSpec::default())
}

fn notes(set: &Dataset) -> String {
    set.report().warnings.join("\n")
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

/// A record's `system` comes first whatever the conversation's format.
#[test]
fn a_system_field_is_the_first_message() {
    let fixture = Fixture::chat(CHATML);
    let turns = json!([turn("user", "q"), turn("assistant", "a")]);
    let said = json!([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]);
    for record in [
        json!({"system": "Be brief.", "messages": turns}),
        json!({"system": "Be brief.", "conversations": said}),
        json!({"system": "Be brief.", "instruction": "q", "output": "a"}),
    ] {
        let text = fixture.row_text(&one(&fixture, record).unwrap(), 0);
        assert!(text.contains("<|im_start|>system\nBe brief.<|im_end|>"), "{text}");
    }
    let both = json!({"system": "x", "messages": [turn("system", "y"), turn("assistant", "a")]});
    assert!(one(&fixture, both).unwrap_err().contains("a field \"system\" and a system message"));
}

/// What is compared or rated bad is not learnt as if it was good.
#[test]
fn preferences_are_not_learnt_as_answers() {
    let fixture = Fixture::chat(CHATML);
    let messages = json!([turn("user", "q"), turn("assistant", "a")]);
    for (record, want) in [
        (json!({"prompt": "p", "completion": "c", "chosen": "c"}), "\"chosen\""),
        (json!({"messages": messages, "rejected": turn("assistant", "b")}), "\"rejected\""),
        (json!({"prompt": "p", "completion": "c", "label": false}), "\"label\" is false"),
        (json!({"messages": messages, "label": false}), "\"label\" is false"),
        (json!({"instruction": "p", "output": "c", "kto_tag": false}), "\"kto_tag\" is false"),
    ] {
        let error = one(&fixture, record.clone()).expect_err(&record.to_string());
        assert!(error.contains(want) && error.contains("<Objective("), "{error}");
    }
    assert!(one(&fixture, json!({"prompt": "p", "completion": "c", "label": true})).is_ok());
    assert!(one(&fixture, json!({"text": "spam", "label": false})).is_ok());
}

#[test]
fn unread_texts_are_named_once() {
    let fixture = Fixture::chat(CHATML);
    let row = json!({"question": "q", "answer": "a", "context": "c", "id": "7", "n": 1});
    let set = load_lines(&fixture, &[row.clone(), row], &RecordSpec::default()).unwrap();
    assert_eq!(notes(&set).matches("not read: \"context\"").count(), 1, "{}", notes(&set));
    let messages = json!([turn("user", "q"), turn("assistant", "a")]);
    let row = json!({"messages": messages, "chat_template_kwargs": {"enable_thinking": false}});
    assert!(notes(&one(&fixture, row).unwrap()).contains("\"chat_template_kwargs\""));
}

/// All spellings of "do not learn this turn".
#[test]
fn a_turn_can_be_left_out() {
    let fixture = Fixture::chat(CHATML);
    let learnt = |key: &str, value: Value| {
        let mut bad = turn("assistant", "bad");
        bad[key] = value;
        let messages = [turn("user", "q"), bad, turn("user", "q"), turn("assistant", "good")];
        one(&fixture, json!({"messages": messages})).map(|set| fixture.target_text(&set, 0))
    };
    for key in ["weight", "loss_weight", "train", "training", "loss"] {
        for off in [json!(0), json!(0.0), json!(false)] {
            assert_eq!(learnt(key, off).unwrap(), "good<|im_end|>", "{key}");
        }
        for on in [json!(1), json!(true), Value::Null] {
            assert_eq!(learnt(key, on).unwrap(), "bad<|im_end|>good<|im_end|>", "{key}");
        }
        assert!(learnt(key, json!(0.5)).unwrap_err().contains("must be 0 or 1, found 0.5"));
    }
    assert!(learnt("train_detail", json!([])).unwrap_err().contains("train_detail"));
    let said = json!([{"from": "gpt", "value": "bad", "train": false},
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "good", "loss": true}]);
    let set = one(&fixture, json!({"conversations": said})).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "good<|im_end|>");
    let twice = json!({"role": "assistant", "content": "a", "weight": 1, "train": false});
    assert!(one(&fixture, json!({"messages": [twice]})).unwrap_err().contains("says twice"));
}

#[test]
fn line_ends_of_a_template_are_one_character() {
    let lines =
        "{% for m in messages %}\n{{ m.role }}:\n{{ m.content }}{{ eos_token }}\n{% endfor %}";
    let record = json!({"messages": [turn("user", "q"), turn("assistant", "a")]});
    let text = |template: &str| {
        let fixture = Fixture::chat(template);
        fixture.row_text(&one(&fixture, record.clone()).unwrap(), 0)
    };
    let unix = text(lines);
    assert_eq!(unix, text(&lines.replace('\n', "\r\n")));
    assert_eq!(unix, text(&lines.replace('\n', "\r")));
}

/// `add_bos_token` and `add_eos_token`: an absent key leaves its side alone.
#[test]
fn marks_are_added_as_configured() {
    for (config, want) in [
        (json!({}), vec![BOS, 97]),
        (json!({"add_bos_token": true}), vec![BOS, 97]),
        (json!({"add_bos_token": false}), vec![97]),
        (json!({"add_eos_token": true}), vec![BOS, 97, EOS]),
        (json!({"add_eos_token": false}), vec![BOS, 97]),
        (json!({"add_bos_token": false, "add_eos_token": true}), vec![97, EOS]),
    ] {
        let mut all = json!({"bos_token": "<s>", "eos_token": "</s>"});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let fixture = Fixture::new(all);
        assert_eq!(fixture.tokenizer.encode("a", true).unwrap(), want, "{config}");
    }
}

/// Marks that a text holds already are not doubled, whoever would add them.
#[test]
fn marks_in_the_text_stand_once() {
    for config in [json!({}), json!({"add_eos_token": true})] {
        let mut all = json!({"bos_token": "<s>", "eos_token": "</s>"});
        all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        let fixture = Fixture::new(all);
        for text in ["ab", "<s>ab", "ab</s>", "<s>ab</s>"] {
            let set = one(&fixture, json!({"text": text})).unwrap();
            assert_eq!(set.row(0).tokens, [BOS, 97, 98, EOS], "{text}");
            let row = json!({"prompt": text.replace("b</s>", "").replace("ab", "a"),
                "completion": text.replace("<s>", "").replace('a', "")});
            let set = one(&fixture, row).unwrap();
            assert_eq!(set.row(0).tokens, [BOS, 97, 98, EOS], "{text}");
            assert_eq!(set.row(0).is_target, [false, false, true, true], "{text}");
        }
        let set = one(&fixture, json!({"text": "<s>ab"})).unwrap();
        assert!(
            notes(&set).contains("1 of 1 rows begin or end with a special token"),
            "{}",
            notes(&set)
        );
    }
}

#[test]
fn turns_without_an_end_are_told_once() {
    let endless = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}";
    let row = json!({"messages": [turn("user", "q"), turn("assistant", "a")]});
    let fixture = Fixture::chat(endless);
    let set = load_lines(&fixture, &[row.clone(), row.clone()], &RecordSpec::default()).unwrap();
    assert_eq!(notes(&set).matches("learns no end of its answers").count(), 1);
    assert!(notes(&one(&Fixture::chat(CHATML), row).unwrap()).is_empty());
}

/// Bad records before the first good one are skipped like any other.
#[test]
fn skipping_holds_from_the_first_record_on() {
    let fixture = Fixture::plain();
    let skip = RecordSpec { on_error: OnError::Skip, ..RecordSpec::default() };
    let good = json!({"prompt": "p", "completion": " c"});
    for bad in [json!({"prompt": "p", "completion": null}), json!({"x": 1}), json!([1]), json!(1)] {
        let lines = [bad.clone(), good.clone(), bad.clone()];
        let set = load_lines(&fixture, &lines, &skip).unwrap();
        assert_eq!((set.len(), set.report().skipped), (1, 2), "{bad}");
        assert!(load_lines(&fixture, &[bad], &skip).unwrap_err().contains("no rows are left"));
    }
    // A bad record says nothing of the fields of those after it.
    let named = RecordSpec { format: Format::PromptCompletion, ..skip };
    let good = json!({"question": "q", "answer": " a"});
    for bad in [json!({"prompt": "p", "answer": "a"}), json!({"prompt": null, "completion": null})]
    {
        let set = load_lines(&fixture, &[bad.clone(), good.clone()], &named).unwrap();
        assert_eq!((set.len(), set.report().skipped), (1, 1), "{bad}");
    }
    for spec in [RecordSpec::default(), RecordSpec { on_error: OnError::Fail, ..named }] {
        for (prompt, answer) in [("prompt", "completion"), ("question", "answer")] {
            let error = load_lines(&fixture, &[json!({prompt: "p", answer: null})], &spec);
            let error = error.unwrap_err();
            assert!(error.contains(&format!("{answer:?} is null; correct the record")), "{error}");
        }
    }
}

/// An empty list of calls is none: templates that refuse several calls count them.
#[test]
fn an_empty_list_of_calls_is_none() {
    let strict = "{% for m in messages %}{% if m.tool_calls is defined %}\
        {{ raise_exception('one call') }}{% endif %}{{ m.content }}{{ eos_token }}{% endfor %}";
    let fixture = Fixture::chat(strict);
    let silent = json!({"role": "assistant", "content": "a", "tool_calls": []});
    assert!(one(&fixture, json!({"messages": [silent]})).is_ok());
    let empty = json!({"role": "assistant", "content": null, "tool_calls": []});
    assert!(one(&fixture, json!({"messages": [empty]})).is_err());
}

#[test]
fn pretraining_refuses_weights_and_tells_of_prompts() {
    let fixture = Fixture::chat(CHATML);
    let all = RecordSpec { all_tokens_are_targets: true, ..RecordSpec::default() };
    let off = json!({"role": "assistant", "content": "a", "weight": 0});
    let error = load_lines(&fixture, &[json!({"messages": [turn("user", "q"), off]})], &all);
    assert!(error.unwrap_err().contains("pre-training learns every token"));
    let set = load_lines(&fixture, &[json!({"prompt": "p", "completion": "c"})], &all).unwrap();
    assert!(notes(&set).contains("in 1 of 1 rows the prompt is learnt too"), "{}", notes(&set));
}

#[test]
fn the_template_for_tools_is_read_from_its_folder() {
    let fixture = Fixture::chat(CHATML);
    let folder = fixture.path().join("additional_chat_templates");
    std::fs::create_dir(&folder).unwrap();
    let with_tools =
        format!("{{% for t in tools %}}{{{{ t.function.name }}}}{{% endfor %}}{CHATML}");
    std::fs::write(folder.join("tool_use.jinja"), &with_tools).unwrap();
    let row = json!({"messages": [turn("user", "q"), turn("assistant", "a")],
        "tools": [{"name": "lookup"}]});
    let file = fixture.write("a.jsonl", row.to_string()).display().to_string();
    for in_file in [false, true] {
        if in_file {
            std::fs::write(fixture.path().join("chat_template.jinja"), CHATML).unwrap();
        }
        let tokenizer = Tokenizer::from_dir(fixture.path()).unwrap();
        let set = load(std::slice::from_ref(&file), &RecordSpec::default(), &tokenizer, 1).unwrap();
        assert!(fixture.row_text(&set, 0).starts_with("lookup"), "{in_file}");
    }
}

/// A tokenizer.json that was cut or damaged anywhere is an error, never a panic.
#[test]
fn a_damaged_tokenizer_is_an_error() {
    let fixture = Fixture::plain();
    let path = fixture.path().join("tokenizer.json");
    let whole = std::fs::read_to_string(&path).unwrap();
    let parts = ["\"decoder\"", "\"model\"", "\"post_processor\"", "\"type\"", "\"added_tokens\""];
    for at in parts.iter().flat_map(|part| whole.match_indices(part)).map(|(at, _)| at + 20) {
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(Tokenizer::from_dir(fixture.path()).is_err());
    }
    let parsed: Value = serde_json::from_str(&whole).unwrap();
    for bad in [r#"{"type": "\ud800"}"#, r#"{"type": "\u12"}"#, r#"{"type": 1e999}"#, "[1"] {
        let decoder = format!("\"decoder\":{}", parsed["decoder"]);
        let damaged = whole.replace(&decoder, &format!("\"decoder\":{bad}"));
        assert_ne!(damaged, whole);
        std::fs::write(&path, damaged).unwrap();
        assert!(Tokenizer::from_dir(fixture.path()).is_err(), "{bad}");
    }
    let undefined = whole.replace(r#""special_tokens":{"<s>""#, r#""special_tokens":{"<t>""#);
    assert_ne!(undefined, whole);
    std::fs::write(&path, undefined).unwrap();
    assert!(Tokenizer::from_dir(fixture.path()).is_err());
    for key in ["decoder", "model", "post_processor", "pre_tokenizer", "normalizer"] {
        for bad in [json!(5), json!("x"), json!([]), json!({}), json!({"type": 5}), json!([[]])] {
            let mut tokenizer = parsed.clone();
            tokenizer[key] = bad;
            std::fs::write(&path, tokenizer.to_string()).unwrap();
            let _ = Tokenizer::from_dir(fixture.path());
        }
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::write(fixture.path().join("tokenizer.model"), "x").unwrap();
    let error = Tokenizer::from_dir(fixture.path()).err().unwrap().message(words);
    assert!(error.contains("tokenizer.model") && error.contains("save_pretrained"), "{error}");
}

#[test]
fn files_that_only_look_like_data() {
    let fixture = Fixture::plain();
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (name, text, want) in [
        ("a.jsonl", lfs, "Git LFS pointer"),
        ("a.txt", lfs, "Git LFS pointer"),
        ("a.jsonl", "[{\"text\": \"a\"}]", "name it .json"),
        ("a.jsonl", "[\n {\"text\": \"a\"}\n]", "name it .json"),
        ("a.jsonl", "{\n \"text\": \"a\"\n}", "spread over several lines"),
        ("a.json", "{\n \"text\": \"a\"\n}", "spread over several lines"),
    ] {
        let error = fixture.error(name, text, &RecordSpec::default());
        assert!(error.contains(want), "{name}: {error}");
    }
    std::fs::write(fixture.path().join("tokenizer.json"), lfs).unwrap();
    let error = Tokenizer::from_dir(fixture.path()).err().unwrap().message(words);
    assert!(error.contains("git lfs pull"), "{error}");
}

#[cfg(unix)]
#[test]
fn names_that_cannot_be_read_are_told() {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;
    let fixture = Fixture::plain();
    let dir = fixture.path().display().to_string();
    let error = |path: &str| {
        let paths = [format!("{dir}/{path}")];
        load(&paths, &RecordSpec::default(), &fixture.tokenizer, 1).unwrap_err().message(words)
    };
    let good = fixture.write("good.jsonl", "{\"text\": \"ab\"}");
    symlink("loop.jsonl", fixture.path().join("loop.jsonl")).unwrap();
    assert!(error("loop.jsonl").contains("cannot be read"));
    assert!(error("*.jsonl").contains("loop.jsonl: cannot be read"));
    std::fs::remove_file(fixture.path().join("loop.jsonl")).unwrap();
    symlink("nowhere", fixture.path().join("gone.jsonl")).unwrap();
    assert!(error("gone.jsonl").contains("a symbolic link to a file that is not there"));
    assert!(error("*.jsonl").contains("gone.jsonl: cannot be read"));
    std::fs::remove_file(fixture.path().join("gone.jsonl")).unwrap();
    let odd = std::ffi::OsStr::from_bytes(b"b\xff.jsonl");
    std::fs::write(fixture.path().join(odd), "{\"text\": \"ab\"}").unwrap();
    assert!(error("b*.jsonl").contains("not UTF-8"));
    std::fs::remove_file(fixture.path().join(odd)).unwrap();
    std::fs::create_dir(fixture.path().join("x[1]")).unwrap();
    assert!(error("x[1]/*.jsonl").contains("written [[]"));
    let good = good.display().to_string();
    let twice = [good.clone(), format!("{dir}/./good.jsonl"), format!("{dir}/g*.jsonl")];
    let set = load(&twice, &RecordSpec::default(), &fixture.tokenizer, 1).unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!(notes(&set).matches("more than once").count(), 2, "{}", notes(&set));
}

/// A folder whose name looks like a pattern is that folder.
#[test]
fn folders_are_named_literally() {
    let fixture = Fixture::plain();
    let folder = fixture.path().join("runs[1]");
    std::fs::create_dir(&folder).unwrap();
    fixture.write("runs[1]/a.jsonl", "{\"text\": \"abc\"}");
    let glob = folder.join("*.jsonl").display().to_string();
    let set = load(&[glob], &RecordSpec::default(), &fixture.tokenizer, 1).unwrap();
    assert_eq!(set.len(), 1);
}

#[test]
fn epochs_beyond_counting_are_refused() {
    let fixture = Fixture::plain();
    let set = one(&fixture, json!({"text": "abc"})).unwrap();
    let order = hone_data::Order::new(&set, 8, 1, 0).unwrap();
    assert_eq!(order.total_steps(1000).unwrap(), 1000);
    let error = order.total_steps(u64::MAX).unwrap_err().message(words);
    assert!(error.contains("<MaxSteps>"), "{error}");
}
