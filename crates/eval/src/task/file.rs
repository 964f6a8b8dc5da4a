//! Task files with what they include: keys and values, each with the file and line it is from.

use super::builtin;
use super::error::TaskError;
use super::yaml::{self, Kind, Node};
use serde_json::Value;
use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Deepest chain of includes.
const MAX_INCLUDES: usize = 32;
/// Most files that one includes, however often each.
const MAX_FILES: usize = 1000;
/// Largest task file, in bytes.
const MAX_BYTES: u64 = 4 << 20;

/// A key's value, and where it stands.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Keys that it is in, each with a dot after it: `fewshot_config.`.
    pub within: String,
    /// Its own key.
    pub key: String,
    /// Its value.
    pub node: Node,
    /// The file that says so.
    pub file: Rc<Path>,
}

impl Setting {
    /// An error that names file, line and key.
    pub fn error(&self, what: impl Display) -> TaskError {
        TaskError::line(&self.file, self.node.line, format!("{}{}: {what}", self.within, self.key))
    }

    /// An error of a value that is not what was expected.
    fn expected(&self, what: &str) -> TaskError {
        self.error(format!("expected {what}, found {}", self.node.what()))
    }

    /// Refuses Python functions in it.
    fn plain(&self) -> Result<&Kind, TaskError> {
        match self.node.function() {
            None => Ok(&self.node.kind),
            Some((name, _)) => Err(self.error(format!(
                "the Python function `{name}` cannot be run; write it as a template (Jinja), or \
                 evaluate this task with lm-evaluation-harness"
            ))),
        }
    }

    /// Whether it is null.
    pub fn is_null(&self) -> bool {
        self.node.kind == Kind::Scalar(Value::Null)
    }

    /// A string.
    pub fn string(&self) -> Result<String, TaskError> {
        match self.plain()? {
            Kind::Scalar(Value::String(text)) => Ok(text.clone()),
            _ => Err(self.expected("a string")),
        }
    }

    /// True or false.
    pub fn boolean(&self) -> Result<bool, TaskError> {
        match self.plain()? {
            Kind::Scalar(Value::Bool(is)) => Ok(*is),
            _ => Err(self.expected("true or false")),
        }
    }

    /// A whole number.
    pub fn integer(&self) -> Result<i64, TaskError> {
        match self.plain()? {
            Kind::Scalar(Value::Number(number)) if number.is_i64() => {
                Ok(number.as_i64().unwrap_or_default())
            }
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A whole number of at least 0.
    pub fn count(&self) -> Result<usize, TaskError> {
        usize::try_from(self.integer()?).map_err(|_| self.error("must be at least 0"))
    }

    /// A number.
    pub fn number(&self) -> Result<f64, TaskError> {
        match self.plain()? {
            Kind::Scalar(Value::Number(number)) => Ok(number.as_f64().unwrap_or_default()),
            _ => Err(self.expected("a number")),
        }
    }

    /// A list's items, or the one thing that stands for a list of one.
    pub fn items(&self) -> Result<Vec<Self>, TaskError> {
        let item = |node: &Node| Self { node: node.clone(), ..self.clone() };
        Ok(match self.plain()? {
            Kind::List(items) => items.iter().map(item).collect(),
            _ => vec![item(&self.node)],
        })
    }

    /// Strings of a list, or one string.
    pub fn strings(&self) -> Result<Vec<String>, TaskError> {
        self.items()?.iter().map(Self::string).collect()
    }

    /// A mapping's keys and values; functions are left to who reads them.
    pub fn entries(&self) -> Result<Vec<Self>, TaskError> {
        match &self.node.kind {
            Kind::Map(entries) => {
                let entry = |(key, node): &(String, Node)| Self {
                    within: format!("{}{}.", self.within, self.key),
                    key: key.clone(),
                    node: node.clone(),
                    file: self.file.clone(),
                };
                Ok(entries.iter().map(entry).collect())
            }
            _ => Err(self.expected("a mapping")),
        }
    }

    /// As JSON.
    pub fn json(&self) -> Result<Value, TaskError> {
        self.plain().map(|_| self.node.to_json())
    }
}

/// The keys of a task file, each once.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The file that was named.
    pub file: Rc<Path>,
    /// Its keys.
    pub all: Vec<Setting>,
}

impl Settings {
    /// Those of a mapping in a file.
    pub fn of_map(file: &Rc<Path>, node: &Node) -> Result<Self, TaskError> {
        let Kind::Map(entries) = &node.kind else {
            let what = format!("expected keys of a task, found {}", node.what());
            return Err(TaskError::line(file, node.line, what));
        };
        let setting = |(key, node): &(String, Node)| Setting {
            within: String::new(),
            key: key.clone(),
            node: node.clone(),
            file: file.clone(),
        };
        Ok(Self { file: file.clone(), all: entries.iter().map(setting).collect() })
    }

    /// The setting of a key; null is as none.
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.all.iter().find(|setting| setting.key == key && !setting.is_null())
    }

    /// What is written under these keys, without places.
    pub fn written(&self, keys: &[&str]) -> String {
        let mut out = String::new();
        for setting in self.all.iter().filter(|setting| keys.contains(&setting.key.as_str())) {
            out += &setting.key;
            setting.node.write(&mut out);
        }
        out
    }

