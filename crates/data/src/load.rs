//! Files to a dataset: records become rows, chunk by chunk and on several threads, and everything
//! is counted in the files' order.

use crate::dataset::Dataset;
use crate::error::{DataError, FaultKind, Fix, RecordFault, Setting};
use crate::parallel;
use crate::reader::{self, Contents, Parsed, RawRecord, Records};
use crate::record::{Layout, Record};
use crate::rows::{Counts, Made, RowMaker};
use crate::source::{self, Repeated};
use crate::spec::{Format, OnError, RecordKind, RecordSpec, WeightedPath};
use crate::tokenizer::Tokenizer;
use serde_json::Value;
use std::collections::BTreeSet;

/// Loads all files of `paths` (names or globs, in order) as `spec` says, on `num_threads` threads,
/// on whose number nothing depends. The set has at least one row, and each row at least one target.
/// Of a file of lines a few megabytes are held at a time; a JSON array or a document is held whole.
pub fn load<P: Into<WeightedPath>>(
    paths: impl IntoIterator<Item = P>,
    spec: &RecordSpec,
    tok: &Tokenizer,
    num_threads: usize,
) -> Result<Dataset, DataError> {
    let paths = paths.into_iter().map(Into::into).collect::<Vec<_>>();
    load_weighted(&paths, spec, tok, num_threads).map_err(|error| match spec.kind {
        RecordKind::Plain => error,
        // The layout of these records is no setting.
        RecordKind::Pairs | RecordKind::Rated => error.without_layouts(),
    })
}

