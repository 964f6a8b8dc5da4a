//! Circles of modules within a crate: files that use each other, directly or by way of others.
//!
//! A module and those inside it count as one thing: a child may use what its parent defines. Items
//! for tests are left out. No parser of Rust: it counts on how rustfmt breaks lines. Known circles
//! stand in a list that only shrinks, one a line: `crate: module module …`.

use super::Finding;
use super::source::{Source, is_word};
use std::collections::{BTreeMap, BTreeSet};

/// The names from the crate's root to a file's module; none for the root.
type Module = Vec<String>;
/// The modules that each module of a crate uses.
type Uses = BTreeMap<Module, BTreeSet<Module>>;

/// Every circle that the list does not allow, and every module that it need not name.
pub fn check(sources: &[Source], list_path: &str, list: &str) -> Vec<Finding> {
    let mut known: Vec<Known<'_>> = list.lines().enumerate().filter_map(Known::parse).collect();
    let mut findings = Vec::new();
    for (krate, files) in &files_by_crate(sources) {
        for circle in circles(&uses(files)) {
            let names: BTreeSet<String> = circle.iter().map(|module| module.join("/")).collect();
            let allowed = known.iter_mut().filter(|line| line.krate == *krate);
            let allowed = { allowed }.find(|line| names.iter().all(|name| line.has(name)));
            match allowed {
                Some(line) => line.found.extend(names),
                None => {
                    let path = &files[&circle[0]].path;
                    let names = names.into_iter().collect::<Vec<_>>().join(", ");
                    let message = format!(
                        "modules use each other in a circle: {names}: move what \
                                           both need to where neither uses the other"
                    );
                    findings.push(Finding::new(path, 1, message));
                }
            }
        }
    }
    let stale = known.iter().flat_map(|line| {
        let gone = line.modules.iter().filter(|module| !line.found.contains(**module));
        gone.map(|module| {
            let message = format!("`{module}` is in no such circle any more: remove it here");
            Finding::new(list_path, line.line, message)
        })
    });
    findings.extend(stale);
    findings
}

/// A line of the list.
struct Known<'a> {
    /// Counted from 1.
    line: usize,
    krate: &'a str,
    modules: Vec<&'a str>,
    /// Those of its modules that were found in a circle.
    found: BTreeSet<String>,
}

impl<'a> Known<'a> {
    fn parse((index, line): (usize, &'a str)) -> Option<Self> {
        let (krate, modules) = line.split_once(": ").filter(|_| !line.starts_with('#'))?;
        let modules = modules.split_whitespace().collect();
        Some(Self { line: index + 1, krate, modules, found: BTreeSet::new() })
    }

    fn has(&self, name: &str) -> bool {
        self.modules.contains(&name)
    }
}

fn files_by_crate(sources: &[Source]) -> BTreeMap<&str, BTreeMap<Module, &Source>> {
    let mut crates = BTreeMap::<_, BTreeMap<_, _>>::new();
    for source in sources {
        let inside = source.path.strip_prefix("crates/").and_then(|path| path.split_once("/src/"));
        let Some((krate, file)) = inside else { continue };
        let Some(file) = file.strip_suffix(".rs") else { continue };
        let mut module: Module = file.split('/').map(str::to_owned).collect();
        if module.iter().any(|name| name == "tests") {
            continue;
        }
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
            module.pop();
        }
        crates.entry(krate).or_default().insert(module, source);
    }
    crates
}

fn uses(files: &BTreeMap<Module, &Source>) -> Uses {
    let modules: BTreeSet<Module> = files.keys().cloned().collect();
    let of = |(module, source): (&Module, &&Source)| {
        let code = code(&source.text);
        let used =
            paths(&tokens(&code)).into_iter().filter_map(|path| resolve(&modules, module, &path));
        let used = used.filter(|used| !used.starts_with(module) && !module.starts_with(used));
        (module.clone(), used.collect())
    };
    files.iter().map(of).collect()
}

