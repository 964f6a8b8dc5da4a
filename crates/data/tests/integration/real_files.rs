//! Public data sets in the formats people use, with a real tokenizer and template.

use crate::fixture::words;
use hone_data::{DataError, Dataset, OnError, RecordKind, RecordSpec, Tokenizer, load};
use serde_json::Value;

/// Loads a file of the shared data with the stories260k tokenizer, whose template is ours.
fn load_real(name: &str, spec: &RecordSpec) -> Option<(Result<Dataset, DataError>, Tokenizer)> {
    let shared = crate::shared()?;
    let tok = Tokenizer::from_dir(&shared.join("models/stories260k")).unwrap();
    let path = shared.join("data").join(name).display().to_string();
    Some((load(&[path], spec, &tok, 2), tok))
}

fn spec() -> RecordSpec {
    RecordSpec { max_seq_len: 1 << 20, ..RecordSpec::default() }
}

fn targets(set: &Dataset, row: usize) -> Vec<u32> {
    let row = set.row(row);
    row.tokens.iter().zip(row.is_target).filter_map(|(t, is)| is.then_some(*t)).collect()
}

#[test]
fn gsm8k() {
    let Some((set, tok)) = load_real("sft/gsm8k/test.jsonl", &spec()) else { return };
    let set = set.unwrap();
    assert_eq!(set.len(), 1319);
    let row = set.row(0);
    assert_eq!((row.tokens[0], *row.tokens.last().unwrap()), (1, 2));
    let text = tok.decode(row.tokens, true).unwrap();
    assert!(text.starts_with("Janet\u{2019}s ducks lay 16 eggs per day."));
    let answer = tok.decode(&targets(&set, 0), true).unwrap();
    assert!(answer.starts_with("Janet sells 16 - 3 - 4 ="), "{answer}");
    assert!(answer.ends_with("#### 18"));
}

#[test]
fn llama_factory_demos() {
    // Tool calls, which our small template does not know, are skipped and counted.
    for (name, format, rows, skipped) in [
        ("identity.json", "alpaca", 91, 0),
        ("glaive_toolcall_en_demo.json", "sharegpt", 147, 153),
        ("c4_demo.jsonl", "text", 300, 0),
        ("v1_sft_demo.jsonl", "messages", 500, 0),
    ] {
        let skip = RecordSpec { on_error: OnError::Skip, ..spec() };
        let Some((set, _)) = load_real(&format!("formats/{name}"), &skip) else { return };
        let set = set.unwrap();
        let report = set.report();
        assert_eq!((report.files[0].format.as_str(), report.rows), (format, rows), "{name}");
        assert_eq!(report.skipped, skipped, "{name}");
    }
}

#[test]
fn preferences() {
    for (name, kind, groups) in [
        ("formats/dpo_en_demo.json", RecordKind::Pairs, 300),
        ("formats/kto_en_demo.json", RecordKind::Rated, 300),
        ("formats/v1_dpo_demo.jsonl", RecordKind::Pairs, 10),
    ] {
        let skip = RecordSpec { on_error: OnError::Skip, kind, ..spec() };
        let Some((set, _)) = load_real(name, &skip) else { return };
        let set = set.unwrap();
        assert_eq!((set.num_groups() + set.report().skipped, set.report().skipped), (groups, 0));
    }
}

#[test]
fn multi_modal_records_are_refused() {
    let Some((set, _)) = load_real("formats/mllm_demo.json", &spec()) else { return };
    let error = set.unwrap_err().message(words);
    assert!(error.contains("mllm_demo.json:2: the record has images, and only text"), "{error}");
}

/// What is learnt is what the assistant says, and each turn's end; spaces belong to tokens.
#[test]
fn assistant_turns_of_stories() {
    let name = "formats/kto_en_demo.json";
    let Some((set, _)) = load_real(name, &spec()) else { return };
    assert!(set.unwrap_err().message(words).contains("rated as bad"));
    let skipping = RecordSpec { on_error: OnError::Skip, ..spec() };
    let Some((set, tok)) = load_real(name, &skipping) else { return };
    let set = set.unwrap();
    let file = std::fs::read_to_string(crate::shared().unwrap().join("data").join(name)).unwrap();
    let mut records: Vec<Value> = serde_json::from_str(&file).unwrap();
    records.retain(|record| record["label"] == true);
    assert_eq!(records.len(), set.len());
    for (index, record) in records.iter().enumerate() {
        let said = tok.decode(&targets(&set, index), false).unwrap();
        let messages = record["messages"].as_array().unwrap();
        let turns = messages.iter().filter(|m| m["role"] == "assistant");
        let want = turns.map(|m| m["content"].as_str().unwrap().to_owned() + "</s>");
        let want = want.collect::<String>();
        assert_eq!(said.replace(' ', ""), want.replace(' ', ""));
        assert_eq!(set.row(index).tokens.iter().filter(|t| **t == 1).count(), 1, "BOS once");
    }
}

#[test]
fn tinyshakespeare() {
    let window = RecordSpec { max_seq_len: 256, ..RecordSpec::default() };
    let Some((set, _)) = load_real("text/tinyshakespeare.txt", &window) else { return };
    let set = set.unwrap();
    let report = set.report();
    assert_eq!(report.target_tokens, report.tokens - report.rows);
    assert_eq!(*set.row(set.len() - 1).tokens.last().unwrap(), 2);
    assert_eq!(set.row(0).tokens[0], 1);
}

#[test]
fn a_space_that_joins_the_answer_is_a_warning() {
    let Some(shared) = crate::shared() else { return };
    let tok = Tokenizer::from_dir(&shared.join("models/stories260k")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let warnings = |prompt: &str, completion: &str| {
        let path = dir.path().join("rows.jsonl");
        let row = serde_json::json!({ "prompt": prompt, "completion": completion });
        std::fs::write(&path, row.to_string()).unwrap();
        let set = load(&[path.display().to_string()], &spec(), &tok, 2).unwrap();
        (set.report().merged_boundaries, set.report().warnings.concat())
    };
    let (merged, text) = warnings("Who is it? ", "the dog");
    assert_eq!(merged, 1);
    assert!(text.contains("in 1 of 1 rows") && text.contains("move the space"), "{text}");
    let (merged, text) = warnings("Who is it?", " the dog");
    assert_eq!(merged, 0);
    assert!(!text.contains("space"), "{text}");
    // This model has a chat template, which such rows do not use.
    assert!(text.contains("without the model's chat template"), "{text}");
    assert!(warnings("Who is it?", "the dog").1.contains("in 1 of 1 rows the completion follows"));
    for (prompt, completion) in [("2+2=", "4"), ("谁?", "狗"), ("", "the dog"), ("is it\n", "a")]
    {
        let text = warnings(prompt, completion).1;
        assert!(!text.contains("the completion follows"), "{prompt}{completion}: {text}");
    }
}
