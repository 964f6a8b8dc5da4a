//! The loaded rows in flat storage, and the report on them.

use crate::spec::Format;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Upper bounds of the length histogram's bins double from this one.
const FIRST_BIN: usize = 32;
/// Warnings on single records that are kept word for word.
const MAX_WARNINGS: usize = 10;

/// What a row is to its objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Label {
    /// To be learnt as it is.
    #[default]
    Plain,
    /// The better of two answers.
    Chosen,
    /// The worse of two answers.
    Rejected,
    /// Rated good.
    Desirable,
    /// Rated bad.
    Undesirable,
}

/// A row within `max_seq_len`, of which one token is a target.
pub(crate) struct MadeRow {
    pub label: Label,
    pub ids: Vec<u32>,
    pub is_target: Vec<bool>,
}

/// Where a row came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source<'a> {
    /// The file, as named or found.
    pub file: &'a str,
    /// Line of the record's first character, from 1.
    pub line: usize,
}

/// One row: a sequence to train on.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// Token ids, at most `max_seq_len`.
    pub tokens: &'a [u32],
    /// For each token, whether predicting it counts. Never so for the first.
    pub is_target: &'a [bool],
    /// Where the row came from.
    pub source: Source<'a>,
    /// What it is to its objective.
    pub label: Label,
}

/// All rows, in file order.
#[derive(Debug, Clone, Default)]
pub struct Dataset {
    tokens: Vec<u32>,
    is_target: Vec<bool>,
    /// End of each row in `tokens`.
    ends: Vec<usize>,
    /// File index and line of each row.
    sources: Vec<(u32, u32)>,
    /// What each row is to its objective.
    labels: Vec<Label>,
    /// End of each group's rows.
    group_ends: Vec<u32>,
    files: Vec<String>,
    parts: Vec<Part>,
    report: DataReport,
}

/// Neighbouring groups that an epoch sees equally often.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub weight: f64,
    pub groups: Range<u32>,
}

impl Part {
    /// Groups that an epoch takes: `weight` times as many as there are, rounded, but at least one
    /// if there are any.
    pub fn groups_per_epoch(&self) -> usize {
        match self.groups.len() {
            0 => 0,
            all => (self.weight * all as f64).round().max(1.0) as usize,
        }
    }
}

/// Groups that an epoch takes from all parts.
pub(crate) fn groups_per_epoch(parts: &[Part]) -> u64 {
    let of_parts = parts.iter().map(|part| part.groups_per_epoch() as u64);
    of_parts.fold(0, u64::saturating_add)
}

impl Dataset {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row; `load` never returns such a set.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Row `index`, below `len()`.
    pub fn row(&self, index: usize) -> Row<'_> {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        let range = start..self.ends[index];
        let (file, line) = self.sources[index];
        Row {
            tokens: &self.tokens[range.clone()],
            is_target: &self.is_target[range],
            source: Source { file: &self.files[file as usize], line: line as usize },
            label: self.labels[index],
        }
    }

    /// Number of groups: rows that are learnt together, such as a pair; most hold one row.
    pub fn num_groups(&self) -> usize {
        self.group_ends.len()
    }

    /// Ids of the rows of group `index`, below `num_groups()`.
    pub fn group(&self, index: usize) -> Range<u32> {
        let start = if index == 0 { 0 } else { self.group_ends[index - 1] };
        start..self.group_ends[index]
    }

    /// Number of tokens of row `index`.
    pub fn row_len(&self, index: usize) -> usize {
        self.row(index).tokens.len()
    }

    /// The first row that holds a token id of `vocab_size` or more, and that id.
    pub fn first_beyond(&self, vocab_size: usize) -> Option<(Source<'_>, u32)> {
        let at = self.tokens.iter().position(|&id| id as usize >= vocab_size)?;
        let row = self.ends.partition_point(|&end| end <= at);
        Some((self.row(row).source, self.tokens[at]))
    }

    /// What was loaded, cut and left out.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    pub(crate) fn report_mut(&mut self) -> &mut DataReport {
        &mut self.report
    }

    /// What the set is mixed from, in order.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Groups from here on have this weight. Neighbours of one weight are one part, whatever
    /// without rows was named between them, so that the order is a function of the rows and their
    /// weights alone, however their files were named.
    pub(crate) fn start_part(&mut self, weight: f64) {
        self.parts.pop_if(|part| part.groups.is_empty());
        if self.parts.last().is_none_or(|part| part.weight != weight) {
            let start = self.group_ends.len() as u32;
            self.parts.push(Part { weight, groups: start..start });
        }
    }

    pub(crate) fn start_file(&mut self, file: &str, format: String) {
        self.files.push(file.to_owned());
        let weight = self.parts.last().map_or(1.0, |part| part.weight);
        let file = file.to_owned();
        let (records, rows, groups, groups_per_epoch) = (0, 0, 0, 0.0);
        self.report.files.push(FileReport {
            file,
            format,
            records,
            rows,
            groups,
            weight,
            groups_per_epoch,
        });
    }

    /// Reports what an epoch sees, once all files are loaded: a part is rounded as a whole, and
    /// each of its files has its share of that.
    pub(crate) fn count_epoch(&mut self) {
        self.report.groups_per_epoch = groups_per_epoch(&self.parts);
        let mut start = 0;
        for file in self.report.files.iter_mut().filter(|file| file.groups > 0) {
            let part = self.parts.iter().find(|part| part.groups.contains(&start));
            let part = part.expect("each group belongs to a part");
            let share = file.groups as f64 / part.groups.len() as f64;
            file.groups_per_epoch = share * part.groups_per_epoch() as f64;
            start += file.groups as u32;
        }
    }

    /// Keeps a warning on a record of the present file.
    pub(crate) fn warn(&mut self, line: usize, what: &str) {
        let file = self.files.last().map_or("", String::as_str);
        self.report.warn_of_record(format!("{file}:{line}: {what}"));
    }

    /// Names the format of the present file's records.
    pub(crate) fn set_format(&mut self, format: String) {
        if let Some(file) = self.report.files.last_mut() {
            file.format = format;
        }
    }

    /// Makes one group of the rows since the one before.
    pub(crate) fn end_group(&mut self) {
        self.group_ends.push(self.ends.len() as u32);
        if let Some(part) = self.parts.last_mut() {
            part.groups.end += 1;
        }
        if let Some(file) = self.report.files.last_mut() {
            file.groups += 1;
        }
    }

    /// Adds a row that has a target, which its first token never is, to the group that is not ended
    /// yet.
    pub(crate) fn push(&mut self, row: &MadeRow, line: usize) {
        let MadeRow { label, ids: tokens, is_target } = row;
        debug_assert!(!is_target[0] && is_target.contains(&true));
        self.tokens.extend_from_slice(tokens);
        self.is_target.extend_from_slice(is_target);
        self.ends.push(self.tokens.len());
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        self.sources.push((self.files.len() as u32 - 1, line));
        self.labels.push(*label);
        self.report.count_row(tokens.len(), is_target.iter().filter(|t| **t).count());
    }
}

