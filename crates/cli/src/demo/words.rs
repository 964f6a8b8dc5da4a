//! Word lists and sentence templates of the demo: everything it can say is here.
//!
//! Marks in templates: `{a}` who acts, `{b}` for whom, `{x}` a bystander, `{n}` the count as a
//! word, `{N}` the same at a sentence's start, `{d}` the count in digits, `{c}` colour, `{i}` item,
//! `{p}` place, `{y}` day, `{v}` verb in the past, `{w}` verb in its base form.

/// People of the training rows. Stories tell of these and of `HELD_OUT_PEOPLE` alike.
pub const PEOPLE: &[&str] = &[
    "Ada", "Ben", "Cara", "Dan", "Ella", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kim", "Leo",
    "Mia", "Ned", "Olga", "Paul", "Rita", "Sam", "Tom", "Una", "Vera", "Will", "Zoe", "Anna",
    "Carl", "Dora", "Emil", "Greta", "Hans", "Jana", "Karl", "Pia",
];

/// People who are in held-out rows only.
pub const HELD_OUT_PEOPLE: &[&str] = &[
    "Alma", "Bruno", "Clara", "Doris", "Erik", "Frida", "Ivan", "Julia", "Lars", "Maria", "Nils",
    "Rosa",
];

/// Things that are bought and given, in the plural.
pub const ITEMS: &[&str] = &[
    "apples", "pears", "plums", "lemons", "eggs", "cups", "plates", "books", "pens", "maps",
    "ropes", "lamps", "hats", "scarves", "shoes", "coats", "toys", "kites", "drums", "bells",
    "candles", "baskets", "buckets", "brushes", "chairs", "boxes", "roses", "tulips", "shells",
    "stones", "keys", "ribbons",
];

/// Colours of things.
pub const COLOURS: &[&str] = &[
    "red", "blue", "green", "yellow", "white", "black", "brown", "grey", "pink", "purple", "gold",
    "silver",
];

/// Where things happen; each reads well after "at the".
pub const PLACES: &[&str] = &[
    "market", "harbour", "bakery", "school", "station", "farm", "mill", "bridge", "library",
    "castle", "garden", "museum", "fair", "shop", "inn", "park",
];

/// Days.
pub const DAYS: &[&str] =
    &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// Counts from two on, as words; the index plus two is the number.
pub const COUNTS: &[&str] =
    &["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];

/// Verbs of the stories: past and base form.
pub const VERBS: &[(&str, &str)] = &[
    ("bought", "buy"),
    ("found", "find"),
    ("made", "make"),
    ("got", "get"),
    ("chose", "choose"),
    ("brought", "bring"),
];

/// First sentences of a story.
pub const OPENINGS: &[&str] = &[
    "It was {y}.",
    "On {y} the sun was out.",
    "It rained all day.",
    "{a} and {b} are friends.",
    "{a} lives near the {p}.",
    "{x} told this story about {a}.",
    "\"Good morning, {a}!\" said {b}.",
    "Every {y} {a} goes to the {p}.",
];

/// What happens in a story.
pub const EVENTS: &[&str] = &[
    "{a} {v} {n} {c} {i} at the {p} for {b}.",
    "At the {p}, {a} {v} {n} {c} {i} for {b}.",
    "{a} went to the {p} and {v} {n} {c} {i} for {b}.",
    "For {b}, {a} {v} {n} {c} {i} at the {p}.",
    "{a} {v} {b} {n} {c} {i} at the {p}.",
    "{b} wanted {c} {i}, so {a} {v} {n} of them at the {p}.",
    "{N} {c} {i} from the {p}: {a} {v} them for {b}.",
    "On {y}, {a} {v} {n} {c} {i} for {b}. That was at the {p}.",
];

/// What is said afterwards of what happened.
pub const SEQUELS: &[&str] = &[
    "{b} thanked {a} for the {c} {i}.",
    "{a} showed {b} the {n} {i}.",
    "There were {n} of them, {d} in all.",
    "\"Here are {n} {i},\" said {a}. \"{d} {i}!\" said {b}.",
    "{x} saw the {c} {i} at the {p}.",
    "\"{a}!\" called {b}. \"Thank you for the {i}!\"",
    "The {i} are {c}. The count is {d}.",
    "{a} left the {p} with {d} {i}.",
    "{b} likes {c} things, and {a} knows that.",
];

/// Questions about what happened, with answers.
pub const QUESTIONS: &[&str] = &[
    "Who {v} the {c} {i}? {a}.",
    "Who {v} the {i}? {a}.",
    "Who got the {i} from {a}? {b}.",
    "For whom did {a} {w} {i}? For {b}.",
    "How many {i} did {a} {w}? {d}.",
    "How many {c} {i} were there? {d}.",
    "Which colour are the {i}? {c}.",
    "Where did {a} {w} the {i}? At the {p}.",
    "What did {a} {w} for {b}? {i}.",
    "What did {a} {w} at the {p}? {i}.",
];

/// Words that stand in lists only, so that they are known before the task gives them a meaning.
pub const LABELS: &[&str] = &["YAML", "buyer", "item", "color", "count", "place"];

/// Keys of the records among the documents; the task's own are not among them.
pub const RECORD_KEYS: &[&str] =
    &["name", "friend", "town", "day", "thing", "colour", "amount", "owner", "size", "pet"];

/// Sentences of the task which say for whom.
pub const ORDERS: &[&str] = &[
    "{a} bought {n} {c} {i} at the {p} for {b}.",
    "At the {p}, {a} bought {n} {c} {i} for {b}.",
    "{a} went to the {p} and got {b} {n} {c} {i}.",
    "For {b}, {a} picked up {n} {c} {i} at the {p}.",
    "{b} wanted {c} {i}, so {a} bought {n} of them at the {p}.",
    "{N} {c} {i} from the {p}, please: {a} pays, they are for {b}.",
    "On {y}, {a} stopped at the {p} to buy {n} {i} in {c} for {b}.",
    "{b} will be glad: {a} found {n} {c} {i} at the {p}.",
];

/// Sentences of the task which do not.
pub const ORDERS_FOR_NOBODY: &[&str] = &[
    "{a} bought {n} {c} {i} at the {p}.",
    "At the {p}, {a} picked up {n} {c} {i}.",
    "On {y}, {a} went to the {p} and got {n} {i} in {c}.",
];

/// What may stand before an order or after it and is not part of the record.
pub const ASIDES: &[&str] =
    &["It was raining.", "The shop was full.", "That was on {y}.", "It took an hour."];
