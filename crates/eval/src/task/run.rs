//! From items to results: the model's scores and answers, documents' numbers, tasks' values.

use super::config::Task;
use super::error::TaskError;
use super::metrics::{Kind, Term, argmax};
use super::output_type::OutputType;
use super::prompt::{self, Item, Request};
use super::result::{Judged, TaskResult, Value as Measured};
use super::statistics::estimate;
use super::tokens::{Encoder, is_space};
use hone_data::{ChatTemplate, Tokenizer};
use hone_model::generate::{self, Limits, Progress, Sampling, Scheduler};
use hone_model::score::{Scored, Text, score};
use hone_model::{DecoderConfig, Pass};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// How tasks are evaluated.
#[derive(Clone, Copy, Default)]
pub struct RunOptions<'a> {
    /// Only so many first documents: a number, or below 1 a share.
    pub limit: Option<f64>,
    /// Prompts as messages, written by this template.
    pub chat: Option<&'a ChatTemplate>,
    /// Most tokens that the model is given at a time; `None`: its own.
    pub max_len: Option<usize>,
    /// Threads for what is not the model's.
    pub num_threads: usize,
}

/// A task whose documents became tokens.
pub struct Prepared<'t> {
    task: &'t Task,
    items: Vec<Item>,
    /// Of all that values depend on but the model.
    digest: String,
    /// Texts to score, and whose they are.
    texts: Vec<Text>,
    /// Of each item, how many texts each of its requests has.
    num_texts: Vec<Vec<usize>>,
    prompts: Vec<Vec<u32>>,
}

impl Prepared<'_> {
    /// Documents.
    pub fn num_items(&self) -> usize {
        self.items.len()
    }

    /// The task's name.
    pub(super) fn name(&self) -> &str {
        &self.task.name
    }

    /// Of its requests, targets and settings.
    pub(super) fn digest(&self) -> &str {
        &self.digest
    }

    /// Whether there will be values of the metric after these filters.
    pub(super) fn measures(&self, metric: &str, filter: &str) -> bool {
        let Task { metrics, pipelines, .. } = self.task;
        metrics.iter().any(|of| of.name() == metric) && pipelines.iter().any(|p| p.name == filter)
    }

    /// Texts to score and prompts to continue.
    pub fn num_requests(&self) -> usize {
        self.texts.len() + self.prompts.len()
    }
}

/// Writes a task's prompts and cuts them into tokens: all that can be wrong with it is found before
/// the model's weights are read.
///
/// # Errors
/// If a document cannot be asked about, naming file and line.
pub fn prepare<'t>(
    task: &'t Task,
    tokenizer: &Tokenizer,
    config: &DecoderConfig,
    options: RunOptions<'_>,
) -> Result<Prepared<'t>, TaskError> {
    let all = task.num_documents();
    let limit = match options.limit {
        None => all,
        Some(share) if share < 1.0 => (all as f64 * share).ceil() as usize,
        Some(number) => number as usize,
    };
    let items = prompt::items(task, limit, options.chat)?;
    let max_len = options.max_len.unwrap_or(config.max_position_embeddings);
    let encoder = Encoder::new(tokenizer, max_len)?;
    let (mut texts, mut num_texts, mut prompts) = (Vec::new(), Vec::new(), Vec::new());
    for item in &items {
        let mut of_item = Vec::new();
        for request in &item.requests {
            let found = encode(&encoder, request, task.generation.max_new_tokens);
            let found =
                found.map_err(|what| TaskError::Input(format!("{}: {what}", item.place)))?;
            match found {
                Encoded::Texts(found) => {
                    of_item.push(found.len());
                    texts.extend(found);
                }
                Encoded::Prompt(tokens) => prompts.push(tokens),
            }
        }
        num_texts.push(of_item);
    }
    let all = texts.iter().map(|text| &text.tokens).chain(&prompts).flatten();
    if let Some(id) = all.copied().find(|&id| id as usize >= config.vocab_size) {
        return Err(TaskError::Input(format!(
            "the tokenizer gives token {id}, and the model has {} embeddings: they do not belong \
             together; use the model's own tokenizer",
            config.vocab_size
        )));
    }
    let digest = digest(task, &items, options.max_len);
    Ok(Prepared { task, items, digest, texts, num_texts, prompts })
}

enum Encoded {
    Texts(Vec<Text>),
    Prompt(Vec<u32>),
}

fn encode(encoder: &Encoder<'_>, request: &Request, new: usize) -> Result<Encoded, String> {
    Ok(match request {
        Request::Likelihood { context, continuation } => {
            Encoded::Texts(vec![encoder.likelihood(context, continuation)?])
        }
        Request::Rolling(text) => Encoded::Texts(encoder.rolling(text)?),
        Request::Generate(text) => Encoded::Prompt(encoder.prompt(text, new)?),
    })
}

