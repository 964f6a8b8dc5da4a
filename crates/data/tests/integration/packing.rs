//! Packing and order over random sets of rows.

use crate::fixture::{Fixture, words};
use hone_data::random::Stream;
use hone_data::{
    Cursor, Dataset, IGNORE, MicroBatch, OnError, Order, RecordKind, RecordSpec, Unit,
    WeightedPath, load, pack_in_order,
};
use std::collections::BTreeSet;

const UNIT: usize = 64;

/// Rows of random lengths from 3 to 64 tokens.
fn random_set(seed: u64, num_rows: usize) -> Dataset {
    let mut stream = Stream::new(seed, 0, 99);
    let lines = (0..num_rows).map(|_| {
        let (prompt, completion) = (stream.below(31), stream.below(31));
        let (prompt, completion) = ("p".repeat(prompt), "c".repeat(completion + 1));
        format!("{{\"prompt\": \"{prompt}\", \"completion\": \"{completion}\"}}\n")
    });
    let text = lines.collect::<String>();
    let spec = RecordSpec { max_seq_len: UNIT, ..RecordSpec::default() };
    Fixture::plain().load("a.jsonl", text, &spec).unwrap()
}

fn check_units(set: &Dataset, units: &[Unit]) {
    let mut seen = vec![0; set.len()];
    for unit in units {
        let total = unit.rows.iter().map(|row| set.row(*row as usize).tokens.len()).sum::<usize>();
        assert_eq!(total, unit.num_tokens);
        assert!(total <= UNIT && total > 0);
        unit.rows.iter().for_each(|row| seen[*row as usize] += 1);
    }
    assert!(seen.iter().all(|count| *count == 1), "each row exactly once");
}

fn epoch(order: &mut Order, epoch: u64) -> Vec<Unit> {
    let steps = order.steps_in_epoch(epoch) as u64;
    (0..steps)
        .flat_map(|step_in_epoch| order.step(&Cursor { epoch, step_in_epoch }).to_vec())
        .collect()
}

#[test]
fn each_row_once_and_within_capacity() {
    for seed in 0..20 {
        let set = random_set(seed, 1 + 37 * seed as usize);
        let mut order = Order::new(&set, UNIT, 1 + seed as usize % 5, seed).unwrap();
        for e in 0..3 {
            check_units(&set, &epoch(&mut order, e));
        }
        check_units(&set, &pack_in_order(&set, UNIT).unwrap());
    }
}

/// Files of so many rows, each with its weight.
fn mixture(parts: &[(usize, f64)]) -> Dataset {
    let fixture = Fixture::plain();
    let paths = parts.iter().enumerate().map(|(i, &(rows, weight))| {
        let lines = "{\"prompt\": \"p\", \"completion\": \" c\"}\n".repeat(rows);
        let path = fixture.write(&format!("{i}.jsonl"), lines).display().to_string();
        WeightedPath { path, weight }
    });
    let spec = RecordSpec { max_seq_len: UNIT, ..RecordSpec::default() };
    load(paths.collect::<Vec<_>>(), &spec, &fixture.tokenizer, 1).unwrap()
}

/// How often an epoch sees each row.
fn times_seen(set: &Dataset, order: &mut Order, e: u64) -> Vec<usize> {
    let mut seen = vec![0; set.len()];
    let rows = epoch(order, e).into_iter().flat_map(|unit| unit.rows);
    rows.for_each(|row| seen[row as usize] += 1);
    seen
}

#[test]
fn weights_say_how_often_rows_are_seen() {
    let set = mixture(&[(40, 1.0), (10, 2.0), (30, 0.5), (9, 1.25), (3, 0.01)]);
    let weights: Vec<_> = set.report().files.iter().map(|file| (file.rows, file.weight)).collect();
    assert_eq!(weights, [(40, 1.0), (10, 2.0), (30, 0.5), (9, 1.25), (3, 0.01)]);
    let mut order = Order::new(&set, UNIT, 2, 42).unwrap();
    let mut halves = Vec::new();
    for e in 0..4 {
        let seen = times_seen(&set, &mut order, e);
        assert!(seen[..40].iter().all(|&n| n == 1) && seen[40..50].iter().all(|&n| n == 2));
        let part = |rows: std::ops::Range<usize>, least: usize, sum: usize| {
            let seen = &seen[rows];
            assert!(seen.iter().all(|&n| n == least || n == least + 1), "{seen:?}");
            assert_eq!(seen.iter().sum::<usize>(), sum);
        };
        part(50..80, 0, 15);
        part(80..89, 1, 11);
        part(89..92, 0, 1);
        halves.push(seen[50..80].to_vec());
    }
    assert!(halves.windows(2).all(|pair| pair[0] != pair[1]), "drawn anew for each epoch");
    let again = times_seen(&set, &mut Order::new(&set, UNIT, 5, 42).unwrap(), 2);
    assert_eq!(again[50..80], halves[2], "a function of seed and epoch");
    let other = times_seen(&set, &mut Order::new(&set, UNIT, 2, 43).unwrap(), 2);
    assert_ne!(other[50..80], halves[2]);
}

