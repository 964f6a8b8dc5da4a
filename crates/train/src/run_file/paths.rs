//! Lists of paths that may be written as an array of tables with more keys.

use super::error::{Location, RunFileError};
use super::keys;
use super::names::nearest;
use super::schema::{Default, Key, Section};
use super::values::{Source, check_value, example, key_error, schema_value, text, wrong_value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The list in one normal form: all texts or, where `value` holds tables, all tables with every key
/// of `of`. `None` where it is neither.
pub(super) fn read(
    source: &Source<'_>,
    of: &'static Section,
    value: &Spanned<DeValue<'_>>,
) -> Result<Option<toml::Value>, RunFileError> {
    let items: Vec<&Spanned<DeValue<'_>>> = match value.get_ref() {
        DeValue::Array(items) => items.iter().collect(),
        _ => vec![value],
    };
    let tables: Vec<_> = items.iter().filter_map(|item| item.get_ref().as_table()).collect();
    if tables.is_empty() {
        let list: Option<Vec<_>> = items.iter().map(|item| text(item.get_ref())).collect();
        return Ok(list.filter(|list| !list.is_empty()).map(Into::into));
    }
    if let Some(other) = items.iter().find(|item| !item.get_ref().is_table()) {
        let problem = format!(
            "found {} among tables; write all as texts, or all as tables [[{}]]",
            source.quote(other),
            of.table
        );
        return Err(key_error(source.place(&other.span()), of.table, problem));
    }
    let places = items.iter().map(|item| source.place(&item.span()));
    let tables = tables.into_iter().zip(places);
    let tables: Result<Vec<_>, _> =
        tables.map(|(table, place)| read_table(source, of, table, place)).collect();
    tables.map(|tables| Some(tables.into()))
}

fn read_table(
    source: &Source<'_>,
    of: &'static Section,
    table: &DeTable<'_>,
    place: Location,
) -> Result<toml::Table, RunFileError> {
    let mut read = toml::Table::new();
    for (name, value) in table {
        let (line, name) = (source.place(&name.span()), name.get_ref().as_ref());
        let Some(key) = of.keys.iter().find(|key| key.parts().1 == name) else {
            let (key, problem) = (format!("{}.{name}", of.table), unknown_key(of, name));
            return Err(RunFileError::UnknownKey { place: line, key, problem });
        };
        let Some(checked) = check_value(key.check, value.get_ref()) else {
            let problem = wrong_value(key, value.get_ref(), &source.quote(value));
            return Err(key_error(line, key.path, problem));
        };
        read.insert(name.to_owned(), checked);
    }
    for key in of.keys.iter().filter(|key| !table.contains_key(key.parts().1)) {
        let Default::Value(default) = key.default else {
            let problem = format!("missing; {}. {}", key.meaning(), example(key));
            return Err(key_error(place, key.path, problem));
        };
        read.insert(key.parts().1.to_owned(), schema_value(key, default));
    }
    Ok(read)
}

fn unknown_key(of: &'static Section, name: &str) -> String {
    let (outer, table) = (of.table.split('.').next().unwrap_or_default(), of.table);
    if keys::find(&format!("{outer}.{name}")).is_some() {
        return format!("is a key of [{outer}]; write it above the first [[{table}]]");
    }
    let names = || of.keys.iter().map(|key: &Key| key.parts().1);
    match nearest(name, names()) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => {
            let names = names().collect::<Vec<_>>().join(", ");
            format!("unknown key; the keys of [[{table}]] are {names}")
        }
    }
}
