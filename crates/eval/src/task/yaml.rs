//! YAML as PyYAML reads it: scalars by the rules of YAML 1.1, anchors, merge keys, and the tag
//! `!function`, which names a Python function. Every value knows its line.
//!
//! Nesting, size and what anchors repeat have limits; keys must be strings and come once.

use super::error::TaskError;
use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Deepest nesting.
const MAX_DEPTH: usize = 64;
/// Most values of a file, and bytes of their texts, those that aliases repeat included.
const MAX_VALUES: usize = 1 << 17;
const MAX_BYTES: usize = 16 << 20;

/// A value, and the line where it begins, from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Where it is.
    pub line: usize,
}

/// What a value is.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Null, boolean, number or string.
    Scalar(Value),
    /// A list.
    List(Vec<Node>),
    /// Keys and values, in their order.
    Map(Vec<(String, Node)>),
    /// `!function module.name`.
    Function(String),
}

impl Node {
    /// Writes it without places, so that equal values have equal texts.
    pub fn write(&self, out: &mut String) {
        match &self.kind {
            Kind::Scalar(value) => *out += &value.to_string(),
            Kind::Function(name) => out.extend(["!function ", name]),
            Kind::List(items) => {
                out.push('[');
                for item in items {
                    item.write(out);
                    out.push(',');
                }
                out.push(']');
            }
            Kind::Map(entries) => {
                out.push('{');
                for (key, value) in entries {
                    out.extend([key, ":"]);
                    value.write(out);
                    out.push(',');
                }
                out.push('}');
            }
        }
    }

    /// What it is called in messages.
    pub fn what(&self) -> &'static str {
        match &self.kind {
            Kind::Scalar(Value::Null) => "nothing",
            Kind::Scalar(Value::Bool(_)) => "true or false",
            Kind::Scalar(Value::Number(_)) => "a number",
            Kind::Scalar(_) => "a string",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a mapping",
            Kind::Function(_) => "a Python function",
        }
    }

    /// As JSON; a function's name is a string there.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(Self::to_json).collect(),
            Kind::Map(entries) => {
                let pairs = entries.iter().map(|(key, node)| (key.clone(), node.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
            Kind::Function(name) => Value::String(name.clone()),
        }
    }

    /// The first function in it, if there is one.
    pub fn function(&self) -> Option<(&str, usize)> {
        match &self.kind {
            Kind::Scalar(_) => None,
            Kind::List(items) => items.iter().find_map(Self::function),
            Kind::Map(entries) => entries.iter().find_map(|(_, node)| node.function()),
            Kind::Function(name) => Some((name, self.line)),
        }
    }

    /// Of it and all in it.
    fn size(&self) -> Size {
        let own = |num_bytes: usize| Size { num_values: 1, num_bytes };
        match &self.kind {
            Kind::Scalar(Value::String(text)) | Kind::Function(text) => own(text.len()),
            Kind::Scalar(_) => own(0),
            Kind::List(items) => items.iter().fold(own(0), |sum, item| sum.with(item.size())),
            Kind::Map(entries) => entries
                .iter()
                .fold(own(0), |sum, (key, node)| sum.with(own(key.len())).with(node.size())),
        }
    }
}

/// How much a value takes.
#[derive(Clone, Copy, Default)]
struct Size {
    num_values: usize,
    /// Of texts.
    num_bytes: usize,
}

impl Size {
    fn with(self, other: Self) -> Self {
        Self {
            num_values: self.num_values.saturating_add(other.num_values),
            num_bytes: self.num_bytes.saturating_add(other.num_bytes),
        }
    }
}

/// A file's only document.
///
/// # Errors
/// If it is not such YAML: names `file` and the line.
pub fn parse(file: &Path, text: &str) -> Result<Node, TaskError> {
    let mut reader = Reader { file, anchors: BTreeMap::new(), size: Size::default() };
    let mut open: Vec<Open> = Vec::new();
    let mut root = None;
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            let what = format!("not YAML: {}", error.info());
            TaskError::line(file, error.marker().line(), what)
        })?;
        let line = span.start.line();
        let done = match event {
            Event::DocumentStart(_) if root.is_some() => {
                return Err(TaskError::line(
                    file,
                    line,
                    "a second document; leave one in the file",
                ));
            }
            Event::SequenceStart(anchor, tag) => {
                reader.open(&mut open, tag, "seq", (anchor, line), Part::List(Vec::new()))?;
                None
            }
            Event::MappingStart(anchor, tag) => {
                let part = Part::Map(OpenMap::default());
                reader.open(&mut open, tag, "map", (anchor, line), part)?;
                None
            }
            Event::SequenceEnd | Event::MappingEnd => {
                open.pop().map(|done| reader.close(done)).transpose()?
            }
            Event::Scalar(text, style, anchor, tag) => {
                let kind = reader.scalar(&text, style, tag, line)?;
                Some(reader.made(Node { kind, line }, anchor)?)
            }
            Event::Alias(anchor) => Some(reader.repeated(anchor, line)?),
            _ => None,
        };
        match (done, open.last_mut()) {
            (None, _) => {}
            (Some(node), None) => root = Some(node),
            (Some(node), Some(parent)) => reader.put(parent, node)?,
        }
    }
    root.ok_or_else(|| TaskError::file(file, "is empty; it must hold a task"))
}