/// What the report says of an epoch is what the order takes: neighbours of one weight are rounded
/// together, and pairs are counted as such.
#[test]
fn the_report_says_what_an_epoch_sees() {
    let of_files =
        |set: &Dataset| set.report().files.iter().map(|f| f.groups_per_epoch).collect::<Vec<_>>();
    let seen = |set: &Dataset| -> usize {
        let mut order = Order::new(set, 2 * UNIT, 1, 0).unwrap();
        times_seen(set, &mut order, 0).iter().sum()
    };
    let set = mixture(&[(3, 0.5), (3, 0.5), (2, 2.0), (3, 0.01), (5, 0.3)]);
    assert_eq!(of_files(&set), [1.5, 1.5, 4.0, 1.0, 2.0]);
    assert_eq!((set.report().groups_per_epoch, seen(&set)), (10, 10));

    let fixture = Fixture::plain();
    let paths = [(3, 0.5), (1, 0.5), (1, 3.0)].map(|(pairs, weight)| {
        let lines = "{\"prompt\": \"p\", \"chosen\": \" c\", \"rejected\": \" r\"}\n".repeat(pairs);
        let path = fixture.write(&format!("{pairs}-{weight}.jsonl"), lines).display().to_string();
        WeightedPath { path, weight }
    });
    let spec = RecordSpec { kind: RecordKind::Pairs, max_seq_len: UNIT, ..RecordSpec::default() };
    let set = load(paths, &spec, &fixture.tokenizer, 1).unwrap();
    assert_eq!(set.report().files.iter().map(|f| f.groups).collect::<Vec<_>>(), [3, 1, 1]);
    assert_eq!(of_files(&set), [1.5, 0.5, 3.0]);
    assert_eq!((set.report().groups_per_epoch, seen(&set)), (5, 10));
}

/// Two files of rows of different lengths, with their weights.
fn uneven_mixture(parts: [(usize, f64); 2]) -> Dataset {
    let (fixture, mut stream) = (Fixture::plain(), Stream::new(5, 0, 99));
    let paths = [0, 1].map(|i| {
        let (rows, weight) = parts[i];
        let lines = (0..rows).map(|_| {
            let text = "c".repeat(40 + stream.below(361));
            format!("{{\"prompt\": \"p\", \"completion\": \"{text}\"}}\n")
        });
        let path = fixture.write(&format!("{i}.jsonl"), lines.collect::<String>());
        WeightedPath { path: path.display().to_string(), weight }
    });
    load(paths, &RecordSpec::default(), &fixture.tokenizer, 2).unwrap()
}

/// The share of a unit's rows that are there once, and of its slots that are used.
fn distinct_and_fill(set: &Dataset, unit_tokens: usize) -> (f64, f64) {
    let units = epoch(&mut Order::new(set, unit_tokens, 1, 7).unwrap(), 0);
    let num_rows = units.iter().map(|unit| unit.rows.len()).sum::<usize>();
    let distinct = |unit: &Unit| unit.rows.iter().collect::<BTreeSet<_>>().len();
    let num_distinct = units.iter().map(distinct).sum::<usize>();
    let num_tokens = units.iter().map(|unit| unit.num_tokens).sum::<usize>();
    let fill = num_tokens as f64 / (units.len() * unit_tokens) as f64;
    (num_distinct as f64 / num_rows as f64, fill)
}

