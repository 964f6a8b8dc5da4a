//! A model directory's tokenizer: text to ids with byte offsets, ids to text, special tokens, and
//! the chat template that comes with it. Training of tokenizers is left out.

mod files;

use crate::chat::{ChatTemplate, TemplateTokens};
use crate::error::DataError;
use crate::parallel;
use files::Files;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tokenizers::PostProcessorWrapper;

/// Tokens with where they come from in the text.
#[derive(Debug, Clone, Default)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range of each token in the text that was encoded.
    pub offsets: Vec<(usize, usize)>,
    /// Whether the tokenizer added the token itself (BOS and the like).
    pub is_added: Vec<bool>,
}

impl Encoded {
    /// Removes special tokens that the tokenizer added next to the same ones of the text. At the
    /// beginning, the text's own then count as added.
    pub(crate) fn drop_duplicate_special_tokens(&mut self) {
        while let ([added, own, ..], [true, false, ..]) = (&self.ids[..], &self.is_added[..])
            && added == own
        {
            self.remove(0);
            self.is_added[0] = true;
        }
        while let ([.., own, added], [.., false, true]) = (&self.ids[..], &self.is_added[..])
            && added == own
        {
            self.remove(self.ids.len() - 1);
        }
    }

    fn remove(&mut self, index: usize) {
        self.ids.remove(index);
        self.offsets.remove(index);
        self.is_added.remove(index);
    }
}

/// A tokenizer in Hugging Face layout.
pub struct Tokenizer {
    /// What it was read from.
    file: PathBuf,
    inner: tokenizers::Tokenizer,
    vocab_size: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
    mask_token_id: Option<u32>,
    stop_token_ids: Vec<u32>,
    chat_template: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, where present, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `generation_config.json`, `config.json` and
    /// `chat_template.jinja` from `dir`.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        Self::read(Files::of_dir(dir))
    }

    /// The same from texts that stand for these files, by their names: what another kind of file,
    /// `path`, says of its tokenizer. Errors name that file.
    pub fn from_texts(
        path: &Path,
        texts: &BTreeMap<&'static str, String>,
    ) -> Result<Self, DataError> {
        Self::read(Files::of_texts(path, texts))
    }

    fn read(files: Files<'_>) -> Result<Self, DataError> {
        let (mut inner, num_ids) = read_tokenizer(files)?;
        prepare(&mut inner, files)?;
        let config = files.object("tokenizer_config.json")?;
        let generation = files.object("generation_config.json")?;
        let model = files.object("config.json")?;
        let named = named_tokens(&files.object("special_tokens_map.json")?, &config);
        add_as_configured(&mut inner, files, &config, &named)?;
        let id_of = |name: &str| special_id(&inner, files, name, &named, &[&generation, &model]);
        let (bos_token_id, eos_token_id) = (id_of("bos_token")?, id_of("eos_token")?);
        // Decoders have one that nobody asks for, maybe of another tokenizer.
        let mask_token_id = id_of("mask_token").unwrap_or_default();
        let mut stop_token_ids = ids_of(generation.get("eos_token_id"));
        stop_token_ids.extend(eos_token_id);
        stop_token_ids.sort_unstable();
        stop_token_ids.dedup();
        let chat_template = match template_sources(files, &config)? {
            Some((default, tool_use)) => {
                // A token that also begins texts ends no turn.
                let stop = stop_token_ids.iter().filter(|id| Some(**id) != bos_token_id);
                let stop = stop.filter_map(|id| inner.id_to_token(*id)).collect();
                let tokens = TemplateTokens { special: named, added: added_tokens(&inner), stop };
                let template = ChatTemplate::new(&default, tool_use.as_deref(), tokens);
                Some(template.map_err(|what| template_error(files, &what))?)
            }
            None => None,
        };
        let added = inner.get_added_tokens_decoder().into_keys().max();
        let vocab_size = num_ids.max(added.map_or(0, |id| id as usize + 1));
        let file = files.tokenizer();
        Ok(Self {
            file,
            inner,
            vocab_size,
            bos_token_id,
            eos_token_id,
            mask_token_id,
            stop_token_ids,
            chat_template,
        })
    }

    /// Token ids of `text`, with the tokenizer's own special tokens (such as BOS) where asked.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, DataError> {
        let encoding =
            self.inner.encode_fast(text, add_special_tokens).map_err(failed(&self.file))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As `encode`, with each token's byte range in `text`.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Encoded, DataError> {
        let encoding = self.inner.encode(text, add_special_tokens).map_err(failed(&self.file))?;
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            is_added: encoding.get_special_tokens_mask().iter().map(|m| *m == 1).collect(),
        })
    }

    /// `encode_with_offsets` of many texts on several threads, in their order.
    pub fn encode_all(
        &self,
        texts: &[String],
        add_special_tokens: bool,
        num_threads: usize,
    ) -> Vec<Result<Encoded, DataError>> {
        let encode = |text: &String| self.encode_with_offsets(text, add_special_tokens);
        parallel::map(num_threads, texts, encode)
    }

    /// Text of `ids`; special tokens are left out where asked.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, DataError> {
        self.inner.decode(ids, skip_special_tokens).map_err(failed(&self.file))
    }

    /// Decodes token by token what follows `context`, which may be empty.
    pub fn decode_stream(&self, context: &[u32], skip_special_tokens: bool) -> DecodeStream<'_> {
        let ids = context.to_vec();
        DecodeStream { tokenizer: self, skip_special_tokens, num_read: ids.len(), ids }
    }

    /// Highest token id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The begin-of-text token.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.bos_token_id
    }

    /// The end-of-text token.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.eos_token_id
    }

    /// The token that hides another from an encoder, which is to predict it.
    pub fn mask_token_id(&self) -> Option<u32> {
        self.mask_token_id
    }

    /// Tokens that stand for no text.
    pub fn special_token_ids(&self) -> Vec<u32> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        added.filter(|(_, token)| token.special).map(|(id, _)| id).collect()
    }

    /// Every token that ends generation: `generation_config.json`'s and the end-of-text token,
    /// sorted.
    pub fn stop_token_ids(&self) -> &[u32] {
        &self.stop_token_ids
    }

    /// The model's chat template.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Fixes the date that the chat template sees; see [`ChatTemplate::set_now`].
    pub fn set_now(&mut self, unix_seconds: i64) {
        if let Some(template) = &mut self.chat_template {
            template.set_now(unix_seconds);
        }
    }
}

