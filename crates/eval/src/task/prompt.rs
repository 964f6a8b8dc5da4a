//! What the model is asked of each document: description, examples, the document.
//!
//! Texts are put together as lm-evaluation-harness does, delimiters included, as one text or as
//! messages of a chat.

use super::config::Task;
use super::data::Document;
use super::error::TaskError;
use super::field::Field;
use super::output_type::OutputType;
use super::random::Random;
use hone_data::ChatTemplate;
use hone_data::chat::Conversation;
use serde_json::{Value, json};

/// Seed of the examples, the harness's.
const EXAMPLES_SEED: u32 = 1234;

/// What the model is asked of a document.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// How likely `continuation` is after `context`.
    Likelihood {
        /// What goes before.
        context: String,
        /// What is scored.
        continuation: String,
    },
    /// How likely a text is.
    Rolling(String),
    /// To go on.
    Generate(String),
}

/// A document with its requests and what is right.
#[derive(Clone, Debug)]
pub struct Item {
    /// The requests, for each choice one.
    pub requests: Vec<Request>,
    /// The choices; empty where the task has none.
    pub choices: Vec<String>,
    /// What is right.
    pub target: Value,
    /// Where the document is.
    pub place: String,
    /// The document's `choices`, for filters.
    pub field_choices: Option<Value>,
}

/// The items of a task's first `limit` documents.
///
/// # Errors
/// If a document lacks a field, or what is made of it is of the wrong kind.
pub fn items(
    task: &Task,
    limit: usize,
    chat: Option<&ChatTemplate>,
) -> Result<Vec<Item>, TaskError> {
    let has_choices = task.prompt.choice.is_some();
    let Some(first) = task.documents.first() else { return Err(task.error("has no documents")) };
    let text = task.prompt.text.value(first, has_choices)?;
    // A number as text, of the first document, is that of the right choice.
    let multiple_input = has_choices && is_integer(&text);
    let mut writer = Writer { task, multiple_input, chat, random: Random::new(EXAMPLES_SEED) };
    task.documents.iter().take(limit).map(|document| writer.item(document)).collect()
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_boolean()
}

/// A turn, and what follows it where turns are joined.
struct Message {
    role: &'static str,
    content: String,
    end: String,
}

struct Writer<'a> {
    task: &'a Task,
    /// Choices are contexts, and the target is the continuation.
    multiple_input: bool,
    chat: Option<&'a ChatTemplate>,
    random: Random,
}

