//! Tests against a local server that behaves like the hub; none uses the network.

mod server;

use super::*;
use crate::companions::COMPANIONS;
use server::{COMMIT, REPO, Server, Site};
use std::cell::RefCell;
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use tempfile::TempDir;

const INDEX: &str = "model.safetensors.index.json";

fn whole() -> Vec<(&'static str, &'static str)> {
    vec![
        ("config.json", "{\"model_type\": \"llama\"}"),
        ("tokenizer.json", "{}"),
        ("generation_config.json", "{ }"),
        ("model.safetensors", "weights, weights, weights"),
        ("pytorch_model.bin", "pickle"),
        ("modeling_tiny.py", "import os"),
    ]
}

fn sharded(index: &str) -> Site {
    let mut files = whole();
    files.retain(|(name, _)| *name != "model.safetensors");
    files.extend([(INDEX, index), ("a-1.safetensors", "first"), ("a-2.safetensors", "second")]);
    Site::with(&files)
}

const TWO_SHARDS: &str =
    r#"{"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors", "z": "a-1.safetensors"}}"#;

fn settings(cache: &Path, server: &Server) -> HubSettings {
    HubSettings {
        cache_dir: cache.join("hub"),
        endpoint: server.endpoint.clone(),
        token: None,
        offline: false,
        without_weights: false,
    }
}

/// How texts are embedded is in a folder that `modules.json` names; some modules have no file.
#[test]
fn what_an_embedder_says_of_itself_is_fetched() {
    let modules = r#"[{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type":
        "a.Pooling"}, {"path": "2_Normalize", "type": "a.Normalize"}]"#;
    let mut files = whole();
    files.extend([("modules.json", modules), ("1_Pooling/config.json", "{\"a\": 1}")]);
    let (cache, server) = (TempDir::new().unwrap(), Server::start(Site::with(&files)));
    let settings = settings(cache.path(), &server);
    let dir = resolve_with(REPO, &settings, &|_| {}).unwrap();
    assert_eq!(fs::read_to_string(dir.join("1_Pooling/config.json")).unwrap(), "{\"a\": 1}");
    let asked = server.requests().len();
    assert_eq!(resolve_with(REPO, &settings, &|_| {}).unwrap(), dir);
    assert_eq!(server.requests().len(), asked);
}

/// Nothing that an export hands on is left behind.
#[test]
fn all_that_goes_along_is_fetched() {
    let mut files = whole();
    files.retain(|(name, _)| !COMPANIONS.contains(name));
    let modules = r#"[{"path": "", "type": "a.Transformer"}]"#;
    // Each of another length, as the server's tags tell files apart by it.
    let lengths = COMPANIONS.iter().enumerate();
    files.extend(lengths.map(|(i, name)| (*name, &"a text that is long enough for all"[..=i])));
    files.iter_mut().filter(|(name, _)| *name == "modules.json").for_each(|of| of.1 = modules);
    let (cache, server) = (TempDir::new().unwrap(), Server::start(Site::with(&files)));
    let dir = resolve_with(REPO, &settings(cache.path(), &server), &|_| {}).unwrap();
    for (name, text) in files.iter().filter(|(name, _)| COMPANIONS.contains(name)) {
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), *text, "{name}");
    }
}

/// The error message of a failed fetch from a site.
fn message_from(site: Site, token: Option<&str>) -> String {
    let (cache, server) = (TempDir::new().unwrap(), Server::start(site));
    let token = token.map(str::to_owned);
    let settings = HubSettings { token, ..settings(cache.path(), &server) };
    resolve_with(REPO, &settings, &|_| {}).unwrap_err().to_string()
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_directory_is_used_as_it_is() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().to_str().unwrap();
    assert_eq!(resolve(path).unwrap(), dir.path());
}

