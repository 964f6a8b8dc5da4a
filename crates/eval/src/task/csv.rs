//! CSV as `datasets` reads it, through pandas: a header unless names are given, quotes, and columns
//! whose values are all numbers become numbers.

use super::error::TaskError;
use super::file::Setting;
use serde_json::{Map, Number, Value};
use std::path::Path;

/// Records, each with its place in the file.
pub type Records = Vec<(Place, Map<String, Value>)>;

/// Where a record is.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// It begins in this line.
    Line(usize),
    /// It has this number, from 1, in a list.
    Record(usize),
}

/// How a file is laid out.
#[derive(Clone, Debug, Default)]
pub struct Options {
    separator: Option<char>,
    names: Option<Vec<String>>,
}

impl Options {
    /// Takes one of `dataset_kwargs`.
    ///
    /// # Errors
    /// If it is none of these, or its value is of the wrong kind.
    pub fn set(&mut self, setting: &Setting) -> Result<(), TaskError> {
        match &*setting.key {
            "sep" | "delimiter" => {
                let text = setting.string()?;
                let mut chars = text.chars();
                match (chars.next(), chars.next()) {
                    (Some(c), None) => self.separator = Some(c),
                    _ => return Err(setting.error("expected one character")),
                }
            }
            "names" | "column_names" => self.names = Some(setting.strings()?),
            _ => return Err(setting.error("an unknown key, or one that files do not need")),
        }
        Ok(())
    }
}

/// What pandas takes for a missing value.
const MISSING: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN",
    "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// The records, each with its line.
///
/// # Errors
/// If the file is not UTF-8, a quote is not closed, or a row has more columns than there are names.
pub fn records(path: &Path, bytes: &[u8], options: &Options) -> Result<Records, TaskError> {
    let text = std::str::from_utf8(bytes).map_err(|_| TaskError::file(path, "is not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut rows = rows(path, text, options.separator.unwrap_or(','))?;
    let names = match &options.names {
        Some(names) => names.clone(),
        None if rows.is_empty() => Vec::new(),
        None => rows.remove(0).1,
    };
    for (line, row) in &mut rows {
        if row.len() > names.len() {
            let (found, wanted) = (row.len(), names.len());
            let what = format!("{found} columns where there are {wanted} names");
            return Err(TaskError::line(path, *line, what));
        }
        row.resize(names.len(), String::new());
    }
    let columns: Vec<Column> = (0..names.len()).map(|i| Column::of(&rows, i)).collect();
    let record = |(line, row): (usize, Vec<String>)| {
        let values = columns.iter().zip(row).map(|(column, text)| column.value(text));
        (Place::Line(line), names.iter().cloned().zip(values).collect())
    };
    Ok(rows.into_iter().map(record).collect())
}

type Rows = Vec<(usize, Vec<String>)>;

/// Rows of texts; empty lines are left out.
fn rows(path: &Path, text: &str, separator: char) -> Result<Rows, TaskError> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut begun, mut is_quoted, mut was_quoted) = (1, 1, false, false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if is_quoted && chars.peek() == Some(&'"') => cell.extend(chars.next()),
            '"' if is_quoted => is_quoted = false,
            c if is_quoted => cell.push(c),
            '"' if cell.is_empty() && !was_quoted => (is_quoted, was_quoted) = (true, true),
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' | '\r' => {
                if !row.is_empty() || !cell.is_empty() || was_quoted {
                    row.push(std::mem::take(&mut cell));
                    rows.push((begun, std::mem::take(&mut row)));
                }
                (begun, was_quoted) = (line, false);
            }
            c if c == separator => {
                row.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            c => cell.push(c),
        }
    }
    if is_quoted {
        return Err(TaskError::line(path, begun, "a quote that is not closed"));
    }
    if !row.is_empty() || !cell.is_empty() || was_quoted {
        row.push(cell);
        rows.push((begun, row));
    }
    Ok(rows)
}

/// What all values of a column are.
#[derive(Clone, Copy, PartialEq)]
enum Column {
    Integer,
    Float,
    Boolean,
    Text,
}

impl Column {
    fn of(rows: &Rows, i: usize) -> Self {
        let values = || rows.iter().map(|(_, row)| row[i].as_str());
        let given = || values().filter(|text| !MISSING.contains(text));
        let is_integer = |text: &str| text.trim().parse::<i64>().is_ok();
        let is_boolean = |text| ["True", "TRUE", "true", "False", "FALSE", "false"].contains(&text);
        if given().next().is_none() {
            return Self::Text;
        }
        if values().all(is_integer) {
            return Self::Integer;
        }
        if given().all(|text| float(text).is_some()) {
            return Self::Float;
        }
        if values().all(is_boolean) { Self::Boolean } else { Self::Text }
    }

    fn value(self, text: String) -> Value {
        let is_missing = MISSING.contains(&text.as_str());
        match self {
            _ if is_missing => Value::Null,
            Self::Integer => text.trim().parse::<i64>().map_or(Value::Null, Value::from),
            Self::Float => {
                float(&text).and_then(Number::from_f64).map_or(Value::Null, Value::Number)
            }
            Self::Boolean => Value::Bool(text.eq_ignore_ascii_case("true")),
            Self::Text => Value::String(text),
        }
    }
}

/// A finite number: Rust would also take `infinity`.
fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_number = text.bytes().all(|c| c.is_ascii_digit() || b"+-.eE".contains(&c));
    text.parse::<f64>().ok().filter(|number| is_number && number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(text: &str, options: &Options) -> Result<Vec<Value>, String> {
        let found = records(Path::new("t.csv"), text.as_bytes(), options);
        let found = found.map_err(|error| error.to_string())?;
        let value = |(place, fields)| match place {
            Place::Line(line) => json!([line, fields]),
            Place::Record(_) => unreachable!("rows have lines"),
        };
        Ok(found.into_iter().map(value).collect())
    }

    #[test]
    fn columns_have_types() {
        let text = "n,x,s,b,e\n1,1,1,True,\n-2,0.5,\"a, \"\"b\"\"\nc\",False,\n3,,NA,true,\n";
        let want = [
            json!([2, { "n": 1, "x": 1.0, "s": "1", "b": true, "e": null }]),
            json!([3, { "n": -2, "x": 0.5, "s": "a, \"b\"\nc", "b": false, "e": null }]),
            json!([5, { "n": 3, "x": null, "s": null, "b": true, "e": null }]),
        ];
        assert_eq!(read(text, &Options::default()).unwrap(), want);
    }

    #[test]
    fn names_may_be_given() {
        let names = Some(vec!["a".to_owned(), "b".to_owned()]);
        let options = Options { separator: Some(';'), names };
        let want = [json!([1, { "a": "x", "b": "y,z" }]), json!([3, { "a": "w", "b": null }])];
        assert_eq!(read("x;y,z\r\n\r\nw", &options).unwrap(), want);
        assert!(read("x;y;z", &options).unwrap_err().starts_with("t.csv:1: 3 columns"));
        assert!(read("a\n\"x", &Options::default()).unwrap_err().contains("t.csv:2: a quote"));
    }
}
