//! What templates may call: the environment of `transformers`' `apply_chat_template` in minijinja.

use super::generation::{FILTER, Marks};
use super::limits::{self, list_method, string_method};
use super::{MAX_OUTPUT_BYTES, json};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

/// Instructions a rendering may take; the longest of usual conversations takes about a hundredth.
const FUEL: u64 = 50_000_000;
/// Nested calls of macros and blocks.
const RECURSION_LIMIT: usize = 200;

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Raised(String);

/// An environment; with `marks`, generation blocks come out between them.
pub(super) fn new(marks: Option<Marks>) -> Environment<'static> {
    let mut env = common();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("the options are sound"));
    env.add_filter(FILTER, move |body: &str| match &marks {
        Some(marks) => marks.wrap(body),
        None => body.to_owned(),
    });
    env
}

/// An environment for texts over fields, all of which must be there.
pub(super) fn for_texts() -> Environment<'static> {
    let mut env = common();
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    env.set_syntax(syntax.expect("the options are sound"));
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env
}

/// What both may call, within limits.
fn common() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_fuel(Some(FUEL));
    env.set_recursion_limit(RECURSION_LIMIT);
    limits::add_to(&mut env);
    env.set_unknown_method_callback(|state, value, method, args| {
        let own = match value.as_str() {
            Some(text) => string_method(text, method, args),
            None => list_method(value, method, args),
        };
        own.unwrap_or_else(|| unknown_method_callback(state, value, method, args))
    });
    env.add_filter("tojson", tojson);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_filter("int", int);
    env.add_filter("float", float);
    env.add_filter("wordcount", |text: &str| text.split_whitespace().count());
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_test("iterable", is_iterable);
    env.add_test("sequence", is_sequence);
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message)))
    });
    env.remove_global("debug");
    env
}

/// Makes `strftime_now` see this instant, in UTC.
pub(super) fn set_now(env: &mut Environment<'static>, unix_seconds: i64) {
    let now = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    let now = now.to_zoned(jiff::tz::TimeZone::UTC);
    env.add_function("strftime_now", move |format: &str| {
        jiff::fmt::strtime::format(format, &now)
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}")))
    });
}

/// As Python's `len`; an undefined value has none of anything.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let what = format!("cannot calculate the length of a value of type {}", value.kind());
        Error::new(ErrorKind::InvalidOperation, what)
    })
}

/// As in Jinja: what is no number becomes 0, or the given default.
fn int(state: &State<'_, '_>, value: &Value, default: Option<Value>, kwargs: Kwargs) -> Value {
    filters::int(state, value, default, None, kwargs).unwrap_or(Value::from(0))
}

/// As `int`.
fn float(state: &State<'_, '_>, value: &Value, default: Option<Value>, kwargs: Kwargs) -> Value {
    filters::float(state, value, default, kwargs).unwrap_or(Value::from(0.0))
}

/// As in Jinja, where nothing can be iterated over if it is `none`, but can if it is undefined.
fn is_iterable(value: &Value) -> bool {
    !value.is_none() && value.try_iter().is_ok()
}

/// As in Jinja, where whatever has a length and elements is a sequence.
fn is_sequence(value: &Value) -> bool {
    let kinds = [ValueKind::Seq, ValueKind::String, ValueKind::Map, ValueKind::Undefined];
    kinds.contains(&value.kind())
}

fn tojson(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let style = json::Style {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match separators.as_deref() {
            Some([item, key]) => (item.clone(), key.clone()),
            Some(_) => return Err(invalid("separators must be a pair")),
            None if indent.is_some() => (",".into(), ": ".into()),
            None => (", ".into(), ": ".into()),
        },
        indent,
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(invalid("an undefined value cannot be written as JSON"));
    }
    let value = serde_json::to_value(value).map_err(|e| invalid(&e.to_string()))?;
    json::dumps_within(&value, &style, MAX_OUTPUT_BYTES)
        .ok_or_else(|| invalid(&format!("more than {MAX_OUTPUT_BYTES} bytes")))
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {what}"))
}
