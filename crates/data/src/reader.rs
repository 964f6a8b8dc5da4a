//! Reads files of records chunk by chunk. JSON lines are streamed; the text of a JSON array is held
//! whole, and its elements are handed out in chunks; a plain document is one text. Knows no record
//! formats.

use crate::error::{DataError, Fix, RecordFault, Setting};
use crate::source::unreadable;
use crate::spec::Format;
use serde::de::IgnoredAny;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader, Chain, Cursor, Read};
use std::path::Path;

/// Longest record accepted, in bytes: a line without an end is a wrong file, not a record.
const MAX_RECORD_BYTES: usize = 64 << 20;
/// Bytes after which a chunk ends: enough to keep many threads busy, little next to a dataset.
const CHUNK_BYTES: usize = 4 << 20;
/// Bytes at a file's beginning that show what it holds.
const HEAD_BYTES: u64 = 64 << 10;
/// May precede a text, and is not part of it.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// What one file holds.
pub(crate) enum Contents {
    /// One document.
    Document(String),
    /// Records in file order.
    Records(Records),
}

/// A file of records.
pub(crate) enum Records {
    /// One on each line.
    Lines(Lines),
    /// The elements of an array.
    Array(Array),
}

/// A record that is not parsed yet, and the line it starts on (from 1).
pub(crate) struct RawRecord {
    line: usize,
    raw: Raw,
}

enum Raw {
    /// The JSON of a line.
    Line(String),
    /// The JSON of an array's element.
    Element(Element),
    /// A line of so many bytes, which are too many.
    TooLong(usize),
}

struct Element {
    text: String,
    /// Its number in the array, from 1.
    number: usize,
    /// Characters before it on its first line.
    indent: usize,
}

/// A record, or its fault, and its line: where the record starts, or where bad JSON is.
pub(crate) type Parsed = (usize, Result<Value, RecordFault>);

impl RawRecord {
    pub fn parse(&self) -> Parsed {
        match &self.raw {
            Raw::Line(text) => (self.line, parse_line(text)),
            Raw::Element(element) => element.parse(self.line),
            Raw::TooLong(num_bytes) => (self.line, Err(too_long(*num_bytes))),
        }
    }
}

impl Records {
    /// The next records; none after the last.
    ///
    /// # Errors
    /// If the file has none at all, cannot be read, or is no text.
    pub fn next_chunk(&mut self) -> Result<Vec<RawRecord>, DataError> {
        match self {
            Self::Lines(lines) => lines.next_chunk(),
            Self::Array(array) => array.next_chunk(),
        }
    }
}