/// A list or mapping that has not ended.
struct Open {
    line: usize,
    anchor: usize,
    part: Part,
}

enum Part {
    List(Vec<Node>),
    Map(OpenMap),
}

#[derive(Default)]
struct OpenMap {
    own: Entries,
    /// What `<<` adds.
    merged: Entries,
    /// The key whose value comes next, and its line.
    key: Option<(String, usize)>,
}

/// Entries in their order, of each key the first. The set finds it without a look at all others,
/// of which a file may have tens of thousands.
#[derive(Default)]
struct Entries {
    all: Vec<(String, Node)>,
    keys: HashSet<String>,
}

impl Entries {
    fn add(&mut self, key: String, node: Node) {
        if self.keys.insert(key.clone()) {
            self.all.push((key, node));
        }
    }
}

struct Reader<'a> {
    file: &'a Path,
    /// Values that have an anchor, with their sizes.
    anchors: BTreeMap<usize, (Node, Size)>,
    /// Of all that was read.
    size: Size,
}

impl Reader<'_> {
    fn refuse<T>(&self, line: usize, what: impl std::fmt::Display) -> Result<T, TaskError> {
        Err(TaskError::line(self.file, line, what))
    }

    fn count(&mut self, size: Size, line: usize) -> Result<(), TaskError> {
        self.size = self.size.with(size);
        if self.size.num_values > MAX_VALUES {
            return self.refuse(line, format!("more than {MAX_VALUES} values"));
        }
        match self.size.num_bytes > MAX_BYTES {
            true => self.refuse(line, format!("more than {} MiB of text", MAX_BYTES >> 20)),
            false => Ok(()),
        }
    }

    fn open(
        &mut self,
        open: &mut Vec<Open>,
        tag: Option<Cow<'_, Tag>>,
        allowed: &str,
        (anchor, line): (usize, usize),
        part: Part,
    ) -> Result<(), TaskError> {
        if let Some(tag) = tag.filter(|tag| !is_core(tag, allowed)) {
            return self.refuse(line, unknown_tag(&tag));
        }
        if open.len() >= MAX_DEPTH {
            return self.refuse(line, format!("nested more than {MAX_DEPTH} deep"));
        }
        open.push(Open { line, anchor, part });
        Ok(())
    }

    fn close(&mut self, Open { line, anchor, part }: Open) -> Result<Node, TaskError> {
        let kind = match part {
            Part::List(items) => Kind::List(items),
            Part::Map(OpenMap { mut own, merged, .. }) => {
                merged.all.into_iter().for_each(|(key, node)| own.add(key, node));
                Kind::Map(own.all)
            }
        };
        self.made(Node { kind, line }, anchor)
    }

    /// A value that is whole; its parts were counted.
    fn made(&mut self, node: Node, anchor: usize) -> Result<Node, TaskError> {
        let num_bytes = match &node.kind {
            Kind::Scalar(Value::String(text)) | Kind::Function(text) => text.len(),
            _ => 0,
        };
        self.count(Size { num_values: 1, num_bytes }, node.line)?;
        if anchor > 0 {
            let size = node.size();
            self.count(size, node.line)?;
            self.anchors.insert(anchor, (node.clone(), size));
        }
        Ok(node)
    }

    fn repeated(&mut self, anchor: usize, line: usize) -> Result<Node, TaskError> {
        let Some(&(_, size)) = self.anchors.get(&anchor) else {
            return self.refuse(line, "an alias of a value that has not ended");
        };
        // Before it is copied.
        self.count(size, line)?;
        Ok(self.anchors[&anchor].0.clone())
    }

    fn put(&self, parent: &mut Open, node: Node) -> Result<(), TaskError> {
        match &mut parent.part {
            Part::List(items) => items.push(node),
            Part::Map(OpenMap { own, merged, key }) => match key.take() {
                Some((name, line)) if name == "<<" => self.merge(merged, node, line)?,
                Some((name, _)) => own.add(name, node),
                None => {
                    let line = node.line;
                    let name = match node.kind {
                        Kind::Scalar(Value::String(name)) => name,
                        Kind::Scalar(value @ (Value::Bool(_) | Value::Number(_))) => {
                            value.to_string()
                        }
                        _ => return self.refuse(line, "a key that is no string"),
                    };
                    if own.keys.contains(&name) {
                        return self.refuse(line, format!("a second key `{name}`; leave one"));
                    }
                    *key = Some((name, line));
                }
            },
        }
        Ok(())
    }

    fn merge(&self, merged: &mut Entries, node: Node, line: usize) -> Result<(), TaskError> {
        match node.kind {
            Kind::Map(entries) => {
                entries.into_iter().for_each(|(key, node)| merged.add(key, node));
                Ok(())
            }
            Kind::List(items) => items.into_iter().try_for_each(|item| match item.kind {
                Kind::Map(_) => self.merge(merged, item, line),
                _ => self.refuse(line, "`<<` merges mappings only"),
            }),
            _ => self.refuse(line, "`<<` merges mappings only"),
        }
    }

    fn scalar(
        &self,
        text: &str,
        style: ScalarStyle,
        tag: Option<Cow<'_, Tag>>,
        line: usize,
    ) -> Result<Kind, TaskError> {
        let string = || Kind::Scalar(Value::String(text.to_owned()));
        let Some(tag) = tag else {
            return Ok(match style {
                ScalarStyle::Plain => Kind::Scalar(resolved(text)),
                _ => string(),
            });
        };
        if tag.handle == "!" && tag.suffix == "function" {
            return Ok(Kind::Function(text.to_owned()));
        }
        let value = resolved(text);
        let fits = match tag.suffix.as_str() {
            _ if !is_core(&tag, &tag.suffix) => return self.refuse(line, unknown_tag(&tag)),
            "str" => return Ok(string()),
            "null" => value.is_null(),
            "bool" => value.is_boolean(),
            "int" => value.is_i64(),
            "float" => value.is_number(),
            _ => return self.refuse(line, unknown_tag(&tag)),
        };
        match fits {
            true => Ok(Kind::Scalar(value)),
            false => {
                self.refuse(line, format!("`{text}` is not what its tag !!{} says", tag.suffix))
            }
        }
    }
}

