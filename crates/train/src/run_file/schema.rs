//! What a key of the run file is. The list of all of them is in `keys.rs`, and relations between
//! them are in `relations.rs`.

/// A table of the run file, or the keys that one value of its `kind` adds.
#[derive(PartialEq)]
pub(super) struct Section {
    pub table: &'static str,
    /// What it is for.
    pub about: &'static str,
    pub keys: &'static [Key],
    /// Sections with the further keys of each kind.
    pub kinds: &'static [&'static Section],
}

/// One key of the run file.
#[derive(PartialEq)]
pub(super) struct Key {
    /// Table and name, as in `train.learning_rate`.
    pub path: &'static str,
    /// The value of the table's `kind` that has this key; `None`: all.
    pub only_if: Option<&'static str>,
    pub check: Check,
    pub default: Default,
    pub doc: &'static str,
    /// A valid value other than the default, as TOML.
    pub example: &'static str,
    /// Whether it may change between a run and its `--resume`: it does not change what the run has
    /// computed so far.
    pub changeable: bool,
}

/// Type and range of a value.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Check {
    Bool,
    /// From, to; both included.
    Int(i64, i64),
    Float(Interval),
    Text,
    /// One text or a list of them.
    TextList {
        may_be_empty: bool,
    },
    /// One path, a list of them, or an array of tables with the keys of this section.
    Paths(&'static Section),
    Choice(&'static [&'static str]),
    /// A number of bytes, or a text such as "16GiB".
    Bytes,
}

/// Range of a real number; never infinite or NaN.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Interval {
    Positive,
    /// Above 0, at most 1000.
    Weight,
    NonNegative,
    /// From 0 to 1, both included.
    UnitClosed,
    /// From 0, below 1.
    UnitOpen,
    /// Above 0, below 1.
    UnitInside,
}

/// What holds when the key is absent.
#[derive(PartialEq)]
pub(super) enum Default {
    Required,
    /// A value, as TOML.
    Value(&'static str),
    /// No fixed value; the text says what happens.
    Chosen(&'static str),
}

impl Key {
    /// Table and name.
    pub fn parts(&self) -> (&'static str, &'static str) {
        self.path.rsplit_once('.').expect("every key of the schema is `table.name`")
    }

    /// What it means, in one line.
    pub fn meaning(&self) -> &'static str {
        self.doc.trim_matches([' ', ';'])
    }
}

impl Section {
    /// What it is for, in one line.
    pub fn meaning(&self) -> &'static str {
        self.about.trim()
    }

    /// Whether the table may be left out as a whole, which then means something else than its
    /// defaults.
    pub fn is_optional(&self) -> bool {
        self.is_tagged() && matches!(self.keys[0].default, Default::Required)
    }

    /// Whether its `kind` decides which keys it has.
    pub fn is_tagged(&self) -> bool {
        self.keys[0].path.ends_with(".kind")
    }

    /// Its own keys, then those of each kind.
    pub fn keys(&self) -> impl Iterator<Item = &'static Key> {
        self.keys.iter().chain(self.kinds.iter().flat_map(|kind| kind.keys))
    }
}

impl Interval {
    pub fn contains(self, x: f64) -> bool {
        x.is_finite()
            && match self {
                Interval::Positive => x > 0.0,
                Interval::Weight => x > 0.0 && x <= 1000.0,
                Interval::NonNegative => x >= 0.0,
                Interval::UnitClosed => (0.0..=1.0).contains(&x),
                Interval::UnitOpen => (0.0..1.0).contains(&x),
                Interval::UnitInside => x > 0.0 && x < 1.0,
            }
    }

    fn describe(self) -> &'static str {
        match self {
            Interval::Positive => "a number above 0",
            Interval::Weight => "a number above 0, at most 1000",
            Interval::NonNegative => "a number, 0 or above",
            Interval::UnitClosed => "a number from 0 to 1",
            Interval::UnitOpen => "a number from 0 up to, but not including, 1",
            Interval::UnitInside => "a number above 0 and below 1",
        }
    }
}

impl Check {
    /// What is expected, for messages and the reference.
    pub fn describe(self) -> String {
        match self {
            Check::Bool => "true or false".into(),
            Check::Int(min, i64::MAX) => format!("a whole number, {min} or above"),
            Check::Int(min, max) => format!("a whole number from {min} to {max}"),
            Check::Float(interval) => interval.describe().into(),
            Check::Text => "a text that is not empty".into(),
            Check::TextList { may_be_empty: true } => "a text or a list of texts".into(),
            Check::TextList { may_be_empty: false } => {
                "a text or a list of at least one text".into()
            }
            Check::Paths(of) => {
                format!("a text, a list of at least one text, or tables [[{}]]", of.table)
            }
            Check::Choice([only]) => format!("\"{only}\""),
            Check::Choice(options) => format!("one of \"{}\"", options.join("\", \"")),
            Check::Bytes => "a size such as \"16GiB\" or \"800MB\", or a number of bytes".into(),
        }
    }
}
