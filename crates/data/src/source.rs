//! Files of records: globs, JSON arrays, JSON lines, plain text. Knows no record formats.

use crate::error::{DataError, Fix, RecordFault, Setting};
use crate::spec::{Format, WeightedPath};
use serde_json::Value;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Longest record accepted, in bytes: a line without an end is a wrong file, not a record.
const MAX_RECORD_BYTES: usize = 64 << 20;

/// What one file holds.
pub(crate) enum Contents {
    /// One document.
    Document(String),
    /// Records in file order; a broken JSON line is kept as its fault.
    Records(Vec<RawRecord>),
}

/// A JSON value and the line it starts on (from 1).
pub(crate) struct RawRecord {
    pub line: usize,
    pub value: Result<Value, RecordFault>,
}

/// What paths stand for.
#[derive(Default)]
pub(crate) struct Files {
    /// The files of each path, none twice.
    pub files: Vec<Vec<String>>,
    /// Files that were named before, and the weight that they are read with.
    pub repeated: Vec<WeightedPath>,
}

/// The files that `paths` (names or globs) stand for: in the given order, a glob's matches sorted,
/// none twice.
pub(crate) fn expand(paths: &[WeightedPath]) -> Result<Files, DataError> {
    if paths.is_empty() {
        return Err(DataError::setup("no data files are named", "name at least one path or glob"));
    }
    let (mut found, mut weights) = (Files::default(), BTreeMap::new());
    for WeightedPath { path, weight } in paths {
        let mut files = Vec::new();
        for file in matches(path)? {
            // Two spellings may name one file.
            let real = std::fs::canonicalize(&file).unwrap_or_else(|_| PathBuf::from(&file));
            match weights.entry(real) {
                Entry::Occupied(before) => {
                    found.repeated.push(WeightedPath { path: file, weight: *before.get() });
                }
                Entry::Vacant(new) => {
                    new.insert(*weight);
                    files.push(file);
                }
            }
        }
        found.files.push(files);
    }
    Ok(found)
}

fn matches(path: &str) -> Result<Vec<String>, DataError> {
    // A name that exists is that file, even when it holds glob characters.
    let exists = Path::new(path).try_exists().map_err(|error| unreadable(path, &error))?;
    if exists {
        if Path::new(path).is_dir() {
            let fix = format!("name its files, for example {path}/*.jsonl");
            return Err(DataError::file(path, "is a directory", fix));
        }
        return Ok(vec![path.to_owned()]);
    }
    if path.contains("://") {
        let fix = "copy the file to a local disk and name it there";
        return Err(DataError::file(path, "remote data is not supported yet", fix));
    }
    if !path.contains(['*', '?', '[']) {
        let what = match Path::new(path).is_symlink() {
            true => "a symbolic link to a file that is not there",
            false => "no such file",
        };
        return Err(DataError::file(path, what, Setting::Paths));
    }
    let entries = glob::glob(path)
        .map_err(|e| DataError::file(path, format!("not a glob: {e}"), "correct the pattern"))?;
    let mut found = Vec::new();
    for entry in entries {
        found.extend(matched(entry)?);
    }
    refuse_unnameable(path)?;
    if found.is_empty() {
        let fix = match path.contains('[') {
            true => "correct the pattern; a [ that is part of a name is written [[]",
            false => "correct the pattern",
        };
        return Err(DataError::file(path, "the glob matches no file", fix));
    }
    Ok(found)
}

/// The name of a file that a glob found; directories are passed over.
fn matched(entry: glob::GlobResult) -> Result<Option<String>, DataError> {
    let entry = entry.map_err(|e| unreadable(&e.path().to_string_lossy(), e.error()))?;
    let name = entry.to_string_lossy().into_owned();
    let kind = std::fs::metadata(&entry).map_err(|error| unreadable(&name, &error))?;
    if kind.is_dir() {
        return Ok(None);
    }
    Ok(Some(name))
}

