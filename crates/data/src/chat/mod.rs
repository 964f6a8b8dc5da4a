//! Chat templates: Jinja rendering as `transformers` does it, and the exact places of what the
//! assistant says. `environment` holds what templates may call, `expressions` and `limits` what
//! their operators do, `generation` the `{% generation %}` tag, `spans` finds turns in templates
//! without that tag.
//!
//! A template is foreign code: it runs with limits on instructions, recursion, memory and output,
//! without a loader, files or environment variables.

mod environment;
mod expressions;
mod generation;
mod json;
mod limits;
mod message;
mod spans;
mod text;
mod turn_end;

pub use fancy_regex::Regex;
pub use text::{TextTemplate, python_regex, python_sub};

use crate::error::RecordFault;
use generation::Marks;
use minijinja::Environment;
use minijinja::value::Serde;
use serde_json::{Map, Value};
use std::io::Write;
use std::ops::Range;
use std::sync::OnceLock;
use std::time::SystemTime;

/// Longest rendering accepted, in bytes.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
const MAIN: &str = "chat_template";
const TOOL_USE: &str = "chat_template.tool_use";

/// A conversation ready for a template: plain objects with `role` and what goes with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conversation {
    /// The messages, each a JSON object.
    pub messages: Vec<Value>,
    /// The tools' descriptions, where the record has any.
    pub tools: Option<Value>,
}

/// A rendered conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendering {
    /// The whole text.
    pub text: String,
    /// Byte ranges of what the assistant says, end-of-turn tokens included, in order.
    pub spans: Vec<Range<usize>>,
}

/// What a template needs to know of its tokenizer.
#[derive(Debug, Clone, Default)]
pub struct TemplateTokens {
    /// Special tokens by name, such as `bos_token`: the template's variables.
    pub special: Map<String, Value>,
    /// Texts of all added tokens: what may end a turn.
    pub added: Vec<String>,
    /// Those among them that end generation.
    pub stop: Vec<String>,
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    plain: Environment<'static>,
    /// The same template with generation blocks marked; only where it has such blocks.
    marked: Option<Environment<'static>>,
    marks: Marks,
    has_tool_use: bool,
    uses_date: bool,
    special_tokens: Map<String, Value>,
    added_tokens: Vec<String>,
    stop_tokens: Vec<String>,
    arguments_as_text: OnceLock<bool>,
}

impl ChatTemplate {
    /// Compiles a template and, where there is one, its variant for conversations with tools.
    /// The error says what is wrong with the template.
    pub fn new(
        source: &str,
        tool_use: Option<&str>,
        tokens: TemplateTokens,
    ) -> Result<Self, String> {
        let TemplateTokens { special, added, stop } = tokens;
        let marks = Marks::new();
        let sources = [(MAIN, Some(source)), (TOOL_USE, tool_use)];
        let rewritten = sources
            .iter()
            .filter_map(|(name, source)| {
                Some((*name, generation::rewrite(&unix_lines((*source)?))))
            })
            .collect::<Vec<_>>();
        let has_generation = rewritten.iter().any(|(_, (_, has))| *has);
        let mut plain = environment::new(None);
        let mut marked = has_generation.then(|| environment::new(Some(marks.clone())));
        for (name, (text, _)) in rewritten {
            for environment in std::iter::once(&mut plain).chain(&mut marked) {
                environment.add_template_owned(name, text.clone()).map_err(|e| describe(&e))?;
            }
        }
        let mut template = Self {
            plain,
            marked,
            marks,
            has_tool_use: tool_use.is_some(),
            uses_date: sources.iter().any(|(_, s)| s.is_some_and(|s| s.contains("strftime_now"))),
            special_tokens: special,
            added_tokens: added.into_iter().filter(|t| !t.trim().is_empty()).collect(),
            stop_tokens: stop,
            arguments_as_text: OnceLock::new(),
        };
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        template.set_now(since_1970.map_or(0, |d| d.as_secs() as i64));
        Ok(template)
    }

    /// Fixes the instant that `strftime_now` sees, in seconds since 1970 and shown in UTC, so that
    /// a resumed run renders what the first one did. Unset, it is the time of `new`.
    pub fn set_now(&mut self, unix_seconds: i64) {
        for environment in std::iter::once(&mut self.plain).chain(&mut self.marked) {
            environment::set_now(environment, unix_seconds);
        }
    }

    /// Whether the rendering depends on the date.
    pub fn uses_date(&self) -> bool {
        self.uses_date
    }

    /// Renders a conversation, ending with the opening of an assistant turn where asked. The
    /// error says what the template refused.
    pub fn render(
        &self,
        conversation: &Conversation,
        add_generation_prompt: bool,
    ) -> Result<String, RecordFault> {
        let prepared = self.prepare(conversation);
        let slice = Slice::all(&prepared, add_generation_prompt);
        self.render_slice(&self.plain, &slice).map_err(refused)
    }

    /// Renders a conversation with the places of its assistant turns: from `{% generation %}`
    /// where the template has it, otherwise found exactly. `keep[k]` says whether the k-th
    /// assistant turn is to be learnt.
    pub fn render_with_spans(
        &self,
        conversation: &Conversation,
        keep: &[bool],
    ) -> Result<Rendering, RecordFault> {
        let prepared = self.prepare(conversation);
        let slice = Slice::all(&prepared, false);
        let text = self.render_slice(&self.plain, &slice).map_err(refused)?;
        let spans = match &self.marked {
            Some(marked) => self.marked_spans(marked, &slice, &text)?,
            None => spans::find(self, &prepared, &text)?,
        };
        refuse_lost_calls(&prepared, &text, &spans)?;
        Ok(Rendering { spans: kept_spans(spans, keep)?, text })
    }

