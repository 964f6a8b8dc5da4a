//! What `compress` and `eval` wrote of several models, brought together: a model is known by the
//! name that the commands were given, and texts and tasks by the digests of what was asked.

use super::super::compress::{Part, Ways, kinds};
use super::super::eval::named;
use crate::failure::Failure;
use hone_eval::task::recorded::{Recorded, RecordedMetric, RecordedTask, compared};
use hone_train::report::comparison::{Comparison, Figure, Measured, Model, Scored, Task, Text};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Largest file, in bytes: tens of millions of documents.
const MAX_BYTES: u64 = 1 << 30;

/// A model as commands name it.
#[derive(Deserialize)]
struct Named {
    name: String,
    adapter: Option<String>,
    bytes: f64,
    bits_per_weight: f64,
}

/// What `compress --json` prints.
#[derive(Deserialize)]
struct Compressed {
    out: String,
    base: Option<Named>,
    #[serde(default)]
    calibration: Vec<String>,
    bytes: f64,
    bits_per_weight: f64,
    kl: f64,
    same_top: f64,
    num_tokens: usize,
    is_held_out: bool,
    tensors: Vec<Tensor>,
    /// Of an adapter on a quantised model.
    adapter: Option<Ways>,
}

#[derive(Deserialize)]
struct Tensor {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    bytes: f64,
    kl_share: Option<f64>,
}

/// What `eval --against --json` prints.
#[derive(Deserialize)]
struct Against {
    model: Named,
    against: Named,
    data: Vec<String>,
    tokens_sha256: String,
    num_target_tokens: usize,
    kl: Spread,
    same_top: Estimate,
    loss: f64,
    loss_against: f64,
    flips: Flips,
}

#[derive(Deserialize)]
struct Spread {
    mean: f64,
    stderr: Option<f64>,
    interval: Option<[f64; 2]>,
    p99: f64,
    p999: f64,
}

#[derive(Deserialize)]
struct Estimate {
    value: f64,
    stderr: Option<f64>,
    interval: Option<[f64; 2]>,
}

#[derive(Deserialize)]
struct Flips {
    lost: u64,
    gained: u64,
    p_value: f64,
}

/// What `eval --json` prints of texts and answers.
#[derive(Deserialize)]
struct Evaluated {
    model: Named,
    data: Vec<String>,
    tokens_sha256: String,
    num_target_tokens: usize,
    loss: f64,
}

/// What `eval --task --output` writes.
#[derive(Deserialize)]
struct Tasks {
    model: Named,
    #[serde(flatten)]
    recorded: Recorded,
}

/// The files, as one comparison.
///
/// # Errors
/// Naming the file that is none of those that the commands write.
pub(super) fn read(files: &[PathBuf]) -> Result<Comparison, Failure> {
    let mut found = Found::default();
    for file in files {
        found.add(file)?;
    }
    Ok(found.finish())
}

/// What is known of models so far.
#[derive(Default)]
struct Found {
    models: Vec<Known>,
    /// Texts that were evaluated on, by their digests.
    texts: Vec<(String, Text)>,
}

/// A model.
struct Known {
    /// As the commands were given it.
    key: String,
    model: Model,
    /// What commands say that it was made of, the first first.
    bases: Vec<usize>,
    /// What was found when it was written, and the text that that was on.
    written: Option<(String, Figure, Figure)>,
    tasks: Vec<RecordedTask>,
    shown: Vec<Shown>,
}

/// A metric of a task or group, to be shown.
struct Shown {
    name: String,
    metric: RecordedMetric,
    /// What it was summed up from: places in `Known::tasks`.
    parts: Vec<usize>,
    /// Whether these count by their numbers of documents, or alike.
    by_size: bool,
}

impl Found {
    fn add(&mut self, file: &Path) -> Result<(), Failure> {
        let value = parse(file)?;
        if let Some(message) = value["error"]["message"].as_str() {
            return Err(refused(
                file,
                format!("holds the error of a command that failed: {message}"),
            ));
        }
        if value.get("tensors").is_some() {
            self.add_compressed(typed(file, value, "hone compress --json")?);
        } else if value.get("kl").is_some() {
            self.add_against(typed(file, value, "hone eval --against … --json")?);
        } else if value.get("perplexity").is_some() {
            self.add_evaluated(typed(file, value, "hone eval --json")?);
        } else if value.get("tasks").is_some() {
            self.add_tasks(typed(file, value, "hone eval --task … --output")?);
        } else {
            let what = "is not what `hone compress --json`, `hone eval --json` or `hone eval \
                        --task … --output` writes";
            return Err(refused(file, what));
        }
        Ok(())
    }