/// Refuses names that are not UTF-8 beside what the last part of a glob matches: the glob itself
/// passes over them.
fn refuse_unnameable(path: &str) -> Result<(), DataError> {
    let (Some(folder), Ok(pattern)) = (Path::new(path).parent(), glob::Pattern::new(path)) else {
        return Ok(());
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| folder.join(entry.file_name()));
    let mut odd = names
        .filter(|name| name.to_str().is_none())
        .map(|name| name.to_string_lossy().into_owned());
    match odd.find(|name| pattern.matches(name)) {
        Some(name) => Err(DataError::file(name, "the file's name is not UTF-8", "rename it")),
        None => Ok(()),
    }
}

fn unreadable(path: &str, error: &std::io::Error) -> DataError {
    let fix = "check the path and its permissions";
    DataError::file(path, format!("cannot be read: {error}"), fix)
}

/// Refuses the small text that stands for a file where Git LFS did not fetch it.
pub(crate) fn refuse_lfs_pointer(file: &str, bytes: &[u8]) -> Result<(), DataError> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let what = "a Git LFS pointer, not the file itself";
    Err(DataError::file(file, what, "fetch it with `git lfs pull`"))
}

/// Reads one file. `as_text` says that the format text was named, which makes any file that is
/// not JSON a document.
pub(crate) fn read(file: &str, as_text: bool) -> Result<Contents, DataError> {
    let extension = Path::new(file)
        .extension()
        .map_or(String::new(), |e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_str() {
        "jsonl" | "ndjson" => {
            let text = read_utf8(file)?;
            refuse_other_layouts(file, &text)?;
            Ok(Contents::Records(json_lines(&text)))
        }
        "json" => {
            let text = read_utf8(file)?;
            if text.trim_start().starts_with('[') {
                return Ok(Contents::Records(json_array(file, &text)?));
            }
            refuse_other_layouts(file, &text)?;
            Ok(Contents::Records(json_lines(&text)))
        }
        "txt" | "md" => Ok(Contents::Document(read_utf8(file)?)),
        _ if as_text => Ok(Contents::Document(read_utf8(file)?)),
        _ => Err(DataError::file(
            file,
            format!("files of kind {extension:?} are not supported"),
            Fix::from("give .jsonl, .json, .txt or .md").or(Setting::FormatAs(Format::Text)),
        )),
    }
}

fn read_utf8(file: &str) -> Result<String, DataError> {
    let bytes = std::fs::read(file).map_err(|error| unreadable(file, &error))?;
    refuse_lfs_pointer(file, &bytes)?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        DataError::file(
            file,
            format!("not valid UTF-8 at byte {at}"),
            "convert the file to UTF-8 (for example with iconv)",
        )
    })?;
    // A byte-order mark is no part of the text.
    let text = match text.strip_prefix('\u{feff}') {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    if text.trim().is_empty() {
        return Err(DataError::file(file, "the file is empty", "give a file that holds records"));
    }
    Ok(text)
}

/// Refuses JSON that is whole but not one record on each line.
fn refuse_other_layouts(file: &str, text: &str) -> Result<(), DataError> {
    let text = text.trim_start();
    let first_line = text.lines().next().unwrap_or_default().trim();
    let second = text.get(1..).unwrap_or_default().trim_start().chars().next();
    if text.starts_with('[') && second == Some('{') {
        let what = "the file holds one JSON array, not one record on each line";
        return Err(DataError::file(file, what, "name it .json"));
    }
    if first_line == "{" {
        return Err(DataError::file(
            file,
            "the file's JSON objects are spread over several lines",
            "write each on a line of its own, for example with `jq -c .`",
        ));
    }
    Ok(())
}

fn json_lines(text: &str) -> Vec<RawRecord> {
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| RawRecord { line: index + 1, value: json_line(line) })
        .collect()
}

fn json_line(line: &str) -> Result<Value, RecordFault> {
    if line.len() > MAX_RECORD_BYTES {
        return Err(too_long(line.len()));
    }
    serde_json::from_str(line).map_err(|e| bad_json(&e, line))
}

