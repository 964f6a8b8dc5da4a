//! Metadata of a tokenizer and of chat templates.

use super::{GgufExportError, ModelTexts, tokenizer_name};
use crate::config::DecoderConfig;
use crate::gguf::splits::Splits;
use hone_tensor::gguf::Meta;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Kinds of tokens, as files number them.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Score of tokens that no merge makes: below all others.
const LAST: f32 = -1e9;

fn unsupported(problem: impl Into<String>) -> GgufExportError {
    GgufExportError::Tokenizer(problem.into())
}

/// The `tokenizer.*` keys; none without a tokenizer.
pub(super) fn metadata(
    texts: &ModelTexts,
    config: &DecoderConfig,
) -> Result<Vec<(String, Meta)>, GgufExportError> {
    let tokenizer = &texts.tokenizer;
    if tokenizer.is_null() {
        return Ok(vec![("tokenizer.ggml.model".to_owned(), "none".into())]);
    }
    let model = &tokenizer["model"];
    if model["type"] != "BPE" {
        let kind = model["type"].as_str().unwrap_or("unknown");
        return Err(unsupported(format!("its model is of type {kind}, and only BPE has one")));
    }
    let vocabulary = Vocabulary::of(tokenizer, config.vocab_size)?;
    let merges = merges(model)?;
    let mut keys = Vec::new();
    let mut set = |key: &str, value: Meta| keys.push((format!("tokenizer.{key}"), value));
    if model["byte_fallback"] == true {
        let adds_space = space_prefix(tokenizer)?;
        set("ggml.model", "llama".into());
        set("ggml.pre", "default".into());
        set("ggml.scores", Meta::F32s(vocabulary.scores(&merges)?));
        set("ggml.add_space_prefix", Meta::Bool(adds_space));
    } else {
        set("ggml.model", "gpt2".into());
        set("ggml.pre", splits(tokenizer, &texts.fingerprint)?.into());
        let pair = |(left, right): &(&str, &str)| format!("{left} {right}");
        set("ggml.merges", Meta::Texts(merges.iter().map(pair).collect()));
    }
    let marks = Marks::of(texts, &vocabulary)?;
    set("ggml.tokens", Meta::Texts(vocabulary.stored()));
    set("ggml.token_type", Meta::I32s(vocabulary.kinds));
    for (name, id) in marks.ids {
        set(&format!("ggml.{name}_token_id"), Meta::U32(id));
    }
    set("ggml.add_bos_token", Meta::Bool(marks.adds_bos));
    set("ggml.add_eos_token", Meta::Bool(marks.adds_eos));
    let templates = texts.templates();
    let names: Vec<String> = templates.keys().flatten().cloned().collect();
    for (name, template) in templates {
        match name {
            None => set("chat_template", Meta::Text(template)),
            Some(name) => set(&format!("chat_template.{name}"), Meta::Text(template)),
        }
    }
    if !names.is_empty() {
        set("chat_templates", Meta::Texts(names));
    }
    Ok(keys)
}

/// Tokens by id, as many as the embedding has rows, and their kinds.
struct Vocabulary {
    tokens: Vec<String>,
    kinds: Vec<i32>,
    ids: HashMap<String, u32>,
    is_sentence_piece: bool,
}

