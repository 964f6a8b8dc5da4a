//! Records of preferences: a prompt with a chosen and a rejected answer, or with one answer and a
//! label. Answers are texts or messages; a prompt may be implicit, as what both answers begin with.

use crate::chat::Conversation;
use crate::dataset::{Dataset, Label, MadeRow};
use crate::error::{Fix, RecordFault, Setting};
use crate::record::{self, Record, in_message, kind, text_field};
use crate::spec::RecordKind;
use serde_json::{Map, Value};

/// The labelled answers of a record, each with its prompt before it.
pub(crate) fn answers(
    kind: RecordKind,
    value: &Value,
) -> Result<Vec<(Label, Record)>, RecordFault> {
    let fields = record::object(value)?;
    record::refuse_media(fields)?;
    match kind {
        RecordKind::Plain => unreachable!("plain records have layouts"),
        RecordKind::Pairs => pair(fields),
        RecordKind::Rated => rated(fields),
    }
}

fn pair(fields: &Map<String, Value>) -> Result<Vec<(Label, Record)>, RecordFault> {
    let chosen = Text::of(fields, &["chosen", "chosen_messages"])?;
    let rejected = Text::of(fields, &["rejected", "rejected_messages"])?;
    if chosen == rejected {
        return Err(RecordFault::malformed(
            "\"chosen\" and \"rejected\" are the same",
            Fix::from("remove the record").or(Setting::Skip),
        ));
    }
    let (prompt, chosen, rejected) = match prompt(fields)? {
        Some(prompt) => (prompt, chosen, rejected),
        None => common_prompt(chosen, rejected)?,
    };
    let prompt = with_system(fields, prompt)?;
    let tools = record::tools(fields)?;
    Ok(vec![
        (Label::Chosen, join(prompt.clone(), chosen, tools.clone())?),
        (Label::Rejected, join(prompt, rejected, tools)?),
    ])
}

fn rated(fields: &Map<String, Value>) -> Result<Vec<(Label, Record)>, RecordFault> {
    let label = match fields.get("label") {
        Some(Value::Bool(true)) => Label::Desirable,
        Some(Value::Bool(false)) => Label::Undesirable,
        Some(other) => {
            return Err(RecordFault::malformed(
                format!("\"label\" must be true or false, found {}", kind(other)),
                "write true for good answers and false for bad ones",
            ));
        }
        None => return Err(missing(fields, "label")),
    };
    let (prompt, completion) = match prompt(fields)? {
        Some(prompt) => (prompt, Text::of(fields, &["completion"])?),
        None => last_turn(Text::of(fields, &["messages", "completion"])?)?,
    };
    let prompt = with_system(fields, prompt)?;
    Ok(vec![(label, join(prompt, completion, record::tools(fields)?)?)])
}

/// A prompt or an answer.
#[derive(Debug, Clone, PartialEq)]
enum Text {
    Plain(String),
    /// Messages, and which assistant turns among them may be learnt.
    Messages(Vec<Value>, Vec<bool>),
}

impl Text {
    /// The first of these fields that is there.
    fn of(fields: &Map<String, Value>, names: &[&str]) -> Result<Self, RecordFault> {
        let found = names.iter().find_map(|&name| Some((name, fields.get(name)?)));
        let Some((name, value)) = found else { return Err(missing(fields, names[0])) };
        let in_field =
            |fault: RecordFault| RecordFault { what: format!("{name:?}: {}", fault.what), ..fault };
        match value {
            Value::String(_) => Ok(Self::Plain(text_field(fields, name)?.to_owned())),
            Value::Array(items) => Self::messages(items).map_err(in_field),
            Value::Object(_) => Self::messages(std::slice::from_ref(value)).map_err(in_field),
            other => Err(RecordFault::malformed(
                format!("{name:?} must be a text or messages, found {}", kind(other)),
                "correct the record",
            )),
        }
    }

    fn messages(items: &[Value]) -> Result<Self, RecordFault> {
        let (mut messages, mut keep) = (Vec::new(), Vec::new());
        for (index, item) in items.iter().enumerate() {
            let parse = match item.get("from") {
                Some(_) => record::sharegpt_message,
                None => record::message,
            };
            let (message, may_learn) = parse(item).map_err(|fault| in_message(index, fault))?;
            if message["role"] == "assistant" {
                keep.push(may_learn);
            }
            messages.push(message);
        }
        if messages.is_empty() {
            return Err(RecordFault::malformed("no messages", "give at least one message"));
        }
        Ok(Self::Messages(messages, keep))
    }
}

/// The prompt where a record names one: TRL's `prompt`, or a conversation that answers go on.
fn prompt(fields: &Map<String, Value>) -> Result<Option<Text>, RecordFault> {
    let has = |name: &&str| fields.get(*name).is_some_and(|value| !value.is_null());
    let name = ["prompt", "conversations"].into_iter().find(has);
    name.map(|name| Text::of(fields, &[name])).transpose()
}

