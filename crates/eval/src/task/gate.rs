//! Whether a model does worse on tasks than an earlier evaluation of the same documents.

use super::error::TaskError;
use super::group::Entry;
use super::metrics::{Aggregation, Term};
use super::recorded::{Recorded, RecordedTask};
use super::result::{Results, Value};
use super::run::Prepared;
use super::statistics::{Together, difference};
use crate::statistics::Estimate;
use serde::Serialize;
use std::collections::BTreeSet;
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

/// Terms of a task before and now, of the same documents.
struct Pairs {
    aggregation: Aggregation,
    before: Vec<Term>,
    after: Vec<Term>,
}

/// Tasks with metrics and filters that are compared as parts of a group.
type Covered<'a> = BTreeSet<(&'a str, &'a str, &'a str)>;

fn key(earlier: &RecordedTask) -> (&str, &str, &str) {
    (&earlier.task, &earlier.metric.metric, &earlier.metric.filter)
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

    /// Checks that all its tasks are asked, of the same documents and in the same words, and all
    /// its metrics measured.
    ///
    /// # Errors
    /// If not, naming the first task or metric that is not.
    pub fn check(&self, asked: &[Prepared<'_>]) -> Result<(), TaskError> {
        for earlier in &self.earlier {
            let (name, metric, filter) = key(earlier);
            let what = match asked.iter().find(|asked| asked.name() == name) {
                None => format!("has the task `{name}`, which is not evaluated; add --task {name}"),
                Some(asked) if asked.digest() != earlier.items_sha256 => format!(
                    "`{name}` was evaluated on other items (documents, prompts, examples or \
                     --limit), so that values cannot be compared; evaluate as then, or write the \
                     file anew"
                ),
                Some(asked) if !asked.measures(metric, filter) => format!(
                    "has `{metric}` (filter `{filter}`) of `{name}`, which is not measured any \
                     more; write the file anew"
                ),
                Some(asked) if asked.num_items() != earlier.scores.len() => format!(
                    "has {} scores of `{name}`, which has {} items; write the file anew",
                    earlier.scores.len(),
                    asked.num_items()
                ),
                Some(_) => continue,
            };
            return Err(TaskError::file(&self.file, what));
        }
        Ok(())
    }

    /// Compares what was found, for which [`check`](Self::check) passed: what groups sum up by all
    /// documents of their tasks together, since of many tasks some are worse by chance, and all
    /// else of each task.
    ///
    /// # Panics
    /// If `check` would not pass.
    pub fn verdicts(&self, found: &Results) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for entry in &found.entries {
            self.add(entry, found, &Covered::new(), &mut verdicts);
        }
        verdicts
    }

    /// Adds what no group around it covers.
    fn add<'s>(
        &'s self,
        entry: &Entry,
        found: &Results,
        covered: &Covered<'s>,
        verdicts: &mut Vec<Verdict>,
    ) {
        let mut add = |value: &Value, name: &str, pairs: &[Pairs]| {
            let verdict = compared(value, name, pairs);
            // A task may be in several groups of a group.
            let is_it = |other: &Verdict| {
                let of = |verdict: &Verdict| {
                    [&verdict.name, &verdict.metric, &verdict.filter].map(String::clone)
                };
                of(other) == of(&verdict)
            };
            if !verdicts.iter().any(is_it) {
                verdicts.push(verdict);
            }
        };
        let is_open = |earlier: &&RecordedTask| !covered.contains(&key(earlier));
        let group = match entry {
            Entry::Task(i) => {
                let name = &found.tasks[*i].name;
                let of_task = self.earlier.iter().filter(|earlier| earlier.task == *name);
                for earlier in of_task.filter(is_open) {
                    let (value, pairs) = pairs(earlier, found);
                    add(value, name, &[pairs]);
                }
                return;
            }
            Entry::Group(group) => group,
        };
        let names: Vec<&str> =
            group.tasks().into_iter().map(|i| found.tasks[i].name.as_str()).collect();
        let summed_up = found.groups.iter().find(|known| known.name == group.name);
        let mut covered = covered.clone();
        for value in summed_up.map_or(&[][..], |known| &known.values) {
            let is_of = |earlier: &&RecordedTask| {
                let (task, metric, filter) = key(earlier);
                names.contains(&task) && (metric, filter) == (&*value.metric, &*value.filter)
            };
            let parts: Vec<&RecordedTask> = self.earlier.iter().filter(is_of).collect();
            if parts.iter().any(is_open) {
                let pairs: Vec<Pairs> = parts.iter().map(|part| pairs(part, found).1).collect();
                add(value, &group.name, &pairs);
            }
            covered.extend(parts.into_iter().map(key));
        }
        group.members.iter().for_each(|member| self.add(member, found, &covered, verdicts));
    }
}

