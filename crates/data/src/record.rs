//! Record formats: JSON values to documents, prompts with completions, and conversations. Knows
//! neither tokens nor templates.

use crate::chat::Conversation;
use crate::error::{Fix, RecordFault, Setting};
use crate::spec::{Format, RecordSpec};
use serde_json::{Map, Value, json};

/// Field names under which prompt and completion usually come, in the order they are looked for.
const USUAL_FIELDS: [(&str, &str); 3] =
    [("prompt", "completion"), ("question", "answer"), ("prompt", "response")];
const ROLES: [&str; 8] =
    ["system", "developer", "user", "assistant", "tool", "function", "ipython", "observation"];
/// Fields that hold what text-only training would leave out in silence.
const MEDIA_FIELDS: [&str; 6] = ["images", "image", "videos", "video", "audios", "audio"];
/// Fields of a message that say whether it is learnt: OpenAI's, then those of other trainers.
const WEIGHT_FIELDS: [&str; 5] = ["weight", "loss_weight", "train", "training", "loss"];

/// A record of any format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    Text(String),
    Completion { prompt: String, completion: String },
    Chat { conversation: Conversation, keep: Vec<bool> },
    Alpaca(Alpaca),
}

/// An instruction record, before it is known whether there is a chat template.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Alpaca {
    system: String,
    history: Vec<(String, String)>,
    instruction: String,
    input: String,
    output: String,
}

/// The layout of one file's records: a format and, for prompts with completions, its fields.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Layout {
    pub format: Format,
    pub fields: (String, String),
}

impl Layout {
    /// The layout that the specification names, or that the first record shows. Its fault, if it
    /// shows none.
    pub fn of(first: &Value, spec: &RecordSpec) -> Result<Self, RecordFault> {
        let record = object(first)?;
        let is_named = spec.prompt_field.is_some() || spec.completion_field.is_some();
        let format = match spec.format {
            Format::Auto if is_named => Format::PromptCompletion,
            Format::Auto => detect(record)?,
            format => format,
        };
        if is_named && format != Format::PromptCompletion {
            return Err(RecordFault::malformed(
                format!("names of prompt and completion mean nothing to {}", format.name()),
                Fix::from("remove them").or(Setting::FormatAs(Format::PromptCompletion)),
            ));
        }
        let has = |key: &str| record.get(key).is_some_and(|value| !value.is_null());
        let usual = USUAL_FIELDS.iter().find(|(p, c)| has(p) && has(c));
        if format == Format::PromptCompletion && !is_named && usual.is_none() {
            let usual = USUAL_FIELDS.iter().flat_map(|(p, c)| [*p, *c]);
            null_among(record, usual).map_or(Ok(()), Err)?;
            let (prompt, completion) = USUAL_FIELDS[0];
            text_field(record, prompt)?;
            text_field(record, completion)?;
        }
        let usual = usual.unwrap_or(&USUAL_FIELDS[0]);
        let name = |given: &Option<String>, usual: &str| given.clone().unwrap_or(usual.to_owned());
        let fields = (name(&spec.prompt_field, usual.0), name(&spec.completion_field, usual.1));
        Ok(Self { format, fields })
    }

    /// What is told to the user, for example `prompt_completion (question, answer)`.
    pub fn describe(&self) -> String {
        match self.format {
            Format::PromptCompletion => {
                format!("prompt_completion ({}, {})", self.fields.0, self.fields.1)
            }
            format => format.name().to_owned(),
        }
    }

    pub fn parse(&self, value: &Value) -> Result<Record, RecordFault> {
        let record = object(value)?;
        refuse_media(record)?;
        refuse_preferences(record, self.format)?;
        match self.format {
            Format::Text => Ok(Record::Text(text_field(record, "text")?.to_owned())),
            Format::PromptCompletion => Ok(Record::Completion {
                prompt: text_field(record, &self.fields.0)?.to_owned(),
                completion: text_field(record, &self.fields.1)?.to_owned(),
            }),
            Format::Messages => messages(record),
            Format::ShareGpt => sharegpt(record),
            Format::Alpaca => Ok(Record::Alpaca(alpaca(record)?)),
            Format::Auto => unreachable!("a layout's format is decided"),
        }
    }

