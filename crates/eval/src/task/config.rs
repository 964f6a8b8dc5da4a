//! A task: what its settings say, checked.

use super::data::{Document, Source};
use super::error::TaskError;
use super::field::Field;
use super::file::{Setting, Settings};
use super::filters::Pipeline;
use super::metrics::Metric;
use super::output_type::{OUTPUT_TYPES, OutputType};
use serde_json::Value;
use std::path::Path;

/// Keys that say nothing about the evaluation here.
const INFORMATION: [&str; 6] = [
    "task_alias",
    "tag",
    "group",
    // The name of a configuration; local files have none.
    "dataset_name",
    // What a search for the texts in training data would ask for; there is none.
    "should_decontaminate",
    "doc_to_decontamination_query",
];

/// Keys whose values are Python functions, or need what is not here.
const REFUSED: [(&str, &str); 6] = [
    ("process_docs", "prepare the documents beforehand, and name the prepared files"),
    ("process_results", "its metrics are a Python function's"),
    ("custom_dataset", "save the data as files, and name them in dataset_kwargs.data_files"),
    ("use_prompt", "write the prompt as doc_to_text and doc_to_target"),
    ("doc_to_image", "models read texts only"),
    ("doc_to_audio", "models read texts only"),
];

/// What a task takes over from the command line.
#[derive(Clone, Debug, Default)]
pub struct Options<'a> {
    /// The folder that data files are relative to.
    pub folder: Option<&'a Path>,
    /// Examples before each document, instead of the task's own number.
    pub num_fewshot: Option<usize>,
}

/// A task.
pub struct Task {
    /// Its name.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// `metadata.version`, for whoever compares numbers.
    pub version: Option<String>,
    /// What the model is asked.
    pub output: OutputType,
    /// What is measured.
    pub metrics: Vec<Metric>,
    /// What is made of answers.
    pub pipelines: Vec<Pipeline>,
    /// How answers end.
    pub generation: Generation,
    /// Examples before each document.
    pub num_fewshot: usize,
    /// How examples are chosen and written.
    pub shots: Shots,
    pub(super) prompt: Prompt,
    pub(super) settings: Settings,
    pub(super) documents: Vec<Document>,
    pub(super) examples: Vec<Document>,
}

/// How a document becomes a prompt.
pub(super) struct Prompt {
    pub description: Option<Field>,
    pub text: Field,
    pub target: Field,
    pub choice: Option<Field>,
    pub gen_prefix: Option<Field>,
    pub target_delimiter: String,
}

/// Examples.
pub struct Shots {
    /// Whether they are the first ones instead of drawn.
    pub first_n: bool,
    /// Whether the document asked about could be among them, and is left out.
    pub excludes_asked: bool,
    pub(super) text: Option<Field>,
    pub(super) target: Option<Field>,
    pub(super) choice: Option<Field>,
    pub(super) gen_prefix: Option<Field>,
    pub(super) target_delimiter: Option<String>,
    pub(super) fewshot_delimiter: String,
}

/// How a generated answer ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Texts that end it.
    pub until: Vec<String>,
    /// Most new tokens.
    pub max_new_tokens: usize,
}

impl Task {
    /// The task of these settings, with its documents.
    ///
    /// # Errors
    /// If a key is unknown or refused, a value wrong, or data are missing.
    pub fn new(settings: Settings, options: &Options<'_>) -> Result<Self, TaskError> {
        let name = match settings.get("task") {
            Some(task) => task.string()?,
            None => return Err(TaskError::file(&settings.file, "has no `task`, its name")),
        };
        refuse(&settings)?;
        check_keys(&settings)?;
        let get = |key: &str| settings.get(key);
        let string = |key: &str| get(key).map(Setting::string).transpose();
        let output = output(get("output_type"))?;
        let field = |key: &str| get(key).map(|setting| Field::new(setting, &name)).transpose();
        let needed = |key: &str| {
            field(key)?.ok_or_else(|| TaskError::file(&settings.file, format!("has no {key}")))
        };
        let prompt = Prompt {
            description: field("description")?,
            text: needed("doc_to_text")?,
            target: needed("doc_to_target")?,
            choice: match output {
                OutputType::MultipleChoice => Some(needed("doc_to_choice")?),
                _ => field("doc_to_choice")?,
            },
            gen_prefix: field("gen_prefix")?,
            target_delimiter: string("target_delimiter")?.unwrap_or_else(|| " ".to_owned()),
        };
        let fewshot_delimiter = string("fewshot_delimiter")?.unwrap_or_else(|| "\n\n".to_owned());
        let source = Source::new(&settings, options.folder)?;
        let shots = Shots::new(&settings, &name, &fewshot_delimiter)?;
        let documents = documents(&settings, &source)?;
        let own = get("num_fewshot").map(Setting::count).transpose()?;
        // As in the harness, a task that has none on purpose keeps none.
        let num_fewshot = match (options.num_fewshot, own) {
            (Some(_), Some(0)) => 0,
            (Some(asked), _) => asked,
            (None, own) => own.unwrap_or(0),
        };
        let examples = match num_fewshot {
            0 => Vec::new(),
            _ => examples(&settings, &source, num_fewshot)?,
        };
        let metadata = get("metadata").map(Setting::json).transpose()?;
        let version = metadata.and_then(|metadata| match metadata.get("version") {
            Some(Value::String(version)) => Some(version.clone()),
            Some(Value::Number(version)) => Some(version.to_string()),
            _ => None,
        });
        if let Some(repeats) = get("repeats").filter(|repeats| repeats.count().ok() != Some(1)) {
            let what = "greedy answers are the same each time; leave it out, or give 1";
            return Err(repeats.error(what));
        }
        Ok(Self {
            alias: string("task_alias")?.unwrap_or_else(|| name.clone()),
            version,
            output,
            metrics: metrics(get("metric_list"), output)?,
            pipelines: pipelines(get("filter_list"), output)?,
            generation: Generation::new(get("generation_kwargs"), &fewshot_delimiter)?,
            num_fewshot,
            shots,
            prompt,
            documents,
            examples,
            name,
            settings,
        })
    }

