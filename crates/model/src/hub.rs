//! Resolves the model a user names to a local directory or file.
//!
//! A directory or a GGUF file is used as it is. A hub name, `org/name[@revision]`, is downloaded
//! once into the standard Hugging Face cache, which other programs share, and found there
//! afterwards offline.
//! Only configuration, tokenizer and safetensors are fetched: never pickled weights, never code.
//! The rest of this crate reads what was fetched.

mod error;
mod fetch;
mod settings;
#[cfg(test)]
mod tests;

pub use error::HubError;
pub use settings::HubSettings;

use crate::gguf::is_gguf;
use std::path::{Path, PathBuf};

/// The directory of `model`, fetched quietly with the environment's settings if need be.
///
/// # Errors
/// See [`resolve_with`].
pub fn resolve(model: &str) -> Result<PathBuf, HubError> {
    resolve_with(model, &HubSettings::from_env(), &|_| {})
}

/// The directory of `model`: itself if it is a directory or a GGUF file, otherwise the snapshot of
/// the hub repository of that name. `on_file` is called with the name of each file about to be
/// fetched.
///
/// # Errors
/// If the directory does not exist, the file type is not supported, the name is malformed, the
/// repository is missing, private or without usable weights, the network is down, or the disk is
/// full. Files that were fetched completely stay in the cache and are not fetched again.
pub fn resolve_with(
    model: &str,
    settings: &HubSettings,
    on_file: &dyn Fn(&str),
) -> Result<PathBuf, HubError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if is_gguf(path) {
        return match path.exists() {
            true => Ok(path.to_path_buf()),
            false => Err(HubError::NoSuchGguf { path: path.to_path_buf() }),
        };
    }
    if path.exists() {
        return Err(HubError::NotADirectory { path: path.to_path_buf() });
    }
    if looks_like_path(model) {
        return Err(HubError::NoSuchDirectory { path: path.to_path_buf() });
    }
    fetch::fetch(&RepoName::parse(model)?, settings, on_file)
}

/// The hub's name, without its revision, of `model` if `found`, a directory that it was resolved to
/// or a file in it, is of a repository of that name; `None` of a directory or file that was named
/// itself, though its path may look like a hub's name.
pub fn name_of<'m>(model: &'m str, found: &Path) -> Option<&'m str> {
    let name = model.split_once('@').map_or(model, |(name, _)| name);
    let folder = fetch::folder_name(&RepoName::parse(name).ok()?);
    found.components().any(|part| part.as_os_str() == folder.as_str()).then_some(name)
}

/// Anything but `org/name[@revision]`; a revision may hold slashes (`refs/pr/1`).
fn looks_like_path(model: &str) -> bool {
    let name = model.split('@').next().unwrap_or(model);
    model.starts_with(['.', '/', '~']) || name.matches('/').count() != 1
}

/// A repository of the hub at a revision (branch, tag or commit).
#[derive(Clone, Debug, PartialEq, Eq)]
struct RepoName {
    /// `org/name`.
    repo: String,
    revision: String,
}

impl RepoName {
    /// Parses `org/name[@revision]`. Names become parts of paths and URLs, so only what the hub
    /// itself allows is accepted.
    fn parse(model: &str) -> Result<Self, HubError> {
        let bad = |reason: &'static str| HubError::BadName { model: model.to_owned(), reason };
        let (repo, revision) = model.split_once('@').unwrap_or((model, "main"));
        let (org, name) = repo.split_once('/').ok_or_else(|| bad("a slash is missing"))?;
        if !is_repo_part(org) || !is_repo_part(name) {
            return Err(bad(
                "organisation and name hold letters, digits, `.`, `_` and `-`, neither begin nor \
                 end with `.` or `-`, and do not repeat `..` or `--`",
            ));
        }
        if revision.is_empty() || revision.len() > 255 || !revision.split('/').all(is_safe_name) {
            return Err(bad(
                "a revision is a branch, a tag or a commit: letters, digits, `.`, `_`, `-`, `/`",
            ));
        }
        Ok(RepoName { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

fn is_repo_part(part: &str) -> bool {
    let edge = ['.', '-'];
    is_safe_name(part)
        && part.len() <= 96
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// Whether `name` is safe as a single path component below the cache.
fn is_safe_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(plain)
}