/// A metric's value now, and its terms.
fn pairs<'r>(earlier: &RecordedTask, found: &'r Results) -> (&'r Value, Pairs) {
    let (name, metric, filter) = key(earlier);
    let is_it = |value: &Value| value.metric == metric && value.filter == filter;
    let task = found.tasks.iter().find(|task| task.name == name);
    let at = task.and_then(|task| Some((task, task.values.iter().position(is_it)?)));
    let (task, at) = at.expect("a metric that was checked");
    let value = &task.values[at];
    let (before, after) = (earlier.terms(), task.terms(at));
    (value, Pairs { aggregation: value.aggregation, before, after })
}

/// Of at least one task, each with at least one document.
fn compared(value: &Value, name: &str, pairs: &[Pairs]) -> Verdict {
    let by_size = value.weight_by_size.unwrap_or(true);
    let side = |terms: for<'p> fn(&'p Pairs) -> &'p [Term]| {
        let tasks = pairs.iter().map(|pair| (pair.aggregation, terms(pair))).collect();
        Together::new(tasks, by_size)
    };
    let (before, after) = (side(|pair| &pair.before), side(|pair| &pair.after));
    let difference = difference(&before, &after);
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
        before: before.value(),
        after: after.value(),
        difference,
        is_worse,
    }
}

#[cfg(test)]
mod tests {
    use super::super::group::{Aggregate, Group};
    use super::super::result::{Judged, TaskResult};
    use super::*;
    use serde_json::Value as Json;

    fn value(aggregation: Aggregation) -> Value {
        Value {
            metric: "m".to_owned(),
            filter: "none".to_owned(),
            estimate: Estimate { value: 0.0, stderr: None, interval: None },
            aggregation,
            higher_is_better: aggregation == Aggregation::Mean,
            weight_by_size: None,
        }
    }

    fn verdict(aggregation: Aggregation, before: Vec<Term>, after: Vec<Term>) -> Verdict {
        compared(&value(aggregation), "t", &[Pairs { aggregation, before, after }])
    }

    fn terms(values: impl IntoIterator<Item = f64>) -> Vec<Term> {
        values.into_iter().map(|value| Term { value, weight: 1.0 }).collect()
    }

