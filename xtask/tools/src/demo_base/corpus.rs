//! The text from which the demo's base model learnt to read: stories with questions, lists and
//! records. It holds neither the task's instruction nor its records.

use super::scene::{Scene, pick};
use super::stories::{EVENTS, LABELS, OPENINGS, QUESTIONS, RECORD_KEYS, SEQUELS};
use super::words::{COLOURS, COUNTS, DAYS, HELD_OUT_PEOPLE, ITEMS, PEOPLE, PLACES};
use hone_data::random::Stream;

const DOMAIN: u16 = 0x0c0a;

/// `num_documents` documents; the i-th depends on `seed` and i alone.
pub fn corpus(seed: u64, num_documents: u64) -> impl Iterator<Item = String> {
    (0..num_documents).map(move |index| document(&mut Stream::new(seed, index, DOMAIN)))
}

fn document(random: &mut Stream) -> String {
    match random.below(10) {
        0..5 => list(random),
        5 => record(random),
        _ => story(random),
    }
}

/// Some scenes in a row, told and asked about. Two scenes make the reader keep apart who did what.
fn story(random: &mut Stream) -> String {
    let scenes =
        (0..1 + random.below(3) / 2).map(|_| Scene::draw(random, person)).collect::<Vec<_>>();
    let mut sentences = vec!["Note:".to_owned()];
    if random.below(2) == 0 {
        sentences.push(scenes[0].tell(pick(random, OPENINGS)));
    }
    for scene in &scenes {
        sentences.push(scene.tell(pick(random, EVENTS)));
        for _ in 0..random.below(2) {
            sentences.push(scene.tell(pick(random, SEQUELS)));
        }
    }
    for _ in 0..2 + random.below(5) {
        let scene = &scenes[random.below(scenes.len())];
        sentences.push(scene.tell(pick(random, QUESTIONS)));
    }
    sentences.join(" ")
}

/// Words, or things with their counts, said twice: this is where copying is learnt.
fn list(random: &mut Stream) -> String {
    let length = 1 + random.below(8);
    match random.below(4) {
        0..3 => {
            let words = (0..length).map(|_| word(random)).collect::<Vec<_>>().join(" ");
            format!("List: {words}. Once more: {words}.")
        }
        _ => {
            let scenes = (0..length).map(|_| Scene::draw(random, person)).collect::<Vec<_>>();
            let tell = |template| {
                scenes.iter().map(|scene| scene.tell(template)).collect::<Vec<_>>().join(", ")
            };
            format!("List: {}. In short: {}.", tell("{n} {c} {i}"), tell("{d} {i}"))
        }
    }
}

/// A word of any list.
fn word(random: &mut Stream) -> String {
    let lists = [ITEMS, COLOURS, PLACES, COUNTS, DAYS, LABELS];
    match lists.get(random.below(lists.len() + 4)) {
        Some(words) => pick(random, words).to_owned(),
        None => person(random),
    }
}

/// A flat YAML mapping with some keys in any order.
fn record(random: &mut Stream) -> String {
    let mut keys = RECORD_KEYS.to_vec();
    random.shuffle(&mut keys);
    keys.truncate(2 + random.below(5));
    let fields = keys.into_iter().map(|key| format!("{key}: {}", value(key, random)));
    format!("Record: {{ {} }}", fields.collect::<Vec<_>>().join(", "))
}

fn value(key: &str, random: &mut Stream) -> String {
    let word = match key {
        "amount" | "size" => return (2 + random.below(COUNTS.len())).to_string(),
        "name" | "friend" | "owner" | "pet" => person(random),
        "town" => pick(random, PLACES).to_owned(),
        "day" => pick(random, DAYS).to_owned(),
        "colour" => pick(random, COLOURS).to_owned(),
        _ => pick(random, ITEMS).to_owned(),
    };
    if random.below(6) == 0 { "null".to_owned() } else { word }
}

/// A name from the lists, or every sixth time one that nobody has, so that names are copied from
/// the text rather than known by heart.
fn person(random: &mut Stream) -> String {
    if random.below(6) == 0 {
        return made_up_name(random);
    }
    let index = random.below(PEOPLE.len() + HELD_OUT_PEOPLE.len());
    PEOPLE.iter().chain(HELD_OUT_PEOPLE).nth(index).map_or_else(String::new, |n| (*n).to_owned())
}

fn made_up_name(random: &mut Stream) -> String {
    const STARTS: &[&str] =
        &["B", "D", "F", "G", "H", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Br", "Ch", "St"];
    const VOWELS: &[&str] = &["a", "e", "i", "o", "u"];
    const MIDDLES: &[&str] = &["l", "n", "r", "s", "t", "m", "d", "k", "v", "ll", "nd", "rt"];
    const ENDS: &[&str] = &["a", "o", "e", "us", "in", "on", "y", "el"];
    let mut name = pick(random, STARTS).to_owned() + pick(random, VOWELS) + pick(random, MIDDLES);
    if random.below(2) == 0 {
        name += pick(random, VOWELS);
        name += pick(random, MIDDLES);
    }
    name + pick(random, ENDS)
}
