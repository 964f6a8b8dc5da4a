//! All keys of the run file, and how to find one.

use super::schema::{Key, Section};
use super::sections::{
    AdapterSection, BudgetSection, CheckpointSection, DataSection, ModelSection, ObjectiveSection,
    OptimizerSection, OutputSection, ReportSection, RunSection, ScheduleSection, TrainSection,
};

/// All tables, in the order of the reference.
pub(super) const SECTIONS: &[&Section] = &[
    &ModelSection::SECTION,
    &DataSection::SECTION,
    &AdapterSection::SECTION,
    &ObjectiveSection::SECTION,
    &TrainSection::SECTION,
    &OptimizerSection::SECTION,
    &ScheduleSection::SECTION,
    &CheckpointSection::SECTION,
    &BudgetSection::SECTION,
    &RunSection::SECTION,
    &ReportSection::SECTION,
    &OutputSection::SECTION,
];

/// Keys of which only one may be given. On the command line, one takes the place of the other
/// that the file gives.
pub(super) const EXCLUSIVE: [(&str, &str); 2] =
    [("train.num_epochs", "train.max_steps"), ("train.warmup_ratio", "train.warmup_steps")];

/// All keys, in the order of the reference; kinds of one table may share a path.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys())
}

/// The key of that path; of several kinds' keys, which accept the same values, any.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path == path)
}

/// The table of that name.
pub(super) fn section(table: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.table == table).copied()
}

/// Names of the tables, in the order of the reference.
pub(super) fn tables() -> impl Iterator<Item = &'static str> {
    SECTIONS.iter().map(|section| section.table)
}
