//! What an evaluation found, as JSON and for tables.

use super::group::{Entry, Group};
use super::metrics::{Aggregation, Score, Term};
use super::prompt::{Item, Request};
use super::statistics::combined;
use crate::statistics::Estimate;
use serde::Serialize;
use serde_json::{Value as Json, json};

/// One document's numbers: of each pipeline, of each metric.
pub struct Judged {
    /// What it adds to each.
    pub terms: Vec<Vec<Term>>,
    /// The number of the chosen answer, whether a continuation is the likeliest, or what each
    /// pipeline left of an answer.
    pub prediction: Json,
    /// Of each request.
    pub log_likelihoods: Vec<f64>,
    /// What was generated.
    pub answer: Option<String>,
}

/// A metric's value.
#[derive(Clone, Debug, Serialize)]
pub struct Value {
    /// Its name.
    pub metric: String,
    /// The pipeline of filters before it.
    pub filter: String,
    /// The value.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// How documents' numbers became it; of a group its members'.
    pub aggregation: Aggregation,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Of a group: whether its tasks count by their numbers of documents, or alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_by_size: Option<bool>,
}

/// What was found for a task.
pub struct TaskResult {
    /// Its name.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// Its version.
    pub version: Option<String>,
    /// Examples before each document.
    pub num_fewshot: usize,
    /// Of all requests and targets.
    pub digest: String,
    /// Every metric's value.
    pub values: Vec<Value>,
    /// Names of metrics and of pipelines, as `Judged::terms` has them.
    pub metrics: Vec<String>,
    /// Of pipelines.
    pub filters: Vec<String>,
    /// What was asked.
    pub items: Vec<Item>,
    /// What came of it.
    pub judged: Vec<Judged>,
}

impl TaskResult {
    /// What each document adds to the value number `at` of `values`.
    pub fn terms(&self, at: usize) -> Vec<Term> {
        let (pipeline, metric) = (at / self.metrics.len(), at % self.metrics.len());
        self.judged.iter().map(|judged| judged.terms[pipeline][metric]).collect()
    }
}

/// A group's values.
pub struct GroupResult {
    /// Its name.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// Its tasks, also those of groups in it.
    pub tasks: Vec<String>,
    /// Documents of all its tasks.
    pub num_items: usize,
    /// The values; none if the group names no metric.
    pub values: Vec<Value>,
}

/// A line of a table: a task or group, indented by its depth.
pub struct Line<'a> {
    /// Groups around it.
    pub depth: usize,
    /// What it is called.
    pub alias: &'a str,
    /// Examples before each document; `None` of a group.
    pub num_fewshot: Option<usize>,
    /// Documents.
    pub num_items: usize,
    /// Values.
    pub values: &'a [Value],
}

/// Everything that was found.
pub struct Results {
    /// Tasks and groups as they were asked for.
    pub entries: Vec<Entry>,
    /// Of each task.
    pub tasks: Vec<TaskResult>,
    /// Of each group, in the order of `entries`, outer ones first.
    pub groups: Vec<GroupResult>,
}

impl Results {
    /// Sums groups up.
    pub fn new(entries: Vec<Entry>, tasks: Vec<TaskResult>) -> Self {
        let mut groups = Vec::new();
        for entry in &entries {
            add_groups(entry, &tasks, &mut groups);
        }
        Self { entries, tasks, groups }
    }

    /// The object that `--json` and `--output` write: `tasks`, and `groups` if there are any, with
    /// one object for each metric.
    pub fn to_json(&self) -> Json {
        let with = |value: &Value, more: Json| {
            let mut object = json!(value);
            if let (Some(object), Json::Object(more)) = (object.as_object_mut(), more) {
                for (key, value) in more.into_iter().rev() {
                    object.shift_insert(0, key, value);
                }
            }
            object
        };
        let of_task = |task: &TaskResult| {
            let more = |(at, value): (usize, &Value)| {
                let mut object = with(
                    value,
                    json!({
                        "task": task.name, "version": task.version, "num_fewshot": task.num_fewshot,
                        "num_items": task.items.len(), "items_sha256": task.digest,
                    }),
                );
                let scores: Vec<Score> = task.terms(at).into_iter().map(Score::from).collect();
                object["scores"] = json!(scores);
                object
            };
            task.values.iter().enumerate().map(more).collect::<Vec<_>>()
        };
        let of_group = |group: &GroupResult| {
            let more = |value: &Value| {
                let GroupResult { name, tasks, num_items, .. } = group;
                with(value, json!({ "group": name, "num_items": num_items, "tasks": tasks }))
            };
            group.values.iter().map(more).collect::<Vec<_>>()
        };
        let mut object =
            json!({ "tasks": self.tasks.iter().flat_map(of_task).collect::<Vec<_>>() });
        if !self.groups.is_empty() {
            object["groups"] = self.groups.iter().flat_map(of_group).collect();
        }
        object
    }

