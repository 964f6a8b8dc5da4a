//! Whether a model does worse on tasks than an earlier evaluation of the same documents.

use super::error::TaskError;
use super::group::Entry;
use super::metrics::Term;
use super::recorded::{Recorded, RecordedMetric, RecordedTask};
use super::result::{Results, Value};
use super::statistics::difference;
use crate::statistics::Estimate;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// An earlier evaluation, as `--output` writes it.
#[derive(Debug)]
pub struct Gate {
    file: PathBuf,
    earlier: Vec<RecordedTask>,
}

/// What became of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The task or group.
    pub name: String,
    /// The metric.
    pub metric: String,
    /// The pipeline of filters before it.
    pub filter: String,
    /// Its earlier value.
    pub before: f64,
    /// Its value now.
    pub after: f64,
    /// `after` less `before`, of the same documents.
    pub difference: Estimate,
    /// Whether the whole interval of the difference is on the worse side; `None` where the value is
    /// on that side and there is no interval, as of a single text.
    pub is_worse: Option<bool>,
}

/// Terms before and now, of the same documents.
#[derive(Default)]
struct Pairs {
    before: Vec<Term>,
    after: Vec<Term>,
}

impl Gate {
    /// Reads the file.
    ///
    /// # Errors
    /// If it is not what `--output` writes.
    pub fn read(file: &Path) -> Result<Self, TaskError> {
        let text = std::fs::read_to_string(file).map_err(|error| TaskError::file(file, error))?;
        let read: Recorded = serde_json::from_str(&text).map_err(|error| {
            let what = format!("is not what `hone eval --task … --output` writes: {error}");
            TaskError::file(file, what)
        })?;
        if read.tasks.is_empty() {
            return Err(TaskError::file(file, "has no tasks, so that nothing could be worse"));
        }
        Ok(Self { file: file.to_owned(), earlier: read.tasks })
    }

    /// Checks that all its tasks are asked, of the same documents and in the same words. `asked`
    /// has the tasks' names and digests.
    ///
    /// # Errors
    /// If not, naming the first task that is not.
    pub fn check(&self, asked: &[(&str, String)]) -> Result<(), TaskError> {
        for earlier in &self.earlier {
            let name = &earlier.task;
            let what = match asked.iter().find(|(asked, _)| asked == name) {
                Some((_, digest)) if *digest == earlier.items_sha256 => continue,
                Some(_) => format!(
                    "`{name}` was evaluated on other items (documents, prompts, examples or \
                     --limit), so that values cannot be compared; evaluate as then, or write the \
                     file anew"
                ),
                None => format!("has the task `{name}`, which is not evaluated; add --task {name}"),
            };
            return Err(TaskError::file(&self.file, what));
        }
        Ok(())
    }