#[test]
fn repeated_rows_are_spread_over_units() {
    let set = uneven_mixture([(150, 10.0), (50, 10.0)]);
    let (distinct, fill) = distinct_and_fill(&set, 2048);
    assert!(distinct > 0.95 && fill > 0.98, "{distinct} {fill}");
    let set = uneven_mixture([(3, 100.0), (2000, 1.0)]);
    let (distinct, fill) = distinct_and_fill(&set, 2048);
    assert!(distinct > 0.95 && fill > 0.98, "{distinct} {fill}");
}

/// Where there are more repetitions than units, units are filled rather than left nearly empty.
#[test]
fn units_of_many_repetitions_are_full() {
    let set = uneven_mixture([(3, 100.0), (1, 1.0)]);
    let (_, fill) = distinct_and_fill(&set, 2048);
    assert!(fill > 0.9, "{fill}");
    let set = uneven_mixture([(3, 100.0), (500, 1.0)]);
    let (distinct, fill) = distinct_and_fill(&set, 16384);
    assert!(distinct > 0.5 && fill > 0.9, "{distinct} {fill}");
}

/// Steps of fractions and repetitions are resumed in mid-epoch.
#[test]
fn a_weighted_order_resumes_anywhere() {
    let set = mixture(&[(25, 0.4), (11, 2.5)]);
    let mut order = Order::new(&set, UNIT, 1, 3).unwrap();
    let mut cursor = Cursor::default();
    assert_eq!(order.total_steps(3).unwrap(), 3 * order.steps_in_epoch(0) as u64);
    while cursor.epoch < 3 {
        let mut resumed = Order::new(&set, UNIT, 1, 3).unwrap();
        assert_eq!(resumed.step(&cursor), order.step(&cursor), "{cursor:?}");
        order.advance(&mut cursor);
    }
}

/// Refused before memory is taken for them.
#[test]
fn weights_beyond_memory_are_refused() {
    for weight in [1e9, f64::MAX] {
        let set = mixture(&[(3, 1.0), (2, weight), (1, 0.5), (2, weight)]);
        let error = Order::new(&set, UNIT, 1, 0).err().unwrap().message(words);
        assert!(error.contains("the data's 8 records become"), "{error}");
        assert!(error.contains("lower the weights"), "{error}");
    }
}

/// The order follows from rows and weights, however their files were named.
#[test]
fn neighbours_of_one_weight_are_one_part() {
    let (apart, together) = (mixture(&[(5, 0.5), (5, 0.5)]), mixture(&[(10, 0.5)]));
    let seen = |set: &Dataset| times_seen(set, &mut Order::new(set, UNIT, 1, 3).unwrap(), 1);
    assert_eq!(seen(&apart), seen(&together));
    let fixture = Fixture::plain();
    let lines = "{\"prompt\": \"p\", \"completion\": \" c\"}\n".repeat(5);
    let [a, b] = ["a.jsonl", "b.jsonl"].map(|name| fixture.write(name, &lines));
    let bad = fixture.write("bad.jsonl", "{}");
    let spec = RecordSpec { max_seq_len: UNIT, on_error: OnError::Skip, ..RecordSpec::default() };
    // A table whose file belongs to another one, and one without a row, part nothing.
    for between in [&a, &bad] {
        let paths = [(&a, 0.5), (between, 2.0), (&b, 0.5)]
            .map(|(path, weight)| WeightedPath { path: path.display().to_string(), weight });
        let set = load(paths, &spec, &fixture.tokenizer, 1).unwrap();
        assert_eq!(seen(&set), seen(&together), "{}", between.display());
        let told = set.report().warnings.join("\n");
        assert_eq!(told.contains("read once, with weight 0.5, not 2"), between == &a, "{told}");
    }
    // Without weights it is what it was before there were any.
    let set = mixture(&[(7, 1.0), (5, 1.0)]);
    assert!(seen(&set).iter().all(|&n| n == 1));
}

#[test]
fn packing_is_tight() {
    let set = random_set(3, 5000);
    let mut order = Order::new(&set, UNIT, 4, 0).unwrap();
    let num_units = epoch(&mut order, 0).len();
    let fill = set.report().tokens as f64 / (num_units * UNIT) as f64;
    assert!(fill > 0.97, "{fill}");
}