/// Text of a growing sequence of tokens, given out as it becomes whole: characters whose bytes are
/// spread over several tokens come out once all of them are there.
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The last tokens whose text was given out, then those that wait. Decoding both together and
    /// cutting off the first part's text keeps what decoders do at a text's start (such as
    /// dropping a space) away from its middle.
    ids: Vec<u32>,
    num_read: usize,
}

impl DecodeStream<'_> {
    /// Adds a token and returns the text that became whole, often empty.
    pub fn push(&mut self, id: u32) -> Result<String, DataError> {
        self.ids.push(id);
        let text = self.waiting_text()?;
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.ids.drain(..self.num_read);
        self.num_read = self.ids.len();
        Ok(text)
    }

    /// What still waits at the end: nothing, unless the sequence stopped inside a character.
    pub fn finish(self) -> Result<String, DataError> {
        self.waiting_text()
    }

    fn waiting_text(&self) -> Result<String, DataError> {
        let skip = self.skip_special_tokens;
        let read = self.tokenizer.decode(&self.ids[..self.num_read], skip)?;
        let all = self.tokenizer.decode(&self.ids, skip)?;
        Ok(all.get(read.len()..).unwrap_or_default().to_owned())
    }
}

/// What the tokenizers library says of a file.
fn failed<E: std::fmt::Display>(file: &Path) -> impl FnOnce(E) -> DataError {
    move |error| {
        let what = format!("the tokenizer failed: {error}");
        DataError::tokenizer(file.display(), what, "check the model's own file")
    }
}

fn template_error(files: Files<'_>, what: &str) -> DataError {
    DataError::tokenizer(
        files.path().display(),
        format!("the chat template cannot be used: {what}"),
        "correct chat_template.jinja, or chat_template in tokenizer_config.json",
    )
}

/// The tokenizer, and the highest id of its model plus one.
fn read_tokenizer(files: Files<'_>) -> Result<(tokenizers::Tokenizer, usize), DataError> {
    let (name, bytes) = (files.tokenizer().display().to_string(), files.tokenizer_json()?);
    let fix = files::NEEDED;
    let refused =
        |what: String| DataError::tokenizer(&name, format!("not a tokenizer: {what}"), fix);
    let parts = serde_json::from_slice::<Parts>(&bytes).map_err(|e| refused(e.to_string()))?;
    let inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| refused(e.to_string()))?;
    Ok((inner, parts.model.vocab.0))
}