fn too_long(num_bytes: usize) -> RecordFault {
    RecordFault::malformed(
        format!("the record is {num_bytes} bytes long, at most {MAX_RECORD_BYTES} are accepted"),
        "put one record on each line",
    )
}

fn bad_json(error: &serde_json::Error, line: &str) -> RecordFault {
    let text = error.to_string();
    // serde_json ends its text with " at line L column C", which counts from the record.
    let what = text.split(" at line ").next().unwrap_or(&text);
    let at = offset_of(line, 1, error.column());
    let column = line[..at].chars().count() + 1;
    let found = match line[at..].chars().next() {
        Some(c) if !error.is_eof() => format!("found {c:?}"),
        _ => "found the end of the line".to_owned(),
    };
    RecordFault::malformed(
        format!("bad JSON at column {column}: {what}, {found}"),
        "each line of the file must be one whole JSON object",
    )
}

/// The elements of a JSON array, each with its line. A syntax error makes the whole file
/// unusable, because nothing says where the next record starts.
fn json_array(file: &str, text: &str) -> Result<Vec<RawRecord>, DataError> {
    let mut cursor = ArrayCursor { file, text, at: 0, counted: 0, line: 1 };
    cursor.expect(&['['])?;
    let mut records = Vec::new();
    if cursor.peek() == Some(']') {
        return Err(DataError::file(file, "the array is empty", "give a file that holds records"));
    }
    loop {
        cursor.skip_whitespace();
        let line = cursor.line();
        records.push(RawRecord { line, value: Ok(cursor.value()?) });
        if cursor.expect(&[',', ']'])? == ']' {
            break;
        }
    }
    match cursor.peek() {
        None => Ok(records),
        Some(_) => Err(cursor.error("expected the end of the file after the array")),
    }
}

struct ArrayCursor<'a> {
    file: &'a str,
    text: &'a str,
    /// Byte position.
    at: usize,
    /// How far lines have been counted, and the line there.
    counted: usize,
    line: usize,
}

impl ArrayCursor<'_> {
    fn skip_whitespace(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_whitespace();
        self.text[self.at..].chars().next()
    }

    fn line(&mut self) -> usize {
        self.line += self.text[self.counted..self.at].bytes().filter(|b| *b == b'\n').count();
        self.counted = self.at;
        self.line
    }

    fn expect(&mut self, wanted: &[char]) -> Result<char, DataError> {
        match self.peek() {
            Some(c) if wanted.contains(&c) => {
                self.at += 1;
                Ok(c)
            }
            _ => {
                let names = wanted.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>();
                Err(self.error(&format!("expected {}", names.join(" or "))))
            }
        }
    }

    fn value(&mut self) -> Result<Value, DataError> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            Some(Err(error)) => {
                self.at += offset_of(rest, error.line(), error.column());
                let text = error.to_string();
                Err(self.error(text.split(" at line ").next().unwrap_or(&text)))
            }
            None => Err(self.error("the array has no end")),
        }
    }

    fn error(&mut self, what: &str) -> DataError {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("found {c:?}"),
            None => "found the end of the file".to_owned(),
        };
        let line_start = self.text[..self.at].rfind('\n').map_or(0, |i| i + 1);
        let column = self.text[line_start..self.at].chars().count() + 1;
        let line = self.line();
        DataError::Record {
            file: self.file.to_owned(),
            line,
            fault: RecordFault::malformed(
                format!("bad JSON at column {column}: {what}, {found}"),
                "the file must be one JSON array of objects, or one object on each line",
            ),
        }
    }
}

/// Byte offset of a line and column (both from 1, column in bytes) in `text`, on a character
/// boundary.
fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let start = text.split_inclusive('\n').take(line - 1).map(str::len).sum::<usize>();
    let mut at = (start + column.saturating_sub(1)).min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}