    /// Fields with text, or with settings for the template, that records of this layout leave
    /// unread.
    pub fn unread<'a>(&'a self, value: &'a Value) -> impl Iterator<Item = &'a str> {
        let read: &[&str] = match self.format {
            Format::Messages => &["messages", "tools", "system"],
            Format::ShareGpt => &["conversations", "tools", "system"],
            Format::Alpaca => &["system", "history", "instruction", "input", "output"],
            Format::Text => &["text"],
            Format::PromptCompletion | Format::Auto => &[],
        };
        let is_field = |key: &str| key == self.fields.0 || key == self.fields.1;
        let is_read = move |key: &str| match self.format {
            Format::PromptCompletion => is_field(key),
            _ => read.contains(&key),
        };
        let holds_text = |key: &str, value: &Value| match value {
            Value::String(text) => !text.is_empty() && key != "id" && !key.ends_with("_id"),
            Value::Object(settings) => key == "chat_template_kwargs" && !settings.is_empty(),
            _ => false,
        };
        let fields = value.as_object().into_iter().flatten();
        fields
            .filter(move |(key, value)| !is_read(key) && holds_text(key, value))
            .map(|(key, _)| key.as_str())
    }
}

pub(crate) fn object(value: &Value) -> Result<&Map<String, Value>, RecordFault> {
    value.as_object().ok_or_else(|| {
        RecordFault::malformed(
            format!("a record must be a JSON object, found {}", kind(value)),
            "write each record as {\"key\": value, …}",
        )
    })
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(crate) fn keys(record: &Map<String, Value>) -> String {
    let names = record.keys().take(8).map(|k| format!("{k:?}")).collect::<Vec<_>>();
    if names.is_empty() { "no keys".into() } else { format!("the keys {}", names.join(", ")) }
}

fn detect(record: &Map<String, Value>) -> Result<Format, RecordFault> {
    let has = |key: &str| record.get(key).is_some_and(|v| !v.is_null());
    let found = [
        (has("messages"), Format::Messages),
        (has("conversations"), Format::ShareGpt),
        (has("instruction") && has("output"), Format::Alpaca),
        (USUAL_FIELDS.iter().any(|(p, c)| has(p) && has(c)), Format::PromptCompletion),
        (has("text"), Format::Text),
    ];
    let found = found.into_iter().filter_map(|(is, f)| is.then_some(f)).collect::<Vec<_>>();
    match found.as_slice() {
        [format] => Ok(*format),
        [] => Err(nothing_detected(record)),
        several => {
            let names = several.iter().map(|f| f.name()).collect::<Vec<_>>().join(" or ");
            Err(RecordFault::malformed(
                format!("the record can be read as {names}"),
                Setting::Format,
            ))
        }
    }
}

fn nothing_detected(record: &Map<String, Value>) -> RecordFault {
    let usual = USUAL_FIELDS.iter().flat_map(|(p, c)| [*p, *c]);
    let known = usual.chain(["messages", "conversations", "instruction", "output", "text"]);
    null_among(record, known).unwrap_or_else(|| {
        RecordFault::malformed(
            format!("no known format has {}", keys(record)),
            Fix::from(Setting::Format).or(Setting::Fields),
        )
    })
}

/// The fault of the first of these fields that is null, if any is.
fn null_among<'a>(
    record: &Map<String, Value>,
    mut fields: impl Iterator<Item = &'a str>,
) -> Option<RecordFault> {
    let key = fields.find(|key| record.get(*key).is_some_and(Value::is_null))?;
    let fix = Fix::from("correct the record").or(Setting::Skip);
    Some(RecordFault::malformed(format!("{key:?} is null"), fix))
}