    /// The place of a model, which is added if it is not known.
    fn place(&mut self, named: &Named) -> usize {
        let plain = |path: &str| path.trim_start_matches("./").trim_end_matches('/').to_owned();
        let mut key = plain(&named.name);
        if let Some(adapter) = &named.adapter {
            key += &format!(" + {}", plain(adapter));
        }
        let at = self.models.iter().position(|known| known.key == key).unwrap_or_else(|| {
            self.models.push(Known {
                key,
                model: Model::default(),
                bases: Vec::new(),
                written: None,
                tasks: Vec::new(),
                shown: Vec::new(),
            });
            self.models.len() - 1
        });
        let model = &mut self.models[at].model;
        model.bytes = Some(named.bytes);
        model.bits_per_weight = Some(named.bits_per_weight);
        at
    }

    fn add_compressed(&mut self, read: Compressed) {
        let Compressed { bytes, bits_per_weight, kl, same_top, num_tokens, .. } = read;
        let named = Named { name: read.out, adapter: None, bytes, bits_per_weight };
        let at = self.place(&named);
        let base = read.base.map(|base| self.place(&base));
        let text = match read.is_held_out {
            true => format!(
                "{num_tokens} held-out tokens of {}, when it was written",
                names(&read.calibration)
            ),
            false => "four short texts, when it was written".to_owned(),
        };
        if let Some((base, Ways { loss, loss_merged, .. })) = base.zip(read.adapter) {
            let losses = [(base, loss), (at, loss_merged)];
            self.add_losses(&text, text.replace("when it was", "when they were"), losses);
        }
        let known = &mut self.models[at];
        known.bases.extend(base.filter(|base| *base != at));
        let figure = |value| Figure { value, ..Figure::default() };
        known.model.written = Some(format!(
            "When it was written: {kl:.3e} nats of KL divergence per token on {}; the most likely \
             token is the same for {:.1} %.",
            text.trim_end_matches(", when it was written"),
            100.0 * same_top
        ));
        known.written = Some((text, figure(kl), figure(same_top)));
        known.model.kinds = kinds(read.tensors.iter().map(|tensor| Part {
            name: &tensor.name,
            kind: &tensor.kind,
            bytes: tensor.bytes,
            share: tensor.kl_share,
        }));
    }

    fn add_against(&mut self, read: Against) {
        let [model, base] = [&read.model, &read.against].map(|named| self.place(named));
        if model != base {
            self.models[model].bases.push(base);
        }
        let Spread { mean, stderr, interval, p99, p999 } = read.kl;
        let Estimate { value, .. } = read.same_top;
        let measured = Measured {
            model,
            base: Some(base),
            kl: Figure { value: mean, stderr, interval },
            quantiles: Some([p99, p999]),
            same_top: Figure {
                value,
                stderr: read.same_top.stderr,
                interval: read.same_top.interval,
            },
            flips: Some((read.flips.lost, read.flips.gained, read.flips.p_value)),
        };
        let name = format!("{}, {} tokens", names(&read.data), read.num_target_tokens);
        let losses = [(base, read.loss_against), (model, read.loss)];
        self.add_losses(&read.tokens_sha256, name.clone(), losses);
        self.add_measured(&read.tokens_sha256, name, measured);
    }

    fn add_evaluated(&mut self, read: Evaluated) {
        let model = self.place(&read.model);
        let name = format!("{}, {} tokens", names(&read.data), read.num_target_tokens);
        self.add_losses(&read.tokens_sha256, name, [(model, read.loss)]);
    }

    /// The text with this digest, which is added if it is not known.
    fn text(&mut self, text: &str, name: String) -> &mut Text {
        let at = self.texts.iter().position(|(known, _)| known == text).unwrap_or_else(|| {
            self.texts.push((text.to_owned(), Text { name, ..Text::default() }));
            self.texts.len() - 1
        });
        &mut self.texts[at].1
    }

