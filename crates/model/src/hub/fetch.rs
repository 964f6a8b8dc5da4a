//! The Hugging Face cache: what is in it, and fetching what is not.
//!
//! Layout, shared with other programs: `models--org--name/{refs,blobs,snapshots}`; a snapshot is a
//! folder of links, named after its commit. An empty file `.no_exist/<commit>/<file>` records that
//! the repository lacks the file, so it is not requested again. `hf-hub` transfers the bytes; this
//! module decides which, pins them to one commit, and validates the responses, since names and
//! sizes are untrusted.

use super::{HubError, HubSettings, RepoName, is_safe_name};
use crate::companions::COMPANIONS;
use crate::embed::module_folders;
use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONFIG: &str = "config.json";
const REQUIRED: [&str; 2] = [CONFIG, "tokenizer.json"];
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const PICKLED_ENDINGS: [&str; 4] = [".bin", ".pt", ".pth", ".ckpt"];
/// Tried by name if the hub does not list the repository's files.
const PICKLED_USUAL: [&str; 2] = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Indices of the largest public models are a few megabytes.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// An interrupted transfer is resumed where it stopped.
const NUM_ATTEMPTS: u32 = 3;
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// The snapshot's directory; no request is made if the cache has everything.
pub fn fetch(
    name: &RepoName,
    settings: &HubSettings,
    on_file: &dyn Fn(&str),
) -> Result<PathBuf, HubError> {
    let folder = settings.cache_dir.join(folder_name(name));
    let missing = match cached_commit(&folder, &name.revision) {
        None => "any snapshot".to_owned(),
        Some(commit) => match first_missing(&folder, &commit, settings)? {
            None => return Ok(folder.join("snapshots").join(commit)),
            Some(file) => file,
        },
    };
    if settings.offline {
        return Err(HubError::Offline {
            repo: name.repo.clone(),
            revision: name.revision.clone(),
            missing,
            cache_dir: settings.cache_dir.clone(),
        });
    }
    Download::start(name, settings, folder, on_file)?.run()
}

/// What a repository may lack.
fn optional() -> impl Iterator<Item = &'static str> {
    COMPANIONS.into_iter().filter(|name| !REQUIRED.contains(name))
}

fn repo_at(name: &RepoName, revision: &str) -> Repo {
    Repo::with_revision(name.repo.clone(), RepoType::Model, revision.to_owned())
}

/// The folder of a repository in the cache: `models--org--name`.
pub(super) fn folder_name(name: &RepoName) -> String {
    repo_at(name, &name.revision).folder_name()
}

/// The commit that the cache has for a revision.
fn cached_commit(folder: &Path, revision: &str) -> Option<String> {
    let commit = match fs::read_to_string(folder.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_owned(),
        // The revision may itself be a commit.
        Err(_) => revision.to_owned(),
    };
    (is_safe_name(&commit) && folder.join("snapshots").join(&commit).is_dir()).then_some(commit)
}

/// The first file that a snapshot lacks. Optional files count unless marked absent.
fn first_missing(
    folder: &Path,
    commit: &str,
    settings: &HubSettings,
) -> Result<Option<String>, HubError> {
    let dir = folder.join("snapshots").join(commit);
    let absent = |file: &&&str| !dir.join(file).exists();
    if let Some(file) = REQUIRED.iter().find(absent) {
        return Ok(Some((*file).to_owned()));
    }
    let unknown =
        |file: &String| !dir.join(file).exists() && !no_exist(folder, commit, file).exists();
    let mut optional = optional().map(str::to_owned).chain(of_modules(&dir));
    if let Some(file) = optional.find(unknown).filter(|_| !settings.offline) {
        return Ok(Some(file));
    }
    if settings.without_weights || dir.join(SINGLE).exists() {
        return Ok(None);
    }
    if !dir.join(INDEX).exists() {
        return Ok(Some(SINGLE.to_owned()));
    }
    Ok(shards(&dir.join(INDEX))?.into_iter().find(|shard| !dir.join(shard).exists()))
}