    /// Documents that it could ask about.
    pub fn num_documents(&self) -> usize {
        self.documents.len()
    }

    /// An error of the whole task.
    pub fn error(&self, what: impl std::fmt::Display) -> TaskError {
        TaskError::file(&self.settings.file, format!("task {}: {what}", self.name))
    }
}

/// Refuses what would need Python.
fn refuse(settings: &Settings) -> Result<(), TaskError> {
    for (key, remedy) in REFUSED {
        if let Some(setting) = settings.get(key) {
            let what = match setting.node.function() {
                Some((name, _)) => format!("the Python function `{name}` cannot be run"),
                None => "is not read here".to_owned(),
            };
            return Err(setting.error(format!("{what}; {remedy}")));
        }
    }
    if let Some(class) = settings.get("class") {
        return Err(class.error("tasks that are Python classes cannot be run"));
    }
    Ok(())
}

fn check_keys(settings: &Settings) -> Result<(), TaskError> {
    const READ: [&str; 22] = [
        "task",
        "output_type",
        "dataset_path",
        "dataset_kwargs",
        "training_split",
        "validation_split",
        "test_split",
        "fewshot_split",
        "doc_to_text",
        "doc_to_target",
        "doc_to_choice",
        "description",
        "target_delimiter",
        "fewshot_delimiter",
        "fewshot_config",
        "num_fewshot",
        "metric_list",
        "generation_kwargs",
        "repeats",
        "filter_list",
        "gen_prefix",
        "metadata",
    ];
    let known = |key: &str| {
        READ.contains(&key)
            || INFORMATION.contains(&key)
            || REFUSED.iter().any(|(refused, _)| *refused == key)
    };
    match settings.all.iter().find(|setting| !known(&setting.key)) {
        Some(setting) => Err(setting.error("an unknown key; correct it, or remove it")),
        None => Ok(()),
    }
}

fn output(setting: Option<&Setting>) -> Result<OutputType, TaskError> {
    let Some(setting) = setting else { return Ok(OutputType::Generate) };
    let name = setting.string()?;
    let found = OUTPUT_TYPES.iter().find(|(known, _)| *known == name);
    found.map(|(_, output)| *output).ok_or_else(|| {
        let known: Vec<_> = OUTPUT_TYPES.iter().map(|(name, _)| *name).collect();
        setting.error(format!("`{name}` is not known; there are {}", known.join(", ")))
    })
}

fn metrics(list: Option<&Setting>, output: OutputType) -> Result<Vec<Metric>, TaskError> {
    match list {
        None => Ok(Metric::usual(output)),
        Some(list) => each_once(list, |entry| Metric::new(entry, output), |metric| metric.name()),
    }
}

/// What the entries of a list say, each of a name of its own: by it results are known.
fn each_once<T>(
    list: &Setting,
    read: impl Fn(&Setting) -> Result<T, TaskError>,
    name: impl Fn(&T) -> &str,
) -> Result<Vec<T>, TaskError> {
    let mut all: Vec<T> = Vec::new();
    for entry in list.items()? {
        let one = read(&entry)?;
        if all.iter().any(|other| name(other) == name(&one)) {
            return Err(entry.error(format!("`{}` is in the list twice", name(&one))));
        }
        all.push(one);
    }
    Ok(all)
}

