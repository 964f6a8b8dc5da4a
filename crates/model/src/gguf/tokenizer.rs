//! Metadata as the `tokenizer.json` and `tokenizer_config.json` of a model directory.

use super::merges::{self, Merges};
use super::metadata::Metadata;
use super::splits::{PLAIN_TEXT, Splits, byte_level};
use crate::raw_config::ConfigError;
use hone_tensor::gguf::{Array, Value};
use serde::{Serialize, Serializer};
use serde_json::{Map, json};
use std::borrow::Cow;
use std::collections::BTreeMap;

const MODEL: &str = "tokenizer.ggml.model";
/// Gemma 4's, which is SentencePiece's with the merges written out.
const GEMMA4: &str = "gemma4";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const INSTEAD: &str = "give the model's directory in Hugging Face layout instead";
/// Longer tokens than any vocabulary has.
const MAX_TOKEN_BYTES: usize = 4096;
/// More tokens than any vocabulary has: what is made of one takes many times its bytes.
const MAX_TOKENS: usize = 1 << 19;

/// Kinds of tokens, as files number them.
const UNDEFINED: u8 = 0;
const NORMAL: u8 = 1;
const CONTROL: u8 = 3;
const USER_DEFINED: u8 = 4;

/// A `tokenizer.json`.
#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'static str,
    truncation: (),
    padding: (),
    added_tokens: Vec<Added<'a>>,
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    post_processor: serde_json::Value,
    decoder: serde_json::Value,
    model: Bpe<'a>,
}

/// A token that is found in text before anything else.
#[derive(Serialize)]
struct Added<'a> {
    id: usize,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

#[derive(Serialize)]
struct Bpe<'a> {
    r#type: &'static str,
    dropout: (),
    unk_token: Option<&'a str>,
    continuing_subword_prefix: (),
    end_of_word_suffix: (),
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    #[serde(serialize_with = "as_map")]
    vocab: &'a [Cow<'a, str>],
    merges: Merges<'a>,
}

fn as_map<S: Serializer>(tokens: &&[Cow<'_, str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(tokens.iter().zip(0u32..))
}

/// Special tokens, by the names of `tokenizer_config.json`.
struct Special {
    ids: BTreeMap<&'static str, u32>,
    adds_bos: bool,
    adds_eos: bool,
}

/// `tokenizer.json` and `tokenizer_config.json`; empty if the file holds no tokenizer.
pub(super) fn texts(
    metadata: &Metadata<'_>,
    architecture: &str,
) -> Result<BTreeMap<&'static str, String>, ConfigError> {
    let kind = match metadata.text(MODEL)? {
        None | Some("no_vocab" | "none") => return Ok(BTreeMap::new()),
        Some(kind @ ("gpt2" | "llama" | GEMMA4)) => kind,
        Some(other) => {
            let problem = format!(
                "is `{other}`, and only `gpt2`, `llama` and `{GEMMA4}` are read: {INSTEAD}"
            );
            return Err(metadata.error(MODEL, problem));
        }
    };
    let vocabulary = Vocabulary::read(metadata, kind, architecture)?;
    let splits = match kind {
        // Its name says how text is cut, whatever the file says besides.
        GEMMA4 => &PLAIN_TEXT,
        _ => splits(metadata)?,
    };
    let special = special(metadata, kind, &vocabulary, splits)?;
    let tokenizer = match kind {
        "gpt2" => byte_level_bpe(metadata, &vocabulary, &special, splits)?,
        _ => sentence_piece(metadata, &vocabulary, &special, (kind, architecture))?,
    };
    let config = config(metadata, &vocabulary, &special, architecture)?;
    let text = serde_json::to_string(&tokenizer).expect("plain data can be written");
    let config = serde_json::to_string_pretty(&config).expect("plain data can be written");
    Ok(BTreeMap::from([("tokenizer.json", text), ("tokenizer_config.json", config)]))
}

