//! Word lists and sentence templates of the demo.
//!
//! Marks in templates: `{a}` who acts, `{b}` for whom, `{x}` a bystander, `{n}` the count as a
//! word, `{N}` the same at a sentence's start, `{d}` the count in digits, `{c}` colour, `{i}` item,
//! `{p}` place, `{y}` day, `{v}` verb in the past, `{w}` verb in its base form.

/// People in the training rows. Stories use both these and `HELD_OUT_PEOPLE`.
pub const PEOPLE: &[&str] = &[
    "Ada", "Ben", "Cara", "Dan", "Ella", "Finn", "Gina", "Hugo", "Ida", "Jack", "Kim", "Leo",
    "Mia", "Ned", "Olga", "Paul", "Rita", "Sam", "Tom", "Una", "Vera", "Will", "Zoe", "Anna",
    "Carl", "Dora", "Emil", "Greta", "Hans", "Jana", "Karl", "Pia",
];

/// People who occur only in held-out rows.
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
