//! Every error's text.

use crate::fixture::{CHATML, Fixture, words};
use hone_data::{Format, OnError, Overlong, RecordSpec, Tokenizer, load};
use serde_json::json;

fn spec() -> RecordSpec {
    RecordSpec::default()
}

fn check(fixture: &Fixture, name: &str, text: impl AsRef<[u8]>, want: &str) {
    assert_eq!(fixture.error(name, text, &spec()), want);
}

#[test]
fn files() {
    let fixture = Fixture::plain();
    let error = |path: &str| load(&[path.to_owned()], &spec(), &fixture.tokenizer, 1).unwrap_err();
    assert_eq!(error("none.jsonl").message(words), "none.jsonl: no such file; <Paths>");
    assert_eq!(
        error("none*.jsonl").message(words),
        "none*.jsonl: the glob matches no file; correct the pattern"
    );
    assert_eq!(
        error("s3://a/b.jsonl").message(words),
        "s3://a/b.jsonl: remote data is not supported yet; copy the file to a local disk and name \
         it there"
    );
    assert_eq!(
        error("src").message(words),
        "src: is a directory; name its files, for example src/*.jsonl"
    );
    assert_eq!(
        load(&[], &spec(), &fixture.tokenizer, 1).unwrap_err().message(words),
        "no data files are named; name at least one path or glob"
    );
    check(
        &fixture,
        "a.jsonl",
        " \n\n",
        "a.jsonl: the file is empty; give a file that holds records",
    );
    check(&fixture, "a.json", "[]", "a.json: the array is empty; give a file that holds records");
    check(
        &fixture,
        "a.jsonl",
        b"{\"text\": \"a\xff\"}",
        "a.jsonl: not valid UTF-8 at byte 11; convert the file to UTF-8 (for example with iconv)",
    );
    check(
        &fixture,
        "a.csv",
        "a,b",
        "a.csv: files of kind \"csv\" are not supported; give .jsonl, .json, .txt or .md, or \
         <FormatAs(Text)>",
    );
    let messages = RecordSpec { format: Format::Messages, ..spec() };
    assert_eq!(
        fixture.error("a.txt", "x", &messages),
        "a.txt: a plain document has no records of format messages; give a .jsonl or .json file, \
         or <FormatAs(Text)>"
    );
    let named = Some("q".to_owned());
    let fields = RecordSpec { prompt_field: named.clone(), completion_field: named, ..spec() };
    assert_eq!(
        fixture.error("a.txt", "x", &fields),
        "a.txt: a plain document has no fields, and those of prompt and completion are named; \
         give a .jsonl or .json file, or name none"
    );
}

#[test]
fn bad_json() {
    let fixture = Fixture::plain();
    let lines = "the file must be one JSON array of objects, or one object on each line";
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"a\"}\n{\"text\": oops}\n",
        "a.jsonl:2: bad JSON at column 10: expected value, found 'o'; each line of the file must \
         be one whole JSON object",
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"a\"\n",
        "a.jsonl:1: bad JSON at column 12: EOF while parsing an object, found the end of the \
         line; each line of the file must be one whole JSON object",
    );
    check(
        &fixture,
        "a.json",
        "[{\"text\": \"a\"},\n {\"text\": \"b\"}\n {\"text\": \"c\"}]",
        &format!("a.json:3: bad JSON at column 2: expected ',' or ']', found '{{'; {lines}"),
    );
    check(
        &fixture,
        "a.json",
        "[{\"text\": \"a\"},\n {\"text\": b}]",
        &format!("a.json:2: bad JSON at column 11: expected value, found 'b'; {lines}"),
    );
    check(
        &fixture,
        "a.json",
        "[{\"text\": \"a\"}] x",
        &format!(
            "a.json:1: bad JSON at column 17: expected the end of the file after the array, \
             found 'x'; {lines}"
        ),
    );
    // Of an array's elements, what is wrong within.
    for (text, want) in [
        (
            "[{\"text\": \"é\"}, {\"text\": \"é\", \"n\": 1e999}]",
            "1: element 2 of the array: bad JSON at column 40: number out of range, found '9'",
        ),
        (
            "[\n  {\n    \"text\": \"a\"\n  },\n  {\n    \"n\": 0,\n    \"text\": \
             \"é\\ud800\"\n  }\n]",
            "7: element 2 of the array: bad JSON at column 21: unexpected end of hex escape, \
             found '\"'",
        ),
    ] {
        check(&fixture, "a.json", text, &format!("a.json:{want}; correct the element"));
    }
    let deep = format!("{{\"text\": {}1", "[".repeat(100_000));
    assert!(fixture.error("a.jsonl", deep, &spec()).contains("recursion limit exceeded"));
}