#[test]
fn what_looks_like_a_path_is_never_asked_for() {
    for model in ["./gone", "../gone", "/gone/model", "~/gone", "a/b/c", "gone", "", "gone@main"] {
        let error = resolve(model).unwrap_err();
        assert!(matches!(error, HubError::NoSuchDirectory { .. }), "{model}: {error}");
    }
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    let error = resolve(file.to_str().unwrap()).unwrap_err();
    assert!(matches!(error, HubError::NotADirectory { .. }), "{error}");
    for model in ["model.gguf", "org/Model.GGUF", "/gone/q4.gguf"] {
        assert_has(&resolve(model).unwrap_err().to_string(), &["does not exist", model]);
    }
    let file = dir.path().join("model.GGUF");
    fs::write(&file, "").unwrap();
    assert_eq!(resolve(file.to_str().unwrap()).unwrap(), file);
}

#[test]
fn names_are_checked_before_they_become_paths() {
    let bad = ["a/", "a/..", "a/b--c", "a/-b", "a/b.", "a b/c", "a/b?x", "a\\b/c", "é/b"];
    let bad_revisions = ["a/b@", "a/b@..", "a/b@x/../y", "a/b@/x", "a/b@x//y", "a/b@x?y", "a/b@.x"];
    for model in bad.into_iter().chain(bad_revisions) {
        let error = RepoName::parse(model).unwrap_err();
        assert!(matches!(error, HubError::BadName { .. }), "{model}: {error}");
    }
    let good = RepoName::parse("Acme-1/tiny_v0.5@refs/pr/1").unwrap();
    assert_eq!((good.repo.as_str(), good.revision.as_str()), ("Acme-1/tiny_v0.5", "refs/pr/1"));
    assert_eq!(RepoName::parse("a/b").unwrap().revision, "main");
}

#[test]
fn a_repository_is_fetched_once_and_then_found_without_a_request() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(Site::with(&whole()));
    let settings = settings(cache.path(), &server);
    let told = RefCell::new(Vec::new());
    let dir = resolve_with(REPO, &settings, &|file| told.borrow_mut().push(file.to_owned()));
    let dir = dir.unwrap();
    let expected = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names_in(&dir), expected);
    assert_eq!(told.borrow().len(), expected.len());
    assert!(dir.ends_with(format!("models--acme--tiny/snapshots/{COMMIT}")));
    assert_eq!(
        fs::read_to_string(dir.join("model.safetensors")).unwrap(),
        "weights, weights, weights"
    );
    for (model, name) in [(REPO, Some(REPO)), ("acme/other", None), ("./acme/tiny", None)] {
        assert_eq!(name_of(model, &dir), name, "{model}");
    }
    assert_eq!(name_of(&format!("{REPO}@main"), &dir.join("model.safetensors")), Some(REPO));
    // A directory here, though called as a repository might be.
    assert_eq!(name_of(REPO, Path::new(REPO)), None);

    let num_requests = server.requests().len();
    assert_eq!(resolve_with(REPO, &settings, &|_| panic!("nothing to fetch")).unwrap(), dir);
    let by_commit = format!("{REPO}@{COMMIT}");
    assert_eq!(resolve_with(&by_commit, &settings, &|_| {}).unwrap(), dir);
    let offline = HubSettings { offline: true, ..settings.clone() };
    assert_eq!(resolve_with(REPO, &offline, &|_| {}).unwrap(), dir);
    assert_eq!(server.requests().len(), num_requests);
}

