//! Every record format, from file to tokens and targets.

use crate::fixture::{BOS, CHATML, EOS, Fixture, IM_END, IM_START};
use hone_data::{Format, Overlong, RecordSpec, load};

fn spec() -> RecordSpec {
    RecordSpec::default()
}

fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn text_is_cut_into_windows() {
    let fixture = Fixture::plain();
    let spec = RecordSpec { max_seq_len: 4, ..spec() };
    let set = fixture.load("a.txt", "abcdefg", &spec).unwrap();
    // BOS a b c | d e f g | EOS: the last is a window of one token.
    assert_eq!(set.len(), 2);
    assert_eq!(set.row(0).tokens, [&[BOS][..], &ids("abc")].concat());
    assert_eq!(set.row(0).is_target, [false, true, true, true]);
    assert_eq!(set.row(1).tokens, ids("defg"));
    assert_eq!(set.row(1).is_target, [false, true, true, true]);
    assert_eq!(set.report().dropped_windows, 1);
    assert_eq!(set.report().truncated, 0);
    let set = fixture.load("a.txt", "abcdef", &spec).unwrap();
    assert_eq!(set.row(1).tokens, [&ids("def")[..], &[EOS]].concat());
    let spec = RecordSpec { append_eos: false, ..spec };
    let set = fixture.load("a.txt", "abcdef", &spec).unwrap();
    assert_eq!(set.row(1).tokens, ids("def"));
    assert_eq!((set.report().tokens, set.report().target_tokens), (7, 5));
}

/// Windows and truncated rows of encoders are whole texts to them: what the tokenizer adds at both
/// ends is there, as in transformers with `truncation=True`.
#[test]
fn special_tokens_of_encoders_stay_at_both_ends() {
    let fixture = Fixture::framed();
    let spec = RecordSpec {
        max_seq_len: 5,
        append_eos: false,
        keeps_ends: true,
        overlong: Overlong::Truncate,
        ..spec()
    };
    let texts = |name, text: &str| -> Vec<String> {
        let set = fixture.load(name, text, &spec).unwrap();
        (0..set.len()).map(|row| fixture.row_text(&set, row)).collect()
    };
    assert_eq!(texts("a.txt", "abcdefg"), ["<s>abc</s>", "<s>def</s>", "<s>g</s>"]);
    assert_eq!(texts("a.txt", "abc"), ["<s>abc</s>"]);
    let record = r#"{"prompt": "abcd", "completion": "efg"}"#;
    let all = RecordSpec { all_tokens_are_targets: true, ..spec.clone() };
    let set = fixture.load("a.jsonl", record, &all).unwrap();
    assert_eq!(fixture.row_text(&set, 0), "<s>abc</s>");
    assert_eq!(set.report().truncated, 1);
    let short = RecordSpec { max_seq_len: 2, ..spec };
    let error = fixture.error("a.txt", "abc", &short);
    assert!(
        error.contains("special tokens alone fill 2 tokens") && error.contains("MaxSeqLen"),
        "{error}"
    );
}

#[test]
fn text_records_in_json_lines() {
    let fixture = Fixture::plain();
    let set = fixture.load("a.jsonl", "{\"text\": \"ab\"}\n\n{\"text\": \"c\"}\r\n", &spec());
    let set = set.unwrap();
    assert_eq!(set.len(), 2);
    assert_eq!(fixture.row_text(&set, 1), "<s>c</s>");
    assert_eq!(set.row(1).source.line, 3);
    assert!(set.row(1).source.file.ends_with("a.jsonl"));
    assert_eq!(set.report().files[0].format, "text");
}

#[test]
fn prompt_and_completion_are_joined_as_they_are() {
    let fixture = Fixture::plain();
    let record = r#"{"question": "2+2=", "answer": " 4é"}"#;
    let set = fixture.load("a.jsonl", record, &spec()).unwrap();
    assert_eq!(fixture.row_text(&set, 0), "<s>2+2= 4é</s>");
    assert_eq!(fixture.target_text(&set, 0), " 4é</s>");
    assert_eq!(set.row(0).is_target, [&[false; 5][..], &[true; 5]].concat());
    assert_eq!(set.report().files[0].format, "prompt_completion (question, answer)");
}