fn splits(metadata: &Metadata<'_>) -> Result<&'static Splits, ConfigError> {
    let key = "tokenizer.ggml.pre";
    let name = metadata.text(key)?.unwrap_or("default");
    Splits::named(name).ok_or_else(|| {
        let names = Splits::names();
        let problem = format!("is `{name}`, which is not known: {INSTEAD}. Known: {names}");
        metadata.error(key, problem)
    })
}

/// Tokens, spelled as the tokenizer looks them up, and their kinds.
struct Vocabulary<'a> {
    tokens: Vec<Cow<'a, str>>,
    types: Vec<u8>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &Metadata<'a>, kind: &str, architecture: &str) -> Result<Self, ConfigError> {
        let Some(array) = array(metadata, TOKENS)? else {
            return Err(metadata.error(TOKENS, "is missing: fetch the model again"));
        };
        let num_tokens = array.len();
        if num_tokens > MAX_TOKENS {
            let problem = format!("has {num_tokens} tokens, and at most {MAX_TOKENS} are read");
            return Err(metadata.error(TOKENS, problem));
        }
        let types = of_tokens(metadata, TYPES, num_tokens, |value| match value {
            Value::Integer(n) => Some(u8::try_from(n).unwrap_or(UNDEFINED)),
            _ => None,
        })?;
        let types = types.unwrap_or_else(|| vec![NORMAL; num_tokens]);
        let spaces = kind == GEMMA4 || architecture.starts_with("gemma");
        let mut tokens = Vec::new();
        for (i, (value, &of)) in array.iter().zip(&types).enumerate() {
            let token = match value {
                Ok(Value::Text(text)) if text.len() <= MAX_TOKEN_BYTES => text,
                Ok(Value::Text(_)) => {
                    let problem = format!("has a token of more than {MAX_TOKEN_BYTES} bytes, {i}");
                    return Err(metadata.error(TOKENS, problem));
                }
                Ok(other) => return Err(metadata.unexpected(TOKENS, "texts", other)),
                Err(fault) => return Err(metadata.error(TOKENS, fault)),
            };
            let is_blank = spaces && token.contains(' ') && token.trim().is_empty();
            tokens.push(match kind {
                "gpt2" if of != CONTROL && of != USER_DEFINED => merges::in_byte_letters(token),
                // Gemma's tokens of several spaces are looked up in the form that merges give.
                _ if is_blank => "\u{2581}".repeat(token.chars().count()).into(),
                _ => Cow::Borrowed(token),
            });
        }
        Ok(Self { tokens, types })
    }

    /// Whether a control token is spelled like this.
    fn has_mark(&self, mark: &str) -> bool {
        self.tokens.iter().zip(&self.types).any(|(token, kind)| token == mark && *kind == CONTROL)
    }

    /// Tokens that text is searched for, those of `special` among them.
    fn added(&self, special: &Special) -> Vec<Added<'_>> {
        let marks: Vec<u32> = special.ids.values().copied().collect();
        let kinds = self.tokens.iter().zip(&self.types).enumerate();
        kinds
            .filter_map(|(id, (content, &kind))| {
                let special = kind == CONTROL || marks.contains(&(id as u32));
                let is_added = special || kind == USER_DEFINED;
                // Blanks are merged, not searched for.
                let is_blank = content.chars().all(|c| c == '\u{2581}');
                let added = Added {
                    id,
                    content,
                    single_word: false,
                    lstrip: false,
                    rstrip: false,
                    normalized: false,
                    special,
                };
                (is_added && !is_blank).then_some(added)
            })
            .collect()
    }
}

fn array<'a>(metadata: &Metadata<'a>, key: &str) -> Result<Option<Array<'a>>, ConfigError> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(array)) => Ok(Some(array)),
        Some(other) => Err(metadata.unexpected(key, "a list", other)),
    }
}

/// The elements of a list, each of one kind, one for each token.
fn of_tokens<'a, T>(
    metadata: &Metadata<'a>,
    key: &str,
    num_tokens: usize,
    of: impl Fn(Value<'a>) -> Option<T>,
) -> Result<Option<Vec<T>>, ConfigError> {
    let Some(array) = array(metadata, key)? else { return Ok(None) };
    // Before anything is made of it, which takes several times the memory that it has in the file.
    if array.len() != num_tokens {
        let problem = format!("has {} entries for {num_tokens} tokens", array.len());
        return Err(metadata.error(key, problem));
    }
    let elements = array.iter().map(|element| element.ok().and_then(&of));
    let elements: Option<Vec<T>> = elements.collect();
    elements.map(Some).ok_or_else(|| metadata.error(key, "has elements of another kind"))
}

