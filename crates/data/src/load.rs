//! Records to rows: files are read, records parsed, rendered and tokenised, targets marked, long
//! rows refused or cut, and everything counted.

use crate::chat::Conversation;
use crate::dataset::Dataset;
use crate::error::{DataError, FaultKind, Fix, RecordFault, Setting};
use crate::preference;
use crate::record::{Layout, Record};
use crate::source::{self, Contents, RawRecord};
use crate::spec::{Format, OnError, Overlong, RecordKind, RecordSpec, WeightedPath};
use crate::tokenizer::{Encoded, Tokenizer};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ops::Range;

/// Loads all files of `paths` (names or globs, in order) as `spec` says. The set has at least one
/// row, and each row at least one target.
pub fn load<P: Into<WeightedPath>>(
    paths: impl IntoIterator<Item = P>,
    spec: &RecordSpec,
    tok: &Tokenizer,
) -> Result<Dataset, DataError> {
    let paths = paths.into_iter().map(Into::into).collect::<Vec<_>>();
    load_weighted(&paths, spec, tok)
}

fn load_weighted(
    paths: &[WeightedPath],
    spec: &RecordSpec,
    tok: &Tokenizer,
) -> Result<Dataset, DataError> {
    if spec.max_seq_len < 2 {
        return Err(DataError::setup(
            format!("rows of at most {} tokens leave nothing to predict", spec.max_seq_len),
            Setting::MaxSeqLen,
        ));
    }
    let mut loader = Loader { spec, tok, dataset: Dataset::default(), notes: Notes::default() };
    let source::Files { files, repeated } = source::expand(paths)?;
    for WeightedPath { path, weight } in repeated {
        let with = if weight == 1.0 { String::new() } else { format!(", with weight {weight}") };
        let what = format!("{path} is named more than once and read once{with}");
        loader.dataset.report_mut().warn(what);
    }
    for (WeightedPath { weight, .. }, files) in paths.iter().zip(files) {
        loader.dataset.start_part(*weight);
        for file in files {
            match source::read(&file, spec.format == Format::Text)? {
                Contents::Document(text) => loader.document(&file, &text)?,
                Contents::Records(records) => loader.records(&file, records)?,
            }
        }
    }
    if loader.dataset.is_empty() {
        let skipped = loader.dataset.report().skipped;
        let first = loader.dataset.report().warnings.first().cloned().unwrap_or_default();
        let paths = paths.iter().map(|path| path.path.as_str()).collect::<Vec<_>>().join(", ");
        return Err(DataError::setup(
            format!("no rows are left in {paths}: {skipped} records were skipped"),
            format!("correct the records; the first: {first}"),
        ));
    }
    loader.warn_of_merged_boundaries();
    loader.warn_of_doubled_marks();
    loader.warn_of_learnt_prompts();
    loader.warn_of_prompts();
    loader.warn_of_date();
    Ok(loader.dataset)
}

struct Loader<'a> {
    spec: &'a RecordSpec,
    tok: &'a Tokenizer,
    dataset: Dataset,
    notes: Notes,
}

/// What is told once of a file or of the whole set, not of each row.
#[derive(Default)]
struct Notes {
    /// Fields of the present file that are not read.
    unread: BTreeSet<String>,
    /// Whether it was told of the present file that its turns have no end.
    told_of_endless_turns: bool,
    /// Rows whose text holds a mark that the tokenizer or the row's end would add.
    doubled_marks: usize,
    /// Rows whose prompt is learnt, since all tokens are.
    learnt_prompts: usize,
    /// Rows whose completion follows the prompt's last word without a space.
    glued: usize,
}

/// Tokens of one record with their target flags.
struct Tokenised {
    ids: Vec<u32>,
    is_target: Vec<bool>,
}

/// A row within `max_seq_len`.
struct Cut {
    row: Tokenised,
    /// Whether its end was cut off.
    is_shorter: bool,
}