fn is_core(tag: &Tag, suffix: &str) -> bool {
    tag.is_yaml_core_schema() && tag.suffix == suffix
}

fn unknown_tag(tag: &Tag) -> String {
    format!("the tag `{tag}` is not known; tasks have `!function` and YAML's own")
}

/// A plain scalar by the rules of YAML 1.1, as PyYAML has them.
fn resolved(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let number = integer(text).map(Number::from).or_else(|| float(text));
    number.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// Binary, octal (`017`), decimal, hexadecimal or base 60 (`1:30`), with `_` between digits.
fn integer(text: &str) -> Option<i64> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let plain = digits.replace('_', "");
    let radix = |digits: &str, radix: u32| {
        let is_digit = |c: char| c.is_digit(radix);
        let ok = !digits.is_empty() && digits.chars().all(is_digit);
        ok.then(|| i64::from_str_radix(digits, radix).ok()).flatten()
    };
    let value = if let Some(binary) = plain.strip_prefix("0b") {
        radix(binary, 2)
    } else if let Some(hexadecimal) = plain.strip_prefix("0x") {
        radix(hexadecimal, 16)
    } else if plain.contains(':') {
        sexagesimal(&plain)
    } else if plain.len() > 1 && plain.starts_with('0') {
        radix(&plain[1..], 8)
    } else {
        radix(&plain, 10)
    };
    value.map(|value| sign * value)
}

fn sexagesimal(digits: &str) -> Option<i64> {
    let mut parts = digits.split(':');
    let first = parts.next().filter(|first| !first.starts_with('0'))?;
    let mut value: i64 = first.parse().ok()?;
    for part in parts {
        let is_digits = part.len() <= 2 && part.bytes().all(|c| c.is_ascii_digit());
        let digit: i64 = part.parse().ok().filter(|_| is_digits)?;
        value = value.checked_mul(60)?.checked_add(digit).filter(|_| digit < 60)?;
    }
    Some(value)
}