/// Asks the model, and sums up; `done` is told of requests.
///
/// # Errors
/// If the device failed, or a logit is not finite.
pub fn run(
    pass: Pass<'_>,
    tokenizer: &Tokenizer,
    prepared: Prepared<'_>,
    num_threads: usize,
    done: &mut dyn FnMut(usize),
) -> Result<TaskResult, TaskError> {
    let Prepared { task, items, digest, texts, num_texts, prompts } = prepared;
    let judged = match task.output {
        OutputType::Generate => {
            let answers = answers(pass, tokenizer, task, &prompts, done)?;
            let judge = |(item, answer): (&Item, String)| answered(task, item, answer);
            items.iter().zip(answers).map(judge).collect::<Result<Vec<_>, _>>()?
        }
        _ => {
            let scored = score(pass, &texts, needs_greedy(task), done)?;
            let mut scored = scored.into_iter();
            let mut of_request = |num: &usize| of_texts(scored.by_ref().take(*num));
            let judge = |(item, nums): (&Item, &Vec<usize>)| {
                likely(task, item, nums.iter().map(&mut of_request).collect())
            };
            items.iter().zip(&num_texts).map(judge).collect()
        }
    };
    Ok(summed_up(task, (&items, digest), judged, num_threads))
}

/// Whether anything that is measured asks for the likeliest tokens.
fn needs_greedy(task: &Task) -> bool {
    let is_greedy = |kind| match task.output {
        // A prediction even if nothing is measured of it.
        OutputType::Loglikelihood => true,
        OutputType::MultipleChoice => kind == Kind::ExactMatch,
        _ => false,
    };
    task.metrics.iter().any(|metric| is_greedy(metric.kind))
}

/// Log-probability of a request's tokens, and whether all are the likeliest ones.
fn of_texts(scored: impl Iterator<Item = Scored>) -> (f64, bool) {
    scored.fold((0.0, true), |(sum, greedy), scored| {
        (sum + scored.sum(), greedy && scored.is_greedy == Some(true))
    })
}

/// What a document's log-probabilities say.
fn likely(task: &Task, item: &Item, found: Vec<(f64, bool)>) -> Judged {
    let sums: Vec<f64> = found.iter().map(|(sum, _)| *sum).collect();
    let lengths = |of: fn(&String) -> usize| -> Vec<f64> {
        sums.iter().zip(&item.choices).map(|(sum, choice)| sum / of(choice) as f64).collect()
    };
    let term = |value: f64| Term { value, weight: 1.0 };
    let is_right = |chosen: usize| term(f64::from(u8::from(targets(item).contains(&chosen))));
    let text = item.target.as_str().unwrap_or_default();
    let terms = task.metrics.iter().map(|metric| match (task.output, metric.kind) {
        (OutputType::Loglikelihood, Kind::Acc) => term(f64::from(u8::from(found[0].1))),
        (_, Kind::Acc) => is_right(argmax(&sums)),
        (_, Kind::AccNorm) => is_right(argmax(&lengths(|choice| choice.chars().count()))),
        (_, Kind::AccBytes) => is_right(argmax(&lengths(String::len))),
        (_, Kind::ExactMatch) => {
            let greedy = targets(item).iter().any(|&i| found.get(i).is_some_and(|found| found.1));
            term(f64::from(u8::from(greedy)))
        }
        (_, Kind::Perplexity) => term(sums[0]),
        (_, Kind::WordPerplexity) => Term { value: sums[0], weight: num_words(text) as f64 },
        (_, Kind::BytePerplexity | Kind::BitsPerByte) => {
            Term { value: sums[0], weight: text.len() as f64 }
        }
    });
    Judged {
        terms: vec![terms.collect()],
        prediction: match task.output {
            OutputType::MultipleChoice => Value::from(argmax(&sums)),
            OutputType::Loglikelihood => Value::from(found[0].1),
            _ => Value::Null,
        },
        log_likelihoods: sums,
        answer: None,
    }
}

/// Numbers of the choices that are right.
fn targets(item: &Item) -> Vec<usize> {
    let number = |value: &Value| match value {
        Value::String(text) => item.choices.iter().position(|choice| choice == text),
        Value::Bool(second) => Some(usize::from(*second)),
        value => value.as_u64().map(|i| i as usize),
    };
    match &item.target {
        Value::Array(targets) => targets.iter().filter_map(number).collect(),
        target => number(target).into_iter().collect(),
    }
}

/// Words as Python's `re.split(r"\s+", text)` counts them: pieces between white space, empty ones
/// at the ends included.
fn num_words(text: &str) -> usize {
    let mut num = 1;
    let mut was_space = false;
    for c in text.chars() {
        num += usize::from(is_space(c) && !was_space);
        was_space = is_space(c);
    }
    num
}

