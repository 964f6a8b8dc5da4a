//! What templates compute with strings and lists, within limits: the functions that operators
//! become (`expressions`), and the filters and methods that could take any amount of memory.
//!
//! Every string that a rendering makes is counted, so one rendering cannot hold more than
//! `MAX_TOTAL_BYTES`, however it keeps them. The count lies with the thread, as a rendering does.

use super::expressions::{ADD, CONCAT, MULTIPLY, REMAINDER, SIZED};
use super::json;
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, context, escape_formatter};
use std::cell::Cell;

/// Longest string of a rendering.
const MAX_BYTES: usize = super::MAX_OUTPUT_BYTES;
/// All strings that one rendering makes; fewer in tests of this crate, which reach the limit.
const MAX_TOTAL_BYTES: usize = if cfg!(test) { 8 << 20 } else { 512 << 20 };
/// Longest list that an operator or filter makes.
const MAX_ITEMS: usize = 1 << 20;
/// Bytes that an element of a list is counted as.
const ITEM_BYTES: usize = 24;

thread_local! {
    static BYTES_LEFT: Cell<usize> = const { Cell::new(MAX_TOTAL_BYTES) };
}

/// Begins the count of a rendering on this thread.
pub(super) fn begin() {
    BYTES_LEFT.set(MAX_TOTAL_BYTES);
}

/// Counts a string before it is made.
fn count(num_bytes: usize) -> Result<(), Error> {
    let left = BYTES_LEFT.get().checked_sub(num_bytes).filter(|_| num_bytes <= MAX_BYTES);
    let Some(left) = left else {
        return Err(invalid(format!(
            "the template makes strings of more than {MAX_BYTES} bytes, or {MAX_TOTAL_BYTES} in all"
        )));
    };
    BYTES_LEFT.set(left);
    Ok(())
}

fn count_items(num_items: usize) -> Result<(), Error> {
    match num_items <= MAX_ITEMS {
        true => count(num_items * ITEM_BYTES),
        false => Err(invalid(format!("the template makes a list of more than {MAX_ITEMS} items"))),
    }
}

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Puts functions, filters and the formatter into an environment.
pub(super) fn add_to(env: &mut Environment<'static>) {
    env.add_function(ADD, add);
    env.add_function(CONCAT, concat);
    env.add_function(MULTIPLY, multiply);
    env.add_function(REMAINDER, remainder);
    env.add_filter(SIZED, sized);
    env.add_filter("replace", replace);
    env.add_filter("indent", indent);
    env.add_filter("center", |text: &str, width: Option<usize>| center(text, width.unwrap_or(80)));
    env.add_filter("format", |text: &str, args: Rest<Value>| printf(text, &args));
    env.add_filter(
        "batch",
        |state: &State<'_, '_>, value: Value, size: usize, fill: Option<Value>| {
            count_items(size)?;
            minijinja::filters::batch(state, value, size, fill)
        },
    );
    env.add_filter(
        "slice",
        |state: &State<'_, '_>, value: Value, size: usize, fill: Option<Value>| {
            count_items(size)?;
            minijinja::filters::slice(state, value, size, fill)
        },
    );
    env.add_filter("string", |value: &Value| match value.is_safe() {
        true => value.clone(),
        false => Value::from(text(value)),
    });
    env.set_formatter(|out, state, value| {
        count(value.as_str().map_or(ITEM_BYTES, str::len))?;
        match is_float(value) {
            true => escape_formatter(out, state, &Value::from(text(value))),
            false => escape_formatter(out, state, value),
        }
    });
}

fn is_float(value: &Value) -> bool {
    value.kind() == ValueKind::Number && !value.is_integer()
}

/// A value as Python's `str` gives it.
fn text(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if is_float(value) && number.is_finite() => json::float(number),
        _ => value.to_string(),
    }
}

/// Counts what a filter or method has made.
fn sized(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => count(value.as_str().map_or(0, str::len))?,
        ValueKind::Seq => count_items(value.len().unwrap_or(0))?,
        _ => {}
    }
    Ok(value)
}

/// `+`. As in Jinja, what is joined with a safe string is escaped.
fn add(state: &State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        count(a.len() + b.len())?;
        if !left.is_safe() && !right.is_safe() {
            return Ok(Value::from(format!("{a}{b}")));
        }
        let escaped = |value: &Value, text: &str| match value.is_safe() {
            true => text.to_owned(),
            false => escape(text),
        };
        let joined = escaped(&left, a) + &escaped(&right, b);
        return Ok(Value::from_safe_string(joined));
    }
    let is_list = |value: &Value| value.kind() == ValueKind::Seq && !value.is_tuple();
    if is_list(&left) && is_list(&right) {
        // minijinja's lists remember their parts, which takes exponential time to walk.
        count_items(left.len().unwrap_or(0).saturating_add(right.len().unwrap_or(0)))?;
        return Ok(left.try_iter()?.chain(right.try_iter()?).collect());
    }
    calculate(state, "a + b", left, right)
}

