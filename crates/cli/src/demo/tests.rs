use super::corpus::corpus;
use super::task::{Item, NUM_HELD_OUT, NUM_TRAIN, task};
use super::words::{HELD_OUT_PEOPLE, PEOPLE};
use serde_json::Value;
use std::collections::HashSet;

fn record(item: &Item) -> Value {
    serde_json::from_str(&item.completion).unwrap()
}

/// The words of one field over all items; absent people are left out.
fn words<'a>(items: &'a [Item], keys: &'a [&str]) -> HashSet<String> {
    let fields = items.iter().flat_map(|item| {
        let record = record(item);
        keys.iter().filter_map(move |key| record[key].as_str().map(str::to_owned))
    });
    fields.collect()
}

#[test]
fn the_task_has_its_sizes_and_repeats_nothing() {
    let (train, held_out) = task(1);
    assert_eq!((train.len(), held_out.len()), (NUM_TRAIN, NUM_HELD_OUT));
    let prompts = train.iter().chain(&held_out).map(|item| &item.prompt).collect::<HashSet<_>>();
    assert_eq!(prompts.len(), NUM_TRAIN + NUM_HELD_OUT);
}

#[test]
fn held_out_items_share_no_person_and_no_triple_with_training() {
    let (train, held_out) = task(1);
    let people = ["buyer", "for"];
    assert!(words(&train, &people).iter().all(|name| PEOPLE.contains(&name.as_str())));
    assert!(words(&held_out, &people).iter().all(|name| HELD_OUT_PEOPLE.contains(&name.as_str())));
    assert!(words(&train, &people).is_disjoint(&words(&held_out, &people)));
    let triple = |item: &Item| {
        let record = record(item);
        (record["count"].as_u64(), record["color"].to_string(), record["item"].to_string())
    };
    let seen = train.iter().map(triple).collect::<HashSet<_>>();
    assert!(held_out.iter().map(triple).all(|triple| !seen.contains(&triple)));
}

#[test]
fn every_record_can_be_read_off_its_sentence() {
    let (train, held_out) = task(2);
    for item in train.iter().chain(&held_out) {
        let record = record(item);
        let keys = record.as_object().unwrap().keys().collect::<Vec<_>>();
        assert_eq!(keys, ["buyer", "item", "color", "count", "place", "for"]);
        for value in record.as_object().unwrap().values().filter_map(Value::as_str) {
            assert!(item.prompt.contains(value), "{value} is not in {:?}", item.prompt);
        }
        assert!(!item.prompt.contains(['{', '}']), "a mark was left: {:?}", item.prompt);
    }
}

#[test]
fn a_seed_gives_the_same_rows_again_and_another_seed_others() {
    assert_eq!(task(3), task(3));
    assert_ne!(task(3), task(4));
    let documents = |seed| corpus(seed, 50).collect::<Vec<_>>();
    assert_eq!(documents(3), documents(3));
    assert_ne!(documents(3), documents(4));
    // A document does not depend on how many are asked for.
    assert_eq!(corpus(3, 10).collect::<Vec<_>>(), documents(3)[..10]);
}

#[test]
fn the_corpus_varies_and_gives_nothing_of_the_task_away() {
    let documents = corpus(1, 2000).collect::<Vec<_>>();
    let num_distinct = documents.iter().collect::<HashSet<_>>().len();
    assert!(num_distinct > 1980, "short records may come twice, not more: {num_distinct}");
    for text in &documents {
        for secret in ["JSON", "buyer", "\"item\"", "\"count\"", "\"place\"", "\"for\""] {
            assert!(!text.contains(secret), "{secret} is in {text:?}");
        }
        let is_record = text.starts_with('{');
        assert_eq!(is_record, serde_json::from_str::<Value>(text).is_ok(), "{text:?}");
        assert_eq!(is_record, text.contains('{'), "a mark was left: {text:?}");
    }
}