/// Records of preferences would be learnt as if all their answers were good.
fn refuse_preferences(record: &Map<String, Value>, format: Format) -> Result<(), RecordFault> {
    let pair = ["chosen", "rejected"].into_iter().find(|key| record.contains_key(*key));
    if let Some(key) = pair {
        return Err(RecordFault::malformed(
            format!("the record has {key:?}, one of two answers that are compared"),
            Fix::from("give records with the answer to learn only").or(Setting::Objective("dpo")),
        ));
    }
    let rated_bad =
        ["label", "kto_tag"].into_iter().find(|key| record.get(*key) == Some(&false.into()));
    match rated_bad {
        // A document may well be labelled for another purpose.
        Some(key) if format != Format::Text => Err(RecordFault::malformed(
            format!("{key:?} is false: the answer is rated as bad, and would be learnt"),
            Fix::from("remove the record").or(Setting::Objective("kto")),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn refuse_media(record: &Map<String, Value>) -> Result<(), RecordFault> {
    let is_filled = |v: &Value| !v.is_null() && v.as_array().is_none_or(|a| !a.is_empty());
    match MEDIA_FIELDS.iter().find(|key| record.get(**key).is_some_and(is_filled)) {
        None => Ok(()),
        Some(key) => Err(RecordFault::malformed(
            format!("the record has {key}, and only text is supported"),
            "remove records with images, audio or video",
        )),
    }
}

/// How to fix a record that is not of its file's format.
fn wrong_format() -> Fix {
    Fix::from("correct the record").or(Setting::Format)
}

pub(crate) fn text_field<'a>(
    record: &'a Map<String, Value>,
    key: &str,
) -> Result<&'a str, RecordFault> {
    match record.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(value) => Err(RecordFault::malformed(
            format!("{key:?} must be a string, found {}", kind(value)),
            wrong_format(),
        )),
        None => Err(RecordFault::malformed(
            format!("the record has no {key:?}, found {}", keys(record)),
            wrong_format(),
        )),
    }
}

/// A string field that may be missing or null.
fn optional_text(record: &Map<String, Value>, key: &str) -> Result<String, RecordFault> {
    match record.get(key) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(_) => text_field(record, key).map(str::to_owned),
    }
}

fn array_field<'a>(
    record: &'a Map<String, Value>,
    key: &str,
) -> Result<&'a Vec<Value>, RecordFault> {
    let fix = wrong_format();
    match record.get(key) {
        Some(Value::Array(items)) if items.is_empty() => Err(RecordFault::malformed(
            format!("{key:?} is an empty conversation"),
            "give at least a user's and an assistant's message",
        )),
        Some(Value::Array(items)) => Ok(items),
        Some(value) => {
            let what = format!("{key:?} must be an array, found {}", kind(value));
            Err(RecordFault::malformed(what, fix))
        }
        None => {
            let what = format!("the record has no {key:?}, found {}", keys(record));
            Err(RecordFault::malformed(what, fix))
        }
    }
}

fn messages(record: &Map<String, Value>) -> Result<Record, RecordFault> {
    let items = array_field(record, "messages")?;
    let mut messages = Vec::with_capacity(items.len() + 1);
    messages.extend(system_message(record, &items[0])?);
    let mut keep = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let (message, weight) = message(item).map_err(|fault| in_message(index, fault))?;
        if message["role"] == "assistant" {
            keep.push(weight);
        }
        messages.push(message);
    }
    chat(messages, tools(record)?, keep)
}

/// The field `system` of a record, as the first message of its conversation.
pub(crate) fn system_message(
    record: &Map<String, Value>,
    first: &Value,
) -> Result<Option<Value>, RecordFault> {
    let system = optional_text(record, "system")?;
    if system.is_empty() {
        return Ok(None);
    }
    if ["role", "from"].iter().any(|key| first.get(key).is_some_and(|role| role == "system")) {
        return Err(RecordFault::malformed(
            "the record has a field \"system\" and a system message",
            "keep one of them",
        ));
    }
    Ok(Some(json!({"role": "system", "content": system})))
}

pub(crate) fn in_message(index: usize, fault: RecordFault) -> RecordFault {
    RecordFault { what: format!("message {}: {}", index + 1, fault.what), ..fault }
}

fn chat(
    messages: Vec<Value>,
    tools: Option<Value>,
    keep: Vec<bool>,
) -> Result<Record, RecordFault> {
    if keep.is_empty() {
        return Err(RecordFault::malformed(
            "the conversation has no assistant turn",
            "give conversations that hold what the assistant should say",
        ));
    }
    Ok(Record::Chat { conversation: Conversation { messages, tools }, keep })
}