/// Opens one file. `as_text` says that the format text was named, which makes any file that is not
/// JSON a document.
pub(crate) fn open(file: &str, as_text: bool) -> Result<Contents, DataError> {
    let extension = Path::new(file)
        .extension()
        .map_or(String::new(), |e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_str() {
        "jsonl" | "ndjson" => Ok(Contents::Records(records(file, false)?)),
        "json" => Ok(Contents::Records(records(file, true)?)),
        "txt" | "md" => Ok(Contents::Document(read_utf8(file)?)),
        _ if as_text => Ok(Contents::Document(read_utf8(file)?)),
        _ => Err(DataError::file(
            file,
            format!("files of kind {extension:?} are not supported"),
            Fix::from("give .jsonl, .json, .txt or .md").or(Setting::FormatAs(Format::Text)),
        )),
    }
}

fn records(file: &str, may_be_array: bool) -> Result<Records, DataError> {
    let failed = |error| unreadable(file, &error);
    let mut rest = File::open(file).map_err(failed)?;
    let mut head = Vec::new();
    rest.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(failed)?;
    refuse_lfs_pointer(file, &head)?;
    let text = String::from_utf8_lossy(&head);
    let text = text.trim_start_matches(BYTE_ORDER_MARK);
    if may_be_array && text.trim_start().starts_with('[') {
        return Ok(Records::Array(Array::open(file)?));
    }
    refuse_other_layouts(file, text)?;
    let reader = BufReader::new(Cursor::new(head).chain(rest));
    Ok(Records::Lines(Lines { file: file.to_owned(), reader, line: 0, offset: 0, is_empty: true }))
}

/// Lines that are read one after another.
pub(crate) struct Lines {
    file: String,
    reader: BufReader<Chain<Cursor<Vec<u8>>, File>>,
    /// Lines read.
    line: usize,
    /// Bytes read.
    offset: u64,
    /// Whether all lines so far were blank.
    is_empty: bool,
}

impl Lines {
    fn next_chunk(&mut self) -> Result<Vec<RawRecord>, DataError> {
        let (mut num_bytes, mut records) = (0, Vec::new());
        while num_bytes < CHUNK_BYTES {
            let Some(raw) = self.next_line()? else { break };
            if let Raw::Line(text) = &raw {
                if text.trim().is_empty() {
                    continue;
                }
                num_bytes += text.len();
            }
            records.push(RawRecord { line: self.line, raw });
        }
        self.is_empty &= records.is_empty();
        if self.is_empty { Err(empty(&self.file)) } else { Ok(records) }
    }

    /// The next line without its end.
    fn next_line(&mut self) -> Result<Option<Raw>, DataError> {
        let mut bytes = Vec::new();
        // One byte more than a record may have, and the line's end.
        let limit = MAX_RECORD_BYTES as u64 + 2;
        let read = self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes);
        read.map_err(|error| unreadable(&self.file, &error))?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let (start, ended) = (self.offset, bytes.ends_with(b"\n"));
        self.offset += bytes.len() as u64;
        self.line += 1;
        if !ended && bytes.len() as u64 == limit {
            let num_bytes = bytes.len() + self.skip_line()?;
            return Ok(Some(Raw::TooLong(num_bytes)));
        }
        let mut text = String::from_utf8(bytes)
            .map_err(|e| not_utf8(&self.file, start + e.utf8_error().valid_up_to() as u64))?;
        text.truncate(text.strip_suffix('\n').unwrap_or(&text).trim_end_matches('\r').len());
        if start == 0 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len_utf8());
        }
        Ok(Some(match text.len() {
            len if len > MAX_RECORD_BYTES => Raw::TooLong(len),
            _ => Raw::Line(text),
        }))
    }

    /// Skips the rest of a line, and returns how many bytes it has.
    fn skip_line(&mut self) -> Result<usize, DataError> {
        let mut skipped = 0;
        loop {
            let buffer = self.reader.fill_buf().map_err(|error| unreadable(&self.file, &error))?;
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let len = end.map_or(buffer.len(), |end| end + 1);
            let is_last = end.is_some() || buffer.is_empty();
            self.reader.consume(len);
            self.offset += len as u64;
            skipped += end.unwrap_or(len);
            if is_last {
                return Ok(skipped);
            }
        }
    }
}

/// What is wrong with the short text that Git LFS leaves in place of a file that it did not fetch,
/// and what to do.
pub(crate) fn lfs_pointer(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let found = ("a Git LFS pointer, not the file itself", "fetch it with `git lfs pull`");
    bytes.starts_with(b"version https://git-lfs.github.com/spec/").then_some(found)
}

fn refuse_lfs_pointer(file: &str, bytes: &[u8]) -> Result<(), DataError> {
    lfs_pointer(bytes).map_or(Ok(()), |(what, fix)| Err(DataError::file(file, what, fix)))
}

fn read_utf8(file: &str) -> Result<String, DataError> {
    let bytes = std::fs::read(file).map_err(|error| unreadable(file, &error))?;
    refuse_lfs_pointer(file, &bytes)?;
    let text = String::from_utf8(bytes)
        .map_err(|e| not_utf8(file, e.utf8_error().valid_up_to() as u64))?;
    // A byte-order mark is no part of the text.
    let text = match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    if text.trim().is_empty() {
        return Err(empty(file));
    }
    Ok(text)
}

fn empty(file: &str) -> DataError {
    DataError::file(file, "the file is empty", "give a file that holds records")
}

fn not_utf8(file: &str, at: u64) -> DataError {
    let fix = "convert the file to UTF-8 (for example with iconv)";
    DataError::file(file, format!("not valid UTF-8 at byte {at}"), fix)
}

/// Refuses valid JSON that does not have one record per line.
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

fn parse_line(line: &str) -> Result<Value, RecordFault> {
    serde_json::from_str(line).map_err(|error| {
        let bad = BadJson::new(&error, line);
        RecordFault::malformed(
            bad.describe(bad.column, "line"),
            "each line of the file must be one whole JSON object",
        )
    })
}

impl Element {
    /// Its syntax was checked when its end was looked for, but not what its numbers and strings
    /// say, nor how deep it is.
    fn parse(&self, line: usize) -> Parsed {
        let error = match serde_json::from_str(&self.text) {
            Ok(value) => return (line, Ok(value)),
            Err(error) => error,
        };
        let bad = BadJson::new(&error, &self.text);
        let indent = if bad.line == 1 { self.indent } else { 0 };
        let what = bad.describe(indent + bad.column, "element");
        let what = format!("element {} of the array: {what}", self.number);
        (line + bad.line - 1, Err(RecordFault::malformed(what, "correct the element")))
    }
}

