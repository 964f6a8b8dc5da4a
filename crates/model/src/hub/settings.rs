//! Cache location, endpoint and token, from the environment variables that the Hugging Face
//! libraries read, with the same meaning.

use std::fs;
use std::path::{Path, PathBuf};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How hub names are looked up.
#[derive(Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The directory that holds `models--org--name` folders.
    pub cache_dir: PathBuf,
    /// The hub's URL, without a trailing slash.
    pub endpoint: String,
    /// Sent as a bearer token when present.
    pub token: Option<String>,
    /// Use only the cache.
    pub offline: bool,
    /// Fetch configuration and tokenizer only.
    pub without_weights: bool,
}

impl std::fmt::Debug for HubSettings {
    /// Keeps the token out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubSettings")
            .field("cache_dir", &self.cache_dir)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubSettings {
    /// Reads `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE` and, for the cache's default location, `XDG_CACHE_HOME`.
    pub fn from_env() -> Self {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// Reads settings from any source of variables; an empty variable counts as unset.
    pub(super) fn from_variables(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| get(name).map(|value| expand_home(&value));
        let hf_home = path("HF_HOME").unwrap_or_else(|| {
            let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| expand_home("~/.cache"));
            caches.join("huggingface")
        });
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        HubSettings {
            cache_dir: path("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
            endpoint: get("HF_ENDPOINT")
                .map_or(DEFAULT_ENDPOINT.to_owned(), |e| e.trim().trim_end_matches('/').to_owned()),
            token: get("HF_TOKEN").or_else(|| read_token(&token_path)).map(|t| t.trim().to_owned()),
            offline: get("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
            without_weights: false,
        }
    }
}

/// The token stored by a login.
fn read_token(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().filter(|token| !token.trim().is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_ascii_lowercase().as_str())
}

/// Expands a leading `~`, which shells leave alone in some assignments.
fn expand_home(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), std::env::home_dir()) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            home.join(rest.trim_start_matches('/'))
        }
        _ => PathBuf::from(path),
    }
}