/// A message as it is, its text parts joined, and whether its weight lets it be learnt.
pub(crate) fn message(item: &Value) -> Result<(Value, bool), RecordFault> {
    let mut fields = object(item)?.clone();
    let role = text_field(&fields, "role")?;
    if !ROLES.contains(&role) {
        return Err(unknown_role("role", role, &ROLES));
    }
    let has_items = |calls: &Value| calls.as_array().is_none_or(|calls| !calls.is_empty());
    let calls = fields.get("tool_calls");
    let may_be_silent = calls.is_some_and(|calls| !calls.is_null() && has_items(calls));
    let text = match fields.get("content") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Array(parts)) => Some(joined(parts)?),
        None | Some(Value::Null) if may_be_silent => None,
        None => return Err(no_content(&fields)),
        Some(other) => {
            return Err(RecordFault::malformed(
                format!("\"content\" must be a string or a list of parts, found {}", kind(other)),
                "correct the message",
            ));
        }
    };
    let weight = take_weight(&mut fields)?;
    if let Some(text) = text {
        fields.insert("content".into(), text.into());
    }
    Ok((Value::Object(fields), weight))
}

fn no_content(fields: &Map<String, Value>) -> RecordFault {
    RecordFault::malformed(
        format!("no \"content\", found {}", keys(fields)),
        "give each message a \"content\" (only one with \"tool_calls\" may go without)",
    )
}

fn unknown_role(key: &str, role: &str, known: &[&str]) -> RecordFault {
    RecordFault::malformed(
        format!("unknown {key} {role:?}"),
        format!("known ones are {}", known.join(", ")),
    )
}

/// Text of a list of `{"type": "text", "text": …}` parts, joined without anything between.
fn joined(parts: &[Value]) -> Result<String, RecordFault> {
    let mut text = String::new();
    for part in parts {
        let fields = object(part)?;
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or("text");
        if kind != "text" {
            return Err(RecordFault::malformed(
                format!("content of type {kind:?} is not supported"),
                "give text only",
            ));
        }
        let key = if fields.contains_key("text") { "text" } else { "value" };
        text.push_str(text_field(fields, key)?);
    }
    Ok(text)
}

/// Takes the fields that say whether a message is learnt: 1 or 0, true or false.
fn take_weight(fields: &mut Map<String, Value>) -> Result<bool, RecordFault> {
    if fields.get("train_detail").is_some_and(|detail| !detail.is_null()) {
        return Err(RecordFault::malformed(
            "\"train_detail\", which learns parts of a message, is not supported",
            "split the message, and give each part a \"weight\" of 0 or 1",
        ));
    }
    let mut is_learnt = None;
    for key in WEIGHT_FIELDS {
        let Some(value) = fields.shift_remove(key).filter(|value| !value.is_null()) else {
            continue;
        };
        let given = match value.as_f64() {
            Some(1.0) => Some(true),
            Some(0.0) => Some(false),
            _ => value.as_bool(),
        };
        let Some(given) = given else {
            return Err(RecordFault::malformed(
                format!("a message's {key} must be 0 or 1, found {value}"),
                "write 0 for turns that are not to be learnt",
            ));
        };
        if is_learnt.is_some_and(|before| before != given) {
            return Err(RecordFault::malformed(
                "a message says twice whether it is learnt, and differs",
                format!("keep one of {}", WEIGHT_FIELDS.join(", ")),
            ));
        }
        is_learnt = Some(given);
    }
    Ok(is_learnt.unwrap_or(true))
}

/// Descriptions of tools: a list, or a list as JSON text. Bare functions get their envelope.
pub(crate) fn tools(record: &Map<String, Value>) -> Result<Option<Value>, RecordFault> {
    let parsed = match record.get("tools") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => serde_json::from_str::<Value>(text).map_err(|e| {
            RecordFault::malformed(format!("\"tools\" is not JSON: {e}"), "give a list of tools")
        })?,
        Some(value) => value.clone(),
    };
    let Value::Array(items) = parsed else {
        let what = format!("\"tools\" must be a list, found {}", kind(&parsed));
        return Err(RecordFault::malformed(what, "give a list of tools"));
    };
    let enveloped = |tool: Value| match tool.get("function") {
        None if tool.get("name").is_some() => json!({"type": "function", "function": tool}),
        _ => tool,
    };
    let items = items.into_iter().map(enveloped).collect::<Vec<_>>();
    Ok((!items.is_empty()).then_some(Value::Array(items)))
}

fn sharegpt(record: &Map<String, Value>) -> Result<Record, RecordFault> {
    let items = array_field(record, "conversations")?;
    let mut messages = Vec::with_capacity(items.len() + 1);
    messages.extend(system_message(record, &items[0])?);
    let mut keep = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let (message, weight) = sharegpt_message(item).map_err(|fault| in_message(index, fault))?;
        if message["role"] == "assistant" {
            keep.push(weight);
        }
        messages.push(message);
    }
    chat(messages, tools(record)?, keep)
}