impl Loader<'_> {
    fn document(&mut self, file: &str, text: &str) -> Result<(), DataError> {
        if self.spec.kind != RecordKind::Plain {
            return Err(DataError::file(
                file,
                format!("a plain document holds no records of {}", self.spec.kind.describe()),
                "give a .jsonl or .json file",
            ));
        }
        if !matches!(self.spec.format, Format::Auto | Format::Text) {
            return Err(DataError::file(
                file,
                format!("a plain document has no records of format {}", self.spec.format.name()),
                Fix::from("give a .jsonl or .json file").or(Setting::FormatAs(Format::Text)),
            ));
        }
        self.dataset.start_file(file, Format::Text.name().to_owned());
        self.check_file(file, Format::Text)?;
        let result = self.add(Record::Text(text.to_owned()), 1);
        self.settle(file, 1, result)
    }

    /// Records of preferences: each is one group of rows.
    fn preferences(&mut self, file: &str, records: Vec<RawRecord>) -> Result<(), DataError> {
        self.dataset.start_file(file, self.spec.kind.describe().to_owned());
        for RawRecord { line, value } in records {
            let result = value.and_then(|value| self.add_group(&value, line));
            self.settle(file, line, result)?;
        }
        Ok(())
    }

    fn add_group(&mut self, value: &Value, line: usize) -> Result<(), RecordFault> {
        let mut rows = Vec::new();
        for (label, record) in preference::answers(self.spec.kind, value)? {
            let row = match record {
                Record::Chat { conversation, keep } => {
                    self.check_tokenizer(Format::Messages)?;
                    self.conversation(&conversation, &keep, line)?
                }
                Record::Completion { prompt, completion } => {
                    self.check_tokenizer(Format::PromptCompletion)?;
                    self.completion(&prompt, &completion)?
                }
                _ => unreachable!("preferences are completions or conversations"),
            };
            rows.push((label, self.cut(row)?));
        }
        // All rows of a group, or none.
        for (label, Cut { row, is_shorter }) in rows {
            self.dataset.report_mut().truncated += usize::from(is_shorter);
            self.dataset.push_labelled(&row.ids, &row.is_target, line, label);
        }
        self.dataset.end_group();
        Ok(())
    }

    fn records(&mut self, file: &str, records: Vec<RawRecord>) -> Result<(), DataError> {
        if self.spec.kind != RecordKind::Plain {
            return self.preferences(file, records);
        }
        let layout = self.layout(file, &records)?;
        let name = layout.as_ref().map_or("unknown".to_owned(), Layout::describe);
        self.dataset.start_file(file, name);
        self.check_file(file, layout.as_ref().map_or(Format::Auto, |l| l.format))?;
        for RawRecord { line, value } in records {
            let result = value.and_then(|value| match &layout {
                Some(layout) => {
                    self.notes.unread.extend(layout.unread(&value).map(str::to_owned));
                    self.add(layout.parse(&value)?, line)
                }
                None => Layout::of(&value, self.spec).map(|_| ()),
            });
            self.settle(file, line, result)?;
        }
        self.warn_of_unread_fields(file);
        Ok(())
    }

    /// The layout that the first usable object of a file shows. Where no record may be bad, the
    /// first object must be usable; without one, the first value's fault is told.
    fn layout(&self, file: &str, records: &[RawRecord]) -> Result<Option<Layout>, DataError> {
        let values = records.iter().filter_map(|r| Some((r.line, r.value.as_ref().ok()?)));
        if self.spec.on_error == OnError::Skip {
            let mut layouts = values.map(|(_, value)| Layout::of(value, self.spec));
            return Ok(layouts.find_map(Result::ok));
        }
        let mut values = values;
        let first = values.clone().find(|(_, value)| value.is_object()).or_else(|| values.next());
        let Some((line, first)) = first else { return Ok(None) };
        let layout = Layout::of(first, self.spec);
        layout.map(Some).map_err(|fault| DataError::Record { file: file.to_owned(), line, fault })
    }

    fn warn_of_unread_fields(&mut self, file: &str) {
        self.notes.told_of_endless_turns = false;
        let names = std::mem::take(&mut self.notes.unread);
        if !names.is_empty() {
            let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>();
            let what = format!("{file}: fields with text that are not read: {}", names.join(", "));
            self.dataset.report_mut().warn(what);
        }
    }

    /// As `check_tokenizer`, of all records of a file.
    fn check_file(&self, file: &str, format: Format) -> Result<(), DataError> {
        self.check_tokenizer(format)
            .map_err(|RecordFault { what, fix, .. }| DataError::file(file, what, fix))
    }

    /// Whether the model has what records of the format need.
    fn check_tokenizer(&self, format: Format) -> Result<(), RecordFault> {
        let has_template = self.tok.chat_template().is_some();
        let (is_chat, needs_eos) = match format {
            Format::Messages | Format::ShareGpt => (true, false),
            Format::Alpaca => (false, !has_template),
            Format::PromptCompletion => (false, true),
            Format::Text => (false, self.spec.append_eos),
            Format::Auto => (false, false),
        };
        if is_chat && !has_template {
            return Err(RecordFault::malformed(
                "conversations need a chat template, which this model has not",
                "add chat_template.jinja to the model directory, or give prompts and answers as \
                 texts",
            ));
        }
        if needs_eos && self.tok.eos_token_id().is_none() {
            let fix = Fix::from("name eos_token in the model's tokenizer_config.json");
            return Err(RecordFault::malformed(
                format!("{} needs an end-of-text token, which this model has not", format.name()),
                if format == Format::Text { fix.or(Setting::NoEos) } else { fix },
            ));
        }
        Ok(())
    }

    /// Counts a record; a fault stops the loading or is counted, as configured.
    fn settle(
        &mut self,
        file: &str,
        line: usize,
        result: Result<(), RecordFault>,
    ) -> Result<(), DataError> {
        let report = self.dataset.report_mut();
        report.count_record();
        let Err(fault) = result else { return Ok(()) };
        let kind = fault.kind;
        let error = DataError::Record { file: file.to_owned(), line, fault };
        if self.spec.on_error == OnError::Fail {
            return Err(error);
        }
        report.skipped += 1;
        *match kind {
            FaultKind::Malformed => &mut report.skipped_malformed,
            FaultKind::Overlong => &mut report.skipped_overlong,
            FaultKind::WithoutTarget => &mut report.skipped_without_target,
        } += 1;
        report.warn_of_record(format!("skipped: {}", error.message(|_| None)));
        Ok(())
    }

    fn add(&mut self, record: Record, line: usize) -> Result<(), RecordFault> {
        match record {
            Record::Text(text) => self.add_text(&text, line),
            Record::Completion { prompt, completion } => {
                let row = self.completion(&prompt, &completion)?;
                self.add_row(row, line)
            }
            Record::Chat { conversation, keep } => {
                let row = self.conversation(&conversation, &keep, line)?;
                self.add_row(row, line)
            }
            Record::Alpaca(alpaca) if self.tok.chat_template().is_some() => {
                self.add(alpaca.into_chat(), line)
            }
            Record::Alpaca(alpaca) => self.add(alpaca.into_completion()?, line),
        }
    }

    fn conversation(
        &mut self,
        conversation: &Conversation,
        keep: &[bool],
        line: usize,
    ) -> Result<Tokenised, RecordFault> {
        if self.spec.all_tokens_are_targets && keep.contains(&false) {
            return Err(RecordFault::malformed(
                "a message has a weight of 0, and pre-training learns every token",
                Fix::from("remove the weights").or(Setting::Objective("sft")),
            ));
        }
        let template = self.tok.chat_template().expect("check_tokenizer asked for one");
        let rendering = template.render_with_spans(conversation, keep)?;
        if conversation.lacks_tools(&rendering.text) {
            self.dataset.warn(line, "the chat template leaves out the record's tools");
        }
        if let Some(message) = conversation.left_out(&rendering.text) {
            let role = &conversation.messages[message]["role"];
            let what = format!("the chat template leaves out message {} ({role})", message + 1);
            self.dataset.warn(line, &what);
        }
        if !self.notes.told_of_endless_turns && !template.ends_turns(&rendering) {
            self.notes.told_of_endless_turns = true;
            let what = "the chat template ends the assistant's turns with no token of their own, \
                        so the model learns no end of its answers; write eos_token after them";
            self.dataset.warn(line, what);
        }
        // The template writes BOS itself where the model has one.
        let encoded = encode(self.tok, &rendering.text, false)?;
        let is_target = targets(&encoded, &rendering.spans);
        self.count_merged(&encoded, &rendering.spans);
        Ok(Tokenised { ids: encoded.ids, is_target })
    }

    fn completion(&mut self, prompt: &str, completion: &str) -> Result<Tokenised, RecordFault> {
        let text = format!("{prompt}{completion}");
        self.notes.glued += usize::from(is_glued(prompt, completion));
        let encoded = self.encode_marked(&text)?;
        let span = prompt.len()..text.len();
        let spans = std::slice::from_ref(&span);
        let mut is_target = targets(&encoded, spans);
        self.count_merged(&encoded, spans);
        let mut ids = encoded.ids;
        self.append_eos(&mut ids);
        is_target.resize(ids.len(), false);
        if let Some(last) = is_target.last_mut() {
            *last = true;
        }
        Ok(Tokenised { ids, is_target })
    }

    /// Tokens of a text with the tokenizer's own marks, none of them twice where the text holds
    /// them already.
    fn encode_marked(&mut self, text: &str) -> Result<Encoded, RecordFault> {
        let mut encoded = encode(self.tok, text, true)?;
        let had = encoded.ids.len();
        encoded.drop_doubled_marks();
        self.notes.doubled_marks += usize::from(encoded.ids.len() < had);
        Ok(encoded)
    }

    /// Appends the end-of-text token unless it is there already.
    fn append_eos(&self, ids: &mut Vec<u32>) {
        let eos = self.tok.eos_token_id();
        if ids.len() < 2 || ids.last().copied() != eos {
            ids.extend(eos);
        }
    }

    /// Disjoint windows of `max_seq_len`; within each, all tokens but the first are targets.
    fn add_text(&mut self, text: &str, line: usize) -> Result<(), RecordFault> {
        let Encoded { mut ids, is_added, .. } = self.encode_marked(text)?;
        if is_added.iter().all(|added| *added) {
            return Err(without_target("the document is empty"));
        }
        if self.spec.append_eos {
            self.append_eos(&mut ids);
        }
        if ids.len() < 2 {
            return Err(without_target("the document is a single token"));
        }
        for window in ids.chunks(self.spec.max_seq_len) {
            if window.len() < 2 {
                self.dataset.report_mut().dropped_windows += 1;
                continue;
            }
            let mut is_target = vec![true; window.len()];
            is_target[0] = false;
            self.dataset.push(window, &is_target, line);
        }
        Ok(())
    }

    fn add_row(&mut self, row: Tokenised, line: usize) -> Result<(), RecordFault> {
        let Cut { row, is_shorter } = self.cut(row)?;
        self.dataset.report_mut().truncated += usize::from(is_shorter);
        self.dataset.push(&row.ids, &row.is_target, line);
        Ok(())
    }

    /// The row as it is learnt from: at most `max_seq_len` tokens, of which one is a target.
    fn cut(&mut self, mut row: Tokenised) -> Result<Cut, RecordFault> {
        if self.spec.all_tokens_are_targets {
            self.notes.learnt_prompts += usize::from(row.is_target.iter().skip(1).any(|is| !is));
            row.is_target.fill(true);
        }
        // Nothing comes before the first token to predict it from.
        if let Some(first) = row.is_target.first_mut() {
            *first = false;
        }
        let (len, limit) = (row.ids.len(), self.spec.max_seq_len);
        if len > limit && self.spec.overlong == Overlong::Refuse {
            return Err(RecordFault {
                kind: FaultKind::Overlong,
                what: format!("the row has {len} tokens, and at most {limit} are taken"),
                fix: Fix::from(Setting::MaxSeqLen).or(Setting::Truncate),
            });
        }
        if !row.is_target.contains(&true) {
            return Err(without_target("the row has no token to learn"));
        }
        row.ids.truncate(limit);
        row.is_target.truncate(limit);
        if !row.is_target.contains(&true) {
            let what = format!("nothing to learn is left of the row's {len} tokens after {limit}");
            return Err(without_target(&what));
        }
        Ok(Cut { row, is_shorter: len > limit })
    }

    /// Counts the row if a token reaches from what is given into what is to be learnt.
    fn count_merged(&mut self, encoded: &Encoded, spans: &[Range<usize>]) {
        let reaches = |start: usize, end: usize| {
            spans.iter().any(|span| start < span.start && span.start < end)
        };
        let merged = encoded.offsets.iter().any(|&(start, end)| reaches(start, end));
        self.dataset.report_mut().merged_boundaries += usize::from(merged);
    }

    fn warn_of_merged_boundaries(&mut self) {
        let report = self.dataset.report_mut();
        if report.merged_boundaries > 0 {
            let (merged, rows) = (report.merged_boundaries, report.rows);
            report.warn(format!(
                "in {merged} of {rows} rows the answer's first token also holds the end of what \
                 comes before it, mostly a space there. When the model is asked, that text alone \
                 becomes other tokens than it learnt: move the space to the beginning of the \
                 answer (in a chat template, leave it out of what opens the assistant's turn)"
            ));
        }
    }

    fn warn_of_doubled_marks(&mut self) {
        if self.notes.doubled_marks > 0 {
            let (doubled, report) = (self.notes.doubled_marks, self.dataset.report_mut());
            report.warn(format!(
                "{doubled} of {} rows hold a special token at their beginning or end that is added \
                 anyway; it stands there once",
                report.rows
            ));
        }
    }

    fn warn_of_learnt_prompts(&mut self) {
        if self.notes.learnt_prompts > 0 {
            let (learnt, report) = (self.notes.learnt_prompts, self.dataset.report_mut());
            report.warn(format!(
                "in {learnt} of {} rows the prompt is learnt too: pre-training learns every token",
                report.rows
            ));
        }
    }

    /// Prompts are taken as they are: without a space of their own, without the chat template.
    fn warn_of_prompts(&mut self) {
        let (glued, report) = (self.notes.glued, self.dataset.report_mut());
        if glued > 0 {
            report.warn(format!(
                "in {glued} of {} rows the completion follows the prompt without a space between \
                 them, as in \"What is two?It is 2\": if that is not meant, begin the completion \
                 with a space or a new line",
                report.rows
            ));
        }
        let is_prompt = |format: &str| format.starts_with(Format::PromptCompletion.name());
        let has_prompts = report.files.iter().any(|file| is_prompt(&file.format));
        if has_prompts && self.tok.chat_template().is_some() {
            report.warn(
                "rows of prompt and completion are learnt without the model's chat template, so \
                 ask the model without it too; give messages to train it for conversations"
                    .to_owned(),
            );
        }
    }

    fn warn_of_date(&mut self) {
        let has_chat = |format: &str| ["messages", "sharegpt", "alpaca"].contains(&format);
        let report = self.dataset.report_mut();
        let uses_date = self.tok.chat_template().is_some_and(|t| t.uses_date());
        if uses_date && report.files.iter().any(|f| has_chat(&f.format)) {
            report.warn("the chat template may write today's date into each row".to_owned());
        }
    }
}

/// Whether a word, or what ends a sentence, is joined with a word. Scripts that write no spaces
/// between words have none to miss.
fn is_glued(prompt: &str, completion: &str) -> bool {
    let spaced = |c: char| c.is_alphanumeric() && c < '\u{2e80}';
    let ends = prompt.chars().next_back();
    let ends = ends.is_some_and(|c| spaced(c) || ".?!:;,".contains(c));
    ends && completion.chars().next().is_some_and(spaced)
}

fn encode(tok: &Tokenizer, text: &str, add_special: bool) -> Result<Encoded, RecordFault> {
    tok.encode_with_offsets(text, add_special)
        .map_err(|e| RecordFault::malformed(e.message(|_| None), "correct the record or the tokenizer"))
}

/// A token is a target if it holds a character of a span. One without characters of its own (such
/// as the mark for a word's start) is one where it stands within a span.
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
