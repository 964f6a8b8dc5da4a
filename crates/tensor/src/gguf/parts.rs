//! Files in several parts, `NAME-00001-of-00003.gguf`, whose keys `split.no`, `split.count` and
//! `split.tensors.count` say that they belong together. Metadata is in the first.

use super::error::GgufError;
use super::header::Header;
use super::metadata::Value;
use std::path::{Path, PathBuf};

/// The files of a model one of whose parts is `path`; itself alone if its name is not that of a
/// part.
pub(super) fn paths(path: &Path) -> Result<Vec<PathBuf>, GgufError> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((stem, count)) = stem_and_count(name) else { return Ok(vec![path.to_owned()]) };
    let part = |i: u32| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.gguf"));
    let paths: Vec<PathBuf> = (1..=count).map(part).collect();
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(paths),
        Some(missing) => {
            let problem = format!("one of {count} parts, and this one is missing: fetch it too");
            Err(GgufError::parts(missing, problem))
        }
    }
}

/// `NAME` and 3 of `NAME-00001-of-00003.gguf`.
fn stem_and_count(name: &str) -> Option<(&str, u32)> {
    let number = |digits: &str| {
        let is_number = digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten().filter(|n| *n > 0)
    };
    let rest = name.strip_suffix(".gguf")?;
    let (rest, count) = rest.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let count: u32 = number(count)?;
    number(no).filter(|no| *no <= count).map(|_| (stem, count))
}

/// Checks that each part says that it is the one its name says.
pub(super) fn check(paths: &[PathBuf], headers: &[Header]) -> Result<(), GgufError> {
    for (i, (path, header)) in paths.iter().zip(headers).enumerate() {
        let integer = |key: &str| match header.metadata.get(key) {
            Some(Value::Integer(n)) => Some(n),
            _ => None,
        };
        let (no, count) = (integer("split.no").unwrap_or(0), integer("split.count").unwrap_or(1));
        let is_whole = count <= 1 && paths.len() == 1;
        if !is_whole && (no, count) != (i as i128, paths.len() as i128) {
            let problem = format!(
                "this is part {} of {count}, and its name says {} of {}. Give parts the names that \
                 they were published under, NAME-00001-of-{count:05}.gguf and so on, in one folder",
                no + 1,
                i + 1,
                paths.len()
            );
            return Err(GgufError::parts(path, problem));
        }
        let all: usize = headers.iter().map(|header| header.tensors.len()).sum();
        match integer("split.tensors.count").filter(|n| !is_whole && *n != all as i128) {
            None => {}
            Some(expected) => {
                let problem = format!(
                    "the parts are to hold {expected} tensors and hold {all}: fetch all of them \
                     again"
                );
                return Err(GgufError::parts(path, problem));
            }
        }
    }
    Ok(())
}

/// A tensor that two parts, or one, hold twice.
pub(super) fn twice(paths: &[PathBuf], name: &str, [one, other]: [usize; 2]) -> GgufError {
    let reason = match one == other {
        true => format!("tensor `{name}` is there twice"),
        false => format!("tensor `{name}` is also in {}", paths[one].display()),
    };
    GgufError::damaged(&paths[other], reason)
}
