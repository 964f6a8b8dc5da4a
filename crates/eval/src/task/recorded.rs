//! What `hone eval --task … --output` wrote, read again: values, and what each document added to
//! them, so that two models can be compared on the same documents without either.

use super::metrics::{Aggregation, Score, Term};
use super::statistics::difference;
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

/// How much more the second of each pair has than the first, over the documents of all pairs
/// together; `None` if a pair is of other documents, or sums them up in another way.
pub fn compared(pairs: &[[&RecordedTask; 2]]) -> Option<Estimate> {
    let aggregation = pairs.first()?[0].metric.aggregation;
    let is_paired = |[before, after]: &[&RecordedTask; 2]| {
        before.items_sha256 == after.items_sha256
            && before.scores.len() == after.scores.len()
            && before.metric.aggregation == aggregation
            && after.metric.is_same(&before.metric)
    };
    let terms = |side: usize| -> Vec<Term> {
        let scores = pairs.iter().flat_map(|pair| &pair[side].scores);
        scores.copied().map(Term::from).collect()
    };
    let [before, after] = [0, 1].map(terms);
    (pairs.iter().all(is_paired) && !before.is_empty())
        .then(|| difference(aggregation, &before, &after))
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

    /// Documents of several tasks count together; of other documents nothing is said.
    #[test]
    fn the_same_documents_are_compared() {
        let (before, after) = (task("a", &[1.0, 1.0, 0.0]), task("a", &[1.0, 0.0, 0.0]));
        let found = compared(&[[&before, &after]]).unwrap();
        assert!((found.value + 1.0 / 3.0).abs() < 1e-12 && found.interval.is_some());
        let other = task("b", &[0.0]);
        let both = compared(&[[&before, &after], [&other, &other]]).unwrap();
        assert!((both.value + 0.25).abs() < 1e-12, "{both:?}");
        assert_eq!(compared(&[[&before, &other]]), None);
        assert_eq!(compared(&[[&before, &task("a", &[1.0])]]), None);
        assert_eq!(compared(&[[&task("c", &[]), &task("c", &[])]]), None);
        assert_eq!(compared(&[]), None);
        let mut median = before.clone();
        median.metric.aggregation = Aggregation::Median;
        assert_eq!(compared(&[[&median, &after]]), None);
    }
}