/// One request tells which files there are; a server that does not list them, or lists those of
/// another commit, is asked for each companion.
#[test]
fn only_files_that_exist_are_asked_for() {
    let expected = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    let of = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let fetched_from = |site: Site| {
        let (cache, server) = (TempDir::new().unwrap(), Server::start(site));
        let dir = resolve_with(REPO, &settings(cache.path(), &server), &|_| {}).unwrap();
        assert_eq!(names_in(&dir), expected);
        server.requests().into_iter().map(|request| request.path).collect::<Vec<String>>()
    };
    let listed = fetched_from(Site::with(&whole()));
    let (listings, files): (Vec<&String>, _) =
        listed.iter().partition(|path| path.starts_with("/api/"));
    assert_eq!(listings, [&format!("/api/models/{REPO}/revision/{COMMIT}")]);
    assert!(files.iter().all(|path| expected.contains(&of(path).as_str())), "{files:?}");

    let num_absent = COMPANIONS.iter().filter(|file| !expected.contains(file)).count();
    for site in [
        Site { no_listing: true, ..Site::with(&whole()) },
        Site { lists_another: true, ..Site::with(&whole()) },
    ] {
        assert_eq!(fetched_from(site).len(), listed.len() + num_absent);
    }
}

/// A plan does without weights; whoever computes fetches them later, and nothing else.
#[test]
fn weights_can_be_left_out() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(Site::with(&whole()));
    let settings = settings(cache.path(), &server);
    let without = HubSettings { without_weights: true, ..settings.clone() };
    let dir = resolve_with(REPO, &without, &|_| {}).unwrap();
    assert!(dir.join("tokenizer.json").exists() && !dir.join("model.safetensors").exists());
    let offline = HubSettings { offline: true, ..without };
    assert_eq!(resolve_with(REPO, &offline, &|_| {}).unwrap(), dir);
    let told = RefCell::new(Vec::new());
    resolve_with(REPO, &settings, &|file| told.borrow_mut().push(file.to_owned())).unwrap();
    assert_eq!(*told.borrow(), ["model.safetensors"]);
}

#[test]
fn a_cache_that_lacks_a_file_gets_only_that_file() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(Site::with(&whole()));
    let settings = settings(cache.path(), &server);
    let dir = resolve_with(REPO, &settings, &|_| {}).unwrap();
    // A dangling link counts as missing.
    fs::remove_file(fs::canonicalize(dir.join("model.safetensors")).unwrap()).unwrap();
    let offline = HubSettings { offline: true, ..settings.clone() };
    let message = resolve_with(REPO, &offline, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["HF_HUB_OFFLINE", "model.safetensors", REPO]);

    let told = RefCell::new(Vec::new());
    resolve_with(REPO, &settings, &|file| told.borrow_mut().push(file.to_owned())).unwrap();
    assert_eq!(*told.borrow(), ["model.safetensors"]);
    assert!(dir.join("model.safetensors").exists());
}

#[test]
fn shards_come_with_their_index() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(sharded(TWO_SHARDS));
    let settings = settings(cache.path(), &server);
    let dir = resolve_with(&format!("{REPO}@refs/pr/1"), &settings, &|_| {}).unwrap();
    assert_eq!(fs::read_to_string(dir.join("a-1.safetensors")).unwrap(), "first");
    assert_eq!(fs::read_to_string(dir.join("a-2.safetensors")).unwrap(), "second");
    let num_requests = server.requests().len();
    resolve_with(&format!("{REPO}@refs/pr/1"), &settings, &|_| {}).unwrap();
    assert_eq!(server.requests().len(), num_requests);
}

#[test]
fn an_index_names_only_files_beside_it() {
    for shard in ["../a.safetensors", "/etc/a.safetensors", "x/a.safetensors", "a.bin", ".", ""] {
        let index = format!("{{\"weight_map\": {{\"w\": \"{shard}\"}}}}");
        let message = message_from(sharded(&index), None);
        assert_has(&message, &["`weight_map` maps `w` to", "not the name of a safetensors file"]);
    }
    for index in ["{}", "[", r#"{"weight_map": {}}"#, r#"{"weight_map": {"w": 1}}"#] {
        assert_has(&message_from(sharded(index), None), &[INDEX, "damaged"]);
    }
    let gone = r#"{"weight_map": {"w": "gone.safetensors"}}"#;
    assert_has(&message_from(sharded(gone), None), &["has no gone.safetensors"]);
}