#[test]
fn unreadable_layouts() {
    let fixture = Fixture::plain();
    check(
        &fixture,
        "a.jsonl",
        "[1]",
        "a.jsonl:1: a record must be a JSON object, found an array; write each record as \
         {\"key\": value, …}",
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"txt\": \"a\", \"id\": 1}",
        "a.jsonl:1: no known format has the keys \"txt\", \"id\"; <Format>, or <Fields>",
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"a\", \"messages\": []}",
        "a.jsonl:1: the record can be read as messages or text; <Format>",
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"a\"}\n{\"text\": 5}",
        "a.jsonl:2: \"text\" must be a string, found a number; correct the record, or \
         <Format>",
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"a\"}\n{\"prompt\": \"b\"}",
        "a.jsonl:2: the record has no \"text\", found the keys \"prompt\"; correct the record, or \
         <Format>",
    );
    let named = RecordSpec { format: Format::Text, prompt_field: Some("p".into()), ..spec() };
    assert_eq!(
        fixture.error("a.jsonl", "{\"text\": \"a\"}", &named),
        "a.jsonl:1: names of prompt and completion mean nothing to text; remove them, or \
         <FormatAs(PromptCompletion)>"
    );
    check(
        &Fixture::chat(CHATML),
        "a.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}], \"images\": [\"x.png\"]}",
        "a.jsonl:1: the record has images, and only text is supported; remove records with \
         images, audio or video",
    );
}

#[test]
fn conversations() {
    let fixture = Fixture::chat(CHATML);
    let check = |messages: serde_json::Value, want: &str| {
        check(&fixture, "a.jsonl", json!({"messages": messages}).to_string(), want);
    };
    check(
        json!([]),
        "a.jsonl:1: \"messages\" is an empty conversation; give at least a user's and an \
         assistant's message",
    );
    check(
        json!([{"role": "usr", "content": "a"}]),
        "a.jsonl:1: message 1: unknown role \"usr\"; known ones are system, developer, user, \
         assistant, tool, function, ipython, observation",
    );
    check(
        json!([{"role": "user", "content": "a"}]),
        "a.jsonl:1: the conversation has no assistant turn; give conversations that hold what the \
         assistant should say",
    );
    check(
        json!([{"role": "user"}]),
        "a.jsonl:1: message 1: no \"content\", found the keys \"role\"; give each message a \
         \"content\" (only one with \"tool_calls\" may go without)",
    );
    check(
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        "a.jsonl:1: message 1: content of type \"image_url\" is not supported; give text only",
    );
    check(
        json!([{"role": "assistant", "content": "a", "weight": 0.5}]),
        "a.jsonl:1: message 1: a message's weight must be 0 or 1, found 0.5; write 0 for turns \
         that are not to be learnt",
    );
    let call = json!([{"function": {"name": "f", "arguments": {}}}]);
    check(
        json!([{"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": call}]),
        "a.jsonl:1: the chat template leaves out the tool calls of message 2; train a model whose \
         template knows tool calls, or remove them from the record",
    );
    let record = "{\"conversations\": [{\"from\": \"bard\", \"value\": \"a\"}]}";
    let error = fixture.error("a.jsonl", record, &spec());
    assert!(error.starts_with("a.jsonl:1: message 1: unknown speaker \"bard\"; known"), "{error}");
}

#[test]
fn templates() {
    let record = "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, \
                  {\"role\": \"assistant\", \"content\": \"b\"}]}";
    let error = |template: &str| Fixture::chat(template).error("a.jsonl", record, &spec());
    let mend = "make the conversation one that the model's chat template accepts";
    assert_eq!(
        error("{{ raise_exception('Only tools, please') }}"),
        format!("a.jsonl:1: the chat template raises: Only tools, please; {mend}")
    );
    assert_eq!(
        error("{% macro f() %}{{ raise_exception('deep') }}{% endmacro %}{{ f() }}"),
        format!("a.jsonl:1: the chat template raises: deep; {mend}")
    );
    assert!(error("{{ messages[0].content.nope() }}").contains("the chat template fails: unknown"));
    assert!(
        error(
            "{% for i in range(9999) %}{% for j in range(9999) %}{% if i %}{% endif %}{% endfor %}\
             {% endfor %}"
        )
        .contains("fuel")
    );
    assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion limit"));
    assert!(
        error("{% set x = 'x' * 10000000 %}{% for i in range(50) %}{{ x }}{% endfor %}")
            .contains("bytes of output")
    );
    assert!(error("{% include 'secret' %}").contains("template not found"));
    assert_eq!(
        error("{% for m in messages %}{{ m.content | upper }}{% endfor %}{{ messages | length }}"),
        "a.jsonl:1: the text of assistant turn 1 (message 2) cannot be found exactly in what the \
         chat template renders; mark the assistant's text in the chat template with \
         {% generation %} … {% endgeneration %}"
    );
    assert_eq!(
        error(
            "{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x | length }}\
             {{ x }}"
        ),
        "a.jsonl:1: the template changes the text of its {% generation %} blocks after the block; \
         move {% generation %} to where the assistant's text is written"
    );
    assert_eq!(
        Fixture::plain().error("a.jsonl", record, &spec()),
        "a.jsonl: conversations need a chat template, and this model has none; add \
         chat_template.jinja to the model directory, or give prompts and answers as texts"
    );
}