    /// Of two of one model, the later one counts.
    fn add_losses<const N: usize>(&mut self, text: &str, name: String, found: [(usize, f64); N]) {
        let losses = &mut self.text(text, name).losses;
        losses.retain(|(model, _)| found.iter().all(|(other, _)| other != model));
        losses.extend(found);
    }

    /// Of two of one model and base, the later one counts.
    fn add_measured(&mut self, text: &str, name: String, measured: Measured) {
        let rows = &mut self.text(text, name).rows;
        rows.retain(|row| (row.model, row.base) != (measured.model, measured.base));
        rows.push(measured);
    }

    fn add_tasks(&mut self, read: Tasks) {
        let at = self.place(&read.model);
        let known = &mut self.models[at];
        let Recorded { tasks, groups } = read.recorded;
        let first = known.tasks.len();
        known.tasks.extend(tasks);
        let places = first..known.tasks.len();
        // Metrics of tasks that a group sums up, and inner groups of these, are not shown by
        // themselves.
        let key = |task: &str, metric: &RecordedMetric| {
            (task.to_owned(), metric.metric.clone(), metric.filter.clone())
        };
        let (mut covered, mut outer) = (BTreeSet::new(), BTreeSet::new());
        for group in groups {
            let is_covered = |task: &String| covered.contains(&key(task, &group.metric));
            if !outer.contains(&group.group) && group.tasks.iter().all(is_covered) {
                continue;
            }
            let is_part = |i: &usize| {
                let task = &known.tasks[*i];
                group.tasks.contains(&task.task) && group.metric.is_same(&task.metric)
            };
            let parts: Vec<usize> = places.clone().filter(is_part).collect();
            let of_part = |i: &usize| key(&known.tasks[*i].task, &known.tasks[*i].metric);
            covered.extend(parts.iter().map(of_part));
            outer.insert(group.group.clone());
            let (name, metric, by_size) = (group.group, group.metric, group.weight_by_size);
            known.shown.push(Shown { name, metric, parts, by_size });
        }
        for i in places {
            let RecordedTask { task, metric, .. } = &known.tasks[i];
            if !covered.contains(&key(task, metric)) {
                let (name, metric) = (task.clone(), metric.clone());
                known.shown.push(Shown { name, metric, parts: vec![i], by_size: true });
            }
        }
    }

    fn finish(mut self) -> Comparison {
        self.find_bases();
        self.add_written();
        let notes = self.notes();
        let tasks = self.tasks();
        let names = self.names();
        let models = self.models.into_iter().zip(names);
        Comparison {
            models: models.map(|(known, name)| Model { name, ..known.model }).collect(),
            texts: self.texts.into_iter().map(|(_, text)| text).collect(),
            tasks,
            notes,
        }
    }

    /// Gives models, of which no file says what they were made of, the base that all others have.
    fn find_bases(&mut self) {
        let all: BTreeSet<usize> =
            self.models.iter().flat_map(|known| &known.bases).copied().collect();
        let only = all.first().copied().filter(|_| all.len() == 1);
        for (i, known) in self.models.iter_mut().enumerate() {
            if known.bases.is_empty() && !all.contains(&i) {
                known.bases.extend(only);
            }
            known.model.base = known.bases.first().copied();
        }
    }

    /// What was measured when models were written counts where there is nothing better.
    fn add_written(&mut self) {
        for model in 0..self.models.len() {
            let is_measured =
                self.texts.iter().any(|(_, text)| text.rows.iter().any(|row| row.model == model));
            let Some((text, kl, same_top)) = self.models[model].written.take() else { continue };
            if !is_measured {
                let base = self.models[model].model.base;
                let measured = Measured { model, base, kl, quantiles: None, same_top, flips: None };
                let name = text.replace("when it was", "when they were");
                self.add_measured(&text, name, measured);
            }
        }
    }

    /// Divergences from unlike models are no scale.
    fn notes(&self) -> Vec<String> {
        let bases = |text: &Text| -> BTreeSet<&str> {
            let found = text.rows.iter().filter_map(|row| row.base);
            found.map(|base| self.models[base].key.as_str()).collect()
        };
        let note = |(_, text): &(String, Text)| {
            let bases = bases(text);
            (bases.len() > 1).then(|| {
                let bases = bases.into_iter().collect::<Vec<_>>().join(", ");
                format!("On {}, models are compared with unlike bases: {bases}.", text.name)
            })
        };
        self.texts.iter().filter_map(note).collect()
    }

