//! From text and overrides to checked values, one per key of the schema, each with its place.
//! Relations between keys and the typed tree are built on top of this.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Location, RunFileError};
use super::keys;
use super::names::{keys_of, unknown_key, unknown_table};
use super::paths;
use super::schema::{Check, Default, Key};
use super::values::{Source, check_value, example, key_error, schema_value, wrong_value};

/// Checked values by path (`train.seed`), and where each came from.
pub(super) struct Settings {
    file: String,
    values: BTreeMap<&'static str, (toml::Value, Location)>,
    /// Tables that were opened, and where; the optional table counts only if it is here.
    tables: BTreeMap<&'static str, Location>,
}

impl Settings {
    /// Reads `text`, then the overrides, and fills in the defaults that do not depend on other
    /// keys. The first thing wrong is the error.
    pub fn read(file: &str, text: &str, overrides: &[String]) -> Result<Self, RunFileError> {
        let mut settings =
            Settings { file: file.to_owned(), values: BTreeMap::new(), tables: BTreeMap::new() };
        settings.read_file(text)?;
        settings.read_overrides(overrides)?;
        settings.fill_defaults()?;
        settings.check_kinds()?;
        Ok(settings)
    }

    /// The place of a key, or the file where it was not given.
    pub fn place(&self, path: &str) -> Location {
        let (table, _) = path.split_once('.').unwrap_or((path, ""));
        match (self.values.get(path), self.tables.get(table)) {
            (Some((_, place)), _) | (None, Some(place)) => place.clone(),
            (None, None) => Location::File(self.file.clone()),
        }
    }

    pub fn get(&self, path: &str) -> Option<&toml::Value> {
        self.values.get(path).map(|(value, _)| value)
    }

    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Sets a default that follows from other keys.
    pub fn set_default(&mut self, path: &'static str, value: impl Into<toml::Value>) {
        let place = Location::File(self.file.clone());
        self.values.entry(path).or_insert_with(|| (value.into(), place));
    }

    /// The values as one TOML tree, every table present, the optional one only if it was given.
    pub fn into_toml(self) -> toml::Table {
        let mut root = toml::Table::new();
        for table in keys::tables().filter(|table| self.expects(table)) {
            root.insert(table.to_owned(), toml::Table::new().into());
        }
        for (path, (value, _)) in self.values {
            let (table, name) = path.split_once('.').expect("paths come from the schema");
            let entry = root.get_mut(table).and_then(toml::Value::as_table_mut);
            entry.expect("a value's table is present").insert(name.to_owned(), value);
        }
        root
    }

    fn expects(&self, table: &str) -> bool {
        self.has_table(table) || keys::section(table).is_some_and(|table| !table.is_optional())
    }