#[test]
fn rows() {
    let fixture = Fixture::plain();
    let short = RecordSpec { max_seq_len: 3, ..spec() };
    let record = "{\"prompt\": \"abc\", \"completion\": \"d\"}";
    assert_eq!(
        fixture.error("a.jsonl", record, &short),
        "a.jsonl:1: the row has 6 tokens, and at most 3 are taken; <MaxSeqLen>, or <Truncate>"
    );
    let of_model = RecordSpec { model_max_len: Some(5), ..short.clone() };
    assert_eq!(
        fixture.error("a.jsonl", record, &of_model),
        "a.jsonl:1: the row has 6 tokens, and the model takes at most 5; <Truncate>"
    );
    let cut = RecordSpec { overlong: Overlong::Truncate, ..short };
    assert_eq!(
        fixture.error("a.jsonl", record, &cut),
        "a.jsonl:1: nothing to learn is left of the row's 6 tokens after 3; remove the record, \
         or <Skip>"
    );
    check(
        &fixture,
        "a.jsonl",
        "{\"text\": \"\"}",
        "a.jsonl:1: the document is empty; remove the record, or <Skip>",
    );
    let silent = "{% for m in messages %}{% generation %}{% endgeneration %}{% endfor %}x";
    assert_eq!(
        Fixture::chat(silent).error(
            "a.jsonl",
            "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
            &spec()
        ),
        "a.jsonl:1: the row has no token to learn; remove the record, or <Skip>"
    );
    let tiny = RecordSpec { max_seq_len: 1, ..spec() };
    assert_eq!(
        fixture.error("a.jsonl", "{\"text\": \"a\"}", &tiny),
        "rows of at most 1 tokens leave nothing to predict; <MaxSeqLen>"
    );
    let without_eos = Fixture::new(json!({"bos_token": "<s>"}));
    check(
        &without_eos,
        "a.jsonl",
        record,
        "a.jsonl: completions need an end-of-text token, and this model has none; name \
         eos_token in the model's tokenizer_config.json",
    );
    check(
        &without_eos,
        "a.txt",
        "abc",
        "a.txt: documents need an end-of-text token, and this model has none; name eos_token in \
         the model's tokenizer_config.json, or <NoEos>",
    );
}

#[test]
fn skipping_counts_and_reports() {
    let fixture = Fixture::plain();
    let skip = RecordSpec { on_error: OnError::Skip, max_seq_len: 8, ..spec() };
    let lines = "oops\n{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": 1}\n\
                 {\"prompt\": \"abcdef\", \"completion\": \"ghi\"}\n";
    let set = fixture.load("a.jsonl", lines, &skip).unwrap();
    let report = set.report();
    assert_eq!((set.len(), report.skipped), (1, 3));
    assert_eq!((report.skipped_malformed, report.skipped_overlong), (2, 1));
    assert_eq!((report.files[0].records, report.files[0].rows), (4, 1));
    assert!(report.warnings[0].contains("a.jsonl:1: bad JSON at column 1"), "{report:?}");
    assert_eq!(
        fixture.error("b.jsonl", "oops\n", &skip).split(" were").next().unwrap(),
        format!("no rows are left in b.jsonl: 1 records")
    );
}

/// However many records are skipped, what concerns a whole file is told.
#[test]
fn many_bad_records_hide_no_note_on_the_file() {
    let fixture = Fixture::plain();
    let skip = RecordSpec { on_error: OnError::Skip, ..spec() };
    let lines = "oops\n".repeat(30) + "{\"text\": \"a\", \"comment\": \"b\"}\n";
    let set = fixture.load("a.jsonl", lines, &skip).unwrap();
    let warnings = &set.report().warnings;
    assert_eq!(warnings.iter().filter(|w| w.starts_with("skipped: ")).count(), 10);
    assert!(warnings.iter().any(|w| w.contains("not read: \"comment\"")), "{warnings:?}");
}