/// Parts of a tokenizer.json that are read besides the library.
#[derive(Deserialize)]
struct Parts {
    /// The library takes it to be JSON that can be read, strings and numbers included: it panics
    /// where it cannot.
    #[serde(rename = "decoder")]
    _decoder: Option<Value>,
    #[serde(default)]
    model: ModelPart,
}

#[derive(Deserialize, Default)]
struct ModelPart {
    #[serde(default)]
    vocab: NumIds,
}

/// Highest id of a vocabulary plus one. The library gives only copies of the whole.
#[derive(Default)]
struct NumIds(usize);

impl<'de> Deserialize<'de> for NumIds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl<'de> Visitor<'de> for Ids {
            type Value = NumIds;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a vocabulary")
            }

            /// Ids by token.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NumIds, A::Error> {
                let mut num_ids = 0;
                while let Some((IgnoredAny, id)) = map.next_entry::<_, u32>()? {
                    num_ids = num_ids.max(id as usize + 1);
                }
                Ok(NumIds(num_ids))
            }

            /// Tokens in the order of their ids.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NumIds, A::Error> {
                let mut num_ids = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    num_ids += 1;
                }
                Ok(NumIds(num_ids))
            }
        }
        deserializer.deserialize_any(Ids)
    }
}

/// Switches off what would silently change rows: truncation, padding, and offsets that leave out
/// the spaces a token holds.
fn prepare(inner: &mut tokenizers::Tokenizer, files: Files<'_>) -> Result<(), DataError> {
    inner.with_padding(None);
    inner.with_truncation(None).map_err(failed(&files.tokenizer()))?;
    let Some(processor) = inner.get_post_processor() else { return Ok(()) };
    let mut json = serde_json::to_value(processor).map_err(failed(&files.tokenizer()))?;
    if let Some(mark) = undefined_mark(&json) {
        return Err(DataError::tokenizer(
            files.tokenizer().display(),
            format!("its post_processor adds {mark:?}, which it does not define"),
            "restore the model's own tokenizer.json",
        ));
    }
    keep_spaces(&mut json);
    let processor =
        serde_json::from_value::<PostProcessorWrapper>(json).map_err(failed(&files.tokenizer()))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}

/// A special token that a template of a post-processor names without defining it; the library
/// panics on the first text then.
fn undefined_mark(json: &Value) -> Option<&str> {
    match json {
        Value::Object(map) => {
            let pieces = ["single", "pair"].into_iter().filter_map(|key| map.get(key)?.as_array());
            let mut named =
                pieces.flatten().filter_map(|piece| piece["SpecialToken"]["id"].as_str());
            let is_defined =
                |id: &str| map.get("special_tokens").is_none_or(|t| t.get(id).is_some());
            named.find(|id| !is_defined(id)).or_else(|| map.values().find_map(undefined_mark))
        }
        Value::Array(items) => items.iter().find_map(undefined_mark),
        _ => None,
    }
}

fn keep_spaces(json: &mut Value) {
    match json {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "trim_offsets" {
                    *value = Value::Bool(false);
                }
                keep_spaces(value);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(keep_spaces),
        _ => {}
    }
}

/// `add_bos_token` and `add_eos_token` of `tokenizer_config.json` say what is added before and
/// after a text. A side whose key is absent stays as `tokenizer.json` has it.
fn add_as_configured(
    inner: &mut tokenizers::Tokenizer,
    files: Files<'_>,
    config: &Map<String, Value>,
    named: &Map<String, Value>,
) -> Result<(), DataError> {
    let asked = |key: &str| config.get(key).and_then(Value::as_bool);
    let (bos, eos) = (asked("add_bos_token"), asked("add_eos_token"));
    if bos.is_none() && eos.is_none() {
        return Ok(());
    }
    let (before, after) = added_around(inner, files)?;
    let side = |asked: Option<bool>, name: &str, as_it_is: &[Mark]| match asked {
        None => as_it_is.to_vec(),
        Some(false) => Vec::new(),
        Some(true) => {
            let text = named.get(name).and_then(Value::as_str);
            let mark = text.and_then(|text| Some((text.to_owned(), inner.token_to_id(text)?)));
            mark.into_iter().collect()
        }
    };
    let wanted = (side(bos, "bos_token", &before), side(eos, "eos_token", &after));
    if wanted == (before, after) {
        return Ok(());
    }
    inner.with_post_processor(Some(adding(wanted, files)?));
    Ok(())
}

/// A special token: its text and its id.
type Mark = (String, u32);