/// What is wrong with a JSON text, and where: line and column (of characters) from 1.
struct BadJson {
    line: usize,
    column: usize,
    what: String,
    /// The character there; `None`: the text ends.
    found: Option<char>,
}

impl BadJson {
    fn new(error: &serde_json::Error, text: &str) -> Self {
        let at = offset_of(text, error.line(), error.column());
        let found = text[at..].chars().next().filter(|_| !error.is_eof());
        let column = column_of(text, at);
        Self { line: error.line(), column, what: without_place(error), found }
    }

    fn describe(&self, column: usize, text: &str) -> String {
        let found = match self.found {
            Some(c) => format!("found {c:?}"),
            None => format!("found the end of the {text}"),
        };
        format!("bad JSON at column {column}: {}, {found}", self.what)
    }
}

/// serde_json ends its text with " at line L column C".
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

fn too_long(num_bytes: usize) -> RecordFault {
    RecordFault::malformed(
        format!("the record is {num_bytes} bytes long, at most {MAX_RECORD_BYTES} are accepted"),
        "put one record on each line",
    )
}

/// A JSON array whose elements are read one after another.
pub(crate) struct Array {
    file: String,
    text: String,
    /// Whether its last element was read.
    is_done: bool,
    /// Elements read.
    num_read: usize,
    /// Byte position.
    at: usize,
    /// How far lines have been counted.
    counted: usize,
    /// Line there, from 1, and characters before it on that line.
    line: usize,
    indent: usize,
}

impl Array {
    /// A syntax error makes the rest of the file unusable, because nothing says where the next
    /// record starts.
    fn open(file: &str) -> Result<Self, DataError> {
        let text = read_utf8(file)?;
        let mut array = Self {
            file: file.to_owned(),
            text,
            is_done: false,
            num_read: 0,
            at: 0,
            counted: 0,
            line: 1,
            indent: 0,
        };
        array.expect(&['['])?;
        if array.peek() == Some(']') {
            let fix = "give a file that holds records";
            return Err(DataError::file(file, "the array is empty", fix));
        }
        Ok(array)
    }

    fn next_chunk(&mut self) -> Result<Vec<RawRecord>, DataError> {
        let (start, mut records) = (self.at, Vec::new());
        while !self.is_done && self.at - start < CHUNK_BYTES {
            self.skip_whitespace();
            self.count_lines();
            let (line, indent) = (self.line, self.indent);
            let text = self.element()?;
            self.num_read += 1;
            let element = Element { text, number: self.num_read, indent };
            records.push(RawRecord { line, raw: Raw::Element(element) });
            if self.expect(&[',', ']'])? == ']' {
                self.is_done = true;
                if self.peek().is_some() {
                    return Err(self.error("expected the end of the file after the array"));
                }
            }
        }
        Ok(records)
    }

    fn skip_whitespace(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_whitespace();
        self.text[self.at..].chars().next()
    }

    /// Finds line and indent of the present position.
    fn count_lines(&mut self) {
        let passed = &self.text[self.counted..self.at];
        self.line += passed.matches('\n').count();
        self.indent = match passed.rfind('\n') {
            Some(end) => passed[end + 1..].chars().count(),
            None => self.indent + passed.chars().count(),
        };
        self.counted = self.at;
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

    /// The text of the next element.
    fn element(&mut self) -> Result<String, DataError> {
        let rest = &self.text[self.at..];
        let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let element = rest[..values.byte_offset()].to_owned();
                self.at += element.len();
                Ok(element)
            }
            Some(Err(error)) => {
                self.at += offset_of(rest, error.line(), error.column());
                Err(self.error(&without_place(&error)))
            }
            None => Err(self.error("the array has no end")),
        }
    }

    fn error(&mut self, what: &str) -> DataError {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("found {c:?}"),
            None => "found the end of the file".to_owned(),
        };
        self.count_lines();
        let column = self.indent + 1;
        DataError::Record {
            file: self.file.clone(),
            line: self.line,
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

/// Column (of characters, from 1) of a byte offset in its line.
fn column_of(text: &str, at: usize) -> usize {
    let line_start = text[..at].rfind('\n').map_or(0, |end| end + 1);
    text[line_start..at].chars().count() + 1
}
