//! Messages as templates expect them: the same small repairs that `transformers` makes, and tool
//! calls' arguments as objects (or as text, for the templates that want that).

use super::Conversation;
use super::json::{Style, dumps};
use serde_json::{Map, Value, json};

/// The names under which a message's reasoning is given; templates read the first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A copy in which null fields and empty lists of tool calls are left out, reasoning has its
/// standard name, and arguments of tool calls are objects, or JSON text where `arguments_as_text`.
pub(super) fn prepare(conversation: &Conversation, arguments_as_text: bool) -> Conversation {
    let messages = conversation.messages.iter().map(|message| {
        let Value::Object(fields) = message else { return message.clone() };
        let mut fields = fields.iter().filter(says_something).map(|(k, v)| (k.clone(), v.clone()));
        let mut fields = with_reasoning(&mut fields);
        if let Some(Value::Array(calls)) = fields.get_mut("tool_calls") {
            calls.iter_mut().for_each(|call| convert_arguments(call, arguments_as_text));
        }
        Value::Object(fields)
    });
    Conversation { messages: messages.collect(), tools: conversation.tools.clone() }
}

/// Null is as good as absent, and so is an empty list of calls, which templates would count.
fn says_something((key, value): &(&String, &Value)) -> bool {
    let no_calls = key.as_str() == "tool_calls" && value.as_array().is_some_and(Vec::is_empty);
    !value.is_null() && !no_calls
}

impl Conversation {
    /// The first message whose text the rendering does not hold, neither as it is nor inside JSON:
    /// a template may know no such role. Reasoning may be left out.
    pub(crate) fn left_out(&self, rendering: &str) -> Option<usize> {
        self.messages.iter().position(|message| {
            let content = message["content"].as_str().unwrap_or_default();
            let text = content.rsplit("</think>").next().unwrap_or_default().trim();
            let quoted = dumps(&text.into(), &Style::plain());
            !rendering.contains(text) && !rendering.contains(quoted.trim_matches('"'))
        })
    }

    /// Whether the rendering does not name one of the tools: a template may know none.
    pub(crate) fn lacks_tools(&self, rendering: &str) -> bool {
        let tools = self.tools.iter().filter_map(Value::as_array).flatten();
        let mut names =
            tools.filter_map(|tool| tool.get("function").unwrap_or(tool)["name"].as_str());
        names.any(|name| !rendering.contains(name))
    }
}

fn with_reasoning(fields: &mut dyn Iterator<Item = (String, Value)>) -> Map<String, Value> {
    let mut fields = fields.collect::<Map<_, _>>();
    let reasoning = REASONING_FIELDS.iter().find_map(|name| fields.get(*name).cloned());
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    fields
}

fn convert_arguments(call: &mut Value, as_text: bool) {
    let holder = if call.get("function").is_some() { &mut call["function"] } else { call };
    let Some(arguments) = holder.get_mut("arguments") else { return };
    let converted = match arguments {
        Value::String(text) if !as_text => {
            serde_json::from_str::<Value>(text).ok().filter(Value::is_object)
        }
        Value::Object(_) if as_text => Some(dumps(arguments, &Style::plain()).into()),
        _ => None,
    };
    if let Some(converted) = converted {
        *arguments = converted;
    }
}

pub(super) fn has_tool_calls(conversation: &Conversation) -> bool {
    conversation.messages.iter().any(|m| called_functions(m).next().is_some())
}

/// Names of the functions that a message calls.
pub(super) fn called_functions(message: &Value) -> impl Iterator<Item = &str> {
    let calls = message["tool_calls"].as_array().into_iter().flatten();
    calls.filter_map(|call| call.get("function").unwrap_or(call)["name"].as_str())
}

/// The shortest conversation with a tool call.
pub(super) fn tool_call_probe() -> Conversation {
    let call = json!({"id": "probe00id", "type": "function",
        "function": {"name": "probe", "arguments": {"probe": "x"}}});
    let messages = vec![
        json!({"role": "user", "content": "probe"}),
        json!({"role": "assistant", "content": "", "tool_calls": [call]}),
        json!({"role": "tool", "name": "probe", "tool_call_id": "probe00id", "content": "x"}),
        json!({"role": "assistant", "content": "probe"}),
    ];
    Conversation { messages, tools: None }
}
