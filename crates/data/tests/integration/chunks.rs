//! Files of several chunks, on several threads: nothing depends on either.

use crate::fixture::{Fixture, words};
use hone_data::{DataReport, OnError, RecordSpec, load};

/// Some ten megabytes of records, most of whose bytes are passed over. Every 50 lines three are bad
/// and one is blank.
fn lines() -> String {
    let pad = "0,".repeat(2_000);
    let line = |i: usize| match i % 50 {
        7 => "oops\n".to_owned(),
        13 => "{\"prompt\": 1, \"completion\": \"c\"}\n".to_owned(),
        21 => format!("{{\"prompt\": \"{}\", \"completion\": \"c\"}}\n", "long".repeat(9)),
        33 => " \r\n".to_owned(),
        _ => format!(
            "{{\"prompt\": \"p{i}\", \"completion\": \" c\", \"note\": \"n\", \"pad\": [{pad}0]}}\n"
        ),
    };
    (0..2_500).map(line).collect()
}

/// Rows with their lines, and the report.
type Loaded = (Vec<(Vec<u32>, Vec<bool>, usize)>, DataReport);

fn loaded(fixture: &Fixture, path: &str, num_threads: usize) -> Loaded {
    let spec = RecordSpec { on_error: OnError::Skip, max_seq_len: 16, ..RecordSpec::default() };
    let set = load(&[path.to_owned()], &spec, &fixture.tokenizer, num_threads).unwrap();
    let rows = (0..set.len()).map(|row| set.row(row));
    let rows =
        rows.map(|row| (row.tokens.to_vec(), row.is_target.to_vec(), row.source.line)).collect();
    (rows, set.report().clone())
}

#[test]
fn threads_change_nothing() {
    let fixture = Fixture::plain();
    let path = fixture.write("a.jsonl", lines()).display().to_string();
    let one = loaded(&fixture, &path, 1);
    assert_eq!((one.0.len(), one.1.skipped), (2_300, 150));
    assert!(one.0.is_sorted_by_key(|(_, _, line)| *line));
    assert_eq!((one.0[0].2, one.0.last().unwrap().2), (1, 2_500));
    assert!(one.1.warnings.iter().any(|warning| warning.contains("\"note\"")), "{:?}", one.1);
    for num_threads in [2, 3] {
        assert_eq!(loaded(&fixture, &path, num_threads), one, "{num_threads} threads");
    }
    // The same records as an array.
    let text = lines();
    let good = |line: &&str| !line.trim().is_empty() && *line != "oops";
    let array = text.lines().filter(good).collect::<Vec<_>>().join(",\n");
    let path = fixture.write("a.json", format!("[{array}]")).display().to_string();
    let tokens = |loaded: &Loaded| loaded.0.iter().map(|row| row.0.clone()).collect::<Vec<_>>();
    assert_eq!(tokens(&loaded(&fixture, &path, 2)), tokens(&one));
}

#[test]
fn the_first_fault_of_a_file_is_told_whatever_the_threads() {
    let fixture = Fixture::plain();
    let text = lines();
    // In the first chunk, and in the last.
    for first in [8, 2_408] {
        let good = "{\"prompt\": \"p\", \"completion\": \" c\"}";
        let fixed = text.lines().enumerate().map(|(i, line)| match i + 1 {
            number if number < first && [7, 13, 21].contains(&(i % 50)) => good,
            _ => line,
        });
        let path = fixture.write("a.jsonl", fixed.collect::<Vec<_>>().join("\n"));
        let path = path.display().to_string();
        let told = |num_threads| {
            let spec = RecordSpec { max_seq_len: 16, ..RecordSpec::default() };
            let error = load(std::slice::from_ref(&path), &spec, &fixture.tokenizer, num_threads)
                .unwrap_err();
            error.message(words)
        };
        let one = told(1);
        assert!(one.starts_with(&format!("{path}:{first}: bad JSON at column 1")), "{one}");
        assert_eq!((told(2), told(3)), (one.clone(), one));
    }
}

/// A record before the first that shows the layout is no record, however long those between are.
#[test]
fn ambiguous_records_are_skipped_up_to_the_first_clear_one() {
    let fixture = Fixture::plain();
    for pad in [1, 5 << 20] {
        let ambiguous = "{\"prompt\": \"p\", \"completion\": \" c\", \"text\": \"t\"}\n";
        let padded = ambiguous.replace("\"t\"", &format!("\"{}\"", "t".repeat(pad)));
        let clear = "{\"prompt\": \"p\", \"completion\": \" c\"}\n";
        let text = [ambiguous, &padded, clear, ambiguous].concat();
        let path = fixture.write("a.jsonl", &text).display().to_string();
        let (rows, report) = loaded(&fixture, &path, 2);
        let lines: Vec<usize> = rows.iter().map(|(_, _, line)| *line).collect();
        assert_eq!((lines, report.skipped), (vec![3, 4], 2), "{pad}");
        let error = fixture.error("a.jsonl", &text, &RecordSpec::default());
        assert!(error.starts_with("a.jsonl:1: the record can be read as prompt_com"), "{error}");
    }
}

#[test]
fn bytes_are_counted_over_the_whole_file() {
    let fixture = Fixture::plain();
    let text = "{\"text\": \"abc\"}\n".repeat(9_000);
    let bytes = [text.as_bytes(), b"{\"text\": \"\xff\"}\n"].concat();
    let error = fixture.error("a.jsonl", &bytes, &RecordSpec::default());
    let at = text.len() + 10;
    assert!(error.starts_with(&format!("a.jsonl: not valid UTF-8 at byte {at};")), "{error}");
    // A line that is no record is passed over, and not held.
    let long = [text.as_bytes(), &vec![b'x'; (64 << 20) + 5], b"\n", text.as_bytes()].concat();
    let error = fixture.error("a.jsonl", long, &RecordSpec::default());
    assert!(error.starts_with("a.jsonl:9001: the record is 67108869 bytes long"), "{error}");
}