    /// Every metric of every task of which the same was asked.
    fn tasks(&self) -> Vec<Task> {
        let mut tasks: Vec<(Vec<&str>, Task)> = Vec::new();
        for (model, known) in self.models.iter().enumerate() {
            for shown in &known.shown {
                let Shown { name, metric, parts, .. } = shown;
                let digests = parts.iter().map(|i| known.tasks[*i].items_sha256.as_str());
                let mut key = vec![name.as_str(), metric.metric.as_str(), metric.filter.as_str()];
                key.extend(digests);
                let Some(value) = metric.value else { continue };
                let at = tasks.iter().position(|(other, _)| *other == key).unwrap_or_else(|| {
                    let task = Task {
                        name: name.clone(),
                        metric: named(&metric.metric, &metric.filter),
                        higher_is_better: metric.higher_is_better,
                        num_items: metric.num_items,
                        rows: Vec::new(),
                    };
                    tasks.push((key, task));
                    tasks.len() - 1
                });
                let value = Figure { value, stderr: metric.stderr, interval: None };
                let difference =
                    known.bases.iter().find_map(|base| self.difference(*base, model, shown));
                let rows = &mut tasks[at].1.rows;
                rows.retain(|row| row.model != model);
                rows.push(Scored { model, value, difference });
            }
        }
        tasks.into_iter().map(|(_, task)| task).collect()
    }

    /// How much more a model has than its base, on the same documents.
    fn difference(&self, base: usize, model: usize, shown: &Shown) -> Option<Figure> {
        let [base, known] = [base, model].map(|i| &self.models[i]);
        let pair = |i: &usize| {
            let task = &known.tasks[*i];
            let is_it = |other: &&RecordedTask| {
                let is_asked = other.items_sha256 == task.items_sha256;
                is_asked && other.task == task.task && other.metric.is_same(&task.metric)
            };
            Some([base.tasks.iter().rfind(is_it)?, task])
        };
        let pairs: Option<Vec<_>> = shown.parts.iter().map(pair).collect();
        let found = compared(&pairs?, shown.by_size)?;
        Some(Figure { value: found.value, stderr: found.stderr, interval: found.interval })
    }

    /// The last parts of paths, or all of them where those are alike.
    fn names(&self) -> Vec<String> {
        let short = |key: &str| -> String {
            let (model, adapter) = key.split_once(" + ").unwrap_or((key, ""));
            let last = model.rsplit('/').next().unwrap_or(model);
            let last = last.strip_suffix(".gguf").unwrap_or(last);
            if adapter.is_empty() { last.to_owned() } else { format!("{last} + {adapter}") }
        };
        let all: Vec<String> = self.models.iter().map(|known| short(&known.key)).collect();
        let name = |(i, known): (usize, &Known)| match all
            .iter()
            .filter(|other| **other == all[i])
            .count()
        {
            1 => all[i].clone(),
            _ => known.key.clone(),
        };
        self.models.iter().enumerate().map(name).collect()
    }
}

/// The names of files, without their directories.
fn names(files: &[String]) -> String {
    let name = |file: &String| file.rsplit('/').next().unwrap_or(file).to_owned();
    files.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn refused(file: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("{}: {what}", file.display()))
}

fn parse(file: &Path) -> Result<Value, Failure> {
    let failed = |error: std::io::Error| refused(file, error);
    if std::fs::metadata(file).map_err(failed)?.len() > MAX_BYTES {
        return Err(refused(file, format!("is larger than {MAX_BYTES} bytes: no report is made")));
    }
    let bytes = std::fs::read(file).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        refused(file, format!("is no file of one JSON object: {error}; write it with --json"))
    })
}

fn typed<T: DeserializeOwned>(file: &Path, value: Value, command: &str) -> Result<T, Failure> {
    serde_json::from_value(value).map_err(|error| {
        refused(file, format!("is not what `{command}` writes ({error}); write it anew"))
    })
}