/// What an answer is worth, by each pipeline.
fn answered(task: &Task, item: &Item, answer: String) -> Result<Judged, TaskError> {
    let targets = |item: &Item| -> Vec<String> {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Bool(is) => (if *is { "True" } else { "False" }).to_owned(),
            Value::Null => "None".to_owned(),
            other => other.to_string(),
        };
        match (&item.target, item.choices.is_empty()) {
            (Value::Array(targets), _) => targets.iter().map(text).collect(),
            (target, false) => {
                let chosen = target.as_u64().and_then(|i| item.choices.get(i as usize));
                vec![chosen.cloned().unwrap_or_else(|| text(target))]
            }
            (target, true) => vec![text(target)],
        }
    };
    let (targets, answers) = (targets(item), [answer]);
    let (mut terms, mut predictions) = (Vec::new(), serde_json::Map::new());
    for pipeline in &task.pipelines {
        let found = pipeline.apply(&answers, item.field_choices.as_ref());
        let found = found.map_err(|error| TaskError::Input(format!("{}: {error}", item.place)))?;
        let value = |metric: &super::metrics::Metric| {
            let mut is_right = false;
            for target in &targets {
                is_right |= metric.comparison.is_same(&found, target)?;
            }
            Ok(Term { value: f64::from(u8::from(is_right)), weight: 1.0 })
        };
        terms.push(task.metrics.iter().map(value).collect::<Result<Vec<_>, TaskError>>()?);
        predictions.insert(pipeline.name.clone(), found.into());
    }
    let [answer] = answers;
    let prediction = Value::Object(predictions);
    Ok(Judged { terms, prediction, log_likelihoods: Vec::new(), answer: Some(answer) })
}

/// Answers of the likeliest tokens, up to the first text that ends them.
fn answers(
    pass: Pass<'_>,
    tokenizer: &Tokenizer,
    task: &Task,
    prompts: &[Vec<u32>],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<String>, TaskError> {
    let config = &pass.model.decoder.config;
    let mut stop_ids = config.stop_ids(tokenizer.stop_token_ids());
    let mut until = task.generation.until.clone();
    // Answers are texts without special tokens, in which these are not found.
    for id in tokenizer.special_token_ids() {
        if until.contains(&tokenizer.decode(&[id], false)?) {
            stop_ids.push(id);
        }
    }
    if let Some(eos) = tokenizer.eos_token_id() {
        until.push(tokenizer.decode(&[eos], false)?);
    }
    until.retain(|text| !text.is_empty());
    let mut scheduler = Scheduler::new(pass, Limits::default());
    for (id, prompt) in (0u64..).zip(prompts) {
        scheduler.submit(generate::Request {
            id,
            prompt: prompt.clone(),
            max_new_tokens: task.generation.max_new_tokens,
            sampling: Sampling::GREEDY,
            stop_ids: stop_ids.clone(),
        })?;
    }
    let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut texts = vec![String::new(); prompts.len()];
    let mut has_ended = vec![false; prompts.len()];
    let mut end_of = |id: u64| {
        if !std::mem::replace(&mut has_ended[id as usize], true) {
            done(1);
        }
    };
    while !scheduler.is_idle() {
        for progress in scheduler.step()? {
            match progress {
                Progress::Token { id, token } => {
                    let i = id as usize;
                    tokens[i].push(token);
                    texts[i] = tokenizer.decode(&tokens[i], true)?;
                    let end = until.iter().filter_map(|text| texts[i].find(text)).min();
                    if let Some(end) = end {
                        texts[i].truncate(end);
                        scheduler.cancel(id);
                        end_of(id);
                    }
                }
                Progress::Finished { id, .. } => end_of(id),
            }
        }
    }
    Ok(texts)
}

fn summed_up(
    task: &Task,
    (items, digest): (&[Item], String),
    judged: Vec<Judged>,
    num_threads: usize,
) -> TaskResult {
    let mut values = Vec::new();
    for (p, pipeline) in task.pipelines.iter().enumerate() {
        for (m, metric) in task.metrics.iter().enumerate() {
            let terms: Vec<Term> = judged.iter().map(|judged| judged.terms[p][m]).collect();
            values.push(Measured {
                metric: metric.name().to_owned(),
                filter: pipeline.name.clone(),
                estimate: estimate(metric.aggregation, &terms, num_threads),
                aggregation: metric.aggregation,
                higher_is_better: metric.higher_is_better,
                weight_by_size: None,
            });
        }
    }
    TaskResult {
        name: task.name.clone(),
        alias: task.alias.clone(),
        version: task.version.clone(),
        num_fewshot: task.num_fewshot,
        digest,
        values,
        metrics: task.metrics.iter().map(|metric| metric.name().to_owned()).collect(),
        filters: task.pipelines.iter().map(|pipeline| pipeline.name.clone()).collect(),
        items: items.to_vec(),
        judged,
    }
}

/// Of all requests and targets, and of what else decides what answers are worth: results of other
/// items are not comparable.
fn digest(task: &Task, items: &[Item], max_len: Option<usize>) -> String {
    let mut digest = Sha256::new();
    let mut add = |text: &str| {
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    };
    for item in items {
        for request in &item.requests {
            match request {
                Request::Likelihood { context, continuation } => {
                    add(context);
                    add(continuation);
                }
                Request::Rolling(text) | Request::Generate(text) => add(text),
            }
        }
        add(&item.target.to_string());
    }
    if task.output == OutputType::Generate {
        let generation = &task.generation;
        generation.until.iter().for_each(|text| add(text));
        add(&generation.max_new_tokens.to_string());
        add(&task.settings.written(&["filter_list", "metric_list"]));
    }
    if let Some(max_len) = max_len {
        add(&max_len.to_string());
    }
    format!("{:x}", digest.finalize())
}