#[test]
fn pickled_weights_are_refused() {
    let mut files = whole();
    files.retain(|(name, _)| *name != "model.safetensors");
    let message = message_from(Site::with(&files), None);
    assert_has(&message, &["only pickled weights (pytorch_model.bin)", "refused because"]);
    let message = message_from(Site { no_listing: true, ..Site::with(&files) }, None);
    assert_has(&message, &["only pickled weights (pytorch_model.bin)"]);
    files.retain(|(name, _)| *name != "pytorch_model.bin");
    let message = message_from(Site::with(&files), None);
    assert_has(&message, &["has no model.safetensors or model.safetensors.index.json"]);
}

#[test]
fn what_the_hub_refuses_is_told_apart() {
    let message = message_from(Site { status: Some(404), ..Site::default() }, None);
    assert_has(&message, &["acme/tiny", "was not found", "spelling", "HF_TOKEN"]);
    for status in [401, 403] {
        let site = Site { status: Some(status), ..Site::default() };
        let message = message_from(site, None);
        assert_has(&message, &["refused access", &status.to_string(), "gated", "set HF_TOKEN"]);
    }
    let site = Site { gated: true, ..Site::with(&whole()) };
    assert_has(&message_from(site, Some("hf_x")), &["accept its terms", "the current one may not"]);
    let site = Site { token: Some("right".into()), ..Site::default() };
    assert_has(&message_from(site, Some("wrong")), &["the current one may not"]);
    let site = Site { status: Some(500), ..Site::default() };
    assert_has(&message_from(site, None), &["did not answer like", "HTTP 500"]);
    assert_has(&message_from(Site::with(&[("a.gguf", "x")]), None), &["config.json", "GGUF files"]);
    let no_tokenizer = Site::with(&[("config.json", "{}")]);
    assert_has(&message_from(no_tokenizer, None), &["has no tokenizer.json"]);
}

#[test]
fn the_token_is_sent() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(Site { token: Some("hf_x".into()), ..Site::with(&whole()) });
    let settings =
        HubSettings { token: Some("hf_x".to_owned()), ..settings(cache.path(), &server) };
    resolve_with(REPO, &settings, &|_| {}).unwrap();
    let sent = |request: &server::Request| request.authorization.as_deref() == Some("Bearer hf_x");
    assert!(server.requests().iter().all(sent));
    assert!(!format!("{settings:?}").contains("hf_x"));
}

#[test]
fn offline_and_unreachable_are_told_apart() {
    let cache = TempDir::new().unwrap();
    let settings = HubSettings {
        cache_dir: cache.path().join("hub"),
        // Nothing listens on the discard port.
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: false,
        without_weights: false,
    };
    let message = resolve_with(REPO, &settings, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["http://127.0.0.1:9", "check the network"]);
    let offline = HubSettings { offline: true, ..settings.clone() };
    let message = resolve_with(REPO, &offline, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["HF_HUB_OFFLINE is set", "any snapshot", REPO]);
    let nonsense = HubSettings { endpoint: "hub.local".to_owned(), ..settings };
    let message = resolve_with(REPO, &nonsense, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["HF_ENDPOINT is `hub.local`"]);
    assert_eq!(names_in(cache.path()), [""; 0]);
}

#[test]
fn https_is_spoken() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cache = TempDir::new().unwrap();
    let settings = HubSettings {
        cache_dir: cache.path().join("hub"),
        endpoint: format!("https://{}", listener.local_addr().unwrap()),
        token: None,
        offline: false,
        without_weights: false,
    };
    let client = std::thread::spawn(move || resolve_with(REPO, &settings, &|_| {}));
    let mut first = [0];
    listener.accept().unwrap().0.read_exact(&mut first).unwrap();
    // The first byte of a TLS handshake record.
    assert_eq!(first, [0x16]);
    assert_has(&client.join().unwrap().unwrap_err().to_string(), &["check the network"]);
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let cache = TempDir::new().unwrap();
    let site =
        Site { breaks_off: Some(("model.safetensors".to_owned(), 7)), ..Site::with(&whole()) };
    let server = Server::start(site);
    let dir = resolve_with(REPO, &settings(cache.path(), &server), &|_| {}).unwrap();
    assert_eq!(
        fs::read_to_string(dir.join("model.safetensors")).unwrap(),
        "weights, weights, weights"
    );
    let resumed = |request: &server::Request| request.range.as_deref() == Some("bytes=7-");
    assert!(server.requests().iter().any(resumed));
}

