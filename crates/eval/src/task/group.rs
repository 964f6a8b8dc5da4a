//! Tasks and groups of tasks by name: files, what else is in their folder, and Hone's own.

use super::builtin;
use super::config::{Options, Task};
use super::error::TaskError;
use super::file::{self, Setting, Settings};
use super::yaml::{self, Kind};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Deepest nesting of groups.
const MAX_DEPTH: usize = 16;
/// Most files of a folder that are looked through, and most members of all groups.
const MAX_FILES: usize = 10_000;
const MAX_MEMBERS: usize = 10_000;

/// A task, by its index, or a group.
pub enum Entry {
    /// A task.
    Task(usize),
    /// A group.
    Group(Group),
}

/// Tasks that are summed up together.
pub struct Group {
    /// Its name.
    pub name: String,
    /// What tables call it.
    pub alias: String,
    /// What is in it.
    pub members: Vec<Entry>,
    /// What is summed up.
    pub aggregates: Vec<Aggregate>,
}

/// A metric of a group.
pub struct Aggregate {
    /// The metric of its tasks.
    pub metric: String,
    /// Pipelines; `None`: all there are.
    pub filters: Option<Vec<String>>,
    /// Whether tasks weigh as much as they have documents.
    pub weight_by_size: bool,
}

impl Group {
    /// Indices of all tasks in it, each once.
    pub fn tasks(&self) -> Vec<usize> {
        let mut tasks = Vec::new();
        for member in &self.members {
            match member {
                Entry::Task(i) => tasks.push(*i),
                Entry::Group(group) => tasks.extend(group.tasks()),
            }
        }
        tasks.sort_unstable();
        tasks.dedup();
        tasks
    }
}

/// Every task of these files and names, and how they are grouped.
///
/// # Errors
/// If a file is at fault, a name is not known, or groups contain each other.
pub fn load(
    names: &[PathBuf],
    options: &Options<'_>,
) -> Result<(Vec<Entry>, Vec<Task>), TaskError> {
    let mut loader = Loader {
        options,
        tasks: Vec::new(),
        num_members: 0,
        open: Vec::new(),
        folders: BTreeMap::new(),
    };
    let mut entries = Vec::new();
    for name in names {
        entries.extend(loader.entries(file::load(name)?)?);
    }
    Ok((entries, loader.tasks))
}

/// What a name in a folder stands for: files that define or tag it.
type Folder = BTreeMap<String, Vec<PathBuf>>;

struct Loader<'a> {
    options: &'a Options<'a>,
    tasks: Vec<Task>,
    /// Of all groups, however often they are named.
    num_members: usize,
    /// Names of the groups that are being read.
    open: Vec<String>,
    folders: BTreeMap<PathBuf, Rc<Folder>>,
}