/// A number with a dot; an exponent needs its sign. Infinities and NaN stay strings, since no key
/// takes them.
fn float(text: &str) -> Option<Number> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.')?;
    let are_digits = |part: &str| part.chars().all(|c| c.is_ascii_digit() || c == '_');
    let begins = |part: &str| part.starts_with(|c: char| c.is_ascii_digit());
    let has_digits = begins(whole) || (whole.is_empty() && begins(fraction));
    let signed = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']);
        digits.is_some_and(|digits| begins(digits) && are_digits(digits))
    });
    if !(has_digits && are_digits(whole) && are_digits(fraction) && signed) {
        return None;
    }
    text.replace('_', "").parse().ok().and_then(Number::from_f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str) -> Result<Value, String> {
        let node = parse(Path::new("t.yaml"), text).map_err(|error| error.to_string())?;
        Ok(node.to_json())
    }

    /// What PyYAML 6 makes of each.
    #[test]
    fn scalars_of_yaml_1_1() {
        for (text, want) in [
            ("yes", json!(true)),
            ("Off", json!(false)),
            ("y", json!("y")),
            ("~", json!(null)),
            ("017", json!(15)),
            ("08", json!("08")),
            ("0o17", json!("0o17")),
            ("0x1F", json!(31)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("-7", json!(-7)),
            ("1:30", json!(90)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            ("1e3", json!("1e3")),
            ("1.0e+3", json!(1000.0)),
            ("1.0e3", json!("1.0e3")),
            ("'yes'", json!("yes")),
            ("\"a\\n\\u00e9\"", json!("a\né")),
            ("!!str 12", json!("12")),
            ("!function utils.f", json!("utils.f")),
        ] {
            assert_eq!(read(&format!("k: {text}")), Ok(json!({ "k": want })), "{text}");
        }
    }

    #[test]
    fn anchors_merges_and_blocks() {
        let text =
            "a: &x {p: 1, q: [2, 3]}\nb:\n  <<: *x\n  p: 5\nc: |\n  one\n   two\nd: >-\n  x\n  y\n";
        let want = json!({
            "a": { "p": 1, "q": [2, 3] }, "b": { "p": 5, "q": [2, 3] },
            "c": "one\n two\n", "d": "x y",
        });
        assert_eq!(read(text), Ok(want));
    }

    /// A mapping takes about as long as a list of as many values: looking at every other key for
    /// each would take twenty times as long.
    #[test]
    fn many_keys_take_no_longer_than_many_values() {
        let seconds = |text: &str, what: &str| {
            let begun = std::time::Instant::now();
            let node = parse(Path::new("t.yaml"), text).unwrap();
            assert_eq!(node.what(), what);
            begun.elapsed().as_secs_f64()
        };
        let key = |i: usize| format!("{}{i:05}", "k".repeat(100));
        let keys: String = (0..40_000).map(|i| format!("{}: 1\n", key(i))).collect();
        let values: String = (0..40_000).map(|i| format!("- {}\n- 1\n", key(i))).collect();
        let [of_keys, of_values] = [(keys, "a mapping"), (values, "a list")]
            .map(|(text, what)| (0..2).map(|_| seconds(&text, what)).fold(f64::INFINITY, f64::min));
        assert!(of_keys < 7.0 * of_values, "{of_keys} s, of values {of_values} s");
    }

    /// What is merged twice is there once, and what the mapping has itself stays.
    #[test]
    fn the_first_of_merged_keys_counts() {
        let text = "a: &a {p: 1, q: 2}\nb: &b {q: 3, r: 4}\nc:\n  <<: [*a, *b, *a]\n  p: 5\n";
        let found = read(text).unwrap();
        assert_eq!(found["c"].to_string(), r#"{"p":5,"q":2,"r":4}"#);
    }

    /// A long text counts each time that it is repeated, in a list, as a key, or in what is merged;
    /// a few times are nothing.
    #[test]
    fn repeated_texts_are_counted_by_their_bytes() {
        let long = "x".repeat(1 << 20);
        let times = |alias: &str, n: usize| vec![alias; n].join(", ");
        for (begin, alias) in [
            (format!("a: &a {long}\n"), "*a"),
            (format!("a: &a [[{long}], 1]\n"), "*a"),
            (format!("a: &a {{? {long} : 1}}\n"), "*a"),
            (format!("a: &a {{k: {long}}}\n"), "{<<: *a}"),
            (format!("a: &a !function {long}\n"), "*a"),
        ] {
            let text = |n: usize| format!("{begin}b: [{}]\n", times(alias, n));
            let error = read(&text(20)).unwrap_err();
            assert!(error.starts_with("t.yaml:2: more than 16 MiB of text"), "{alias}: {error}");
            assert!(read(&text(5)).is_ok(), "{alias}");
        }
    }

    #[test]
    fn what_is_refused_has_its_line() {
        let deep = "[".repeat(100) + &"]".repeat(100);
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..9 {
            let previous = format!("*a{}, ", i - 1).repeat(10);
            bomb += &format!("a{i}: &a{i} [{}]\n", previous.trim_end_matches(", "));
        }
        for (text, line, what) in [
            ("a: 1\nb: [1, 2\n", 3, "not YAML"),
            ("a: 1\na: 2\n", 2, "a second key `a`"),
            ("a: 1\n---\nb: 2\n", 2, "a second document"),
            ("a:\n  b: !python/object x\n", 2, "the tag"),
            (&deep, 1, "nested more than"),
            (&bomb, 5, "more than"),
            ("? [1]\n: 2\n", 1, "a key that is no string"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
            assert!(error.starts_with(&format!("t.yaml:{line}: ")), "{text}: {error}");
        }
        assert!(read("").unwrap_err().contains("is empty"));
    }
}