/// As MarkupSafe does it.
fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\'', "&#39;").replace('"', "&#34;")
}

/// `~`.
fn concat(left: Value, right: Value) -> Result<Value, Error> {
    let len = |value: &Value| value.as_str().map_or(ITEM_BYTES, str::len);
    count(len(&left) + len(&right))?;
    Ok(Value::from(text(&left) + &text(&right)))
}

/// `*`.
fn multiply(state: &State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    for (value, times) in [(&left, &right), (&right, &left)] {
        let times = times.as_usize().unwrap_or(0);
        match (value.kind(), value.len()) {
            (ValueKind::String, _) => {
                count(value.as_str().map_or(0, str::len).saturating_mul(times))?;
            }
            (ValueKind::Seq, Some(len)) => count_items(len.saturating_mul(times))?,
            _ => {}
        }
    }
    calculate(state, "a * b", left, right)
}

/// `%`, of numbers or of a format with what goes into it.
fn remainder(state: &State<'_, '_>, left: Value, right: Value) -> Result<Value, Error> {
    let Some(text) = left.as_str() else { return calculate(state, "a % b", left, right) };
    match right.is_tuple() {
        true => printf(text, &right.try_iter()?.collect::<Vec<_>>()),
        false => printf(text, &[right]),
    }
}

/// What minijinja makes of an operator. Whole numbers, of which templates have most, directly.
fn calculate(state: &State<'_, '_>, what: &str, a: Value, b: Value) -> Result<Value, Error> {
    let numbers = |value: &Value| value.is_integer().then(|| i64::try_from(value.clone()).ok());
    if let (Some(Some(x)), Some(Some(y))) = (numbers(&a), numbers(&b)) {
        let quick = match what {
            "a + b" => x.checked_add(y),
            "a * b" => x.checked_mul(y),
            _ if y > 0 => x.checked_rem_euclid(y),
            _ => None,
        };
        if let Some(number) = quick {
            return Ok(Value::from(number));
        }
    }
    state.env().compile_expression(what)?.eval(context! { a, b })
}

/// `%` formatting, whose widths must be written out.
fn printf(text: &str, args: &[Value]) -> Result<Value, Error> {
    count_format(text, args)?;
    if text.contains("*") && args.iter().any(|v| v.as_usize().is_some_and(|n| n > MAX_ITEMS)) {
        return Err(invalid("format: a width that is too large"));
    }
    sized(Value::from(format(FormatStyle::Printf, text, args)?))
}

/// Counts the widths that a format asks for, and what it is given once for each place.
fn count_format(text: &str, args: &[Value]) -> Result<(), Error> {
    let widths = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let widths = widths.map(|digits| digits.parse::<usize>().unwrap_or(usize::MAX));
    let total = widths.fold(text.len(), usize::saturating_add);
    let places = text.matches(['%', '{']).count();
    let longest = args.iter().filter_map(|v| Some(v.as_str()?.len())).max().unwrap_or(0);
    count(total.saturating_add(places.saturating_mul(longest)))
}

fn replace(text: &Value, from: &Value, to: &Value, times: Option<usize>) -> Result<Value, Error> {
    let (text, from, to) = (self::text(text), self::text(from), self::text(to));
    replaced(&text, &from, &to, times)
}

fn replaced(text: &str, from: &str, to: &str, times: Option<usize>) -> Result<Value, Error> {
    let places = match from.is_empty() {
        true => text.chars().count() + 1,
        false => text.matches(from).count(),
    };
    let places = places.min(times.unwrap_or(usize::MAX));
    count(text.len().saturating_add(places.saturating_mul(to.len())))?;
    Ok(Value::from(text.replacen(from, to, places)))
}

/// Jinja's `indent`, whose width may be a text to begin lines with.
fn indent(
    value: &Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<Value, Error> {
    let width = width.or(kwargs.get("width")?).unwrap_or(Value::from(4));
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let (text, num_lines) = (self::text(value), self::text(value).lines().count() + 1);
    let start = match width.as_str() {
        Some(start) => start.to_owned(),
        None => {
            let width = width.as_usize().ok_or_else(|| invalid("indent: not a width"))?;
            count(width.saturating_mul(num_lines))?;
            " ".repeat(width)
        }
    };
    count(text.len().saturating_add(start.len().saturating_mul(num_lines)))?;
    let ends_line = text.ends_with('\n');
    let lines = text.strip_suffix('\n').unwrap_or(&text).split('\n').enumerate();
    let lines = lines.map(|(index, line)| match index > 0 && (blank || !line.is_empty()) {
        true => format!("{start}{line}"),
        false => line.to_owned(),
    });
    let mut out = lines.collect::<Vec<_>>().join("\n");
    if ends_line {
        out += if blank { "\n" } else { "" };
        out += if blank { &start } else { "\n" };
    }
    Ok(Value::from(if first { start + &out } else { out }))
}

/// Python's `str.center`.
fn center(text: &str, width: usize) -> Result<Value, Error> {
    let missing = width.saturating_sub(text.chars().count());
    count(text.len().saturating_add(missing))?;
    let left = missing / 2 + (missing & width & 1);
    Ok(Value::from(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left))))
}