#[test]
fn fields_can_be_named() {
    let fixture = Fixture::plain();
    let spec =
        RecordSpec { prompt_field: Some("a".into()), completion_field: Some("b".into()), ..spec() };
    let set = fixture.load("a.jsonl", r#"{"a": "x", "b": "y", "text": "z"}"#, &spec).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "y</s>");
}

#[test]
fn an_empty_prompt_leaves_the_first_token_out() {
    let fixture = Fixture::plain();
    let set = fixture.load("a.jsonl", r#"{"prompt": "", "completion": "  y"}"#, &spec()).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "  y</s>");
    assert!(!set.row(0).is_target[0]);
}

#[test]
fn messages_in_chatml() {
    let fixture = Fixture::chat(CHATML);
    let record = r#"{"messages": [{"role": "system", "content": "S"},
        {"role": "user", "content": "a"}, {"role": "assistant", "content": " b  "},
        {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "d"}]},
        {"role": "assistant", "content": "e\n\nf"}]}"#;
    let set = fixture.load("a.json", record.replace('\n', " "), &spec()).unwrap();
    assert_eq!(
        fixture.row_text(&set, 0),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n\
         <|im_start|>assistant\n b  <|im_end|>\n<|im_start|>user\ncd<|im_end|>\n\
         <|im_start|>assistant\ne\n\nf<|im_end|>\n"
    );
    assert_eq!(fixture.target_text(&set, 0), " b  <|im_end|>e\n\nf<|im_end|>");
    assert_eq!(set.row(0).tokens[0], IM_START);
    assert_eq!(set.row(0).tokens.iter().filter(|t| **t == IM_END).count(), 5);
}

#[test]
fn generation_blocks_mark_the_spans() {
    let template = "{{ bos_token }}{%- for m in messages -%}\n{% if m.role == 'user' %}U:\
        {{ m.content }}\n{% else %}A:{%- generation -%} {{ m.content }}{{ eos_token }}\
        {% endgeneration %}\n{% endif %}{%- endfor %}";
    let fixture = Fixture::chat(template);
    let record = r#"{"messages": [{"role": "user", "content": "q {% generation %}"},
        {"role": "assistant", "content": "r"}, {"role": "user", "content": "s"},
        {"role": "assistant", "content": "t</s>"}]}"#;
    let set = fixture.load("a.json", record.replace('\n', " "), &spec()).unwrap();
    assert_eq!(fixture.row_text(&set, 0), "<s>U:q {% generation %}\nA:r</s>U:s\nA:t</s></s>");
    assert_eq!(fixture.target_text(&set, 0), "r</s>t</s></s>");
}

#[test]
fn weights_leave_turns_out() {
    let fixture = Fixture::chat(CHATML);
    let record = r#"{"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 1}]}"#;
    let set = fixture.load("a.json", record.replace('\n', " "), &spec()).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "d<|im_end|>");
}

#[test]
fn sharegpt_becomes_messages() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\
        {% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n\
        {% endfor %}{{ tools | tojson }}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    // With the tools written at the end, no prefix fits: the template must mark its turns.
    let fixture = Fixture::chat(&template.replace("{{ tools | tojson }}", ""));
    let record = r#"{"system": "S", "tools": "[{\"name\": \"f\"}]", "conversations": [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "1"}, {"from": "gpt", "value": "b"}]}"#;
    let set = fixture.load("a.json", record.replace('\n', " "), &spec()).unwrap();
    assert_eq!(
        fixture.row_text(&set, 0),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\
         {\"name\": \"f\", \"arguments\": {\"x\": 1}}<|im_end|>\n<|im_start|>tool\n1<|im_end|>\n\
         <|im_start|>assistant\nb<|im_end|>\n"
    );
    assert_eq!(
        fixture.target_text(&set, 0),
        "{\"name\": \"f\", \"arguments\": {\"x\": 1}}<|im_end|>b<|im_end|>"
    );
    assert_eq!(set.report().files[0].format, "sharegpt");
}

#[test]
fn arguments_as_the_template_wants_them() {
    let body = |arguments: &str| {
        format!(
            "{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{{{{ m.content }}}}\
             {{% for c in m.tool_calls or [] %}}{{{{ {arguments} }}}}{{% endfor %}}<|im_end|>\n\
             {{% endfor %}}{{% if add_generation_prompt %}}<|im_start|>assistant\n{{% endif %}}"
        )
    };
    let record = |arguments: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "a"}}, {{"role": "assistant",
            "tool_calls": [{{"function": {{"name": "f", "arguments": {arguments}}}}}],
            "content": ""}}]}}"#
        )
        .replace('\n', " ")
    };
    let object_template = body("c.function.name ~ c.function.arguments.items() | first | first");
    let text_template = body("c.function.name + ' ' + c.function.arguments");
    for arguments in ["{\"k\": \"v\"}", "\"{\\\"k\\\": \\\"v\\\"}\""] {
        let fixture = Fixture::chat(&text_template);
        let set = fixture.load("a.json", record(arguments), &spec()).unwrap();
        assert_eq!(fixture.target_text(&set, 0), "f {\"k\": \"v\"}<|im_end|>");
        let fixture = Fixture::chat(&object_template.replace(" | first | first", " | list"));
        let set = fixture.load("a.json", record(arguments), &spec()).unwrap();
        assert_eq!(fixture.target_text(&set, 0), "f[('k', 'v')]<|im_end|>");
    }
}