    /// Compares what was found, for which [`check`](Self::check) passed: groups by all documents of
    /// their tasks together, since of many tasks some are worse by chance, and other tasks each.
    ///
    /// # Errors
    /// If the file has metrics that a task has no more, or scores of other documents.
    pub fn verdicts(&self, found: &Results) -> Result<Vec<Verdict>, TaskError> {
        let mut verdicts = Vec::new();
        for entry in &found.entries {
            self.add(entry, found, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    fn add(
        &self,
        entry: &Entry,
        found: &Results,
        verdicts: &mut Vec<Verdict>,
    ) -> Result<(), TaskError> {
        let group = match entry {
            Entry::Task(i) => {
                let name = &found.tasks[*i].name;
                for earlier in self.earlier.iter().filter(|earlier| earlier.task == *name) {
                    let (value, pairs) = self.pairs(earlier, found)?;
                    verdicts.push(compared(value, name, &pairs));
                }
                return Ok(());
            }
            Entry::Group(group) => group,
        };
        let summed_up = found.groups.iter().find(|known| known.name == group.name);
        let values = summed_up.map_or(&[][..], |known| &known.values);
        if values.is_empty() {
            return group.members.iter().try_for_each(|member| self.add(member, found, verdicts));
        }
        let names: Vec<&str> =
            group.tasks().into_iter().map(|i| found.tasks[i].name.as_str()).collect();
        for value in values {
            let mut all = Pairs::default();
            let is_of = |earlier: &&RecordedTask| {
                names.contains(&earlier.task.as_str())
                    && (&earlier.metric.metric, &earlier.metric.filter)
                        == (&value.metric, &value.filter)
            };
            for earlier in self.earlier.iter().filter(is_of) {
                let (_, Pairs { before, after }) = self.pairs(earlier, found)?;
                all.before.extend(before);
                all.after.extend(after);
            }
            if !all.before.is_empty() {
                verdicts.push(compared(value, &group.name, &all));
            }
        }
        Ok(())
    }

    /// A metric's value now, and its terms.
    fn pairs<'r>(
        &self,
        earlier: &RecordedTask,
        found: &'r Results,
    ) -> Result<(&'r Value, Pairs), TaskError> {
        let RecordedTask { task: name, metric, scores, .. } = earlier;
        let RecordedMetric { metric, filter, .. } = metric;
        let is_it = |value: &Value| value.metric == *metric && value.filter == *filter;
        let task = found.tasks.iter().find(|task| task.name == *name);
        let at = task.and_then(|task| Some((task, task.values.iter().position(is_it)?)));
        let Some((task, at)) = at else {
            let what = format!(
                "has `{metric}` (filter `{filter}`) of `{name}`, which is not measured any more; \
                 write the file anew"
            );
            return Err(TaskError::file(&self.file, what));
        };
        let pairs = Pairs {
            before: scores.iter().copied().map(Term::from).collect(),
            after: task.terms(at),
        };
        let [before, after] = [pairs.before.len(), pairs.after.len()];
        if before != after {
            let what = format!(
                "has {before} scores of `{name}`, which has {after} items; write the file anew"
            );
            return Err(TaskError::file(&self.file, what));
        }
        Ok((&task.values[at], pairs))
    }
}

/// Of at least one document.
fn compared(value: &Value, name: &str, Pairs { before, after }: &Pairs) -> Verdict {
    let of = |terms: &[Term]| value.aggregation.of(terms.iter().copied());
    let difference = difference(value.aggregation, before, after);
    let lost = if value.higher_is_better { -difference.value } else { difference.value };
    let is_worse = match difference.interval {
        Some([_, high]) if value.higher_is_better => Some(high < 0.0),
        Some([low, _]) => Some(low > 0.0),
        None => (lost <= 0.0).then_some(false),
    };
    Verdict {
        name: name.to_owned(),
        metric: value.metric.clone(),
        filter: value.filter.clone(),
        before: of(before),
        after: of(after),
        difference,
        is_worse,
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Aggregation;
    use super::*;

    fn value(aggregation: Aggregation) -> Value {
        Value {
            metric: "m".to_owned(),
            filter: "none".to_owned(),
            estimate: Estimate { value: 0.0, stderr: None, interval: None },
            aggregation,
            higher_is_better: aggregation == Aggregation::Mean,
        }
    }

    fn terms(values: impl IntoIterator<Item = f64>) -> Vec<Term> {
        values.into_iter().map(|value| Term { value, weight: 1.0 }).collect()
    }

    /// A few answers that flip are chance, many one way are not; as many the other way are better.
    #[test]
    fn shares_are_worse_beyond_chance_only() {
        let right = |n: usize| terms((0..100).map(|i| f64::from(u8::from(i < n))));
        let of = |before, after| {
            let pairs = Pairs { before: right(before), after: right(after) };
            compared(&value(Aggregation::Mean), "t", &pairs)
        };
        let fallen = of(60, 52);
        assert_eq!((fallen.before, fallen.after, fallen.is_worse), (0.6, 0.52, Some(true)));
        assert!((fallen.difference.value + 0.08).abs() < 1e-12, "{fallen:?}");
        for (before, after) in [(60, 57), (60, 60), (52, 60)] {
            assert_eq!(of(before, after).is_worse, Some(false), "{before} {after}");
        }
    }

    /// Of perplexities less is better, and documents' shares of it count, not their order.
    #[test]
    fn perplexities_are_worse_where_they_rise() {
        let log_probs = |more: f64| terms((0..50).map(|i| -2.0 - f64::from(i % 7) - more));
        let of = |before, after| {
            let pairs = Pairs { before: log_probs(before), after: log_probs(after) };
            compared(&value(Aggregation::Perplexity), "t", &pairs).is_worse
        };
        let found = [of(0.0, 0.1), of(0.1, 0.0), of(0.0, 0.0)];
        assert_eq!(found, [Some(true), Some(false), Some(false)]);
        // Of few documents it is known only that what is no worse is not.
        let few = |before: f64, after: f64| {
            let pairs = Pairs { before: terms([before; 3]), after: terms([after; 3]) };
            compared(&value(Aggregation::Perplexity), "t", &pairs).is_worse
        };
        let found = [few(-1.0, -2.0), few(-1.0, -1.0), few(-2.0, -1.0), few(-1.0, f64::NAN)];
        assert_eq!(found, [None, Some(false), Some(false), None]);
    }
}
