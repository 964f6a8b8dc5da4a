//! Which pairs of pieces a tokenizer merges, in order: from the file, or from the vocabulary.

use super::metadata::Metadata;
use crate::raw_config::ConfigError;
use hone_tensor::gguf::Value;
use serde::Serialize;
use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;

pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// Pairs of pieces, the first merged first.
#[derive(Serialize)]
#[serde(transparent)]
pub(super) struct Merges<'a>(Vec<(&'a str, &'a str)>);

/// More than any tokenizer has.
const MAX_MERGES: usize = 1 << 21;

/// The merges that a file gives.
pub(super) fn read<'a>(metadata: &Metadata<'a>) -> Result<Option<Merges<'a>>, ConfigError> {
    let array = match metadata.get(MERGES) {
        None => return Ok(None),
        Some(Value::Array(array)) => array,
        Some(other) => return Err(metadata.unexpected(MERGES, "a list", other)),
    };
    if array.len() > MAX_MERGES {
        let problem = format!("has {} entries, and at most {MAX_MERGES} are read", array.len());
        return Err(metadata.error(MERGES, problem));
    }
    let pair = |(i, merge): (usize, Result<Value<'a>, String>)| {
        let pair = match merge {
            Ok(Value::Text(text)) => text.split_once(' '),
            _ => None,
        };
        pair.filter(|(left, right)| !left.is_empty() && !right.is_empty()).ok_or_else(|| {
            metadata
                .error(MERGES, format!("has an entry, {i}, that is not two pieces with a space"))
        })
    };
    let pairs = array.iter().enumerate().map(pair);
    pairs.collect::<Result<Vec<_>, _>>().map(|pairs| Some(Merges(pairs)))
}

/// The merges that make each token of two others, the tokens with the highest scores first: what
/// SentencePiece's own search comes to. Ties go by the pieces' lengths, the longer left one first,
/// and then by their ids.
pub(super) fn from_scores<'a>(tokens: &'a [Cow<'a, str>], scores: &[f64]) -> Merges<'a> {
    let ids: HashMap<&str, usize> =
        tokens.iter().enumerate().map(|(id, token)| (token.as_ref(), id)).collect();
    let mut merges: Vec<(f64, [&str; 2])> = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        // Of tokens that are spelled alike, the last counts.
        if ids[token.as_ref()] != id {
            continue;
        }
        let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = halves
            .filter_map(|(left, right)| Some(([*ids.get(left)?, *ids.get(right)?], [left, right])));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable();
        merges.extend(known.into_iter().map(|(_, pieces)| (scores[id], pieces)));
    }
    merges.sort_by(|(score, pieces), (other_score, others)| {
        let lens = |pieces: &[&str; 2]| pieces.map(|piece| piece.chars().count());
        let order = other_score.total_cmp(score);
        if order != Ordering::Equal { order } else { lens(others).cmp(&lens(pieces)) }
    });
    Merges(merges.into_iter().map(|(_, [left, right])| (left, right)).collect())
}

/// A token of a byte-level vocabulary in GPT-2's letters for bytes, which most are spelled in.
pub(super) fn in_byte_letters(token: &str) -> Cow<'_, str> {
    match token.chars().all(is_byte_letter) {
        true => Cow::Borrowed(token),
        false => token.bytes().map(byte_letter).collect::<String>().into(),
    }
}

/// Bytes that are their own letters: the visible ones of Latin-1.
fn is_visible(byte: u32) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

fn is_byte_letter(letter: char) -> bool {
    // The 68 others follow Latin-1.
    is_visible(letter.into()) || (0x100..0x144).contains(&u32::from(letter))
}

fn byte_letter(byte: u8) -> char {
    let byte = u32::from(byte);
    let letter = match is_visible(byte) {
        true => byte,
        false => 0x100 + (0..byte).filter(|byte| !is_visible(*byte)).count() as u32,
    };
    char::from_u32(letter).unwrap_or(char::REPLACEMENT_CHARACTER)
}