#[test]
fn alpaca_with_and_without_a_template() {
    let record = r#"[{"instruction": "I", "input": "J", "output": "O", "history": [["h", "k"]],
        "system": "S"}, {"instruction": "I", "input": "", "output": "O"}]"#;
    let fixture = Fixture::chat(CHATML);
    let set = fixture.load("a.json", record, &spec()).unwrap();
    assert_eq!(
        fixture.row_text(&set, 0),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nh<|im_end|>\n\
         <|im_start|>assistant\nk<|im_end|>\n<|im_start|>user\nI\nJ<|im_end|>\n\
         <|im_start|>assistant\nO<|im_end|>\n"
    );
    assert_eq!(set.row(1).source.line, 2);
    let fixture = Fixture::plain();
    let record = r#"[{"instruction": "I", "input": "J", "output": "O"}]"#;
    let set = fixture.load("a.json", record, &spec()).unwrap();
    assert!(fixture.row_text(&set, 0).ends_with("### Input:\nJ\n\n### Response:O</s>"));
    assert_eq!(fixture.target_text(&set, 0), "O</s>");
}

#[test]
fn a_cut_row_is_counted() {
    let fixture = Fixture::plain();
    let spec = RecordSpec { max_seq_len: 4, overlong: Overlong::Truncate, ..spec() };
    let lines =
        "{\"prompt\": \"a\", \"completion\": \"bcd\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}";
    let set = fixture.load("a.jsonl", lines, &spec).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "bc");
    assert_eq!(fixture.target_text(&set, 1), "b</s>");
    assert_eq!((set.report().truncated, set.report().longest_row), (1, 4));
}

#[test]
fn all_tokens_can_be_targets() {
    let fixture = Fixture::plain();
    let spec = RecordSpec { all_tokens_are_targets: true, ..spec() };
    let set = fixture.load("a.jsonl", r#"{"prompt": "ab", "completion": "c"}"#, &spec).unwrap();
    assert_eq!(fixture.target_text(&set, 0), "abc</s>");
}

#[test]
fn several_files_and_formats() {
    let fixture = Fixture::plain();
    fixture.write("b1.jsonl", "{\"text\": \"x\"}");
    fixture.write("b2.jsonl", "{\"prompt\": \"x\", \"completion\": \"y\"}\n");
    let glob = fixture.path().join("b*.jsonl").display().to_string();
    let first = fixture.path().join("b1.jsonl").display().to_string();
    let set = load(&[glob, first], &spec(), &fixture.tokenizer, 1).unwrap();
    assert_eq!(set.len(), 2);
    let formats = set.report().files.iter().map(|f| f.format.as_str()).collect::<Vec<_>>();
    assert_eq!(formats, ["text", "prompt_completion (prompt, completion)"]);
    assert_eq!(serde_json::to_value(set.report()).unwrap()["length_histogram"][0]["rows"], 2);
    assert_eq!(serde_json::to_value(Format::PromptCompletion).unwrap(), "prompt_completion");
    assert_eq!(serde_json::to_value(Format::ShareGpt).unwrap(), "sharegpt");
}