pub(crate) fn sharegpt_message(item: &Value) -> Result<(Value, bool), RecordFault> {
    let mut fields = object(item)?.clone();
    let weight = take_weight(&mut fields)?;
    let from = text_field(&fields, if fields.contains_key("from") { "from" } else { "role" })?;
    let key = if fields.contains_key("value") { "value" } else { "content" };
    let value = text_field(&fields, key)?;
    let role = match from {
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" => "assistant",
        "system" => "system",
        "observation" | "tool" => "tool",
        "function_call" => return Ok((function_call(value)?, weight)),
        other => {
            let known = ["human", "user", "gpt", "assistant", "system", "function_call"];
            return Err(unknown_role("speaker", other, &[&known[..], &["observation"]].concat()));
        }
    };
    Ok((json!({"role": role, "content": value}), weight))
}

/// An assistant's turn that calls functions: one as an object, several as a list.
fn function_call(value: &str) -> Result<Value, RecordFault> {
    let fix = "write {\"name\": …, \"arguments\": {…}}";
    let parsed = serde_json::from_str::<Value>(value).map_err(|e| {
        RecordFault::malformed(format!("a function call that is not JSON: {e}"), fix)
    })?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    if calls.is_empty() || calls.iter().any(|c| !c["name"].is_string()) {
        return Err(RecordFault::malformed("a function call without a \"name\"", fix));
    }
    let calls = calls.into_iter().map(|call| json!({"type": "function", "function": call}));
    let calls = calls.collect::<Vec<_>>();
    Ok(json!({"role": "assistant", "content": "", "tool_calls": calls}))
}

fn alpaca(record: &Map<String, Value>) -> Result<Alpaca, RecordFault> {
    Ok(Alpaca {
        system: optional_text(record, "system")?,
        history: history(record)?,
        instruction: text_field(record, "instruction")?.to_owned(),
        input: optional_text(record, "input")?,
        output: text_field(record, "output")?.to_owned(),
    })
}

fn history(record: &Map<String, Value>) -> Result<Vec<(String, String)>, RecordFault> {
    let items = match record.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(bad_history()),
    };
    let pair = |item: &Value| match item.as_array().map(Vec::as_slice) {
        Some([Value::String(user), Value::String(assistant)]) => {
            Ok((user.clone(), assistant.clone()))
        }
        _ => Err(bad_history()),
    };
    items.iter().map(pair).collect()
}

fn bad_history() -> RecordFault {
    RecordFault::malformed("\"history\" is not a list of pairs", "write [[user, assistant], …]")
}

impl Alpaca {
    /// As a conversation, for models with a chat template. Every assistant turn is learnt.
    pub fn into_chat(self) -> Record {
        let mut messages = Vec::new();
        if !self.system.is_empty() {
            messages.push(json!({"role": "system", "content": self.system}));
        }
        let keep = vec![true; self.history.len() + 1];
        for (user, assistant) in self.history {
            messages.push(json!({"role": "user", "content": user}));
            messages.push(json!({"role": "assistant", "content": assistant}));
        }
        let user = match self.input.is_empty() {
            true => self.instruction,
            false => format!("{}\n{}", self.instruction, self.input),
        };
        messages.push(json!({"role": "user", "content": user}));
        messages.push(json!({"role": "assistant", "content": self.output}));
        Record::Chat { conversation: Conversation { messages, tools: None }, keep }
    }

    /// As the prompt of the Stanford Alpaca project, for models without a chat template.
    pub fn into_completion(self) -> Result<Record, RecordFault> {
        if !self.system.is_empty() || !self.history.is_empty() {
            return Err(RecordFault::malformed(
                "\"system\" and \"history\" need a chat template, and this model has none",
                "train a model with a chat template, or remove them",
            ));
        }
        let Self { instruction, input, output, .. } = self;
        let prompt = match input.is_empty() {
            true => format!(
                "Below is an instruction that describes a task. Write a response that \
                 appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                 ### Response:"
            ),
            false => format!(
                "Below is an instruction that describes a task, paired with an input that \
                 provides further context. Write a response that appropriately completes the \
                 request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n\
                 ### Response:"
            ),
        };
        Ok(Record::Completion { prompt, completion: output })
    }
}