    /// A few answers that flip are chance, many one way are not; as many the other way are better.
    #[test]
    fn shares_are_worse_beyond_chance_only() {
        let right = |n: usize| terms((0..100).map(|i| f64::from(u8::from(i < n))));
        let of = |before, after| verdict(Aggregation::Mean, right(before), right(after));
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
            verdict(Aggregation::Perplexity, log_probs(before), log_probs(after)).is_worse
        };
        let found = [of(0.0, 0.1), of(0.1, 0.0), of(0.0, 0.0)];
        assert_eq!(found, [Some(true), Some(false), Some(false)]);
        // Of few documents it is known only that what is no worse is not.
        let few = |before: f64, after: f64| {
            verdict(Aggregation::Perplexity, terms([before; 3]), terms([after; 3])).is_worse
        };
        let found = [few(-1.0, -2.0), few(-1.0, -1.0), few(-2.0, -1.0), few(-1.0, f64::NAN)];
        assert_eq!(found, [None, Some(false), Some(false), None]);
    }

    /// Of a task whose documents all have this score in each metric, with what is recorded of it.
    fn task(name: &str, metrics: &[&str], scores: &[f64]) -> (TaskResult, Vec<RecordedTask>) {
        let of = |metric: &&str| Value { metric: (*metric).to_owned(), ..value(Aggregation::Mean) };
        let judged = |score: &f64| Judged {
            terms: vec![vec![Term { value: *score, weight: 1.0 }; metrics.len()]],
            prediction: Json::Null,
            log_likelihoods: Vec::new(),
            answer: None,
        };
        let result = TaskResult {
            name: name.to_owned(),
            alias: name.to_owned(),
            version: None,
            num_fewshot: 0,
            digest: String::new(),
            values: metrics.iter().map(of).collect(),
            metrics: metrics.iter().map(|metric| (*metric).to_owned()).collect(),
            filters: vec!["none".to_owned()],
            items: Vec::new(),
            judged: scores.iter().map(judged).collect(),
        };
        let results = Results::new(vec![Entry::Task(0)], vec![result]);
        let recorded: Recorded = serde_json::from_value(results.to_json()).unwrap();
        (results.tasks.into_iter().next().unwrap(), recorded.tasks)
    }

    fn group(name: &str, members: Vec<Entry>, sums: &[&str], weight_by_size: bool) -> Group {
        let aggregate = |metric: &&str| Aggregate {
            metric: (*metric).to_owned(),
            filters: None,
            weight_by_size,
        };
        let aggregates = sums.iter().map(aggregate).collect();
        Group { name: name.to_owned(), alias: name.to_owned(), members, aggregates }
    }

    /// The verdicts of tasks whose answers were all right, and are all wrong.
    fn fallen(entry: Group, tasks: &[(&str, &[&str], usize)]) -> Vec<String> {
        let of = |score: f64| {
            tasks.iter().map(move |(name, metrics, n)| task(name, metrics, &vec![score; *n]))
        };
        let earlier = of(1.0).flat_map(|(_, recorded)| recorded).collect();
        let gate = Gate { file: PathBuf::from("before.json"), earlier };
        let now = of(0.0).map(|(result, _)| result).collect();
        let verdicts = gate.verdicts(&Results::new(vec![Entry::Group(entry)], now));
        let words = |verdict: Verdict| {
            assert_eq!((verdict.before, verdict.after), (1.0, 0.0));
            assert_eq!(verdict.is_worse, Some(true));
            format!("{} {}", verdict.name, verdict.metric)
        };
        verdicts.into_iter().map(words).collect()
    }

    /// A metric that a group does not sum up, of a task with others that it does or of a task
    /// without them, is compared by itself; one that it does is compared in it alone.
    #[test]
    fn what_no_group_sums_up_is_compared_task_by_task() {
        let tasks: [(&str, &[&str], usize); 3] =
            [("a", &["acc", "acc_norm"], 40), ("b", &["exact_match"], 40), ("c", &["acc"], 40)];
        let members = || (0..3).map(Entry::Task).collect();
        let found = fallen(group("g", members(), &["acc"], true), &tasks);
        assert_eq!(found, ["g acc", "a acc_norm", "b exact_match"]);
        let found = fallen(group("g", members(), &[], true), &tasks);
        assert_eq!(found, ["a acc", "a acc_norm", "b exact_match", "c acc"]);
        // An inner group covers what the outer one leaves, even where a task is in two of them.
        let inner = |name| {
            let members = vec![Entry::Task(0), Entry::Task(1)];
            Entry::Group(group(name, members, &["acc", "acc_norm"], true))
        };
        let members = vec![inner("i"), inner("j"), Entry::Task(2)];
        let found = fallen(group("g", members, &["acc"], true), &tasks);
        assert_eq!(found, ["g acc", "i acc_norm", "b exact_match", "j acc_norm"]);
    }

    /// Of a group whose tasks count alike, what is compared is what is shown of it.
    #[test]
    fn a_group_s_own_values_are_compared() {
        let (large, small) = (vec![1.0; 90], vec![0.0; 10]);
        let of = |small: &[f64]| [task("a", &["acc"], &large), task("b", &["acc"], small)];
        let earlier = of(&small).into_iter().flat_map(|(_, recorded)| recorded).collect();
        let gate = Gate { file: PathBuf::from("before.json"), earlier };
        for (by_size, before, after) in [(true, 0.9, 1.0), (false, 0.5, 1.0)] {
            let now = of(&[1.0; 10]).into_iter().map(|(result, _)| result).collect();
            let members = vec![Entry::Task(0), Entry::Task(1)];
            let entry = Entry::Group(group("g", members, &["acc"], by_size));
            let found = Results::new(vec![entry], now);
            let verdict = &gate.verdicts(&found)[0];
            assert_eq!((verdict.before, verdict.after), (before, after));
            assert_eq!(verdict.after, found.groups[0].values[0].estimate.value);
            assert!((verdict.difference.value - (after - before)).abs() < 1e-12, "{verdict:?}");
        }
    }
}
