//! A mock hub on 127.0.0.1: commits, ETags, range requests, redirects to another host for large
//! files. One request per connection; every request is recorded.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub const REPO: &str = "acme/tiny";
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Contents of the hub, and how it misbehaves.
#[derive(Clone, Default)]
pub struct Site {
    pub files: BTreeMap<String, Vec<u8>>,
    /// Answers every request with this status.
    pub status: Option<u16>,
    /// Refuses requests without this token.
    pub token: Option<String>,
    /// Does not list its files.
    pub no_listing: bool,
    /// Lists its files, but refuses each of them.
    pub gated: bool,
    /// Lists another state of the repository than the files are of.
    pub lists_another: bool,
    /// Sent instead of the true ETag.
    pub etag: Option<String>,
    /// The first transfer of this file breaks off after this many bytes.
    pub breaks_off: Option<(String, usize)>,
    /// Transfers of this file silently end early.
    pub cuts: Option<String>,
}

impl Site {
    pub fn with(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().into()));
        Site { files: files.collect(), ..Site::default() }
    }
}

#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
}

pub struct Server {
    pub endpoint: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// Serves until the test process ends.
    pub fn start(site: Site) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Vec::new()));
        let server = Server { endpoint: endpoint.clone(), log: Arc::clone(&log) };
        std::thread::spawn(move || {
            let mut site = site;
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                let _ = answer(stream, &endpoint, &mut site, &log);
            }
        });
        server
    }

    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }
}

struct Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
    /// The announced length, though the body may be shorter.
    content_length: usize,
}

impl Answer {
    fn new(status: u16, headers: String, body: Vec<u8>) -> Self {
        let content_length = body.len();
        Answer { status, headers, body, content_length }
    }
}

fn answer(
    stream: TcpStream,
    endpoint: &str,
    site: &mut Site,
    log: &Mutex<Vec<Request>>,
) -> std::io::Result<()> {
    let request = read_request(&stream)?;
    log.lock().unwrap().push(request.clone());
    let answer = respond(&request, endpoint, site);
    let mut stream = &stream;
    write!(
        stream,
        "HTTP/1.1 {} Answer\r\nContent-Length: {}\r\nConnection: close\r\n{}\r\n",
        answer.status, answer.content_length, answer.headers
    )?;
    stream.write_all(&answer.body)
}

fn read_request(stream: &TcpStream) -> std::io::Result<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, authorization: None, range: None };
    for line in lines {
        let line = line?;
        let Some((key, value)) = line.split_once(": ") else { break };
        match key.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            _ => {}
        }
    }
    Ok(request)
}

fn respond(request: &Request, endpoint: &str, site: &mut Site) -> Answer {
    let expected = site.token.as_ref().map(|token| format!("Bearer {token}"));
    if expected.is_some() && request.authorization != expected {
        return Answer::new(401, String::new(), Vec::new());
    }
    if let Some(status) = site.status {
        return Answer::new(status, String::new(), Vec::new());
    }
    if let Some(file) = request.path.strip_prefix("/storage/") {
        return ranged(request, file, String::new(), site);
    }
    let known = |revision| ["main", "refs%2Fpr%2F1", COMMIT].contains(&revision);
    let listed = request.path.strip_prefix(&format!("/api/models/{REPO}/revision/"));
    if !site.no_listing && listed.is_some_and(known) {
        let headers = "Content-Type: application/json; charset=utf-8\r\n".to_owned();
        return Answer::new(200, headers, info(site).into_bytes());
    }
    let Some((revision, file)) = request
        .path
        .strip_prefix(&format!("/{REPO}/resolve/"))
        .and_then(|rest| rest.split_once('/'))
    else {
        return Answer::new(404, String::new(), Vec::new());
    };
    if site.gated {
        return Answer::new(403, "X-Error-Code: GatedRepo\r\n".to_owned(), Vec::new());
    }
    let Some(body) = site.files.get(file).filter(|_| known(revision)) else {
        return Answer::new(404, format!("X-Repo-Commit: {COMMIT}\r\n"), Vec::new());
    };
    let etag = site.etag.clone().unwrap_or_else(|| format!("tag-{}-{}", body.len(), file.len()));
    if file.ends_with(".safetensors") {
        let headers = format!(
            "X-Repo-Commit: {COMMIT}\r\nX-Linked-ETag: \"{etag}\"\r\nX-Linked-Size: {}\r\n\
             Location: {endpoint}/storage/{file}\r\n",
            body.len()
        );
        return Answer::new(302, headers, Vec::new());
    }
    let headers = format!("X-Repo-Commit: {COMMIT}\r\nETag: \"{etag}\"\r\n");
    ranged(request, file, headers, site)
}

/// What the hub says of a repository.
fn info(site: &Site) -> String {
    let files = site.files.keys().map(|name| format!("{{\"rfilename\": \"{name}\"}}"));
    let files: Vec<String> = files.collect();
    let (sha, files) = match site.lists_another {
        true => (COMMIT.replace('0', "f"), r#"{"rfilename": "config.json"}"#.to_owned()),
        false => (COMMIT.to_owned(), files.join(", ")),
    };
    let gated = if site.gated { "\"manual\"" } else { "false" };
    format!(
        "{{\"id\": \"{REPO}\", \"private\": false, \"gated\": {gated}, \"sha\": \"{sha}\", \
         \"siblings\": [{files}]}}"
    )
}

/// The part of a file requested by `Range: bytes=a-[b]`.
fn ranged(request: &Request, file: &str, headers: String, site: &mut Site) -> Answer {
    let Some(body) = site.files.get(file) else {
        return Answer::new(404, headers, Vec::new());
    };
    let num_bytes = body.len();
    let range = request.range.as_deref().and_then(|range| range.strip_prefix("bytes="));
    let (first, last) = range.and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(num_bytes - 1);
    if first >= num_bytes {
        return Answer::new(416, headers, Vec::new());
    }
    let headers = format!("{headers}Content-Range: bytes {first}-{last}/{num_bytes}\r\n");
    let mut answer = Answer::new(206, headers, body[first..=last].to_vec());
    let is_transfer = answer.body.len() > 1;
    if is_transfer && site.cuts.as_deref() == Some(file) {
        answer.body.pop();
        answer.content_length -= 1;
    }
    if let Some((_, at)) = site.breaks_off.take_if(|(name, _)| is_transfer && name == file) {
        answer.body.truncate(at);
    }
    answer
}