/// The prompt after the record's field `system`, if it has one.
fn with_system(fields: &Map<String, Value>, prompt: Text) -> Result<Text, RecordFault> {
    let first = match &prompt {
        Text::Messages(messages, _) => messages.first(),
        Text::Plain(_) => None,
    };
    let system = record::system_message(fields, first.unwrap_or(&Value::Null))?;
    match (system, prompt) {
        (None, prompt) => Ok(prompt),
        (Some(system), Text::Messages(messages, keep)) => {
            Ok(Text::Messages([vec![system], messages].concat(), keep))
        }
        (Some(_), Text::Plain(_)) => Err(RecordFault::malformed(
            "\"system\" is for messages, and the prompt is a text",
            "write it into the prompt, or give messages",
        )),
    }
}

/// What both answers begin with, and the answers without it, as TRL splits them.
fn common_prompt(chosen: Text, rejected: Text) -> Result<(Text, Text, Text), RecordFault> {
    match (chosen, rejected) {
        (Text::Plain(chosen), Text::Plain(rejected)) => {
            let same = chosen.char_indices().zip(rejected.chars()).find(|((_, a), b)| a != b);
            let mut end = same.map_or(chosen.len().min(rejected.len()), |((at, _), _)| at);
            // The space before an answer is the answer's.
            end -= usize::from(chosen[..end].ends_with(' '));
            let part = |text: &str| Text::Plain(text.to_owned());
            Ok((part(&chosen[..end]), part(&chosen[end..]), part(&rejected[end..])))
        }
        (Text::Messages(chosen, chosen_keep), Text::Messages(rejected, rejected_keep)) => {
            let same = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
            let is_answer = |m: &&Value| m["role"] == "assistant";
            let turns = chosen[..same].iter().filter(is_answer).count();
            let rest = |all: &[Value], keep: &[bool]| {
                Text::Messages(all[same..].to_vec(), keep[turns..].to_vec())
            };
            let prompt = Text::Messages(chosen[..same].to_vec(), vec![false; turns]);
            Ok((prompt, rest(&chosen, &chosen_keep), rest(&rejected, &rejected_keep)))
        }
        _ => Err(mixed()),
    }
}

/// Splits a conversation before the assistant's last turn.
fn last_turn(text: Text) -> Result<(Text, Text), RecordFault> {
    let Text::Messages(mut messages, mut keep) = text else {
        return Err(RecordFault::malformed("the record has no \"prompt\"", "give it one"));
    };
    let last = messages.iter().rposition(|message| message["role"] == "assistant");
    let at = last.filter(|&at| at > 0).ok_or_else(no_answer)?;
    let (answer, may_learn) = (messages.split_off(at), keep.split_off(keep.len() - 1));
    Ok((Text::Messages(messages, keep), Text::Messages(answer, may_learn)))
}

/// A prompt and an answer as a record of which only the answer is learnt.
fn join(prompt: Text, answer: Text, tools: Option<Value>) -> Result<Record, RecordFault> {
    match (prompt, answer) {
        (Text::Plain(prompt), Text::Plain(completion)) => {
            Ok(Record::Completion { prompt, completion })
        }
        (Text::Messages(mut messages, given), Text::Messages(answer, may_learn)) => {
            if !may_learn.contains(&true) {
                return Err(no_answer());
            }
            messages.extend(answer);
            let keep = given.iter().map(|_| false).chain(may_learn).collect();
            Ok(Record::Chat { conversation: Conversation { messages, tools }, keep })
        }
        _ => Err(mixed()),
    }
}

fn missing(fields: &Map<String, Value>, name: &str) -> RecordFault {
    RecordFault::malformed(
        format!("the record has no {name:?}, found {}", record::keys(fields)),
        "pairs are \"prompt\", \"chosen\", \"rejected\"; ratings \"prompt\", \"completion\", \
         \"label\"",
    )
}

fn mixed() -> RecordFault {
    RecordFault::malformed(
        "prompt and answers are partly texts, partly messages",
        "give all as texts, or all as lists of messages",
    )
}

fn no_answer() -> RecordFault {
    RecordFault::malformed(
        "an answer has no assistant turn to learn",
        "let each answer hold what the assistant says",
    )
}

/// Rated rows with each answer moved to the next prompt, the last to the first: pairs that do not
/// match, from which KTO estimates a divergence (Ethayarajh et al., 2024; rotated as TRL does).
/// `rows` are ids in `dataset`. Repetitions of a row are passed over, since its own answer would
/// match; where all are one row, there are no pairs. What exceeds `max_len` tokens is cut off.
pub fn mismatched(dataset: &Dataset, rows: &[u32], max_len: usize) -> Dataset {
    let mut pairs = Dataset::default();
    pairs.start_file("mismatched pairs", String::new());
    for (i, &row) in rows.iter().enumerate() {
        let (after, before) = (rows[i..].iter().rev(), rows[..i].iter().rev());
        let Some(&other) = before.chain(after).find(|&&other| other != row) else { break };
        let (row, answer) = (dataset.row(row as usize), dataset.row(other as usize));
        let (prompt, answered) = (first_target(row.is_target), first_target(answer.is_target));
        let mut ids = [&row.tokens[..prompt], &answer.tokens[answered..]].concat();
        let mut is_target = [&vec![false; prompt][..], &answer.is_target[answered..]].concat();
        ids.truncate(max_len);
        is_target.truncate(max_len);
        pairs.push(&MadeRow { label: Label::Plain, ids, is_target }, row.source.line);
        pairs.end_group();
    }
    pairs
}

fn first_target(is_target: &[bool]) -> usize {
    is_target.iter().position(|&is| is).expect("every row has a target")
}