    fn read_file(&mut self, text: &str) -> Result<(), RunFileError> {
        let file = self.file.clone();
        let source = Source { text, file: Some(&file) };
        let root = DeTable::parse(text).map_err(|error| RunFileError::Syntax {
            place: source.place(&error.span().unwrap_or(0..0)),
            problem: format!("this is not TOML: {}", one_line(error.message())),
        })?;
        let mut entries: Vec<_> = root.get_ref().iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start); // errors in the file's order
        for (name, value) in entries {
            let place = source.place(&name.span());
            self.read_table(&source, name.get_ref(), value, place)?;
        }
        Ok(())
    }

    fn read_table(
        &mut self,
        source: &Source<'_>,
        name: &str,
        value: &Spanned<DeValue<'_>>,
        place: Location,
    ) -> Result<(), RunFileError> {
        let Some(table) = keys::section(name).map(|section| section.table) else {
            let (key, problem) = (name.to_owned(), unknown_table(name));
            return Err(RunFileError::UnknownKey { place, key, problem });
        };
        let Some(entries) = value.get_ref().as_table() else {
            let found = source.quote(value);
            return Err(key_error(place, name, format!("found {found}; {}", is_a_table(name))));
        };
        self.tables.insert(table, place);
        let mut entries: Vec<_> = entries.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        for (key, value) in entries {
            let place = source.place(&key.span());
            self.read_value(source, &format!("{name}.{}", key.get_ref()), value, place)?;
        }
        Ok(())
    }

    fn read_value(
        &mut self,
        source: &Source<'_>,
        path: &str,
        value: &Spanned<DeValue<'_>>,
        place: Location,
    ) -> Result<(), RunFileError> {
        let key = known_key(path, &place)?;
        let checked = match key.check {
            Check::Paths(of) => paths::read(source, of, value)?,
            check => check_value(check, value.get_ref()),
        };
        let Some(checked) = checked else {
            let problem = wrong_value(key, value.get_ref(), &source.quote(value));
            return Err(key_error(place, path, problem));
        };
        self.values.insert(key.path, (checked, place));
        Ok(())
    }

    fn read_overrides(&mut self, overrides: &[String]) -> Result<(), RunFileError> {
        let mut seen = Vec::new();
        for text in overrides {
            let Some((path, value)) = text.split_once('=') else {
                let problem = format!(
                    "{text:?} is not an override; write key=value, as in train.learning_rate=1e-4"
                );
                return Err(RunFileError::Syntax { place: Location::CommandLine, problem });
            };
            let (path, value) = (path.trim(), value.trim());
            if seen.contains(&path) {
                let problem = "given twice; keep one of them".to_owned();
                return Err(key_error(Location::CommandLine, path, problem));
            }
            seen.push(path);
            self.read_override(path, value)?;
        }
        Ok(())
    }

    fn read_override(&mut self, path: &str, text: &str) -> Result<(), RunFileError> {
        if keys::section(path).is_some() {
            return Err(key_error(Location::CommandLine, path, is_a_table(path)));
        }
        let key = known_key(path, &Location::CommandLine)?;
        let written = override_as_toml(key.check, text);
        let parsed = DeValue::parse(&written).map_err(|error| {
            let problem = format!("{written} is not a value: {}", one_line(error.message()));
            key_error(Location::CommandLine, path, problem)
        })?;
        self.displace_partner(key.path);
        self.tables.entry(key.parts().0).or_insert(Location::CommandLine);
        let source = Source { text: &written, file: None };
        self.read_value(&source, path, &parsed, Location::CommandLine)
    }

    /// Drops the file's value of the key that excludes `path`.
    fn displace_partner(&mut self, path: &str) {
        for (a, b) in keys::EXCLUSIVE {
            let partner = if path == a { b } else { a };
            let from_file =
                self.values.get(partner).is_some_and(|(_, place)| *place != Location::CommandLine);
            if (path == a || path == b) && from_file {
                self.values.remove(partner);
            }
        }
    }

    fn fill_defaults(&mut self) -> Result<(), RunFileError> {
        for key in keys::all() {
            if self.values.contains_key(key.path) || !self.has(key) {
                continue;
            }
            match key.default {
                Default::Value(text) => self.set_default(key.path, schema_value(key, text)),
                Default::Chosen(_) => {}
                Default::Required => {
                    let problem = format!("missing; {}. {}", key.meaning(), example(key));
                    return Err(key_error(self.place(key.path), key.path, problem));
                }
            }
        }
        Ok(())
    }

    /// Whether the table is there and its `kind`, which comes first, has this key.
    fn has(&self, key: &Key) -> bool {
        let table = key.parts().0;
        self.expects(table) && key.only_if.is_none_or(|kind| self.kind(table) == Some(kind))
    }

    fn kind(&self, table: &str) -> Option<&str> {
        self.get(&format!("{table}.kind"))?.as_str()
    }

    /// Refuses keys that another `kind` of their table has.
    fn check_kinds(&self) -> Result<(), RunFileError> {
        for (path, (_, place)) in &self.values {
            let of_path = || keys::all().filter(|key| key.path == *path);
            if of_path().any(|key| self.has(key)) {
                continue;
            }
            let kinds: Vec<_> = of_path().filter_map(|key| key.only_if).collect();
            let (table, name) = path.split_once('.').expect("paths come from the schema");
            let problem = format!(
                "is for {table}.kind = \"{}\", and it is \"{}\" here; remove {name}, or change \
                 {table}.kind",
                kinds.join("\" or \""),
                self.kind(table).unwrap_or_default()
            );
            return Err(key_error(place.clone(), path, problem));
        }
        Ok(())
    }
}

/// Text without quotes is text where a text is wanted, and where it could be nothing else.
fn override_as_toml(check: Check, text: &str) -> String {
    let quoted = || toml::Value::String(text.to_owned()).to_string();
    if text.starts_with(['"', '\'', '[', '{']) {
        return text.to_owned();
    }
    match check {
        Check::Text | Check::TextList { .. } | Check::Paths(_) | Check::Choice(_) => quoted(),
        _ if DeValue::parse(text).is_err() => quoted(),
        _ => text.to_owned(),
    }
}

fn known_key(path: &str, place: &Location) -> Result<&'static Key, RunFileError> {
    keys::find(path).ok_or_else(|| RunFileError::UnknownKey {
        place: place.clone(),
        key: path.to_owned(),
        problem: unknown_key(path),
    })
}

fn is_a_table(name: &str) -> String {
    format!("`{name}` is a table; its keys are {}", keys_of(name))
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
