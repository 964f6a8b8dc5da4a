//! What names and globs stand for. What is in the files is `reader`'s.

use crate::error::{DataError, Setting};
use crate::spec::WeightedPath;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// What paths stand for.
#[derive(Default)]
pub(crate) struct Files {
    /// The files of each path, none twice.
    pub files: Vec<Vec<String>>,
    /// Files that were named before.
    pub repeated: Vec<Repeated>,
}

/// A file that is named again.
pub(crate) struct Repeated {
    /// How it is named this time.
    pub file: String,
    /// The weight that it is read with: the one it was first named with.
    pub first: f64,
    /// The weight it is named with this time.
    pub again: f64,
}

/// The files that `paths` (names or globs) stand for: in the given order, a glob's matches sorted,
/// none twice.
pub(crate) fn expand(paths: &[WeightedPath]) -> Result<Files, DataError> {
    if paths.is_empty() {
        return Err(DataError::setup("no data files are named", "name at least one path or glob"));
    }
    let (mut found, mut weights) = (Files::default(), BTreeMap::new());
    for WeightedPath { path, weight } in paths {
        let mut files = Vec::new();
        for file in matches(path)? {
            // Two spellings may name one file.
            let real = std::fs::canonicalize(&file).unwrap_or_else(|_| PathBuf::from(&file));
            match weights.entry(real) {
                Entry::Occupied(before) => {
                    let (first, again) = (*before.get(), *weight);
                    found.repeated.push(Repeated { file, first, again });
                }
                Entry::Vacant(new) => {
                    new.insert(*weight);
                    files.push(file);
                }
            }
        }
        found.files.push(files);
    }
    Ok(found)
}

fn matches(path: &str) -> Result<Vec<String>, DataError> {
    // A name that exists is that file, even when it holds glob characters.
    let exists = Path::new(path).try_exists().map_err(|error| unreadable(path, &error))?;
    if exists {
        if Path::new(path).is_dir() {
            let fix = format!("name its files, for example {path}/*.jsonl");
            return Err(DataError::file(path, "is a directory", fix));
        }
        return Ok(vec![path.to_owned()]);
    }
    if path.contains("://") {
        let fix = "copy the file to a local disk and name it there";
        return Err(DataError::file(path, "remote data is not supported yet", fix));
    }
    if !path.contains(['*', '?', '[']) {
        let what = match Path::new(path).is_symlink() {
            true => "a symbolic link to a file that is not there",
            false => "no such file",
        };
        return Err(DataError::file(path, what, Setting::Paths));
    }
    let pattern = pattern(path);
    let entries = glob::glob(&pattern)
        .map_err(|e| DataError::file(path, format!("not a glob: {e}"), "correct the pattern"))?;
    let mut found = Vec::new();
    for entry in entries {
        found.extend(matched(entry)?);
    }
    refuse_unnameable(path, &pattern)?;
    if found.is_empty() {
        let fix = match path.contains('[') {
            true => "correct the pattern; a [ that is part of a name is written [[]",
            false => "correct the pattern",
        };
        return Err(DataError::file(path, "the glob matches no file", fix));
    }
    Ok(found)
}

/// The glob that a path is: folders that there are by that very name are no patterns.
fn pattern(path: &str) -> String {
    let mut folders = path.rmatch_indices('/').map(|(at, _)| path.split_at(at));
    match folders.find(|(folder, _)| Path::new(folder).is_dir()) {
        Some((folder, rest)) => glob::Pattern::escape(folder) + rest,
        None => path.to_owned(),
    }
}

/// The name of a file that a glob found; directories are passed over.
fn matched(entry: glob::GlobResult) -> Result<Option<String>, DataError> {
    let entry = entry.map_err(|e| unreadable(&e.path().to_string_lossy(), e.error()))?;
    let name = entry.to_string_lossy().into_owned();
    let kind = std::fs::metadata(&entry).map_err(|error| unreadable(&name, &error))?;
    if kind.is_dir() {
        return Ok(None);
    }
    Ok(Some(name))
}

/// Refuses names that are not UTF-8 beside what the last part of a glob matches: the glob itself
/// passes over them.
fn refuse_unnameable(path: &str, pattern: &str) -> Result<(), DataError> {
    let (Some(folder), Ok(pattern)) = (Path::new(path).parent(), glob::Pattern::new(pattern))
    else {
        return Ok(());
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| folder.join(entry.file_name()));
    let mut odd = names
        .filter(|name| name.to_str().is_none())
        .map(|name| name.to_string_lossy().into_owned());
    match odd.find(|name| pattern.matches(name)) {
        Some(name) => Err(DataError::file(name, "the file's name is not UTF-8", "rename it")),
        None => Ok(()),
    }
}

pub(crate) fn unreadable(path: &str, error: &std::io::Error) -> DataError {
    let fix = "check the path and its permissions";
    DataError::file(path, format!("cannot be read: {error}"), fix)
}
