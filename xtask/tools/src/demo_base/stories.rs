//! Sentences and words that only the base model's corpus has. Marks in templates are those of
//! `words`.

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
