//! Turns a record into rows: renders and tokenises it, marks targets, refuses or cuts long rows.
//! The result depends on the record alone, so any thread may take any record.

use crate::chat::Conversation;
use crate::dataset::{Label, MadeRow};
use crate::error::{FaultKind, Fix, RecordFault, Setting};
use crate::preference;
use crate::record::{Layout, Record};
use crate::spec::{Overlong, RecordSpec};
use crate::tokenizer::{Encoded, Tokenizer};
use serde_json::Value;
use std::ops::Range;

/// Makes rows from records.
#[derive(Clone, Copy)]
pub(crate) struct RowMaker<'a> {
    pub spec: &'a RecordSpec,
    pub tok: &'a Tokenizer,
}

/// What a record was made into.
#[derive(Default)]
pub(crate) struct Made {
    /// Its rows: of preferences one group, otherwise each its own.
    pub rows: Vec<MadeRow>,
    /// What the user should know of it.
    pub warnings: Vec<String>,
    /// Fields that were not read.
    pub unread: Vec<String>,
    /// Whether the template writes nothing that ends its turns.
    pub lacks_turn_ends: bool,
    pub counts: Counts,
}

/// Counts that are reported of the whole set, not row by row.
#[derive(Default)]
pub(crate) struct Counts {
    /// Rows from messages.
    pub conversations: usize,
    /// Rows from a prompt and a completion.
    pub completions: usize,
    /// Rows whose text begins or ends with a special token that the tokenizer adds as well.
    pub duplicate_special_tokens: usize,
    /// Rows whose prompt is learnt, since all tokens are.
    pub learnt_prompts: usize,
    /// Rows whose completion follows the prompt's last word without a space.
    pub missing_spaces: usize,
    /// Where prompt and completion meet in the first of them.
    pub missing_space: Option<String>,
    /// Rows in which a token holds the end of a prompt and the beginning of its answer.
    pub merged_boundaries: usize,
    /// Rows whose end was cut off.
    pub truncated: usize,
    /// Windows of documents left out because they held a single left-over token.
    pub dropped_windows: usize,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.conversations += other.conversations;
        self.completions += other.completions;
        self.duplicate_special_tokens += other.duplicate_special_tokens;
        self.learnt_prompts += other.learnt_prompts;
        self.missing_spaces += other.missing_spaces;
        if self.missing_space.is_none() {
            self.missing_space.clone_from(&other.missing_space);
        }
        self.merged_boundaries += other.merged_boundaries;
        self.truncated += other.truncated;
        self.dropped_windows += other.dropped_windows;
    }
}

/// Tokens of one record with their target flags.
struct Tokenised {
    ids: Vec<u32>,
    is_target: Vec<bool>,
    /// Tokens at the end that are no text.
    end: usize,
}