/// What `modules.json` refers to, such as how an encoder's hidden states are pooled. A damaged file
/// is the concern of whoever reads it.
fn of_modules(snapshot: &Path) -> Vec<String> {
    let folders = module_folders(snapshot).unwrap_or_default().into_iter();
    folders.filter(|name| is_safe_name(name)).map(|name| format!("{name}/{CONFIG}")).collect()
}

fn no_exist(folder: &Path, commit: &str, file: &str) -> PathBuf {
    folder.join(".no_exist").join(commit).join(file)
}

/// The shards that an index names, each a plain file name.
fn shards(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let bad = |reason: String| HubError::BadIndex { path: index.to_path_buf(), reason };
    let num_bytes = fs::metadata(index).map_err(|e| bad(e.to_string()))?.len();
    if num_bytes > MAX_INDEX_BYTES {
        return Err(bad(format!("{num_bytes} bytes, at most {MAX_INDEX_BYTES} are read")));
    }
    let text = fs::read(index).map_err(|e| bad(e.to_string()))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    let map = json
        .get("weight_map")
        .and_then(|map| map.as_object())
        .filter(|map| !map.is_empty())
        .ok_or_else(|| bad("`weight_map` is missing or empty".to_owned()))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().unwrap_or_default();
        if !is_safe_name(shard) || !shard.ends_with(".safetensors") {
            return Err(bad(format!(
                "`weight_map` maps `{tensor}` to `{}`, which is not the name of a safetensors file \
                 in the same directory",
                shard.escape_debug()
            )));
        }
        shards.insert(shard.to_owned());
    }
    Ok(shards)
}

/// The download of one snapshot.
struct Download<'a> {
    name: &'a RepoName,
    settings: &'a HubSettings,
    /// `models--org--name`.
    folder: PathBuf,
    commit: String,
    /// Pinned to the commit, so that all files are from the same state of the repository.
    repo: ApiRepo,
    /// The names of its files, so that no other is asked for; none if the hub does not tell them.
    listing: Option<BTreeSet<String>>,
    api: Api,
    on_file: &'a dyn Fn(&str),
}

