//! Source files, and Rust text split into code and comments.
//!
//! Not a parser: it knows strings, characters, comments and words, which is enough for the rules.
//! Macros are read as the text they are.

use std::fs;
use std::io;
use std::path::Path;

/// Kinds of files that count as code.
const CODE_EXTENSIONS: [&str; 8] = ["rs", "py", "sh", "cu", "cuh", "c", "h", "js"];

/// One file of code.
pub struct Source {
    /// Relative to the workspace's root, with `/` between its parts.
    pub path: String,
    pub text: String,
    /// Code and comments of each line. Only for Rust; empty otherwise.
    pub lines: Vec<Line>,
}

/// One line of Rust, its strings emptied.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub code: String,
    pub comment: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let lines = if path.ends_with(".rs") { split(text) } else { Vec::new() };
        Source { path: path.to_owned(), text: text.to_owned(), lines }
    }

    pub fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The file's name without its extension.
    pub fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.split('.').next().unwrap_or(name)
    }
}

/// Reads every code file below `folders`, in order of path.
pub fn read_all(root: &Path, folders: &[&str]) -> io::Result<Vec<Source>> {
    let mut sources = Vec::new();
    for folder in folders {
        if root.join(folder).is_dir() {
            read_folder(root, folder, &mut sources)?;
        }
    }
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

fn read_folder(root: &Path, folder: &str, sources: &mut Vec<Source>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{folder}/{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            read_folder(root, &path, sources)?;
        } else if kind.is_file() && is_code(&path) {
            let text = fs::read_to_string(entry.path())
                .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
            sources.push(Source::new(&path, &text));
        }
    }
    Ok(())
}

fn is_code(path: &str) -> bool {
    let extension = path.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    path == ".ci/run" || extension.is_some_and(|(_, ext)| CODE_EXTENSIONS.contains(&ext))
}

/// What the text at hand belongs to.
enum State {
    Code,
    LineComment,
    /// Depth: block comments nest.
    BlockComment(usize),
    Text,
    /// Number of `#` that close it.
    RawText(usize),
}

/// Splits Rust text into code and comments, line by line.
pub fn split(text: &str) -> Vec<Line> {
    let mut splitter =
        Splitter { chars: text.chars().collect(), at: 0, lines: vec![Line::default()] };
    let mut state = State::Code;
    while splitter.at < splitter.chars.len() {
        if splitter.chars[splitter.at] == '\n' {
            splitter.at += 1;
            splitter.lines.push(Line::default());
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            continue;
        }
        state = splitter.step(state);
    }
    if text.ends_with('\n') || text.is_empty() {
        splitter.lines.pop();
    }
    splitter.lines
}

struct Splitter {
    chars: Vec<char>,
    at: usize,
    lines: Vec<Line>,
}

impl Splitter {
    /// Consumes at least one character, never a line's end except after a backslash.
    fn step(&mut self, state: State) -> State {
        match state {
            State::Code => self.step_code(),
            State::LineComment => {
                self.take_comment(1);
                State::LineComment
            }
            State::BlockComment(depth) => self.step_block_comment(depth),
            State::Text => self.step_text(),
            State::RawText(hashes) => self.step_raw_text(hashes),
        }
    }

    fn step_code(&mut self) -> State {
        let (this, next) = (self.peek(0), self.peek(1));
        match (this, next) {
            ('/', '/') => {
                self.take_comment(2);
                State::LineComment
            }
            ('/', '*') => {
                self.take_comment(2);
                State::BlockComment(1)
            }
            ('"', _) => {
                let raw = self.raw_hashes();
                self.take_code(1);
                raw.map_or(State::Text, State::RawText)
            }
            // A character, not a lifetime: escaped, or closed two places on.
            ('\'', '\\') => self.take_character(3),
            ('\'', _) if next != '\'' && self.peek(2) == '\'' => self.take_character(2),
            _ => {
                self.take_code(1);
                State::Code
            }
        }
    }

    fn step_block_comment(&mut self, depth: usize) -> State {
        match (self.peek(0), self.peek(1)) {
            ('*', '/') => {
                self.take_comment(2);
                if depth == 1 { State::Code } else { State::BlockComment(depth - 1) }
            }
            ('/', '*') => {
                self.take_comment(2);
                State::BlockComment(depth + 1)
            }
            _ => {
                self.take_comment(1);
                State::BlockComment(depth)
            }
        }
    }