impl RowMaker<'_> {
    /// The rows of a record in a file with this layout.
    pub fn make(self, value: &Value, layout: &Layout) -> Result<Made, RecordFault> {
        let mut made = self.make_rows(layout.parse(value)?)?;
        made.unread = layout.unread(value).map(str::to_owned).collect();
        Ok(made)
    }

    /// The rows of a record that is not a preference.
    pub fn make_rows(self, record: Record) -> Result<Made, RecordFault> {
        let mut made = Made::default();
        let row = match record {
            Record::Text(text) => {
                self.text(&mut made, &text)?;
                return Ok(made);
            }
            Record::Alpaca(alpaca) => {
                return self.make_rows(match self.tok.chat_template() {
                    Some(_) => alpaca.into_chat(),
                    None => alpaca.into_completion()?,
                });
            }
            Record::Completion { prompt, completion } => {
                self.completion(&mut made, &prompt, &completion)?
            }
            Record::Chat { conversation, keep } => {
                self.conversation(&mut made, &conversation, &keep)?
            }
        };
        self.push(&mut made, Label::Plain, row)?;
        Ok(made)
    }

    /// The rows of a preference: all, or none.
    pub fn make_group(self, value: &Value) -> Result<Made, RecordFault> {
        let mut made = Made::default();
        for (label, record) in preference::answers(self.spec.kind, value)? {
            let row = match record {
                Record::Chat { conversation, keep } => {
                    self.conversation(&mut made, &conversation, &keep)?
                }
                Record::Completion { prompt, completion } => {
                    self.completion(&mut made, &prompt, &completion)?
                }
                _ => unreachable!("preferences are completions or conversations"),
            };
            self.push(&mut made, label, row)?;
        }
        Ok(made)
    }

    fn conversation(
        self,
        made: &mut Made,
        conversation: &Conversation,
        keep: &[bool],
    ) -> Result<Tokenised, RecordFault> {
        if self.spec.all_tokens_are_targets && keep.contains(&false) {
            return Err(RecordFault::malformed(
                "a message has a weight of 0, and pre-training learns every token",
                Fix::from("remove the weights").or(Setting::Objective("sft")),
            ));
        }
        let Some(template) = self.tok.chat_template() else {
            return Err(RecordFault::model(
                "conversations need a chat template, and this model has none",
                "add chat_template.jinja to the model directory, or give prompts and answers as \
                 texts",
            ));
        };
        let rendering = template.render_with_spans(conversation, keep)?;
        if conversation.lacks_tools(&rendering.text) {
            made.warnings.push("the chat template leaves out the record's tools".to_owned());
        }
        if let Some(message) = conversation.left_out(&rendering.text) {
            let role = &conversation.messages[message]["role"];
            let what = format!("the chat template leaves out message {} ({role})", message + 1);
            made.warnings.push(what);
        }
        made.lacks_turn_ends |= !template.ends_turns(&rendering);
        made.counts.conversations += 1;
        // The template writes BOS itself where the model has one.
        let encoded = encode(self.tok, &rendering.text, false)?;
        let is_target = targets(&encoded, &rendering.spans);
        made.counts.merged_boundaries += usize::from(is_merged(&encoded, &rendering.spans));
        Ok(Tokenised { ids: encoded.ids, is_target, end: 0 })
    }

    fn completion(
        self,
        made: &mut Made,
        prompt: &str,
        completion: &str,
    ) -> Result<Tokenised, RecordFault> {
        self.check_eos("completions", None)?;
        let text = format!("{prompt}{completion}");
        made.counts.completions += 1;
        if lacks_space(prompt, completion) {
            made.counts.missing_spaces += 1;
            made.counts.missing_space = Some(meeting(prompt, completion));
        }
        let encoded = self.encode_with_special_tokens(made, &text)?;
        let span = prompt.len()..text.len();
        let spans = std::slice::from_ref(&span);
        let mut is_target = targets(&encoded, spans);
        made.counts.merged_boundaries += usize::from(is_merged(&encoded, spans));
        let (_, end) = ends(&encoded.is_added);
        let mut ids = encoded.ids;
        let len = ids.len();
        self.append_eos(&mut ids);
        let end = end + ids.len() - len;
        is_target.resize(ids.len(), false);
        if let Some(last) = is_target.last_mut() {
            *last = true;
        }
        Ok(Tokenised { ids, is_target, end })
    }

    /// Tokens of a text with the special tokens that the tokenizer adds, except for those that the
    /// text holds already.
    fn encode_with_special_tokens(
        self,
        made: &mut Made,
        text: &str,
    ) -> Result<Encoded, RecordFault> {
        let mut encoded = encode(self.tok, text, true)?;
        let num_tokens = encoded.ids.len();
        encoded.drop_duplicate_special_tokens();
        made.counts.duplicate_special_tokens += usize::from(encoded.ids.len() < num_tokens);
        Ok(encoded)
    }

    /// Whether the model has an end-of-text token, which `texts` end with; `unless` is the setting
    /// by which they would not.
    fn check_eos(self, texts: &str, unless: Option<Setting>) -> Result<(), RecordFault> {
        if self.tok.eos_token_id().is_some() {
            return Ok(());
        }
        let fix = Fix::from("name eos_token in the model's tokenizer_config.json");
        let what = format!("{texts} need an end-of-text token, and this model has none");
        Err(RecordFault::model(what, unless.into_iter().fold(fix, Fix::or)))
    }

    /// Appends the end-of-text token unless it is there already.
    fn append_eos(self, ids: &mut Vec<u32>) {
        let eos = self.tok.eos_token_id();
        if ids.len() < 2 || ids.last().copied() != eos {
            ids.extend(eos);
        }
    }

    /// Disjoint windows of `max_seq_len`, those of encoders with what the tokenizer adds at both
    /// ends; within each, all tokens but the first are targets.
    fn text(self, made: &mut Made, text: &str) -> Result<(), RecordFault> {
        if self.spec.append_eos {
            self.check_eos("documents", Some(Setting::NoEos))?;
        }
        let Encoded { mut ids, is_added, .. } = self.encode_with_special_tokens(made, text)?;
        if is_added.iter().all(|added| *added) {
            return Err(without_target("the document is empty"));
        }
        if self.spec.append_eos {
            self.append_eos(&mut ids);
        }
        if ids.len() < 2 {
            return Err(without_target("the document is a single token"));
        }
        let (first, last) = match self.spec.keeps_ends {
            true => ends(&is_added),
            false => (0, 0),
        };
        let body = &ids[first..ids.len() - last];
        let Some(room @ 1..) = self.spec.max_seq_len.checked_sub(first + last) else {
            let what = format!(
                "the tokenizer's special tokens alone fill {} tokens",
                self.spec.max_seq_len
            );
            return Err(RecordFault::malformed(&what, Fix::from(Setting::MaxSeqLen)));
        };
        for window in body.chunks(room) {
            let window = [&ids[..first], window, &ids[ids.len() - last..]].concat();
            let unscored = self.spec.context_tokens.max(1);
            if window.len() <= unscored {
                made.counts.dropped_windows += 1;
                continue;
            }
            let mut is_target = vec![true; window.len()];
            is_target[..unscored].fill(false);
            made.rows.push(MadeRow { label: Label::Plain, ids: window, is_target });
        }
        Ok(())
    }

    /// Adds a row: at most `max_seq_len` tokens, at least one of which is a target.
    fn push(self, made: &mut Made, label: Label, mut row: Tokenised) -> Result<(), RecordFault> {
        if self.spec.all_tokens_are_targets {
            made.counts.learnt_prompts += usize::from(row.is_target.iter().skip(1).any(|is| !is));
            row.is_target.fill(true);
        }
        // Nothing comes before the first token to predict it from.
        if let Some(first) = row.is_target.first_mut() {
            *first = false;
        }
        let (len, limit) = (row.ids.len(), self.spec.max_seq_len);
        if len > limit && self.spec.overlong == Overlong::Refuse {
            let (takes, fix) = match self.spec.model_max_len.filter(|&max| len > max) {
                Some(max) => {
                    (format!("the model takes at most {max}"), Fix::from(Setting::Truncate))
                }
                None => {
                    let fix = Fix::from(Setting::MaxSeqLen).or(Setting::Truncate);
                    (format!("at most {limit} are taken"), fix)
                }
            };
            let what = format!("the row has {len} tokens, and {takes}");
            return Err(RecordFault { kind: FaultKind::Overlong, what, fix });
        }
        if !row.is_target.contains(&true) {
            return Err(without_target("the row has no token to learn"));
        }
        if len > limit {
            let end = if self.spec.keeps_ends { row.end.min(limit) } else { 0 };
            row.ids.drain(limit - end..len - end);
            row.is_target.drain(limit - end..len - end);
        }
        if !row.is_target.contains(&true) {
            let what = format!("nothing to learn is left of the row's {len} tokens after {limit}");
            return Err(without_target(&what));
        }
        made.counts.truncated += usize::from(len > limit);
        made.rows.push(MadeRow { label, ids: row.ids, is_target: row.is_target });
        Ok(())
    }
}

