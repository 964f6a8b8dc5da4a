//! Whether a model does worse on tasks than an earlier evaluation of the same documents.

use super::error::TaskError;
use super::metrics::{Aggregation, Score, Term};
use super::result::{Results, TaskResult, Value};
use crate::statistics::{Estimate, bootstrap, paired_shares};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A metric of an earlier evaluation.
#[derive(Debug, Deserialize)]
struct Earlier {
    task: String,
    metric: String,
    filter: String,
    items_sha256: String,
    scores: Vec<Score>,
}

#[derive(Deserialize)]
struct File {
    tasks: Vec<Earlier>,
}

/// An earlier evaluation, as `--output` writes it.
#[derive(Debug)]
pub struct Gate {
    file: PathBuf,
    earlier: Vec<Earlier>,
}

/// What became of a metric.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The task.
    pub task: String,
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
    /// Whether the whole interval of the difference is on the worse side.
    pub is_worse: bool,
}

impl Gate {
    /// Reads the file.
    ///
    /// # Errors
    /// If it is not what `--output` writes.
    pub fn read(file: &Path) -> Result<Self, TaskError> {
        let text = std::fs::read_to_string(file).map_err(|error| TaskError::file(file, error))?;
        let read: File = serde_json::from_str(&text).map_err(|error| {
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

    /// Compares what was found, for which [`check`](Self::check) passed.
    ///
    /// # Errors
    /// If the file has metrics that the task has no more, or scores of other documents.
    pub fn verdicts(&self, found: &Results) -> Result<Vec<Verdict>, TaskError> {
        self.earlier.iter().map(|earlier| self.verdict(earlier, found)).collect()
    }

    fn verdict(&self, earlier: &Earlier, found: &Results) -> Result<Verdict, TaskError> {
        let Earlier { task: name, metric, filter, scores, .. } = earlier;
        let values = |task: &'_ TaskResult| {
            let is_it = |value: &Value| value.metric == *metric && value.filter == *filter;
            task.values.iter().position(is_it)
        };
        let task = found.tasks.iter().find(|task| task.name == *name);
        let Some((task, at)) = task.and_then(|task| Some((task, values(task)?))) else {
            let what = format!(
                "has `{metric}` (filter `{filter}`) of `{name}`, which is not measured any more; \
                 write the file anew"
            );
            return Err(TaskError::file(&self.file, what));
        };
        let (value, after) = (&task.values[at], task.terms(at));
        let before: Vec<Term> = scores.iter().copied().map(Term::from).collect();
        if before.len() != after.len() {
            let what = format!(
                "has {} scores of `{name}`, which has {} items; write the file anew",
                before.len(),
                after.len()
            );
            return Err(TaskError::file(&self.file, what));
        }
        Ok(compared(value, name, &before, &after))
    }
}

/// Of terms of the same documents, at least one.
fn compared(value: &Value, task: &str, before: &[Term], after: &[Term]) -> Verdict {
    let of = |terms: &[Term]| value.aggregation.of(terms.iter().copied());
    let is_share = value.aggregation == Aggregation::Mean
        && before.iter().chain(after).all(|t| t.weight == 1.0 && [0.0, 1.0].contains(&t.value));
    let difference = if is_share {
        paired_shares(before.iter().zip(after).map(|(b, a)| [b.value > 0.5, a.value > 0.5]))
    } else {
        bootstrap(before.len(), |drawn| {
            let of_drawn = |terms: &[Term]| value.aggregation.of(drawn.iter().map(|&i| terms[i]));
            of_drawn(after) - of_drawn(before)
        })
    };
    let is_worse = difference.interval.is_some_and(|[low, high]| match value.higher_is_better {
        true => high < 0.0,
        false => low > 0.0,
    });
    Verdict {
        task: task.to_owned(),
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
        let of =
            |before, after| compared(&value(Aggregation::Mean), "t", &right(before), &right(after));
        let fallen = of(60, 52);
        assert!(fallen.is_worse && (fallen.difference.value + 0.08).abs() < 1e-12, "{fallen:?}");
        assert!((fallen.before, fallen.after) == (0.6, 0.52));
        assert!(!of(60, 57).is_worse && !of(60, 60).is_worse && !of(52, 60).is_worse);
    }

    /// Of perplexities less is better, and documents' shares of it count, not their order.
    #[test]
    fn perplexities_are_worse_where_they_rise() {
        let log_probs = |more: f64| terms((0..50).map(|i| -2.0 - f64::from(i % 7) - more));
        let of = |before, after| {
            compared(&value(Aggregation::Perplexity), "t", &log_probs(before), &log_probs(after))
        };
        let risen = of(0.0, 0.1);
        assert!(risen.is_worse && risen.after > risen.before, "{risen:?}");
        assert!(!of(0.1, 0.0).is_worse && !of(0.0, 0.0).is_worse);
    }
}
