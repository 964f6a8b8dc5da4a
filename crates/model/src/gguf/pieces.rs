//! How llama.cpp cuts text with a SentencePiece-like vocabulary: neighbouring pieces that make a
//! token are joined, those with the highest score first and of equals the left-most, until none
//! are left. A tokenizer that merges by rank comes to the same only if scores and tokens allow.

use super::metadata::Metadata;
use crate::raw_config::ConfigError;
use hone_tensor::gguf::{GgufFile, Value};
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

/// The vocabulary of a file, as llama.cpp uses it.
pub struct LlamaCppPieces {
    ids: HashMap<String, u32>,
    scores: Vec<f32>,
    /// Tokens that text is searched for, the longest first.
    marks: Vec<(String, u32)>,
    bos: Option<u32>,
    eos: Option<u32>,
    adds_space: bool,
    /// Whether whitespace after most marks is dropped, as in models that call themselves Phi-3.
    drops_blanks: bool,
}

/// Two neighbours that make a token.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Bytes of both, by which it is known whether one has been joined since.
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

/// A piece of the text, between its neighbours.
struct Piece {
    start: usize,
    /// 0: it was joined to the one before it.
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

impl LlamaCppPieces {
    /// That of a file; `None` if its vocabulary is of another kind.
    ///
    /// # Errors
    /// If the file is damaged, or its vocabulary is.
    pub fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let file = GgufFile::open(path)?;
        let metadata = Metadata::new(&file);
        if metadata.text("tokenizer.ggml.model")? != Some("llama") {
            return Ok(None);
        }
        let list = |key: &str| -> Result<Vec<Value<'_>>, ConfigError> {
            match metadata.get(key) {
                Some(Value::Array(array)) => array.iter().collect::<Result<_, _>>(),
                _ => Err("is missing, or no list".to_owned()),
            }
            .map_err(|problem| metadata.error(key, problem))
        };
        let text = |value: &Value<'_>| match value {
            Value::Text(text) => (*text).to_owned(),
            _ => String::new(),
        };
        let tokens: Vec<String> = list("tokenizer.ggml.tokens")?.iter().map(text).collect();
        let score = |value: &Value<'_>| match value {
            Value::Float(x) => *x as f32,
            _ => 0.0,
        };
        let scores = list("tokenizer.ggml.scores")?.iter().map(score).collect();
        let kinds = list("tokenizer.ggml.token_type")?;
        // Unknown, control and user-defined.
        let is_mark = |kind: &Value<'_>| matches!(kind, Value::Integer(2..=4));
        let of =
            |((id, token), kind): ((u32, &String), _)| is_mark(kind).then(|| (token.clone(), id));
        let mut marks: Vec<_> = (0..).zip(&tokens).zip(&kinds).filter_map(of).collect();
        marks.retain(|(token, _)| !token.is_empty());
        marks.sort_by_key(|(token, _)| std::cmp::Reverse(token.len()));
        let flag = |key: &str| metadata.flag(&format!("tokenizer.ggml.{key}"));
        let id = |key: &str| metadata.token_id(&format!("tokenizer.ggml.{key}_token_id"));
        let (adds_bos, adds_eos) = (flag("add_bos_token")?, flag("add_eos_token")?);
        Ok(Some(Self {
            ids: tokens.into_iter().zip(0..).collect(),
            scores,
            marks,
            bos: id("bos")?.or(Some(1)).filter(|_| adds_bos.unwrap_or(true)),
            eos: id("eos")?.or(Some(2)).filter(|_| adds_eos.unwrap_or(false)),
            adds_space: flag("add_space_prefix")?.unwrap_or(true),
            drops_blanks: metadata.text("general.name")?.is_some_and(|name| {
                let name = name.to_lowercase();
                name.contains("phi-3") || name.contains("phi3")
            }),
        }))
    }

    /// The tokens of `text`, those that every text is given included.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids: Vec<u32> = self.bos.into_iter().collect();
        let mut is_after_mark = true;
        for part in self.parts(text) {
            match part {
                Ok(mark) => {
                    ids.push(mark);
                    is_after_mark = true;
                }
                Err(text) => {
                    let space = if self.adds_space && is_after_mark { " " } else { "" };
                    let text = format!("{space}{text}").replace(' ', "\u{2581}");
                    self.join(&text, &mut ids);
                    is_after_mark = false;
                }
            }
        }
        ids.extend(self.eos);
        ids
    }

    /// Marks, and the texts between them: the longest marks are searched for first.
    fn parts<'t>(&self, text: &'t str) -> Vec<Result<u32, &'t str>> {
        let mut parts = vec![Err(text)];
        for (mark, id) in &self.marks {
            let mut cut = Vec::new();
            for part in parts {
                let Err(mut rest) = part else {
                    cut.push(part);
                    continue;
                };
                while let Some((before, after)) = rest.split_once(mark.as_str()) {
                    cut.extend([Err(before), Ok(*id)]);
                    let keeps = ["<unk>", "<s>", "<|endoftext|>"].contains(&mark.as_str());
                    rest = match self.drops_blanks && !keeps {
                        true => after.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']),
                        false => after,
                    };
                }
                cut.push(Err(rest));
            }
            parts = cut;
        }
        parts.retain(|part| *part != Err(""));
        parts
    }

    /// Joins the letters of a text.
    fn join(&self, text: &str, ids: &mut Vec<u32>) {
        let mut pieces: Vec<Piece> = Vec::new();
        for (i, (start, letter)) in text.char_indices().enumerate() {
            let after = Some(i + 1).filter(|_| start + letter.len_utf8() < text.len());
            pieces.push(Piece { start, len: letter.len_utf8(), before: i.checked_sub(1), after });
        }
        let mut queue = BinaryHeap::new();
        let pair = |pieces: &[Piece], left: Option<usize>, right: Option<usize>| {
            let (left, right) = (left?, right?);
            let (start, len) = (pieces[left].start, pieces[left].len + pieces[right].len);
            let id = *self.ids.get(&text[start..start + len])?;
            Some(Pair { score: self.scores.get(id as usize).copied()?, left, right, len })
        };
        for i in 1..pieces.len() {
            queue.extend(pair(&pieces, Some(i - 1), Some(i)));
        }
        while let Some(Pair { left, right, len, .. }) = queue.pop() {
            let lens = [pieces[left].len, pieces[right].len];
            if lens.contains(&0) || lens[0] + lens[1] != len {
                continue;
            }
            let after = pieces[right].after;
            (pieces[left].len, pieces[left].after, pieces[right].len) = (len, after, 0);
            if let Some(after) = after {
                pieces[after].before = Some(left);
            }
            queue.extend(pair(&pieces, pieces[left].before, Some(left)));
            queue.extend(pair(&pieces, Some(left), after));
        }
        for Piece { start, len, .. } in pieces.iter().filter(|piece| piece.len > 0) {
            let piece = &text[*start..start + len];
            match self.ids.get(piece) {
                Some(id) => ids.push(*id),
                None => ids.extend(piece.bytes().map(|byte| self.byte(byte))),
            }
        }
    }

    /// The token of a byte; the unknown one where there is none.
    fn byte(&self, byte: u8) -> u32 {
        self.ids.get(&format!("<0x{byte:02X}>")).copied().unwrap_or(0)
    }
}
