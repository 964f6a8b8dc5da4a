//! What `hone eval --task … --output` wrote, read again: values, and what each document added to
//! them, so that two models can be compared on the same documents without either.

use super::metrics::{Aggregation, Score, Term};
use super::statistics::{Together, difference};
use crate::statistics::Estimate;
use serde::Deserialize;

/// The file.
#[derive(Debug, Deserialize)]
pub struct Recorded {
    /// Of each task and metric.
    pub tasks: Vec<RecordedTask>,
    /// Of each group and metric.
    #[serde(default)]
    pub groups: Vec<RecordedGroup>,
}

/// A metric of a task.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedTask {
    /// The task.
    pub task: String,
    /// The metric, and the pipeline of filters before it.
    #[serde(flatten)]
    pub metric: RecordedMetric,
    /// Digest of all that was asked.
    pub items_sha256: String,
    /// What each document adds to the value.
    pub scores: Vec<Score>,
}

impl RecordedTask {
    /// What each document adds to the value.
    pub(super) fn terms(&self) -> Vec<Term> {
        self.scores.iter().copied().map(Term::from).collect()
    }
}

/// A metric of a group.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedGroup {
    /// The group.
    pub group: String,
    /// The metric, and the pipeline of filters before it.
    #[serde(flatten)]
    pub metric: RecordedMetric,
    /// Names of all its tasks, also of groups in it.
    pub tasks: Vec<String>,
    /// Whether these count by their numbers of documents, or alike.
    #[serde(default = "by_size")]
    pub weight_by_size: bool,
}

/// As groups are summed up that say nothing else.
fn by_size() -> bool {
    true
}

/// A metric's value.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedMetric {
    /// Its name.
    pub metric: String,
    /// The pipeline of filters before it.
    pub filter: String,
    /// The value; `None` where it was not finite.
    pub value: Option<f64>,
    /// Its standard error.
    pub stderr: Option<f64>,
    /// How documents' numbers became it.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Documents.
    pub num_items: usize,
}

impl RecordedMetric {
    /// Whether both are the same metric of the same kind of answers.
    pub fn is_same(&self, other: &Self) -> bool {
        let key = |of: &Self| (of.metric.clone(), of.filter.clone(), of.aggregation);
        key(self) == key(other)
    }
}

/// How much more the second of each pair has than the first, of one task, or of a group's tasks
/// together, which count by their numbers of documents or alike; `None` if there is no pair, or one
/// is of other documents, or sums them up in another way.
pub fn compared(pairs: &[[&RecordedTask; 2]], by_size: bool) -> Option<Estimate> {
    let is_paired = |[before, after]: &[&RecordedTask; 2]| {
        before.items_sha256 == after.items_sha256
            && before.scores.len() == after.scores.len()
            && !before.scores.is_empty()
            && after.metric.is_same(&before.metric)
    };
    if pairs.is_empty() || !pairs.iter().all(is_paired) {
        return None;
    }
    let terms = |side: usize| -> Vec<_> {
        pairs.iter().map(|pair| (pair[side].metric.aggregation, pair[side].terms())).collect()
    };
    let [before, after] = [0, 1].map(terms);
    Some(difference(&together(&before, by_size), &together(&after, by_size)))
}

fn together(tasks: &[(Aggregation, Vec<Term>)], by_size: bool) -> Together<'_> {
    Together::new(tasks.iter().map(|(of, terms)| (*of, &terms[..])).collect(), by_size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn task(digest: &str, scores: &[f64]) -> RecordedTask {
        let object = json!({
            "task": "t", "metric": "acc", "filter": "none", "value": 0.5, "stderr": null,
            "aggregation": "mean", "higher_is_better": true, "num_items": scores.len(),
            "items_sha256": digest, "scores": scores, "interval": [0.0, 1.0],
        });
        serde_json::from_value(object).unwrap()
    }

    /// Tasks of a group count by their documents, or alike; of other documents nothing is said.
    #[test]
    fn the_same_documents_are_compared() {
        let (before, after) = (task("a", &[1.0, 1.0, 0.0]), task("a", &[1.0, 0.0, 0.0]));
        let found = compared(&[[&before, &after]], true).unwrap();
        assert!((found.value + 1.0 / 3.0).abs() < 1e-12 && found.interval.is_some());
        let other = task("b", &[0.0]);
        for (by_size, expected) in [(true, -0.25), (false, -1.0 / 6.0)] {
            let both = compared(&[[&before, &after], [&other, &other]], by_size).unwrap();
            assert!((both.value - expected).abs() < 1e-12, "{both:?}");
        }
        assert_eq!(compared(&[[&before, &other]], true), None);
        assert_eq!(compared(&[[&before, &task("a", &[1.0])]], true), None);
        assert_eq!(compared(&[[&task("c", &[]), &task("c", &[])]], true), None);
        assert_eq!(compared(&[], true), None);
        let mut median = before.clone();
        median.metric.aggregation = Aggregation::Median;
        assert_eq!(compared(&[[&median, &after]], true), None);
    }
}