    fn step_text(&mut self) -> State {
        match self.peek(0) {
            '"' => {
                self.take_code(1);
                return State::Code;
            }
            // The escaped character goes too, unless it ends the line.
            '\\' if self.peek(1) != '\n' => self.at += 2,
            _ => self.at += 1,
        }
        State::Text
    }

    fn step_raw_text(&mut self, hashes: usize) -> State {
        let closes = self.peek(0) == '"' && (1..=hashes).all(|i| self.peek(i) == '#');
        if closes {
            self.take_code(1 + hashes);
            return State::Code;
        }
        self.at += 1;
        State::RawText(hashes)
    }

    /// The number of `#` when the quote at hand opens a raw string.
    fn raw_hashes(&self) -> Option<usize> {
        let code = &self.lines.last()?.code;
        let before = code.trim_end_matches('#');
        let prefix = before.rsplit(|c| !is_word(c)).next().unwrap_or("");
        matches!(prefix, "r" | "br" | "cr").then(|| code.len() - before.len())
    }

    /// Skips a character literal whose closing quote is at or after `from`.
    fn take_character(&mut self, from: usize) -> State {
        let mut end = from;
        while !matches!(self.peek(end), '\'' | '\n' | '\0') {
            end += 1;
        }
        self.at += end + usize::from(self.peek(end) == '\'');
        State::Code
    }

    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn take_code(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        let taken = &self.chars[self.at..end];
        if let Some(line) = self.lines.last_mut() {
            line.code.extend(taken);
        }
        self.at = end;
    }

    fn take_comment(&mut self, count: usize) {
        let end = (self.at + count).min(self.chars.len());
        let taken = &self.chars[self.at..end];
        if let Some(line) = self.lines.last_mut() {
            line.comment.extend(taken);
        }
        self.at = end;
    }
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `word` stands in `text` by itself.
pub fn has_word(text: &str, word: &str) -> bool {
    text.split(|c| !is_word(c)).any(|found| found == word)
}

/// Words and single signs of the code, each with its line counted from 1.
pub fn tokens(lines: &[Line]) -> Vec<(usize, &str)> {
    let mut tokens = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let mut rest = line.code.trim_start();
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let len = if word == 0 { first.len_utf8() } else { word };
            tokens.push((index + 1, &rest[..len]));
            rest = rest[len..].trim_start();
        }
    }
    tokens
}

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    pub name: String,
    /// Where `fn` stands, counted from 1.
    pub line: usize,
    /// From `fn` to the closing brace, both lines included.
    pub num_lines: usize,
}

/// Every function that has a body, inner ones too.
pub fn functions(lines: &[Line]) -> Vec<Function> {
    let tokens = tokens(lines);
    let mut found = Vec::new();
    let mut open: Vec<(&str, usize, usize)> = Vec::new();
    // A signature whose body has not begun, and how deep in its brackets we are.
    let mut signature: Option<(&str, usize)> = None;
    let (mut nested, mut depth) = (0_usize, 0_usize);
    for (i, &(line, token)) in tokens.iter().enumerate() {
        match token {
            "fn" => {
                let name = tokens.get(i + 1).map_or("", |&(_, next)| next);
                if name.starts_with(|c| is_word(c) || c == '$') {
                    signature = Some((name, line));
                    nested = 0;
                }
            }
            "(" | "[" => nested += 1,
            ")" | "]" => nested = nested.saturating_sub(1),
            ";" if nested == 0 => signature = None,
            "{" => {
                if let (0, Some((name, start))) = (nested, signature) {
                    open.push((name, start, depth));
                    signature = None;
                }
                depth += 1;
            }
            "}" => {
                depth = depth.saturating_sub(1);
                if let Some(&(name, start, _)) = open.last().filter(|f| f.2 == depth) {
                    let num_lines = line - start + 1;
                    found.push(Function { name: name.to_owned(), line: start, num_lines });
                    open.pop();
                }
            }
            _ => {}
        }
    }
    found.sort_by_key(|function| function.line);
    found
}
