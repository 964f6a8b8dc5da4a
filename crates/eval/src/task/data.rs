//! Documents of a task: JSON lines, a JSON array, or CSV, from local files.

use super::csv::{self, Place, Records};
use super::error::TaskError;
use super::file::{Setting, Settings};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// One record.
#[derive(Clone, Debug)]
pub struct Document {
    /// Its fields.
    pub fields: Map<String, Value>,
    /// Names of the fields that any document of its file has.
    pub columns: Rc<BTreeSet<String>>,
    /// Where it is.
    file: Rc<Path>,
    place: Place,
}

impl Document {
    /// File and line, or number of the record in its list, for messages.
    pub fn place(&self) -> String {
        match self.place {
            Place::Line(line) => format!("{}:{line}", self.file.display()),
            Place::Record(number) => format!("{}: record {number}", self.file.display()),
        }
    }
}

/// How files become documents.
enum Builder {
    Json { field: Option<String> },
    Csv(csv::Options),
}

/// Where a task's documents are.
pub struct Source {
    builder: Builder,
    /// Splits and patterns of files.
    splits: Vec<(String, Vec<Setting>)>,
    /// The folder that files are relative to; `None`: the task file's, or the present one.
    folder: Option<PathBuf>,
}

impl Source {
    /// Reads `dataset_path` and `dataset_kwargs`.
    ///
    /// # Errors
    /// If data are elsewhere than in local files, or a key is unknown.
    pub fn new(settings: &Settings, folder: Option<&Path>) -> Result<Self, TaskError> {
        let Some(path) = settings.get("dataset_path") else {
            let what =
                "has no dataset_path; give `dataset_path: json` and dataset_kwargs.data_files";
            return Err(TaskError::file(&settings.file, what));
        };
        let mut builder = match path.string()?.as_str() {
            "json" => Builder::Json { field: None },
            "csv" => Builder::Csv(csv::Options::default()),
            other => {
                return Err(path.error(format!(
                    "`{other}` is no local file; data are read from files only: save them, and \
                     give `dataset_path: json` or `csv` with dataset_kwargs.data_files"
                )));
            }
        };
        let mut splits = Vec::new();
        let entries = settings.get("dataset_kwargs").map(Setting::entries).transpose()?;
        for setting in entries.unwrap_or_default() {
            match (&*setting.key, &mut builder) {
                ("data_files", _) => splits = files(&setting)?,
                // These say nothing about local files.
                ("trust_remote_code" | "cache_dir" | "download_mode", _) => {}
                ("field", Builder::Json { field }) => *field = Some(setting.string()?),
                (_, Builder::Csv(options)) => options.set(&setting)?,
                _ => return Err(setting.error("an unknown key, or one that files do not need")),
            }
        }
        if splits.is_empty() {
            let what = "dataset_kwargs.data_files is missing: it names the files of each split";
            return Err(path.error(what));
        }
        Ok(Self { builder, splits, folder: folder.map(Path::to_owned) })
    }

    /// The documents of a split.
    ///
    /// # Errors
    /// If there is no such split, or a file is missing, malformed or empty.
    pub fn split(&self, name: &Setting) -> Result<Vec<Document>, TaskError> {
        let wanted = name.string()?;
        let Some((_, files)) = self.splits.iter().find(|(split, _)| *split == wanted) else {
            let names: Vec<_> = self.splits.iter().map(|(name, _)| name.as_str()).collect();
            let what = format!("no split `{wanted}`; data_files has {}", names.join(", "));
            return Err(name.error(what));
        };
        let mut records = Vec::new();
        for setting in files {
            let path = self.resolved(setting)?;
            let file: Rc<Path> = Rc::from(path.as_path());
            // A pipe or device might never end.
            let about = std::fs::metadata(&path);
            if about.as_ref().is_ok_and(|about| !about.is_file()) {
                return Err(setting.error(format!("{}: is no file", path.display())));
            }
            let bytes = about.and_then(|_| std::fs::read(&path)).map_err(|error| {
                let hint = match self.folder {
                    Some(_) => "",
                    None => "; --data names the folder that data_files are relative to",
                };
                setting.error(format!("{}: {error}{hint}", path.display()))
            })?;
            let found = match &self.builder {
                Builder::Json { field } => json(&path, &bytes, field.as_deref())?,
                Builder::Csv(options) => csv::records(&path, &bytes, options)?,
            };
            if found.is_empty() {
                return Err(TaskError::file(&path, "has no records: there is nothing to evaluate"));
            }
            let with_file = |(place, fields)| (file.clone(), place, fields);
            records.extend(found.into_iter().map(with_file));
        }
        let columns = records.iter().flat_map(|(.., fields)| fields.keys().cloned());
        let columns: Rc<BTreeSet<String>> = Rc::new(columns.collect());
        let document =
            |(file, place, fields)| Document { fields, columns: columns.clone(), file, place };
        Ok(records.into_iter().map(document).collect())
    }

