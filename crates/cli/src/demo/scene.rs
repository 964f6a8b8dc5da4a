//! One randomly drawn event, and templates filled from it.

use super::words::{COLOURS, COUNTS, DAYS, ITEMS, PLACES, VERBS};
use hone_data::random::Stream;

/// Who did what with which things, where and when.
pub struct Scene {
    /// Who acts.
    pub actor: String,
    /// For whom.
    pub recipient: String,
    /// Someone else.
    pub bystander: String,
    /// Index into `ITEMS`.
    pub item: usize,
    /// Index into `COLOURS`.
    pub colour: usize,
    /// Index into `COUNTS`.
    pub count: usize,
    /// One of `PLACES`.
    pub place: &'static str,
    /// One of `DAYS`.
    pub day: &'static str,
    /// Index into `VERBS`.
    pub verb: usize,
}

impl Scene {
    /// A scene with three people who differ; `person` draws one.
    pub fn draw(random: &mut Stream, mut person: impl FnMut(&mut Stream) -> String) -> Self {
        let mut people = Vec::<String>::new();
        while people.len() < 3 {
            let name = person(random);
            if !people.contains(&name) {
                people.push(name);
            }
        }
        let [actor, recipient, bystander] = people.try_into().expect("three people");
        Self {
            actor,
            recipient,
            bystander,
            item: random.below(ITEMS.len()),
            colour: random.below(COLOURS.len()),
            count: random.below(COUNTS.len()),
            place: pick(random, PLACES),
            day: pick(random, DAYS),
            verb: random.below(VERBS.len()),
        }
    }

    /// The number of things.
    pub fn number(&self) -> usize {
        self.count + 2
    }

    /// `template` with every mark replaced; `words` lists the marks.
    pub fn tell(&self, template: &str) -> String {
        let count = COUNTS[self.count];
        let capital = count[..1].to_uppercase() + &count[1..];
        let marks = [
            ("{a}", self.actor.as_str()),
            ("{b}", &self.recipient),
            ("{x}", &self.bystander),
            ("{n}", count),
            ("{N}", &capital),
            ("{d}", &self.number().to_string()),
            ("{c}", COLOURS[self.colour]),
            ("{i}", ITEMS[self.item]),
            ("{p}", self.place),
            ("{y}", self.day),
            ("{v}", VERBS[self.verb].0),
            ("{w}", VERBS[self.verb].1),
        ];
        marks.iter().fold(template.to_owned(), |text, (mark, word)| text.replace(mark, word))
    }
}

/// One of `words`.
pub fn pick(random: &mut Stream, words: &[&'static str]) -> &'static str {
    words[random.below(words.len())]
}