impl Vocabulary {
    fn of(tokenizer: &Value, num_rows: usize) -> Result<Self, GgufExportError> {
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; num_rows];
        let model = &tokenizer["model"];
        let unknown = model["unk_token"].as_str();
        let is_sentence_piece = model["byte_fallback"] == true;
        let mut place = |id: Option<u64>, token: &str, kind: i32| {
            let id = id.and_then(|id| usize::try_from(id).ok());
            let Some(slot) = id.and_then(|id| tokens.get_mut(id)) else { return false };
            *slot = Some((token.to_owned(), kind));
            true
        };
        for (token, id) in model["vocab"].as_object().into_iter().flatten() {
            let kind = match token.as_str() {
                token if is_sentence_piece && is_byte(token) => BYTE,
                token if is_sentence_piece && Some(token) == unknown => UNKNOWN,
                _ => NORMAL,
            };
            if !place(id.as_u64(), token, kind) {
                let problem = "has a token beyond the embedding's rows";
                return Err(unsupported(format!("it {problem}: `{token}`")));
            }
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str().unwrap_or_default();
            let kind = match added["special"] == true {
                true if is_sentence_piece && Some(token) == unknown => UNKNOWN,
                true => CONTROL,
                false => USER_DEFINED,
            };
            // Without a row, such as a padding token that was added later, none is ever used.
            place(added["id"].as_u64(), token, kind);
        }
        let named = |(id, token): (usize, Option<(String, i32)>)| {
            token.unwrap_or_else(|| (format!("[PAD{id}]"), UNUSED))
        };
        let (tokens, kinds): (Vec<String>, Vec<i32>) =
            tokens.into_iter().enumerate().map(named).unzip();
        let ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        if ids.len() < tokens.len() {
            return Err(unsupported("it has two tokens of one spelling"));
        }
        Ok(Self { tokens, kinds, ids, is_sentence_piece })
    }

    /// The id, if the embedding has a row of it: others are never used.
    fn row(&self, id: u64) -> Option<u32> {
        u32::try_from(id).ok().filter(|id| (*id as usize) < self.tokens.len())
    }

    fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// As files spell them: SentencePiece's own tokens of blanks, such as Gemma's, with spaces.
    fn stored(&self) -> Vec<String> {
        let stored = |(token, &kind): (&String, &i32)| {
            let has_blanks = self.is_sentence_piece && kind == USER_DEFINED;
            if has_blanks { token.replace('\u{2581}', " ") } else { token.clone() }
        };
        self.tokens.iter().zip(&self.kinds).map(stored).collect()
    }

    /// A score for each token, with which the search by scores comes to what the merges do: the
    /// earlier the first merge that makes it, the higher.
    ///
    /// # Errors
    /// If two tokens make another that no merge makes of them: the search would.
    fn scores(&self, merges: &[(&str, &str)]) -> Result<Vec<f32>, GgufExportError> {
        let pairs: HashSet<(&str, &str)> = merges.iter().copied().collect();
        for (token, &kind) in self.tokens.iter().zip(&self.kinds) {
            let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let is_missing = |(left, right): &(&str, &str)| {
                self.ids.contains_key(*left)
                    && self.ids.contains_key(*right)
                    && !pairs.contains(&(*left, *right))
            };
            let is_searched = matches!(kind, NORMAL | USER_DEFINED);
            if let Some((left, right)) = halves.filter(|_| is_searched).find(|of| is_missing(of)) {
                return Err(unsupported(format!(
                    "no merge makes `{token}` of `{left}` and `{right}`"
                )));
            }
        }
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (rank, (left, right)) in merges.iter().enumerate() {
            ranks.entry(format!("{left}{right}")).or_insert(rank);
        }
        let score = |(token, &kind): (&String, &i32)| match (kind, ranks.get(token)) {
            (NORMAL | USER_DEFINED, Some(&rank)) => -(rank as f32),
            (NORMAL, None) if token.chars().count() == 1 => 0.0,
            _ => LAST,
        };
        // Beyond it not every rank is a float.
        if merges.len() > 1 << 24 {
            return Err(unsupported("it has too many merges"));
        }
        Ok(self.tokens.iter().zip(&self.kinds).map(score).collect())
    }
}

/// `<0x00>` to `<0xFF>`.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// Pairs of pieces, in either form in which files have them.
fn merges(model: &Value) -> Result<Vec<(&str, &str)>, GgufExportError> {
    fn pair(merge: &Value) -> Option<(&str, &str)> {
        match merge {
            Value::String(text) => text.split_once(' '),
            pair => Some((pair.get(0)?.as_str()?, pair.get(1)?.as_str()?)),
        }
    }
    let merges = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let merges: Option<Vec<_>> = merges.iter().map(pair).collect();
    let is_whole = |(left, right): &(&str, &str)| !left.contains(' ') && !right.contains(' ');
    merges
        .filter(|merges| merges.iter().all(is_whole))
        .ok_or_else(|| unsupported("it has merges of pieces with spaces"))
}

/// Whether a space is put before a text.
fn space_prefix(tokenizer: &Value) -> Result<bool, GgufExportError> {
    let steps = |value: &Value, key: &str| -> Vec<Value> {
        match value["type"].as_str() {
            Some("Sequence") => value[key].as_array().cloned().unwrap_or_default(),
            Some(_) => vec![value.clone()],
            None => Vec::new(),
        }
    };
    let normalizers = steps(&tokenizer["normalizer"], "normalizers");
    let splits = steps(&tokenizer["pre_tokenizer"], "pretokenizers");
    let (mut prepends, mut replaces) = (false, false);
    for step in &normalizers {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == "\u{2581}" => prepends = true,
            Some("Replace")
                if step["pattern"]["String"] == " " && step["content"] == "\u{2581}" =>
            {
                replaces = true;
            }
            other => {
                let other = other.unwrap_or("unknown");
                return Err(unsupported(format!("its text is normalised by {other}")));
            }
        }
    }
    match &splits[..] {
        [] if replaces => Ok(prepends),
        [step] if step["type"] == "Metaspace" && step["split"] == false => {
            Ok(step["prepend_scheme"] != "never" && step["add_prefix_space"] != false)
        }
        // Gemma's, which cuts where nothing is left to cut.
        [step] if replaces && step["type"] == "Split" && step["pattern"]["String"] == " " => {
            Ok(prepends)
        }
        _ => Err(unsupported("its text is cut in a way that files have no name for")),
    }
}