impl<'a> Download<'a> {
    /// Asks the hub which commit the revision points to, and which files it has.
    fn start(
        name: &'a RepoName,
        settings: &'a HubSettings,
        folder: PathBuf,
        on_file: &'a dyn Fn(&str),
    ) -> Result<Self, HubError> {
        let endpoint = &settings.endpoint;
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(HubError::BadEndpoint { endpoint: endpoint.clone() });
        }
        let api = ApiBuilder::from_cache(Cache::new(settings.cache_dir.clone()))
            .with_endpoint(endpoint.clone())
            .with_token(settings.token.clone())
            .with_progress(false)
            .with_user_agent("hone", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| failure(name, settings, CONFIG, endpoint, error))?;
        let unpinned = api.repo(repo_at(name, &name.revision));
        let url = unpinned.url(CONFIG);
        let commit = match api.metadata(&url) {
            Ok(metadata) => metadata.commit_hash().trim().to_owned(),
            Err(error) if status(&error) == Some(404) => {
                return Err(no_config(name, settings, &unpinned));
            }
            Err(error) => return Err(failure(name, settings, CONFIG, &url, error)),
        };
        if !is_safe_name(&commit) {
            let reason = format!("X-Repo-Commit is `{}`", commit.escape_debug());
            return Err(HubError::Protocol { url, reason });
        }
        let repo = api.repo(repo_at(name, &commit));
        // A mirror may list nothing, or another commit's files: then each file is asked for.
        let is_whole = |info: &RepoInfo| info.sha == commit && names(info).contains(CONFIG);
        let listing = repo.info().ok().filter(is_whole).as_ref().map(names);
        Ok(Download { name, settings, folder, commit, repo, listing, api, on_file })
    }

    /// Fetches what is missing, then points the revision at the commit.
    fn run(&self) -> Result<PathBuf, HubError> {
        for file in REQUIRED {
            self.require(file, "choose a repository or revision that has it")?;
        }
        for file in optional() {
            if !self.get(file)? {
                self.mark_absent(file)?;
            }
        }
        for file in of_modules(&self.snapshot()) {
            if !self.get(&file)? {
                self.mark_absent(&file)?;
            }
        }
        if !self.settings.without_weights && !self.get(SINGLE)? {
            if !self.get(INDEX)? {
                return Err(self.no_weights());
            }
            for shard in shards(&self.snapshot().join(INDEX))? {
                self.require(&shard, "the repository is damaged; choose another revision")?;
            }
        }
        if self.name.revision != self.commit {
            let cache = Cache::new(self.settings.cache_dir.clone());
            let unpinned = cache.repo(repo_at(self.name, &self.name.revision));
            unpinned.create_ref(&self.commit).map_err(|error| self.disk(error))?;
        }
        Ok(self.snapshot())
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshots").join(&self.commit)
    }

    fn require(&self, file: &str, fix: &'static str) -> Result<(), HubError> {
        if self.get(file)? {
            return Ok(());
        }
        Err(HubError::MissingFile { repo: self.name.repo.clone(), file: file.to_owned(), fix })
    }

    /// Puts one file into the snapshot; false if the repository has no such file.
    fn get(&self, file: &str) -> Result<bool, HubError> {
        let pointer = self.snapshot().join(file);
        if pointer.exists() {
            return Ok(true);
        }
        if self.listing.as_ref().is_some_and(|names| !names.contains(file)) {
            return Ok(false);
        }
        let url = self.repo.url(file);
        let metadata = match self.api.metadata(&url) {
            Ok(metadata) => metadata,
            Err(error) if status(&error) == Some(404) => return Ok(false),
            Err(error) => return Err(self.failure(file, error)),
        };
        let etag = metadata.etag();
        if !is_safe_name(etag.strip_prefix("W/").unwrap_or(etag)) {
            let reason = format!("ETag is `{}`", etag.escape_debug());
            return Err(HubError::Protocol { url, reason });
        }
        if pointer.is_symlink() {
            // A dangling link, which would block the creation of a new one.
            fs::remove_file(&pointer).map_err(|error| self.disk(error))?;
        }
        (self.on_file)(file);
        self.transfer(file, etag).map_err(|error| self.failure(file, error))?;
        self.check_size(file, &pointer, &metadata)?;
        Ok(true)
    }

    /// Transfers the bytes; an interrupted transfer resumes where it stopped.
    fn transfer(&self, file: &str, etag: &str) -> Result<(), ApiError> {
        let mut attempt = 1;
        loop {
            let error = match self.repo.download(file) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let stale = matches!(error, ApiError::InvalidResume) || status(&error) == Some(416);
            if attempt == NUM_ATTEMPTS || !(stale || is_transient(&error)) {
                return Err(error);
            }
            if stale {
                // The partial file does not match this one.
                fs::remove_file(self.blob(etag).with_extension("part"))?;
            }
            std::thread::sleep(RETRY_PAUSE * attempt);
            attempt += 1;
        }
    }

    fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Removes a file from the cache again if its size differs from what the hub announced.
    fn check_size(&self, file: &str, pointer: &Path, metadata: &Metadata) -> Result<(), HubError> {
        let num_bytes = fs::metadata(pointer).map_err(|error| self.disk(error))?.len();
        if num_bytes == metadata.size() as u64 {
            return Ok(());
        }
        for path in [pointer, &self.blob(metadata.etag())] {
            fs::remove_file(path).map_err(|error| self.disk(error))?;
        }
        let reason = format!("{file}: received {num_bytes} bytes, expected {}", metadata.size());
        Err(network(self.name, self.settings, reason))
    }

    fn mark_absent(&self, file: &str) -> Result<(), HubError> {
        let marker = no_exist(&self.folder, &self.commit, file);
        let folder = marker.parent().unwrap_or(&self.folder);
        let created = fs::create_dir_all(folder).and_then(|()| fs::write(&marker, ""));
        created.map_err(|error| self.disk(error))
    }

    /// The error for a repository with neither a safetensors file nor an index.
    fn no_weights(&self) -> HubError {
        let repo = self.name.repo.clone();
        let pickled: Vec<String> = match &self.listing {
            Some(names) => ending_in(names, &PICKLED_ENDINGS).cloned().collect(),
            None => {
                let is_there = |file: &&str| self.api.metadata(&self.repo.url(file)).is_ok();
                PICKLED_USUAL.into_iter().filter(is_there).map(str::to_owned).collect()
            }
        };
        if pickled.is_empty() {
            let fix = "choose a repository or revision with model.safetensors";
            return HubError::MissingFile { repo, file: format!("{SINGLE} or {INDEX}"), fix };
        }
        HubError::PickledWeights { repo, files: pickled.join(", ") }
    }

    fn failure(&self, file: &str, error: ApiError) -> HubError {
        failure(self.name, self.settings, file, &self.repo.url(file), error)
    }

    fn disk(&self, source: io::Error) -> HubError {
        HubError::Disk { path: self.settings.cache_dir.clone(), source }
    }
}

