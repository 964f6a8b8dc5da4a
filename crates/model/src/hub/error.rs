//! Errors of resolving a model's name to a directory, in the user's terms.

use std::io;
use std::path::PathBuf;

/// Why a model was not found or not fetched. Every message ends with a fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// It looks like a path, and nothing is there.
    #[error(
        "model directory `{}` does not exist: give a directory that holds config.json, \
         tokenizer.json and model.safetensors, or a hub name such as `org/name`", path.display()
    )]
    NoSuchDirectory {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// A file where a directory was expected.
    #[error(
        "model `{}` is a file: give the directory that holds config.json, tokenizer.json and \
         model.safetensors", path.display()
    )]
    NotADirectory {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// A GGUF file that is not there.
    #[error(
        "model file `{}` does not exist: give the path of a GGUF file, or of a directory in \
         Hugging Face layout (GGUF files are not fetched from the hub)", path.display()
    )]
    NoSuchGguf {
        /// As the user wrote it.
        path: PathBuf,
    },
    /// Not a name the hub allows.
    #[error("`{model}` is not a hub name: {reason}: write `org/name` or `org/name@revision`")]
    BadName {
        /// As the user wrote it.
        model: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// `HF_ENDPOINT` is not an address.
    #[error(
        "HF_ENDPOINT is `{endpoint}`: expected an address that begins with https:// or http://"
    )]
    BadEndpoint {
        /// As set.
        endpoint: String,
    },
    /// The hub answered 404 for the repository or the revision.
    #[error(
        "`{repo}` at revision `{revision}` was not found on {endpoint}, and there is no directory \
         of that name: check the spelling; if it is private, set HF_TOKEN to a token that may \
         read it"
    )]
    NotFound {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The hub that was asked.
        endpoint: String,
    },
    /// The hub answered 401 or 403.
    #[error(
        "{endpoint} refused access to `{repo}` (HTTP {status}): it is private, gated, or does not \
         exist: check the spelling, accept its terms on its page, and {}",
        if *with_token {
            "set HF_TOKEN to a token that may read it (the current one may not)"
        } else {
            "set HF_TOKEN"
        }
    )]
    Access {
        /// `org/name`.
        repo: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
        /// The hub that was asked.
        endpoint: String,
    },
    /// The repository lacks a file that is needed.
    #[error("`{repo}` has no {file}, which is needed: {fix}")]
    MissingFile {
        /// `org/name`.
        repo: String,
        /// Its name in the repository.
        file: String,
        /// What to do about it.
        fix: &'static str,
    },
    /// The repository's only weights are pickled.
    #[error(
        "`{repo}` has only pickled weights ({files}), which are refused because unpickling runs \
         whatever code the file holds: choose a repository or revision with model.safetensors, or \
         have the weights converted where you trust them"
    )]
    PickledWeights {
        /// `org/name`.
        repo: String,
        /// The pickled files, separated by commas.
        files: String,
    },
    /// The index of shards cannot be used.
    #[error("{}: {reason}: the repository is damaged; choose another revision", path.display())]
    BadIndex {
        /// The index in the cache.
        path: PathBuf,
        /// What is wrong in it.
        reason: String,
    },
    /// Offline, and the snapshot in the cache is incomplete or absent.
    #[error(
        "HF_HUB_OFFLINE is set, and {missing} of `{repo}` (revision `{revision}`) is not in the \
         cache at {}: unset HF_HUB_OFFLINE for one run, or copy the model here and give its \
         directory", cache_dir.display()
    )]
    Offline {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit.
        revision: String,
        /// The first file that is missing, or the snapshot.
        missing: String,
        /// Where it was looked for.
        cache_dir: PathBuf,
    },
    /// The hub could not be reached, or the connection broke.
    #[error(
        "fetching `{repo}` from {endpoint}: {reason}: check the network or HF_ENDPOINT and run \
         again (what is complete is kept), or download the model elsewhere and give its directory"
    )]
    Network {
        /// `org/name`.
        repo: String,
        /// The hub that was asked.
        endpoint: String,
        /// The connection's error.
        reason: String,
    },
    /// The server does not behave like a hub.
    #[error(
        "{url} did not answer like a Hugging Face hub: {reason}: check HF_ENDPOINT, or try again \
         later"
    )]
    Protocol {
        /// The requested URL.
        url: String,
        /// What was wrong with the response.
        reason: String,
    },
    /// The cache cannot be read or written.
    #[error(
        "cannot write the cache at {}: {source}: free disk space, fix its permissions, or set \
         HF_HOME to another directory", path.display()
    )]
    Disk {
        /// The cache's directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process holds the lock of the file.
    #[error("another process is fetching {file} of `{repo}`: wait until it is done and run again")]
    Busy {
        /// `org/name`.
        repo: String,
        /// Its name in the repository.
        file: String,
    },
}