/// The name of how text is cut before pairs are merged: that which other programs give the
/// tokenizer by its fingerprint, unless its own expression says otherwise. Where the expression is
/// written in a way that is not known, the fingerprint's name stands, and whoever writes the file
/// compares what becomes of texts.
fn splits(tokenizer: &Value, fingerprint: &[u32]) -> Result<&'static str, GgufExportError> {
    let ignores = tokenizer["model"]["ignore_merges"] == true;
    let said = Splits::all().find(|splits| {
        plain(&splits.pre_tokenizer()) == plain(&tokenizer["pre_tokenizer"])
            && plain(&splits.normalizer()) == plain(&tokenizer["normalizer"])
            && splits.ignores_merges == ignores
    });
    let found = tokenizer_name(fingerprint);
    match (said, found) {
        (None, Some(found)) => Ok(found),
        (Some(said), Some(found)) if said.has_name(found) => Ok(found),
        (Some(said), _) => Ok(said.name()),
        (None, None) => Err(unsupported(
            "its text is cut in a way that files have no name for (`pre_tokenizer`)",
        )),
    }
}

/// A step without what changes nothing: sequences of one, and defaults that are written out.
fn plain(step: &Value) -> Value {
    let mut plain = match (step["pretokenizers"].as_array(), step["normalizers"].as_array()) {
        (Some(steps), _) | (None, Some(steps)) if steps.len() == 1 => {
            return self::plain(&steps[0]);
        }
        (Some(steps), _) | (None, Some(steps)) => {
            return steps.iter().map(self::plain).collect::<Vec<_>>().into();
        }
        (None, None) => step.clone(),
    };
    if let Some(object) = plain.as_object_mut() {
        object.remove("trim_offsets");
        for (key, default) in [
            ("use_regex", json!(true)),
            ("invert", json!(false)),
            ("add_prefix_space", json!(false)),
        ] {
            if object.get(key) == Some(&default) {
                object.remove(key);
            }
        }
    }
    plain
}

/// Special tokens, and which of them a text is given.
struct Marks {
    ids: BTreeMap<&'static str, u32>,
    adds_bos: bool,
    adds_eos: bool,
}

impl Marks {
    fn of(texts: &ModelTexts, vocabulary: &Vocabulary) -> Result<Self, GgufExportError> {
        let config = &texts.tokenizer_config;
        let named = |key: &str| {
            let token = config[key].as_str().or(config[key]["content"].as_str())?;
            vocabulary.id(token)
        };
        let mut ids = BTreeMap::new();
        for (name, key) in [
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("unknown", "unk_token"),
            ("padding", "pad_token"),
        ] {
            let of_model = || texts.config.get(format!("{key}_id")).and_then(Value::as_u64);
            let id = named(key).or_else(|| of_model().and_then(|id| vocabulary.row(id)));
            ids.extend(id.map(|id| (name, id)));
        }
        // What ends a turn besides the end of a text.
        let ends =
            [&texts.generation, &texts.config].into_iter().find_map(|of| of.get("eos_token_id"));
        let ends: Vec<u32> = match ends {
            Some(Value::Array(ids)) => {
                ids.iter().filter_map(Value::as_u64).filter_map(|id| vocabulary.row(id)).collect()
            }
            Some(id) => id.as_u64().and_then(|id| vocabulary.row(id)).into_iter().collect(),
            None => Vec::new(),
        };
        if let Some(&end) = ends.first() {
            ids.entry("eos").or_insert(end);
        }
        let mut others: Vec<u32> = Vec::new();
        for id in ends {
            if ids.get("eos") != Some(&id) && !others.contains(&id) {
                others.push(id);
            }
        }
        if others.len() > FURTHER_ENDS.len() {
            return Err(unsupported(
                "more than three tokens end a text; leave some out of eos_token_id in \
                 generation_config.json",
            ));
        }
        ids.extend(FURTHER_ENDS.into_iter().zip(others));
        let (adds_bos, adds_eos) = added(&texts.tokenizer["post_processor"], &ids, vocabulary);
        Ok(Self { ids, adds_bos, adds_eos })
    }
}

/// Of tokens that end a turn or a message, besides that of a text.
const FURTHER_ENDS: [&str; 2] = ["eot", "eom"];

/// Whether a text is given BOS and EOS.
fn added(step: &Value, ids: &BTreeMap<&str, u32>, vocabulary: &Vocabulary) -> (bool, bool) {
    if let Some(steps) = step["processors"].as_array() {
        let of = steps.iter().map(|step| added(step, ids, vocabulary));
        return of.fold((false, false), |all, one| (all.0 || one.0, all.1 || one.1));
    }
    let parts = step["single"].as_array().map_or(&[][..], Vec::as_slice);
    let is = |part: Option<&Value>, name: &str| {
        let token = part.and_then(|part| part["SpecialToken"]["id"].as_str());
        let id = token.and_then(|token| vocabulary.id(token));
        id.is_some() && id == ids.get(name).copied()
    };
    (is(parts.first(), "bos"), parts.len() > 1 && is(parts.last(), "eos"))
}