impl Writer<'_> {
    fn item(&mut self, document: &Document) -> Result<Item, TaskError> {
        let task = self.task;
        let choices = match &task.prompt.choice {
            Some(choice) => choice.list(document)?,
            None => Vec::new(),
        };
        let contexts = self.contexts(document, &choices)?;
        let has_choices = task.prompt.choice.is_some();
        let target = task.prompt.target.value(document, has_choices)?;
        let requests = self.requests(document, contexts, &choices, &target)?;
        let target = match self.multiple_input {
            true => task.prompt.text.value(document, true)?,
            false => target,
        };
        Ok(Item {
            requests,
            target: self.checked(document, target, &choices)?,
            choices,
            place: document.place(),
            field_choices: document.fields.get("choices").cloned(),
        })
    }

    /// The target, which must be among the choices.
    fn checked(
        &self,
        document: &Document,
        target: Value,
        choices: &[String],
    ) -> Result<Value, TaskError> {
        if self.task.output != OutputType::MultipleChoice {
            return Ok(target);
        }
        let is_choice = |value: &Value| match value {
            Value::String(text) => choices.contains(text),
            Value::Bool(_) => true,
            value => value.as_u64().is_some_and(|i| (i as usize) < choices.len()),
        };
        let ok = match &target {
            Value::Array(targets) => !targets.is_empty() && targets.iter().all(is_choice),
            target => is_choice(target),
        };
        match ok {
            true => Ok(target),
            false => Err(self.task.prompt.target.error(
                document,
                format!("{target} is none of the {} choices, nor one's number", choices.len()),
            )),
        }
    }

    fn requests(
        &self,
        document: &Document,
        contexts: Vec<String>,
        choices: &[String],
        target: &Value,
    ) -> Result<Vec<Request>, TaskError> {
        let prompt = &self.task.prompt;
        let text = || match target {
            Value::String(text) => Ok(text.clone()),
            other => Err(prompt.target.error(document, format!("expected a text, found {other}"))),
        };
        let likelihood = |context, continuation| Request::Likelihood { context, continuation };
        let first = || contexts.first().cloned().unwrap_or_default();
        Ok(match self.task.output {
            OutputType::Loglikelihood => vec![likelihood(first(), text()?)],
            OutputType::Rolling => vec![Request::Rolling(text()?)],
            OutputType::Generate => vec![Request::Generate(first())],
            OutputType::MultipleChoice => {
                let delimiter = self.choice_delimiter();
                match self.multiple_input {
                    true => {
                        let continuation = format!("{delimiter}{}", text()?);
                        let of = |context| likelihood(context, continuation.clone());
                        contexts.into_iter().map(of).collect()
                    }
                    false => {
                        let of = |choice| likelihood(first(), format!("{delimiter}{choice}"));
                        choices.iter().map(of).collect()
                    }
                }
            }
        })
    }

    /// What stands before a choice: in a chat, whose template ends the question, nothing but after
    /// a prefix of the answer. Whether that ends in a space is asked of `gen_prefix` as the task
    /// has it, a template or a field's name, not of what a document makes of it.
    fn choice_delimiter(&self) -> &str {
        let prompt = &self.task.prompt;
        let prefix = prompt.gen_prefix.as_ref().map_or("", Field::source);
        let is_begun = !prefix.is_empty() && !prefix.ends_with(char::is_whitespace);
        if self.chat.is_none() || is_begun { &prompt.target_delimiter } else { "" }
    }

    /// Everything before what is scored or generated; with multiple inputs one for each choice.
    fn contexts(
        &mut self,
        document: &Document,
        choices: &[String],
    ) -> Result<Vec<String>, TaskError> {
        let prompt = &self.task.prompt;
        let prefix = written(prompt.gen_prefix.as_ref(), document)?;
        let mut before = Vec::new();
        let description = written(prompt.description.as_ref(), document)?.unwrap_or_default();
        if !description.is_empty() {
            before.push(Message { role: "system", content: description, end: String::new() });
        }
        for example in self.drawn(document)? {
            before.extend(self.example(&example)?);
        }
        if self.multiple_input {
            let context = |choice: &String| {
                self.joined(
                    document,
                    &before,
                    turn(choice.clone(), None, prefix.as_deref(), ["", ""]),
                )
            };
            return choices.iter().map(context).collect();
        }
        let question = match prompt.text.unlisted(document, prompt.choice.is_some())? {
            Value::String(text) => text,
            other => {
                return Err(prompt.text.error(document, format!("expected a text, found {other}")));
            }
        };
        let delimiters = [prompt.target_delimiter.as_str(), ""];
        let asked = turn(question, None, prefix.as_deref(), delimiters);
        Ok(vec![self.joined(document, &before, asked)?])
    }

    /// The examples for a document: the first ones or drawn ones, without the document itself.
    fn drawn(&mut self, document: &Document) -> Result<Vec<Document>, TaskError> {
        let (task, n) = (self.task, self.task.num_fewshot);
        if n == 0 {
            return Ok(Vec::new());
        }
        let too_few = || task.error(format!("has too few examples for {n} beside the document"));
        let all = &task.examples;
        let is_other =
            |example: &&Document| !task.shots.excludes_asked || example.fields != document.fields;
        if task.shots.first_n {
            let found: Vec<_> = all.iter().filter(is_other).take(n).cloned().collect();
            return if found.len() == n { Ok(found) } else { Err(too_few()) };
        }
        let num = n + usize::from(task.shots.excludes_asked);
        if num > all.len() {
            return Err(too_few());
        }
        let sampled = self.random.sample(all.len(), num);
        let sampled = sampled.into_iter().map(|i| &all[i]).filter(is_other);
        let found: Vec<Document> = sampled.take(n).cloned().collect();
        if found.len() == n {
            return Ok(found);
        }
        // Copies of the document are among the examples.
        let others: Vec<&Document> = all.iter().filter(is_other).collect();
        if others.len() < n {
            return Err(too_few());
        }
        let sampled = self.random.sample(others.len(), n);
        Ok(sampled.into_iter().map(|i| others[i].clone()).collect())
    }

    /// An example with its answer.
    fn example(&self, example: &Document) -> Result<Vec<Message>, TaskError> {
        let (prompt, shots) = (&self.task.prompt, &self.task.shots);
        let text = shots.text.as_ref().unwrap_or(&prompt.text);
        let target = shots.target.as_ref().unwrap_or(&prompt.target);
        let choice = shots.choice.as_ref().or(prompt.choice.as_ref());
        let choices = choice.map(|choice| choice.list(example)).transpose()?.unwrap_or_default();
        let has_choices = choice.is_some();
        let chosen = |field: &Field, value: Value| match (&value, value.as_u64()) {
            (Value::String(text), _) => Ok(text.clone()),
            (Value::Bool(second), _) if has_choices => choices
                .get(usize::from(*second))
                .cloned()
                .ok_or_else(|| field.error(example, "fewer than two choices")),
            (_, Some(i)) if has_choices && (i as usize) < choices.len() => {
                Ok(choices[i as usize].clone())
            }
            _ => Err(field.error(example, format!("expected a text, found {value}"))),
        };
        let question = chosen(text, text.unlisted(example, has_choices)?)?;
        let answer = match target.value(example, has_choices)? {
            Value::Array(targets) => targets.into_iter().next().unwrap_or(Value::Null),
            one => one,
        };
        let answer = chosen(target, answer)?;
        let prefix = shots.gen_prefix.as_ref().or(prompt.gen_prefix.as_ref());
        let prefix = written(prefix, example)?;
        let delimiter = shots.target_delimiter.as_ref().unwrap_or(&prompt.target_delimiter);
        let delimiters = [delimiter.as_str(), &shots.fewshot_delimiter];
        Ok(turn(question, Some(answer), prefix.as_deref(), delimiters))
    }

    /// Messages as one text, or as the chat template writes them.
    fn joined(
        &self,
        document: &Document,
        before: &[Message],
        asked: Vec<Message>,
    ) -> Result<String, TaskError> {
        let messages = || before.iter().chain(&asked);
        let Some(template) = self.chat else {
            return Ok(messages().map(|m| format!("{}{}", m.content, m.end)).collect());
        };
        let prefix = asked.last().filter(|last| last.role == "assistant");
        let message = |m: &Message| json!({ "role": m.role, "content": m.content });
        let mut messages: Vec<Value> = messages().map(message).collect();
        if let (Some(prefix), Some(last)) = (prefix, messages.last_mut()) {
            last["content"] = format!("{}{PREFIX_END}", prefix.content).into();
        }
        let conversation = Conversation { messages, tools: None };
        let text = template.render(&conversation, prefix.is_none()).map_err(|fault| {
            TaskError::Input(format!("{}: {}", document.place(), fault.message(|_| None)))
        })?;
        let Some(prefix) = prefix else { return Ok(text) };
        // The answer goes on where its prefix ends; a template that trims messages trims that too.
        let end = text.rfind(PREFIX_END.trim_end());
        match end.filter(|_| text.contains(prefix.content.trim())) {
            Some(at) if text[at..].starts_with(PREFIX_END) => Ok(text[..at].to_owned()),
            Some(at) => Ok(text[..at].trim_end().to_owned()),
            None => Err(self.task.error("the chat template leaves out gen_prefix")),
        }
    }
}