    /// Examples that stand in the task file itself.
    ///
    /// # Errors
    /// If they are no mappings.
    pub fn written(samples: &Setting) -> Result<Vec<Document>, TaskError> {
        let items = samples.items()?;
        let columns = items.iter().map(Setting::entries).collect::<Result<Vec<_>, _>>()?;
        let names = columns.iter().flatten().map(|entry| entry.key.clone());
        let columns: Rc<BTreeSet<String>> = Rc::new(names.collect());
        let document = |item: &Setting| {
            let fields = match item.json()? {
                Value::Object(fields) => fields,
                _ => Map::new(),
            };
            let (file, place) = (item.file.clone(), Place::Line(item.node.line));
            Ok(Document { fields, columns: columns.clone(), file, place })
        };
        items.iter().map(document).collect()
    }

    /// Where a file is: below the folder that was given; otherwise beside the task file or, as
    /// lm-evaluation-harness has it, below the present folder.
    fn resolved(&self, setting: &Setting) -> Result<PathBuf, TaskError> {
        let name = PathBuf::from(setting.string()?);
        if let Some(folder) = &self.folder {
            return Ok(folder.join(name));
        }
        let beside = setting.file.parent().unwrap_or(Path::new("")).join(&name);
        Ok(if beside.exists() { beside } else { name })
    }
}

/// Splits and their files; files without a split are `train`, as in `datasets`.
fn files(setting: &Setting) -> Result<Vec<(String, Vec<Setting>)>, TaskError> {
    match setting.entries() {
        Ok(entries) => {
            let split = |entry: &Setting| Ok((entry.key.clone(), entry.items()?));
            entries.iter().map(split).collect()
        }
        Err(_) => Ok(vec![("train".to_owned(), setting.items()?)]),
    }
}

/// Records of JSON lines, of one array, or of an array in a field of one object.
fn json(path: &Path, bytes: &[u8], field: Option<&str>) -> Result<Records, TaskError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
        TaskError::line(path, line, "is not UTF-8")
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let malformed = |before: usize, error: &serde_json::Error| {
        TaskError::line(path, before + error.line(), format!("not JSON: {error}"))
    };
    if let Some(field) = field {
        let whole: Value = serde_json::from_str(text).map_err(|error| malformed(0, &error))?;
        return match whole.get(field) {
            Some(Value::Array(items)) => in_array(path, items.clone()),
            _ => Err(TaskError::file(path, format!("has no list in its field `{field}`"))),
        };
    }
    if text.trim_start().starts_with('[') {
        let items = serde_json::from_str(text).map_err(|error| malformed(0, &error))?;
        return in_array(path, items);
    }
    let mut records = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let record: Value = serde_json::from_str(line).map_err(|error| malformed(index, &error))?;
        match record {
            Value::Object(fields) => records.push((Place::Line(index + 1), fields)),
            _ => return Err(TaskError::line(path, index + 1, "expected an object in each line")),
        }
    }
    Ok(records)
}

/// Records of a list, which have numbers rather than lines.
fn in_array(path: &Path, items: Vec<Value>) -> Result<Records, TaskError> {
    let record = |(index, item)| match item {
        Value::Object(fields) => Ok((Place::Record(index + 1), fields)),
        _ => Err(TaskError::file(path, format!("record {} is no object", index + 1))),
    };
    items.into_iter().enumerate().map(record).collect()
}
