//! Where assistant turns lie in a rendering, for templates without `{% generation %}`.
//!
//! A turn starts where the rendering of the messages before it, with the generation prompt, ends.
//! It ends where the rendering of the messages up to it ends. Both renderings must be prefixes of
//! the whole one. Templates that rewrite history (by dropping earlier reasoning, say) break that;
//! then the turn's own text is found by rendering it between unforgeable marks, and its end is the
//! end-of-turn token after it. Whatever cannot be proved is an error.

use super::{ChatTemplate, Conversation, Slice};
use crate::error::RecordFault;
use serde_json::Value;
use std::ops::Range;

/// The turns' byte ranges in `full`, end-of-turn tokens included.
pub(super) fn find(
    template: &ChatTemplate,
    conversation: &Conversation,
    full: &str,
) -> Result<Vec<Range<usize>>, RecordFault> {
    let search = Search { template, conversation, full };
    if search.always_prompts() {
        return Err(always_prompts());
    }
    let turns = (0..conversation.messages.len()).filter(|i| search.is_assistant(*i));
    let turns = turns.collect::<Vec<_>>();
    let starts = turns.iter().map(|i| search.start(*i)).collect::<Vec<_>>();
    let mut spans: Vec<Range<usize>> = Vec::new();
    for (k, message) in turns.iter().enumerate() {
        let next_start = starts.get(k + 1).copied().flatten();
        let end = starts[k].and_then(|start| search.end(*message, start, next_start));
        let previous_end = spans.last().map_or(0, |s| s.end);
        match (starts[k], end) {
            (Some(start), Some(end)) if previous_end <= start && start <= end => {
                spans.push(start..end);
            }
            _ => return Err(not_found(k, *message)),
        }
    }
    Ok(spans)
}

fn not_found(turn: usize, message: usize) -> RecordFault {
    RecordFault::malformed(
        format!(
            "the text of assistant turn {} (message {}) cannot be found exactly in what the chat \
             template renders",
            turn + 1,
            message + 1
        ),
        "mark the assistant's text in the chat template with {% generation %} … \
         {% endgeneration %}",
    )
}

fn always_prompts() -> RecordFault {
    RecordFault::malformed(
        "the chat template opens another assistant turn after the last one, so the end of a turn \
         cannot be found exactly",
        "let it do so only with add_generation_prompt, or mark the assistant's text with \
         {% generation %} … {% endgeneration %}",
    )
}

struct Search<'a> {
    template: &'a ChatTemplate,
    conversation: &'a Conversation,
    full: &'a str,
}