fn special(
    metadata: &Metadata<'_>,
    kind: &str,
    vocabulary: &Vocabulary<'_>,
    splits: &Splits,
) -> Result<Special, ConfigError> {
    let mut ids = BTreeMap::new();
    // The defaults are llama.cpp's.
    let names = [
        ("bos_token", "bos", Some(1)),
        ("eos_token", "eos", Some(2)),
        ("unk_token", "unknown", Some(0)),
        ("pad_token", "padding", None),
        ("eot_token", "eot", None),
        ("eom_token", "eom", None),
    ];
    for (name, in_file, default) in names {
        let key = format!("tokenizer.ggml.{in_file}_token_id");
        let default = default.filter(|_| kind == "llama");
        let Some(id) = metadata.token_id(&key)?.or(default) else { continue };
        if id as usize >= vocabulary.tokens.len() {
            let problem = format!("is {id}, and there are only {} tokens", vocabulary.tokens.len());
            return Err(metadata.error(&key, problem));
        }
        ids.insert(name, id);
    }
    let asked = |name: &str| metadata.flag(&format!("tokenizer.ggml.add_{name}_token"));
    let adds_bos = asked("bos")?.unwrap_or(kind == "llama" || splits.adds_bos);
    // As llama.cpp has it, since some files say otherwise.
    let adds_bos = adds_bos || kind == GEMMA4;
    let adds_eos = asked("eos")?.unwrap_or(false);
    Ok(Special { ids, adds_bos, adds_eos })
}

fn byte_level_bpe<'v>(
    metadata: &Metadata<'v>,
    vocabulary: &'v Vocabulary<'v>,
    special: &Special,
    splits: &Splits,
) -> Result<TokenizerJson<'v>, ConfigError> {
    let Some(merges) = merges::read(metadata)? else { return Err(without_merges(metadata)) };
    Ok(TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens: vocabulary.added(special),
        normalizer: splits.normalizer(),
        pre_tokenizer: splits.pre_tokenizer(),
        post_processor: post_processor(vocabulary, special),
        decoder: byte_level(true),
        model: Bpe {
            r#type: "BPE",
            dropout: (),
            unk_token: None,
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: splits.ignores_merges,
            vocab: &vocabulary.tokens,
            merges,
        },
    })
}

fn without_merges(metadata: &Metadata<'_>) -> ConfigError {
    metadata.error(merges::MERGES, "is missing: fetch the model again")
}