#[test]
fn a_part_that_is_no_beginning_is_thrown_away() {
    let cache = TempDir::new().unwrap();
    let server = Server::start(Site::with(&whole()));
    let settings = settings(cache.path(), &server);
    let blobs = settings.cache_dir.join("models--acme--tiny/blobs");
    fs::create_dir_all(&blobs).unwrap();
    for num_bytes in [25, 26] {
        fs::write(blobs.join("tag-25-17.part"), vec![b'?'; num_bytes]).unwrap();
        let dir = resolve_with(REPO, &settings, &|_| {}).unwrap();
        let weights = dir.join("model.safetensors");
        assert_eq!(fs::read_to_string(&weights).unwrap(), "weights, weights, weights");
        fs::remove_file(&weights).unwrap();
    }
}

#[test]
fn a_file_of_the_wrong_size_does_not_stay() {
    let cache = TempDir::new().unwrap();
    let site = Site { cuts: Some("model.safetensors".to_owned()), ..Site::with(&whole()) };
    let server = Server::start(site);
    let settings = settings(cache.path(), &server);
    let message = resolve_with(REPO, &settings, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["model.safetensors: received 24 bytes, expected 25"]);
    let repo = settings.cache_dir.join("models--acme--tiny");
    assert!(!names_in(&repo.join("snapshots").join(COMMIT)).contains(&"model.safetensors".into()));
    assert!(!repo.join("refs/main").exists());
}

#[test]
fn tags_do_not_lead_out_of_the_cache() {
    let site = Site { etag: Some("../../../evil".to_owned()), ..Site::with(&whole()) };
    assert_has(&message_from(site, None), &["did not answer like", "../../../evil"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let dir = TempDir::new().unwrap();
    let server = Server::start(Site::with(&whole()));
    let settings = settings(dir.path(), &server);
    fs::write(&settings.cache_dir, "a file in the way").unwrap();
    let message = resolve_with(REPO, &settings, &|_| {}).unwrap_err().to_string();
    assert_has(&message, &["cannot write the cache at", "HF_HOME"]);
}

#[test]
fn variables_mean_what_they_mean_elsewhere() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("token"), "from-file\n").unwrap();
    let hf_home = home.path().to_str().unwrap();
    let from = |variables: &[(&str, &str)]| {
        HubSettings::from_variables(&|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    };
    let plain = from(&[("HF_HOME", hf_home)]);
    assert_eq!(plain.cache_dir, home.path().join("hub"));
    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.token.as_deref(), Some("from-file"));
    assert!(!plain.offline);
    let set = from(&[
        ("HF_HOME", hf_home),
        ("HF_HUB_CACHE", "/caches/hub"),
        ("HF_ENDPOINT", "http://hub.local:80/"),
        ("HF_TOKEN", " hf_x "),
        ("HF_HUB_OFFLINE", "True"),
    ]);
    assert_eq!(set.cache_dir, Path::new("/caches/hub"));
    assert_eq!(set.endpoint, "http://hub.local:80");
    assert_eq!(set.token.as_deref(), Some("hf_x"));
    assert!(set.offline);
    let elsewhere =
        from(&[("XDG_CACHE_HOME", "/caches"), ("HF_HUB_OFFLINE", "0"), ("HF_TOKEN", "")]);
    assert_eq!(elsewhere.cache_dir, Path::new("/caches/huggingface/hub"));
    assert!(!elsewhere.offline);
    assert_eq!(elsewhere.token, None);
}
