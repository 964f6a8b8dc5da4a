//! From what a user calls a model to a directory on this machine.
//!
//! A directory is used as it is. A hub name, `org/name[@revision]`, is fetched once into the usual
//! Hugging Face cache, which other programs share, and found there ever after without a request.
//! Only configuration, tokenizer and safetensors are fetched: never pickled weights, never code.
//! Reading what was fetched is the business of the rest of this crate.

mod error;
mod fetch;
mod settings;
#[cfg(test)]
mod tests;

pub use error::HubError;
pub use settings::HubSettings;

use std::path::{Path, PathBuf};

/// The directory of `model`, fetched quietly with the environment's settings if need be.
///
/// # Errors
/// See [`resolve_with`].
pub fn resolve(model: &str) -> Result<PathBuf, HubError> {
    resolve_with(model, &HubSettings::from_env(), &|_| {})
}

/// The directory of `model`: itself when it is a directory, otherwise the snapshot of the hub's
/// repository of that name. `on_file` is told the name of each file that is about to be fetched.
///
/// # Errors
/// Says what was wrong and how to mend it: no such directory, a kind of file that is not read, a
/// malformed name, a repository that is absent, closed or without usable weights, no network, no
/// room. What was fetched whole before the error stays in the cache and is not fetched again.
pub fn resolve_with(
    model: &str,
    settings: &HubSettings,
    on_file: &dyn Fn(&str),
) -> Result<PathBuf, HubError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    if model.to_ascii_lowercase().ends_with(".gguf") {
        return Err(HubError::Gguf { path: path.to_path_buf() });
    }
    if path.exists() {
        return Err(HubError::NotADirectory { path: path.to_path_buf() });
    }
    if looks_like_path(model) {
        return Err(HubError::NoSuchDirectory { path: path.to_path_buf() });
    }
    fetch::fetch(&RepoName::parse(model)?, settings, on_file)
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
    /// Reads `org/name[@revision]`. Names become parts of paths and addresses, so that only what
    /// the hub itself allows is let through.
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

/// Whether `name` can be one part of a path below the cache, and nothing else.
fn is_safe_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && name.len() <= 255 && !name.starts_with('.') && name.chars().all(plain)
}
