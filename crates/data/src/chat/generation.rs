//! The tag `{% generation %}`, by which a template says what the assistant writes.
//!
//! minijinja has no tags of one's own. The tags are rewritten, before parsing, into those of a
//! `filter` block (so whitespace control works as for any block), and the filter puts private
//! marks around the block's text. The marks are stripped from the output, which gives the spans.
//! They hold 128 random bits, so data cannot forge them.

use super::expressions;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// Name of the filter the tags become.
pub(super) const FILTER: &str = "hone_generation";

/// An opening and a closing mark: private-use characters, which no case change or trimming alters.
#[derive(Clone)]
pub(super) struct Marks {
    pub open: String,
    pub close: String,
}

impl Marks {
    pub fn new() -> Self {
        let mut nonce = String::new();
        for _ in 0..2 {
            let bits = RandomState::new().hash_one(FILTER);
            nonce.extend((0..16).filter_map(|i| private((bits >> (4 * i)) as u32 & 0xf)));
        }
        let mark = |kind| private(kind).into_iter().chain(nonce.chars()).collect();
        Self { open: mark(0x10), close: mark(0x11) }
    }

    pub fn wrap(&self, body: &str) -> String {
        format!("{}{body}{}", self.open, self.close)
    }

    /// The text without marks, and the outermost marked ranges in it; `None` where the marks do
    /// not pair up.
    pub fn strip(&self, output: &str) -> Option<(String, Vec<Range<usize>>)> {
        let (mut text, mut spans) = (String::with_capacity(output.len()), Vec::new());
        let (mut rest, mut depth, mut start) = (output, 0usize, 0);
        loop {
            let (open, close) = (rest.find(&self.open), rest.find(&self.close));
            let at = match (open, close) {
                (None, None) => break,
                (open, close) => open.unwrap_or(usize::MAX).min(close.unwrap_or(usize::MAX)),
            };
            text.push_str(&rest[..at]);
            if open == Some(at) {
                if depth == 0 {
                    start = text.len();
                }
                depth += 1;
                rest = &rest[at + self.open.len()..];
            } else {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    spans.push(start..text.len());
                }
                rest = &rest[at + self.close.len()..];
            }
        }
        text.push_str(rest);
        (depth == 0).then_some((text, spans))
    }
}

fn private(offset: u32) -> Option<char> {
    char::from_u32(0xE000 + offset)
}

/// The template with generation tags as filter blocks and its expressions rewritten, and whether
/// it had such tags. Comments, raw blocks and strings are left alone.
pub(super) fn rewrite(source: &str) -> (String, bool) {
    let (mut out, mut rest, mut found, mut raw) = (String::new(), source, false, false);
    while let Some(at) = rest.find(['{']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let len = piece_len(rest, raw);
        let piece = &rest[..len];
        rest = &rest[len..];
        let name = tag_name(piece);
        raw = match name {
            "raw" => true,
            "endraw" => false,
            _ => raw,
        };
        let replacement = match name {
            "generation" => format!("filter {FILTER}"),
            "endgeneration" => "endfilter".to_owned(),
            _ => String::new(),
        };
        if raw || piece.starts_with("{#") || piece.len() < 2 {
            out.push_str(piece);
        } else if replacement.is_empty() {
            out.push_str(&expressions::rewrite(piece));
        } else {
            found = true;
            out.push_str(&piece.replacen(name, &replacement, 1));
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Length of the tag, comment or expression that `rest` begins with, or of the bare brace. In a raw
/// block only tags count, one of which ends it.
fn piece_len(rest: &str, raw: bool) -> usize {
    match rest.as_bytes().get(1) {
        Some(b'%') => closing(rest, "%}"),
        Some(b'#') if !raw => rest[2..].find("#}").map_or(rest.len(), |i| i + 4),
        Some(b'{') if !raw => closing(rest, "}}"),
        _ => 1,
    }
}

/// Length up to and including `end`, outside of string literals and of brackets.
fn closing(text: &str, end: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let mut depth = 0usize;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => quote = Some(c),
            None if depth == 0 && text[at..].starts_with(end) => return at + end.len(),
            None if "([{".contains(c) => depth += 1,
            None if ")]}".contains(c) => depth = depth.saturating_sub(1),
            None => {}
        }
    }
    text.len()
}

/// The name of a tag such as `{%- generation -%}`; empty for anything else.
fn tag_name(piece: &str) -> &str {
    let Some(body) = piece.strip_prefix("{%").and_then(|p| p.strip_suffix("%}")) else {
        return "";
    };
    let body = body.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
    body.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}