    /// A key that is not the same in both.
    pub fn difference<'a>(&'a self, other: &'a Self) -> Option<&'a str> {
        let [own, others] = [self, other].map(|of| of.all.iter().map(|setting| &*setting.key));
        own.chain(others).find(|key| self.written(&[key]) != other.written(&[key]))
    }

    /// Takes a key out.
    pub fn take(&mut self, key: &str) -> Option<Setting> {
        let at = self.all.iter().position(|setting| setting.key == key)?;
        Some(self.all.remove(at))
    }

    /// Puts all of `other`'s keys in, over those that are there.
    pub fn update(&mut self, other: Self) {
        let key = |(at, setting): (usize, &Setting)| (setting.key.clone(), at);
        let mut own: HashMap<String, usize> = self.all.iter().enumerate().map(key).collect();
        for setting in other.all {
            match own.get(&setting.key) {
                Some(at) => self.all[*at] = setting,
                None => {
                    own.insert(setting.key.clone(), self.all.len());
                    self.all.push(setting);
                }
            }
        }
    }
}

/// Reads a task file, or the built-in task of that name, with what it includes: later files over
/// earlier ones, its own keys over all.
///
/// # Errors
/// If a file is missing, no YAML, or includes itself.
pub fn load(path: &Path) -> Result<Settings, TaskError> {
    load_in(path, &mut Vec::new(), &mut 0)
}

fn load_in(
    path: &Path,
    open: &mut Vec<PathBuf>,
    num_files: &mut usize,
) -> Result<Settings, TaskError> {
    let name = normal(path);
    if open.contains(&name) {
        let chain = open.iter().chain([&name]).map(|file| file.display().to_string());
        let chain = chain.collect::<Vec<_>>().join(" includes ");
        return Err(TaskError::Input(format!("task files include each other: {chain}")));
    }
    if open.len() >= MAX_INCLUDES {
        return Err(TaskError::file(path, format!("included more than {MAX_INCLUDES} deep")));
    }
    *num_files += 1;
    if *num_files > MAX_FILES {
        return Err(TaskError::file(
            path,
            format!("the task includes more than {MAX_FILES} files"),
        ));
    }
    open.push(name);
    let text = read(path)?;
    let file: Rc<Path> = Rc::from(path);
    let mut own = Settings::of_map(&file, &yaml::parse(path, &text)?)?;
    let mut settings = Settings { file: file.clone(), all: Vec::new() };
    if let Some(include) = own.take("include") {
        for included in include.strings()? {
            let folder = path.parent().unwrap_or(Path::new(""));
            let included = load_in(&folder.join(included), open, num_files)?;
            settings.update(included);
        }
    }
    settings.update(own);
    open.pop();
    Ok(settings)
}

/// The path without `.` and, where they lead back, `..`.
fn normal(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// The text of a task file; one of Hone's own if there is no such file.
pub fn read(path: &Path) -> Result<String, TaskError> {
    // Folders of data have the names of tasks.
    if let Some(text) = builtin::task_file(path).filter(|_| !path.is_file()) {
        return Ok(text.to_owned());
    }
    let failed = |error: std::io::Error| {
        let names = builtin::names().join(", ");
        let hint = match path.extension() {
            Some(_) => String::new(),
            None => format!("; tasks that come with Hone are {names}"),
        };
        TaskError::file(path, format!("{error}{hint}"))
    };
    let about = std::fs::metadata(path).map_err(failed)?;
    if !about.is_file() || about.len() > MAX_BYTES {
        let what = format!("is no file of at most {MAX_BYTES} bytes: not a task");
        return Err(TaskError::file(path, what));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = String::from_utf8(bytes).map_err(|_| TaskError::file(path, "is not UTF-8"))?;
    Ok(text.strip_prefix('\u{feff}').map_or(text.clone(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn own_keys_go_over_included_ones() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("a.yaml", "include: [b.yaml, c.yaml]\ntask: a\n"),
                ("b.yaml", "task: b\noutput_type: multiple_choice\ndescription: b\n"),
                ("c.yaml", "task: c\ndescription: c\n"),
            ],
        );
        let settings = load(&dir.path().join("a.yaml")).unwrap();
        let get = |key: &str| settings.get(key).unwrap().string().unwrap();
        assert_eq!([get("task"), get("description")], ["a", "c"]);
        assert_eq!(get("output_type"), "multiple_choice");
        // A message names the file that has the key.
        let error = settings.get("description").unwrap().boolean().unwrap_err().to_string();
        assert!(error.ends_with("c.yaml:2: description: expected true or false, found a string"));
    }

    #[test]
    fn circles_and_missing_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("a.yaml", "include: b.yaml\n"),
                ("b.yaml", "include: ./a.yaml\n"),
                ("c.yaml", "include: nowhere.yaml\n"),
            ],
        );
        let error = |name: &str| load(&dir.path().join(name)).unwrap_err().to_string();
        assert!(error("a.yaml").starts_with("task files include each other: "));
        assert!(error("c.yaml").contains("nowhere.yaml: No such file"));
        assert!(error("nothing").contains("tasks that come with Hone are arc_challenge, "));
    }

    #[test]
    fn functions_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("a.yaml", "task: a\nprocess_docs: !function utils.clean\n")]);
        let settings = load(&dir.path().join("a.yaml")).unwrap();
        let error = settings.get("process_docs").unwrap().string().unwrap_err().to_string();
        assert!(error.contains("a.yaml:2: process_docs: the Python function `utils.clean`"));
    }
}