fn pipelines(list: Option<&Setting>, output: OutputType) -> Result<Vec<Pipeline>, TaskError> {
    match list {
        None => Ok(vec![Pipeline::none()]),
        Some(list) if output != OutputType::Generate => {
            Err(list.error(format!("filters are for generate_until, not for {}", output.name())))
        }
        Some(list) => each_once(list, Pipeline::new, |pipeline| &pipeline.name),
    }
}

/// The documents of the test split, or else of the validation split.
fn documents(settings: &Settings, source: &Source) -> Result<Vec<Document>, TaskError> {
    let split = settings.get("test_split").or_else(|| settings.get("validation_split"));
    match split {
        Some(split) => source.split(split),
        None => Err(TaskError::file(
            &settings.file,
            "has neither test_split nor validation_split: there is nothing to evaluate",
        )),
    }
}

/// Where examples are taken from, in the harness's order.
fn examples(settings: &Settings, source: &Source, num: usize) -> Result<Vec<Document>, TaskError> {
    let config = settings.get("fewshot_config").map(Setting::entries).transpose()?;
    let config = config.unwrap_or_default();
    let of_config = |key: &str| config.iter().find(|entry| entry.key == key && !entry.is_null());
    let named = of_config("split").or_else(|| settings.get("fewshot_split"));
    let keys = ["training_split", "validation_split", "test_split"];
    let mut found = match (named, of_config("samples")) {
        (Some(split), _) => source.split(split)?,
        (None, Some(samples)) => Source::written(samples)?,
        (None, None) => match keys.iter().find_map(|key| settings.get(key)) {
            Some(split) => source.split(split)?,
            None => Vec::new(),
        },
    };
    if let Some(indices) = of_config("fewshot_indices") {
        let index = |setting: &Setting| {
            let at = setting.count()?;
            found
                .get(at)
                .cloned()
                .ok_or_else(|| setting.error(format!("no example {at}: there are {}", found.len())))
        };
        found = indices.items()?.iter().map(index).collect::<Result<_, _>>()?;
    }
    match found.len() < num {
        true => Err(TaskError::file(
            &settings.file,
            format!("{num} examples are asked for, and there are {}", found.len()),
        )),
        false => Ok(found),
    }
}

impl Shots {
    fn new(settings: &Settings, task: &str, delimiter: &str) -> Result<Self, TaskError> {
        let mut shots = Self {
            first_n: false,
            excludes_asked: false,
            text: None,
            target: None,
            choice: None,
            gen_prefix: None,
            target_delimiter: None,
            fewshot_delimiter: delimiter.to_owned(),
        };
        let text_of = |setting: Option<&Setting>| setting.map(Setting::string).transpose();
        let mut split = text_of(settings.get("fewshot_split"))?;
        let config = settings.get("fewshot_config").map(Setting::entries).transpose()?;
        for entry in config.unwrap_or_default().iter().filter(|entry| !entry.is_null()) {
            let field = || Field::new(entry, task).map(Some);
            match &*entry.key {
                "sampler" => {
                    shots.first_n = match entry.string()?.as_str() {
                        "default" => false,
                        "first_n" => true,
                        other => {
                            let what = "is not known; there are default and first_n";
                            return Err(entry.error(format!("`{other}` {what}")));
                        }
                    };
                }
                "split" => split = Some(entry.string()?),
                "samples" | "fewshot_indices" => {}
                "doc_to_text" => shots.text = field()?,
                "doc_to_target" => shots.target = field()?,
                "doc_to_choice" => shots.choice = field()?,
                "gen_prefix" => shots.gen_prefix = field()?,
                "target_delimiter" => shots.target_delimiter = Some(entry.string()?),
                "fewshot_delimiter" => shots.fewshot_delimiter = entry.string()?,
                _ => return Err(entry.error("an unknown key")),
            }
        }
        shots.excludes_asked = split == text_of(settings.get("test_split"))?;
        Ok(shots)
    }
}

impl Generation {
    fn new(setting: Option<&Setting>, delimiter: &str) -> Result<Self, TaskError> {
        let mut generation = Self { until: vec![delimiter.to_owned()], max_new_tokens: 256 };
        let entries = setting.map(Setting::entries).transpose()?.unwrap_or_default();
        for entry in &entries {
            match &*entry.key {
                "until" => generation.until = entry.strings()?,
                "max_gen_toks" | "max_new_tokens" | "max_tokens" => {
                    generation.max_new_tokens = entry.count()?;
                    if generation.max_new_tokens == 0 {
                        return Err(entry.error("no new token; give at least one"));
                    }
                }
                "do_sample" if !entry.boolean()? => {}
                "temperature" if entry.number()? == 0.0 => {}
                "do_sample" | "temperature" => {
                    return Err(entry.error(
                        "answers are the likeliest tokens, never drawn; give do_sample: false and \
                         temperature: 0",
                    ));
                }
                _ => return Err(entry.error("an unknown key")),
            }
        }
        Ok(generation)
    }
}