/// How many tokens the tokenizer added before a text and after it.
fn ends(is_added: &[bool]) -> (usize, usize) {
    let of_text = |is_added: &bool| !is_added;
    let first = is_added.iter().position(of_text).unwrap_or(0);
    let last = is_added.iter().rposition(of_text).map_or(0, |last| is_added.len() - 1 - last);
    (first, last)
}

/// Whether a token begins before a span and ends in it.
fn is_merged(encoded: &Encoded, spans: &[Range<usize>]) -> bool {
    let straddles =
        |start: usize, end: usize| spans.iter().any(|s| start < s.start && s.start < end);
    encoded.offsets.iter().any(|&(start, end)| straddles(start, end))
}

/// Whether a completion begins with a word right after a word or a punctuation mark. Scripts that
/// put no spaces between words lack none.
fn lacks_space(prompt: &str, completion: &str) -> bool {
    let spaced = |c: char| c.is_alphanumeric() && c < '\u{2e80}';
    let ends = prompt.chars().next_back();
    let ends = ends.is_some_and(|c| spaced(c) || ".?!:;,".contains(c));
    ends && completion.chars().next().is_some_and(spaced)
}

/// The words on both sides of where a prompt ends, at most so many characters of each.
fn meeting(prompt: &str, completion: &str) -> String {
    const AROUND: usize = 20;
    let begin = prompt.char_indices().rev().take(AROUND).last().map_or(0, |(at, _)| at);
    let before = prompt[begin..].trim_start();
    let after: String = completion.chars().take(AROUND).collect();
    format!("{before}{}", after.lines().next().unwrap_or_default().trim_end())
}

fn encode(tok: &Tokenizer, text: &str, add_special: bool) -> Result<Encoded, RecordFault> {
    tok.encode_with_offsets(text, add_special).map_err(|e| {
        RecordFault::malformed(e.message(|_| None), "correct the record or the tokenizer")
    })
}

/// A token is a target if it holds a character of a span; one without characters of its own (such
/// as the mark of a word's start), if it lies within a span.
fn targets(encoded: &Encoded, spans: &[Range<usize>]) -> Vec<bool> {
    let is_in = |start: usize, end: usize| {
        spans.iter().any(|span| {
            let holds = start < span.end && span.start < end;
            holds || (start == end && span.contains(&start))
        })
    };
    let tokens = encoded.offsets.iter().zip(&encoded.is_added);
    tokens.map(|((start, end), added)| !added && is_in(*start, *end)).collect()
}

fn without_target(what: &str) -> RecordFault {
    RecordFault {
        kind: FaultKind::WithoutTarget,
        what: what.to_owned(),
        fix: Fix::from("remove the record").or(Setting::Skip),
    }
}
