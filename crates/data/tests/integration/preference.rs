//! Records of preferences to groups of rows.

use crate::fixture::{CHATML, EOS, Fixture};
use hone_data::preference::mismatched;
use hone_data::{
    Cursor, Dataset, Label, OnError, Order, Overlong, RecordKind, RecordSpec, pack_in_order,
};

fn spec(kind: RecordKind) -> RecordSpec {
    RecordSpec { kind, ..RecordSpec::default() }
}

/// Text of each row and of its targets, with its label.
fn rows(fixture: &Fixture, set: &Dataset) -> Vec<(Label, String, String)> {
    let row = |i| (set.row(i).label, fixture.row_text(set, i), fixture.target_text(set, i));
    (0..set.len()).map(row).collect()
}

#[test]
fn pairs_of_texts() {
    let fixture = Fixture::plain();
    for (record, prompt, chosen, rejected) in [
        (r#"{"prompt": "Q:", "chosen": " yes", "rejected": " no"}"#, "Q:", " yes", " no"),
        // An implicit prompt; the space before the answer goes with it.
        (r#"{"chosen": "Hi. é yes", "rejected": "Hi. é no"}"#, "Hi. é", " yes", " no"),
        (r#"{"chosen": "ab", "rejected": "abc"}"#, "ab", "", "c"),
    ] {
        let set = fixture.load("a.jsonl", record, &spec(RecordKind::Pairs)).unwrap();
        let row = |label, answer: &str| {
            (label, format!("<s>{prompt}{answer}</s>"), format!("{answer}</s>"))
        };
        let expected = [row(Label::Chosen, chosen), row(Label::Rejected, rejected)];
        assert_eq!(rows(&fixture, &set), expected, "{record}");
        assert_eq!((set.num_groups(), set.group(0)), (1, 0..2));
    }
}

#[test]
fn pairs_and_ratings_of_messages() {
    let fixture = Fixture::chat(CHATML);
    let (user, yes) =
        (r#"{"role":"user","content":"q"}"#, r#"{"role":"assistant","content":"yes"}"#);
    let no = r#"{"role":"assistant","content":"no"}"#;
    let before = format!("{user},{no},{user}");
    let pairs = RecordKind::Pairs;
    let records = [
        (pairs, format!(r#"{{"prompt":[{before}],"chosen":[{yes}],"rejected":[{no}]}}"#)),
        (pairs, format!(r#"{{"chosen":[{before},{yes}],"rejected":[{before},{no}]}}"#)),
        (pairs, format!(r#"{{"prompt":[{before}],"chosen":{yes},"rejected":{no}}}"#)),
        (
            pairs,
            r#"{"conversations":[{"from":"human","value":"q"},{"from":"gpt","value":"no"},
                {"from":"human","value":"q"}],"chosen":{"from":"gpt","value":"yes"},
                "rejected":{"from":"gpt","value":"no"}}"#
                .replace('\n', ""),
        ),
        (RecordKind::Rated, format!(r#"{{"messages":[{before},{yes}],"label":true}}"#)),
        (
            RecordKind::Rated,
            format!(r#"{{"prompt":[{before}],"completion":[{yes}],"label":true}}"#),
        ),
    ];
    for (kind, record) in records {
        let set = fixture.load("a.jsonl", &record, &spec(kind)).unwrap();
        let rows = rows(&fixture, &set);
        assert_eq!(rows.len(), kind.rows_per_record(), "{record}");
        let label = if kind == pairs { Label::Chosen } else { Label::Desirable };
        assert_eq!(rows[0].0, label, "{record}");
        // The turn in the prompt is not learnt, though the assistant says it.
        assert_eq!(rows[0].2, "yes<|im_end|>", "{record}");
        assert_eq!(rows[0].1.matches("<|im_start|>").count(), 4, "{record}");
    }
}

#[test]
fn faults_name_file_line_and_remedy() {
    let fixture = Fixture::plain();
    let good = r#"{"prompt":"a","chosen":"b","rejected":"c"}"#;
    for (kind, record, fault) in [
        (RecordKind::Pairs, r#"{"prompt":"a","chosen":"b"}"#, "the record has no \"rejected\""),
        (RecordKind::Pairs, r#"{"chosen":"b","rejected":"b"}"#, "are the same"),
        (RecordKind::Pairs, r#"{"prompt":"a","chosen":[],"rejected":"c"}"#, "no messages"),
        (RecordKind::Pairs, r#"{"prompt":"a","chosen":5,"rejected":"c"}"#, "found a number"),
        (
            RecordKind::Pairs,
            r#"{"prompt":"a","chosen":[{"role":"assistant","content":"b"}],"rejected":"c"}"#,
            "partly texts, partly messages",
        ),
        (
            RecordKind::Pairs,
            r#"{"prompt":[{"role":"user","content":"a"}],"rejected":[{"role":"user","content":"b"}],
                "chosen":[{"role":"user","content":"c"}]}"#,
            "no assistant turn",
        ),
        (RecordKind::Rated, r#"{"prompt":"a","completion":"b"}"#, "the record has no \"label\""),
        (
            RecordKind::Rated,
            r#"{"prompt":"a","completion":"b","label":1}"#,
            "must be true or false",
        ),
        (RecordKind::Rated, r#"{"completion":"b","label":true}"#, "no \"prompt\""),
        (RecordKind::Rated, r#"{"prompt":"a","label":true}"#, "no \"completion\""),
    ] {
        let first = match kind {
            RecordKind::Pairs => good,
            _ => r#"{"prompt":"a","completion":"b","label":true}"#,
        };
        let text = format!("{first}\n{}\n", record.replace('\n', ""));
        let error = fixture.error("a.jsonl", &text, &spec(kind));
        assert!(error.starts_with("a.jsonl:2: ") && error.contains(fault), "{record}: {error}");
        let skip = RecordSpec { on_error: OnError::Skip, ..spec(kind) };
        let set = fixture.load("a.jsonl", &text, &skip).unwrap();
        assert_eq!((set.num_groups(), set.report().skipped), (1, 1), "{record}");
    }
}

/// A model without a template is no fault of the records, which are not skipped for it.
#[test]
fn what_the_model_lacks_stops_the_load() {
    let fixture = Fixture::plain();
    let texts = r#"{"prompt":"a","completion":"b","label":true}"#;
    let messages = r#"{"messages":[{"role":"user","content":"q"},
        {"role":"assistant","content":"a"}],"label":true}"#;
    let text = format!("{texts}\n{}\n", messages.replace('\n', ""));
    for on_error in [OnError::Fail, OnError::Skip] {
        let spec = RecordSpec { on_error, ..spec(RecordKind::Rated) };
        let error = fixture.error("a.jsonl", &text, &spec);
        assert!(error.starts_with("a.jsonl: conversations need a chat template"), "{error}");
    }
}

/// The run file and `hone eval` refuse a format for these records, so none is suggested.
#[test]
fn no_format_is_suggested() {
    let fixture = Fixture::plain();
    let pair = r#"{"prompt":1,"chosen":"a","rejected":"b"}"#;
    for kind in [RecordKind::Pairs, RecordKind::Rated] {
        for (file, text) in [("a.jsonl", pair), ("a.jsonl", r#"{"prompt":"a"}"#), ("a.csv", "a,b")]
        {
            let error = fixture.error(file, text, &spec(kind));
            assert!(!error.contains("<Format") && !error.contains("<Fields"), "{error}");
        }
    }
    let as_text = fixture.error("a.csv", "a,b", &spec(RecordKind::Plain));
    assert!(as_text.contains("<FormatAs(Text)>"), "{as_text}");
    let not_text = fixture.error("a.jsonl", pair, &spec(RecordKind::Pairs));
    assert!(not_text.ends_with("found a number; correct the record"), "{not_text}");
}

/// What is noted of rows depends on what their text is made of, not on their objective.
#[test]
fn notes_on_templates_hold_for_preferences() {
    let fixture = Fixture::chat(&format!("{{{{ strftime_now('%Y') }}}}{CHATML}"));
    let texts = r#"{"prompt":"a","completion":" b","label":true}"#;
    let messages = r#"{"messages":[{"role":"user","content":"q"},
        {"role":"assistant","content":"a"}],"label":true}"#;
    let (completion, date) = ("without the model's chat template", "write today's date");
    for (record, is_noted) in [(texts, [true, false]), (messages, [false, true])] {
        let text = record.replace('\n', "");
        let set = fixture.load("a.jsonl", text, &spec(RecordKind::Rated)).unwrap();
        let notes = set.report().warnings.join("\n");
        assert_eq!([completion, date].map(|note| notes.contains(note)), is_noted, "{notes}");
    }
}

/// Of a pair with one answer too long both rows are left out, or the long one is cut.
#[test]
fn a_pair_is_kept_or_left_out_as_one() {
    let fixture = Fixture::plain();
    let text = "{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"cccccccc\"}\n\
                {\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n";
    let short = RecordSpec { max_seq_len: 6, ..spec(RecordKind::Pairs) };
    let refused = fixture.error("a.jsonl", text, &short);
    assert!(refused.starts_with("a.jsonl:1: the row has 11 tokens"), "{refused}");
    let skip = RecordSpec { on_error: OnError::Skip, ..short.clone() };
    let set = fixture.load("a.jsonl", text, &skip).unwrap();
    assert_eq!((set.len(), set.num_groups(), set.report().skipped_overlong), (2, 1, 1));
    let cut = RecordSpec { overlong: Overlong::Truncate, ..short };
    let set = fixture.load("a.jsonl", text, &cut).unwrap();
    assert_eq!((set.len(), set.num_groups(), set.report().truncated), (4, 2, 1));
    assert_eq!(set.row_len(1), 6);
}

#[test]
fn a_unit_holds_a_pair() {
    let fixture = Fixture::plain();
    let record = |i: usize| {
        let (a, b) = ("x".repeat(1 + i * 7 % 11), "y".repeat(1 + i * 5 % 13));
        format!("{{\"prompt\":\"p\",\"chosen\":\"{a}\",\"rejected\":\"{b}\"}}\n")
    };
    let text: String = (0..300).map(record).collect();
    let set = fixture.load("a.jsonl", text, &spec(RecordKind::Pairs)).unwrap();
    let mut order = Order::new(&set, 40, 3, 1).unwrap();
    let steps = order.steps_in_epoch(1) as u64;
    let trained = (0..steps)
        .flat_map(|step_in_epoch| order.step(&Cursor { epoch: 1, step_in_epoch }).to_vec());
    for units in [trained.collect(), pack_in_order(&set, 40).unwrap()] {
        let mut seen = 0;
        for unit in &units {
            assert!(unit.num_tokens <= 40);
            for pair in unit.rows.chunks(2) {
                assert!(pair[0] % 2 == 0 && pair[1] == pair[0] + 1, "{:?}", unit.rows);
                seen += 1;
            }
        }
        assert_eq!(seen, 300);
    }
    assert!(pack_in_order(&set, 20).is_err(), "a pair is longer than that");
}

#[test]
fn mismatched_answers_rotate() {
    let fixture = Fixture::plain();
    let text = "{\"prompt\":\"a\",\"completion\":\"1\",\"label\":true}\n\
                {\"prompt\":\"bb\",\"completion\":\"22\",\"label\":false}\n\
                {\"prompt\":\"ccc\",\"completion\":\"333\",\"label\":true}\n";
    let set = fixture.load("a.jsonl", text, &spec(RecordKind::Rated)).unwrap();
    let pairs = mismatched(&set, &[2, 0, 1], 6);
    let found: Vec<String> = (0..3).map(|i| fixture.row_text(&pairs, i)).collect();
    assert_eq!(found, ["<s>ccc22", "<s>a333</s>", "<s>bb1</s>"]);
    assert_eq!(fixture.target_text(&pairs, 0), "22");
    assert_eq!(*pairs.row(2).tokens.last().unwrap(), EOS);
    // Repetitions take the answer of the nearest other row before them.
    let pairs = mismatched(&set, &[0, 0, 1, 1, 0], 9);
    let found: Vec<String> = (0..5).map(|i| fixture.row_text(&pairs, i)).collect();
    let (a, b) = ("<s>a22</s>", "<s>bb1</s>");
    assert_eq!(found, [a, a, b, b, a]);
    assert!(mismatched(&set, &[1, 1, 1], 9).is_empty());
    assert!(mismatched(&set, &[1], 9).is_empty());
}
