use super::model::tuning_run_file;
use super::task::{Item, NUM_HELD_OUT, NUM_TRAIN, task};
use super::words::{HELD_OUT_PEOPLE, PEOPLE};
use hone_train::run_file::RunFile;
use std::collections::HashSet;
use std::path::Path;

/// Keys and values of an item's record, in order.
fn record(item: &Item) -> Vec<(&str, &str)> {
    let fields = item.completion.strip_prefix(" { ").unwrap().strip_suffix(" }").unwrap();
    fields.split(", ").map(|field| field.split_once(": ").unwrap()).collect()
}

/// The values of the given keys over all items.
fn words<'a>(items: &'a [Item], keys: &[&str]) -> HashSet<&'a str> {
    let fields = items.iter().flat_map(record);
    fields.filter(|(key, _)| keys.contains(key)).map(|(_, value)| value).collect()
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
    let people = |items| {
        let mut names = words(items, &["buyer", "for"]);
        names.remove("null");
        names
    };
    let (train_people, held_out_people) = (people(&train), people(&held_out));
    assert!(train_people.iter().all(|name| PEOPLE.contains(name)));
    assert!(held_out_people.iter().all(|name| HELD_OUT_PEOPLE.contains(name)));
    assert!(train_people.is_disjoint(&held_out_people));
    let triple = |item: &Item| {
        record(item)[1..4].iter().map(|(_, value)| (*value).to_owned()).collect::<Vec<_>>()
    };
    let seen = train.iter().map(triple).collect::<HashSet<_>>();
    assert!(held_out.iter().map(triple).all(|triple| !seen.contains(&triple)));
}

#[test]
fn every_record_can_be_read_off_its_sentence() {
    let (train, held_out) = task(2);
    for item in train.iter().chain(&held_out) {
        let (keys, values): (Vec<_>, Vec<_>) = record(item).into_iter().unzip();
        assert_eq!(keys, ["buyer", "item", "color", "count", "place", "for"]);
        for (key, value) in keys.into_iter().zip(values) {
            match key {
                "count" => assert!((2..=12).contains(&value.parse::<usize>().unwrap())),
                "for" if value == "null" => {}
                _ => assert!(item.prompt.contains(value), "{value} is not in {:?}", item.prompt),
            }
        }
        assert!(!item.prompt.contains(['{', '}']), "a mark was left: {:?}", item.prompt);
    }
}

#[test]
fn a_seed_gives_the_same_rows_again_and_another_seed_others() {
    assert_eq!(task(3), task(3));
    assert_ne!(task(3), task(4));
}

#[test]
fn the_run_file_can_be_read_whatever_the_directory_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    let odd = Path::new("a \"quoted\" \\ name");
    let [base, train, test, run] = ["base", "train", "test", "run"].map(|name| odd.join(name));
    std::fs::write(&file, tuning_run_file(&base, &train, &test, &run)).unwrap();
    let read = RunFile::load(&file, &[]).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((Path::new(&read.model.path), &read.output.dir), (base.as_path(), &run));
    assert_eq!(read.data.train.0[0].path, train.to_str().unwrap());
}