/// The names of the repository's files.
fn names(info: &RepoInfo) -> BTreeSet<String> {
    info.siblings.iter().map(|file| file.rfilename.clone()).collect()
}

/// Those with one of the endings.
fn ending_in<'a>(
    names: &'a BTreeSet<String>,
    endings: &'a [&str],
) -> impl Iterator<Item = &'a String> {
    names.iter().filter(|name| endings.iter().any(|ending| name.ends_with(ending)))
}

/// The error for a missing config.json: either the repository is missing, or only the file.
fn no_config(name: &RepoName, settings: &HubSettings, unpinned: &ApiRepo) -> HubError {
    let repo = name.repo.clone();
    let Ok(info) = unpinned.info() else {
        let (revision, endpoint) = (name.revision.clone(), settings.endpoint.clone());
        return HubError::NotFound { repo, revision, endpoint };
    };
    let fix = match ending_in(&names(&info), &[".gguf"]).next() {
        None => "choose a repository in Hugging Face layout",
        Some(_) => {
            "it holds GGUF files, which are not fetched: download one and give its path, or choose \
             the repository they were made from"
        }
    };
    HubError::MissingFile { repo, file: CONFIG.to_owned(), fix }
}

/// The HTTP status of an error response.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the connection failed, so that a retry may help.
fn is_transient(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(_) => status(error).is_none_or(|status| status >= 500),
        ApiError::IoError(error) => comes_from_network(error),
        _ => false,
    }
}

/// `hf-hub` copies from the connection to the file and does not distinguish their errors.
fn comes_from_network(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof};
    let kinds = [ConnectionAborted, ConnectionReset, TimedOut, UnexpectedEof];
    kinds.contains(&error.kind()) || error.get_ref().is_some_and(|inner| inner.is::<ureq::Error>())
}

fn network(name: &RepoName, settings: &HubSettings, reason: String) -> HubError {
    HubError::Network { repo: name.repo.clone(), endpoint: settings.endpoint.clone(), reason }
}

/// The library's error in the user's terms.
fn failure(
    name: &RepoName,
    settings: &HubSettings,
    file: &str,
    url: &str,
    error: ApiError,
) -> HubError {
    let repo = name.repo.clone();
    let protocol = |reason: String| HubError::Protocol { url: url.to_owned(), reason };
    match (status(&error), error) {
        (Some(status @ (401 | 403)), _) => HubError::Access {
            repo,
            status,
            with_token: settings.token.is_some(),
            endpoint: settings.endpoint.clone(),
        },
        (Some(status), _) => protocol(format!("HTTP {status}")),
        (None, ApiError::RequestError(error)) => network(name, settings, error.to_string()),
        (None, ApiError::IoError(error)) if comes_from_network(&error) => {
            network(name, settings, format!("{file}: {error}"))
        }
        (None, ApiError::IoError(source)) => {
            HubError::Disk { path: settings.cache_dir.clone(), source }
        }
        (None, ApiError::LockAcquisition(_)) => HubError::Busy { repo, file: file.to_owned() },
        (None, other) => protocol(other.to_string()),
    }
}