#[test]
fn order_is_deterministic_and_differs_by_epoch_and_seed() {
    let set = random_set(5, 200);
    let units = |seed, e| epoch(&mut Order::new(&set, UNIT, 2, seed).unwrap(), e);
    assert_eq!(units(1, 3), units(1, 3));
    assert_ne!(units(1, 3), units(1, 4));
    assert_ne!(units(1, 3), units(2, 3));
    // The step's size groups the same sequence of units.
    assert_eq!(epoch(&mut Order::new(&set, UNIT, 7, 1).unwrap(), 3), units(1, 3));
}

/// Pins the order, so that no change breaks the resuming of old checkpoints unnoticed.
#[test]
fn order_known_answer() {
    let set = random_set(7, 12);
    let mut order = Order::new(&set, UNIT, 100, 42).unwrap();
    let rows = epoch(&mut order, 1).into_iter().map(|u| u.rows).collect::<Vec<_>>();
    assert_eq!(rows, KNOWN_ORDER);
}

const KNOWN_ORDER: [&[u32]; 7] = [&[6], &[9, 4, 11], &[1, 10], &[5], &[8], &[7, 3], &[0, 2]];

#[test]
fn resuming_by_cursor_equals_going_on() {
    let set = random_set(11, 150);
    let mut order = Order::new(&set, UNIT, 3, 9).unwrap();
    let mut cursor = Cursor::default();
    let mut trace = Vec::new();
    for _ in 0..order.total_steps(3).unwrap() {
        trace.push((cursor, order.step(&cursor).to_vec()));
        order.advance(&mut cursor);
    }
    assert_eq!(cursor, Cursor { epoch: 3, step_in_epoch: 0 });
    for (saved, units) in trace.iter().rev().step_by(7) {
        let json = serde_json::to_string(saved).unwrap();
        let mut cursor: Cursor = serde_json::from_str(&json).unwrap();
        let mut resumed = Order::new(&set, UNIT, 3, 9).unwrap();
        assert_eq!(resumed.step(&cursor), units);
        resumed.advance(&mut cursor);
        let next = trace.iter().position(|(c, _)| c == saved).unwrap() + 1;
        if let Some((next_cursor, next_units)) = trace.get(next) {
            assert_eq!(cursor, *next_cursor);
            assert_eq!(resumed.step(&cursor), next_units);
        }
    }
}

#[test]
fn micro_batches_hold_whole_sequences() {
    let set = random_set(13, 40);
    let units = pack_in_order(&set, UNIT).unwrap();
    for pair in units.chunks(2) {
        let batch = MicroBatch::assemble(&set, pair, 3 * UNIT);
        assert_eq!(batch.tokens.len(), 3 * UNIT);
        assert_eq!((batch.targets.len(), batch.positions.len()), (3 * UNIT, 3 * UNIT));
        assert_eq!(batch.rows.len() + 1, batch.cu_seqlens.len());
        assert_eq!(batch.cu_seqlens[0], 0);
        let mut num_targets = 0;
        for (row, ends) in batch.rows.iter().zip(batch.cu_seqlens.windows(2)) {
            let (start, end) = (ends[0] as usize, ends[1] as usize);
            let row = set.row(*row as usize);
            assert_eq!(&batch.tokens[start..end], row.tokens);
            for (i, at) in (start..end).enumerate() {
                assert_eq!(batch.positions[at] as usize, i);
                let is_target = row.is_target.get(i + 1) == Some(&true);
                let want = if is_target { row.tokens[i + 1] } else { IGNORE };
                assert_eq!(batch.targets[at], want);
                num_targets += usize::from(is_target);
            }
        }
        assert_eq!(batch.num_target_tokens, num_targets);
        let used = *batch.cu_seqlens.last().unwrap() as usize;
        assert!(batch.tokens[used..].iter().all(|t| *t == 0));
        assert!(batch.targets[used..].iter().all(|t| *t == IGNORE));
        assert!(batch.positions[used..].iter().all(|t| *t == 0));
    }
}

#[test]
fn rows_that_fit_no_unit_are_refused() {
    let set = random_set(1, 50);
    let error = Order::new(&set, 8, 1, 0).err().unwrap().message(words);
    assert!(error.ends_with("load the data with the same max_seq_len"), "{error}");
    let error = Order::new(&set, UNIT, 0, 0).err().unwrap().message(words);
    assert_eq!(error, "a step takes no units; let a step take at least the tokens of a unit");
}