    /// One object for each document, in order: what was asked, what came of it, what it counts.
    pub fn items(&self) -> impl Iterator<Item = Json> {
        self.tasks.iter().flat_map(|task| {
            let number =
                |(i, (item, judged)): (usize, (&Item, &Judged))| item_json(task, i, item, judged);
            task.items.iter().zip(&task.judged).enumerate().map(number).collect::<Vec<_>>()
        })
    }

    /// Lines of a table: groups before their members.
    pub fn lines(&self) -> Vec<Line<'_>> {
        let (mut lines, mut groups) = (Vec::new(), self.groups.iter());
        for entry in &self.entries {
            self.add_lines(entry, 0, &mut groups, &mut lines);
        }
        lines
    }

    fn add_lines<'a>(
        &'a self,
        entry: &Entry,
        depth: usize,
        groups: &mut std::slice::Iter<'a, GroupResult>,
        lines: &mut Vec<Line<'a>>,
    ) {
        match entry {
            Entry::Task(i) => {
                let task = &self.tasks[*i];
                lines.push(Line {
                    depth,
                    alias: &task.alias,
                    num_fewshot: Some(task.num_fewshot),
                    num_items: task.items.len(),
                    values: &task.values,
                });
            }
            Entry::Group(group) => {
                if let Some(found) = groups.next() {
                    let GroupResult { alias, num_items, values, .. } = found;
                    let (num_fewshot, num_items) = (None, *num_items);
                    lines.push(Line { depth, alias, num_fewshot, num_items, values });
                }
                for member in &group.members {
                    self.add_lines(member, depth + 1, groups, lines);
                }
            }
        }
    }
}

fn item_json(task: &TaskResult, i: usize, item: &Item, judged: &Judged) -> Json {
    let request = |request: &Request| match request {
        Request::Likelihood { context, continuation } => {
            json!({ "context": context, "continuation": continuation })
        }
        Request::Rolling(text) => json!({ "text": text }),
        Request::Generate(context) => json!({ "context": context }),
    };
    let metrics = task.filters.iter().zip(&judged.terms).flat_map(|(filter, terms)| {
        task.metrics.iter().zip(terms).map(move |(metric, term)| {
            let name = match task.filters.len() {
                1 => metric.clone(),
                _ => format!("{metric},{filter}"),
            };
            (name, Json::from(term.value))
        })
    });
    let mut object = json!({
        "task": task.name,
        "item": i,
        "requests": item.requests.iter().map(request).collect::<Vec<_>>(),
        "target": item.target,
        "prediction": judged.prediction,
        "metrics": metrics.collect::<serde_json::Map<_, _>>(),
    });
    match &judged.answer {
        Some(answer) => object["answer"] = answer.clone().into(),
        None => object["log_likelihoods"] = judged.log_likelihoods.clone().into(),
    }
    object
}

/// Adds the group, then those in it, in the order of tables.
fn add_groups(entry: &Entry, tasks: &[TaskResult], groups: &mut Vec<GroupResult>) {
    let Entry::Group(group) = entry else { return };
    groups.push(group_result(group, tasks));
    for member in &group.members {
        add_groups(member, tasks, groups);
    }
}

fn group_result(group: &Group, tasks: &[TaskResult]) -> GroupResult {
    let members: Vec<&TaskResult> = group.tasks().into_iter().map(|i| &tasks[i]).collect();
    let mut values = Vec::new();
    for aggregate in &group.aggregates {
        let all = members.iter().flat_map(|task| &task.values);
        let mut filters: Vec<&str> = all
            .filter(|value| value.metric == aggregate.metric)
            .map(|value| value.filter.as_str())
            .filter(|name| aggregate.filters.as_ref().is_none_or(|f| f.iter().any(|f| f == name)))
            .collect();
        filters.sort_unstable();
        filters.dedup();
        for filter in filters {
            let of_task = |task: &&TaskResult| {
                let is_it =
                    |value: &Value| value.metric == aggregate.metric && value.filter == filter;
                let at = task.values.iter().position(is_it)?;
                Some((task.values[at].clone(), task.terms(at)))
            };
            let parts: Vec<(Value, Vec<Term>)> = members.iter().filter_map(of_task).collect();
            let tasks = parts.iter().map(|(value, terms)| (value.aggregation, &terms[..]));
            let stderrs: Vec<_> = parts.iter().map(|(value, _)| value.estimate.stderr).collect();
            let by_size = aggregate.weight_by_size;
            values.push(Value {
                estimate: combined(tasks.collect(), &stderrs, by_size),
                weight_by_size: Some(by_size),
                ..parts[0].0.clone()
            });
        }
    }
    let num_items = members.iter().map(|task| task.items.len()).sum();
    let tasks = members.iter().map(|task| task.name.clone()).collect();
    GroupResult { name: group.name.clone(), alias: group.alias.clone(), tasks, num_items, values }
}