/// What the tokenizer adds before and after a text.
fn added_around(
    inner: &tokenizers::Tokenizer,
    files: Files<'_>,
) -> Result<(Vec<Mark>, Vec<Mark>), DataError> {
    let sample = inner.encode("a", true).map_err(failed(&files.tokenizer()))?;
    let is_added = sample.get_special_tokens_mask();
    let marks = |range: Range<usize>| {
        let ids = &sample.get_ids()[range];
        ids.iter().filter_map(|&id| Some((inner.id_to_token(id)?, id))).collect()
    };
    let len = is_added.len();
    let first = is_added.iter().position(|&added| added == 0).unwrap_or(len);
    let last = is_added.iter().rposition(|&added| added == 0).map_or(len, |at| at + 1);
    Ok((marks(0..first), marks(last..len)))
}

/// A post-processor that adds these marks before and after a text.
fn adding(
    (before, after): (Vec<Mark>, Vec<Mark>),
    files: Files<'_>,
) -> Result<PostProcessorWrapper, DataError> {
    let special = |mark: &Mark| json!({"SpecialToken": {"id": mark.0, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let mut single = before.iter().map(special).collect::<Vec<_>>();
    single.push(text);
    single.extend(after.iter().map(special));
    let entry =
        |(text, id): Mark| (text.clone(), json!({"id": text, "ids": [id], "tokens": [text]}));
    let special_tokens = before.into_iter().chain(after).map(entry).collect::<Map<_, _>>();
    let pair = json!([{"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}}]);
    let json = json!({"type": "TemplateProcessing", "single": single, "pair": pair,
        "special_tokens": special_tokens});
    serde_json::from_value(json).map_err(failed(&files.tokenizer()))
}

/// The `*_token` entries of both files as strings; `tokenizer_config.json` wins.
fn named_tokens(map: &Map<String, Value>, config: &Map<String, Value>) -> Map<String, Value> {
    let mut named = Map::new();
    for (key, value) in map.iter().chain(config) {
        let text = value.as_str().or_else(|| value.get("content")?.as_str());
        if let (true, Some(text)) = (key.ends_with("_token"), text) {
            named.insert(key.clone(), text.into());
        }
    }
    named
}

fn ids_of(value: Option<&Value>) -> Vec<u32> {
    let as_id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(items)) => items.iter().filter_map(as_id).collect(),
        Some(value) => as_id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Id of a special token: by its text, or where no text is given, from the configurations' ids.
fn special_id(
    inner: &tokenizers::Tokenizer,
    files: Files<'_>,
    name: &str,
    named: &Map<String, Value>,
    configs: &[&Map<String, Value>],
) -> Result<Option<u32>, DataError> {
    let Some(text) = named.get(name).and_then(Value::as_str) else {
        let key = format!("{name}_id");
        return Ok(configs.iter().find_map(|c| ids_of(c.get(&key)).first().copied()));
    };
    inner.token_to_id(text).map(Some).ok_or_else(|| {
        DataError::tokenizer(
            files.path().display(),
            format!("the tokenizer has no token {text:?}, which {name} names"),
            "correct tokenizer_config.json or special_tokens_map.json",
        )
    })
}

/// Texts of all added tokens, which templates use as marks.
fn added_tokens(inner: &tokenizers::Tokenizer) -> Vec<String> {
    let decoder = inner.get_added_tokens_decoder();
    let mut texts = decoder.values().map(|t| t.content.clone()).collect::<Vec<_>>();
    texts.sort();
    texts
}

type Sources = (String, Option<String>);

/// Where transformers writes the template for rows with tools.
const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";

/// The default template and, where there is one, that for rows with tools.
fn template_sources(
    files: Files<'_>,
    config: &Map<String, Value>,
) -> Result<Option<Sources>, DataError> {
    if let Some(source) = files.text("chat_template.jinja")? {
        return Ok(Some((source, files.text(TOOL_USE)?)));
    }
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some((source.clone(), files.text(TOOL_USE)?))),
        Some(Value::Array(entries)) => {
            let find = |name: &str| {
                let entry = entries.iter().find(|e| e["name"] == name)?;
                entry["template"].as_str().map(str::to_owned)
            };
            let default = find("default")
                .ok_or_else(|| template_error(files, "the list has no entry named \"default\""))?;
            Ok(Some((default, find("tool_use"))))
        }
        Some(_) => Err(template_error(files, "neither a string nor a list of named templates")),
    }
}