/// What is put after the prefix of an answer while a template writes it. The space is gone where
/// the template trims messages.
const PREFIX_END: &str = "END_OF_PREFIX ";

fn written(field: Option<&Field>, document: &Document) -> Result<Option<String>, TaskError> {
    field.map(|field| field.text(document)).transpose()
}

/// A question and, where it is known or begun, its answer; `[target, few-shot]` delimiters.
fn turn(
    question: String,
    answer: Option<String>,
    prefix: Option<&str>,
    [to_answer, to_next]: [&str; 2],
) -> Vec<Message> {
    let prefix = prefix.filter(|prefix| !prefix.is_empty());
    let answer = answer.filter(|answer| !answer.is_empty());
    let needs_delimiter = match (&answer, prefix) {
        (Some(_), None) => true,
        (_, Some(prefix)) => !question.is_empty() && !touches_space(&question, prefix),
        (None, None) => false,
    };
    let end = if needs_delimiter { to_answer.to_owned() } else { String::new() };
    let mut messages = vec![Message { role: "user", content: question, end }];
    let message = |content, end: &str| Message { role: "assistant", content, end: end.to_owned() };
    match (answer, prefix) {
        (Some(answer), None) => messages.push(message(answer, to_next)),
        (Some(answer), Some(prefix)) => {
            let space = if touches_space(prefix, &answer) { "" } else { " " };
            messages.push(message(format!("{prefix}{space}{answer}"), to_next));
        }
        (None, Some(prefix)) => messages.push(message(prefix.to_owned(), "")),
        (None, None) => {}
    }
    messages
}

fn touches_space(before: &str, after: &str) -> bool {
    before.ends_with(char::is_whitespace) || after.starts_with(char::is_whitespace)
}
