//! Limits on functions, files and columns, and the list of exceptions that only shrinks.
//!
//! An exception is a line `path: kind: limit` with kind `function`, `file` or `column`. It fails
//! as soon as it is not needed, or allows more than the present figure.

use super::Finding;
use super::source::{self, Source};
use std::collections::BTreeMap;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Function,
    File,
    Column,
}

const KINDS: [Kind; 3] = [Kind::Function, Kind::File, Kind::Column];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Function => "function",
            Kind::File => "file",
            Kind::Column => "column",
        }
    }

    /// What holds without an exception: lines, lines, characters.
    fn limit(self) -> usize {
        match self {
            Kind::Function => 70,
            Kind::File => 600,
            Kind::Column => 100,
        }
    }
}

/// One figure and where it was taken.
struct Measure {
    line: usize,
    figure: usize,
    what: String,
}

/// Limit and line in the exceptions' file, by path and kind.
type Exceptions = BTreeMap<(String, Kind), (usize, usize)>;

/// Everything over its limit, and every exception that could be smaller.
pub fn check(sources: &[Source], exceptions_path: &str, exceptions: &str) -> Vec<Finding> {
    let (mut exceptions, mut findings) = parse_exceptions(exceptions_path, exceptions);
    for source in sources {
        for kind in KINDS {
            let exception = exceptions.remove(&(source.path.clone(), kind));
            let measures = measure(source, kind);
            let limit = exception.map_or(kind.limit(), |(limit, _)| limit);
            let over = measures.iter().filter(|m| m.figure > limit);
            findings.extend(
                over.map(|m| Finding::new(&source.path, m.line, too_large(m, kind, limit))),
            );
            if let Some((limit, line)) = exception {
                let worst = measures.iter().map(|m| m.figure).max().unwrap_or(0);
                let message = stale_exception(&source.path, kind, limit, worst);
                findings.extend(message.map(|text| Finding::new(exceptions_path, line, text)));
            }
        }
    }
    for ((path, _), (_, line)) in exceptions {
        let message = format!("`{path}` is not a source file here: remove this line");
        findings.push(Finding::new(exceptions_path, line, message));
    }
    findings
}

fn too_large(measure: &Measure, kind: Kind, limit: usize) -> String {
    let Measure { figure, what, .. } = measure;
    match kind {
        Kind::Function => format!("{what} has {figure} lines, at most {limit}: split it"),
        Kind::File => format!("the file has {figure} lines, at most {limit}: split it by topic"),
        Kind::Column => format!("the line has {figure} columns, at most {limit}: break it"),
    }
}

/// Why an exception must shrink, if it must.
fn stale_exception(path: &str, kind: Kind, limit: usize, worst: usize) -> Option<String> {
    let kind_name = kind.name();
    if worst <= kind.limit() {
        Some(format!("`{path}: {kind_name}` is not needed any more: remove this line"))
    } else if limit > worst {
        Some(format!("`{path}: {kind_name}` allows {limit}, the figure is {worst}: lower it"))
    } else {
        None
    }
}

fn measure(source: &Source, kind: Kind) -> Vec<Measure> {
    match kind {
        Kind::Function => source::functions(&source.lines)
            .into_iter()
            .map(|f| Measure {
                line: f.line,
                figure: f.num_lines,
                what: format!("function `{}`", f.name),
            })
            .collect(),
        Kind::File => {
            vec![Measure { line: 1, figure: source.text.lines().count(), what: String::new() }]
        }
        Kind::Column => {
            let lines = source.text.lines().enumerate();
            lines
                .filter(|(index, text)| !is_long_address(source, *index, text))
                .map(|(index, text)| Measure {
                    line: index + 1,
                    figure: text.chars().count(),
                    what: String::new(),
                })
                .collect()
        }
    }
}

/// A comment that is long only because of an address, which cannot be broken.
fn is_long_address(source: &Source, index: usize, text: &str) -> bool {
    let comment = source.lines.get(index).map_or(text, |line| &line.comment);
    let Some(address) = comment.split_whitespace().find(|word| word.contains("://")) else {
        return false;
    };
    text.chars().count() - address.chars().count() <= Kind::Column.limit()
}

fn parse_exceptions(path: &str, text: &str) -> (Exceptions, Vec<Finding>) {
    let (mut exceptions, mut findings) = (Exceptions::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((key, limit)) = parse_exception(line) else {
            let message = "expected `path: function|file|column: limit`".to_owned();
            findings.push(Finding::new(path, index + 1, message));
            continue;
        };
        if exceptions.insert(key, (limit, index + 1)).is_some() {
            let message = "this path and kind stand here twice: keep the smaller limit";
            findings.push(Finding::new(path, index + 1, message));
        }
    }
    (exceptions, findings)
}

fn parse_exception(line: &str) -> Option<((String, Kind), usize)> {
    let mut parts = line.split(':').map(str::trim);
    let (path, kind, limit) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = KINDS.into_iter().find(|k| k.name() == kind)?;
    let limit = limit.parse().ok()?;
    parts.next().is_none().then(|| ((path.to_owned(), kind), limit))
}