/// What was loaded, cut and left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// Each file with its format.
    pub files: Vec<FileReport>,
    /// Rows to train on.
    pub rows: usize,
    /// Groups that an epoch sees: pairs, or else single rows.
    #[serde(default)]
    pub groups_per_epoch: u64,
    /// Tokens of all rows.
    pub tokens: usize,
    /// Tokens whose prediction counts.
    pub target_tokens: usize,
    /// Length of the longest row, in tokens.
    pub longest_row: usize,
    /// Rows whose end was cut off at `max_seq_len`.
    pub truncated: usize,
    /// Records left out, for any of the reasons below.
    pub skipped: usize,
    /// Of them, not readable as a record of the format.
    pub skipped_malformed: usize,
    /// Of them, longer than `max_seq_len`.
    pub skipped_overlong: usize,
    /// Of them, without a target token.
    pub skipped_without_target: usize,
    /// Rows in which a token holds the end of a prompt and the beginning of its answer.
    pub merged_boundaries: usize,
    /// Windows of documents left out because they held a single left-over token.
    pub dropped_windows: usize,
    /// What the user should know: of single records the first few, with file and line.
    pub warnings: Vec<String>,
    #[serde(skip)]
    num_record_warnings: usize,
    /// How many rows have which length.
    pub length_histogram: Vec<LengthBin>,
}

/// One file of the set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FileReport {
    /// The file, as named or found.
    pub file: String,
    /// Its records' format, with the fields used.
    pub format: String,
    /// Records read, those left out included.
    pub records: usize,
    /// Rows made of them.
    pub rows: usize,
    /// Groups of these rows that are learnt together: pairs, or else single rows.
    #[serde(default)]
    pub groups: usize,
    /// How often an epoch sees each of them.
    #[serde(default = "once")]
    pub weight: f64,
    /// Groups of it that an epoch sees, on average over the epochs.
    #[serde(default)]
    pub groups_per_epoch: f64,
}

fn once() -> f64 {
    1.0
}

/// Rows of more tokens than the bin before and at most `up_to`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LengthBin {
    /// Longest row of the bin, in tokens.
    pub up_to: usize,
    /// Number of rows.
    pub rows: usize,
}

impl DataReport {
    /// Whether any of the files is of format text.
    pub fn holds_documents(&self) -> bool {
        self.files.iter().any(|file| file.format == Format::Text.name())
    }

    fn count_row(&mut self, num_tokens: usize, num_targets: usize) {
        self.rows += 1;
        self.tokens += num_tokens;
        self.target_tokens += num_targets;
        self.longest_row = self.longest_row.max(num_tokens);
        if let Some(file) = self.files.last_mut() {
            file.rows += 1;
        }
        while self.length_histogram.last().is_none_or(|bin| bin.up_to < num_tokens) {
            let up_to = self.length_histogram.last().map_or(FIRST_BIN, |bin| 2 * bin.up_to);
            self.length_histogram.push(LengthBin { up_to, rows: 0 });
        }
        let bin = self.length_histogram.iter_mut().find(|bin| num_tokens <= bin.up_to);
        bin.expect("the last bin is wide enough").rows += 1;
    }

    pub(crate) fn count_record(&mut self) {
        if let Some(file) = self.files.last_mut() {
            file.records += 1;
        }
    }

    /// Keeps a warning on a single record, unless there are many already.
    pub(crate) fn warn_of_record(&mut self, warning: String) {
        self.num_record_warnings += 1;
        if self.num_record_warnings <= MAX_WARNINGS {
            self.warnings.push(warning);
        }
    }

    /// Keeps a warning on a file or on the whole set.
    pub(crate) fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }
}