#[test]
fn what_the_template_leaves_out_is_a_warning() {
    let fixture = Fixture::chat(
        "{% for m in messages %}{% if m.role != 'tool' %}[{{ m.content | tojson }}]{% endif %}\
         {% endfor %}",
    );
    let record = json!({"messages": [{"role": "user", "content": "a\"b"},
        {"role": "tool", "content": "t"}, {"role": "assistant", "content": "c"}]});
    let set = fixture.load("a.jsonl", record.to_string(), &spec()).unwrap();
    let warning = &set.report().warnings[0];
    assert!(warning.ends_with("a.jsonl:1: the chat template leaves out message 2 (\"tool\")"));
}

#[test]
fn a_bad_first_record_can_be_skipped() {
    let fixture = Fixture::plain();
    let lines = "[1]\n{\"text\": \"a\"}\n";
    assert!(fixture.error("a.jsonl", lines, &spec()).starts_with("a.jsonl:1: a record must be"));
    let skip = RecordSpec { on_error: OnError::Skip, ..spec() };
    let set = fixture.load("a.jsonl", lines, &skip).unwrap();
    assert_eq!((set.len(), set.report().skipped_malformed), (1, 1));
}

#[test]
fn tools_that_the_template_does_not_know_are_a_warning() {
    let fixture = Fixture::chat(CHATML);
    let record = json!({"messages": [{"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}], "tools": [{"name": "get_weather"}]});
    let set = fixture.load("a.jsonl", record.to_string(), &spec()).unwrap();
    let warning = &set.report().warnings[0];
    assert!(warning.ends_with("a.jsonl:1: the chat template leaves out the record's tools"));
}

#[test]
fn model_directories() {
    let dir = tempfile::tempdir().unwrap();
    let error = || {
        let error = Tokenizer::from_dir(dir.path()).err().unwrap().message(words);
        error.replace(&format!("{}/", dir.path().display()), "")
    };
    let mend = "give a model directory that holds a tokenizer.json of the tokenizers library";
    assert_eq!(error(), format!("tokenizer.json: no such file; {mend}"));
    std::fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert!(error().starts_with("tokenizer.json: not a tokenizer: "));
    // Words alone, and no token for those that are unknown.
    let words_only = json!({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}});
    let file = dir.path().join("tokenizer.json");
    std::fs::write(&file, words_only.to_string()).unwrap();
    let unknown = Tokenizer::from_dir(dir.path()).unwrap().encode("b", true).err().unwrap();
    let expected = format!("{}: the tokenizer failed: ", file.display());
    let message = unknown.message(words);
    assert!(message.starts_with(&expected), "{message}");
    let fixture = Fixture::plain();
    let broken = |name: &str, text: &str| {
        fixture.write(name, text);
        let error = Tokenizer::from_dir(fixture.path()).err().unwrap().message(words);
        std::fs::remove_file(fixture.path().join(name)).unwrap();
        error.replace(&fixture.path().display().to_string(), "DIR")
    };
    assert_eq!(
        broken("tokenizer_config.json", "{\"eos_token\": \"<none>\"}"),
        "DIR: the tokenizer has no token \"<none>\", which eos_token names; correct \
         tokenizer_config.json or special_tokens_map.json"
    );
    assert!(broken("tokenizer_config.json", "[").starts_with("DIR/tokenizer_config.json: not a"));
    let error = broken("chat_template.jinja", "{% if %}");
    assert!(
        error.starts_with("DIR: the chat template cannot be used: the chat template fails: sy")
    );
}

/// Damaged files and templates give errors or rows, never a panic.
#[test]
fn damaged_input_never_panics() {
    let valid = "[{\"messages\": [{\"role\": \"user\", \"content\": \"é\\u00e9 日\"},\n \
                 {\"role\": \"assistant\", \"content\": [{\"type\": \"text\", \"text\": \"b\"}], \
                 \"tool_calls\": null}], \"tools\": \"[]\"},\n {\"text\": \"x\"}]";
    let template =
        CHATML.replace("{{ m", "{# c #}{% generation %}{{ m") + "{% raw %}{{{% endraw %}";
    let mut stream = hone_data::random::Stream::new(1, 0, 0);
    let mut damage = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..1 + stream.below(4) {
            let at = stream.below(bytes.len());
            match stream.below(3) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] = b"\"{}[]:,%#-\\ a\xc3\n"[stream.below(15)],
                _ => drop(bytes.remove(at.min(bytes.len() - 1))),
            }
            if bytes.len() < 2 {
                break;
            }
        }
        bytes
    };
    let fixture = Fixture::chat(CHATML);
    let skip = RecordSpec { on_error: OnError::Skip, ..spec() };
    for round in 0..1500 {
        let name = ["a.json", "a.jsonl"][round % 2];
        let _ = fixture.load(name, damage(valid), &skip);
        let source = String::from_utf8_lossy(&damage(&template)).into_owned();
        let _ = hone_data::ChatTemplate::new(&source, None, Default::default());
    }
}