/// SentencePiece's pairs, with bytes for what has no token.
fn sentence_piece<'v>(
    metadata: &Metadata<'v>,
    vocabulary: &'v Vocabulary<'v>,
    special: &Special,
    (kind, architecture): (&str, &str),
) -> Result<TokenizerJson<'v>, ConfigError> {
    let adds_space = metadata.flag("tokenizer.ggml.add_space_prefix")?;
    let adds_space = adds_space.unwrap_or(kind != GEMMA4);
    let merges = match merges::read(metadata)? {
        Some(merges) => merges,
        None if kind == GEMMA4 => return Err(without_merges(metadata)),
        None => {
            let scores = scores(metadata, vocabulary, architecture)?;
            merges::from_scores(&vocabulary.tokens, &scores)
        }
    };
    let replace = |from: &str, to: &str| {
        let pattern = json!({"String": from});
        json!({"type": "Replace", "pattern": pattern, "content": to})
    };
    let mut decoders =
        vec![replace("\u{2581}", " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if adds_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let (mut normalizer, mut pre_tokenizer) = (replace(" ", "\u{2581}"), serde_json::Value::Null);
    if adds_space && vocabulary.has_mark("[INST]") {
        // Of Mistral's later tokenizers, whose templates put a space after their marks.
        normalizer = serde_json::Value::Null;
        pre_tokenizer = json!({
            "type": "Metaspace",
            "replacement": "\u{2581}",
            "prepend_scheme": "first",
            "split": false,
        });
    } else if adds_space {
        let prepend = json!({"type": "Prepend", "prepend": "\u{2581}"});
        normalizer = json!({"type": "Sequence", "normalizers": [prepend, normalizer]});
    }
    let mut added_tokens = vocabulary.added(special);
    if architecture == "phi3" {
        // llama.cpp does so if the model's name says Phi-3; these are all that are SentencePiece.
        let keeps = ["<unk>", "<s>", "<|endoftext|>"];
        added_tokens.iter_mut().for_each(|token| token.rstrip = !keeps.contains(&token.content));
    }
    let unknown = special.ids.get("unk_token");
    Ok(TokenizerJson {
        version: "1.0",
        truncation: (),
        padding: (),
        added_tokens,
        normalizer,
        pre_tokenizer,
        post_processor: post_processor(vocabulary, special),
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: Bpe {
            r#type: "BPE",
            dropout: (),
            unk_token: unknown.map(|&id| vocabulary.tokens[id as usize].as_ref()),
            continuing_subword_prefix: (),
            end_of_word_suffix: (),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: &vocabulary.tokens,
            merges,
        },
    })
}

/// What decides which pair is merged first: the higher the earlier.
fn scores(
    metadata: &Metadata<'_>,
    vocabulary: &Vocabulary<'_>,
    architecture: &str,
) -> Result<Vec<f64>, ConfigError> {
    let num_tokens = vocabulary.tokens.len();
    if architecture.starts_with("gemma") {
        // Gemma's scores do not follow its merges; the order of its tokens does.
        return Ok((0..num_tokens).map(|id| -(id as f64)).collect());
    }
    let key = "tokenizer.ggml.scores";
    let scores = of_tokens(metadata, key, num_tokens, |value| match value {
        Value::Float(x) if !x.is_nan() => Some(x),
        _ => None,
    })?;
    scores.ok_or_else(|| metadata.error(key, "is missing: fetch the model again"))
}

/// Adds BOS and EOS to a text, as the file says.
fn post_processor(vocabulary: &Vocabulary<'_>, special: &Special) -> serde_json::Value {
    let mark = |name: &str, is_added: bool| {
        let id = *special.ids.get(name).filter(|_| is_added)?;
        Some((vocabulary.tokens[id as usize].as_ref(), id))
    };
    let (bos, eos) = (mark("bos_token", special.adds_bos), mark("eos_token", special.adds_eos));
    if bos.is_none() && eos.is_none() {
        return serde_json::Value::Null;
    }
    let around = |parts: &[(&str, usize)]| {
        let mut pieces = Vec::new();
        for &(part, kind) in parts {
            let token = |(token, _)| json!({"SpecialToken": {"id": token, "type_id": kind}});
            pieces.extend(bos.map(token));
            pieces.push(json!({"Sequence": {"id": part, "type_id": kind}}));
            pieces.extend(eos.map(token));
        }
        pieces
    };
    let entry = |(token, id): (&str, u32)| {
        (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
    };
    let special_tokens: Map<_, _> = [bos, eos].into_iter().flatten().map(entry).collect();
    json!({
        "type": "TemplateProcessing",
        "single": around(&[("A", 0)]),
        "pair": around(&[("A", 0), ("B", 1)]),
        "special_tokens": special_tokens,
    })
}

fn config(
    metadata: &Metadata<'_>,
    vocabulary: &Vocabulary<'_>,
    special: &Special,
    architecture: &str,
) -> Result<Map<String, serde_json::Value>, ConfigError> {
    let mut config = Map::new();
    let mut set = |key: &str, value| drop(config.insert(key.to_owned(), value));
    set("tokenizer_class", "PreTrainedTokenizerFast".into());
    set("clean_up_tokenization_spaces", false.into());
    for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        if let Some(&id) = special.ids.get(name) {
            set(name, vocabulary.tokens[id as usize].as_ref().into());
        }
    }
    for (key, is_added, name) in [
        ("add_bos_token", special.adds_bos, "bos_token"),
        ("add_eos_token", special.adds_eos, "eos_token"),
    ] {
        set(key, (is_added && special.ids.contains_key(name)).into());
    }
    if let Some(length) = metadata.size(&format!("{architecture}.context_length"))? {
        set("model_max_length", length.into());
    }
    const TEMPLATE: &str = "tokenizer.chat_template";
    let mut named: Vec<serde_json::Value> = Vec::new();
    let default = metadata.text(TEMPLATE)?;
    let mut keys = metadata.file.keys().filter(|key| key.starts_with(TEMPLATE));
    for (key, name) in
        keys.by_ref().filter_map(|key| Some((key, key.strip_prefix(TEMPLATE)?.strip_prefix('.')?)))
    {
        let template = metadata.text(key)?;
        named.push(json!({"name": name, "template": template}));
    }
    match default {
        Some(default) if named.is_empty() => set("chat_template", default.into()),
        Some(default) => {
            named.insert(0, json!({"name": "default", "template": default}));
            set("chat_template", named.into());
        }
        None if named.is_empty() => {}
        None => set("chat_template", named.into()),
    }
    Ok(config)
}
