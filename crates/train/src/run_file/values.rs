//! One value of a run file or of the command line: checked, quoted, and what is wrong with it.

use super::error::{Location, RunFileError};
use super::names::nearest;
use super::schema::{Check, Key};
use std::ops::Range;
use toml::Spanned;
use toml::de::DeValue;

/// A text being parsed, to turn byte ranges into lines and quotations.
pub(super) struct Source<'a> {
    pub text: &'a str,
    /// `None` on the command line.
    pub file: Option<&'a str>,
}

impl Source<'_> {
    pub fn place(&self, span: &Range<usize>) -> Location {
        match self.file {
            None => Location::CommandLine,
            Some(file) => {
                let line = 1 + self.text.bytes().take(span.start).filter(|b| *b == b'\n').count();
                Location::Line { file: file.to_owned(), line }
            }
        }
    }

    /// The value as written, shortened, with its type.
    pub fn quote(&self, value: &Spanned<DeValue<'_>>) -> String {
        let written = self.text.get(value.span()).unwrap_or_default();
        let mut short: String = written.chars().take(60).collect();
        if short.len() < written.len() {
            short.push('…');
        }
        format!("{short} ({})", value.get_ref().type_str())
    }
}

/// A value written in the schema, checked like any other.
pub(super) fn schema_value(key: &Key, text: &str) -> toml::Value {
    let parsed = DeValue::parse(text).expect("the schema's values are TOML");
    check_value(key.check, parsed.get_ref()).expect("the schema's values are in range")
}

/// The value in its one normal form (lists as lists, sizes as bytes, numbers as floats where they
/// are real), or `None` where type or range is wrong.
pub(super) fn check_value(check: Check, value: &DeValue<'_>) -> Option<toml::Value> {
    match (check, value) {
        (Check::Bool, DeValue::Boolean(flag)) => Some((*flag).into()),
        (Check::Int(min, max), DeValue::Integer(_)) => {
            integer(value).filter(|i| (min..=max).contains(i)).map(Into::into)
        }
        (Check::Float(interval), DeValue::Integer(_) | DeValue::Float(_)) => {
            real(value).filter(|x| interval.contains(*x)).map(Into::into)
        }
        (Check::Text, DeValue::String(_)) => text(value),
        (Check::TextList { .. }, DeValue::String(_)) => Some(vec![text(value)?].into()),
        (Check::TextList { may_be_empty }, DeValue::Array(items)) => {
            let list: Option<Vec<_>> = items.iter().map(|item| text(item.get_ref())).collect();
            list.filter(|list| may_be_empty || !list.is_empty()).map(Into::into)
        }
        (Check::Choice(options), DeValue::String(found)) => {
            options.contains(&found.as_ref()).then(|| found.as_ref().into())
        }
        (Check::Bytes, DeValue::Integer(_)) => integer(value).filter(|i| *i > 0).map(Into::into),
        (Check::Bytes, DeValue::String(found)) => super::bytes::parse(found).map(Into::into),
        _ => None,
    }
}

pub(super) fn text(value: &DeValue<'_>) -> Option<toml::Value> {
    value.as_str().filter(|text| !text.trim().is_empty()).map(Into::into)
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    let integer = value.as_integer()?;
    i64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn real(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => integer(value).map(|i| i as f64),
    }
}

pub(super) fn key_error(place: Location, key: &str, problem: String) -> RunFileError {
    RunFileError::Key { place, key: key.to_owned(), problem }
}

pub(super) fn example(key: &Key) -> String {
    format!("For example: {} = {}", key.path, key.example)
}

pub(super) fn wrong_value(key: &Key, value: &DeValue<'_>, found: &str) -> String {
    let nearest = match (key.check, value.as_str()) {
        (Check::Choice(options), Some(text)) => nearest(text, options.iter().copied()),
        _ => None,
    };
    let hint = nearest.map(|near| format!(" Did you mean \"{near}\"?")).unwrap_or_default();
    format!("found {found}, expected {}.{hint} {}", key.check.describe(), example(key))
}