impl Loader<'_> {
    /// What a file's settings are: one task, or one group.
    fn entries(&mut self, settings: Settings) -> Result<Vec<Entry>, TaskError> {
        let is_group = settings.get("group").is_some()
            && settings.get("task").is_none_or(|task| matches!(task.node.kind, Kind::List(_)));
        let is_list = settings.get("task").is_some_and(|t| matches!(t.node.kind, Kind::List(_)));
        match (is_group, is_list) {
            (true, _) => Ok(vec![Entry::Group(self.group(settings, None, None)?)]),
            (false, true) => {
                let task = settings.get("task").map(|task| task.error(""));
                let what = "a list of tasks needs `group`, the name of all together";
                Err(task.map_or_else(
                    || TaskError::file(&settings.file, what),
                    |error| TaskError::Input(format!("{error}{what}")),
                ))
            }
            (false, false) => Ok(vec![self.task(settings)?]),
        }
    }

    fn task(&mut self, settings: Settings) -> Result<Entry, TaskError> {
        let task = Task::new(settings, self.options)?;
        if let Some(i) = self.tasks.iter().position(|known| known.name == task.name) {
            // The same one by another way; another of its name would be mistaken for it.
            let (known, own) = (&self.tasks[i].settings, &task.settings);
            if known.file != own.file {
                let other = known.file.display();
                return Err(
                    task.error(format!("{other} defines a task of this name too; rename one"))
                );
            }
            let difference = known.difference(own);
            return match difference {
                None => Ok(Entry::Task(i)),
                Some(key) => Err(task.error(format!(
                    "is asked for twice, with another `{key}`; write one of them as a file of its \
                     own, with another name (include: FILE, task: NAME)"
                ))),
            };
        }
        self.tasks.push(task);
        Ok(Entry::Task(self.tasks.len() - 1))
    }

    /// A group; within `parent` its name gets that one's before it. `over` are settings that its
    /// tasks take over.
    fn group(
        &mut self,
        mut settings: Settings,
        parent: Option<&str>,
        over: Option<&Settings>,
    ) -> Result<Group, TaskError> {
        let mut take = |key: &str| settings.take(key).filter(|setting| !setting.is_null());
        let (own, alias, members) = (take("group"), take("group_alias"), take("task"));
        let aggregates = take("aggregate_metric_list");
        take("metadata");
        let own = own.map(|own| own.string()).transpose()?.unwrap_or_default();
        let name = parent.map_or(own.clone(), |parent| format!("{parent}::{own}"));
        let alias = alias.map(|alias| alias.string()).transpose()?.unwrap_or(own);
        if self.open.len() >= MAX_DEPTH || self.open.contains(&name) {
            let what = format!("the group {name} contains itself, or groups nest too deep");
            return Err(TaskError::file(&settings.file, what));
        }
        let Some(members) = members else {
            return Err(TaskError::file(&settings.file, format!("the group {name} has no task")));
        };
        // What is left goes to every task; what the caller gives goes over it.
        if let Some(over) = over {
            settings.update(over.clone());
        }
        self.open.push(name.clone());
        let mut found = Vec::new();
        for member in members.items()? {
            self.num_members += 1;
            if self.num_members > MAX_MEMBERS {
                return Err(member.error(format!("more than {MAX_MEMBERS} members of groups")));
            }
            found.extend(self.member(&name, &member, &settings)?);
        }
        self.open.pop();
        let aggregates = match aggregates {
            Some(list) => list.items()?.iter().map(aggregate).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        Ok(Group { name, alias, members: found, aggregates })
    }

    /// A member: the name of a task, group or tag, a task with settings of its own, or a group that
    /// is written out.
    fn member(
        &mut self,
        group: &str,
        member: &Setting,
        over: &Settings,
    ) -> Result<Vec<Entry>, TaskError> {
        if let Kind::Scalar(_) = member.node.kind {
            let name = member.string()?;
            let files = self.files_of(&member.file, &name)?;
            if files.is_empty() {
                return Err(member.error(format!(
                    "`{name}` is no task, group or tag of a file beside this one, nor one of \
                     Hone's: {}",
                    builtin::names().join(", ")
                )));
            }
            let mut entries = Vec::new();
            for file in files {
                entries.extend(self.with_settings(file::load(&file)?, over)?);
            }
            return Ok(entries);
        }
        let mut own = Settings::of_map(&member.file, &member.node)?;
        if own.get("group").is_some() {
            return Ok(vec![Entry::Group(self.group(own, Some(group), Some(over))?)]);
        }
        let Some(name) = own.take("task") else {
            return Err(member.error("a member without `task` or `group`"));
        };
        let name = name.string()?;
        let mut settings = over.clone();
        settings.file = member.file.clone();
        settings.update(own);
        if let Some(file) = self.files_of(&member.file, &name)?.first() {
            return self.with_settings(file::load(file)?, &settings);
        }
        let name = Kind::Scalar(serde_json::Value::String(format!("{group}::{name}")));
        let node = yaml::Node { kind: name, line: member.node.line };
        let file = member.file.clone();
        let (within, key) = (String::new(), "task".to_owned());
        let name = Setting { within, key, node, file: file.clone() };
        settings.update(Settings { file, all: vec![name] });
        Ok(vec![self.task(settings)?])
    }

    /// A file's task or group, with other settings over its own.
    fn with_settings(
        &mut self,
        mut settings: Settings,
        over: &Settings,
    ) -> Result<Vec<Entry>, TaskError> {
        let is_list = settings.get("task").is_some_and(|t| matches!(t.node.kind, Kind::List(_)));
        if settings.get("group").is_some() && is_list {
            return Ok(vec![Entry::Group(self.group(settings, None, Some(over))?)]);
        }
        settings.update(over.clone());
        self.entries(settings)
    }

    /// The files that a name stands for in the folder of `file`, sorted; or Hone's own task.
    fn files_of(&mut self, file: &Path, name: &str) -> Result<Vec<PathBuf>, TaskError> {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let known = match self.folders.get(&folder) {
            Some(known) => known.clone(),
            None => {
                let known = Rc::new(names_in(&folder)?);
                self.folders.insert(folder, known.clone());
                known
            }
        };
        let own = || builtin::task_file(Path::new(name)).map(|_| PathBuf::from(name));
        Ok(match known.get(name) {
            Some(files) => files.clone(),
            None => own().into_iter().collect(),
        })
    }
}

/// Names of tasks, groups and tags in a folder's files; what is no task file has none.
fn names_in(folder: &Path) -> Result<Folder, TaskError> {
    let dir = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(files) = std::fs::read_dir(dir) else { return Ok(Folder::new()) };
    let is_yaml =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    let mut files: Vec<PathBuf> = files
        .filter_map(|file| file.ok().map(|file| folder.join(file.file_name())))
        .filter(is_yaml)
        .take(MAX_FILES + 1)
        .collect();
    if files.len() > MAX_FILES {
        return Err(TaskError::file(dir, format!("more than {MAX_FILES} YAML files")));
    }
    files.sort();
    let mut folder = Folder::new();
    for path in files {
        let Ok(text) = file::read(&path) else { continue };
        let Ok(node) = yaml::parse(&path, &text) else { continue };
        let Ok(settings) = Settings::of_map(&Rc::from(path.as_path()), &node) else { continue };
        let is_list = settings.get("task").is_some_and(|t| matches!(t.node.kind, Kind::List(_)));
        let keys: &[&str] = if is_list { &["group"] } else { &["task", "tag"] };
        for setting in keys.iter().filter_map(|key| settings.get(key)) {
            for name in setting.strings().unwrap_or_default() {
                folder.entry(name).or_default().push(path.clone());
            }
        }
    }
    Ok(folder)
}

fn aggregate(entry: &Setting) -> Result<Aggregate, TaskError> {
    let (mut metric, mut filters, mut weight_by_size) = (None, None, true);
    for setting in entry.entries()? {
        match &*setting.key {
            "metric" => metric = Some(setting.string()?),
            "filter_list" if !setting.is_null() => filters = Some(setting.strings()?),
            "filter_list" => {}
            "weight_by_size" => weight_by_size = setting.boolean()?,
            "aggregation" => {
                if setting.string()? != "mean" {
                    return Err(setting.error("groups have `mean` only"));
                }
            }
            _ => return Err(setting.error("an unknown key")),
        }
    }
    let metric = metric.ok_or_else(|| entry.error("an entry without `metric`"))?;
    Ok(Aggregate { metric, filters, weight_by_size })
}