impl Search<'_> {
    fn is_assistant(&self, message: usize) -> bool {
        self.conversation.messages[message]["role"] == "assistant"
    }

    /// The rendering of the first messages; `None` where the template refuses them.
    fn render(&self, num_messages: usize, add_generation_prompt: bool) -> Option<String> {
        let slice = Slice {
            messages: &self.conversation.messages[..num_messages],
            tools: self.conversation.tools.as_ref(),
            add_generation_prompt,
        };
        self.template.render_slice(&self.template.plain, &slice).ok()
    }

    /// Whether the template seems to end with an opened turn even where none is asked for: what
    /// ends a prompt also ends the whole, and the assistant's text follows the prompt directly.
    fn always_prompts(&self) -> bool {
        let last = self.conversation.messages.len() - 1;
        let (Some(without), Some(with)) = (self.render(last, false), self.render(last, true))
        else {
            return false;
        };
        let common = without.chars().rev().zip(self.full.chars().rev());
        let mut common = common.take_while(|(a, b)| a == b);
        let has_same_end = common.any(|(c, _)| !c.is_whitespace());
        let follows = |content: Range<usize>| {
            let between = self.full.get(without.len()..content.start);
            between.is_none_or(|text| text.trim().is_empty())
        };
        without == with && has_same_end && self.content(last).is_none_or(follows)
    }

    fn start(&self, message: usize) -> Option<usize> {
        let prompt = (message > 0).then(|| self.render(message, true)).flatten();
        match prompt {
            Some(prompt) if self.full.starts_with(&prompt) => Some(prompt.len()),
            _ => self.content(message).map(|range| range.start),
        }
    }

    fn end(&self, message: usize, start: usize, next_start: Option<usize>) -> Option<usize> {
        let through = self.render(message + 1, false)?;
        let is_prefix = self.full.starts_with(&through) && through.len() >= start;
        if is_prefix && !self.has_tail(message) {
            return Some(self.end_of_turn(start, through.len()));
        }
        self.end_by_token(message, start, next_start, &through)
            .or_else(|| self.end_by_content(message, &through))
    }

    /// Whether the template writes more after the last turn than that turn: then the messages
    /// before it, rendered alone, do not begin the whole.
    fn has_tail(&self, message: usize) -> bool {
        let is_last = message + 1 == self.conversation.messages.len();
        let before = (is_last && message > 0).then(|| self.render(message, false)).flatten();
        before.is_some_and(|before| !self.full.starts_with(&before))
    }

    /// Cuts what follows the end-of-turn token, such as a newline between turns. Without such a
    /// token the whole of what the turn added ends it.
    fn end_of_turn(&self, start: usize, end: usize) -> usize {
        let turn = self.full[start..end].trim_end();
        if self.token_ending(turn).is_some() {
            return start + turn.len();
        }
        // Some templates write what ends generation only once the next turn comes.
        end + self.stop_token_starting(&self.full[end..]).map_or(0, str::len)
    }

    fn stop_token_starting(&self, text: &str) -> Option<&str> {
        self.token_starting(text).filter(|t| self.template.stop_tokens.iter().any(|s| s == t))
    }

    fn token_ending(&self, text: &str) -> Option<&str> {
        let tokens = self.template.added_tokens.iter().map(String::as_str);
        tokens.filter(|t| text.ends_with(t)).max_by_key(|t| t.len())
    }

    fn token_starting(&self, text: &str) -> Option<&str> {
        let tokens = self.template.added_tokens.iter().map(String::as_str);
        tokens.filter(|t| text.starts_with(t)).max_by_key(|t| t.len())
    }

    /// The end-of-turn token is the one that ends the turn when it comes last. Where the turn
    /// holds it only once, its first place after the turn's start is the turn's end, provided that
    /// the next message's text comes later and the turn's own text is in between.
    fn end_by_token(
        &self,
        message: usize,
        start: usize,
        next_start: Option<usize>,
        through: &str,
    ) -> Option<usize> {
        if !through.starts_with(&self.full[..start]) {
            return None;
        }
        let turn = through[start..].trim_end();
        let token = self.token_ending(turn)?;
        if turn.matches(token).count() != 1 {
            return None;
        }
        let end = start + self.full[start..].find(token)? + token.len();
        let next_content = self.content(message + 1).map(|range| range.start);
        let limit = [next_content, next_start].into_iter().flatten().min()?;
        (end <= limit && self.holds_text(message, &self.full[start..end])).then_some(end)
    }

    fn holds_text(&self, message: usize, text: &str) -> bool {
        let message = &self.conversation.messages[message];
        let content = message["content"].as_str().unwrap_or_default();
        let has_content = visible_parts(content).any(|part| text.contains(&content[part]));
        has_content || content.trim().is_empty()
    }

    fn end_by_content(&self, message: usize, through: &str) -> Option<usize> {
        if self.conversation.messages[message].get("tool_calls").is_some() {
            return None;
        }
        let content = self.content(message)?;
        // A turn that ends with its text when it comes last has no end-of-turn token of its own.
        if through.trim_end().ends_with(&self.full[content.clone()]) {
            return Some(self.end_of_turn(content.start, content.end));
        }
        let rest = &self.full[content.end..];
        let space = rest.len() - rest.trim_start().len();
        self.token_starting(&rest[space..]).map(|token| content.end + space + token.len())
    }

    /// Where a message's text lies: rendered between marks, which must both come out once, and
    /// without which the rendering must be the same as before.
    fn content(&self, message: usize) -> Option<Range<usize>> {
        let content = self.conversation.messages.get(message)?["content"].as_str()?;
        visible_parts(content).find_map(|part| self.marked(message, content, part))
    }

    fn marked(&self, message: usize, content: &str, part: Range<usize>) -> Option<Range<usize>> {
        let marks = &self.template.marks;
        let (before, after) = (&content[..part.start], &content[part.end..]);
        let mut messages = self.conversation.messages.clone();
        messages[message]["content"] =
            Value::from(format!("{before}{}{after}", marks.wrap(&content[part])));
        let slice = Slice {
            messages: &messages,
            tools: self.conversation.tools.as_ref(),
            add_generation_prompt: false,
        };
        let output = self.template.render_slice(&self.template.plain, &slice).ok()?;
        let (text, spans) = marks.strip(&output)?;
        match spans.as_slice() {
            [span] if text == self.full => Some(span.clone()),
            _ => None,
        }
    }
}

/// Parts of a message's text that a template may keep: all of it, or what follows the reasoning;
/// without the spaces around, which templates like to trim.
fn visible_parts(content: &str) -> impl Iterator<Item = Range<usize>> + '_ {
    let answer = content.rfind("</think>").map(|at| at + "</think>".len());
    std::iter::once(0).chain(answer).filter_map(|from| {
        let rest = &content[from..];
        let start = from + rest.len() - rest.trim_start().len();
        let len = rest.trim().len();
        (len > 0).then_some(start..start + len)
    })
}