    /// Whether one of the assistant's turns ends with a token, by which a model could learn to
    /// end its own.
    pub(crate) fn ends_turns(&self, rendering: &Rendering) -> bool {
        let marks = || self.added_tokens.iter().chain(&self.stop_tokens);
        rendering.spans.iter().any(|span| {
            let said = rendering.text[span.clone()].trim_end();
            marks().any(|mark| said.ends_with(mark.trim_end()))
        })
    }

    fn marked_spans(
        &self,
        marked: &Environment<'static>,
        slice: &Slice<'_>,
        text: &str,
    ) -> Result<Vec<Range<usize>>, RecordFault> {
        let output = self.render_slice(marked, slice).map_err(refused)?;
        match self.marks.strip(&output) {
            Some((stripped, spans)) if stripped == text => Ok(spans),
            _ => Err(RecordFault::malformed(
                "the template changes the text of its {% generation %} blocks after the block",
                "move {% generation %} to where the assistant's text is written",
            )),
        }
    }

    fn prepare(&self, conversation: &Conversation) -> Conversation {
        let as_text = message::has_tool_calls(conversation)
            && *self.arguments_as_text.get_or_init(|| self.wants_arguments_as_text());
        message::prepare(conversation, as_text)
    }

    /// Most templates take a tool call's arguments as an object, some only as JSON text: asked by
    /// rendering one call both ways.
    fn wants_arguments_as_text(&self) -> bool {
        let render = |as_text| {
            let conversation = message::prepare(&message::tool_call_probe(), as_text);
            self.render_slice(&self.plain, &Slice::all(&conversation, false))
        };
        let object_fails = render(false).map_or(true, |text| text.contains("{'probe'"));
        object_fails && render(true).is_ok_and(|text| text.contains("{\"probe\""))
    }

    fn render_slice(
        &self,
        environment: &Environment<'static>,
        slice: &Slice<'_>,
    ) -> Result<String, String> {
        let name = if slice.tools.is_some() && self.has_tool_use { TOOL_USE } else { MAIN };
        let template = environment.get_template(name).map_err(|e| describe(&e))?;
        let mut context = self.special_tokens.clone();
        context.insert("messages".into(), Value::Array(slice.messages.to_vec()));
        context.insert("tools".into(), slice.tools.cloned().unwrap_or(Value::Null));
        context.insert("documents".into(), Value::Null);
        context.insert("add_generation_prompt".into(), slice.add_generation_prompt.into());
        let mut output = Limited(Vec::new());
        limits::begin();
        template.render_captured_to(Serde(&context), &mut output).map_err(|e| describe(&e))?;
        // Everything written came from whole strings.
        String::from_utf8(output.0).map_err(|e| e.to_string())
    }
}

/// The first messages of a conversation.
struct Slice<'a> {
    messages: &'a [Value],
    tools: Option<&'a Value>,
    add_generation_prompt: bool,
}

impl<'a> Slice<'a> {
    fn all(conversation: &'a Conversation, add_generation_prompt: bool) -> Self {
        let Conversation { messages, tools } = conversation;
        Self { messages, tools: tools.as_ref(), add_generation_prompt }
    }
}

/// Jinja reads every line end of a template as `\n`.
fn unix_lines(source: &str) -> String {
    source.replace("\r\n", "\n").replace('\r', "\n")
}

/// Leaves out the spans of turns that are not to be learnt.
fn kept_spans(spans: Vec<Range<usize>>, keep: &[bool]) -> Result<Vec<Range<usize>>, RecordFault> {
    if keep.iter().all(|k| *k) {
        return Ok(spans);
    }
    if spans.len() != keep.len() {
        return Err(RecordFault::malformed(
            format!(
                "the template marks {} spans for {} assistant turns, so it is not known which \
                 one a weight of 0 leaves out",
                spans.len(),
                keep.len()
            ),
            "write one {% generation %} block for each assistant turn, or remove the weights",
        ));
    }
    Ok(spans.into_iter().zip(keep).filter_map(|(span, keep)| keep.then_some(span)).collect())
}

/// Some templates leave out tool calls in silence: what a turn calls must stand in its span.
fn refuse_lost_calls(
    conversation: &Conversation,
    text: &str,
    spans: &[Range<usize>],
) -> Result<(), RecordFault> {
    let turns = conversation.messages.iter().enumerate();
    let turns = turns.filter(|(_, m)| m["role"] == "assistant").collect::<Vec<_>>();
    let said = spans.iter().map(|span| &text[span.clone()]).collect::<Vec<_>>();
    for (k, (index, message)) in turns.iter().enumerate() {
        // Marked spans need not be one for each turn.
        let said = if said.len() == turns.len() { &said[k..=k] } else { &said[..] };
        let is_said = |name: &str| said.iter().any(|span| span.contains(name));
        if !message::called_functions(message).all(is_said) {
            return Err(RecordFault::malformed(
                format!("the chat template leaves out the tool calls of message {}", index + 1),
                "train a model whose template knows tool calls, or remove them from the record",
            ));
        }
    }
    Ok(())
}

fn refused(what: String) -> RecordFault {
    RecordFault::malformed(what, "make the conversation one that the model's chat template accepts")
}

/// What a template error says to the user.
fn describe(error: &minijinja::Error) -> String {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = cause {
        if let Some(raised) = e.downcast_ref::<environment::Raised>() {
            return format!("the chat template raises: {raised}");
        }
        cause = e.source();
    }
    format!("the chat template fails: {}", describe_plainly(error))
}

/// An error, and what it came of.
fn describe_plainly(error: &minijinja::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Output that refuses to grow without bound.
struct Limited(Vec<u8>);

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT_BYTES {
            let what = format!("more than {MAX_OUTPUT_BYTES} bytes of output");
            return Err(std::io::Error::other(what));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