fn load_weighted(
    paths: &[WeightedPath],
    spec: &RecordSpec,
    tok: &Tokenizer,
    num_threads: usize,
) -> Result<Dataset, DataError> {
    if spec.max_seq_len < 2 {
        return Err(DataError::setup(
            format!("rows of at most {} tokens leave nothing to predict", spec.max_seq_len),
            Setting::MaxSeqLen,
        ));
    }
    let mut loader = Loader::new(RowMaker { spec, tok }, num_threads);
    let source::Files { files, repeated } = source::expand(paths)?;
    for Repeated { file, first, again } in repeated {
        let with = match first == again {
            true if first == 1.0 => String::new(),
            true => format!(", with weight {first}"),
            false => format!(", with weight {first}, not {again}"),
        };
        let what = format!("{file} is named more than once and read once{with}");
        loader.dataset.report_mut().warn(what);
    }
    for (WeightedPath { weight, .. }, files) in paths.iter().zip(files) {
        loader.dataset.start_part(*weight);
        for file in files {
            match reader::open(&file, spec.format == Format::Text)? {
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
    loader.warn_of_rows();
    loader.warn_of_completions();
    loader.warn_of_date();
    loader.dataset.count_epoch();
    Ok(loader.dataset)
}

struct Loader<'a> {
    spec: &'a RecordSpec,
    tok: &'a Tokenizer,
    maker: RowMaker<'a>,
    num_threads: usize,
    dataset: Dataset,
    counts: Counts,
    /// Fields of the present file that are not read.
    unread: BTreeSet<String>,
    /// Whether there was a warning that the turns of the present file have no end.
    warned_of_turn_ends: bool,
}

impl<'a> Loader<'a> {
    fn new(maker: RowMaker<'a>, num_threads: usize) -> Self {
        let RowMaker { spec, tok } = maker;
        Self {
            spec,
            tok,
            maker,
            num_threads,
            dataset: Dataset::default(),
            counts: Counts::default(),
            unread: BTreeSet::new(),
            warned_of_turn_ends: false,
        }
    }

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
        if self.spec.prompt_field.is_some() || self.spec.completion_field.is_some() {
            return Err(DataError::file(
                file,
                "a plain document has no fields, and those of prompt and completion are named",
                "give a .jsonl or .json file, or name none",
            ));
        }
        self.dataset.start_file(file, Format::Text.name().to_owned());
        let result = self.maker.make_rows(Record::Text(text.to_owned()));
        self.settle(file, 1, result)
    }

    fn records(&mut self, file: &str, mut records: Records) -> Result<(), DataError> {
        let (maker, is_plain) = (self.maker, self.spec.kind == RecordKind::Plain);
        let format = if is_plain { "unknown" } else { self.spec.kind.describe() };
        self.dataset.start_file(file, format.to_owned());
        let mut layout = None;
        loop {
            let chunk = records.next_chunk()?;
            if chunk.is_empty() {
                break;
            }
            let parsed = parallel::map(self.num_threads, &chunk, RawRecord::parse);
            drop(chunk);
            if !is_plain {
                self.add_records(file, &parsed, |value| maker.make_group(value))?;
                continue;
            }
            let mut rest = &parsed[..];
            if layout.is_none() {
                let start = rest.iter().position(|record| self.layout_of(record).is_some());
                let (without, with) = rest.split_at(start.unwrap_or(rest.len()));
                self.add_without_layout(file, without)?;
                layout = with.first().and_then(|record| self.layout_of(record));
                rest = with;
                if let Some(layout) = &layout {
                    self.dataset.set_format(layout.describe());
                }
            }
            if let Some(layout) = &layout {
                self.add_records(file, rest, |value| maker.make(value, layout))?;
            }
        }
        self.warn_of_unread_fields(file);
        Ok(())
    }

    /// The layout that a record shows by itself.
    fn layout_of(&self, (_, value): &Parsed) -> Option<Layout> {
        Layout::of(value.as_ref().ok()?, self.spec).ok()
    }

    /// Counts the records of a file before the first that shows a layout. They are faults even
    /// where they could be read by it, so that nothing depends on how a file is cut into chunks.
    fn add_without_layout(&mut self, file: &str, records: &[Parsed]) -> Result<(), DataError> {
        let spec = self.spec;
        self.add_records(file, records, |value| {
            Err(Layout::of(value, spec).expect_err("the record shows no layout"))
        })
    }

    /// Makes rows of records, and counts them in order.
    fn add_records(
        &mut self,
        file: &str,
        records: &[Parsed],
        make: impl Fn(&Value) -> Result<Made, RecordFault> + Sync,
    ) -> Result<(), DataError> {
        let made = parallel::map(self.num_threads, records, |(_, value)| match value {
            Ok(value) => make(value),
            Err(fault) => Err(fault.clone()),
        });
        for ((line, _), made) in records.iter().zip(made) {
            self.settle(file, *line, made)?;
        }
        Ok(())
    }

    fn warn_of_unread_fields(&mut self, file: &str) {
        self.warned_of_turn_ends = false;
        let names = std::mem::take(&mut self.unread);
        if !names.is_empty() {
            let names = names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>();
            let what = format!("{file}: fields with text that are not read: {}", names.join(", "));
            self.dataset.report_mut().warn(what);
        }
    }

    /// Counts a record; a fault stops the loading or is counted, as configured.
    fn settle(
        &mut self,
        file: &str,
        line: usize,
        result: Result<Made, RecordFault>,
    ) -> Result<(), DataError> {
        self.dataset.report_mut().count_record();
        let fault = match result {
            Ok(made) => {
                self.add(made, line);
                return Ok(());
            }
            Err(fault) => fault,
        };
        let report = self.dataset.report_mut();
        let count = match fault.kind {
            FaultKind::Malformed => &mut report.skipped_malformed,
            FaultKind::Overlong => &mut report.skipped_overlong,
            FaultKind::WithoutTarget => &mut report.skipped_without_target,
            FaultKind::Model => {
                let what = format!("{file}: {}", fault.what);
                return Err(DataError::setup(what, fault.fix));
            }
        };
        let error = DataError::Record { file: file.to_owned(), line, fault };
        if self.spec.on_error == OnError::Fail {
            return Err(error);
        }
        *count += 1;
        report.skipped += 1;
        report.warn_of_record(format!("skipped: {}", error.message(|_| None)));
        Ok(())
    }

    fn add(&mut self, made: Made, line: usize) {
        let Made { rows, warnings, unread, lacks_turn_ends, counts } = made;
        warnings.iter().for_each(|what| self.dataset.warn(line, what));
        if lacks_turn_ends && !self.warned_of_turn_ends {
            self.warned_of_turn_ends = true;
            let what = "the chat template ends the assistant's turns with no token of their own, \
                        so the model learns no end of its answers; write eos_token after them";
            self.dataset.warn(line, what);
        }
        self.unread.extend(unread);
        self.counts.add(&counts);
        let is_group = self.spec.kind != RecordKind::Plain;
        for row in &rows {
            self.dataset.push(row, line);
            if !is_group {
                self.dataset.end_group();
            }
        }
        if is_group {
            self.dataset.end_group();
        }
    }

    /// What was counted, for the report, and what to know of it.
    fn warn_of_rows(&mut self) {
        let (counts, report) = (&self.counts, self.dataset.report_mut());
        report.merged_boundaries = counts.merged_boundaries;
        report.truncated = counts.truncated;
        report.dropped_windows = counts.dropped_windows;
        let rows = report.rows;
        if counts.merged_boundaries > 0 {
            report.warn(format!(
                "in {} of {rows} rows the answer's first token also holds the end of what \
                 comes before it, mostly a space there. When the model is asked, that text alone \
                 becomes other tokens than it learnt: move the space to the beginning of the \
                 answer (in a chat template, leave it out of what opens the assistant's turn)",
                counts.merged_boundaries
            ));
        }
        if counts.duplicate_special_tokens > 0 {
            report.warn(format!(
                "{} of {rows} rows begin or end with a special token that is added anyway; it is \
                 kept once",
                counts.duplicate_special_tokens
            ));
        }
        if counts.learnt_prompts > 0 {
            report.warn(format!(
                "in {} of {rows} rows the prompt is learnt too: pre-training learns every token",
                counts.learnt_prompts
            ));
        }
    }

    /// Prompts and completions are taken as they are: no space is put between them, and the chat
    /// template is not used.
    fn warn_of_completions(&mut self) {
        let (counts, report) = (&self.counts, self.dataset.report_mut());
        if let Some(first) = &counts.missing_space {
            report.warn(format!(
                "in {} of {} rows the completion follows the prompt without a space between \
                 them, as in {first:?}: if that is not meant, begin the completion with a space or \
                 a new line",
                counts.missing_spaces, report.rows
            ));
        }
        if counts.completions > 0 && self.tok.chat_template().is_some() {
            report.warn(
                "rows of prompt and completion are learnt without the model's chat template, so \
                 ask the model without it too; give messages to train it for conversations"
                    .to_owned(),
            );
        }
    }

    fn warn_of_date(&mut self) {
        let uses_date = self.tok.chat_template().is_some_and(|template| template.uses_date());
        if uses_date && self.counts.conversations > 0 {
            let what = "the chat template may write today's date into each row".to_owned();
            self.dataset.report_mut().warn(what);
        }
    }
}