/// The lines of a file without comments and items for tests: these end with the first line that is
/// indented as their attribute and closes something.
fn code(text: &str) -> String {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let (mut code, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        if line.trim() == "#[cfg(test)]" {
            lines.find(|end| indent(end) == indent(line) && end.ends_with([';', '}', ',']));
        } else {
            code.extend([line.split("//").next().unwrap_or_default(), "\n"]);
        }
    }
    code
}

/// Words and single signs.
fn tokens(code: &str) -> Vec<&str> {
    let (mut tokens, mut rest) = (Vec::new(), code.trim_start());
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let (token, behind) = rest.split_at(if word == 0 { first.len_utf8() } else { word });
        tokens.push(token);
        rest = behind.trim_start();
    }
    tokens
}

/// The module of a file of ours that a path leads to, seen from `module`.
fn resolve(modules: &BTreeSet<Module>, module: &Module, path: &[&str]) -> Option<Module> {
    let child = |parent: &Module, name: &str| {
        let child: Module = parent.iter().cloned().chain([name.to_owned()]).collect();
        modules.contains(&child).then_some(child)
    };
    let (first, mut rest) = path.split_first()?;
    let mut at = match *first {
        "crate" => Module::new(),
        "self" => module.clone(),
        "super" => {
            let mut at = module.clone();
            at.pop();
            while let Some(("super", more)) = rest.split_first().map(|(name, more)| (*name, more)) {
                at.pop();
                rest = more;
            }
            at
        }
        name => child(module, name)?,
    };
    for name in rest {
        match child(&at, name) {
            Some(module) => at = module,
            None => break,
        }
    }
    Some(at)
}

/// The paths that code names in `use`, or that begin with `crate` or `super`.
fn paths<'a>(tokens: &[&'a str]) -> Vec<Vec<&'a str>> {
    let (mut paths, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        let rest = &tokens[at..];
        if rest[0] == "use" {
            at += 1 + tree(&rest[1..], &[], &mut paths);
        } else if ["crate", "super"].contains(&rest[0]) && rest[1..].starts_with(&[":", ":"]) {
            at += tree(rest, &[], &mut paths).max(1);
        } else {
            at += 1;
        }
    }
    paths
}

/// Reads `a::{b, c::d}` after `prefix` into `paths`; the number of tokens read.
fn tree<'a>(tokens: &[&'a str], prefix: &[&'a str], paths: &mut Vec<Vec<&'a str>>) -> usize {
    let (mut path, mut at) = (prefix.to_vec(), 0);
    while let Some(&token) = tokens.get(at) {
        match token {
            ":" => at += 1,
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|&token| token != "}") {
                    at += tree(&tokens[at..], &path, paths).max(1);
                    at += usize::from(tokens.get(at) == Some(&","));
                }
                return at + 1;
            }
            _ if token.starts_with(is_word) => {
                path.push(token);
                at += 1;
                if tokens.get(at) != Some(&":") {
                    break;
                }
            }
            _ => break,
        }
    }
    paths.push(path);
    at
}

/// Groups of modules of which each reaches every other.
fn circles(uses: &Uses) -> Vec<Vec<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        uses.keys().map(|module| (module, reached_from(uses, module))).collect();
    let mut circles = BTreeSet::new();
    for (module, reached_here) in &reached {
        let circle: Vec<Module> = reached_here
            .iter()
            .filter(|other| reached.get(**other).is_some_and(|back| back.contains(module)))
            .map(|other| (*other).clone())
            .collect();
        if circle.len() > 1 {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

fn reached_from<'a>(uses: &'a Uses, module: &Module) -> BTreeSet<&'a Module> {
    let mut reached = BTreeSet::new();
    let mut waiting: Vec<&Module> = uses.get(module).into_iter().flatten().collect();
    while let Some(module) = waiting.pop() {
        if reached.insert(module) {
            waiting.extend(uses.get(module).into_iter().flatten());
        }
    }
    reached
}