/// Methods of Python's strings that minijinja lacks, or does without a limit; `None` for others.
pub(super) fn string_method(
    text: &str,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    let word = |at: usize| args.get(at).and_then(|v| v.as_str());
    let number = |at: usize| args.get(at).and_then(|v| v.as_usize());
    let needs = |what: &str| Err(invalid(format!("{method} needs {what}")));
    Some(match (method, args.len()) {
        ("replace", 2 | 3) => match (word(0), word(1)) {
            (Some(from), Some(to)) => replaced(text, from, to, number(2)),
            _ => needs("two strings"),
        },
        ("format", _) => count_format(text, args)
            .and_then(|()| format(FormatStyle::StrFormat, text, args))
            .map(Value::from),
        ("join", _) => return None,
        ("center", 1) => number(0).map_or_else(|| needs("a width"), |width| center(text, width)),
        ("ljust" | "rjust" | "zfill", 1) => {
            number(0).map_or_else(|| needs("a width"), |width| justified(text, method, width))
        }
        ("swapcase", 0) => Ok(Value::from(text.chars().map(swapped).collect::<String>())),
        ("removeprefix", 1) => word(0).map_or_else(
            || needs("a string"),
            |part| Ok(Value::from(text.strip_prefix(part).unwrap_or(text))),
        ),
        ("removesuffix", 1) => word(0).map_or_else(
            || needs("a string"),
            |part| Ok(Value::from(text.strip_suffix(part).unwrap_or(text))),
        ),
        ("index" | "rindex", 1) => word(0).map_or_else(
            || needs("a string"),
            |part| {
                let at = if method == "index" { text.find(part) } else { text.rfind(part) };
                let at = at.ok_or_else(|| invalid("substring not found"))?;
                Ok(Value::from(text[..at].chars().count()))
            },
        ),
        ("partition" | "rpartition", 1) => match word(0).filter(|part| !part.is_empty()) {
            Some(part) => Ok(partition(text, part, method == "partition")),
            None => needs("a separator"),
        },
        ("rsplit", 0..=2) => Ok(rsplit(text, word(0), number(1))),
        _ => return None,
    })
}

/// A method of Python's lists that minijinja lacks; `None` for others.
pub(super) fn list_method(
    list: &Value,
    method: &str,
    args: &[Value],
) -> Option<Result<Value, Error>> {
    match (list.kind(), method, args) {
        (ValueKind::Seq, "index", [wanted]) => {
            let at = list.try_iter().map(|mut items| items.position(|item| item == *wanted));
            Some(at.and_then(|at| match at {
                Some(at) => Ok(Value::from(at)),
                None => Err(invalid(format!("{wanted:?} is not in the list"))),
            }))
        }
        _ => None,
    }
}

fn swapped(c: char) -> String {
    if c.is_lowercase() { c.to_uppercase().collect() } else { c.to_lowercase().collect() }
}

fn justified(text: &str, method: &str, width: usize) -> Result<Value, Error> {
    let missing = width.saturating_sub(text.chars().count());
    count(text.len().saturating_add(missing))?;
    let sign = text.len() - text.trim_start_matches(['+', '-']).len();
    Ok(Value::from(match method {
        "ljust" => format!("{text}{}", " ".repeat(missing)),
        "rjust" => format!("{}{text}", " ".repeat(missing)),
        _ => {
            let (sign, digits) = text.split_at(sign.min(1));
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
    }))
}

fn partition(text: &str, part: &str, from_start: bool) -> Value {
    let found = if from_start { text.split_once(part) } else { text.rsplit_once(part) };
    let parts = match found {
        Some((before, after)) => [before, part, after],
        None if from_start => [text, "", ""],
        None => ["", "", text],
    };
    Value::from_iter(parts.map(Value::from))
}

/// Python's `str.rsplit`; without a separator at white space.
fn rsplit(text: &str, separator: Option<&str>, limit: Option<usize>) -> Value {
    let limit = limit.unwrap_or(usize::MAX);
    let (mut parts, mut rest) = (Vec::new(), text);
    if separator.is_none() {
        rest = rest.trim_end();
    }
    while parts.len() < limit {
        let split = match separator {
            Some(separator) => rest.rsplit_once(separator).filter(|_| !separator.is_empty()),
            None => rest.rsplit_once(char::is_whitespace),
        };
        let Some((before, after)) = split else { break };
        parts.push(after);
        rest = if separator.is_none() { before.trim_end() } else { before };
    }
    if separator.is_some() || !rest.is_empty() {
        parts.push(if separator.is_none() && parts.is_empty() { rest.trim_start() } else { rest });
    }
    parts.reverse();
    let is_part = |part: &&str| separator.is_some() || !part.is_empty();
    Value::from_iter(parts.into_iter().filter(is_part).map(Value::from))
}
